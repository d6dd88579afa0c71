from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import shapely

from imagery2flow.figures import maps
from imagery2flow.figures.maps import draw_map, region_map
from imagery2flow.imagery.scene import open_scene
from imagery2flow.run.config import MapConfig
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
    return MapConfig(predictions_path=str(tmp_path / "p.csv"), units_path=units, scene_path=scene, output_path=str(tmp_path / "map.png"))


def panels(config):
    table = pd.read_csv(config.predictions_path, dtype={"h_geocode": str, "w_geocode": str})
    units = maps.read_units(config.units_path, None, Ledger("test", quiet=True))
    return region_map(open_scene(config.scene_path), units.geometry, table).axes


def lines_of(axis):
    """Ends and widths of the flows of a panel."""
    flows = axis.collections[-1]
    return [segment.tolist() for segment in flows.get_segments()], list(flows.get_linewidths())


def test_flows_between_units_are_lines_between_centroids_wider_with_more_commuters(region):
    _, observed, predicted = panels(region)
    places = [[500_150.0 + SIDE_M * n, 4_499_850.0] for n in range(3)]
    segments, widths = lines_of(observed)
    assert segments == [[places[0], places[1]], [places[1], places[2]]]  # within a unit there is no line, the unknown one is not observed
    assert widths == pytest.approx([2 * (10 / 90) ** 0.5, 2 * (20 / 90) ** 0.5])
    segments, widths = lines_of(predicted)
    assert segments == [[places[2], places[0]], [places[0], places[1]], [places[1], places[2]]]
    assert widths == pytest.approx([2 * (5 / 90) ** 0.5, 2 * (12 / 90) ** 0.5, 2 * (20 / 90) ** 0.5])


def test_titles_say_what_is_shown_and_how_good_it_is(region):
    titles = [axis.get_title() for axis in panels(region)]
    # CPC of (10, 90, 20) against (12, 80, 20): 2 x 110 / 232
    assert titles == ["imagery (red, green, blue) and 3 units", "observed: 120 commuters", "predicted: 117 commuters, CPC 0.95"]


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
        draw_map(MapConfig(predictions_path="p", units_path="u", scene_path="s", output_path="map.txt"), ledger_of_tests)
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
