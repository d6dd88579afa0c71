from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import shapely
from matplotlib.colors import to_hex

from imagery2flow.figures import maps
from imagery2flow.figures.maps import WIDEST_LINE, draw_map, flow_maps
from imagery2flow.figures.style import COLOURS, GREY
from imagery2flow.imagery.scene import open_scene
from imagery2flow.run.config import FlowMapConfig
from imagery2flow.run.errors import InputError, TableError
from imagery2flow.run.stage import Ledger

SIDE_M = 300.0


@pytest.fixture
def region(tmp_path, write_scene, write_units):
    """Three squares side by side on a scene, and predictions between them."""
    values = np.random.default_rng(0).integers(1, 200, (3, 10, 30)).astype(np.uint8)
    scene = write_scene(values, names=("red", "green", "blue"), photometric="minisblack")
    squares = {f"0{n}": shapely.box(500_000 + SIDE_M * n, 4_499_700, 500_000 + SIDE_M * (n + 1), 4_500_000) for n in range(3)}
    units = write_units(squares, crs="EPSG:32618")
    table = pd.DataFrame({"h_geocode": ["00", "00", "01", "02"], "w_geocode": ["01", "00", "02", "00"]})
    table = table.assign(count=[10.0, 90.0, 20.0, np.nan], prediction=[12.0, 80.0, 20.0, 5.0])
    table.to_csv(tmp_path / "p.csv", index=False)
    return FlowMapConfig(
        predictions_path=str(tmp_path / "p.csv"), units_path=units, scene_path=scene, output_path=str(tmp_path / "map.png")
    )


def read(config):
    """Table of predictions and outlines of the units."""
    table = pd.read_csv(config.predictions_path, dtype={"h_geocode": str, "w_geocode": str})
    return table, maps.read_units(config.units_path, None, Ledger("test", quiet=True)).geometry


def lines_of(axis):
    """Ends, widths and colours of the flows of a panel."""
    flows = axis.collections[-1]
    return [segment.tolist() for segment in flows.get_segments()], flows.get_linewidths(), flows.get_colors()


def titles(figure):
    return [axis.get_title() for axis in figure.axes]


PLACES = [[500_150.0 + SIDE_M * n, 4_499_850.0] for n in range(3)]


def test_flows_between_units_are_lines_between_centroids_wider_with_more_commuters(region):
    table, units = read(region)
    observed, predicted = flow_maps({"model": table}, units).axes
    segments, widths, _ = lines_of(observed)
    assert segments == [[PLACES[0], PLACES[1]], [PLACES[1], PLACES[2]]]  # within a unit there is no line, the unknown one is not observed
    assert widths == pytest.approx([WIDEST_LINE * (10 / 20) ** 0.5, WIDEST_LINE])
    segments, widths, colours = lines_of(predicted)
    assert segments == [[PLACES[2], PLACES[0]], [PLACES[0], PLACES[1]], [PLACES[1], PLACES[2]]]
    assert widths == pytest.approx([WIDEST_LINE * (5 / 20) ** 0.5, WIDEST_LINE * (12 / 20) ** 0.5, WIDEST_LINE])
    assert colours[:, 3] == pytest.approx([0.25**0.75, 0.6**0.75, 1])


def test_all_panels_have_one_scale_which_the_legend_shows(region):
    table, units = read(region)
    figure = flow_maps(
        {"bilinear": table, "LightGBM": table.assign(prediction=[80.0, 500, 3, 0]), "gravity": table, "constant": table}, units
    )
    assert [title.split("\n")[0] for title in titles(figure)] == ["observed", "bilinear", "LightGBM", "gravity", "constant"]
    assert lines_of(figure.axes[0])[1] == pytest.approx([WIDEST_LINE * (10 / 80) ** 0.5, WIDEST_LINE * (20 / 80) ** 0.5])
    assert lines_of(figure.axes[2])[1] == pytest.approx([WIDEST_LINE * (3 / 80) ** 0.5, WIDEST_LINE])  # a flow of nobody is no line
    assert [to_hex(lines_of(axis)[2][0][:3]) for axis in figure.axes] == ["#000000", *(c.lower() for c in COLOURS[:3]), GREY]
    (legend,) = figure.legends
    widths = {text.get_text(): line.get_linewidth() for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)}
    assert widths == pytest.approx(
        {"2": WIDEST_LINE * (2 / 80) ** 0.5, "10": WIDEST_LINE * (10 / 80) ** 0.5, "50": WIDEST_LINE * (50 / 80) ** 0.5}
    )
    assert legend.get_title().get_text() == "commuters (up to 3 flows between different units)"


def test_only_the_largest_flows_are_drawn_and_the_legend_says_so(region, monkeypatch):
    monkeypatch.setattr(maps, "LINES_SHOWN", 1)
    table, units = read(region)
    figure = flow_maps({"model": table}, units)
    assert [len(lines_of(axis)[0]) for axis in figure.axes] == [1, 1]
    assert figure.legends[0].get_title().get_text() == "commuters (the 1 largest flows between different units)"


def test_titles_say_what_is_shown_and_how_good_it_is(region):
    table, units = read(region)
    figure = flow_maps({"predicted": table}, units, maps.read_picture(open_scene(region.scene_path)))
    assert titles(figure) == [
        "imagery (red, green, blue)\n3 units\n",
        "observed\n120 commuters\nn = 3 pairs",
        # CPC of (10, 90, 20) against (12, 80, 20): 2 x 110 / 232
        "predicted\n117 commuters, CPC 0.95\nn = 4 pairs, 3 known",
    ]
    assert figure.axes[0].get_images()[0].get_array().shape == (10, 30, 3)
    left, bottom, right, top = units.total_bounds
    assert all(axis.get_xlim() == (left, right) and axis.get_ylim() == (bottom, top) for axis in figure.axes)


def test_a_city_without_observed_flows_has_no_panel_of_them(region):
    table, units = read(region)
    figure = flow_maps({"predicted": table.assign(count=np.nan)}, units)
    assert titles(figure) == ["predicted\n117 commuters\nn = 4 pairs"]


def test_one_unit_has_no_lines_and_no_widths(region):
    table, units = read(region)
    figure = flow_maps({"predicted": table[1:2]}, units[:1])
    assert titles(figure) == ["observed\n90 commuters\nn = 1 pairs", "predicted\n80 commuters, CPC 0.94\nn = 1 pairs"]
    assert [len(lines_of(axis)[0]) for axis in figure.axes] == [0, 0]
    assert not figure.legends[0].get_texts()


def test_predictors_of_other_pairs_are_refused_but_not_those_in_another_order(region):
    table, units = read(region)
    flow_maps({"a": table, "b": table[::-1]}, units)
    with pytest.raises(ValueError, match="the known flows of b are not those of a"):
        flow_maps({"a": table, "b": table[1:]}, units)
    with pytest.raises(ValueError, match="no predictor is given"):
        flow_maps({}, units)


def test_the_picture_is_written_and_the_same_each_time(region, tmp_path, ledger_of_tests):
    assert draw_map(region, ledger_of_tests) == tmp_path / "map.png.run.json"
    first = (tmp_path / "map.png").read_bytes()
    draw_map(region, ledger_of_tests)
    assert (tmp_path / "map.png").read_bytes() == first
    assert first.startswith(b"\x89PNG")


def test_units_of_another_place_and_unknown_suffixes_are_refused(region, tmp_path, ledger_of_tests):
    pd.read_csv(region.predictions_path, dtype=str).replace("02", "99").to_csv(region.predictions_path, index=False)
    with pytest.raises(TableError, match=r"1 ids of h_geocode are not among the units \(99\).*1 ids of w_geocode .* \(99\)"):
        draw_map(region, ledger_of_tests)
    with pytest.raises(InputError, match=r"must be a file that ends in .png, .pdf, .svg"):
        draw_map(FlowMapConfig(predictions_path="p", units_path="u", scene_path="s", output_path="map.txt"), ledger_of_tests)
    assert not (tmp_path / "map.png").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prediction": "many"}, r"4 values of prediction are no numbers of commuters \(many, many, many, many\)"),
        ({"prediction": np.inf, "count": -1}, r"2 faults: 4 values of count are no .*-1.*; 4 values of prediction .* \(inf, "),
        ({"h_geocode": ""}, r"1 ids of h_geocode are not among the units \(nan\)"),
    ],
)
def test_all_faults_of_the_predictions_are_told_at_once(region, ledger_of_tests, change, says):
    pd.read_csv(region.predictions_path, dtype=str).assign(**change).to_csv(region.predictions_path, index=False)
    with pytest.raises(TableError, match=says):
        draw_map(region, ledger_of_tests)


def test_an_empty_table_of_predictions_is_refused(region, ledger_of_tests):
    pd.read_csv(region.predictions_path, dtype=str)[:0].to_csv(region.predictions_path, index=False)
    with pytest.raises(TableError, match=r"the table has 0 rows; name a table that train_ODPrediction.py"):
        draw_map(region, ledger_of_tests)


@pytest.mark.parametrize("place", [shapely.box(10, 89, 11, 90), shapely.box(-75.2, 40.5, -75.1, 40.6)])  # infinitely far, and beside it
def test_units_beside_the_scene_are_refused(region, write_units, ledger_of_tests, place):
    units = write_units(dict.fromkeys(["00", "01", "02"], place), "elsewhere.gpkg", crs="EPSG:4326")
    with pytest.raises(InputError, match=r"units .*elsewhere.gpkg do not lie on scene .*; name the scene of that place with --scene_path"):
        draw_map(replace(region, units_path=units), ledger_of_tests)


@pytest.fixture
def ledger_of_tests():
    return Ledger("test", quiet=True)
