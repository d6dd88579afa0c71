import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from shapely import affinity

from imagery2flow.flows import urban_form
from imagery2flow.flows.urban_form import (
    boyce_clark,
    centralisation,
    densest,
    dissolve,
    equal_area,
    moment_compactness,
    polsby_popper,
    population_density,
    share_within,
)

SQUARE = shapely.box(-500, -500, 500, 500)
DISC = shapely.Polygon(1000 * np.stack([np.cos(a := 2 * np.pi * np.arange(36_000) / 36_000), np.sin(a)], axis=1))
L_SHAPE = shapely.Polygon([(0, 0), (900, 0), (900, 200), (300, 200), (300, 700), (0, 700)])


def test_the_index_of_a_disc_is_0():
    assert boyce_clark(DISC) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("half_width", "half_height"), [(500, 500), (900, 300)])
def test_the_index_of_a_rectangle_is_that_of_a_loop_over_rays(half_width, half_height):
    lengths = []
    for number in range(36):
        x, y = np.cos(np.radians(10 * number)), np.sin(np.radians(10 * number))
        lengths.append(min(half_width / max(abs(x), 1e-12), half_height / max(abs(y), 1e-12)))
    expected = sum(abs(100 * length / sum(lengths) - 100 / 36) for length in lengths)
    assert boyce_clark(shapely.box(-half_width, -half_height, half_width, half_height)) == pytest.approx(expected)


def test_four_rays_in_a_rectangle_by_hand():
    # r = 3, 1, 3, 1 of 8: |37.5 - 25| and |12.5 - 25|, twice each
    assert boyce_clark(shapely.box(-3, -1, 3, 1), num_rays=4) == pytest.approx(50)


@given(st.integers(0, 35), st.floats(0.1, 50), st.floats(-1e5, 1e5), st.floats(-1e5, 1e5))
def test_the_index_does_not_change_with_place_size_and_turns_by_the_angle_between_rays(turns, factor, east, north):
    moved = affinity.rotate(affinity.scale(L_SHAPE, factor, factor, origin=(0, 0)), 10 * turns, origin=(0, 0))
    assert boyce_clark(affinity.translate(moved, east, north)) == pytest.approx(boyce_clark(L_SHAPE), rel=1e-6)
    assert boyce_clark(L_SHAPE) > 10


def test_holes_and_gaps_between_parts_do_not_shorten_rays():
    ring = SQUARE.difference(shapely.box(-300, -300, 300, 300))
    parts = SQUARE.difference(shapely.box(-600, -100, 600, 100)).union(shapely.box(499, -100, 500, 100))
    assert boyce_clark(ring) == pytest.approx(boyce_clark(SQUARE))
    assert len(shapely.get_parts(SQUARE.difference(shapely.box(-600, -100, 600, 100)))) == 2
    assert boyce_clark(parts, shapely.Point(0, 0), num_rays=4) == pytest.approx(abs(0 - 25) + 3 * abs(100 / 3 - 25))  # nothing to the west


def test_a_centre_outside_has_rays_that_meet_nothing():
    # One of four rays, to the east, meets the square, at 1500 m: |100 - 25| + 3 |0 - 25|
    assert boyce_clark(SQUARE, shapely.Point(-1000, 0), num_rays=4) == pytest.approx(150)
    assert np.isnan(boyce_clark(SQUARE, shapely.Point(5000, 5000), num_rays=4))


def test_a_centre_off_the_middle_raises_the_index():
    assert boyce_clark(DISC, shapely.Point(500, 0)) > boyce_clark(DISC, shapely.Point(200, 0)) > 5


def test_compactness_of_shapes_by_hand():
    assert polsby_popper(SQUARE) == pytest.approx(np.pi / 4)
    assert polsby_popper(shapely.box(0, 0, 4, 1)) == pytest.approx(4 * np.pi * 4 / 100)
    assert polsby_popper(DISC) == pytest.approx(1, abs=1e-6)
    # I of a rectangle about its middle is w h (w^2 + h^2) / 12
    assert moment_compactness(SQUARE) == pytest.approx(3 / np.pi)
    assert moment_compactness(shapely.box(10, 10, 14, 11)) == pytest.approx(16 / (2 * np.pi * 4 * 17 / 12))
    assert moment_compactness(DISC) == pytest.approx(1, abs=1e-6)
    ring = SQUARE.difference(shapely.box(-250, -250, 250, 250))
    assert moment_compactness(ring) == pytest.approx(0.75**2 / (2 * np.pi * (1 / 6 - 0.5**4 / 6)))


def test_the_moment_is_that_of_a_sum_over_small_squares_for_parts_and_either_direction():
    shape = shapely.MultiPolygon([shapely.box(0, 0, 2, 1), shapely.box(5, 0, 6, 3).reverse()])
    step = 0.02
    x, y = np.meshgrid(np.arange(step / 2, 6, step), np.arange(step / 2, 3, step))
    inside = shapely.contains_xy(shape, x, y)
    x, y = x[inside], y[inside]
    moment = (((x - x.mean()) ** 2 + (y - y.mean()) ** 2) * step**2).sum()
    assert moment_compactness(shape) == pytest.approx(shape.area**2 / (2 * np.pi * moment), rel=1e-3)


def test_gaps_that_digitising_left_are_closed_and_real_ones_stay():
    halves = gpd.GeoSeries([shapely.box(0, 0, 1000, 499.8), shapely.box(0, 500.2, 1000, 1000)])
    outline = dissolve(halves)
    assert outline.geom_type == "Polygon"
    assert outline.area == pytest.approx(1e6, abs=1) and outline.length == pytest.approx(4000, abs=0.1)
    assert len(shapely.get_parts(dissolve(gpd.GeoSeries([halves[0], affinity.translate(halves[1], 0, 5)])))) == 2


@pytest.mark.parametrize(("longitude", "latitude"), [(-74.0, 40.7), (24.9, 60.2), (179.95, -17.0)])
def test_areas_are_those_of_the_ellipsoid_also_across_the_antimeridian(longitude, latitude):
    from pyproj import Geod

    box = shapely.box(longitude - 0.3, latitude - 0.3, longitude + 0.3, latitude + 0.3).segmentize(0.005)
    other = shapely.box(-longitude - 0.01, latitude, -longitude, latitude + 0.01)
    units = gpd.GeoSeries([box, other] if abs(longitude) > 179 else [box], crs=4326)
    if abs(longitude) > 179:
        units[0] = shapely.box(longitude - 0.3, latitude - 0.3, 180, latitude + 0.3).segmentize(0.005)
    found = equal_area(units)
    for degrees, metres in zip(units, found, strict=True):
        assert metres.area == pytest.approx(abs(Geod(ellps="WGS84").geometry_area_perimeter(degrees)[0]), rel=1e-5)
    assert np.abs(found.total_bounds).max() < 100_000  # centred on the units


def test_densities_by_hand_and_units_of_unknown_population():
    plain, weighted = population_density(np.array([100.0, 300, np.nan]), np.array([1.0, 3, 50]))
    assert (plain, weighted) == (100, 100)
    plain, weighted = population_density(np.array([300.0, 100]), np.array([1.0, 9]))
    assert plain == 40
    assert weighted == pytest.approx((300 * 300 + 100 * 100 / 9) / 400)
    assert population_density(np.zeros(2), np.ones(2))[0] == 0
    assert np.isnan(population_density(np.zeros(2), np.ones(2))[1])
    assert np.isnan(population_density(np.array([np.nan]), np.ones(1))).all()


def test_the_job_centre_is_the_densest_unit_and_the_first_of_equals():
    assert densest(np.array([50.0, 90, 10]), np.array([1.0, 9, 0.1])) == 2
    assert densest(np.array([10.0, 20, 20]), np.array([1.0, 1, 1])) == 1


def test_the_share_of_jobs_within_a_distance_includes_the_distance():
    assert share_within(np.array([5.0, 3, 2]), np.array([0.0, 5000, 5001])) == 0.8
    assert np.isnan(share_within(np.zeros(2), np.zeros(2)))


def test_centralisation_by_hand():
    jobs, area, distance = np.array([2.0, 8, 0]), np.array([1.0, 1, 2]), np.array([1000.0, 0, 5000])
    # from the centre: X = .8, 1, 1 and A = .25, .5, 1; .8 x .5 + 1 x 1 - 1 x .25 - 1 x .5
    assert centralisation(jobs, area, distance) == pytest.approx(0.65)
    assert centralisation(area * 7, area, distance) == pytest.approx(0)
    assert centralisation(np.array([0.0, 0, 9]), area, distance) == pytest.approx(-0.5)
    assert np.isnan(centralisation(np.zeros(3), area, distance))


def test_units_at_one_distance_count_as_one_whatever_their_order():
    jobs, area, distance = np.array([4.0, 1, 5, 2]), np.array([1.0, 4, 2, 3]), np.array([0.0, 700, 700, 900])
    joined = centralisation(np.array([4.0, 6, 2]), np.array([1.0, 6, 3]), np.array([0.0, 700, 900]))
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        assert centralisation(jobs[order], area[order], distance[order]) == pytest.approx(joined)


def test_one_unit_is_its_own_centre():
    one = np.ones(1)
    assert (share_within(one, 0 * one), centralisation(one, one, 0 * one)) == (1, 0)
    assert urban_form.unit_areas_km2(gpd.GeoSeries([SQUARE])).tolist() == [1]
