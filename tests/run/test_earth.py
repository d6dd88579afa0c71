"""Areas between parallels: against polygons on the ellipsoid, and the whole Earth."""

from itertools import pairwise

import numpy as np
import pyproj
import pytest

from imagery2flow.run.earth import graticule_areas_m2

GEOD = pyproj.Geod(ellps="WGS84")


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
