"""The flow model's work done the plain way: batches of units as the public code draws them, bare matrix products and trees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from imagery2flow.flows.attention import GraphTensors
from imagery2flow.flows.epochs import PairTensors
from imagery2flow.flows.model import FlowModel

BATCH_UNITS = 512
LEARNING_RATE, GRAD_NORM = 1e-5, 1.0


@dataclass(frozen=True)
class Hop:
    """The edges of one layer: from the units that it reads to those that it gives, by positions in both.

    Attributes:
        source: Units read, those given first.
        num_given: How many of them are given.
        edge: Positions of neighbour and unit [2, num_edges].
        weight: [num_edges, 1].
    """

    source: Tensor
    num_given: int
    edge: Tensor
    weight: Tensor


def published_epoch(model: FlowModel, graph: GraphTensors, pairs: PairTensors, order: Tensor, sigma: float) -> int:
    """One epoch as the public code trains: random batches of units with all neighbours for as many hops as there are layers.

    Of the pairs those with both ends in the batch take part, whose ends are looked up pair by pair; the balanced loss is the full matrix.

    Args:
        model: Its layers, bilinear form and offset are trained.
        graph: The whole graph.
        pairs: Training pairs.
        order: Units in random order [num_units].
        sigma: Of the balanced loss.

    Returns:
        Number of pairs that were trained on.
    """
    optimizer, trained = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE), 0
    for batch in order.split(BATCH_UNITS):
        hidden = embed_batch(model, graph, batch)
        inside = torch.isin(pairs.origin, batch) & torch.isin(pairs.destination, batch)
        if not inside.any():
            continue
        chosen = pairs.select(inside)
        origin, destination = (torch.cat([torch.where(batch == unit)[0] for unit in end]) for end in (chosen.origin, chosen.destination))
        predicted = nn.functional.bilinear(hidden[origin], hidden[destination], model.interaction[None])[:, 0] + model.offset
        distance = (predicted[:, None] - chosen.count.log2()) ** 2 / (2 * sigma**2)  # [num_pairs, num_pairs]
        loss = nn.functional.cross_entropy(-distance, torch.arange(len(chosen), device=distance.device)) * 2 * sigma**2
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), GRAD_NORM)
        optimizer.step()
        trained += len(chosen)
    return trained


def embed_batch(model: FlowModel, graph: GraphTensors, batch: Tensor) -> Tensor:
    """Embeddings of some units [num_batch, embedding_size]; each layer is run for the units that the next one reads, no more."""
    hops: list[Hop] = []
    needed = batch
    for _ in model.layers:
        hops.append(hop_to(graph, needed))
        needed = hops[-1].source
    hidden = graph.features[needed]
    for layer, hop in zip(model.layers, reversed(hops), strict=True):
        hidden = torch.relu(layer((hidden, hidden[: hop.num_given]), hop.edge, hop.weight))
    return hidden


def hop_to(graph: GraphTensors, given: Tensor) -> Hop:
    """All neighbours of some units, and the edges from them."""
    leads = torch.isin(graph.edge[1], given)
    edge = graph.edge[:, leads]
    others = torch.unique(edge[0][~torch.isin(edge[0], given)])
    source = torch.cat([given, others])
    place = torch.empty(len(graph.features), dtype=torch.int64, device=source.device)
    place[source] = torch.arange(len(source), device=source.device)
    return Hop(source, len(given), place[edge], graph.edge_weight[leads])


def bare_bilinear(hidden: np.ndarray, interaction: np.ndarray, origins: np.ndarray, offset: float) -> np.ndarray:
    """2 to the h_o . A h_d + b of some origins and every destination: nothing but matrix products and the power [num_origins, num_units]."""
    return np.exp2(hidden[origins] @ interaction @ hidden.T + offset)
