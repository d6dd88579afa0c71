"""The flow model: graph attention network over neighbouring units, bilinear decoder, losses (paper, eq. 4-9; GMEL, Liu et al. 2020).

Layer, for unit i and its neighbours j, with V a 1 x 1 matrix and all parts without bias:

    e_ij = LeakyReLU(a . [W h_j || W h_i || V d_ij]),   alpha_ij = softmax_j e_ij,   h_i' = ReLU(sum_j alpha_ij W h_j + U h_i)

which is torch_geometric's ``GATConv`` with one head, one edge feature, a residual, and no self loops, followed by ReLU. The slope of the leaky
ReLU is .01, torch's default and the published value.

Decoder: log2 flow_od = h_o . A h_d + b [+ u . h_o + v . h_d] [+ f(d_od)]. The published one has neither bracket, so that it never sees the pair's
distance, and a ReLU around the whole, left out here because it kills the gradient of every pair that begins below 0 (4 to 96 % of them, by the
seed). The brackets are the margins and the deterrence of a gravity law: busy origins, busy destinations, and how flows fall off with distance.

Shapes: units [num_units, dim], edges [2, num_edges] (neighbour, unit), pairs [num_pairs].
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

with warnings.catch_warnings():  # torch_geometric 2.7 calls what torch 2.11 deprecates; the user cannot mend it
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)
    from torch_geometric.nn import GATConv

NEGATIVE_SLOPE = 0.01
DISTANCE_WIDTH = 16
# Rows of the pairs x values matrix that the balanced loss holds at once.
PAIRS_PER_BLOCK = 16_384


@dataclass(frozen=True)
class GraphTensors:
    """What the network sees of a region: features [num_units, dim], edge [2, num_edges], edge_weight [num_edges, 1]."""

    features: Tensor
    edge: Tensor
    edge_weight: Tensor


class FlowModel(nn.Module):
    """Graph attention network and bilinear decoder.

    Args:
        in_dim: Features per unit.
        embedding_size: Width of every layer.
        num_hidden_layers: Layers but one.
        dropout: Share of the features, and half that share of every layer's outputs, that is hidden in training.
        unit_terms: Whether the decoder has a term for the origin and one for the destination.
        pair_distance: Whether the decoder has a term for the pair's distance.
    """

    def __init__(
        self, in_dim: int, embedding_size: int, num_hidden_layers: int, dropout: float, unit_terms: bool, pair_distance: bool
    ) -> None:
        super().__init__()
        widths = [in_dim] + [embedding_size] * (num_hidden_layers + 1)
        self.layers = nn.ModuleList(
            GATConv(a, b, heads=1, edge_dim=1, add_self_loops=False, bias=False, negative_slope=NEGATIVE_SLOPE, residual=True)
            for a, b in pairwise(widths)
        )
        self.input_dropout, self.dropout = nn.Dropout(dropout), nn.Dropout(dropout / 2)
        self.interaction = nn.Parameter(torch.randn(embedding_size, embedding_size) / embedding_size)
        self.offset = nn.Parameter(torch.zeros(()))
        self.unit_terms = nn.Linear(embedding_size, 2, bias=False) if unit_terms else None
        self.distance_term = (
            nn.Sequential(nn.Linear(3, DISTANCE_WIDTH), nn.ReLU(), nn.Linear(DISTANCE_WIDTH, 1, bias=False)) if pair_distance else None
        )

    def embed(self, graph: GraphTensors) -> Tensor:
        """Embeddings of the units: [num_units, embedding_size]."""
        hidden = self.input_dropout(graph.features)
        for layer in self.layers:
            hidden = self.dropout(torch.relu(layer(hidden, graph.edge, graph.edge_weight)))
        return hidden

    def decode(self, hidden: Tensor, origin: Tensor, destination: Tensor, distance: Tensor) -> Tensor:
        """log2 of the flow of pairs.

        Args:
            hidden: [num_units, embedding_size].
            origin: Positions [num_pairs].
            destination: Positions [num_pairs].
            distance: Distance relative to the source region's largest [num_pairs].
        """
        sent = hidden @ self.interaction  # [num_units, embedding_size]
        log_flow = (sent[origin] * hidden[destination]).sum(dim=1) + self.offset
        if self.unit_terms is not None:
            margins = self.unit_terms(hidden)  # [num_units, 2]: as origin, as destination
            log_flow = log_flow + margins[origin, 0] + margins[destination, 1]
        if self.distance_term is not None:
            log_flow = log_flow + self.distance_term(distance_features(distance)).squeeze(1)
        return log_flow


def distance_features(distance: Tensor) -> Tensor:
    """Logarithm of a relative distance, the distance, and whether the pair is one unit: [num_pairs, 3]."""
    same = distance <= 0
    logarithm = torch.where(same, 0.0, torch.log(distance.clamp(min=1e-4)))
    return torch.stack([logarithm, distance, same.to(distance.dtype)], dim=1)


def poisson_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean negative log-likelihood of Poisson counts, without the part that does not depend on the prediction.

    For log2 of the mean x and log2 of the count y: 2^x - 2^y x ln 2, smallest at x = y. Unlike squared errors of logarithms it weighs a pair by
    its commuters, as CPC does.
    """
    return (torch.exp2(predicted) - torch.exp2(target) * predicted * math.log(2)).mean()


class BalancedMSE(nn.Module):
    """Balanced mean squared error (Ren et al. 2022, eq. 11, batch Monte Carlo), with the noise scale sigma learned.

    For predictions x and targets y of a batch of K pairs

        loss_i = -log( exp(-(x_i - y_i)^2 / 2 s^2) / sum_j exp(-(x_i - y_j)^2 / 2 s^2) ) * 2 s^2

    where the last factor carries no gradient. Flows are whole numbers, so the sum over the K targets is exactly a sum over their distinct
    values v, each taken n_v times: K x (a few hundred) instead of K x K.
    """

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = nn.Parameter(torch.tensor(float(sigma)))

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Mean loss of a batch: predictions [num_pairs], targets [num_pairs] -> scalar."""
        values, counts = torch.unique(target, return_counts=True)
        double_variance = 2 * self.sigma**2
        log_counts = counts.to(predicted.dtype).log()
        total = predicted.new_zeros(())
        for start in range(0, len(predicted), PAIRS_PER_BLOCK):
            block = slice(start, start + PAIRS_PER_BLOCK)
            # Recomputed in the backward pass, so that only one block of the matrix is held at a time.
            total = total + checkpoint(
                _balanced_block, predicted[block], target[block], values, log_counts, double_variance, use_reentrant=False
            )
        return total / len(predicted) * double_variance.detach()


def _balanced_block(predicted: Tensor, target: Tensor, values: Tensor, log_counts: Tensor, double_variance: Tensor) -> Tensor:
    """Sum over some pairs of (x - y)^2 / 2 s^2 + log sum_v n_v exp(-(x - v)^2 / 2 s^2)."""
    own = (predicted - target).square() / double_variance
    others = torch.logsumexp(log_counts - (predicted[:, None] - values).square() / double_variance, dim=1)  # over [num_pairs, num_values]
    return (own + others).sum()
