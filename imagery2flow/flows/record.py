"""A trained flow model with everything that a prediction needs: weights, scaling, decoders, and which units it learned from.

A folder ``<output_dir>/<log>/``: ``od_model.pt`` (plain tensors and values), ``lightgbm.txt`` (LightGBM's own text), ``split.csv``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from imagery2flow.flows.decoder import FlowTrees, PairInputs, load_trees, save_trees
from imagery2flow.flows.graph import RegionGraph, great_circle_m
from imagery2flow.flows.model import FlowModel
from imagery2flow.flows.potentials import Potentials, Process
from imagery2flow.flows.region import EncoderFile, Region
from imagery2flow.flows.scaling import Scaling
from imagery2flow.flows.table import UNIVERSES, FlowTable
from imagery2flow.run.errors import InputError, MissingInputError
from imagery2flow.run.files import existing_file, load_tensors, save_tensors, sha256
from imagery2flow.run.flow_config import TreesConfig

FORMAT = "imagery2flow-od-4"
MODEL_FILE, TREES_FILE = "od_model.pt", "lightgbm.txt"
PAIRS_PER_BLOCK = 500_000
SAME_PLACE_M = 1000.0
PLAIN_FIELDS = ("config", "region", "split_kind", "split", "centroid", "constant", "flow_range")
NETWORK_SHAPE = ("embedding_size", "num_hidden_layers", "dropout", "unit_terms", "pair_distance", "dual_encoder")


@dataclass(frozen=True)
class EmbeddedRegion:
    """A region as the decoders see it.

    Attributes:
        region: The region.
        hidden: Embeddings by the graph network [num_units, embedding_size], or None without one.
        inputs: What the trees know of the units.
    """

    region: Region
    hidden: torch.Tensor | None
    inputs: PairInputs


@dataclass(frozen=True)
class Embedder:
    """The part of a flow model that knows no pairs: scaling, graph network, potentials."""

    model: FlowModel | None
    scaling: Scaling
    potentials: Potentials | None
    trees: TreesConfig
    device: torch.device

    @torch.inference_mode()
    def embed(self, region: Region, own: np.ndarray | None = None) -> EmbeddedRegion:
        """Runs everything over a region.

        Args:
            region: The region.
            own: Cross-fitted potentials of units that the model was fitted to, NaN elsewhere [num_units, 2].

        Raises:
            TableError: The region's features are not the model's.
        """
        graph = self.scaling.graph_tensors(region, self.device)
        features = graph.features.cpu().numpy()
        hidden = None if self.model is None else self.model.eval().embed(graph)
        parts = [np.zeros((len(features), 0), dtype=np.float32)]
        if self.trees.embeddings and hidden is not None:
            parts.append(hidden.cpu().numpy())
        if self.trees.unit_features:
            parts += [features, self.scaling.surroundings(region).astype(np.float32)]
        potential = None
        if self.potentials is not None:
            potential = self.potentials.of(features.astype(np.float64))
            potential = potential if own is None else np.where(np.isnan(own), potential, own)
        return EmbeddedRegion(region, hidden, PairInputs(np.concatenate(parts, axis=1), potential))


@dataclass(frozen=True)
class FlowRecord:
    """A trained flow model.

    Attributes:
        embedder: Scaling, graph network (absent in some controls) and potentials, all from the source region.
        trees: LightGBM decoder.
        config: Settings of the training run, as plain values.
        region: Name of the source region.
        split_kind: What was held out: origin, unit, block, pair.
        split: Split of the units of the source region: id -> train, valid, test.
        centroid: Where all units of the source region lie: id -> longitude and latitude.
        constant: Best constant of the training flows, by universe.
        flow_range: Predictions of the bilinear decoder are held in this range, in commuters; see ``flow_range_of``.
        encoder: The encoder of the features that the model was trained on; None where it is not known.
    """

    embedder: Embedder
    trees: FlowTrees
    config: dict[str, Any]
    region: str
    split_kind: str
    split: dict[str, str]
    centroid: dict[str, tuple[float, float]]
    constant: dict[str, float]
    flow_range: tuple[float, float]
    encoder: EncoderFile | None = None

    @property
    def scaling(self) -> Scaling:
        """From the source region."""
        return self.embedder.scaling

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.embedder.device

    def known_units(self, graph: RegionGraph) -> np.ndarray:
        """Which units are of the source region [num_units]: same id, same place (tiles of two cities may share ids)."""
        place = pd.DataFrame.from_dict(self.centroid, orient="index", columns=["x", "y"]).reindex(list(graph.geocodes))
        return great_circle_m(graph.longitude, graph.latitude, place.x.to_numpy(), place.y.to_numpy()) < SAME_PLACE_M

    def has_learned(self, graph: RegionGraph, pairs: FlowTable) -> np.ndarray:
        """Which pairs the model was trained or chosen on, or whose units it learned from [num_pairs].

        With a split of origins a pair belongs to its origin; with any other, a unit that was learned from at either end is enough.
        """
        label = np.array([self.split.get(geocode, "") for geocode in graph.geocodes], dtype=object)
        seen = self.known_units(graph) & np.isin(label, ("train", "valid"))
        return seen[pairs.origin] if self.split_kind == "origin" else seen[pairs.origin] | seen[pairs.destination]

    def embed(self, region: Region) -> EmbeddedRegion:
        """Runs the graph network over a region; units that it was fitted to get their cross-fitted potentials.

        Raises:
            TableError: The region's features are not the model's.
        """
        potentials = self.embedder.potentials
        if potentials is None:
            return self.embedder.embed(region)
        crossed = pd.DataFrame(potentials.crossed, index=list(self.centroid)).reindex(list(region.graph.geocodes)).to_numpy(copy=True)
        crossed[~self.known_units(region.graph)] = np.nan
        return self.embedder.embed(region, crossed)

    def predict(self, embedded: EmbeddedRegion, pairs: FlowTable) -> dict[str, np.ndarray]:
        """Predicted flows of pairs by each decoder: [num_pairs] each, in commuters."""
        distance = self.scaling.relative_distance(embedded.region, pairs)
        network = {} if embedded.hidden is None else {"bilinear": self.predict_bilinear(embedded.hidden, pairs, distance)}
        return network | {"lightgbm": self.trees.predict(embedded.inputs, pairs, distance)}

    @torch.inference_mode()
    def predict_bilinear(self, hidden: torch.Tensor, pairs: FlowTable, distance: np.ndarray) -> np.ndarray:
        """Predicted flows of pairs by the network [num_pairs]."""
        assert self.embedder.model is not None
        parts = []
        for start in range(0, len(pairs), PAIRS_PER_BLOCK):
            block = slice(start, start + PAIRS_PER_BLOCK)
            origin, destination = (torch.from_numpy(side[block]).to(self.device) for side in (pairs.origin, pairs.destination))
            relative = torch.tensor(distance[block], dtype=torch.float32, device=self.device)
            log_flow = self.embedder.model.decode(hidden, origin, destination, relative)
            parts.append(to_flow(log_flow).clip(*self.flow_range))
        return np.concatenate(parts) if parts else np.zeros(0)


def to_flow(log_flow: torch.Tensor) -> np.ndarray:
    """Commuters from their log2 [num_pairs], in double precision, which Apple's devices do not have: on the CPU."""
    return torch.exp2(log_flow.cpu().double()).numpy()


def flow_range_of(train: FlowTable, universe: str) -> tuple[float, float]:
    """Range of predictions: from the smallest flow of the universe that is trained on to twice the largest training flow.

    A model that saw only flows above 10 says how many commute, given that more than 10 do. Without the lower end, a decoder that meets
    distances longer than any in its own city predicts that nobody does (docs/experiments.md).
    """
    return UNIVERSES[universe] + 1.0, 2.0 * float(train.count.max())


def save_record(folder: Path, record: FlowRecord) -> None:
    """Writes the model's folder."""
    embedder, potentials = record.embedder, record.embedder.potentials
    scaling = as_tensors(embedder.scaling)
    scaling["columns"], scaling["context_m"] = list(embedder.scaling.columns), list(embedder.scaling.context_m)
    stored_potentials = None
    if potentials is not None:
        stored_potentials = {
            "crossed": torch.from_numpy(potentials.crossed),
            "processes": [as_tensors(process) for process in potentials.processes],
        }
    content = {name: getattr(record, name) for name in PLAIN_FIELDS} | {
        "format": FORMAT,
        "encoder": None if record.encoder is None else tuple(record.encoder),  # a plain tuple: nothing else loads as data
        "scaling": scaling,
        "potentials": stored_potentials,
        "tree_columns": torch.from_numpy(record.trees.columns),
        "model": None if embedder.model is None else embedder.model.state_dict(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_trees(folder / TREES_FILE, record.trees.booster)
    save_tensors(folder / MODEL_FILE, content | {"trees_sha256": sha256(folder / TREES_FILE)})


def as_tensors(item: Any) -> dict[str, Any]:
    """The fields of a dataclass of arrays and plain values."""
    values = {part.name: getattr(item, part.name) for part in fields(item)}
    return {name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in values.items()}


def from_tensors(values: dict[str, Any]) -> dict[str, Any]:
    """The reverse of ``as_tensors``."""
    return {name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in values.items()}


def load_record(folder: Path, device: torch.device) -> FlowRecord:
    """Reads a model's folder.

    Raises:
        MissingInputError: A file is absent.
        InputError: A file is not one that stage 4 wrote.
    """
    if not (folder / MODEL_FILE).is_file():
        raise MissingInputError(
            f"OD model {folder / MODEL_FILE} does not exist; train it with train_ODPrediction.py, or name another with --log and --output_dir"
        )
    content = load_tensors(folder / MODEL_FILE, "OD model")
    if content.get("format") != FORMAT:
        raise InputError(
            f"OD model {folder / MODEL_FILE} is not one that this version's train_ODPrediction.py wrote (its format is {content.get('format')}, not {FORMAT}); train it again, or name another with --log and --output_dir"
        )
    stored = from_tensors(content["scaling"])
    scaling = Scaling(**{**stored, "columns": tuple(stored["columns"]), "context_m": tuple(stored["context_m"])})
    model = None
    if content["model"] is not None:
        model = build_model(content["config"], scaling).to(device)
        model.load_state_dict(content["model"])
    potentials = None
    if content["potentials"] is not None:
        outflow, inflow = (Process(**from_tensors(process)) for process in content["potentials"]["processes"])
        potentials = Potentials((outflow, inflow), content["potentials"]["crossed"].numpy())
    embedder = Embedder(model, scaling, potentials, TreesConfig(**content["config"]["trees"]), device)
    check_trees_file(folder / TREES_FILE, content["trees_sha256"])
    trees = FlowTrees(load_trees(folder / TREES_FILE), content["tree_columns"].numpy())
    encoder = None if content["encoder"] is None else EncoderFile(*content["encoder"])
    return FlowRecord(embedder=embedder, trees=trees, encoder=encoder, **{name: content[name] for name in PLAIN_FIELDS})


def check_trees_file(path: Path, expected: str) -> None:
    """Refuses trees that are not those of the model: LightGBM crashes on a damaged file.

    Raises:
        MissingInputError: There is no such file.
        InputError: Its content is another.
    """
    existing_file(path, "LightGBM decoder")
    if sha256(path) != expected:
        raise InputError(
            f"LightGBM decoder {path} is damaged or of another model (its sha256 is not {expected[:12]}...); train the model again"
        )


def build_model(config: dict[str, Any], scaling: Scaling) -> FlowModel:
    """The network that the settings describe, with whatever weights torch's generator gives."""
    return FlowModel(scaling.in_dim, **{name: config[name] for name in NETWORK_SHAPE})
