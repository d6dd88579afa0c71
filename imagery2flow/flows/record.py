"""A trained flow model with everything that a prediction needs: weights, scaling, decoders, and which origins it learned from.

A folder ``<output_dir>/<log>/``: ``od_model.pt`` (plain tensors and values), ``lightgbm.txt`` (LightGBM's own text), ``split.csv``. All scaling
comes from the source region and travels with the model, so that numbers mean the same in another city.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import shapely
import torch

from imagery2flow.flows.decoder import load_trees, predict_trees, save_trees
from imagery2flow.flows.graph import RegionGraph
from imagery2flow.flows.model import FlowModel, GraphTensors
from imagery2flow.flows.region import Region
from imagery2flow.flows.table import FlowTable
from imagery2flow.run.errors import InputError, TableError, shown
from imagery2flow.run.files import load_tensors, save_tensors

FORMAT = "imagery2flow-od-1"
MODEL_FILE, TREES_FILE = "od_model.pt", "lightgbm.txt"
SMALLEST_AREA_KM2 = 1e-6
PAIRS_PER_BLOCK = 500_000


@dataclass(frozen=True)
class Scaling:
    """How a region becomes what the network sees; learned from the source region.

    Attributes:
        columns: Names of the features, in order.
        mean: Per feature, the logarithm of the area last if it is used.
        std: Per feature; 1 for a constant one.
        distance_m: Largest distance between units of the source region: relative distances of pairs are 0..1 there.
        edge_m: Longest edge of the source region's graph.
        area_feature: Whether the logarithm of the unit's area is a feature.
    """

    columns: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    distance_m: float
    edge_m: float
    area_feature: bool

    def graph_tensors(self, region: Region, device: torch.device) -> GraphTensors:
        """The region as tensors.

        Raises:
            TableError: The region's features are not the model's.
        """
        if set(region.columns) != set(self.columns):
            extra, absent = sorted(set(region.columns) - set(self.columns)), sorted(set(self.columns) - set(region.columns))
            raise TableError(
                f"the features of {region.name} have {len(region.columns)} columns but the model was trained on {len(self.columns)} "
                f"(missing: {shown(absent) or 'none'}; unknown: {shown(extra) or 'none'}); embed this region with the encoder that the model was trained with"
            )
        order = [region.columns.index(column) for column in self.columns]
        region = replace(region, columns=self.columns, embeddings=region.embeddings[:, order])
        scaled = (raw_features(region, self.area_feature) - self.mean) / self.std
        weight = region.graph.edge_distance_m() / self.edge_m
        return GraphTensors(
            features=torch.tensor(scaled, dtype=torch.float32, device=device),
            edge=torch.from_numpy(region.graph.edge).to(device),
            edge_weight=torch.tensor(weight[:, None], dtype=torch.float32, device=device),
        )

    def relative_distance(self, region: Region, pairs: FlowTable) -> np.ndarray:
        """Distance of pairs relative to the source region's largest: [num_pairs]."""
        return region.graph.distance_m(pairs.origin, pairs.destination) / self.distance_m


def raw_features(region: Region, area_feature: bool) -> np.ndarray:
    """Embeddings, and the logarithm of the area in km2 behind them: [num_units, dim]."""
    if not area_feature:
        return region.embeddings.astype(np.float64)
    log_area = np.log(np.maximum(region.graph.area_km2, SMALLEST_AREA_KM2))
    return np.concatenate([region.embeddings.astype(np.float64), log_area[:, None]], axis=1)


def fit_scaling(region: Region, area_feature: bool) -> Scaling:
    """Learns the scaling from the source region: all of its units, no flows."""
    features = raw_features(region, area_feature)
    std = features.std(axis=0)
    return Scaling(
        columns=region.columns,
        mean=features.mean(axis=0),
        std=np.where(std > 1e-12, std, 1.0),
        distance_m=max(largest_distance_m(region.graph), 1.0),
        edge_m=max(float(region.graph.edge_distance_m().max(initial=0.0)), 1.0),
        area_feature=area_feature,
    )


def largest_distance_m(graph: RegionGraph) -> float:
    """Largest distance between two units: the two are among the corners of the convex hull, or in the user's table."""
    flat = np.stack([np.cos(np.radians(graph.latitude.mean())) * graph.longitude, graph.latitude], axis=1)  # [num_units, 2]
    hull = shapely.get_coordinates(shapely.convex_hull(shapely.multipoints(flat)))
    corners = np.flatnonzero((flat[:, None] == hull).all(axis=2).any(axis=1))
    origin, destination = (grid.reshape(-1) for grid in np.meshgrid(corners, np.arange(len(flat)), indexing="ij"))
    largest = float(graph.distance_m(origin, destination).max())
    return largest if graph.table_m is None else max(largest, float(np.nanmax(graph.table_m)))


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
        constant: Best constant of the training flows, by universe.
        log2_limit: Predictions of the bilinear decoder are cut here: one doubling above the largest training flow.
    """

    model: FlowModel
    trees: lightgbm.Booster
    scaling: Scaling
    config: dict[str, Any]
    region: str
    split: dict[str, str]
    constant: dict[str, float]
    log2_limit: float
    device: torch.device = field(default=torch.device("cpu"))

    @torch.inference_mode()
    def embed(self, region: Region) -> torch.Tensor:
        """Embeddings of a region's units by the graph network: [num_units, embedding_size]."""
        return self.model.eval().embed(self.scaling.graph_tensors(region, self.device))

    @torch.inference_mode()
    def predict(self, region: Region, pairs: FlowTable, hidden: torch.Tensor) -> dict[str, np.ndarray]:
        """Predicted flows of pairs by both decoders: [num_pairs] each, in commuters."""
        distance = self.scaling.relative_distance(region, pairs)
        parts = []
        for start in range(0, len(pairs), PAIRS_PER_BLOCK):
            block = slice(start, start + PAIRS_PER_BLOCK)
            origin, destination = (torch.from_numpy(side[block]).to(self.device) for side in (pairs.origin, pairs.destination))
            log_flow = self.model.decode(
                hidden, origin, destination, torch.tensor(distance[block], dtype=torch.float32, device=self.device)
            )
            parts.append(torch.exp2(log_flow.clamp(max=self.log2_limit)).double().cpu().numpy())
        bilinear = np.concatenate(parts) if parts else np.zeros(0)
        return {"bilinear": bilinear, "lightgbm": predict_trees(self.trees, hidden.cpu().numpy(), pairs, distance)}


def save_record(folder: Path, record: FlowRecord) -> None:
    """Writes the model's folder."""
    scaling = {
        item.name: value.tolist() if isinstance(value := getattr(record.scaling, item.name), np.ndarray) else value
        for item in fields(Scaling)
    }
    scaling["columns"] = list(record.scaling.columns)
    content = {name: getattr(record, name) for name in ("config", "region", "split", "constant", "log2_limit")}
    save_tensors(folder / MODEL_FILE, {"format": FORMAT, **content, "scaling": scaling, "model": record.model.state_dict()})
    save_trees(folder / TREES_FILE, record.trees)


def load_record(folder: Path, device: torch.device) -> FlowRecord:
    """Reads a model's folder.

    Raises:
        MissingInputError: A file is absent.
        InputError: A file is not one that stage 4 wrote.
    """
    content = load_tensors(folder / MODEL_FILE, "OD model")
    if content.get("format") != FORMAT:
        raise InputError(
            f"OD model {folder / MODEL_FILE} is not one that train_ODPrediction.py wrote (its format is {content.get('format')}, not {FORMAT}); name another with --log and --output_dir"
        )
    stored, config = content["scaling"], content["config"]
    scaling = Scaling(**{**stored, "columns": tuple(stored["columns"]), "mean": np.array(stored["mean"]), "std": np.array(stored["std"])})
    model = build_model(config, scaling).to(device)
    model.load_state_dict(content["model"])
    others = {name: content[name] for name in ("config", "region", "split", "constant", "log2_limit")}
    return FlowRecord(model=model, trees=load_trees(folder / TREES_FILE), scaling=scaling, device=device, **others)


def build_model(config: dict[str, Any], scaling: Scaling) -> FlowModel:
    """The network that the settings describe, with whatever weights torch's generator gives."""
    return FlowModel(len(scaling.mean), config["embedding_size"], config["num_hidden_layers"], config["pair_distance"])
