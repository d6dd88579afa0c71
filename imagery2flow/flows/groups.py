"""CPC by groups of origins or of flows, as the paper's figures show it: by residents, land, distance and observed flow.

Each function returns one row per group, in order: group (text), num (origins or flows that have a CPC), mean and std of their own CPC, each
counted once whatever its flow (std of the sample, NaN below two), and pooled, the CPC of all flows of the group together. The published
figures show mean and std. The two differ: a mean over flows gives the many small ones most of the say, a pooled CPC the few large ones.
A group without any keeps its row, with NaN. What belongs to no group is a last row of its own, where there is any.
"""

from __future__ import annotations

from collections.abc import Sequence

import geopandas as gpd
import numpy as np
import pandas as pd

from imagery2flow.flows.breakdown import bin_names, bin_of, ratio
from imagery2flow.flows.graph import centroid_degrees
from imagery2flow.flows.metrics import ScoredPairs
from imagery2flow.run.earth import METRES_PER_KM, pair_distance_m, utm_epsg

# As published; a bin holds its upper edge, so that 100 commuters are not yet "above 100". The first holds 0 too.
DISTANCE_EDGES_KM = (0.0, 10.0, 20.0, 30.0, 40.0, 50.0, np.inf)
INTENSITY_EDGES = (0.0, 20.0, 40.0, 60.0, 80.0, 100.0, np.inf)  # commuters


def known_pairs(table: pd.DataFrame, units: gpd.GeoSeries) -> tuple[np.ndarray, ScoredPairs]:
    """Pairs of known flow of a table of predictions: their origins [num_pairs] of text, and what is scored.

    Args:
        table: h_geocode, w_geocode, count (commuters, NaN where unknown), prediction.
        units: Index geocode, polygons with a CRS; distances are great-circle distances between their centroids, 0 within a unit.

    Raises:
        KeyError: An id is not among the units.
    """
    known = table.dropna(subset=["count"])
    home, work = positions(known.h_geocode, units.index), positions(known.w_geocode, units.index)
    distance_m = pair_distance_m(*centroid_degrees(units.to_crs(utm_epsg(units))), home, work)
    observed, predicted = known["count"].to_numpy(float), known["prediction"].to_numpy(float)
    return known.h_geocode.to_numpy(object), ScoredPairs(observed, predicted, distance_m, home == work)


def positions(geocodes: pd.Series, index: pd.Index) -> np.ndarray:
    """Where ids stand in an index [num_ids].

    Raises:
        KeyError: An id is not in it.
    """
    found = index.get_indexer(geocodes)
    if (found < 0).any():
        raise KeyError(geocodes[found < 0].iloc[0])
    return found


def population_groups(origins: pd.DataFrame, population: pd.Series, num_groups: int = 10) -> pd.DataFrame:
    """CPC of origins by quantiles of their residents, group 1 the most populous.

    The quantiles are those of the origins that are scored. Origins of equal population are never parted, so that with many of them a
    quantile can be empty.

    Args:
        origins: geocode, observed, predicted, cpc (``breakdown.by_origin``).
        population: Residents by geocode, NaN where unknown (the last row, ``unknown``); other units may be in it.
        num_groups: 10 for deciles.
    """
    residents = population.reindex(origins.geocode).to_numpy(float)
    known = ~np.isnan(residents)
    inner = np.quantile(residents[known], np.arange(1, num_groups) / num_groups) if known.any() else np.empty(0)
    group = np.where(known, num_groups - 1 - np.searchsorted(inner, residents, side="left"), num_groups)
    return of_origins(group, [str(number) for number in range(1, num_groups + 1)], "unknown", origins)


def label_groups(origins: pd.DataFrame, label: pd.Series, order: Sequence[str] | None = None) -> pd.DataFrame:
    """CPC of origins by a label of theirs, such as the prevailing land use or land cover.

    Args:
        origins: geocode, observed, predicted, cpc (``breakdown.by_origin``).
        label: Label by geocode, NaN where there is none; other units may be in it.
        order: Labels to show, in order, also those of no origin; None for those that occur, by name. Origins of another label or
            none are the last row, ``other``.
    """
    found = label.reindex(origins.geocode)
    names = sorted(found.dropna().unique()) if order is None else list(order)
    position = pd.Index(names).get_indexer(pd.Index(found))
    return of_origins(np.where(position < 0, len(names), position), names, "other", origins)


def distance_groups(pairs: ScoredPairs, edges_km: Sequence[float] = DISTANCE_EDGES_KM) -> pd.DataFrame:
    """CPC of flows by distance; those within a unit are in the first bin, as published.

    Raises:
        ValueError: The edges do not rise, or a pair lies outside of them.
    """
    return of_flows(bin_of(pairs.distance_m / METRES_PER_KM, edges_km, "distances in km", right_closed=True), edges_km, pairs)


def intensity_groups(pairs: ScoredPairs, edges: Sequence[float] = INTENSITY_EDGES) -> pd.DataFrame:
    """CPC of flows by the observed flow, in commuters; ``breakdown.by_volume`` says how far such bins can be read.

    Raises:
        ValueError: The edges do not rise, or a flow lies outside of them.
    """
    return of_flows(bin_of(pairs.observed, edges, "observed flows", right_closed=True), edges, pairs)


def of_flows(group: np.ndarray, edges: Sequence[float], pairs: ScoredPairs) -> pd.DataFrame:
    """The table of groups of flows [num_pairs]."""
    shared = 2 * np.minimum(pairs.observed, pairs.predicted)
    return group_table(group, bin_names(edges, right_closed=True), shared, pairs.observed + pairs.predicted)


def of_origins(group: np.ndarray, names: Sequence[str], rest: str, origins: pd.DataFrame) -> pd.DataFrame:
    """The table of groups of origins [num_origins]; group len(names) is the rest, left out where there is none."""
    total = (origins.observed + origins.predicted).to_numpy(float)
    shared = np.where(total > 0, origins.cpc.to_numpy(float) * total, 0.0)  # a sum over the flows of the origin
    table = group_table(group, [*names, rest], shared, total)
    return table if (group == len(names)).any() else table[:-1]


def group_table(group: np.ndarray, names: Sequence[str], shared: np.ndarray, total: np.ndarray) -> pd.DataFrame:
    """Means, deviations and pooled CPC.

    Args:
        group: Group of each item, 0 to len(names) - 1: [num_items].
        names: Of the groups.
        shared: Twice the common part of the item's observed and predicted flow: [num_items].
        total: Observed plus predicted flow: [num_items].

    Returns:
        Columns group, num, mean, std, pooled; an item whose flows are all 0 has no CPC and is not in num.
    """
    has_cpc = total > 0
    group, shared, total = group[has_cpc], shared[has_cpc], total[has_cpc]
    size = len(names)
    num = np.bincount(group, minlength=size)  # [num_groups], as all below
    cpc = shared / total
    mean = ratio(np.bincount(group, cpc, size), num)
    variance = ratio(np.bincount(group, (cpc - mean[group]) ** 2, size), num - 1)
    pooled = ratio(np.bincount(group, shared, size), np.bincount(group, total, size))
    return pd.DataFrame({"group": list(names), "num": num, "mean": mean, "std": np.sqrt(variance), "pooled": pooled})
