"""A trained flow model with everything that a prediction needs: weights, scaling, decoders, and which origins it learned from.

A folder ``<output_dir>/<log>/``: ``od_model.pt`` (plain tensors and values), ``lightgbm.txt`` (LightGBM's own text), ``split.csv``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import torch

from imagery2flow.flows.decoder import load_trees, predict_trees, save_trees
from imagery2flow.flows.graph import RegionGraph, great_circle_m
from imagery2flow.flows.model import FlowModel
from imagery2flow.flows.region import Region
from imagery2flow.flows.scaling import Scaling
from imagery2flow.flows.table import UNIVERSES, FlowTable
from imagery2flow.run.errors import InputError, MissingInputError
from imagery2flow.run.files import load_tensors, save_tensors

FORMAT = "imagery2flow-od-2"
MODEL_FILE, TREES_FILE = "od_model.pt", "lightgbm.txt"
PAIRS_PER_BLOCK = 500_000
SAME_PLACE_M = 1000.0
PLAIN_FIELDS = ("config", "region", "split", "centroid", "constant", "flow_range")


@dataclass(frozen=True)
class EmbeddedRegion:
    """A region as the decoders see it.

    Attributes:
        region: The region.
        hidden: Embeddings by the graph network [num_units, embedding_size].
        tree_inputs: What the trees know of a unit [num_units, dim]: those embeddings, with the features that the network saw if so configured.
    """

    region: Region
    hidden: torch.Tensor
    tree_inputs: np.ndarray


@torch.inference_mode()
def embed_region(model: FlowModel, scaling: Scaling, region: Region, device: torch.device, config: dict[str, Any]) -> EmbeddedRegion:
    """Runs the graph network over a region.

    Raises:
        TableError: The region's features are not the model's.
    """
    graph = scaling.graph_tensors(region, device)
    hidden = model.eval().embed(graph)
    parts = [hidden, graph.features] if config["trees"]["unit_features"] else [hidden]
    return EmbeddedRegion(region, hidden, torch.cat(parts, dim=1).cpu().numpy())


@dataclass(frozen=True)
class FlowRecord:
    """A trained flow model.

    Attributes:
        model: Graph network and bilinear decoder.
        trees: LightGBM decoder.
        scaling: From the source region.
        config: Settings of the training run, as plain values.
        region: Name of the source region.
        split: Split of every origin of the source region: id -> train, valid, test.
        centroid: Where those units lie: id -> longitude and latitude.
        constant: Best constant of the training flows, by universe.
        flow_range: Predictions of the bilinear decoder are held in this range, in commuters; see ``flow_range_of``.
    """

    model: FlowModel
    trees: lightgbm.Booster
    scaling: Scaling
    config: dict[str, Any]
    region: str
    split: dict[str, str]
    centroid: dict[str, tuple[float, float]]
    constant: dict[str, float]
    flow_range: tuple[float, float]
    device: torch.device = field(default=torch.device("cpu"))

    def has_learned(self, graph: RegionGraph) -> np.ndarray:
        """Which units' outflows the model was trained or chosen on [num_units]: same id, same place (tiles of two cities may share ids)."""
        known = [geocode for geocode, name in self.split.items() if name in ("train", "valid")]
        place = pd.DataFrame.from_dict({geocode: self.centroid[geocode] for geocode in known}, orient="index", columns=["x", "y"])
        place = place.reindex(list(graph.geocodes))  # NaN for a unit that the model never saw
        return great_circle_m(graph.longitude, graph.latitude, place.x.to_numpy(), place.y.to_numpy()) < SAME_PLACE_M

    def embed(self, region: Region) -> EmbeddedRegion:
        """Runs the graph network over a region.

        Raises:
            TableError: The region's features are not the model's.
        """
        return embed_region(self.model, self.scaling, region, self.device, self.config)

    @torch.inference_mode()
    def predict(self, embedded: EmbeddedRegion, pairs: FlowTable) -> dict[str, np.ndarray]:
        """Predicted flows of pairs by both decoders: [num_pairs] each, in commuters."""
        distance = self.scaling.relative_distance(embedded.region, pairs)
        relative = torch.tensor(distance, dtype=torch.float32, device=self.device)
        origin, destination = (torch.from_numpy(side).to(self.device) for side in (pairs.origin, pairs.destination))
        parts = []
        for start in range(0, len(pairs), PAIRS_PER_BLOCK):
            block = slice(start, start + PAIRS_PER_BLOCK)
            log_flow = self.model.decode(embedded.hidden, origin[block], destination[block], relative[block])
            parts.append(to_flow(log_flow).clip(*self.flow_range))
        bilinear = np.concatenate(parts) if parts else np.zeros(0)
        return {"bilinear": bilinear, "lightgbm": predict_trees(self.trees, embedded.tree_inputs, pairs, distance)}


def to_flow(log_flow: torch.Tensor) -> np.ndarray:
    """Commuters from their log2 [num_pairs], in double precision."""
    return torch.exp2(log_flow.double()).cpu().numpy()


def flow_range_of(train: FlowTable, universe: str) -> tuple[float, float]:
    """Range of predictions: from the smallest flow of the universe that is trained on to twice the largest training flow.

    A model that saw only flows above 10 says how many commute, given that more than 10 do. Without the lower end, a decoder that meets
    distances longer than any in its own city predicts that nobody does (docs/experiments.md).
    """
    return UNIVERSES[universe] + 1.0, 2.0 * float(train.count.max())


def save_record(folder: Path, record: FlowRecord) -> None:
    """Writes the model's folder."""
    values = {item.name: getattr(record.scaling, item.name) for item in fields(Scaling)}
    scaling = {name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in values.items()}
    scaling["columns"] = list(record.scaling.columns)
    content = {name: getattr(record, name) for name in PLAIN_FIELDS}
    save_tensors(folder / MODEL_FILE, {"format": FORMAT, **content, "scaling": scaling, "model": record.model.state_dict()})
    save_trees(folder / TREES_FILE, record.trees)


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
    stored: dict[str, Any] = {
        name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in content["scaling"].items()
    }
    scaling = Scaling(**{**stored, "columns": tuple(stored["columns"])})
    model = build_model(content["config"], scaling).to(device)
    model.load_state_dict(content["model"])
    plain = {name: content[name] for name in PLAIN_FIELDS}
    return FlowRecord(model=model, trees=load_trees(folder / TREES_FILE), scaling=scaling, device=device, **plain)


def build_model(config: dict[str, Any], scaling: Scaling) -> FlowModel:
    """The network that the settings describe, with whatever weights torch's generator gives."""
    shape = {name: config[name] for name in ("embedding_size", "num_hidden_layers", "dropout", "unit_terms", "pair_distance")}
    return FlowModel(scaling.in_dim, **shape)
