import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagery2flow.flows.folds import join_folds
from imagery2flow.flows.splits import draw_split
from imagery2flow.run.errors import InputError, MissingInputError
from imagery2flow.run.files import write_json
from imagery2flow.run.flow_config import EvaluateConfig, FlowTrainingConfig, FoldsConfig
from tests.flows.test_splits import flows_from, make_flows_region

SETTINGS = {"region": ["M1"], "year": 2020, "split": "origin", "seed": 42}


@given(num_units=st.integers(10, 60), seed=st.integers(0, 99), known=st.booleans())
def test_five_folds_test_every_origin_once_and_validate_it_once(num_units, seed, known):
    region = make_flows_region(flows_from(range(num_units), num_units))
    population = np.arange(num_units) * 10.0 if known else None
    labels = np.stack([draw_split("origin", region, population, seed, fold).label for fold in range(5)])  # [5, num_units]
    for name, times in (("test", 1), ("valid", 1), ("train", 3)):
        assert ((labels == name).sum(axis=0) == times).all()


def test_the_first_fold_is_the_split_without_folds():
    region = make_flows_region(flows_from(range(23), 23))
    assert draw_split("origin", region, None, 7).label.tolist() == draw_split("origin", region, None, 7, 0).label.tolist()
    assert draw_split("origin", region, None, 7).label.tolist() != draw_split("origin", region, None, 7, 1).label.tolist()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"fold": 5}, "--fold 5 must be 0 to 4"),
        ({"fold": -1}, "--fold -1 must be 0 to 4"),
        ({"fold": 1, "split": "unit"}, "--fold 1 must be left out unless a split by origin is drawn"),
        ({"fold": 1, "split_path": "split.csv"}, "--fold 1 must be left out unless a split by origin is drawn"),
    ],
)
def test_a_fold_that_means_nothing_is_refused(settings, problem):
    with pytest.raises(InputError, match=problem):
        FlowTrainingConfig(region=["M1"], node_feats_path=["t.csv"], **settings)
    with pytest.raises(InputError, match="--fold 1 must be left out: evaluate"):
        EvaluateConfig(region=["M1"], node_feats_path=["t.csv"], fold=1)


def write_fold(folder: Path, fold: int, cpc: float, **changes) -> None:
    """What stage 4 leaves of a fold whose origin is 0<fold>: each run predicts everything, the test flows as <fold>.5."""
    pairs = [(f"0{origin}", f"0{destination}") for origin in range(5) for destination in range(2)]
    table = pd.DataFrame(pairs, columns=["h_geocode", "w_geocode"]).assign(count=20.0, prediction=99.0, split="train")
    table.loc[table.h_geocode == f"0{fold}", ["prediction", "split"]] = [fold + 0.5, "test"]
    folder.mkdir(parents=True)
    for decoder in ("bilinear", "lightgbm"):
        table.to_csv(folder / f"predictions_{decoder}.csv", index=False)
    scores = {"gt10": {"cpc": cpc, "rmse": 2.0, "mae": 1.0, "num_pairs": 2}}
    write_json(folder / "metrics.json", {"lightgbm": scores, "constant": scores})
    (folder / "run.json").write_text(json.dumps({"config": SETTINGS | {"log": folder.name, "fold": fold} | changes}))


@pytest.fixture
def folds(tmp_path):
    """Five folds, named in no order."""
    for fold in range(5):
        write_fold(tmp_path / f"m{fold}", fold, 0.5 + fold / 10)
    return FoldsConfig(logs=["m3", "m0", "m4", "m2", "m1"], log="all", output_dir=str(tmp_path))


def test_every_flow_is_predicted_by_the_fold_that_tests_its_origin(folds, tmp_path, ledger):
    assert join_folds(folds, ledger) == tmp_path / "all/run.json"
    table = pd.read_csv(tmp_path / "all/predictions_lightgbm.csv", dtype={"h_geocode": str, "w_geocode": str})
    assert table.h_geocode.tolist() == [f"0{n // 2}" for n in range(10)]
    assert table.prediction.tolist() == [n // 2 + 0.5 for n in range(10)]
    assert table.fold.tolist() == [n // 2 for n in range(10)]
    assert not ledger.notes[:-1], "five folds miss nothing"
    assert ledger.went_out == {"flows predicted, bilinear": 10, "flows predicted, lightgbm": 10}


def test_scores_are_printed_as_mean_and_deviation_over_the_folds(folds, tmp_path, ledger, capsys):
    join_folds(folds, ledger)
    row = next(line for line in capsys.readouterr().out.splitlines() if "lightgbm" in line)
    # .5 .6 .7 .8 .9: mean .7, sample deviation sqrt(.1 / 4) = .158
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["gt10", "lightgbm", "5", "0.700 ± 0.158", "2.00 ± 0.00", "1.00 ± 0.00"]
    scores = pd.read_csv(tmp_path / "all/folds.csv")
    assert scores[scores.predictor == "constant"].set_index("fold").cpc.to_dict() == {0: 0.5, 1: 0.6, 2: 0.7, 3: 0.8, 4: 0.9}


def test_missing_folds_are_said(folds, tmp_path, ledger):
    join_folds(FoldsConfig(logs=["m0", "m2"], log="two", output_dir=str(tmp_path)), ledger)
    assert any("folds 1, 3, 4 are missing" in note for note in ledger.notes)
    assert len(pd.read_csv(tmp_path / "two/predictions_bilinear.csv")) == 4


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"seed": 1}, r"m0 and .*other differ in seed; folds of one split differ in --fold alone"),
        ({"region": ["M2"]}, r"m0 and .*other differ in region"),
        ({"fold": 0}, "fold 0 occurs more than once among m0, other; name each fold once"),
    ],
)
def test_runs_that_are_no_folds_of_one_split_are_refused(folds, tmp_path, ledger, changes, problem):
    write_fold(tmp_path / "other", **({"fold": 1, "cpc": 0.5} | changes))
    with pytest.raises(InputError, match=problem):
        join_folds(FoldsConfig(logs=["m0", "other"], log="all", output_dir=str(tmp_path)), ledger)
    assert not (tmp_path / "all").exists()


def test_an_unfinished_fold_is_named(folds, tmp_path, ledger):
    (tmp_path / "m2/run.json").unlink()
    with pytest.raises(MissingInputError, match=r"m2 holds no finished run of train_ODPrediction.py; train it with --log m2"):
        join_folds(folds, ledger)
