import dataclasses
import math

import numpy as np
import pytest
import torch

from imagery2flow.flows.context import surroundings
from imagery2flow.flows.region import Region, join_regions
from imagery2flow.flows.scaling import fit_scaling, largest_distance_m, raw_features
from imagery2flow.run.earth import EARTH_RADIUS_M

from .conftest import NUM_UNITS, make_line_graph, make_region

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def region():
    return make_region()


def line_region(longitude, latitude):
    graph = make_line_graph(longitude, latitude)
    return Region(("line",), graph, np.zeros(len(longitude), dtype=np.int64), ("0",), np.zeros((len(longitude), 1), dtype=np.float32), None)


def test_features_are_scaled_by_mean_and_deviation_and_end_with_the_logarithm_of_the_area(region):
    scaling = fit_scaling(region, True, 0)
    tensors = scaling.graph_tensors(region, CPU)
    assert tensors.features.shape == (NUM_UNITS, 4)
    for column in range(3):
        values = [float(value) for value in region.embeddings[:, column]]
        mean = sum(values) / NUM_UNITS
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / NUM_UNITS)
        expected = [(value - mean) / deviation for value in values]
        assert tensors.features[:, column].tolist() == pytest.approx(expected, abs=1e-5)
    assert raw_features(region.embeddings, region.graph, True)[:, 3].tolist() == pytest.approx(
        [0] * NUM_UNITS, abs=2e-3
    )  # log of 1 km2, but for the projection
    assert fit_scaling(region, False, 0).graph_tensors(region, CPU).features.shape == (NUM_UNITS, 3)


def test_a_constant_feature_becomes_0(region):
    constant = dataclasses.replace(region, embeddings=np.full((NUM_UNITS, 3), 7.5, dtype=np.float32))
    features = fit_scaling(constant, False, 0).graph_tensors(constant, CPU).features
    assert torch.equal(features, torch.zeros(NUM_UNITS, 3))


def test_edges_are_relative_to_the_longest_and_another_region_keeps_the_sources_scale(region):
    scaling = fit_scaling(region, True, 0)
    weights = scaling.graph_tensors(region, CPU).edge_weight[:, 0]
    assert weights.max().item() == pytest.approx(1)
    assert weights.min().item() == pytest.approx(math.sqrt(0.5), rel=4e-3)  # side against diagonal
    other = make_region(seed=1)
    tensors = scaling.graph_tensors(other, CPU)
    expected = ((other.embeddings - scaling.mean[:3]) / scaling.std[:3]).clip(scaling.low[:3], scaling.high[:3])
    np.testing.assert_allclose(tensors.features[:, :3].numpy(), expected, rtol=1e-5, atol=1e-6)
    twice_as_wide = dataclasses.replace(other.graph, longitude=2 * other.graph.longitude)
    weights = scaling.graph_tensors(dataclasses.replace(other, graph=twice_as_wide), CPU).edge_weight
    assert weights.max().item() == pytest.approx(math.sqrt(5 / 2), rel=4e-3)  # diagonals of 1 by 2 km against those of 1 by 1


def relative_distances(region):
    """All pairs, by the region's own scaling."""
    scaling = fit_scaling(region, False, 0)
    origin, destination = (axis.reshape(-1) for axis in np.meshgrid(*[range(len(region.graph.geocodes))] * 2, indexing="ij"))
    return region.graph.distance_m(origin, destination) / scaling.distance_m


@pytest.mark.parametrize("seed", range(12))
def test_relative_distances_of_the_source_region_reach_1_and_no_further(seed):
    longitude, latitude = np.random.default_rng(seed).normal(size=(2, 25)) * [[0.4], [0.3]] + [[-74], [41]]
    assert relative_distances(line_region(longitude, latitude)).max() == pytest.approx(1, abs=1e-12)


def test_relative_distances_reach_1_whatever_the_direction_of_the_longest():
    # Two far ends of a thin line at 11.25 degrees, between two of eight directions, and units that stick out beyond them in those directions.
    angle = np.radians([11.25, 191.25, 0, 22.5, 180, 202.5])
    radius = 0.1 * np.array([1, 1, 0.985, 0.985, 0.985, 0.985])
    region = line_region(radius * np.cos(angle), radius * np.sin(angle))
    assert relative_distances(region).max() == pytest.approx(1, abs=1e-6)


def test_relative_distances_follow_a_table_of_distances():
    region = line_region([0.0, 0.1, 0.2, 0.15], [0.0, 0.0, 0.0, 0.01])
    table = np.full((4, 4), np.nan)
    table[1, 3] = 900_000.0  # by road far longer than from end to end
    region = dataclasses.replace(region, graph=dataclasses.replace(region.graph, table_m=table))
    assert relative_distances(region).max() == pytest.approx(1)


def test_the_largest_distance_is_one_within_a_region():
    near, far = line_region([0.0, 0.1, 0.2], [0.0] * 3), line_region([50.0, 50.1, 50.4], [0.0] * 3)
    graph = dataclasses.replace(far.graph, geocodes=("a", "b", "c"))
    both = join_regions([near, dataclasses.replace(far, graph=graph)])
    assert largest_distance_m(both) == pytest.approx(0.4 * np.pi / 180 * EARTH_RADIUS_M)


def wide_region(num_columns=12, seed=3):
    """A region whose columns are mixtures of three hidden ones."""
    random, region = np.random.default_rng(seed), make_region()
    hidden = random.normal(size=(NUM_UNITS, 3)) * [5.0, 2.0, 0.5]
    mixed = hidden @ random.normal(size=(3, num_columns)) + 7
    return dataclasses.replace(region, columns=tuple(map(str, range(num_columns))), embeddings=mixed.astype(np.float32))


def test_components_are_those_of_the_standardised_columns_at_unit_variance():
    region = wide_region()
    scaling = fit_scaling(region, False, 2)
    found = scaling.features(region)
    values = region.embeddings.astype(np.float64)
    standard = (values - values.mean(axis=0)) / values.std(axis=0)
    variance, vectors = np.linalg.eigh(standard.T @ standard / (NUM_UNITS - 1))
    for component in range(2):
        expected = standard @ vectors[:, -1 - component] / math.sqrt(variance[-1 - component])
        sign = np.sign(found[:, component] @ expected)
        np.testing.assert_allclose(sign * found[:, component], expected, atol=1e-6)


def test_components_without_variance_are_left_out_and_the_area_is_kept_as_it_is():
    region = wide_region()
    scaling = fit_scaling(region, True, 8)
    assert (scaling.in_dim, scaling.projection.shape) == (4, (13, 4))  # three that vary, and the area
    without = fit_scaling(region, True, 0)
    np.testing.assert_allclose(scaling.features(region)[:, -1], without.features(region)[:, -1])
    np.testing.assert_allclose(scaling.features(region)[:, :3].std(axis=0, ddof=1), 1)


def test_named_columns_are_kept_as_they_are():
    region = wide_region()
    names = (*region.columns[:-2], "red_mean", "population")
    named, plain = fit_scaling(dataclasses.replace(region, columns=names), True, 2), fit_scaling(region, True, 0)
    assert named.in_dim == 2 + 2 + 1
    found = named.features(dataclasses.replace(region, columns=names))
    np.testing.assert_allclose(found[:, 2:], plain.features(region)[:, -3:])


def test_few_columns_are_not_reduced(region):
    for num_components in (0, 3, 16):
        assert fit_scaling(region, True, num_components).projection is None
    assert fit_scaling(region, True, 2).projection is not None


RADII_M = (1500.0, 4000.0)


def test_surroundings_are_averages_of_the_sources_scale_and_not_the_networks(region):
    scaling = fit_scaling(region, False, 0)
    assert scaling.in_dim == 3
    for place in (region, make_region(seed=1)):
        scaled = (place.embeddings - scaling.mean) / scaling.std
        np.testing.assert_allclose(scaling.standardised(place), scaled)
        np.testing.assert_allclose(scaling.surroundings(place, RADII_M), surroundings(scaling.features(place), place, RADII_M))


def test_where_columns_have_names_those_are_averaged_around_a_unit():
    names = (*map(str, range(10)), "red_mean", "population")
    region = dataclasses.replace(wide_region(), columns=names)
    scaling = fit_scaling(region, True, 2)
    assert scaling.in_dim == 2 + 2 + 1
    np.testing.assert_allclose(scaling.surroundings(region, RADII_M), surroundings(scaling.features(region)[:, 2:4], region, RADII_M))


def test_another_regions_features_are_held_within_the_range_of_the_source(region):
    scaling = fit_scaling(region, True, 0)
    own = scaling.features(region)
    far = dataclasses.replace(region, embeddings=region.embeddings * 10)
    found = scaling.features(far)
    np.testing.assert_array_equal(found.min(axis=0), own.min(axis=0))
    np.testing.assert_array_equal(found.max(axis=0), own.max(axis=0))
    inside = dataclasses.replace(region, embeddings=region.embeddings * 0.5 + region.embeddings.mean(axis=0) * 0.5)
    np.testing.assert_allclose(scaling.features(inside), scaling.standardised(inside))


def test_without_radii_there_are_no_surroundings(region):
    assert fit_scaling(region, True, 0).surroundings(region, ()).shape == (len(region.embeddings), 0)


def test_quantities_are_the_columns_with_a_name_and_the_area_and_know_no_bounds():
    region = dataclasses.replace(wide_region(), columns=(*map(str, range(10)), "red_mean", "population"))
    scaling = fit_scaling(region, True, 2)
    np.testing.assert_array_equal(scaling.quantities(region), scaling.standardised(region)[:, 10:])
    far = dataclasses.replace(region, embeddings=region.embeddings * 10)
    assert (scaling.quantities(far)[:, :2].max(axis=0) > 5 * scaling.quantities(region)[:, :2].max(axis=0)).all()
    assert fit_scaling(region, False, 2).quantities(region).shape[1] == 2


def test_where_no_column_has_a_name_the_quantities_are_the_features(region):
    scaling = fit_scaling(region, True, 2)
    np.testing.assert_array_equal(scaling.quantities(region), scaling.features(region))
