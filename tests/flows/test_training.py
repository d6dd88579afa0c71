import json

import numpy as np
import pandas as pd
import pytest
import torch

from imagery2flow.flows import training
from imagery2flow.flows.metrics import score_universes
from imagery2flow.flows.training import train_flows
from imagery2flow.run.errors import InputError, TableError
from imagery2flow.run.flow_config import TreesConfig
from imagery2flow.run.stage import Ledger

from .conftest import MODEL, files_of, read, train, training_config, write_region

FILES = {"od_model.pt", "lightgbm.txt", "split.csv", "training.csv", "metrics.json"}
FILES |= {"predictions_bilinear.csv", "predictions_lightgbm.csv"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of one run that is only read, and its ledger."""
    folder, ledger = tmp_path_factory.mktemp("trained"), Ledger("test", quiet=True)
    write_region(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_file = train_flows(training_config(population_path="data/town/population.csv"), ledger)
    assert run_file == MODEL / "run.json"
    return folder, ledger


def test_the_model_folder_is_complete_and_the_ledger_says_what_was_done(trained):
    folder, ledger = trained
    assert set(files_of(folder / MODEL)) == FILES
    assert set(ledger.came_in) == {"units", "embeddings", "flows"}
    assert ledger.left_out == {}
    split = read(folder / MODEL / "split.csv")
    assert split.split.value_counts().to_dict() == {"train": 18, "valid": 6, "test": 6}
    assert any("origins: 18 train, 6 valid, 6 test" in note for note in ledger.notes)
    flows = read(folder / "data/town/flows.csv")
    assert ledger.went_out["test flows scored"] == flows.h_geocode.isin(split.geocode[split.split == "test"]).sum()


@pytest.mark.parametrize("decoder", ["bilinear", "lightgbm"])
def test_every_observed_flow_is_predicted_once_and_the_scores_are_those_of_the_test_origins(trained, decoder):
    folder, _ = trained
    table, flows = read(folder / MODEL / f"predictions_{decoder}.csv"), read(folder / "data/town/flows.csv")
    assert table.columns.tolist() == ["h_geocode", "w_geocode", "count", "prediction", "split"]
    pd.testing.assert_frame_equal(table[["h_geocode", "w_geocode", "count"]], flows, check_dtype=False)
    split = read(folder / MODEL / "split.csv").set_index("geocode").split
    assert table.split.tolist() == split[table.h_geocode].tolist()
    assert (table.prediction >= 0).all()
    test = table[table.split == "test"]
    expected = score_universes(test["count"].to_numpy(float), test.prediction.to_numpy())
    found = json.loads((folder / MODEL / "metrics.json").read_text())[decoder]
    assert set(found) == {"gt10", "positive"}
    for universe, scores in expected.items():
        assert found[universe] == pytest.approx(scores)


def test_the_constant_is_the_best_of_the_training_flows_scored_on_the_test_flows(trained):
    folder, _ = trained
    table = read(folder / MODEL / "predictions_bilinear.csv")
    found = json.loads((folder / MODEL / "metrics.json").read_text())["constant"]
    for universe, minimum in (("gt10", 10), ("positive", 0)):
        train_counts, test_counts = (
            table["count"][(table.split == name) & (table["count"] > minimum)].to_numpy(float) for name in ("train", "test")
        )
        candidates = np.unique(train_counts)
        scores = [2 * np.minimum(train_counts, c).sum() / (train_counts.sum() + c * len(train_counts)) for c in candidates]
        constant = candidates[int(np.argmax(scores))]
        assert found[universe] == pytest.approx(score_universes(test_counts, np.full(len(test_counts), constant))[universe])


def test_the_split_is_stratified_by_population(trained):
    folder, _ = trained
    split = read(folder / MODEL / "split.csv").set_index("geocode").split
    population = read(folder / "data/town/population.csv").set_index("geocode").population
    ranked = split[population.sort_values().index]
    for start in range(0, 30, 5):
        assert sorted(ranked[start : start + 5]) == ["test", "train", "train", "train", "valid"]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path, monkeypatch):
    written = []
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        write_region(tmp_path / name)
        written.append(train(tmp_path / name, monkeypatch, seed=seed))
    assert set(written[0]) == FILES
    assert written[0] == written[1]
    assert all(written[0][name] != written[2][name] for name in FILES)


def test_the_order_of_rows_of_units_flows_features_and_population_changes_no_byte(tmp_path, monkeypatch):
    written = []
    for name, shuffle in (("sorted", None), ("shuffled", 5)):
        write_region(tmp_path / name, shuffle=shuffle)
        written.append(train(tmp_path / name, monkeypatch, population_path="data/town/population.csv"))
    assert written[0] == written[1]


def test_flows_of_the_test_origins_do_not_touch_the_model(town, monkeypatch):
    before = train(town, monkeypatch)
    split = read(town / MODEL / "split.csv").set_index("geocode").split
    flows = read(town / "data/town/flows.csv")
    held_out = (split[flows.h_geocode] == "test").to_numpy()
    flows.loc[held_out, "count"] = flows["count"][held_out] * 7 + 11
    flows.to_csv(town / "data/town/flows.csv", index=False)
    after = train(town, monkeypatch)
    for name in ("od_model.pt", "lightgbm.txt", "split.csv", "training.csv"):
        assert after[name] == before[name]
    assert after["metrics.json"] != before["metrics.json"]


def test_flows_of_the_validation_origins_choose_but_do_not_train(town, monkeypatch):
    fixed = {"select_by": "cpc", "max_epochs": 1, "trees": TreesConfig(num_trees=3, min_leaf_pairs=5, early_stopping=0)}
    before = train(town, monkeypatch, **fixed)
    split = read(town / MODEL / "split.csv").set_index("geocode").split
    flows = read(town / "data/town/flows.csv")
    flows.loc[(split[flows.h_geocode] == "valid").to_numpy(), "count"] += 30
    flows.to_csv(town / "data/town/flows.csv", index=False)
    after = train(town, monkeypatch, **fixed)
    assert after["od_model.pt"] == before["od_model.pt"]
    assert after["lightgbm.txt"] == before["lightgbm.txt"]
    assert after["training.csv"] != before["training.csv"]


def test_a_split_that_was_written_is_used_again(town, monkeypatch):
    first = train(town, monkeypatch, seed=3)
    (town / "split.csv").write_bytes(first["split.csv"])
    again = train(town, monkeypatch, seed=4, split_path="split.csv")
    assert again["split.csv"] == first["split.csv"]
    assert again["od_model.pt"] != first["od_model.pt"]


def test_the_universe_decides_what_is_trained_on(town, monkeypatch):
    limits = {}
    for universe in ("gt10", "positive"):
        chosen = []
        original = training.train_trees
        monkeypatch.setattr(
            training, "train_trees", lambda data, *rest, keep=chosen, call=original: (keep.append(data[1]), call(data, *rest))[1]
        )
        train(town, monkeypatch, universe=universe)
        monkeypatch.setattr(training, "train_trees", original)
        limits[universe] = chosen[0].min()
    assert limits == {"gt10": 11, "positive": 1}


@pytest.mark.parametrize(("area_feature", "num_features"), [(True, 4), (False, 3)])
def test_the_area_is_a_feature_if_asked_for(town, monkeypatch, area_feature, num_features):
    train(town, monkeypatch, area_feature=area_feature, max_epochs=1)
    content = torch.load(town / MODEL / "od_model.pt", weights_only=True)
    assert len(content["scaling"]["mean"]) == num_features
    assert content["model"]["layers.0.res.weight"].shape == (8, num_features)


def test_features_are_reduced_to_components_that_travel_with_the_model(town, monkeypatch):
    train(town, monkeypatch, num_components=2, max_epochs=1)
    content = torch.load(town / MODEL / "od_model.pt", weights_only=True)
    assert content["scaling"]["projection"].shape == (4, 3)  # two components, and the area
    assert content["model"]["layers.0.res.weight"].shape == (8, 3)


def test_input_faults_leave_no_model(town, monkeypatch):
    monkeypatch.chdir(town)
    flows = read(town / "data/town/flows.csv")
    flows.assign(count=flows["count"].clip(upper=10)).to_csv("small.csv", index=False)
    with pytest.raises(InputError, match="the train split has no flow of the universe gt10"):
        train_flows(training_config(flows_path="small.csv"), Ledger("test", quiet=True))
    flows.assign(count=-1).to_csv("negative.csv", index=False)
    with pytest.raises(TableError, match="are negative"):
        train_flows(training_config(flows_path="negative.csv"), Ledger("test", quiet=True))
    assert not MODEL.exists()


def test_predictions_range_from_the_smallest_flow_of_the_universe_to_twice_the_largest_training_flow(trained):
    folder, _ = trained
    content = torch.load(folder / MODEL / "od_model.pt", weights_only=True)
    table = read(folder / MODEL / "predictions_bilinear.csv")
    largest = table["count"][table.split == "train"].max()
    assert content["flow_range"] == (11.0, 2 * largest)
    assert table.prediction.between(11, 2 * largest).all()
