"""How a region becomes what the network sees.

Everything here is learned from the source region and travels with the model, so that numbers mean the same in another city.

Features are standardised. Columns named by numbers are an image embedding; where they are many, they are reduced to principal components of unit
variance. Columns with a name, such as the bands' means, are quantities of their own and stay as they are. A source city has a few hundred
units: a network that reads all 512 columns of a ResNet-18 embedding learns its units by heart (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
import torch
from sklearn.decomposition import PCA

from imagery2flow.flows.attention import GraphTensors
from imagery2flow.flows.context import surroundings
from imagery2flow.flows.graph import RegionGraph
from imagery2flow.flows.region import Region
from imagery2flow.flows.table import FlowTable
from imagery2flow.run.errors import TableError, shown

SMALLEST_AREA_KM2 = 1e-6
SMALLEST_STD = 1e-12  # below, a column is constant
SMALLEST_SHARE = 1e-9  # of the variance, below which a component is rounding error


@dataclass(frozen=True)
class Scaling:
    """From a region to tensors.

    Attributes:
        columns: Names of the embedding's columns, in order.
        mean: Per column [num_columns], the logarithm of the area last if it is used.
        std: Per column; 1 for a constant one.
        projection: From standardised columns to what the network sees [len(mean), in_dim], or None for the columns themselves.
        distance_m: Largest distance between units of the source region: relative distances of pairs are 0..1 there.
        edge_m: Longest edge of the source region's graph.
        area_feature: Whether the logarithm of the unit's area is a column.
        low: Smallest feature of the source region's units [in_dim].
        high: Largest [in_dim].
    """

    columns: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    projection: np.ndarray | None
    distance_m: float
    edge_m: float
    area_feature: bool
    low: np.ndarray
    high: np.ndarray

    @property
    def in_dim(self) -> int:
        """Number of features that the network sees."""
        return len(self.mean) if self.projection is None else self.projection.shape[1]

    def features(self, region: Region) -> np.ndarray:
        """Features of a region's units as the network sees them: [num_units, in_dim].

        Raises:
            TableError: The region's columns are not the model's.
        """
        scaled = self.standardised(region)
        return np.clip(scaled if self.projection is None else scaled @ self.projection, self.low, self.high)

    def quantities(self, region: Region) -> np.ndarray:
        """Columns that mean the same anywhere: those with a name and the area, also beyond the range of the source region's units [num_units, dim].

        Where no column has a name: the features.

        Raises:
            TableError: The region's columns are not the model's.
        """
        if all(column.isdigit() for column in self.columns):
            return self.features(region)
        numbered = [number for number, column in enumerate(self.columns) if column.isdigit()]
        return np.delete(self.standardised(region), numbered, axis=1)

    def surroundings(self, region: Region, radii_m: Sequence[float]) -> np.ndarray:
        """Averages over the surroundings, of the named columns or, where there are none, of all features: [num_units, around]."""
        named = [number for number, column in enumerate(self.columns) if not column.isdigit()]
        return surroundings(self.standardised(region)[:, named] if named else self.features(region), region, radii_m)

    def standardised(self, region: Region) -> np.ndarray:
        """Columns of zero mean and unit deviation in the source region: [num_units, num_columns].

        Raises:
            TableError: The region's columns are not the model's.
        """
        self.check_columns(region)
        order = [region.columns.index(column) for column in self.columns]
        return (raw_features(region.embeddings[:, order], region.graph, self.area_feature) - self.mean) / self.std

    def check_columns(self, region: Region) -> None:
        """Refuses a region with other columns of features than the source region.

        Raises:
            TableError: The region's columns are not the model's.
        """
        if set(region.columns) != set(self.columns):
            extra, absent = sorted(set(region.columns) - set(self.columns)), sorted(set(self.columns) - set(region.columns))
            raise TableError(
                f"the features of {region.name} have {len(region.columns)} columns but the model was trained on {len(self.columns)} "
                f"(missing: {shown(absent) or 'none'}; unknown: {shown(extra) or 'none'}); embed this region with the encoder that the model was trained with"
            )

    def graph_tensors(self, region: Region, device: torch.device) -> GraphTensors:
        """The region as tensors.

        Raises:
            TableError: The region's columns are not the model's.
        """
        weight = region.graph.edge_distance_m() / self.edge_m
        return GraphTensors(
            features=torch.tensor(self.features(region), dtype=torch.float32, device=device),
            edge=torch.from_numpy(region.graph.edge).to(device),
            edge_weight=torch.tensor(weight[:, None], dtype=torch.float32, device=device),
        )

    def relative_distance(self, region: Region, pairs: FlowTable) -> np.ndarray:
        """Distance of pairs relative to the source region's largest: [num_pairs]."""
        return region.graph.distance_m(pairs.origin, pairs.destination) / self.distance_m


def raw_features(embeddings: np.ndarray, graph: RegionGraph, area_feature: bool) -> np.ndarray:
    """Embeddings [num_units, dim], and the logarithm of the area in km2 behind them if asked for: [num_units, dim or dim + 1]."""
    if not area_feature:
        return embeddings.astype(np.float64)
    log_area = np.log(np.maximum(graph.area_km2, SMALLEST_AREA_KM2))
    return np.concatenate([embeddings.astype(np.float64), log_area[:, None]], axis=1)


def fit_scaling(region: Region, area_feature: bool, num_components: int) -> Scaling:
    """Learns the scaling from the source region: all of its units, no flows.

    Args:
        region: The source region.
        area_feature: Add the logarithm of each unit's area.
        num_components: Principal components to which the numbered columns are reduced if there are more; 0 keeps the columns.
    """
    raw = raw_features(region.embeddings, region.graph, area_feature)
    mean, std = moments(raw)
    numbered = np.array([column.isdigit() for column in region.columns] + [False] * area_feature, dtype=bool)
    reduce = 0 < num_components < numbered.sum()
    projection = fit_projection((raw - mean) / std, numbered, num_components) if reduce else None
    seen = (raw - mean) / std if projection is None else (raw - mean) / std @ projection
    return Scaling(
        columns=region.columns,
        mean=mean,
        std=std,
        projection=projection,
        distance_m=max(largest_distance_m(region), 1.0),
        edge_m=max(float(region.graph.edge_distance_m().max(initial=0.0)), 1.0),
        area_feature=area_feature,
        low=seen.min(axis=0),
        high=seen.max(axis=0),
    )


def moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of columns [num_units, dim]; the deviation of a constant one is 1."""
    std = values.std(axis=0)
    return values.mean(axis=0), np.where(std > SMALLEST_STD, std, 1.0)


def fit_projection(scaled: np.ndarray, numbered: np.ndarray, num_components: int) -> np.ndarray:
    """Principal components of unit variance of some columns; the others pass through behind them.

    Args:
        scaled: Standardised columns [num_units, num_columns].
        numbered: Which of them are reduced [num_columns].
        num_components: At most so many components.

    Returns:
        [num_columns, components kept + other columns].
    """
    analysis = PCA(min(num_components, len(scaled)), svd_solver="full").fit(scaled[:, numbered])
    real = analysis.explained_variance_ratio_ > SMALLEST_SHARE
    components = (analysis.components_[real] / np.sqrt(analysis.explained_variance_[real, None])).T
    projection = np.zeros((len(numbered), components.shape[1] + (~numbered).sum()))
    projection[numbered, : components.shape[1]] = components
    projection[~numbered, components.shape[1] :] = np.eye((~numbered).sum())
    return projection


def largest_distance_m(region: Region) -> float:
    """Largest distance between two units of one region: the two are among the corners of the convex hull, or in the user's table."""
    graph, largest = region.graph, 0.0
    for units in region.parts():
        flat = np.stack([np.cos(np.radians(graph.latitude[units].mean())) * graph.longitude[units], graph.latitude[units]], axis=1)
        hull = shapely.get_coordinates(shapely.convex_hull(shapely.multipoints(flat)))
        corners = units[(flat[:, None] == hull).all(axis=2).any(axis=1)]
        origin, destination = (grid.reshape(-1) for grid in np.meshgrid(corners, units, indexing="ij"))
        largest = max(largest, float(graph.distance_m(origin, destination).max()))
    return largest if graph.table_m is None else max(largest, float(np.nanmax(graph.table_m)))
