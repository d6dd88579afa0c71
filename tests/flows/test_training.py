import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from imagery2flow.flows import training
from imagery2flow.flows.fitting import NetworkFitting, learning_rate
from imagery2flow.flows.metrics import score_universes
from imagery2flow.flows.training import train_flows
from imagery2flow.run.config import TreesConfig
from imagery2flow.run.errors import InputError, TableError
from imagery2flow.run.files import read_table
from imagery2flow.run.stage import Ledger

from .conftest import files_of, training_config, write_region

MODEL = Path("outputs/default")
FILES = {"od_model.pt", "lightgbm.txt", "split.csv", "training.csv", "metrics.json"}
FILES |= {"predictions_bilinear.csv", "predictions_lightgbm.csv"}


def train(folder, monkeypatch, **changes):
    """Stage 4 in a folder; returns the files that it wrote."""
    monkeypatch.chdir(folder)
    train_flows(training_config(**changes), Ledger("test", quiet=True))
    return files_of(folder / MODEL)


@pytest.fixture
def town(tmp_path):
    write_region(tmp_path)
    return tmp_path


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


def read(path):
    return read_table(path, "table", ("h_geocode", "w_geocode", "geocode"))


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


def test_the_kept_epoch_is_the_best_of_the_validation_scores(town, monkeypatch):
    seen = []
    original = NetworkFitting.evaluate

    def record(fitting):
        scores = original(fitting)
        seen.append((scores["mae"], {name: tensor.clone() for name, tensor in fitting.model.state_dict().items()}))
        return scores

    monkeypatch.setattr(NetworkFitting, "evaluate", record)
    train(town, monkeypatch, select_by="mae", lr=0.05, max_epochs=8, patience=8)
    history = read(town / MODEL / "training.csv")
    assert history.epoch.tolist() == list(range(1, 9))
    assert history.valid_mae.tolist() == [mae for mae, _ in seen]
    best = min(seen, key=lambda pair: pair[0])[1]
    kept = torch.load(town / MODEL / "od_model.pt", weights_only=True)["model"]
    assert all(torch.equal(kept[name], best[name]) for name in best)


def test_training_stops_when_patience_is_spent(town, monkeypatch):
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.2, 0.1])
    monkeypatch.setattr(NetworkFitting, "evaluate", lambda _: {"cpc": next(scores), "rmse": 1.0, "mae": 1.0})
    train(town, monkeypatch, max_epochs=100, patience=3)
    assert read(town / MODEL / "training.csv").epoch.tolist() == [1, 2, 3, 4, 5]  # the best is the second


def test_the_last_epoch_is_looked_at_even_between_two_evaluations(town, monkeypatch):
    train(town, monkeypatch, max_epochs=3, evaluate_every=2)
    assert read(town / MODEL / "training.csv").epoch.tolist() == [2, 3]
    train(town, monkeypatch, max_epochs=1, evaluate_every=5)
    assert read(town / MODEL / "training.csv").epoch.tolist() == [1]


def test_a_training_that_diverges_is_refused_and_leaves_no_model(town, monkeypatch):
    with pytest.raises(InputError, match="--lr"):
        train(town, monkeypatch, lr=1e25, warmup_epochs=0)
    assert not (town / MODEL / "od_model.pt").exists()


@pytest.mark.parametrize("loss", ["poisson", "balanced_mse"])
def test_training_lowers_the_loss_and_beats_the_constant(town, monkeypatch, loss):
    train(town, monkeypatch, loss=loss, universe="positive", max_epochs=60, lr=0.02, embedding_size=16, patience=60)
    history = read(town / MODEL / "training.csv")
    assert history.valid_cpc.max() > history.valid_cpc[0]
    scores = json.loads((town / MODEL / "metrics.json").read_text())
    for decoder in ("bilinear", "lightgbm"):
        assert scores[decoder]["positive"]["cpc"] > scores["constant"]["positive"]["cpc"] + 0.05


def test_sigma_learns_at_its_own_rate(town, monkeypatch):
    train(town, monkeypatch, loss="balanced_mse", lr=1e-6, sigma_lr=0.05, max_epochs=2)
    fast = read(town / MODEL / "training.csv").sigma
    train(town, monkeypatch, loss="balanced_mse", lr=1e-6, sigma_lr=1e-6, max_epochs=2)
    slow = read(town / MODEL / "training.csv").sigma
    flows, split = (
        read(town / name).set_index(key) for name, key in (("data/town/flows.csv", "h_geocode"), (MODEL / "split.csv", "geocode"))
    )
    counts = flows["count"][(split.split[flows.index] == "train").to_numpy() & (flows["count"] > 10).to_numpy()]
    assert slow.iloc[-1] == pytest.approx(np.log2(counts).std(ddof=0), rel=1e-4)  # it begins at the deviation of the log2 flows
    assert abs(fast.iloc[-1] - slow.iloc[-1]) > 0.05


def test_learning_rate_by_hand():
    config = training_config(lr=1.0, warmup_epochs=5, decay_epochs=40)
    expected = {0: 0.1, 1: 0.28, 4: 0.82, 5: 1.0, 39: 1.0, 40: 0.1, 79: 0.1, 80: 0.01}
    assert {epoch: learning_rate(config, epoch) for epoch in expected} == pytest.approx(expected)
    assert learning_rate(training_config(lr=1.0, warmup_epochs=0), 1000) == 1.0


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path, monkeypatch):
    written = []
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        write_region(tmp_path / name)
        written.append(train(tmp_path / name, monkeypatch, seed=seed))
    assert set(written[0]) == FILES
    assert written[0] == written[1]
    assert all(written[0][name] != written[2][name] for name in FILES)


def test_sums_over_neighbours_are_deterministic_while_it_trains_and_only_then(town, monkeypatch):
    seen = []
    original = NetworkFitting.run_epoch
    monkeypatch.setattr(
        NetworkFitting, "run_epoch", lambda *all_: (seen.append(torch.are_deterministic_algorithms_enabled()), original(*all_))[1]
    )
    train(town, monkeypatch, max_epochs=1)
    assert seen == [True]
    assert not torch.are_deterministic_algorithms_enabled()


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


def test_the_published_network_has_no_dropout_and_no_term_beside_the_bilinear(town, monkeypatch):
    train(town, monkeypatch, loss="balanced_mse", dropout=0.0, unit_terms=False, pair_distance=False, area_feature=False, num_components=0)
    weights = torch.load(town / MODEL / "od_model.pt", weights_only=True)["model"]
    assert {name.split(".")[0] for name in weights} == {"layers", "interaction", "offset"}


def test_features_are_reduced_to_components_that_travel_with_the_model(town, monkeypatch):
    train(town, monkeypatch, num_components=2, max_epochs=1)
    content = torch.load(town / MODEL / "od_model.pt", weights_only=True)
    assert content["scaling"]["projection"].shape == (4, 3)  # two components, and the area
    assert content["model"]["layers.0.res.weight"].shape == (8, 3)


def test_gradients_are_clipped(town, monkeypatch):
    def weights(**changes):
        train(town, monkeypatch, max_epochs=1, weight_decay=0.0, **changes)
        return torch.load(town / MODEL / "od_model.pt", weights_only=True)["model"]["interaction"]

    at_rest, clipped, free = weights(lr=1e-12), weights(grad_norm=1e-12), weights()
    torch.testing.assert_close(clipped, at_rest, atol=1e-5, rtol=0)  # below Adam's epsilon of 1e-8 nothing moves
    assert (free - at_rest).abs().max() > 1e-3


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
