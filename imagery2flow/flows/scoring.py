"""Scores of a flow model on chosen pairs of a region, by universe."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from imagery2flow.flows import metrics
from imagery2flow.flows.metrics import ScoredPairs
from imagery2flow.flows.record import FlowRecord
from imagery2flow.flows.region import Region
from imagery2flow.flows.table import UNIVERSES, FlowTable
from imagery2flow.run.flow_config import DECODERS

Scores = dict[str, dict[str, dict[str, float]]]  # predictor -> universe -> score
Choice = Callable[[FlowTable], np.ndarray]  # pairs -> which of them are scored [num_pairs]


def scored_pairs(region: Region, pairs: FlowTable, predicted: np.ndarray) -> ScoredPairs:
    """Pairs as the metrics read them."""
    distance_m = region.graph.distance_m(pairs.origin, pairs.destination)
    return ScoredPairs(pairs.count, predicted, distance_m, pairs.origin == pairs.destination)


def chosen_pairs(flows: FlowTable, chosen: Choice) -> FlowTable:
    """Every pair of known flow that is scored: zeros where the table is complete, observed flows elsewhere."""
    pairs = flows.universe("positive")
    if flows.has_zeros:
        pairs = flows.universe("full")
        if len(pairs.select(pairs.count > 0)) < len(flows.universe("positive")):
            pairs = with_flows_outside(pairs, flows.universe("positive"))
    return pairs.select(chosen(pairs))


def with_flows_outside(pairs: FlowTable, flows: FlowTable) -> FlowTable:
    """Adds the observed flows that lie outside complete blocks."""
    num_units = len(pairs.geocodes)
    new = flows.select(~np.isin(flows.origin * num_units + flows.destination, pairs.origin * num_units + pairs.destination))
    origin, destination, count = (np.concatenate([getattr(pairs, name), getattr(new, name)]) for name in ("origin", "destination", "count"))
    order = np.lexsort((destination, origin))
    return FlowTable(pairs.geocodes, origin[order], destination[order], count[order], pairs.block)


def in_universe(name: str, pairs: FlowTable) -> np.ndarray:
    """Which of ``chosen_pairs`` belong to a universe [num_pairs]."""
    if name != "full":
        return pairs.count > UNIVERSES[name]
    if pairs.block is None:  # nothing is complete: there is no such universe
        return np.zeros(len(pairs), dtype=bool)
    return (pairs.block[pairs.origin] >= 0) & (pairs.block[pairs.origin] == pairs.block[pairs.destination])


def scores_of(record: FlowRecord, region: Region, chosen: Choice, decoders: Sequence[str] = DECODERS) -> Scores:
    """Scores of each decoder by universe; a universe without chosen pairs has none."""
    pairs = chosen_pairs(region.observed(), chosen)
    predictions = record.predict(record.embed(region), pairs, decoders)
    return {decoder: score_universes(region, pairs, values, record.constant) for decoder, values in predictions.items()}


def score_universes(
    region: Region, pairs: FlowTable, predicted: np.ndarray | None, constants: dict[str, float]
) -> dict[str, dict[str, float]]:
    """Scores by universe.

    Args:
        region: Where the pairs lie.
        pairs: From ``chosen_pairs``.
        predicted: Commuters [num_pairs]; None scores the constants themselves.
        constants: Best constant of the training flows by universe, for the skill.
    """
    scores = {}
    for name, constant in constants.items():
        inside = in_universe(name, pairs)
        if inside.any():
            one_universe = pairs.select(inside)
            level = np.full(len(one_universe), constant)
            values = level if predicted is None else predicted[inside]
            scores[name] = metrics.all_scores(scored_pairs(region, one_universe, values), metrics.cpc(one_universe.count, level))
    return scores
