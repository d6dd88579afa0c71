"""The LightGBM decoder: a regression of counts on [h_origin, h_destination, distance] (paper, Methods: Imagery2Flow-LGBM)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np

from imagery2flow.flows.table import FlowTable
from imagery2flow.run.config import TreesConfig
from imagery2flow.run.errors import InputError
from imagery2flow.run.files import existing_file, replacing

PAIRS_PER_BLOCK = 100_000


def pair_features(hidden: np.ndarray, pairs: FlowTable, distance: np.ndarray) -> np.ndarray:
    """Features of pairs: [num_pairs, 2 * dim + 1].

    Args:
        hidden: Embeddings of the units [num_units, dim].
        pairs: Pairs of units.
        distance: Relative distance of the pairs [num_pairs].
    """
    return np.concatenate([hidden[pairs.origin], hidden[pairs.destination], distance[:, None].astype(hidden.dtype)], axis=1)


def train_trees(
    train: tuple[np.ndarray, np.ndarray], valid: tuple[np.ndarray, np.ndarray], config: TreesConfig, seed: int, num_threads: int
) -> lightgbm.Booster:
    """Fits the trees on (features, counts); with early stopping on the validation pairs unless it is off.

    The result depends on the data and the seed only: histograms are summed in a fixed order.
    """
    parameters = {
        "objective": "poisson" if config.objective == "poisson" else "regression",
        "max_depth": config.max_depth,
        "num_leaves": config.num_leaves,
        "learning_rate": config.learning_rate,
        "min_data_in_leaf": config.min_leaf_pairs,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": num_threads,
        "verbosity": -1,
    }
    training_set = lightgbm.Dataset(*train)
    callbacks: list[Callable[..., Any]] = [lightgbm.early_stopping(config.early_stopping, verbose=False)] if config.early_stopping else []
    validation = [lightgbm.Dataset(*valid, reference=training_set)] if config.early_stopping else []
    return lightgbm.train(parameters, training_set, config.num_trees, valid_sets=validation, callbacks=callbacks)


def predict_trees(trees: lightgbm.Booster, hidden: np.ndarray, pairs: FlowTable, distance: np.ndarray) -> np.ndarray:
    """Predicted flows of pairs, 0 or more [num_pairs]; in blocks, so that memory does not grow with the number of pairs."""
    parts = [trees.predict(pair_features(hidden, pairs.select(block), distance[block])) for block in blocks(len(pairs))]
    return np.maximum(np.concatenate(parts), 0.0) if parts else np.zeros(0)


def blocks(length: int) -> Iterator[np.ndarray]:
    """Positions 0..length-1 in blocks."""
    for start in range(0, length, PAIRS_PER_BLOCK):
        yield np.arange(start, min(start + PAIRS_PER_BLOCK, length))


def save_trees(path: Path, trees: lightgbm.Booster) -> None:
    """Writes LightGBM's own text format."""
    with replacing(path) as temporary:
        trees.save_model(str(temporary), num_iteration=trees.best_iteration if trees.best_iteration > 0 else None)


def load_trees(path: Path) -> lightgbm.Booster:
    """Reads LightGBM's own text format.

    Raises:
        InputError: The file is not in that format.
    """
    existing_file(path, "LightGBM decoder")
    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("tree\n") or "\nend of trees\n" not in text:
        raise InputError(f"LightGBM decoder {path} is not in LightGBM's text format; train the model again with train_ODPrediction.py")
    return lightgbm.Booster(model_str=text)
