import io
import json

import numpy as np
import pandas as pd
import pytest
import torch

from imagery2flow.flows import metrics, tree_decoder
from imagery2flow.flows.prediction import test_flows as predict_flows
from imagery2flow.flows.training import region_population, train_flows
from imagery2flow.run.errors import InputError, TableError
from imagery2flow.run.flow_config import TreesConfig
from imagery2flow.run.stage import Ledger

from .conftest import (
    GEOCODES,
    MODEL,
    draw_features,
    files_of,
    make_region,
    prediction_config,
    read,
    train,
    training_config,
    write_region,
)

TREES_FILES = {"lightgbm.txt", "lightgbm_law.txt", "lightgbm_transfer.txt", "lightgbm_transfer_law.txt"}
FILES = {"od_model.pt", *TREES_FILES, "split.csv", "training.csv", "metrics.json"}
FILES |= {"predictions_bilinear.csv", "predictions_lightgbm.csv"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of one run that is only read, and its ledger."""
    folder, ledger = tmp_path_factory.mktemp("trained"), Ledger("test", quiet=True)
    write_region(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_file = train_flows(training_config(population_path=["data/town/population.csv"]), ledger)
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
    scores = json.loads((folder / MODEL / "metrics.json").read_text())
    assert set(scores[decoder]) == {"gt10", "positive"}  # nothing says that absent pairs are zeros
    for universe, minimum in (("gt10", 10), ("positive", 0)):
        pairs, found = test[test["count"] > minimum], scores[decoder][universe]
        expected = metrics.score(pairs["count"].to_numpy(float), pairs.prediction.to_numpy())
        assert {name: found[name] for name in expected} == pytest.approx(expected)
        apart = pairs[pairs.h_geocode != pairs.w_geocode]
        assert found["cpc_off_diagonal"] == pytest.approx(metrics.cpc(apart["count"].to_numpy(float), apart.prediction.to_numpy()))
        assert found["skill"] == pytest.approx(1 - (1 - found["cpc"]) / (1 - scores["constant"][universe]["cpc"]))
        assert scores["constant"][universe]["skill"] == pytest.approx(0)


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
        expected = metrics.score(test_counts, np.full(len(test_counts), constant))
        assert {name: found[universe][name] for name in expected} == pytest.approx(expected)


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
        written.append(train(tmp_path / name, monkeypatch, population_path=["data/town/population.csv"]))
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
    fixed = {
        "select_by": "cpc",
        "max_epochs": 1,
        "trees": TreesConfig(num_trees=3, min_leaf_pairs=5, early_stopping=0, transfer_trees=0, law=False),
    }
    before = train(town, monkeypatch, **fixed)
    split = read(town / MODEL / "split.csv").set_index("geocode").split
    flows = read(town / "data/town/flows.csv")
    flows.loc[(split[flows.h_geocode] == "valid").to_numpy(), "count"] += 30
    flows.to_csv(town / "data/town/flows.csv", index=False)
    after = train(town, monkeypatch, **fixed)
    assert after["od_model.pt"] == before["od_model.pt"]
    assert after["lightgbm.txt"] == before["lightgbm.txt"]
    assert after["training.csv"] != before["training.csv"]


def test_with_early_stopping_the_trees_are_fitted_again_to_the_validation_origins_too_and_the_network_is_not(town, monkeypatch):
    fixed = {"select_by": "cpc", "max_epochs": 1}
    train(town, monkeypatch, **fixed)
    before = torch.load(town / MODEL / "od_model.pt", weights_only=True)
    sums = [read(town / MODEL / "predictions_lightgbm.csv").query("split == 'valid'").prediction.sum()]
    split = read(town / MODEL / "split.csv").set_index("geocode").split
    flows = read(town / "data/town/flows.csv")
    flows.loc[(split[flows.h_geocode] == "valid").to_numpy(), "count"] *= 5
    flows.to_csv(town / "data/town/flows.csv", index=False)
    train(town, monkeypatch, **fixed)
    after = torch.load(town / MODEL / "od_model.pt", weights_only=True)
    sums.append(read(town / MODEL / "predictions_lightgbm.csv").query("split == 'valid'").prediction.sum())
    assert all(torch.equal(before["model"][name], after["model"][name]) for name in before["model"])
    crossed = [content["decoders"][0]["potentials"]["crossed"] for content in (before, after)]
    assert not torch.equal(*crossed)
    assert sums[1] > 1.5 * sums[0]


def test_a_split_that_was_written_is_used_again(town, monkeypatch):
    first = train(town, monkeypatch, seed=3)
    (town / "split.csv").write_bytes(first["split.csv"])
    again = train(town, monkeypatch, seed=4, split_path="split.csv")
    assert again["split.csv"] == first["split.csv"]
    assert again["od_model.pt"] != first["od_model.pt"]


def trained_on(town, monkeypatch, **changes):
    """What the first fit of the trees was given."""
    chosen = []
    original = tree_decoder.fit_trees
    with monkeypatch.context() as patch:
        patch.setattr(tree_decoder, "fit_trees", lambda *data: (chosen.append(data[0]), original(*data))[1])
        train(town, monkeypatch, **changes)
    return chosen[0]


@pytest.mark.parametrize(("universe", "smallest"), [("gt10", 11), ("positive", 1), ("full", 0)])
def test_the_universe_decides_what_is_trained_on_and_the_constant_what_is_scored(town, monkeypatch, universe, smallest):
    data = trained_on(town, monkeypatch, universe=universe, flows_complete=True, max_epochs=2)
    assert data.count.min() == smallest
    scores = json.loads((town / MODEL / "metrics.json").read_text())
    assert all(set(by_universe) == {"gt10", "positive", "full"} for by_universe in scores.values())
    assert scores["lightgbm"]["full"]["num_pairs"] == 6 * 30  # every pair of six test origins


def test_in_the_universe_full_all_flows_and_some_weighted_zeros_are_trained_on(town, monkeypatch):
    data = trained_on(town, monkeypatch, universe="full", flows_complete=True, max_epochs=1, zeros_per_flow=0.1)
    split = read(town / MODEL / "split.csv").set_index("geocode").split
    flows = read(town / "data/town/flows.csv")
    num_flows = int((split[flows.h_geocode] == "train").sum())
    zero = data.count == 0
    assert (~zero).sum() == num_flows
    assert zero.sum() == int(0.1 * num_flows)
    assert data.weight[~zero].tolist() == [1.0] * num_flows
    assert data.weight.sum() == pytest.approx(18 * 30)  # every pair of eighteen training origins


def test_the_universe_full_is_refused_where_nothing_says_that_absent_pairs_are_zeros(town, monkeypatch):
    with pytest.raises(InputError, match="the universe full needs zeros"):
        train(town, monkeypatch, universe="full")
    assert not MODEL.exists()


@pytest.mark.parametrize(("area_feature", "num_features"), [(True, 4), (False, 3)])
def test_the_area_is_a_feature_if_asked_for(town, monkeypatch, area_feature, num_features):
    train(town, monkeypatch, area_feature=area_feature, max_epochs=1, context_m=[])
    content = torch.load(town / MODEL / "od_model.pt", weights_only=True)
    assert len(content["scaling"]["mean"]) == num_features
    assert content["model"]["layers.0.res.weight"].shape == (8, num_features)


def test_features_are_reduced_to_components_that_travel_with_the_model(town, monkeypatch):
    train(town, monkeypatch, num_components=2, max_epochs=1, context_m=[])
    content = torch.load(town / MODEL / "od_model.pt", weights_only=True)
    assert content["scaling"]["projection"].shape == (4, 3)  # two components, and the area
    assert content["model"]["layers.0.res.weight"].shape == (8, 3)


def test_surroundings_are_features_of_the_trees_if_asked_for(town, monkeypatch):
    train(town, monkeypatch, max_epochs=1, context_m=[2000.0], transfer_context_m=[])
    content = torch.load(town / MODEL / "od_model.pt", weights_only=True)
    home, transfer = content["decoders"]
    assert (home["context_m"], transfer["context_m"]) == ([2000.0], [])
    assert content["model"]["layers.0.res.weight"].shape == (8, 4)
    assert set(home["files"][0]["columns"].tolist()) <= set(range(2 * (4 + 4 + 1) + 4))
    assert home["files"][1]["columns"].tolist() == [18, 19, 20, 21]
    assert transfer["files"][0]["columns"].tolist() == list(range(2 * 4 + 4))


@pytest.mark.parametrize("split", ["unit", "block", "pair"])
def test_every_split_tests_its_own_pairs_only(town, monkeypatch, split):
    written = train(town, monkeypatch, split=split, universe="positive", max_epochs=1)
    table = read(town / MODEL / "predictions_lightgbm.csv").fillna({"split": ""})
    scores = json.loads(written["metrics.json"])
    assert scores["lightgbm"]["positive"]["num_pairs"] == (table.split == "test").sum() > 0
    assert ("split.csv" in written) == (split != "pair")
    if split != "pair":
        label = read(town / MODEL / "split.csv").set_index("geocode").split
        tested = (label[table.h_geocode].to_numpy() == "test") & (label[table.w_geocode].to_numpy() == "test")
        assert (table.split == "test").tolist() == tested.tolist()


def test_flows_that_touch_a_tested_unit_do_not_touch_the_model(town, monkeypatch):
    before = train(town, monkeypatch, split="unit", universe="positive")
    split = read(town / MODEL / "split.csv").set_index("geocode").split
    flows = read(town / "data/town/flows.csv")
    touched = (split[flows.h_geocode].to_numpy() == "test") | (split[flows.w_geocode].to_numpy() == "test")
    flows.loc[touched, "count"] = flows["count"][touched] * 7 + 11
    flows.to_csv(town / "data/town/flows.csv", index=False)
    after = train(town, monkeypatch, split="unit", universe="positive")
    for name in ("od_model.pt", "lightgbm.txt", "split.csv", "training.csv"):
        assert after[name] == before[name]
    assert after["metrics.json"] != before["metrics.json"]


def test_controls_stand_beside_the_model_and_do_not_change_it(town, monkeypatch):
    features = draw_features()
    statistics = draw_features(seed=5).set_axis(["red_mean", "red_std", "nir_mean"], axis=1)
    features.join(statistics).to_csv(town / "town.csv")
    draw_features(seed=6).to_csv(town / "town_untrained.csv")
    alone, beside = (train(town, monkeypatch, controls=controls, max_epochs=2) for controls in (False, True))
    names = ("distance_only", "band_statistics", "shuffled_images", "untrained_encoder")
    controls = {f"controls/{name}/{file}" for name in names for file in ("od_model.pt", "lightgbm.txt")}
    controls |= {f"controls/{name}/{file}" for name in names[2:] for file in TREES_FILES}  # those are the whole model
    assert set(beside) == set(alone) | controls
    assert {name for name in FILES if beside[name] != alone[name]} == {"metrics.json", "od_model.pt"}
    models = [torch.load(io.BytesIO(written["od_model.pt"]), weights_only=True)["model"] for written in (beside, alone)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[1])  # the file names its settings, which differ
    scores, without = (json.loads(written["metrics.json"]) for written in (beside, alone))
    rows = {f"{decoder}, {name}" for decoder in ("bilinear", "lightgbm") for name in ("shuffled images", "untrained encoder")}
    assert set(scores) == set(without) | rows | {"distance only", "band statistics"}
    for name, by_universe in without.items():
        assert all(scores[name][universe] == pytest.approx(values, nan_ok=True) for universe, values in by_universe.items())
    assert len({by_universe["gt10"]["cpc"] for by_universe in scores.values()}) == len(scores)
    assert len({by_universe["gt10"]["num_pairs"] for by_universe in scores.values()}) == 1
    # Stage 5 scores the same controls: on the region itself, on its test pairs, the scores are those of stage 4.
    predict_flows(prediction_config("town"), Ledger("test", quiet=True))
    found = json.loads((town / MODEL / "town_2020/metrics.json").read_text())
    assert set(found) == set(scores)
    for name, by_universe in scores.items():
        for universe, values in by_universe.items():
            assert found[name][universe] == pytest.approx(values, nan_ok=True)


def test_controls_that_cannot_be_had_are_named_and_none_of_an_earlier_run_stays(town, monkeypatch):
    monkeypatch.chdir(town)
    ledger = Ledger("test", quiet=True)
    train_flows(training_config(controls=True, max_epochs=1), ledger)
    assert {path.name for path in (MODEL / "controls").iterdir()} == {"distance_only", "shuffled_images"}
    assert any("no control with band statistics: the features have no columns <band>_mean and <band>_std" in note for note in ledger.notes)
    assert any("no control with untrained encoder: there is no table <features>_untrained" in note for note in ledger.notes)
    train_flows(training_config(max_epochs=1), ledger)
    assert not (MODEL / "controls").exists()


def test_units_of_unknown_population_are_counted_and_the_first_table_that_knows_a_unit_holds(tmp_path, ledger):
    for name, values in (("one", {0: 5, 1: -666666666}), ("two", {0: 7, 2: 9})):
        rows = "".join(f"{GEOCODES[unit]},{value}\n" for unit, value in values.items())
        (tmp_path / f"{name}.csv").write_text(f"geocode,population\n{rows}")
    config = training_config(population_path=[str(tmp_path / "one.csv"), str(tmp_path / "two.csv")])
    found = region_population(config, make_region(), ledger)
    np.testing.assert_array_equal(found, [5, np.nan, 9] + [np.nan] * 27)
    assert ledger.left_out == {"units without a known population, ranked at random in the split": [GEOCODES[1], *GEOCODES[3:]]}
    assert region_population(training_config(), make_region(), ledger) is None


def test_input_faults_leave_no_model(town, monkeypatch):
    monkeypatch.chdir(town)
    flows = read(town / "data/town/flows.csv")
    flows.assign(count=flows["count"].clip(upper=10)).to_csv("small.csv", index=False)
    with pytest.raises(InputError, match="the train split has no flow of the universe gt10"):
        train_flows(training_config(flows_path=["small.csv"]), Ledger("test", quiet=True))
    flows.assign(count=-1).to_csv("negative.csv", index=False)
    with pytest.raises(TableError, match="are negative"):
        train_flows(training_config(flows_path=["negative.csv"]), Ledger("test", quiet=True))
    assert not MODEL.exists()


def test_predictions_range_from_the_smallest_flow_of_the_universe_to_twice_the_largest_training_flow(trained):
    folder, _ = trained
    content = torch.load(folder / MODEL / "od_model.pt", weights_only=True)
    table = read(folder / MODEL / "predictions_bilinear.csv")
    largest = table["count"][table.split == "train"].max()
    assert content["flow_range"] == (11.0, 2 * largest)
    assert table.prediction.between(11, 2 * largest).all()
