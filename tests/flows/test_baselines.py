import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagery2flow.flows.baselines import best_constant
from imagery2flow.flows.metrics import cpc


@given(st.lists(st.integers(1, 60), min_size=1, max_size=15))
def test_no_candidate_value_scores_higher(counts):
    observed = np.array(counts, dtype=float)
    brute_force = max(cpc(observed, np.full(len(observed), value)) for value in observed)
    assert cpc(observed, np.full(len(observed), best_constant(observed))) == pytest.approx(brute_force)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=15))
def test_no_constant_between_the_values_scores_higher(counts):
    observed = np.array(counts, dtype=float)
    best = cpc(observed, np.full(len(observed), best_constant(observed)))
    anything = max(cpc(observed, np.full(len(observed), value)) for value in np.linspace(0, 70, 281))
    assert best >= anything - 1e-12


def test_best_constant_by_hand():
    # 1, 2, 9: c = 1 -> 2 x 3 / 15 = .4, c = 2 -> 2 x 5 / 18 = .556, c = 9 -> 2 x 12 / 39 = .615.
    assert best_constant(np.array([9.0, 1.0, 2.0])) == 9
    # 10, 10, 100: c = 10 -> 60 / 150 = .4, c = 100 -> 240 / 420 = .571
    assert best_constant(np.array([10.0, 100.0, 10.0])) == 100
    # four times 10, once 12: c = 10 -> 100 / 102, c = 12 -> 104 / 112
    assert best_constant(np.array([10.0, 10.0, 12.0, 10.0, 10.0])) == 10
    assert best_constant(np.array([7.0])) == 7


def test_the_order_of_flows_does_not_matter():
    observed = np.random.default_rng(0).integers(1, 99, 200).astype(float)
    assert best_constant(observed) == best_constant(observed[::-1])
