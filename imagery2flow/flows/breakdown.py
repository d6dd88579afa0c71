"""Where a prediction is good and where it is not: scores by origin, by distance and by volume, and its calibration, as tables.

Reads pairs with their observed and predicted flow (``metrics.ScoredPairs``), writes nothing. Names of dimensions: num_pairs, num_groups, the
rows of a table. The three breakdowns share the columns num_pairs, observed and predicted (sums, in commuters), cpc and mae (``metrics``); a
group without pairs keeps its row, with sums of 0 and scores of NaN, so that tables of several predictors have the same rows. Sums over the
rows are those of all pairs: no pair is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from imagery2flow.flows.metrics import ScoredPairs
from imagery2flow.run.earth import METRES_PER_KM

DISTANCE_EDGES_KM = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, np.inf)
VOLUME_EDGES = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, np.inf)  # commuters
WITHIN_UNIT = "within a unit"


def by_origin(origin_geocode: np.ndarray, pairs: ScoredPairs) -> pd.DataFrame:
    """Scores of the outflow of each origin that has pairs, sorted by id.

    Args:
        origin_geocode: Id of the home unit of each pair: [num_pairs] of text.
        pairs: What is scored.

    Returns:
        Columns geocode, num_pairs, observed, predicted, cpc, mae.
    """
    assert len(origin_geocode) == len(pairs)
    group, geocode = pd.factorize(origin_geocode, sort=True)
    assert (group >= 0).all(), "every pair has an origin"
    table = group_scores(group, len(geocode), pairs)
    table.insert(0, "geocode", np.asarray(geocode, dtype=object))
    return table


def by_distance(pairs: ScoredPairs, edges_km: Sequence[float] = DISTANCE_EDGES_KM) -> pd.DataFrame:
    """Scores by the distance between the units of a pair; the pairs within one unit, whatever their distance, are the first row.

    Args:
        pairs: What is scored.
        edges_km: Edges of the bins in kilometres, rising; a bin holds its lower edge and not its upper.

    Returns:
        Columns distance_km (text: ``within a unit``, ``0-1``, ..., ``50 or more``), from_km, to_km (NaN within a unit), num_pairs,
        observed, predicted, cpc, mae.

    Raises:
        ValueError: The edges do not rise, or a pair lies outside of them.
    """
    group = np.zeros(len(pairs), dtype=np.int64)
    group[~pairs.same_unit] = 1 + bin_of(pairs.distance_m[~pairs.same_unit] / METRES_PER_KM, edges_km, "distances in km")
    table = group_scores(group, len(edges_km), pairs)
    table.insert(0, "distance_km", [WITHIN_UNIT, *bin_names(edges_km)])
    table.insert(1, "from_km", [np.nan, *edges_km[:-1]])
    table.insert(2, "to_km", [np.nan, *edges_km[1:]])
    return table


def by_volume(pairs: ScoredPairs, edges: Sequence[float] = VOLUME_EDGES) -> pd.DataFrame:
    """Scores by the observed flow of a pair.

    Bins chosen by the truth flatter no model: at their upper end all predict too few, at their lower end too many (regression to the
    mean). Read them across predictors; ``calibration`` tells whether the predictions are right on average.

    Args:
        pairs: What is scored.
        edges: Edges of the bins in commuters, rising; a bin holds its lower edge and not its upper: of counts, [0, 1) are the zeros.

    Returns:
        Columns volume (text: ``0-1``, ..., ``100 or more``), from_flow, to_flow, num_pairs, observed, predicted, cpc, mae.

    Raises:
        ValueError: The edges do not rise, or a flow lies outside of them.
    """
    table = group_scores(bin_of(pairs.observed, edges, "observed flows"), len(edges) - 1, pairs)
    table.insert(0, "volume", bin_names(edges))
    table.insert(1, "from_flow", edges[:-1])
    table.insert(2, "to_flow", edges[1:])
    return table


def calibration(pairs: ScoredPairs, num_bins: int = 10) -> pd.DataFrame:
    """Mean observed against mean predicted flow, in bins of equal number of pairs from the lowest to the highest predictions.

    Equal predictions keep the order of the pairs, and an edge between bins may part them. Each of them counts with the mean observation of
    all of them, so that the order of the table, which says nothing of the predictor, changes no value: a constant has one ratio in every bin.

    Args:
        pairs: What is scored.
        num_bins: Number of bins, 10 for deciles; their numbers of pairs differ by at most 1.

    Returns:
        Columns bin (1 holds the lowest predictions), num_pairs, mean_predicted, mean_observed (commuters), and ratio, observed by predicted:
        1 is calibrated, above 1 too few are predicted, NaN where nothing is.

    Raises:
        ValueError: There is no bin.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins is {num_bins}; give 1 or more")
    order = np.argsort(pairs.predicted, kind="stable")
    group = np.empty(len(pairs), dtype=np.int64)
    group[order] = np.arange(len(pairs)) * num_bins // max(len(pairs), 1)
    num_pairs = np.bincount(group, minlength=num_bins)  # [num_bins]
    predicted = ratio(np.bincount(group, pairs.predicted, num_bins), num_pairs)
    observed = ratio(np.bincount(group, mean_among_ties(pairs), num_bins), num_pairs)
    return pd.DataFrame(
        {
            "bin": np.arange(1, num_bins + 1),
            "num_pairs": num_pairs,
            "mean_predicted": predicted,
            "mean_observed": observed,
            "ratio": ratio(observed, predicted),
        }
    )


def mean_among_ties(pairs: ScoredPairs) -> np.ndarray:
    """Mean observed flow of all pairs that have the same prediction as a pair: [num_pairs]."""
    _, tie, size = np.unique(pairs.predicted, return_inverse=True, return_counts=True)
    return (np.bincount(tie, pairs.observed, len(size)) / size)[tie]


def group_scores(group: np.ndarray, num_groups: int, pairs: ScoredPairs) -> pd.DataFrame:
    """Scores of every group at once.

    Args:
        group: Group of each pair, 0 to num_groups - 1: [num_pairs].
        num_groups: Number of rows.
        pairs: What is scored.

    Returns:
        Columns num_pairs, observed, predicted, cpc, mae: one row per group.
    """
    num_pairs = np.bincount(group, minlength=num_groups)  # [num_groups], as all below
    observed = np.bincount(group, pairs.observed, num_groups)
    predicted = np.bincount(group, pairs.predicted, num_groups)
    common = np.bincount(group, np.minimum(pairs.observed, pairs.predicted), num_groups)
    absolute = np.bincount(group, np.abs(pairs.observed - pairs.predicted), num_groups)
    return pd.DataFrame(
        {
            "num_pairs": num_pairs,
            "observed": observed,
            "predicted": predicted,
            "cpc": ratio(2 * common, observed + predicted),
            "mae": ratio(absolute, num_pairs),
        }
    )


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Element by element, NaN where the denominator is 0 or NaN: same shape."""
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)


def bin_of(values: np.ndarray, edges: Sequence[float], what: str, right_closed: bool = False) -> np.ndarray:
    """Half-open bin of each value, 0 to len(edges) - 2: [num_pairs].

    Args:
        values: [num_pairs].
        edges: Rising.
        what: What to call the values in a message.
        right_closed: Whether a bin holds its upper edge, (edge, next edge], and the first its lower one too; else [edge, next edge).

    Raises:
        ValueError: The edges do not rise, or a value lies outside of them, so that its pair would be left out.
    """
    if len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise ValueError(f"the edges {tuple(edges)} of {what} do not rise; give two or more in rising order")
    outside = (values < edges[0]) | ((values > edges[-1]) if right_closed else (values >= edges[-1]))
    if outside.any():
        raise ValueError(f"{outside.sum():,} {what} lie outside of the edges {tuple(edges)}; begin with 0 and end with inf")
    if right_closed:
        return np.maximum(np.searchsorted(np.asarray(edges), values, side="left") - 1, 0)
    return np.searchsorted(np.asarray(edges), values, side="right") - 1


def bin_names(edges: Sequence[float], right_closed: bool = False) -> list[str]:
    """Names of the bins: ``0-1``, ``1-2``, ..., ``50 or more``, or ``above 50`` where 50 belongs to the bin before."""
    last = "above {:g}" if right_closed else "{:g} or more"
    return [last.format(low) if np.isinf(high) else f"{low:g}-{high:g}" for low, high in pairwise(edges)]
