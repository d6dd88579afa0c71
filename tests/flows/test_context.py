import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagery2flow.flows.context import SMALLEST_AREA_KM2, UNITS_PER_BLOCK, average, surroundings
from imagery2flow.flows.graph import RegionGraph
from imagery2flow.flows.region import Region

LATITUDE_M = 111_195.0  # metres in a degree of latitude


def scattered(part, seed=0, kilometres=10.0):
    """Units at random places of a few kilometres, of the regions that ``part`` numbers; [num_units, 3] of random columns."""
    random = np.random.default_rng(seed)
    count = len(part)
    longitude, latitude = random.uniform(0, kilometres * 1_000 / LATITUDE_M, (2, count))
    ids = tuple(f"{number:04d}" for number in range(count))
    graph = RegionGraph(ids, longitude, latitude, random.uniform(0.1, 5, count), np.zeros((2, 0), np.int64))
    names = tuple(f"town{number}" for number in range(max(part) + 1))
    return Region(names, graph, np.array(part), ("a", "b", "c"), random.normal(size=(count, 3)), None)


def naive_surroundings(values, region, radii_m):
    """The module's equation, unit by unit."""
    rows = []
    for i in range(len(values)):
        row = []
        for radius in radii_m:
            weighted, total, density = np.zeros(values.shape[1]), 0.0, 0.0
            for j in range(len(values)):
                if region.part[i] != region.part[j]:
                    continue
                near = np.exp(-(float(region.graph.distance_m(np.array(i), np.array(j))) ** 2) / (2 * radius**2))
                area = max(region.graph.area_km2[j], SMALLEST_AREA_KM2)
                weighted, total, density = weighted + near * area * values[j], total + near * area, density + near
            row += [*(weighted / total), np.log(density)]
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("part", [[0] * 9, [0, 1, 0, 0, 1, 1, 0, 2, 2]])
def test_averages_and_densities_are_those_of_the_loop(part):
    region, radii_m = scattered(part), (500.0, 4_000.0)
    found = surroundings(region.embeddings, region, radii_m)
    assert found.shape == (9, 2 * 4)
    np.testing.assert_allclose(found, naive_surroundings(region.embeddings, region, radii_m), rtol=1e-10, atol=1e-12)


def test_blocks_of_units_change_nothing():
    region = scattered([0] * (UNITS_PER_BLOCK + 3))
    found = surroundings(region.embeddings, region, [800.0])
    every = np.arange(len(region.part))
    distance_m = region.graph.distance_m(*np.meshgrid(every, every, indexing="ij"))
    np.testing.assert_allclose(found, average(region.embeddings, distance_m, region.graph.area_km2, 800.0), rtol=1e-9)


def test_two_units_by_hand():
    """At a distance of r sqrt(2 ln 2) a neighbour counts half: (1 * 6 + 2 / 2 * 12) / (1 + 2 / 2) = 9, density log 1.5."""
    distance_m = np.array([[0.0, 1_000 * np.sqrt(2 * np.log(2))]])
    found = average(np.array([[6.0], [12.0]]), distance_m, np.array([1.0, 2.0]), 1_000.0)
    np.testing.assert_allclose(found, [[9.0, np.log(1.5)]])


def test_nothing_leaks_from_one_region_into_another():
    region = scattered([0, 0, 0, 0, 1, 1, 1])
    before = surroundings(region.embeddings, region, [1e6])
    changed = region.embeddings.copy()
    changed[4:] = 1e9
    after = surroundings(changed, region, [1e6])
    np.testing.assert_array_equal(after[:4], before[:4])
    assert (after[4:, :3] != before[4:, :3]).all()
    np.testing.assert_allclose(before[:, 3], np.log([4.0] * 4 + [3.0] * 3), atol=1e-4)  # everybody of the region and nobody else


def test_a_tiny_radius_sees_the_unit_alone_and_a_huge_one_the_mean_by_area():
    region = scattered([0] * 8)
    near, far = (surroundings(region.embeddings, region, [radius]) for radius in (1e-3, 1e9))
    np.testing.assert_allclose(near, np.concatenate([region.embeddings, np.zeros((8, 1))], axis=1))
    mean = np.average(region.embeddings, axis=0, weights=region.graph.area_km2)
    np.testing.assert_allclose(far, np.tile([*mean, np.log(8)], (8, 1)))


def test_a_unit_without_area_is_no_division_by_zero():
    found = average(np.array([[3.0]]), np.zeros((1, 1)), np.zeros(1), 500.0)
    np.testing.assert_allclose(found, [[3.0, 0.0]])


def test_without_radii_there_are_no_columns():
    region = scattered([0] * 3)
    assert surroundings(region.embeddings, region, []).shape == (3, 0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**20), st.lists(st.integers(0, 1), min_size=2, max_size=12), st.floats(100, 5_000))
def test_averages_lie_within_the_regions_values_and_density_between_one_and_all(seed, part, radius_m):
    part = [0, *part] if 0 not in part else part
    region = scattered(part, seed)
    found = surroundings(region.embeddings, region, [radius_m])
    for units in region.parts():
        values = region.embeddings[units]
        inside = (found[units, :3] >= values.min(axis=0, initial=np.inf) - 1e-9) & (
            found[units, :3] <= values.max(axis=0, initial=-np.inf) + 1e-9
        )
        assert inside.all()
        assert (found[units, 3] >= -1e-12).all()
        assert (found[units, 3] <= np.log(max(len(units), 1)) + 1e-9).all()
