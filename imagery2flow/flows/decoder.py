"""The LightGBM decoder: a regression of counts on what is known of both ends and their distance (paper, Methods: Imagery2Flow-LGBM).

Published: [h_origin, h_destination, distance]. By default the trees see the units' features and potentials in place of the embeddings h: those of
training units were fitted to the very flows that the trees are to learn, so that trees trust them too much (docs/experiments.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np

from imagery2flow.flows.table import FlowTable
from imagery2flow.run.errors import InputError
from imagery2flow.run.files import existing_file, write_text
from imagery2flow.run.flow_config import TreesConfig

PAIRS_PER_BLOCK = 200_000
LAW_TREES, LAW_LEAVES = 300, 12


def as_slice(places: np.ndarray) -> np.ndarray | slice:
    """Rising positions as a slice where none is left out between them: numpy writes to that several times faster."""
    together = len(places) > 0 and places[-1] - places[0] + 1 == len(places)
    return slice(places[0], places[-1] + 1) if together else places


@dataclass(frozen=True)
class PairInputs:
    """What the trees know of units.

    Attributes:
        unit: Columns per unit [num_units, dim].
        potential: Predicted logarithms of outflow and inflow [num_units, 2], or None.
    """

    unit: np.ndarray
    potential: np.ndarray | None = None

    @property
    def num_columns(self) -> int:
        """Columns of a pair: both ends, the distance, and the sum of the origin's outflow and the destination's inflow potential."""
        return 2 * self.unit.shape[1] + 1 + (0 if self.potential is None else 3)

    def law_columns(self) -> np.ndarray:
        """Numbers of the columns of the distance and of the potentials."""
        return np.arange(2 * self.unit.shape[1], self.num_columns)

    def columns(self, pairs: FlowTable, distance: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
        """Columns of pairs: [num_pairs, num_columns], or only the chosen ones, in single precision.

        Args:
            pairs: Pairs of units.
            distance: Relative distance [num_pairs].
            chosen: Numbers of columns; default all.
        """
        dim = self.unit.shape[1]
        wanted = np.arange(self.num_columns) if chosen is None else chosen
        table = np.empty((len(pairs), len(wanted)), dtype=np.float32)
        # All columns of an end at once: one by one, every line of memory would be written as often as there are columns.
        for end, first in ((pairs.origin, 0), (pairs.destination, dim)):
            places = np.flatnonzero((wanted >= first) & (wanted < first + dim))
            table[:, as_slice(places)] = self.unit[:, wanted[places] - first][end]
        for place in np.flatnonzero(wanted >= 2 * dim):
            number = wanted[place] - 2 * dim - 1
            table[:, place] = distance if number < 0 else self.potential_column(number, pairs)
        return table

    def potential_column(self, number: int, pairs: FlowTable) -> np.ndarray:
        """0: outflow of the origin, 1: inflow of the destination, 2: their sum; [num_pairs]."""
        assert self.potential is not None
        leaving, arriving = self.potential[pairs.origin, 0], self.potential[pairs.destination, 1]
        return (leaving, arriving, leaving + arriving)[number]


@dataclass(frozen=True)
class FlowTrees:
    """Fitted trees and the numbers of the columns that they read."""

    booster: lightgbm.Booster
    columns: np.ndarray

    def predict(self, inputs: PairInputs, pairs: FlowTable, distance: np.ndarray) -> np.ndarray:
        """Predicted flows of pairs, 0 or more [num_pairs]; in blocks, so that memory does not grow with the number of pairs."""
        parts = [self.booster.predict(inputs.columns(pairs.select(block), distance[block], self.columns)) for block in blocks(len(pairs))]
        return np.maximum(np.concatenate(parts), 0.0) if parts else np.zeros(0)


@dataclass(frozen=True)
class TreeData:
    """Pairs for the trees: columns [num_pairs, num_columns], counts [num_pairs], weights [num_pairs] or None."""

    columns: np.ndarray
    count: np.ndarray
    weight: np.ndarray | None = None

    def dataset(self, chosen: np.ndarray, reference: lightgbm.Dataset | None = None) -> lightgbm.Dataset:
        """As LightGBM reads it, some columns only."""
        return lightgbm.Dataset(self.columns[:, chosen], self.count, weight=self.weight, reference=reference)


def fit_trees(train: TreeData, valid: TreeData, config: TreesConfig, seed: int, num_threads: int) -> FlowTrees:
    """Fits the trees to every column, with early stopping if it is set.

    The result depends on the data and the seed only: histograms are summed in a fixed order.

    Args:
        train: Training pairs.
        valid: Pairs that say when to stop; unread without early stopping.
        config: Settings.
        seed: Of the random shares.
        num_threads: Threads of LightGBM.
    """
    every = np.arange(train.columns.shape[1])
    training_set = train.dataset(every)
    further: dict[str, Any] = {}
    if config.early_stopping:
        stop: list[Callable[..., Any]] = [lightgbm.early_stopping(config.early_stopping, verbose=False)]
        further = {"valid_sets": [valid.dataset(every, training_set)], "callbacks": stop}
    return FlowTrees(lightgbm.train(tree_parameters(config, seed, num_threads), training_set, config.num_trees, **further), every)


def fit_again(fitted: FlowTrees, data: TreeData, config: TreesConfig, seed: int, num_threads: int) -> FlowTrees:
    """Fits to other data as many trees as early stopping left, on the columns that were of use."""
    used = np.flatnonzero(fitted.booster.feature_importance("split") > 0)
    chosen = used if len(used) else fitted.columns
    num_trees = max(fitted.booster.best_iteration, 1)
    return FlowTrees(lightgbm.train(tree_parameters(config, seed, num_threads), data.dataset(chosen), num_trees), chosen)


def fit_law(data: TreeData, chosen: np.ndarray, config: TreesConfig, seed: int, num_threads: int) -> FlowTrees:
    """Fits trees whose prediction may only fall with the first of the chosen columns, the distance, and only rise with the others, the potentials.

    Args:
        data: Pairs.
        chosen: Numbers of columns.
        config: Settings; the number of trees and of leaves is the law's own, unless they are to be fewer.
        seed: Of the random shares.
        num_threads: Threads of LightGBM.
    """
    few = dataclasses.replace(config, num_leaves=min(LAW_LEAVES, config.num_leaves), feature_share=1.0)
    monotone = {"monotone_constraints": [-1] + [1] * (len(chosen) - 1), "monotone_constraints_method": "advanced"}
    booster = lightgbm.train(tree_parameters(few, seed, num_threads) | monotone, data.dataset(chosen), min(LAW_TREES, config.num_trees))
    return FlowTrees(booster, chosen)


def tree_parameters(config: TreesConfig, seed: int, num_threads: int) -> dict[str, Any]:
    """LightGBM's names of the settings."""
    return {
        "objective": "poisson" if config.objective == "poisson" else "regression",
        "max_depth": config.max_depth,
        "num_leaves": config.num_leaves,
        "learning_rate": config.learning_rate,
        "min_data_in_leaf": config.min_leaf_pairs,
        "feature_fraction": config.feature_share,
        "bagging_fraction": config.pair_share,
        "bagging_freq": 1 if config.pair_share < 1 else 0,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": num_threads,
        "verbosity": -1,
    }


def blocks(length: int) -> Iterator[np.ndarray]:
    """Positions 0..length-1 in blocks."""
    for start in range(0, length, PAIRS_PER_BLOCK):
        yield np.arange(start, min(start + PAIRS_PER_BLOCK, length))


def save_trees(path: Path, trees: lightgbm.Booster) -> None:
    """Writes LightGBM's own text format."""
    write_text(path, trees.model_to_string(num_iteration=trees.best_iteration if trees.best_iteration > 0 else None))


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
