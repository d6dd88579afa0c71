import json
from pathlib import Path

import pandas as pd
import pytest
from scipy.stats import poisson

from imagery2flow.flows.metrics import cpc
from imagery2flow.flows.results import collect_results, reachable_scores
from imagery2flow.run.errors import MissingInputError
from imagery2flow.run.files import write_json
from imagery2flow.run.flow_config import ResultsConfig

MODEL_HASH = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of the bytes abc
SCORES = {"gt10": {"cpc": 0.5, "rmse": 12.345, "mae": 6.0, "num_pairs": 1234}}


OWN_SCORES = {"gt10": {**SCORES["gt10"], "num_pairs": 2}, "positive": {**SCORES["gt10"], "num_pairs": 3}}
PAIRS = {"h_geocode": ["01", "01", "02", "02"], "w_geocode": ["01", "02", "01", "02"]}


def write_scores(folder, region, scores=SCORES, **run):
    """What stages 4 and 5 leave in a folder; stage 4 alone knows the split, stage 5 alone reads a model."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "metrics.json", {"lightgbm": scores, "constant": scores, "bilinear": scores})
    (folder / "run.json").write_text(
        json.dumps({"config": {"region": [region], "year": 2020} | run, "inputs_sha256": {"elsewhere/od_model.pt": MODEL_HASH}})
    )


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model tested on its own region, which is a generated one, and on another city."""
    monkeypatch.chdir(tmp_path)
    write_scores(Path("outputs/m"), "own", OWN_SCORES, split="origin")
    Path("outputs/m/od_model.pt").write_bytes(b"abc")
    write_scores(Path("outputs/m/far_2020"), "far")
    table = pd.DataFrame(PAIRS).assign(count=[20, 3, 15, 30], prediction=1.0, split=["test", "test", "train", "test"])
    table.to_csv("outputs/m/predictions_bilinear.csv", index=False)
    Path("data/own").mkdir(parents=True)
    pd.DataFrame(PAIRS).assign(mean=[18.0, 4.0, 99.0, 33.0]).sample(frac=1, random_state=0).to_csv("data/own/law.csv", index=False)
    return tmp_path


def test_the_reachable_score_is_that_of_the_laws_expectation_on_the_pairs_that_were_held_out(model):
    found = reachable_scores(Path("data/own/law.csv"), Path("outputs/m"))
    assert {name: scores["num_pairs"] for name, scores in found.items()} == {"gt10": 2, "positive": 3}
    for name, minimum, kept in (("gt10", 10, [(20, 18.0), (30, 33.0)]), ("positive", 0, [(20, 18.0), (3, 4.0), (30, 33.0)])):
        expected = []
        for _, mean in kept:
            numbers = range(minimum + 1, 300)
            expected.append(sum(n * poisson.pmf(n, mean) for n in numbers) / sum(poisson.pmf(n, mean) for n in numbers))
        observed = pd.Series([count for count, _ in kept], dtype=float)
        assert found[name]["cpc"] == pytest.approx(cpc(observed, pd.Series(expected)))


def test_every_score_is_a_row_and_the_table_is_printed_as_markdown(model, ledger, capsys):
    assert collect_results(ResultsConfig(log="m"), ledger) == Path("outputs/m/results_run.json")
    table = pd.read_csv("outputs/m/results.csv")
    columns = ["region", "year", "tested on", "pairs", "predictor", "num_pairs", "cpc", "rmse", "mae"]
    assert table.columns.tolist() == columns
    own = table[table.region == "own"]
    assert own["tested on"].unique().tolist() == ["held out by origin"]
    assert own.predictor.tolist() == ["bilinear", "lightgbm", "constant", "best reachable"] * 2
    assert table[table.region == "far"]["tested on"].tolist() == ["another city"] * 3
    lines = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == ["region", "year", "tested on", "pairs", "number", "predictor", "CPC", "RMSE", "MAE"]  # fmt: skip
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == ["own", "2020", "held out by origin", "gt10", "2", "bilinear", "0.500", "12.35", "6.00"]  # fmt: skip
    assert len(lines) == 2 + len(table)
    assert len({len(line) for line in lines}) == 1


def test_a_model_without_scores_is_refused(tmp_path, ledger):
    with pytest.raises(MissingInputError, match=r"m holds no metrics.json; train and test a model"):
        collect_results(ResultsConfig(log="m", output_dir=str(tmp_path)), ledger)


def test_scores_of_an_earlier_model_under_the_same_name_are_left_out(model, ledger):
    Path("outputs/m/od_model.pt").write_bytes(b"trained again")
    collect_results(ResultsConfig(log="m"), ledger)
    assert pd.read_csv("outputs/m/results.csv").region.unique().tolist() == ["own"]
    ((reason, folders),) = ledger.left_out.items()
    assert reason == "folders of scores that are not of the present outputs/m/od_model.pt; test again to have them"
    assert folders == ["outputs/m/far_2020"]


def test_a_test_on_the_models_own_region_is_no_other_city_and_the_law_is_scored_on_the_same_pairs(model, ledger):
    folder = Path("outputs/m/own_2020")
    write_scores(folder, "own", OWN_SCORES)
    table = pd.DataFrame(PAIRS).assign(count=[20, 3, 15, 30], prediction=1.0, scored=[True, True, False, True])
    table.to_csv(folder / "predictions_bilinear.csv", index=False)
    assert reachable_scores(Path("data/own/law.csv"), folder) == reachable_scores(Path("data/own/law.csv"), Path("outputs/m"))
    collect_results(ResultsConfig(log="m"), ledger)
    rows = pd.read_csv("outputs/m/results.csv").query("region == 'own'")
    assert rows["tested on"].unique().tolist() == ["held out by origin"]
    assert (rows.predictor == "best reachable").sum() == 4


def test_the_law_is_not_scored_on_fewer_pairs_than_its_neighbours(model, ledger):
    path = Path("outputs/m/predictions_bilinear.csv")
    pd.read_csv(path, dtype={"h_geocode": str, "w_geocode": str}).query("count != 3").to_csv(path, index=False)  # as --min_flow does
    collect_results(ResultsConfig(log="m"), ledger)
    rows = pd.read_csv("outputs/m/results.csv").query("predictor == 'best reachable'")
    assert rows.pairs.tolist() == ["gt10"]
    assert ledger.left_out == {"best reachable of outputs/m, whose table of predictions lacks pairs that were scored": ["positive"]}


def test_a_score_that_does_not_exist_is_null_in_json_and_nan_in_the_table(model, ledger):
    write_scores(Path("outputs/m/far_2020"), "far", {"gt10": SCORES["gt10"] | {"mae": float("nan")}})
    assert '"mae": null' in Path("outputs/m/far_2020/metrics.json").read_text()
    collect_results(ResultsConfig(log="m"), ledger)
    assert pd.read_csv("outputs/m/results.csv").query("region == 'far'").mae.isna().all()


def test_the_table_of_either_decoder_says_which_pairs_were_scored(model):
    expected = reachable_scores(Path("data/own/law.csv"), Path("outputs/m"))
    Path("outputs/m/predictions_bilinear.csv").rename("outputs/m/predictions_lightgbm.csv")
    assert reachable_scores(Path("data/own/law.csv"), Path("outputs/m")) == expected
