"""The LightGBM decoder as a whole: what its trees read of a region, and the average of the trees that predict.

Two kinds of trees are averaged. Some see the features of both ends, their surroundings, the potentials and the distance. Others, the law, see only
potentials and distance, and their prediction may only rise with the potentials and fall with the distance, as in a law of gravity: they
carry less of the source city with them. For the source region the validation pairs choose the weights, for others both weigh the same.

A model has two such decoders, because what helps within a city harms in another (docs/experiments.md): wide surroundings tell where in the city a
unit lies. The one for the source city reads them, the one for other cities reads what is near.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imagery2flow.flows import metrics
from imagery2flow.flows.decoder import FlowTrees, PairInputs, TreeData, fit_again, fit_law, fit_trees, load_trees, save_trees
from imagery2flow.flows.potentials import Potentials, Process, fit_potentials
from imagery2flow.flows.region import Region
from imagery2flow.flows.sampling import draw_sample
from imagery2flow.flows.scaling import Scaling
from imagery2flow.flows.table import FlowTable, concatenate
from imagery2flow.run.device import random_numbers
from imagery2flow.run.errors import InputError
from imagery2flow.run.files import as_tensors, existing_file, from_tensors, sha256
from imagery2flow.run.flow_config import FlowTrainingConfig, TreesConfig

POTENTIALS = 4  # purpose of random numbers
SHARES = (0.5, 0.75, 1.0)  # among which the weight of the trees that see features is chosen
HOME, TRANSFER = "lightgbm", "lightgbm_transfer"  # of files


@dataclass(frozen=True)
class Seen:
    """A region as a model sees it: its scaling, and the embeddings by its graph network [num_units, embedding_size], if it has one."""

    region: Region
    scaling: Scaling
    hidden: torch.Tensor | None
    known: dict[tuple[float, ...], np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def surroundings(self, radii_m: tuple[float, ...]) -> np.ndarray:
        """Averages around the units: [num_units, around]; reckoned once, as the work grows with the square of the units."""
        if radii_m not in self.known:
            self.known[radii_m] = self.scaling.surroundings(self.region, radii_m)
        return self.known[radii_m]

    def relative_distance(self, pairs: FlowTable) -> np.ndarray:
        """Distance of pairs relative to the source region's largest: [num_pairs]."""
        return self.scaling.relative_distance(self.region, pairs)


@dataclass(frozen=True)
class UnitInputs:
    """What trees may read of units.

    Attributes:
        trees: Settings that choose the columns.
        context_m: Radii of the surroundings.
        wide_potentials: Whether the surroundings are also what potentials are predicted from.
    """

    trees: TreesConfig
    context_m: tuple[float, ...]
    wide_potentials: bool

    def columns(self, seen: Seen) -> np.ndarray:
        """Columns per unit [num_units, dim]."""
        parts = [np.zeros((len(seen.region.embeddings), 0))]
        if self.trees.embeddings and seen.hidden is not None:
            parts.append(seen.hidden.cpu().numpy())
        if self.trees.unit_features:
            parts += [seen.scaling.features(seen.region), seen.surroundings(self.context_m)]
        return np.concatenate(parts, axis=1).astype(np.float32)

    def potential_features(self, seen: Seen) -> np.ndarray:
        """What potentials are predicted from [num_units, dim]."""
        own = seen.scaling.quantities(seen.region)
        return np.concatenate([own, seen.surroundings(self.context_m)], axis=1) if self.wide_potentials else own

    def of_pairs(self, seen: Seen, potentials: Potentials | None, own: np.ndarray | None = None) -> PairInputs:
        """What the trees read of pairs of a region.

        Args:
            seen: The region.
            potentials: Predicted outflow and inflow, or None.
            own: Cross-fitted potentials of units that the potentials were fitted to, NaN elsewhere [num_units, 2].

        Raises:
            TableError: The region's features are not the model's.
        """
        columns = self.columns(seen)
        if potentials is None:
            return PairInputs(columns)
        of_all = potentials.of(self.potential_features(seen))
        return PairInputs(columns, of_all if own is None else np.where(np.isnan(own), of_all, own))


@dataclass(frozen=True)
class TreeDecoder:
    """Fitted trees and what they read.

    Attributes:
        unit_inputs: What they read of units.
        potentials: Predicted outflow and inflow of units, or None.
        members: Trees whose predictions are averaged.
        weights: Of the members; they sum to 1.
    """

    unit_inputs: UnitInputs
    potentials: Potentials | None
    members: tuple[FlowTrees, ...]
    weights: tuple[float, ...]

    def predict(self, inputs: PairInputs, pairs: FlowTable, distance: np.ndarray) -> np.ndarray:
        """Predicted flows of pairs, 0 or more [num_pairs]."""
        total = np.zeros(len(pairs))
        for trees, weight in zip(self.members, self.weights, strict=True):
            if weight:
                total += weight * trees.predict(inputs, pairs, distance)
        return total


@dataclass(frozen=True)
class Lesson:
    """What a decoder is fitted to.

    Attributes:
        config: Settings.
        seen: Source region.
        train: Training pairs.
        valid: Validation pairs.
    """

    config: FlowTrainingConfig
    seen: Seen
    train: FlowTable
    valid: FlowTable

    def data(self, unit_inputs: UnitInputs, pairs: FlowTable) -> tuple[Potentials | None, PairInputs, TreeData]:
        """Potentials of some pairs, and with them what the trees read of these."""
        potentials = None
        if unit_inputs.trees.potentials:
            features = unit_inputs.potential_features(self.seen)
            potentials = fit_potentials(features, pairs, random_numbers(self.config.seed, POTENTIALS))
        inputs = unit_inputs.of_pairs(self.seen, potentials, None if potentials is None else potentials.crossed)
        sample = draw_sample(self.config, pairs)
        columns = inputs.columns(sample.pairs, self.seen.relative_distance(sample.pairs))
        return potentials, inputs, TreeData(columns, sample.pairs.count, sample.weight)


def fit_home(lesson: Lesson) -> TreeDecoder:
    """For the source region.

    The validation pairs say how much the law weighs and, with early stopping, how many trees there are; then all is fitted to both.
    """
    config, unit_inputs = lesson.config, UnitInputs(lesson.config.trees, tuple(lesson.config.context_m), wide_potentials=True)
    potentials, inputs, data = lesson.data(unit_inputs, lesson.train)
    distance = lesson.seen.relative_distance(lesson.valid)
    check = TreeData(inputs.columns(lesson.valid, distance), lesson.valid.count)
    trees = fit_trees(data, check, config.trees, config.seed, torch.get_num_threads())
    members = (trees, *law(lesson, inputs, data))
    weights = best_weights(lesson.valid.count, [member.predict(inputs, lesson.valid, distance) for member in members])
    if config.trees.early_stopping:
        potentials, inputs, data = lesson.data(unit_inputs, concatenate(lesson.train, lesson.valid))
        trees = fit_again(trees, data, config.trees, config.seed, torch.get_num_threads())
        members = (trees, *law(lesson, inputs, data))
    return TreeDecoder(unit_inputs, potentials, members, weights)


def best_weights(count: np.ndarray, predictions: list[np.ndarray]) -> tuple[float, ...]:
    """Weights of one or two predictors whose average has the highest CPC; of equal ones the most even.

    Args:
        count: Commuters [num_pairs].
        predictions: Of each [num_pairs].
    """
    if len(predictions) == 1:
        return (1.0,)
    first, second = predictions
    shares = sorted(SHARES, key=lambda share: abs(share - 0.5))
    score = [metrics.cpc(count, share * first + (1 - share) * second) for share in shares]
    best = shares[int(np.argmax(score))]
    return (best, 1 - best)


def fit_transfer(lesson: Lesson) -> TreeDecoder:
    """For other regions: as many trees as set, on training and validation pairs, for no pair of the source region says when to stop there."""
    config = lesson.config
    trees = dataclasses.replace(config.trees, num_trees=config.trees.transfer_trees, early_stopping=0)
    unit_inputs = UnitInputs(trees, tuple(config.transfer_context_m), wide_potentials=False)
    potentials, inputs, data = lesson.data(unit_inputs, concatenate(lesson.train, lesson.valid))
    fitted = fit_trees(data, data, trees, config.seed, torch.get_num_threads())
    members = (fitted, *law(lesson, inputs, data))
    return TreeDecoder(unit_inputs, potentials, members, (1 / len(members),) * len(members))


def law(lesson: Lesson, inputs: PairInputs, data: TreeData) -> tuple[FlowTrees, ...]:
    """The trees of potentials and distance, if there are to be any."""
    trees = lesson.config.trees
    if not (trees.law and trees.potentials):
        return ()
    return (fit_law(data, inputs.law_columns(), trees, lesson.config.seed, torch.get_num_threads()),)


def save_decoder(folder: Path, name: str, decoder: TreeDecoder | None) -> dict[str, Any] | None:
    """Writes the trees of a decoder into files of their own; returns the rest as plain values and tensors."""
    if decoder is None:
        return None
    files = []
    for number, trees in enumerate(decoder.members):
        path = folder / (f"{name}.txt" if number == 0 else f"{name}_law.txt")
        save_trees(path, trees.booster)
        files.append({"name": path.name, "sha256": sha256(path), "columns": torch.from_numpy(trees.columns)})
    potentials = None
    if decoder.potentials is not None:
        processes = [as_tensors(process) for process in decoder.potentials.processes]
        potentials = {"crossed": torch.from_numpy(decoder.potentials.crossed), "processes": processes}
    plain = {"trees": dataclasses.asdict(decoder.unit_inputs.trees), "context_m": list(decoder.unit_inputs.context_m)}
    return {
        **plain,
        "weights": list(decoder.weights),
        "wide_potentials": decoder.unit_inputs.wide_potentials,
        "potentials": potentials,
        "files": files,
    }


def load_decoder(folder: Path, stored: dict[str, Any] | None) -> TreeDecoder | None:
    """Reads what ``save_decoder`` wrote.

    Raises:
        MissingInputError: A file of trees is absent.
        InputError: It is not that of the model.
    """
    if stored is None:
        return None
    potentials = None
    if stored["potentials"] is not None:
        outflow, inflow = (Process(**from_tensors(process)) for process in stored["potentials"]["processes"])
        potentials = Potentials((outflow, inflow), stored["potentials"]["crossed"].numpy())
    unit_inputs = UnitInputs(TreesConfig(**stored["trees"]), tuple(stored["context_m"]), stored["wide_potentials"])
    return TreeDecoder(unit_inputs, potentials, tuple(load_member(folder, file) for file in stored["files"]), tuple(stored["weights"]))


def load_member(folder: Path, file: dict[str, Any]) -> FlowTrees:
    """Reads trees, but not others than those of the model: LightGBM crashes on a damaged file.

    Raises:
        MissingInputError: There is no such file.
        InputError: Its content is another.
    """
    path = folder / Path(file["name"]).name
    existing_file(path, "LightGBM decoder")
    if sha256(path) != file["sha256"]:
        raise InputError(
            f"LightGBM decoder {path} is damaged or of another model (its sha256 is not {file['sha256'][:12]}...); train the model again"
        )
    return FlowTrees(load_trees(path), file["columns"].numpy())
