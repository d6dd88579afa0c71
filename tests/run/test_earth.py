"""Distances by hand and beside the geodesic; areas between parallels beside polygons on the ellipsoid, and of the whole Earth."""

import math
from itertools import pairwise

import numpy as np
import pyproj
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagery2flow.run.earth import EARTH_RADIUS_M, graticule_areas_m2, great_circle_m, pair_distance_m

GEOD = pyproj.Geod(ellps="WGS84")
ONE_DEGREE_M = math.pi / 180 * 6_371_009
places = st.tuples(st.floats(-180, 180), st.floats(-90, 90))


@pytest.mark.parametrize("edges", [[0.0, -0.5, -1.0], [39.0, 39.0001, 39.1], [89.0, 90.0]])
def test_areas_are_those_of_polygons_whose_parallels_have_many_vertices(edges):
    longitudes = np.linspace(0, 0.1, 2_000)
    found = graticule_areas_m2(np.array(edges), 0.1, GEOD.b, GEOD.es)
    for row, (first, last) in enumerate(pairwise(edges)):
        x, y = np.concatenate([longitudes, longitudes[::-1]]), np.repeat([first, last], len(longitudes))
        assert found[row] == pytest.approx(abs(GEOD.polygon_area_perimeter(x, y)[0]), rel=1e-6)


def test_the_whole_earth():
    edges = np.linspace(-95, 95, 381)  # what lies beyond the poles has no area
    assert graticule_areas_m2(edges, 360, 2.0, 0.0).sum() == pytest.approx(4 * np.pi * 4)
    assert graticule_areas_m2(edges, 360, GEOD.b, GEOD.es).sum() == pytest.approx(510_065_621_724_089, rel=1e-9)  # of WGS 84


def test_great_circle_by_hand():
    assert EARTH_RADIUS_M == 6_371_009
    assert great_circle_m(5.0, 40.0, 5.0, 41.0) == pytest.approx(ONE_DEGREE_M)
    assert great_circle_m(5.0, 0.0, 6.0, 0.0) == pytest.approx(ONE_DEGREE_M)
    assert great_circle_m(0.0, 60.0, 180.0, 60.0) == pytest.approx(60 * ONE_DEGREE_M)  # over the pole
    assert great_circle_m(179.5, 0.0, -179.5, 0.0) == pytest.approx(ONE_DEGREE_M)  # over the date line
    assert great_circle_m(0.0, 0.0, 180.0, 0.0) == pytest.approx(180 * ONE_DEGREE_M)


@given(places, places)
def test_great_circle_is_the_geodesic_within_a_percent_symmetric_and_0_at_one_place(one, other):
    distance = great_circle_m(*one, *other)
    assert distance == great_circle_m(*other, *one)
    assert great_circle_m(*one, *one) == 0
    geodesic = GEOD.inv(*one, *other)[2]
    assert distance == pytest.approx(geodesic, rel=6e-3, abs=0.1)


def test_distances_of_pairs_take_the_ends_by_their_positions():
    longitude, latitude = np.array([5.0, 6.0, 5.0]), np.array([0.0, 0.0, 2.0])
    found = pair_distance_m(longitude, latitude, np.array([0, 2, 1]), np.array([1, 0, 1]))
    assert found == pytest.approx([ONE_DEGREE_M, 2 * ONE_DEGREE_M, 0.0])
