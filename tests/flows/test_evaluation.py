import json

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely

from imagery2flow.flows import evaluate as module
from imagery2flow.flows import potentials
from imagery2flow.flows.controls import BANDS, DISTANCE, SHUFFLED, UNTRAINED
from imagery2flow.flows.evaluate import evaluate, trials
from imagery2flow.flows.record import FlowRecord
from imagery2flow.run.errors import InputError
from imagery2flow.run.flow_config import EvaluateConfig, TreesConfig
from imagery2flow.run.stage import Ledger

COLUMNS = ("0", "1", "red_mean", "red_std")
SIDE = 6  # units along each side
NUM_UNITS = SIDE**2
PREDICTORS = {"bilinear", "lightgbm", DISTANCE, BANDS, "constant"}
PREDICTORS |= {f"{decoder}, {name}" for decoder in ("bilinear", "lightgbm") for name in (SHUFFLED, UNTRAINED)}
PLACE = ["split", "universe", "predictor"]
KERNEL = (1.0, 2.0, 0.3)  # variance, length, noise of the potentials' process
BREAKDOWNS = {"origin", "distance", "volume", "calibration"}


def write_town(root, name="town", prefix="06", seed=0, complete=True, level=12.0, shuffle=None):
    """Squares of a kilometre, image-like columns and an untrained encoder's, flows of a gravity law; ``shuffle`` permutes the rows of all."""
    folder, random = root / "data" / name, np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    number = np.arange(NUM_UNITS)
    ids = np.array([f"{prefix}{n:03d}" for n in number])
    corners = np.stack([500_000 + 1_000 * (number % SIDE), 4_500_000 + 1_000 * (number // SIDE)], axis=1)
    squares = [shapely.box(x, y, x + 1_000, y + 1_000) for x, y in corners]
    trained, untrained = (pd.DataFrame(random.normal(size=(NUM_UNITS, 4)), columns=COLUMNS).assign(geocode=ids) for _ in range(2))
    mass = np.exp(0.6 * trained["0"].to_numpy())
    distance_m = np.linalg.norm(corners[:, None] - corners, axis=2)
    count = random.poisson(level * mass[:, None] * mass * np.exp(-distance_m / 1_500))
    origin, destination = np.nonzero(count)
    flows = pd.DataFrame({"h_geocode": ids[origin], "w_geocode": ids[destination], "count": count[origin, destination]})
    if complete:
        flows["complete_block"] = 1
    population = pd.DataFrame({"geocode": ids, "population": random.integers(100, 9_000, NUM_UNITS)})
    tables = [
        gpd.GeoDataFrame({"GEOID20": ids}, geometry=squares, crs="EPSG:32618"),
        flows,
        population,
        trained,
        untrained[["0", "1", "geocode"]],
    ]
    if shuffle is not None:
        tables = [table.sample(frac=1, random_state=shuffle + n) for n, table in enumerate(tables)]
    tables[0].to_file(folder / "units.gpkg")
    for table, path in zip(tables[1:], ("flows", "population", "features", "features_untrained"), strict=True):
        table.to_csv(folder / f"{path}.csv", index=False)


def settings(*regions, **changes):
    """Every control and both decoders in seconds; paths are relative to the working directory."""
    trees = TreesConfig(num_trees=10, num_leaves=7, min_leaf_pairs=5, early_stopping=3, transfer_trees=10)
    small = {"max_epochs": 2, "embedding_size": 8, "num_hidden_layers": 0, "trees": trees, "context_m": [1_500.0], "device": "cpu"}
    files = {"region": list(regions), "node_feats_path": [f"data/{name}/features.csv" for name in regions]}
    return EvaluateConfig(**{**files, **small, "universes": ["positive"], "seeds": 1, **changes})


def run(folder, monkeypatch, *regions, **changes):
    """Tables that one evaluation in a folder writes: trials, evaluation."""
    monkeypatch.chdir(folder)
    assert evaluate(settings(*(regions or ("town",)), **changes), Ledger("test", quiet=True)).name == "run.json"
    return tuple(pd.read_csv(folder / "outputs/default" / f"{name}.csv") for name in ("trials", "evaluation"))


@pytest.fixture
def town(tmp_path):
    write_town(tmp_path)
    return tmp_path


@pytest.fixture
def one_kernel(monkeypatch):
    """The choice of the potentials' kernel takes most of the time."""
    monkeypatch.setattr(potentials, "choose_kernel", lambda *_: KERNEL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Every split and universe of two regions, over two seeds, in one folder that is only read: (folder, ids of every region fitted to, split)."""
    folder, fitted = tmp_path_factory.mktemp("whole"), []
    write_town(folder)
    write_town(folder, "city", "07", seed=1)
    original = module.learn

    def record(config, region, split, *others):
        fitted.append((split, region.graph.geocodes))
        return original(config, region, split, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "learn", record)
        patch.setattr(potentials, "choose_kernel", lambda *_: KERNEL)
        patch.chdir(folder)
        splits, universes = ["origin", "unit", "block", "pair", "city"], ["gt10", "positive", "full"]
        config = settings("town", "city", test_region=["city"], splits=splits, universes=universes, seeds=2)
        evaluate(config, Ledger("test", quiet=True))
    return folder / "outputs/default", fitted


def test_every_control_is_in_every_table(whole):
    table = pd.read_csv(whole[0] / "evaluation.csv")
    rows = table.groupby(["split", "universe"]).predictor.agg(list)
    assert set(rows.index) == {
        (split, universe) for split in ("origin", "unit", "block", "pair", "city") for universe in ("gt10", "positive", "full")
    }
    for names in rows:
        assert len(names) == len(set(names))
        assert set(names) == PREDICTORS
    assert (table.seeds == 2).all()


def test_mean_and_deviation_are_those_of_the_trials(whole):
    trial, table = (pd.read_csv(whole[0] / f"{name}.csv").set_index(PLACE) for name in ("trials", "evaluation"))
    scores = [column for column in trial if column not in ("seed", "num_pairs")]
    assert "cpc" in scores
    for place, row in table.iterrows():
        values = trial.loc[place]
        assert len(values) == 2
        for name in scores:
            left, right = values[name]
            defined = [value for value in (left, right) if np.isfinite(value)]
            assert row[name] == pytest.approx(sum(defined) / len(defined) if defined else np.nan, nan_ok=True)
            # Of two values the deviation of the sample is their distance over the root of two.
            assert row[f"{name}_std"] == pytest.approx(abs(left - right) / np.sqrt(2), nan_ok=True, abs=1e-12)


def test_the_file_of_metrics_holds_the_same_numbers(whole):
    nested, table = json.loads((whole[0] / "metrics.json").read_text()), pd.read_csv(whole[0] / "evaluation.csv")
    for row in table.to_dict("records"):
        stored = nested[row["split"]][row["universe"]][row["predictor"]]
        found = {name: float("nan") if value is None else value for name, value in stored.items()}
        assert found == pytest.approx({name: value for name, value in row.items() if name not in PLACE}, nan_ok=True)


def test_predictors_of_a_trial_are_scored_on_the_same_pairs_and_the_constant_has_no_skill(whole):
    trial = pd.read_csv(whole[0] / "trials.csv")
    assert (trial.groupby(["split", "universe", "seed"]).num_pairs.nunique() == 1).all()
    assert (trial[trial.predictor == "constant"].skill == 0).all()
    pairs = trial.groupby(["split", "universe"]).num_pairs.mean().unstack()
    assert (pairs.gt10 < pairs.positive).all()
    assert (pairs.positive < pairs.full).all()
    assert pairs.full["city"] == NUM_UNITS**2  # its whole matrix


def test_breakdowns_name_every_trial_and_predictor(whole):
    trial = pd.read_csv(whole[0] / "trials.csv")
    for kind in BREAKDOWNS:
        table = pd.read_csv(whole[0] / f"breakdown_{kind}.csv", dtype={"origin": str})
        places = table[[*PLACE, "seed"]].drop_duplicates()
        assert len(places) == len(trial) == len(places.merge(trial[[*PLACE, "seed"]]))


def test_a_tested_city_is_trained_on_in_no_split(whole):
    _, fitted = whole
    assert len(fitted) == 5 * 3 * 2 * 5  # splits, universes, seeds, model and controls
    assert all(geocode.startswith("06") for _, ids in fitted for geocode in ids)


def test_seeds_split_anew(whole):
    _, fitted = whole
    labels = {tuple(split.label) for split, _ in fitted if split.kind == "unit"}
    assert len(labels) == 2 * 2  # unit and city, two seeds


def test_flows_of_a_tested_city_change_its_scores_and_no_prediction(tmp_path, monkeypatch, one_kernel):
    write_town(tmp_path)
    write_town(tmp_path, "city", "07", seed=1)
    scored, original = [], module.scored_pairs
    monkeypatch.setattr(module, "scored_pairs", lambda *parts: scored.append(original(*parts)) or scored[-1])
    changes = {"test_region": ["city"], "splits": ["city"], "breakdowns": False}
    run(tmp_path, monkeypatch, "town", "city", **changes)
    path = tmp_path / "data/city/flows.csv"
    flows = pd.read_csv(path, dtype={"h_geocode": str, "w_geocode": str})
    flows.assign(count=flows["count"] + 1_000).to_csv(path, index=False)
    table, _ = run(tmp_path, monkeypatch, "town", "city", **changes)
    for before, after in zip(scored[: len(PREDICTORS)], scored[len(PREDICTORS) :], strict=True):
        np.testing.assert_array_equal(after.predicted, before.predicted)
        np.testing.assert_array_equal(after.observed, before.observed + 1_000)
    assert (table.num_pairs == len(flows)).all()


@pytest.mark.parametrize("split", ["origin", "block"])
def test_a_permutation_of_all_rows_changes_no_number(tmp_path, monkeypatch, one_kernel, split):
    changes = {"splits": [split], "universes": ["full"], "population_path": ["data/town/population.csv"]}
    tables = []
    for shuffle in (None, 3):
        folder = tmp_path / str(shuffle)
        write_town(folder, shuffle=shuffle)
        run(folder, monkeypatch, **changes)
        written = folder / "outputs/default"
        tables.append({path.name: path.read_bytes() for path in written.iterdir() if path.name != "run.json"})
    assert tables[0] == tables[1]
    assert set(tables[0]) == {"trials.csv", "evaluation.csv", "metrics.json", *(f"breakdown_{kind}.csv" for kind in BREAKDOWNS)}


def test_zeros_asked_of_a_sampled_table_are_refused_with_the_reason_before_anything_is_fitted(tmp_path, monkeypatch):
    write_town(tmp_path, complete=False)
    monkeypatch.setattr(module, "learn", lambda *_: pytest.fail("fitted"))
    with pytest.raises(InputError, match=r"the universe full needs zeros.*complete_block.*--flows_complete"):
        run(tmp_path, monkeypatch, universes=["positive", "full"])
    assert not (tmp_path / "outputs/default/trials.csv").exists()


def test_a_table_declared_complete_has_zeros(tmp_path, monkeypatch):
    write_town(tmp_path, complete=False)
    table, _ = run(tmp_path, monkeypatch, universes=["full"], splits=["pair"], flows_complete=True, controls=False)
    assert (table.num_pairs > NUM_UNITS**2 / 10).all()


def test_zeros_asked_of_a_tested_city_with_a_sampled_table_are_refused(tmp_path, monkeypatch):
    write_town(tmp_path)
    write_town(tmp_path, "city", "07", seed=1, complete=False)
    with pytest.raises(InputError, match="the universe full needs zeros"):
        run(tmp_path, monkeypatch, "town", "city", test_region=["city"], splits=["city"], universes=["full"])


def test_a_tested_city_without_a_flow_of_the_universe_is_refused(tmp_path, monkeypatch):
    write_town(tmp_path)
    write_town(tmp_path, "city", "07", seed=1, level=0.3)
    with pytest.raises(InputError, match="the region city, held out whole, has no flow of the universe gt10"):
        run(tmp_path, monkeypatch, "town", "city", test_region=["city"], splits=["city"], universes=["gt10"])


def test_a_source_without_flows_of_the_universe_to_learn_from_is_refused(tmp_path, monkeypatch):
    write_town(tmp_path, level=0.3)
    write_town(tmp_path, "city", "07", seed=1)
    with pytest.raises(InputError, match="the train split has no flow of the universe gt10"):
        run(tmp_path, monkeypatch, "town", "city", test_region=["city"], splits=["city"], universes=["gt10"])


def test_a_tested_city_that_shares_units_with_the_source_is_refused(tmp_path, monkeypatch):
    write_town(tmp_path)
    write_town(tmp_path, "suburb", seed=1)  # the same ids at the same places
    with pytest.raises(InputError, match="town, trained on, and suburb, held out whole, share 36 units"):
        run(tmp_path, monkeypatch, "town", "suburb", test_region=["suburb"], splits=["city"])


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(InputError, match="go together"):
        settings("town", "city", splits=["city"])
    with pytest.raises(InputError, match="go together"):
        settings("town", "city", test_region=["city"])
    with pytest.raises(InputError, match="test_region"):
        settings("town", "city", test_region=["village"], splits=["city"])
    with pytest.raises(InputError, match="holds out every region"):
        settings("town", "city", test_region=["town", "city"], splits=["city"])
    with pytest.raises(InputError, match="balanced_mse"):
        settings("town", loss="balanced_mse", universes=["gt10", "full"])


def test_one_seed_has_no_deviation_and_breakdowns_can_be_left_out(town, monkeypatch, capsys):
    trial, table = run(town, monkeypatch, controls=False, breakdowns=False, splits=["unit"])
    assert set(trial.predictor) == {"bilinear", "lightgbm", "constant"}
    assert table.cpc_std.isna().all()
    assert "±" not in capsys.readouterr().out
    assert not list((town / "outputs/default").glob("breakdown*"))


def test_trials_test_pairs_that_the_split_says(town, monkeypatch):
    monkeypatch.chdir(town)
    found = list(trials(settings("town", splits=["unit", "origin"], universes=["full", "positive"], seeds=3), Ledger("test", quiet=True)))
    assert [(trial.name, trial.universe, trial.seed) for trial in found] == [
        (split, universe, seed) for split in ("unit", "origin") for universe in ("full", "positive") for seed in (42, 43, 44)
    ]
    for trial in found:
        pairs, held_out = trial.test_pairs(), trial.split.label == "test"
        assert held_out[pairs.origin].all()
        if trial.name == "unit":
            assert held_out[pairs.destination].all()
            assert len(pairs) == held_out.sum() ** 2 or trial.universe == "positive"


def test_another_city_is_predicted_by_the_trees_for_other_cities_and_the_source_by_its_own(town, monkeypatch, one_kernel):
    write_town(town, "city", "07", seed=1)
    used = []
    original = FlowRecord.predict

    def record(self, embedded, *others):
        used.append((embedded.seen.region.names, "transfer" if embedded.trees is self.transfer else "home", self.transfer is None))
        return original(self, embedded, *others)

    monkeypatch.setattr(FlowRecord, "predict", record)
    run(town, monkeypatch, "town", "city", test_region=["city"], splits=["city", "unit"], controls=False)
    assert used == [(("city",), "transfer", False), (("town",), "home", True)]  # for the source alone no others are fitted
