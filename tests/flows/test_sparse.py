import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imagery2flow.flows.sparse import WeightedSums, pair_products, pattern_of

# Units, and pairs of them in any order, some more than once.
pair_lists = st.integers(1, 6).flatmap(
    lambda units: st.tuples(st.just(units), st.lists(st.tuples(st.integers(0, units - 1), st.integers(0, units - 1)), max_size=15))
)


def draw(num_units, pairs, dim=3, seed=0):
    """Two sets of vectors and the pairs' units, rows then columns."""
    torch.manual_seed(seed)
    left, right = (torch.randn(num_units, dim, dtype=torch.float64, requires_grad=True) for _ in range(2))
    return left, right, *torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T


@given(pair_lists)
def test_products_of_pairs_and_their_gradients_are_those_of_a_loop(drawn):
    left, right, row, column = draw(*drawn)
    naive = torch.stack([torch.dot(left[i], right[j]) for i, j in drawn[1]]) if drawn[1] else (left[:0] * right[:0]).sum(dim=1)
    weight = torch.linspace(-1, 2, len(row), dtype=torch.float64)
    for found, wanted in zip(
        *(outcome(products, weight, (left, right)) for products in (pair_products(left, right, row, column), naive)), strict=True
    ):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-9)


@given(pair_lists)
def test_weighted_sums_and_their_gradients_are_those_of_a_loop(drawn):
    vectors, _, row, column = draw(*drawn)
    pattern = pattern_of(row, column, len(vectors))
    weight = torch.linspace(-2, 1, len(row), dtype=torch.float64, requires_grad=True)
    naive = torch.zeros_like(vectors)
    for w, (i, j) in zip(weight, drawn[1], strict=True):
        naive = naive.index_add(0, torch.tensor([i]), w * vectors[j : j + 1])
    pull = torch.linspace(-1, 2, vectors.numel(), dtype=torch.float64).view_as(vectors)
    sums = WeightedSums.apply(pattern.collect(weight), vectors, pattern)
    for found, wanted in zip(*(outcome(values, pull, (weight, vectors)) for values in (sums, naive)), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-9)


def outcome(values, weight, parameters):
    """Values, and the gradients of their weighted sum."""
    total = (weight * values).sum()
    found = torch.autograd.grad(total, parameters, allow_unused=True) if total.requires_grad else (None, None)
    return [values, *(torch.zeros_like(p) if gradient is None else gradient for gradient, p in zip(found, parameters, strict=True))]


def test_products_by_hand():
    left, right = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[10.0, 1.0], [0.0, 1.0]])
    found = pair_products(left, right, torch.tensor([1, 0, 1]), torch.tensor([0, 1, 0]))
    assert found.tolist() == [34.0, 2.0, 34.0]


@pytest.mark.parametrize("num_threads", [1, 2])
def test_products_are_equal_to_the_bit_in_every_run(num_threads):
    random = torch.Generator().manual_seed(0)
    left, right, row, column = draw(40, torch.randint(0, 40, (700, 2), generator=random).tolist(), dim=50)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        first, second = (outcome(pair_products(left, right, row, column), torch.arange(700.0), (left, right)) for _ in range(2))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
