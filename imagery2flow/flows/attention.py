"""Graph attention over neighbouring units: the layer of ``flows.model``, whose parameters are those of torch_geometric's ``GATConv``.

On a CPU the weighted sum over neighbours is a product with a sparse matrix, forwards and backwards. ``GATConv`` itself writes a copy of the
neighbour's vector for every edge, several times a step, which takes longer than all matrix products together.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

with warnings.catch_warnings():  # torch_geometric 2.7 calls what torch 2.11 deprecates; the user cannot mend it
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)
    from torch_geometric.nn import GATConv
    from torch_geometric.utils import softmax

NEGATIVE_SLOPE = 0.01
EDGES_PER_BLOCK = 1024  # whose vectors a core's cache holds


@dataclass(frozen=True)
class EdgeOrder:
    """Edges sorted by unit, as the rows of a sparse matrix [num_units, num_units] of units by neighbours, and how to transpose it.

    Attributes:
        edges: Positions of the sorted edges in the graph's list [num_edges].
        neighbour: [num_edges].
        unit: [num_edges].
        row: Where each unit's edges begin [num_units + 1].
        transposed: Positions of the sorted edges when sorted by neighbour instead [num_edges].
        transposed_row: Where each neighbour's edges begin among those [num_units + 1].
    """

    edges: Tensor
    neighbour: Tensor
    unit: Tensor
    row: Tensor
    transposed: Tensor
    transposed_row: Tensor


@dataclass(frozen=True)
class GraphTensors:
    """What the network sees of a region: features [num_units, dim], edge (neighbour, unit) [2, num_edges], edge_weight [num_edges, 1]."""

    features: Tensor
    edge: Tensor
    edge_weight: Tensor

    @cached_property
    def order(self) -> EdgeOrder:
        """The edges by unit; sorted once."""
        num_units = len(self.features)
        edges = torch.argsort(self.edge[1], stable=True)
        neighbour, unit = self.edge[:, edges].contiguous()
        transposed = torch.argsort(neighbour, stable=True)
        return EdgeOrder(edges, neighbour, unit, row_starts(unit, num_units), transposed, row_starts(neighbour, num_units))


def row_starts(rows: Tensor, num_rows: int) -> Tensor:
    """Where each row begins among sorted entries, and the end [num_rows + 1], from the row of every entry [num_entries]."""
    return nn.functional.pad(torch.bincount(rows, minlength=num_rows).cumsum(0), (1, 0))


def attention_layers(widths: Sequence[int]) -> nn.ModuleList:
    """The published layers, one for each step in width."""
    return nn.ModuleList(
        GATConv(a, b, heads=1, edge_dim=1, add_self_loops=False, bias=False, negative_slope=NEGATIVE_SLOPE, residual=True)
        for a, b in pairwise(widths)
    )


def attend(layer: GATConv, hidden: Tensor, graph: GraphTensors) -> Tensor:
    """What a layer makes of the units, before the ReLU: [num_units, in_dim] -> [num_units, out_dim]."""
    if hidden.device.type != "cpu":
        return layer(hidden, graph.edge, graph.edge_weight)
    order = graph.order
    projected = layer.lin(hidden)  # W h
    leaving, arriving = projected @ layer.att_src.view(-1), projected @ layer.att_dst.view(-1)
    slope = layer.lin_edge.weight.view(-1) @ layer.att_edge.view(-1)  # V and its part of a
    score = leaving[order.neighbour] + arriving[order.unit] + slope * graph.edge_weight[order.edges, 0]
    share = softmax(nn.functional.leaky_relu(score, NEGATIVE_SLOPE), order.unit, num_nodes=len(hidden))  # [num_edges]
    return WeightedSum.apply(share, projected, order) + layer.res(hidden)


class WeightedSum(torch.autograd.Function):
    """Sum over the neighbours j of a unit i of alpha_ij x_j."""

    @staticmethod
    def forward(context: Any, share: Tensor, vectors: Tensor, order: EdgeOrder) -> Tensor:
        """Shares alpha of the sorted edges [num_edges] and vectors x [num_units, dim] -> [num_units, dim]."""
        context.save_for_backward(share, vectors)
        context.order = order
        return sparse_product(order.row, order.neighbour, share, vectors)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of the shares, x_j . g_i, and of the vectors, sum_i alpha_ij g_i."""
        (share, vectors), order, (gradient,) = context.saved_tensors, context.order, gradients
        edges = zip(order.unit.split(EDGES_PER_BLOCK), order.neighbour.split(EDGES_PER_BLOCK), strict=True)
        of_share = [(gradient[unit] * vectors[neighbour]).sum(dim=1) for unit, neighbour in edges]
        of_vectors = sparse_product(order.transposed_row, order.unit[order.transposed], share[order.transposed], gradient)
        return torch.cat(of_share) if of_share else share, of_vectors, None


def sparse_product(row: Tensor, column: Tensor, values: Tensor, dense: Tensor) -> Tensor:
    """A sparse square matrix in compressed rows times a dense one: [num_units, dim]."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        return torch.sparse_csr_tensor(row, column, values, (len(dense), len(dense)), check_invariants=False) @ dense
