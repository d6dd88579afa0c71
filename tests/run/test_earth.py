"""Distances by hand and beside the geodesic; areas between parallels beside polygons on the ellipsoid, and of the whole Earth."""

import math
from itertools import pairwise

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from pyproj.database import query_utm_crs_info

from imagery2flow.run.earth import EARTH_RADIUS_M, graticule_areas_m2, great_circle_m, pair_distance_m, utm_epsg

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


def test_zones_are_those_of_the_database():
    zones = query_utm_crs_info(datum_name="WGS 84")
    assert len(zones) == 120
    for zone in zones:
        west, south, east, north = zone.area_of_use.bounds
        assert east - west == pytest.approx(6, abs=0.02)
        outline = gpd.GeoSeries([shapely.box(west + 0.1, south + 1, east - 0.1, north - 1)], crs=4326)
        assert utm_epsg(outline) == int(zone.code)


@pytest.mark.parametrize("crs", ["EPSG:32618", "EPSG:3857", "EPSG:4269", "EPSG:5070"])
def test_the_zone_is_that_of_geopandas(crs):
    shapes = gpd.GeoSeries([shapely.box(-77.5, 38.2, -75.9, 39.9)], crs=4326).to_crs(crs)
    assert utm_epsg(shapes) == shapes.estimate_utm_crs().to_epsg() == 32618


def test_shapes_on_both_sides_of_the_antimeridian():
    shapes = gpd.GeoSeries([shapely.box(178, -18, 179.9, -17), shapely.box(180, -18, 185, -17)], crs=4326)
    assert utm_epsg(shapes) == 32701
    assert utm_epsg(shapes.to_crs(3832)) == 32701  # metres on both sides of 150 degrees east
