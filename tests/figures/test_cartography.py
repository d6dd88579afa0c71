import geopandas as gpd
import numpy as np
import pytest
import shapely
from matplotlib.backends.backend_agg import FigureCanvasAgg

from imagery2flow.figures.cartography import map_panels, round_below, title_panel
from imagery2flow.run.earth import EARTH_RADIUS_M

WIDE = gpd.GeoSeries([shapely.box(0, 0, 9_000, 3_000)], index=["a"], crs=32618)


@pytest.mark.parametrize(("value", "expected"), [(1, 1), (1.99, 1), (2, 2), (4.9, 2), (5, 5), (999, 500), (1000, 1000), (0.03, 0.02)])
def test_round_numbers_are_1_2_and_5(value, expected):
    assert round_below(value) == pytest.approx(expected)


@pytest.mark.parametrize("crs", ["EPSG:32618", "EPSG:2263"])  # metres, US feet
def test_a_scale_bar_is_as_long_as_it_says(crs):
    units = WIDE.set_crs(crs, allow_override=True)
    _, (axis,) = map_panels(units, 1)
    metres = units.crs.axis_info[0].unit_conversion_factor
    length_m = np.ptp(axis.get_lines()[0].get_xdata()) * metres
    assert length_m == pytest.approx({"EPSG:32618": 2_000, "EPSG:2263": 500}[crs])
    assert axis.texts[0].get_text() == {"EPSG:32618": "2 km", "EPSG:2263": "500 m"}[crs]


def test_degrees_are_stretched_and_measured_at_the_middle():
    units = gpd.GeoSeries([shapely.box(-74, 59, -73, 61)], index=["a"], crs=4326)
    _, (axis,) = map_panels(units, 1)
    assert axis.get_aspect() == pytest.approx(2)  # 1 / cos 60
    assert np.ptp(axis.get_lines()[0].get_xdata()) == pytest.approx(10_000 / (np.radians(1) * EARTH_RADIUS_M * 0.5))
    assert axis.texts[0].get_text() == "10 km"


def test_units_without_a_crs_have_no_scale_bar():
    _, (axis,) = map_panels(WIDE.set_crs(None, allow_override=True), 1)
    assert not axis.get_lines() and not axis.texts


@pytest.mark.parametrize("number", [1, 3, 4, 5, 9])
@pytest.mark.parametrize("height", [1_000, 9_000, 90_000])
def test_panels_lie_apart_within_the_figure_with_room_for_titles(number, height):
    units = gpd.GeoSeries([shapely.box(0, 0, 9_000, height)], index=["a"], crs=32618)
    figure, axes = map_panels(units, number, title_lines=3, colour_bar=True)
    assert len(axes) == number + 1
    boxes = [shapely.box(*axis.get_position(original=True).extents) for axis in axes]
    assert all(shapely.box(0, 0, 1, 1).contains(box) for box in boxes)
    assert not any(one.intersects(other) for n, one in enumerate(boxes) for other in boxes[:n])
    for axis in axes[:number]:
        axis.set_title("one\ntwo\nthree", fontsize=9, y=1)
    FigureCanvasAgg(figure).draw()
    titles = [shapely.box(*axis.title.get_window_extent().extents) for axis in axes[:number]]
    panels = [shapely.box(*axis.bbox.extents) for axis in axes[:number]]
    assert all(title.bounds[3] <= figure.bbox.height for title in titles)
    assert not any(title.intersects(panel) for title in titles for panel in panels)


def test_a_title_stands_right_above_its_panel_however_large_the_coordinates():
    units = gpd.GeoSeries([shapely.box(583_000, 4_504_000, 593_000, 4_526_000)], index=["a"], crs=32618)
    figure, axes = map_panels(units, 2)
    for axis in axes:
        title_panel(axis, "LightGBM\n81,253 commuters, CPC 0.83\nn = 2,739 pairs")  # as wide as the panel
    FigureCanvasAgg(figure).draw()
    gaps = [axis.title.get_window_extent().y0 - axis.bbox.y1 for axis in axes]
    assert all(0 < gap < 20 for gap in gaps)
