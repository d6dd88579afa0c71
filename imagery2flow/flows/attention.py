"""Graph attention over neighbouring units: the layer of ``flows.model``, whose parameters are those of torch_geometric's ``GATConv``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from torch import Tensor, nn

from imagery2flow.flows.sparse import SparsePattern, WeightedSums, pattern_of

with warnings.catch_warnings():  # torch_geometric 2.7 calls what torch 2.11 deprecates; the user cannot mend it
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)
    from torch_geometric.nn import GATConv
    from torch_geometric.utils import softmax

NEGATIVE_SLOPE = 0.01


@dataclass(frozen=True)
class GraphTensors:
    """What the network sees of a region: features [num_units, dim], edge (neighbour, unit) [2, num_edges], edge_weight [num_edges, 1]."""

    features: Tensor
    edge: Tensor
    edge_weight: Tensor

    @cached_property
    def pattern(self) -> SparsePattern:
        """The edges as a matrix of units by neighbours; sorted once."""
        return pattern_of(self.edge[1], self.edge[0], len(self.features))


def attention_layers(widths: Sequence[int]) -> nn.ModuleList:
    """The published layers, one for each step in width."""
    return nn.ModuleList(
        GATConv(a, b, heads=1, edge_dim=1, add_self_loops=False, bias=False, negative_slope=NEGATIVE_SLOPE, residual=True)
        for a, b in pairwise(widths)
    )


def attend(layer: GATConv, hidden: Tensor, graph: GraphTensors) -> Tensor:
    """What a layer makes of the units, before the ReLU: [num_units, in_dim] -> [num_units, out_dim].

    On a CPU the sum over neighbours is a product with a sparse matrix; ``GATConv`` copies the neighbour's vector for every edge.
    """
    if hidden.device.type != "cpu":
        return layer(hidden, graph.edge, graph.edge_weight)
    neighbour, unit = graph.edge
    projected = layer.lin(hidden)  # W h
    leaving, arriving = projected @ layer.att_src.view(-1), projected @ layer.att_dst.view(-1)
    slope = layer.lin_edge.weight.view(-1) @ layer.att_edge.view(-1)  # V and its part of a
    score = leaving.index_select(0, neighbour) + arriving.index_select(0, unit) + slope * graph.edge_weight[:, 0]
    share = softmax(nn.functional.leaky_relu(score, NEGATIVE_SLOPE), unit, num_nodes=len(hidden))  # [num_edges]
    return WeightedSums.apply(graph.pattern.collect(share), projected, graph.pattern) + layer.res(hidden)
