import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagery2flow.flows.sampling import every_pair, sample_zeros
from imagery2flow.flows.table import FlowTable


def pairs_of(count):
    """Pairs of ten units in order, with the counts given."""
    number = np.arange(len(count))
    return FlowTable(tuple(map(str, range(10))), number // 10, number % 10, np.array(count, dtype=float))


def town(num_pairs=60, num_flows=8, seed=0):
    """A few flows among zeros."""
    random = np.random.default_rng(seed)
    count = np.zeros(num_pairs)
    count[random.choice(num_pairs, num_flows, replace=False)] = random.integers(1, 90, num_flows)
    return pairs_of(count)


def test_two_zeros_of_six_stand_for_three_each():
    sample = sample_zeros(pairs_of([0, 0, 7, 0, 0, 0, 0]), 2.0, np.random.default_rng(0))
    assert sample.pairs.count.tolist().count(7) == 1
    assert sorted(sample.weight) == [1, 3, 3]
    assert (sample.weight[sample.pairs.count > 0] == 1).all()


def test_the_expectation_of_a_weighted_sum_is_the_sum_over_all_pairs():
    pairs = town()
    value = np.random.default_rng(1).normal(3, 2, (10, 10))  # any function of the pair
    full = value[pairs.origin, pairs.destination].sum()
    sums = []
    for seed in range(2_000):
        sample = sample_zeros(pairs, 1.0, np.random.default_rng(seed))
        sums.append((sample.weight * value[sample.pairs.origin, sample.pairs.destination]).sum())
    error = np.std(sums) / np.sqrt(len(sums))
    assert error < 0.01 * full
    assert abs(np.mean(sums) - full) < 4 * error


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3) | st.just(0), min_size=1, max_size=80), st.floats(0, 5), st.integers(0, 99))
def test_flows_are_all_kept_and_weights_add_up_to_the_pairs(count, zeros_per_flow, seed):
    pairs = pairs_of(count)
    sample = sample_zeros(pairs, zeros_per_flow, np.random.default_rng(seed))
    place, chosen = (table.origin * 10 + table.destination for table in (pairs, sample.pairs))
    assert (np.diff(chosen) > 0).all()  # sorted, none twice
    np.testing.assert_array_equal(sample.pairs.count, pairs.count[np.searchsorted(place, chosen)])
    assert set(place[pairs.count > 0]) <= set(chosen)
    assert sample.weight.sum() == pytest.approx(len(pairs))
    assert (sample.weight[sample.pairs.count > 0] == 1).all()
    num_zeros, num_flows = (pairs.count == 0).sum(), (pairs.count > 0).sum()
    assert (sample.pairs.count == 0).sum() == min(num_zeros, max(int(zeros_per_flow * num_flows), 1))


def test_when_all_zeros_are_asked_for_each_pair_stands_for_itself():
    pairs = town()
    sample = sample_zeros(pairs, 100.0, np.random.default_rng(0))
    assert sample.pairs is pairs
    assert (sample.weight == 1).all()
    assert len(every_pair(pairs)) == len(pairs)


def test_without_zeros_nothing_is_drawn():
    pairs = pairs_of([3, 4])
    assert sample_zeros(pairs, 2.0, np.random.default_rng(0)).pairs is pairs


def test_a_seed_gives_one_sample_and_another_gives_another():
    draws = [sample_zeros(town(), 1.0, np.random.default_rng(seed)).pairs for seed in (5, 5, 6)]
    places = [(draw.origin * 10 + draw.destination).tolist() for draw in draws]
    assert places[0] == places[1] != places[2]
