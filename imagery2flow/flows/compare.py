"""Published baselines on the same pairs as the model: gravity, radiation, Deep Gravity, GMEL.

Where a baseline needs the size of a unit it gets what imagery predicts of it (``flows.potentials``), so that it can be used in a city without flows. Where a
method takes margins as known, the row says so: ``outflow told`` and ``margins told`` know the sums of the very pairs that are scored, which no model
of this project does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from imagery2flow.flows.gravity import Constraint, Deterrence, fit_gravity, radiation
from imagery2flow.flows.networks import PairArrays, fit_deep_gravity, fit_gmel
from imagery2flow.flows.potentials import fit_potentials
from imagery2flow.flows.region import Region
from imagery2flow.flows.scaling import Scaling, fit_scaling
from imagery2flow.flows.splits import Split
from imagery2flow.flows.table import FlowTable, concatenate
from imagery2flow.flows.tree_decoder import POTENTIALS
from imagery2flow.run.device import random_numbers
from imagery2flow.run.flow_config import EvaluateConfig

DETERRENCES: tuple[Deterrence, ...] = ("power", "exponential")
TOLD: dict[Constraint, str] = {"none": "", "origin": ", outflow told", "both": ", margins told"}


@dataclass(frozen=True)
class Comparison:
    """What the baselines are fitted to and asked for.

    Attributes:
        source: Region that is trained on.
        target: Region of the scored pairs.
        scaling: From the source.
        train: Training pairs.
        valid: Validation pairs.
        tested: Scored pairs; the margins that some methods are told are theirs.
        size: Outflow and inflow that imagery predicts of units, for source and target [num_units, 2] each.
        seed: Of everything random.
        device: Where networks compute.
    """

    source: Region
    target: Region
    scaling: Scaling
    train: FlowTable
    valid: FlowTable
    tested: FlowTable
    size: tuple[np.ndarray, np.ndarray]
    seed: int
    device: torch.device

    def margin(self, pairs: FlowTable, end: np.ndarray) -> np.ndarray:
        """Commuters by unit at one end of the pairs [num_units]."""
        return np.bincount(end, pairs.count, minlength=len(pairs.geocodes))


def compare(
    config: EvaluateConfig, source: Region, target: Region, split: Split, tested: FlowTable, device: torch.device
) -> dict[str, np.ndarray]:
    """Predictions of the baselines asked for, by row of the table: [num_pairs] each.

    Args:
        config: Settings; ``baselines`` names the methods.
        source: Region that is trained on.
        target: Region of the scored pairs.
        split: What is trained and validated on.
        tested: Scored pairs.
        device: Where networks compute.
    """
    pairs = source.observed().universe(config.universe)
    label = split.of(pairs)
    train, valid = (pairs.select(label == name) for name in ("train", "valid"))
    scaling = fit_scaling(source, config.area_feature, config.num_components)
    potentials = fit_potentials(scaling.quantities(source), concatenate(train, valid), random_numbers(config.seed, POTENTIALS))
    own = potentials.of_source(scaling.quantities(source))
    logs = (own, own if target is source else potentials.of(scaling.quantities(target)))
    size = (np.maximum(np.expm1(logs[0]), 0.0), np.maximum(np.expm1(logs[1]), 0.0))
    task = Comparison(source, target, scaling, train, valid, tested, size, config.seed, device)
    found: dict[str, np.ndarray] = {}
    for name in config.baselines:
        found |= BASELINES[name](task)
    return found


def gravity_rows(task: Comparison) -> dict[str, np.ndarray]:
    """Every form of the gravity law."""
    train, tested = concatenate(task.train, task.valid), task.tested
    train_m = task.source.graph.distance_m(train.origin, train.destination)
    tested_m = task.target.graph.distance_m(tested.origin, tested.destination)
    outflow, inflow = task.margin(tested, tested.origin), task.margin(tested, tested.destination)
    leaving, arriving = task.size[0].T
    sizes = task.size[1][:, 0], task.size[1][:, 1]
    rows = {}
    for deterrence in DETERRENCES:
        for constraint, told in TOLD.items():
            law = fit_gravity(train.origin, train.destination, train_m, train.count, leaving, arriving, constraint, deterrence)
            values = law.predict(tested.origin, tested.destination, tested_m, *sizes, outflow, inflow)
            rows[f"gravity, {deterrence}{told}"] = values
    return rows


def radiation_rows(task: Comparison) -> dict[str, np.ndarray]:
    """The radiation law in a finite city; the outflow of those who leave their unit is told."""
    tested, graph = task.tested, task.target.graph
    leaving = tested.select(tested.origin != tested.destination)
    every = np.arange(len(graph.geocodes))

    def rows_m(units: np.ndarray) -> np.ndarray:
        return graph.distance_m(np.repeat(units, len(every)), np.tile(every, len(units))).reshape(len(units), len(every))

    outflow = task.margin(leaving, leaving.origin)
    values = radiation(tested.origin, tested.destination, rows_m, task.size[1][:, 1], outflow, finite=True)
    return {"radiation, outflow told": values}


def deep_gravity_rows(task: Comparison) -> dict[str, np.ndarray]:
    """Deep Gravity on the features that the graph network sees."""
    tested = task.tested
    fitted = fit_deep_gravity(
        task.scaling.features(task.source), arrays(task, task.train), arrays(task, task.valid), task.seed, task.device
    )
    distance = task.scaling.relative_distance(task.target, tested)
    outflow = task.margin(tested, tested.origin)
    values = fitted.predict(task.scaling.features(task.target), tested.origin, tested.destination, distance, outflow)
    return {"deep gravity, outflow told": values}


def gmel_rows(task: Comparison) -> dict[str, np.ndarray]:
    """GMEL on the features that the graph network sees."""
    train, tested, graph = task.train, task.tested, task.source.graph
    fitted = fit_gmel(
        task.scaling.features(task.source),
        graph.edge,
        graph.edge_distance_m()[:, None] / task.scaling.edge_m,
        arrays(task, train),
        task.margin(train, train.destination),
        task.margin(train, train.origin),
        arrays(task, task.valid),
        task.seed,
        task.device,
    )
    graph = task.target.graph
    weight = graph.edge_distance_m()[:, None] / task.scaling.edge_m
    distance = task.scaling.relative_distance(task.target, tested)
    return {"gmel": fitted.predict(task.scaling.features(task.target), graph.edge, weight, tested.origin, tested.destination, distance)}


def arrays(task: Comparison, pairs: FlowTable) -> PairArrays:
    """Pairs of the source as the networks read them."""
    return pairs.origin, pairs.destination, task.scaling.relative_distance(task.source, pairs), pairs.count


BASELINES: dict[str, Callable[[Comparison], dict[str, np.ndarray]]] = {
    "gravity": gravity_rows,
    "radiation": radiation_rows,
    "deep_gravity": deep_gravity_rows,
    "gmel": gmel_rows,
}
