import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from matplotlib import colormaps
from matplotlib.colors import to_rgba

from imagery2flow.encoder.similarity import principal_components
from imagery2flow.figures.cartography import HATCH
from imagery2flow.figures.unit_maps import embedding_rgb_map, origin_error_map

from .test_breakdowns import legend_texts

UNITS = gpd.GeoSeries([shapely.box(n, 0, n + 1, 1) for n in range(4)], index=["a", "b", "c", "d"], crs=32618)


def table(**rows):
    """by_origin's table of observed, predicted and cpc by unit."""
    return pd.DataFrame([(name, *values) for name, values in rows.items()], columns=["geocode", "observed", "predicted", "cpc"])


ORIGINS = table(c=(10.0, 20.0, 0.6), a=(10.0, 5.0, 0.2), d=(0.0, 3.0, 0.4))


def test_units_have_the_colour_of_their_cpc_and_those_without_are_hatched():
    figure = origin_error_map({"bilinear": ORIGINS}, UNITS)
    panel, bar = figure.axes
    known, absent = panel.collections
    low, high = np.percentile([0.2, 0.6, 0.4], [2, 98])
    expected = colormaps["cividis"](np.clip((np.array([0.2, 0.6, 0.4]) - low) / (high - low), 0, 1))  # a, c, d: in the order of the units
    np.testing.assert_allclose(known.get_facecolor(), expected)
    assert absent.get_hatch() == HATCH
    assert [path.vertices[:, 0].min() for path in absent.get_paths()] == [1]  # b
    assert panel.get_title() == "bilinear\nn = 3 of 4 units"
    assert legend_texts(figure)[1:] == ["no scored flow out of the unit: learned from, or nobody commutes"]
    assert bar.get_ylabel() == "CPC of the flows\nout of the unit"
    assert bar.get_ylim() == pytest.approx((low, high))


def test_the_error_of_the_outflow_is_relative_and_its_scale_has_0_in_the_middle():
    figure = origin_error_map({"bilinear": ORIGINS, "LightGBM": table(b=(10.0, 10.0, 1.0))}, UNITS, "outflow")
    left, right, bar = figure.axes
    high = np.percentile([0.5, 1.0, 0.0], 98)
    assert bar.get_ylim() == pytest.approx((-high, high))
    expected = colormaps["PuOr_r"](np.clip((np.array([-0.5, 1.0]) + high) / (2 * high), 0, 1))
    np.testing.assert_allclose(left.collections[0].get_facecolor(), expected)  # nobody was observed out of d
    np.testing.assert_allclose(right.collections[0].get_facecolor(), [colormaps["PuOr_r"](0.5)])
    assert [axis.get_title() for axis in (left, right)] == ["bilinear\nn = 2 of 4 units", "LightGBM\nn = 1 of 4 units"]
    assert bar.get_ylabel() == "(predicted - observed)\n/ observed outflow"


@pytest.mark.parametrize("error", ["cpc", "outflow"])
def test_one_unit_and_none_with_a_value(error):
    figure = origin_error_map({"bilinear": table(a=(10.0, 10.0, 1.0))}, UNITS[:1], error)
    assert figure.axes[0].get_title() == "bilinear\nn = 1 of 1 units"
    assert not figure.legends
    figure = origin_error_map({"bilinear": ORIGINS[:0]}, UNITS, error)
    assert [collection.get_hatch() for collection in figure.axes[0].collections] == [HATCH]
    assert figure.axes[0].get_title() == "bilinear\nn = 0 of 4 units"


def test_three_components_are_red_green_and_blue():
    generator = np.random.default_rng(0)
    vectors = pd.DataFrame(generator.normal(size=(3, 5)), index=["d", "a", "b"])
    figure = embedding_rgb_map(vectors, UNITS)
    (panel,) = figure.axes
    components, share = principal_components(vectors.to_numpy(), 3)
    low, high = np.percentile(components[:, :2], [2, 98], axis=0)
    expected = np.clip((components[:, :2] - low) / (high - low), 0, 1)[[1, 2, 0]]  # a, b, d
    coloured, absent = panel.collections
    np.testing.assert_allclose(coloured.get_facecolor()[:, :2], expected, atol=1e-9)
    assert absent.get_hatch() == HATCH and len(absent.get_paths()) == 1
    assert panel.get_title() == "principal components of 5 dimensions\nn = 3 of 4 units"
    assert legend_texts(figure)[1:3] == [f"red: component 1 ({share[0]:.0%})", f"green: component 2 ({share[1]:.0%})"]


def test_equal_vectors_are_grey():
    (panel,) = embedding_rgb_map(pd.DataFrame(np.ones((4, 3)), index=UNITS.index), UNITS).axes
    np.testing.assert_allclose(panel.collections[0].get_facecolor(), [to_rgba((0.5, 0.5, 0.5))] * 4)
