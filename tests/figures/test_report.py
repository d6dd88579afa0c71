import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import shapely

from imagery2flow.__main__ import main
from imagery2flow.figures.report import SCRIPTS, page_file, script_safe, write_report
from imagery2flow.figures.report_map import outlines, simplified
from imagery2flow.run.errors import InputError, MissingInputError, TableError
from imagery2flow.run.report_config import ReportConfig
from imagery2flow.run.stage import Ledger
from tests.figures.runs import city, squares, write_run

HOSTILE = "<img src=x onerror=alert(1)>\"'&"
ENDING = f"</script>{HOSTILE}{{{{data}}}}"
PAIRS = pd.DataFrame(
    {
        "h_geocode": ["00", "00", "01", "02"],
        "w_geocode": ["00", "01", "02", "00"],
        "count": [90.0, 10.0, 20.0, np.nan],
        "bilinear": [80.0, 12.0, 20.0, 5.0],
        "lightgbm": [90.0, 5.0, 40.0, 6.0],
        "split": ["test", "test", "train", "train"],
    }
)


class Page(HTMLParser):
    """Elements of a page, and the content of each script."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.text += data


def report(run, **settings):
    """The page of a run, what its map holds, and the ledger."""
    ledger = Ledger("report", quiet=True)
    config = ReportConfig(run_dir=str(run), **settings)
    assert write_report(config, ledger) == config.output.with_name(config.output.name + ".run.json")
    page = Page(config.output.read_text(encoding="utf-8"))
    return page, json.loads(page.scripts[0]), ledger


def numbers(text, kind="<f4"):
    return np.frombuffer(base64.b64decode(text), kind)


def columns_of(content):
    return {column["name"]: numbers(column["values"]) for column in content["columns"]}


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path, squares(["00", "01", "02"]), PAIRS)


def test_flows_stand_by_origin_with_every_decoder(run):
    _, content, ledger = report(run)
    flows = content["flows"]
    assert content["units"]["ids"] == ["00", "01", "02"]
    assert numbers(flows["start"], "<u4").tolist() == [0, 2, 3, 4]
    assert numbers(flows["destination"], "<u4").tolist() == [0, 1, 2, 0]
    np.testing.assert_array_equal(numbers(flows["observed"]), [90, 10, 20, np.nan])
    assert [one["name"] for one in flows["predicted"]] == ["bilinear", "LightGBM"]
    assert numbers(flows["predicted"][1]["values"]).tolist() == [90, 5, 40, 6]
    assert (flows["top_flow"], flows["top_difference"]) == (pytest.approx(40, rel=1e-3), pytest.approx(20, rel=1e-3))  # between units
    assert ledger.came_in == {"units": 3, "pairs of units": 4}


def test_totals_are_of_known_flows_and_the_cpc_of_scored_ones(run):
    columns = columns_of(report(run)[1])
    np.testing.assert_array_equal(columns["Outflow, observed (commuters)"], [100, 20, np.nan])
    np.testing.assert_array_equal(columns["Inflow, observed (commuters)"], [90, 10, 20])
    assert columns["Inflow, bilinear (commuters)"].tolist() == [85, 12, 20]
    # The pair of unknown flow counts in no difference.
    np.testing.assert_array_equal(columns["Inflow, LightGBM minus observed (commuters)"], [0, -5, 20])
    cpc = columns["CPC of the origin's scored pairs, LightGBM (0 to 1)"]
    np.testing.assert_allclose(cpc, [2 * 95 / 195, np.nan, np.nan], rtol=1e-6)  # of 00 only, whose pairs were held out


def test_stage_5_scores_the_pairs_that_its_table_says(tmp_path):
    pairs = PAIRS.drop(columns="split").assign(scored=[False, True, True, False])
    content = report(write_run(tmp_path, squares(["00", "01", "02"]), pairs, "test_ODPrediction"))[1]
    np.testing.assert_allclose(
        columns_of(content)["CPC of the origin's scored pairs, bilinear (0 to 1)"], [2 * 10 / 22, 1, np.nan], rtol=1e-6
    )


def test_columns_of_the_units_and_of_other_tables_can_be_shown(tmp_path):
    units = squares(["00", "01", "02"]).assign(residents=[5, 6, 7], quarter=["a", "b", "c"], again=["00", "01", "02"])
    run = write_run(tmp_path, units, PAIRS)
    pd.DataFrame({"geocode": ["02", "00", "99"], "0": 1.0, "income": [3.0, 1.0, 9.0], "word": "x"}).to_csv(
        tmp_path / "more.csv", index=False
    )
    _, content, ledger = report(run, columns_path=[str(tmp_path / "more.csv")])
    columns = columns_of(content)
    assert columns["residents"].tolist() == [5, 6, 7]
    np.testing.assert_array_equal(columns["income"], [1, np.nan, 3])
    assert not {"0", "word"} & set(columns)
    assert content["units"]["texts"] == [{"name": "quarter", "values": ["a", "b", "c"]}]  # not the ids once more
    assert ledger.left_out == {f"rows of {tmp_path / 'more.csv'} of other units": ["99"]}


def test_units_tell_their_part_of_the_split(run):
    pd.DataFrame({"geocode": ["02", "00"], "split": ["train", "test"]}).to_csv(run / "split.csv", index=False)
    assert report(run)[1]["units"]["texts"] == [{"name": "part of the run's split", "values": ["test", "", "train"]}]


def test_outlines_are_close_and_neighbours_keep_common_borders():
    units = city(60).set_index("geocode")
    step_m = 1.0
    vertices, ring_start, unit_start = outlines(units, step_m)
    left, _, _, top = units.total_bounds
    assert (len(ring_start), len(unit_start)) == (unit_start[-1] + 1, 61)
    places = np.stack([vertices[:, 0] + left, top - vertices[:, 1]], axis=1)
    drawn = []
    for unit in range(60):
        rings = [places[ring_start[ring] : ring_start[ring + 1]] for ring in range(unit_start[unit], unit_start[unit + 1])]
        drawn.append(shapely.union_all([shapely.make_valid(shapely.polygons(ring)) for ring in rings]))
    missed = shapely.area(shapely.symmetric_difference(drawn, units.geometry.to_numpy())) / units.area
    assert missed.max() < 0.05
    assert len(vertices) < shapely.get_num_coordinates(units.geometry.to_numpy()).sum() / 4
    if hasattr(shapely, "coverage_simplify"):
        assert shapely.coverage_is_valid(simplified(units.geometry.to_numpy()))


def test_of_more_pairs_than_asked_for_the_largest_stay_and_totals_are_of_all(run):
    page, content, ledger = report(run, largest_flows=2)
    assert numbers(content["flows"]["destination"], "<u4").tolist() == [0, 2]  # 90 and 40, in the order of origins
    assert columns_of(content)["Outflow, observed (commuters)"][0] == 100
    assert "the map holds the 2 largest of 4 pairs (those of 40 commuters and more; --largest_flows)" in ledger.notes[-1]
    assert "The map holds the 2 largest; totals and scores are of all." in page.text


def test_decoders_whose_tables_hold_other_pairs_are_joined(run):
    table = pd.read_csv(run / "predictions_lightgbm.csv", dtype={"h_geocode": str, "w_geocode": str})
    table[:2].to_csv(run / "predictions_lightgbm.csv", index=False)
    flows = report(run)[1]["flows"]
    np.testing.assert_array_equal(numbers(flows["predicted"][1]["values"]), [90, 5, np.nan, np.nan])
    np.testing.assert_array_equal(numbers(flows["observed"]), [90, 10, 20, np.nan])


def test_hostile_names_stay_text(tmp_path):
    ids = ["00", HOSTILE, "02"]
    units = squares(ids).assign(**{ENDING: [1, 2, 3], "word": ENDING})
    pairs = PAIRS.replace("01", HOSTILE)
    page, content, _ = report(write_run(tmp_path, units, pairs, region=[ENDING], log=ENDING, note={ENDING: ENDING}))
    tags = [tag for tag, _ in page.elements]
    assert (tags.count("script"), tags.count("img")) == (2, 0)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert content["units"]["ids"] == sorted(ids)
    assert content["columns"][-1]["name"] == ENDING
    assert f"Commuting flows of {ENDING}, 2020" in page.text


def test_json_in_a_script_can_neither_end_it_nor_begin_a_comment():
    text = script_safe({"</script>": "<!-- & -->\u2028", "nan": float("nan")})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"</script>": "<!-- & -->\u2028", "nan": None}


def test_the_page_allows_its_own_script_only_and_asks_for_nothing(run):
    page, _, _ = report(run)
    policy = next(attributes["content"] for tag, attributes in page.elements if attributes.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:;")
    links = {
        value for _, attributes in page.elements for name, value in attributes.items() if name in ("src", "href", "xlink:href", "action")
    }
    assert all(link.startswith(("#", "data:,")) for link in links)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_make_no_markup_and_no_requests(name):
    text = page_file(name)
    assert len(text.splitlines()) <= 400
    assert max(map(len, text.splitlines())) <= 200
    assert not re.search(r"[?|&]{2}=|\.at\(|replaceAll|\bimport ", text)  # newer than ES2020
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|fetch\(|XMLHttpRequest|import\(", text)


def test_scores_settings_and_ledger_stand_in_the_page(run):
    pd.DataFrame({"epoch": [1, 2], "loss": [3.0, 2.0], "valid_cpc": [0.4, 0.5]}).to_csv(run / "training.csv", index=False)
    page, _, _ = report(run)
    for text in (
        "held out by origin",
        "distance only",
        "0.500",
        "here",
        "said while running",
        "Nothing was left out.",
        "train_ODPrediction.py",
    ):
        assert text in page.text
    assert "trained on pairs where anybody commutes" in page.text
    labels = [attributes["aria-label"] for tag, attributes in page.elements if tag == "svg"]
    assert [label.split(":")[0].split(" ")[0] for label in labels] == ["The", "Calibration", "CPC", "CPC", "Training"]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)


def test_a_city_without_known_flows_is_shown_by_predictions_only(tmp_path):
    pairs = PAIRS.assign(count=np.nan).drop(columns="split").assign(scored=False)
    page, content, ledger = report(write_run(tmp_path, squares(["00", "01", "02"]), pairs, "test_ODPrediction"))
    assert content["flows"]["observed"] is None
    assert [column["name"] for column in content["columns"]] == [
        f"{side}, {decoder} (commuters)" for side in ("Outflow", "Inflow") for decoder in ("bilinear", "LightGBM")
    ]
    assert "No flow of this region is known: predictions only" in page.text
    assert "No flow was scored" in page.text
    assert "no flow is known" in ledger.notes[0]


def test_equal_runs_give_equal_pages(run):
    config = ReportConfig(run_dir=str(run))
    write_report(config, Ledger("report", quiet=True))
    first = config.output.read_bytes()
    write_report(config, Ledger("report", quiet=True))
    assert config.output.read_bytes() == first


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ("train_ODPrediction", r"m holds no predictions_<decoder>.csv; run train_ODPrediction.py$"),
        ("test_ODPrediction", r"m holds no predictions_<decoder>.csv; run test_ODPrediction.py$"),
        ("import_published", r"; run test_ODPrediction.py, then name the folder of the city inside it"),
    ],
)
def test_without_predictions_the_stage_that_makes_them_is_named(tmp_path, stage, says):
    run = write_run(tmp_path, squares(["00", "01", "02"]), PAIRS, stage)
    for path in run.glob("predictions_*"):
        path.unlink()
    with pytest.raises(MissingInputError, match=says):
        report(run)


def test_other_absent_files_are_named(run, tmp_path):
    (tmp_path / "units.gpkg").unlink()
    with pytest.raises(MissingInputError, match=r"units .*units.gpkg, which the run names for region here, do not exist; .*--units_path"):
        report(run)
    squares(["00", "01", "02"]).to_file(tmp_path / "other.gpkg")
    (run / "metrics.json").unlink()
    with pytest.raises(MissingInputError, match=r"holds no metrics.json; run train_ODPrediction.py"):
        report(run, units_path=[str(tmp_path / "other.gpkg")])
    (run / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run.json cannot be read as JSON"):
        report(run)
    (run / "run.json").unlink()
    with pytest.raises(MissingInputError, match=r"run.json does not exist; name a folder that train_ODPrediction.py or"):
        report(run)
    with pytest.raises(MissingInputError, match=r"--run_dir .*nowhere is no folder"):
        report(tmp_path / "nowhere", output_path=str(tmp_path / "report.html"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda table: table.drop(columns="prediction"), r"columns prediction are missing among h_geocode, w_geocode, count, split"),
        (lambda table: pd.concat([table, table[:1]]), r"predictions_lightgbm.csv hold 1 pairs twice \(00 to 00\)"),
        (lambda table: table.assign(count=1), r"tell different counts of 3 pairs \(00 to 00, 00 to 01, 01 to 02\)"),
        (lambda table: table.replace("02", "77"), r"1 ids of h_geocode are not among the units \(77\)"),
    ],
)
def test_faults_of_the_predictions_are_named(run, change, says):
    table = pd.read_csv(run / "predictions_lightgbm.csv", dtype={"h_geocode": str, "w_geocode": str})
    change(table).to_csv(run / "predictions_lightgbm.csv", index=False)
    with pytest.raises(TableError, match=says):
        report(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"id": ["00"], "a": [1]}, r"lack the column geocode among id, a"),
        ({"geocode": ["00", "00"], "a": [1, 2]}, r"hold ids more than once \(00\)"),
        ({"geocode": ["99"], "a": [1]}, r"know none of the units \(99 instead of 00, 01, 02\)"),
        ({"geocode": ["00"], "a": ["x"]}, r"holds no named column of numbers"),
    ],
)
def test_faults_of_other_columns_are_named(run, tmp_path, table, says):
    pd.DataFrame(table).to_csv(tmp_path / "more.csv", index=False)
    with pytest.raises(TableError, match=says):
        report(run, columns_path=[str(tmp_path / "more.csv")])


def test_points_are_refused(tmp_path):
    units = squares(["00", "01", "02"])
    with pytest.raises(InputError, match=r"a report needs polygons but the units hold Point; give the tracts themselves"):
        report(write_run(tmp_path, units.set_geometry(units.centroid), PAIRS))


def test_the_command_takes_the_folder_with_and_without_its_flag(run, tmp_path, capsys):
    output = tmp_path / "a.html"
    assert main(["report", str(run), "--output_path", str(output)]) == 0
    assert json.loads((tmp_path / "a.html.run.json").read_text())["ledger"]["out"] == {"reports": 1}
    assert main(["report", "--run_dir", str(run)]) == 0
    assert (run / "report.html").read_bytes() == output.read_bytes()
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("report: error: ")
    with pytest.raises(SystemExit, match="2"):
        main(["report", str(run), "--output_path", "a.txt"])
    assert "--output_path a.txt must be a file that ends in .html" in capsys.readouterr().err
