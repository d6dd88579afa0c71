import pickle
import subprocess
import sys
from pathlib import Path

import lightgbm
import numpy as np
import pytest

from imagery2flow.flows import decoder
from imagery2flow.flows.decoder import (
    LAW_LEAVES,
    LAW_TREES,
    FlowTrees,
    PairInputs,
    TreeData,
    fit_again,
    fit_law,
    fit_trees,
    load_trees,
    save_trees,
)
from imagery2flow.flows.table import FlowTable
from imagery2flow.run.errors import InputError, MissingInputError
from imagery2flow.run.flow_config import TreesConfig

CONFIG = TreesConfig(num_trees=40, learning_rate=0.3, min_leaf_pairs=5, early_stopping=5)


class Bomb:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def draw_pairs(seed=0, num_units=12):
    """Columns of units, every pair of units, relative distances .05, .15, ..., and counts that step at 1/2."""
    random = np.random.default_rng(seed)
    origin, destination = (axis.reshape(-1) for axis in np.meshgrid(range(num_units), range(num_units), indexing="ij"))
    distance = (random.integers(10, size=len(origin)) + 0.5) / 10
    pairs = FlowTable(tuple(map(str, range(num_units))), origin, destination, np.where(distance < 0.5, 40.0, 5.0))
    return PairInputs(random.normal(size=(num_units, 3)).astype(np.float32)), pairs, distance


def tree_data(inputs, pairs, distance, count=None, weight=None):
    return TreeData(inputs.columns(pairs, distance), pairs.count if count is None else count, weight)


def fit(config=CONFIG, seed=0, num_threads=1):
    data = tree_data(*draw_pairs())
    return fit_trees(data, data, config, seed, num_threads)


def save_and_load(path, trees):
    save_trees(path, trees.booster)
    return FlowTrees(load_trees(path), trees.columns)


def test_columns_are_origin_destination_distance():
    inputs = PairInputs(np.array([[1, 2], [3, 4], [5, 6]], dtype=np.float32))
    pairs = FlowTable(("a", "b", "c"), np.array([2, 0]), np.array([1, 0]), np.array([9.0, 9.0]))
    found = inputs.columns(pairs, np.array([0.25, 0.0]))
    assert found.tolist() == [[5, 6, 3, 4, 0.25], [1, 2, 1, 2, 0]]
    assert found.dtype == np.float32
    assert inputs.num_columns == 5


def test_potentials_stand_behind_the_distance():
    inputs = PairInputs(np.array([[1.0], [2.0]], dtype=np.float32), np.array([[0.5, 0.25], [4.0, 8.0]]))
    pairs = FlowTable(("a", "b"), np.array([0, 1]), np.array([1, 1]), np.array([9.0, 9.0]))
    # Outflow of the origin, inflow of the destination, their sum.
    assert inputs.columns(pairs, np.array([0.75, 0.0])).tolist() == [[1, 2, 0.75, 0.5, 8, 8.5], [2, 2, 0, 4, 8, 12]]
    assert inputs.num_columns == 6


def test_chosen_columns_are_those_of_all():
    inputs = PairInputs(np.random.default_rng(0).normal(size=(12, 3)), np.random.default_rng(1).normal(size=(12, 2)))
    _, pairs, distance = draw_pairs()
    chosen = np.array([9, 0, 6, 4])
    np.testing.assert_array_equal(inputs.columns(pairs, distance, chosen), inputs.columns(pairs, distance)[:, chosen])


@pytest.mark.parametrize("objective", ["poisson", "l2"])
def test_a_step_of_the_distance_is_learned(objective):
    settings = {"feature_share": 1.0, "pair_share": 1.0, "early_stopping": 0}
    trees = fit(TreesConfig(num_trees=60, learning_rate=0.3, min_leaf_pairs=5, objective=objective, **settings))
    inputs, pairs, distance = draw_pairs()
    np.testing.assert_allclose(trees.predict(inputs, pairs, distance), pairs.count, rtol=0.02)
    assert trees.booster.num_trees() == 60  # early stopping is off
    assert trees.columns.tolist() == list(range(7))


def test_early_stopping_ends_where_the_validation_score_no_longer_improves(tmp_path):
    inputs, pairs, distance = draw_pairs()
    noise = np.random.default_rng(5).permutation(pairs.count)
    config = TreesConfig(num_trees=300, learning_rate=0.3, min_leaf_pairs=5, early_stopping=4)
    trees = fit_trees(tree_data(inputs, pairs, distance), tree_data(inputs, pairs, distance, noise), config, 0, 1)
    assert trees.booster.best_iteration < 20
    loaded = save_and_load(tmp_path / "lightgbm.txt", trees)
    assert loaded.booster.num_trees() == trees.booster.best_iteration
    np.testing.assert_array_equal(loaded.predict(inputs, pairs, distance), trees.predict(inputs, pairs, distance))


def test_the_second_fit_has_as_many_trees_on_the_columns_of_use_and_all_pairs(tmp_path):
    inputs, pairs, distance = draw_pairs()
    useless = PairInputs(np.concatenate([inputs.unit, np.ones((12, 2), dtype=np.float32)], axis=1))  # constant columns cannot be split
    first = tree_data(useless, pairs, distance)
    other = tree_data(useless, pairs, distance, 3 * pairs.count)
    chosen = fit_trees(first, first, CONFIG, 0, 1)
    trees = fit_again(chosen, other, CONFIG, 0, 1)
    used = np.flatnonzero(chosen.booster.feature_importance("split") > 0)
    assert trees.columns.tolist() == used.tolist()
    assert set(used) <= {0, 1, 2, 5, 6, 7, 10}
    assert trees.booster.num_feature() == len(used)
    assert trees.booster.num_trees() == chosen.booster.best_iteration
    assert trees.predict(useless, pairs, distance).sum() == pytest.approx(3 * pairs.count.sum(), rel=0.1)  # it learned the other pairs
    loaded = save_and_load(tmp_path / "lightgbm.txt", trees)
    np.testing.assert_array_equal(loaded.predict(useless, pairs, distance), trees.predict(useless, pairs, distance))


def test_a_weighted_pair_counts_as_so_many():
    inputs, pairs, distance = draw_pairs()
    counts = np.where(np.arange(len(pairs)) % 2 == 0, 0.0, 8.0)
    weight = np.where(counts == 0, 3.0, 1.0)
    stump = TreesConfig(num_trees=1, learning_rate=1e-9, min_leaf_pairs=5, early_stopping=0)  # predicts the mean
    data = tree_data(inputs, pairs, distance, counts, weight)
    found = fit_trees(data, data, stump, 0, 1).predict(inputs, pairs, distance)
    np.testing.assert_allclose(found, (weight * counts).sum() / weight.sum(), rtol=1e-6)


def test_saved_and_loaded_trees_predict_the_same(tmp_path):
    trees, (inputs, pairs, distance) = fit(), draw_pairs()
    loaded = save_and_load(tmp_path / "lightgbm.txt", trees)
    np.testing.assert_array_equal(loaded.predict(inputs, pairs, distance), trees.predict(inputs, pairs, distance))
    assert (tmp_path / "lightgbm.txt").read_text().startswith("tree\n")


def test_the_same_data_and_seed_give_the_same_trees(tmp_path):
    texts = []
    for number, (seed, threads) in enumerate([(3, 2), (3, 2), (3, 1), (4, 1)]):
        few = TreesConfig(num_trees=5, min_leaf_pairs=5, early_stopping=0)
        save_trees(tmp_path / f"{number}.txt", fit(few, seed, threads).booster)
        texts.append((tmp_path / f"{number}.txt").read_bytes())
    assert texts[0] == texts[1]
    assert texts[0].replace(b"[num_threads: 2]", b"") == texts[2].replace(b"[num_threads: 1]", b"")
    assert texts[2].split(b"parameters:")[0] != texts[3].split(b"parameters:")[0]  # the shares are drawn by the seed


def test_settings_reach_the_trees(tmp_path):
    shape = {"num_trees": 3, "max_depth": 2, "num_leaves": 7, "learning_rate": 0.05, "min_leaf_pairs": 9}
    config = TreesConfig(**shape, objective="l2", early_stopping=0, feature_share=0.4, pair_share=0.8)
    save_trees(tmp_path / "lightgbm.txt", fit(config).booster)
    text = (tmp_path / "lightgbm.txt").read_text()
    named = ("max_depth: 2", "num_leaves: 7", "learning_rate: 0.05", "min_data_in_leaf: 9", "objective: regression")
    for setting in (*named, "feature_fraction: 0.4", "bagging_fraction: 0.8", "bagging_freq: 1"):
        assert f"[{setting}]" in text
    leaves = [int(line.removeprefix("num_leaves=")) for line in text.splitlines() if line.startswith("num_leaves=")]
    assert len(leaves) == 3
    assert max(leaves) <= 4  # two levels


def test_predictions_are_never_negative():
    inputs, pairs, distance = draw_pairs()
    data = tree_data(inputs, pairs, distance, pairs.count - 20)
    below = fit_trees(data, data, TreesConfig(objective="l2", early_stopping=0), 0, 1)
    raw, found = below.booster.predict(inputs.columns(pairs, distance)), below.predict(inputs, pairs, distance)
    assert raw.min() < -5
    np.testing.assert_array_equal(found, np.maximum(raw, 0))


def test_blocks_of_pairs_predict_as_one(monkeypatch):
    trees, (inputs, pairs, distance) = fit(), draw_pairs()
    whole = trees.predict(inputs, pairs, distance)
    monkeypatch.setattr(decoder, "PAIRS_PER_BLOCK", 50)
    np.testing.assert_array_equal(trees.predict(inputs, pairs, distance), whole)
    assert trees.predict(inputs, pairs.select(np.zeros(0, int)), distance[:0]).shape == (0,)


def test_a_pickle_in_the_guise_of_trees_is_refused_without_being_run(tmp_path):
    (tmp_path / "lightgbm.txt").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(InputError, match=r"lightgbm.txt is not in LightGBM's text format; train the model again"):
        load_trees(tmp_path / "lightgbm.txt")
    assert not (tmp_path / "exploded").exists()


def test_missing_trees_are_named(tmp_path):
    with pytest.raises(MissingInputError, match=r"LightGBM decoder .*gone.txt does not exist"):
        load_trees(tmp_path / "gone.txt")


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_truncated_trees_are_refused(tmp_path, share):
    save_trees(tmp_path / "whole.txt", fit().booster)
    text = (tmp_path / "whole.txt").read_text()
    end = text.index("end of trees")
    (tmp_path / "half.txt").write_text(text[: int(end * share)])
    # In a process of its own, because LightGBM may abort on such a text.
    lines = ("import sys", "from pathlib import Path", "from imagery2flow.flows.decoder import load_trees", "load_trees(Path(sys.argv[1]))")
    command = [sys.executable, "-c", "\n".join(lines), str(tmp_path / "half.txt")]
    answer = subprocess.run(command, capture_output=True, check=False)
    assert answer.returncode == 1, answer.stderr
    assert b"imagery2flow.run.errors.InputError: LightGBM decoder" in answer.stderr


def test_trees_are_lightgbms_own(tmp_path):
    save_trees(tmp_path / "lightgbm.txt", fit().booster)
    assert lightgbm.Booster(model_file=str(tmp_path / "lightgbm.txt")).num_feature() == 7


def law_data(noise=3.0):
    """Pairs whose flow rises with the potentials and falls with the distance, with enough noise to mislead free trees."""
    random = np.random.default_rng(0)
    inputs, pairs, distance = draw_pairs(num_units=20)
    inputs = PairInputs(inputs.unit, random.normal(size=(20, 2)))
    mean = np.exp(2 + 0.5 * inputs.potential[pairs.origin, 0] + 0.5 * inputs.potential[pairs.destination, 1] - 2 * distance)
    return (
        inputs,
        pairs,
        distance,
        TreeData(inputs.columns(pairs, distance), random.poisson(mean * random.gamma(1 / noise, noise, len(mean)))),
    )


def test_the_law_sees_distance_and_potentials_only():
    inputs, pairs, distance, data = law_data()
    assert inputs.law_columns().tolist() == [6, 7, 8, 9]
    law = fit_law(data, inputs.law_columns(), CONFIG, 0, 1)
    other = PairInputs(inputs.unit + 100, inputs.potential)
    np.testing.assert_array_equal(law.predict(other, pairs, distance), law.predict(inputs, pairs, distance))
    assert np.corrcoef(law.predict(inputs, pairs, distance), data.count)[0, 1] > 0.3


def test_the_law_rises_with_the_potentials_and_falls_with_the_distance():
    inputs, pairs, distance, data = law_data()
    law = fit_law(data, inputs.law_columns(), CONFIG, 0, 1)
    before = law.predict(inputs, pairs, distance)
    assert (law.predict(inputs, pairs, distance + 0.3) <= before).all()
    for side in range(2):
        step = np.zeros(2)
        step[side] = 0.7
        assert (law.predict(PairInputs(inputs.unit, inputs.potential + step), pairs, distance) >= before).all()
    free = fit_trees(data, data, TreesConfig(num_trees=40, learning_rate=0.3, min_leaf_pairs=5, early_stopping=0), 0, 1)
    assert (free.predict(inputs, pairs, distance + 0.3) > free.predict(inputs, pairs, distance)).any()


def test_the_law_has_its_own_size_unless_fewer_trees_are_asked_for():
    inputs, _, _, data = law_data()
    large = TreesConfig(num_trees=LAW_TREES + 50, num_leaves=64, min_leaf_pairs=1, learning_rate=0.01)
    booster = fit_law(data, inputs.law_columns(), large, 0, 1).booster
    assert booster.num_trees() == LAW_TREES
    assert booster.trees_to_dataframe().groupby("tree_index").left_child.apply(lambda child: child.isna().sum()).max() <= LAW_LEAVES
    assert fit_law(data, inputs.law_columns(), TreesConfig(num_trees=7), 0, 1).booster.num_trees() == 7
