import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imagery2flow.flows.attention import GraphTensors, attend, attention_layers

edge_lists = st.integers(1, 6).flatmap(
    lambda units: st.tuples(st.just(units), st.lists(st.tuples(st.integers(0, units - 1), st.integers(0, units - 1)), max_size=12))
)


def draw(num_units, edges, seed=0):
    """A layer and a graph in double precision, whose edges stand in any order and may be repeated."""
    torch.manual_seed(seed)
    edge = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T
    graph = GraphTensors(torch.randn(num_units, 3).double(), edge, torch.rand(len(edges), 1).double())
    return attention_layers([3, 4])[0].double(), graph


def with_gradients(function, layer, graph):
    """Output, and the gradients of a weighted sum of it."""
    features = graph.features.clone().requires_grad_()
    output = function(layer, features, graph)
    parameters = [features, *layer.parameters()]
    weight = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
    found = torch.autograd.grad((weight * output).sum(), parameters, allow_unused=True)
    return output, *(torch.zeros_like(p) if gradient is None else gradient for gradient, p in zip(found, parameters, strict=True))


def torch_geometric(layer, hidden, graph):
    return layer(hidden, graph.edge, graph.edge_weight)


@given(edge_lists)
def test_values_and_gradients_are_those_of_torch_geometric(drawn):
    layer, graph = draw(*drawn)
    for found, wanted in zip(with_gradients(attend, layer, graph), with_gradients(torch_geometric, layer, graph), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_sums_are_equal_to_the_bit_in_every_run(num_threads):
    random = torch.Generator().manual_seed(1)
    layer, graph = draw(50, torch.randint(0, 50, (400, 2), generator=random).tolist())
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        first, second = (with_gradients(attend, layer, graph) for _ in range(2))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
