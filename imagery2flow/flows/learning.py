"""Fits a flow model to the training pairs of a region: network and trees.

The one place that knows the order: scaling from all units, the network on training pairs with the epoch chosen on validation pairs, then the trees for the
source region and those for others.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from imagery2flow.flows.baselines import best_constant
from imagery2flow.flows.fitting import NetworkFitting
from imagery2flow.flows.model import FlowModel
from imagery2flow.flows.record import Embedder, FlowRecord, flow_range_of
from imagery2flow.flows.region import Region
from imagery2flow.flows.sampling import PairSample, draw_sample, every_pair
from imagery2flow.flows.scaling import Scaling, fit_scaling
from imagery2flow.flows.splits import Split
from imagery2flow.flows.table import UNIVERSES, FlowTable
from imagery2flow.flows.tree_decoder import Lesson, fit_home, fit_transfer
from imagery2flow.run.device import deterministic_on_cpu
from imagery2flow.run.flow_config import FlowTrainingConfig
from imagery2flow.run.stage import Ledger


@dataclass(frozen=True)
class Learned:
    """A trained model and the history of its network's epochs."""

    record: FlowRecord
    history: list[dict[str, float]]


def learn(
    config: FlowTrainingConfig,
    region: Region,
    split: Split,
    ledger: Ledger,
    device: torch.device,
    network: bool = True,
    parts: Path | None = None,
) -> Learned:
    """Fits everything.

    Args:
        config: Settings.
        region: Source region with flows.
        split: What is trained on and validated on.
        ledger: Takes what was chosen.
        device: Where the network computes.
        network: Whether to fit the graph network; without it only the trees decode.
        parts: Folder for the network's checkpoint; None keeps none. Trees are fitted again.

    Raises:
        InputError: The training diverged.
    """
    scaling = fit_scaling(region, config.area_feature, config.num_components)
    ledger.say(f"{len(region.columns):,} columns of features, of which the network sees {scaling.in_dim:,}")
    pairs = region.observed().universe(config.universe)
    label = split.of(pairs)
    train, valid = (pairs.select(label == name) for name in ("train", "valid"))
    sample = draw_sample(config, train)
    with deterministic_on_cpu(device):
        model, history = fit_network(config, region, scaling, sample, valid, ledger, device, parts) if network else (None, [])
        lesson = Lesson(config, Embedder(model, scaling, device).see(region), train, valid)
        home, transfer = fit_home(lesson), fit_transfer(lesson) if config.trees.transfer_trees else None
    record = FlowRecord(
        embedder=Embedder(model, scaling, device),
        home=home,
        transfer=transfer,
        config=dataclasses.asdict(config),
        region=region.name,
        split_kind=split.kind,
        split=split_by_id(split, region),
        centroid=dict(
            zip(region.graph.geocodes, zip(region.graph.longitude.tolist(), region.graph.latitude.tolist(), strict=True), strict=True)
        ),
        constant=fit_constants(region.observed(), split),
        flow_range=flow_range_of(train, config.universe),
        encoder=region.encoder,
    )
    return Learned(record, history)


def fit_network(
    config: FlowTrainingConfig,
    region: Region,
    scaling: Scaling,
    sample: PairSample,
    valid: FlowTable,
    ledger: Ledger,
    device: torch.device,
    parts: Path | None,
) -> tuple[FlowModel, list[dict[str, float]]]:
    """The graph network of the best epoch, and the history of all."""
    fitting = NetworkFitting(config, region, scaling, sample, every_pair(valid), device)
    return fitting.run(ledger, parts), fitting.history


def split_by_id(split: Split, region: Region) -> dict[str, str]:
    """Split of the units that have one; where pairs were split, every unit was learned from."""
    label = np.full(len(region.graph.geocodes), "train", dtype=object) if split.kind == "pair" else split.label
    return {geocode: str(name) for geocode, name in zip(region.graph.geocodes, label, strict=True) if name}


def fit_constants(flows: FlowTable, split: Split) -> dict[str, float]:
    """Best constant of the training pairs of every universe that the table supports."""
    constants = {}
    for name in universes_of(flows):
        pairs = flows.universe(name)
        train = pairs.count[split.of(pairs) == "train"]
        if len(train):
            constants[name] = best_constant(train)
    return constants


def universes_of(flows: FlowTable) -> list[str]:
    """Universes that a table supports: ``full`` only where absent pairs are known to be zeros."""
    return [name for name in UNIVERSES if name != "full" or flows.has_zeros]
