"""The flow model: graph attention network over neighbouring units, bilinear decoder, losses (paper, eq. 4-9; GMEL, Liu et al. 2020).

Layer, for unit i and its neighbours j, with V a 1 x 1 matrix and all parts without bias:

    e_ij = LeakyReLU(a . [W h_j || W h_i || V d_ij]),   alpha_ij = softmax_j e_ij,   h_i' = ReLU(sum_j alpha_ij W h_j + U h_i)

which is torch_geometric's ``GATConv`` with one head, one edge feature, a residual, and no self loops, followed by ReLU. The slope of the leaky
ReLU is .01, torch's default and the published value.

Decoder: log2 flow_od = h_o . A h_d + b [+ u . h_o + v . h_d] [+ f(d_od)]. The published one has neither bracket, so that it never sees the pair's
distance, and a ReLU around the whole, left out here because it kills the gradient of every pair that begins below 0 (4 to 96 % of them, by the
seed). The brackets are the margins and the deterrence of a gravity law: busy origins, busy destinations, and how flows fall off with distance.

With a dual encoder (GMEL) one network embeds units as origins, h_o, and another as destinations, h_d; as published they are the same.

Shapes: units [num_units, dim], edges [2, num_edges] (neighbour, unit), pairs [num_pairs].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from imagery2flow.flows.attention import GraphTensors, attend, attention_layers
from imagery2flow.flows.sparse import pair_products

DISTANCE_WIDTH = 16
# Rows of the pairs x values matrix that the balanced loss holds at once.
PAIRS_PER_BLOCK = 16_384


class FlowModel(nn.Module):
    """Graph attention network and bilinear decoder.

    Args:
        in_dim: Features per unit.
        embedding_size: Width of every layer.
        num_hidden_layers: Layers but one.
        dropout: Share of the features, and half that share of every layer's outputs, that is hidden in training.
        unit_terms: Whether the decoder has a term for the origin and one for the destination.
        pair_distance: Whether the decoder has a term for the pair's distance.
        dual_encoder: Whether destinations have a network of their own.
    """

    def __init__(
        self,
        in_dim: int,
        embedding_size: int,
        num_hidden_layers: int,
        dropout: float,
        unit_terms: bool,
        pair_distance: bool,
        dual_encoder: bool = False,
    ) -> None:
        super().__init__()
        widths = [in_dim] + [embedding_size] * (num_hidden_layers + 1)
        self.layers = attention_layers(widths)
        self.destination_layers = attention_layers(widths) if dual_encoder else None
        self.input_dropout, self.dropout = nn.Dropout(dropout), nn.Dropout(dropout / 2)
        self.interaction = nn.Parameter(torch.randn(embedding_size, embedding_size) / embedding_size)
        self.offset = nn.Parameter(torch.zeros(()))
        self.unit_terms = nn.ModuleList(nn.Linear(embedding_size, 1, bias=False) for _ in range(2)) if unit_terms else None
        self.distance_term = (
            nn.Sequential(nn.Linear(3, DISTANCE_WIDTH), nn.ReLU(), nn.Linear(DISTANCE_WIDTH, 1, bias=False)) if pair_distance else None
        )

    def embed(self, graph: GraphTensors) -> Tensor:
        """Embeddings of the units: [num_units, embedding_size]; with a dual encoder those as origin, then those as destination: twice as wide."""
        sides = [self.layers] if self.destination_layers is None else [self.layers, self.destination_layers]
        return torch.cat([self.run_layers(layers, graph) for layers in sides], dim=1)

    def run_layers(self, layers: nn.ModuleList, graph: GraphTensors) -> Tensor:
        """Output of one graph network: [num_units, embedding_size]."""
        hidden = self.input_dropout(graph.features)
        for layer in layers:
            hidden = self.dropout(torch.relu(attend(layer, hidden, graph)))
        return hidden

    def decode(self, hidden: Tensor, origin: Tensor, destination: Tensor, distance: Tensor) -> Tensor:
        """log2 of the flow of pairs.

        Args:
            hidden: What ``embed`` gives.
            origin: Positions [num_pairs].
            destination: Positions [num_pairs].
            distance: Distance relative to the source region's largest [num_pairs].
        """
        leaving, arriving = self.sides(hidden)
        sent = leaving @ self.interaction  # [num_units, embedding_size]
        log_flow = pair_products(sent, arriving, origin, destination) + self.offset
        margins = self.margins(hidden)
        if margins is not None:
            log_flow = log_flow + margins[0][origin] + margins[1][destination]
        return log_flow if self.distance_term is None else log_flow + self.deterrence(distance)

    def decode_rows(self, hidden: Tensor, origin: Tensor, distance: Tensor) -> Tensor:
        """log2 of the flows of some origins to every unit, as one matrix product: what ``decode`` gives for the same pairs, without a copy of the embeddings per pair.

        Args:
            hidden: What ``embed`` gives.
            origin: Positions [num_origins].
            distance: Relative distances [num_origins, num_units].

        Returns:
            [num_origins, num_units].
        """
        leaving, arriving = self.sides(hidden)
        log_flow = leaving[origin] @ self.interaction @ arriving.T + self.offset
        margins = self.margins(hidden)
        if margins is not None:
            log_flow = log_flow + margins[0][origin, None] + margins[1]
        return log_flow if self.distance_term is None else log_flow + self.deterrence(distance.flatten()).view_as(log_flow)

    def sides(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings as origin and as destination: [num_units, embedding_size] each."""
        if self.destination_layers is None:
            return hidden, hidden
        leaving, arriving = hidden.chunk(2, dim=1)
        return leaving, arriving

    def margins(self, hidden: Tensor) -> list[Tensor] | None:
        """What each unit adds as origin, and as destination: [num_units] each."""
        if self.unit_terms is None:
            return None
        return [term(side)[:, 0] for term, side in zip(self.unit_terms, self.sides(hidden), strict=True)]

    def deterrence(self, distance: Tensor) -> Tensor:
        """What relative distances [num_pairs] add: [num_pairs]."""
        assert self.distance_term is not None
        return self.distance_term(distance_features(distance)).squeeze(1)


def distance_features(distance: Tensor) -> Tensor:
    """Logarithm of a relative distance, the distance, and whether the pair is one unit: [num_pairs, 3]."""
    same = distance <= 0
    logarithm = torch.where(same, 0.0, torch.log(distance.clamp(min=1e-4)))
    return torch.stack([logarithm, distance, same.to(distance.dtype)], dim=1)


def poisson_loss(predicted: Tensor, count: Tensor, weight: Tensor) -> Tensor:
    """Mean negative log-likelihood of Poisson counts, without the part that does not depend on the prediction.

    For log2 of the mean x and the count y: w (2^x - y x ln 2), smallest at 2^x = y. Unlike squared errors of logarithms it weighs a pair by its
    commuters, as CPC does.

    Args:
        predicted: x [num_pairs].
        count: y, 0 or more [num_pairs].
        weight: w: how many pairs each stands for [num_pairs].
    """
    return (weight * (torch.exp2(predicted) - count * predicted * math.log(2))).sum() / weight.sum()


def multinomial_loss(predicted: Tensor, count: Tensor, weight: Tensor, origin: Tensor) -> Tensor:
    """Where the commuters of each origin go, and how many there are.

    With p_od = w_od 2^x_od / T_o and T_o = sum_d w_od 2^x_od: the mean over commuters of -log p_od (Deep Gravity, Simini et al. 2021, eq. 5, which
    takes T_o as known), and the Poisson likelihood of the outflow, T_o - O_o log T_o, a commuter.

    Args:
        predicted: x, log2 of the flow [num_pairs].
        count: [num_pairs].
        weight: w: how many pairs each stands for [num_pairs].
        origin: [num_pairs]; all pairs of an origin should be in one batch.
    """
    group = torch.unique(origin, return_inverse=True)[1]
    score = predicted * math.log(2) + weight.log()
    num_groups = int(group.max()) + 1
    largest = score.new_full((num_groups,), -math.inf).scatter_reduce(0, group, score.detach(), "amax")
    log_total = score.new_zeros(num_groups).index_add(0, group, (score - largest[group]).exp()).log() + largest
    commuters = (weight * count).sum().clamp(min=1.0)
    shares = (weight * count * (log_total[group] - score)).sum()
    outflow = score.new_zeros(num_groups).index_add(0, group, weight * count)
    return (shares + (log_total.exp() - outflow * log_total).sum()) / commuters


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
