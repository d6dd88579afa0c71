import pickle
import subprocess
import sys
from pathlib import Path

import lightgbm
import numpy as np
import pytest

from imagery2flow.flows import decoder
from imagery2flow.flows.decoder import load_trees, pair_features, predict_trees, save_trees, train_trees
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
    """Embeddings, every pair of units, relative distances .05, .15, ..., and counts that step at 1/2."""
    random = np.random.default_rng(seed)
    origin, destination = (axis.reshape(-1) for axis in np.meshgrid(range(num_units), range(num_units), indexing="ij"))
    distance = (random.integers(10, size=len(origin)) + 0.5) / 10
    pairs = FlowTable(tuple(map(str, range(num_units))), origin, destination, np.where(distance < 0.5, 40.0, 5.0))
    return random.normal(size=(num_units, 3)).astype(np.float32), pairs, distance


def fit(config=CONFIG, seed=0, num_threads=1):
    hidden, pairs, distance = draw_pairs()
    data = (pair_features(hidden, pairs, distance), pairs.count)
    return train_trees(data, data, config, seed, num_threads)


def test_features_are_origin_destination_distance():
    hidden = np.array([[1, 2], [3, 4], [5, 6]], dtype=np.float32)
    pairs = FlowTable(("a", "b", "c"), np.array([2, 0]), np.array([1, 0]), np.array([9.0, 9.0]))
    found = pair_features(hidden, pairs, np.array([0.25, 0.0]))
    assert found.tolist() == [[5, 6, 3, 4, 0.25], [1, 2, 1, 2, 0]]
    assert found.dtype == np.float32


@pytest.mark.parametrize("objective", ["poisson", "l2"])
def test_a_step_of_the_distance_is_learned(objective):
    trees = fit(TreesConfig(num_trees=60, learning_rate=0.3, min_leaf_pairs=5, objective=objective, early_stopping=0))
    hidden, pairs, distance = draw_pairs()
    np.testing.assert_allclose(predict_trees(trees, hidden, pairs, distance), pairs.count, rtol=0.02)
    assert trees.num_trees() == 60  # early stopping is off


def test_early_stopping_ends_where_the_validation_score_no_longer_improves(tmp_path):
    hidden, pairs, distance = draw_pairs()
    features = pair_features(hidden, pairs, distance)
    noise = np.random.default_rng(5).permutation(pairs.count)
    config = TreesConfig(num_trees=300, learning_rate=0.3, min_leaf_pairs=5, early_stopping=4)
    trees = train_trees((features, pairs.count), (features, noise), config, 0, 1)
    assert trees.best_iteration < 20
    save_trees(tmp_path / "lightgbm.txt", trees)
    loaded = load_trees(tmp_path / "lightgbm.txt")
    assert loaded.num_trees() == trees.best_iteration
    np.testing.assert_array_equal(predict_trees(loaded, hidden, pairs, distance), predict_trees(trees, hidden, pairs, distance))


def test_saved_and_loaded_trees_predict_the_same(tmp_path):
    trees, (hidden, pairs, distance) = fit(), draw_pairs()
    save_trees(tmp_path / "lightgbm.txt", trees)
    loaded = load_trees(tmp_path / "lightgbm.txt")
    np.testing.assert_array_equal(predict_trees(loaded, hidden, pairs, distance), predict_trees(trees, hidden, pairs, distance))
    assert (tmp_path / "lightgbm.txt").read_text().startswith("tree\n")


def test_the_same_data_and_seed_give_the_same_trees(tmp_path):
    texts = []
    for number, (seed, threads) in enumerate([(3, 2), (3, 2), (3, 1)]):
        few = TreesConfig(num_trees=5, min_leaf_pairs=5, early_stopping=0)
        save_trees(tmp_path / f"{number}.txt", fit(few, seed, threads))
        texts.append((tmp_path / f"{number}.txt").read_bytes())
    assert texts[0] == texts[1]
    assert texts[0].replace(b"[num_threads: 2]", b"") == texts[2].replace(b"[num_threads: 1]", b"")


def test_settings_reach_the_trees(tmp_path):
    config = TreesConfig(num_trees=3, max_depth=2, num_leaves=7, learning_rate=0.05, min_leaf_pairs=9, objective="l2", early_stopping=0)
    save_trees(tmp_path / "lightgbm.txt", fit(config))
    text = (tmp_path / "lightgbm.txt").read_text()
    for setting in ("max_depth: 2", "num_leaves: 7", "learning_rate: 0.05", "min_data_in_leaf: 9", "objective: regression"):
        assert f"[{setting}]" in text
    leaves = [int(line.removeprefix("num_leaves=")) for line in text.splitlines() if line.startswith("num_leaves=")]
    assert len(leaves) == 3
    assert max(leaves) <= 4  # two levels


def test_predictions_are_never_negative():
    hidden, pairs, distance = draw_pairs()
    features = pair_features(hidden, pairs, distance)
    below = train_trees((features, pairs.count - 20), (features, pairs.count - 20), TreesConfig(objective="l2", early_stopping=0), 0, 1)
    raw, found = below.predict(features), predict_trees(below, hidden, pairs, distance)
    assert raw.min() < -5
    np.testing.assert_array_equal(found, np.maximum(raw, 0))


def test_blocks_of_pairs_predict_as_one(monkeypatch):
    trees, (hidden, pairs, distance) = fit(), draw_pairs()
    whole = predict_trees(trees, hidden, pairs, distance)
    monkeypatch.setattr(decoder, "PAIRS_PER_BLOCK", 50)
    np.testing.assert_array_equal(predict_trees(trees, hidden, pairs, distance), whole)
    assert predict_trees(trees, hidden, pairs.select(np.zeros(0, int)), distance[:0]).shape == (0,)


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
    save_trees(tmp_path / "whole.txt", fit())
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
    save_trees(tmp_path / "lightgbm.txt", fit())
    assert lightgbm.Booster(model_file=str(tmp_path / "lightgbm.txt")).num_feature() == 7
