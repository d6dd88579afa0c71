import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagery2flow.flows import metrics
from imagery2flow.flows.graph import RegionGraph
from imagery2flow.flows.region import Region
from imagery2flow.flows.scoring import chosen_pairs, in_universe, score_universes, scored_pairs
from imagery2flow.flows.table import UNIVERSES, FlowTable

# Of each of five units its complete block, -1 for none.
BLOCK = (0, 0, 1, 1, -1)


def town(block=BLOCK, seed=0, share=0.5):
    """Five units with random flows."""
    random = np.random.default_rng(seed)
    origin, destination = np.nonzero(random.random((5, 5)) < share)
    ids = tuple("abcde")
    flows = FlowTable(
        ids, origin, destination, random.integers(0, 25, len(origin)).astype(float), None if block is None else np.array(block)
    )
    graph = RegionGraph(ids, random.uniform(0, 0.1, 5), random.uniform(0, 0.1, 5), np.ones(5), np.zeros((2, 0), np.int64))
    return Region(("town",), graph, np.zeros(5, np.int64), ("0",), np.zeros((5, 1)), flows)


def everything(pairs):
    return np.ones(len(pairs), dtype=bool)


def as_dict(pairs):
    return {(o, d): y for o, d, y in zip(pairs.origin.tolist(), pairs.destination.tolist(), pairs.count.tolist(), strict=True)}


def naive_pairs(flows, universe):
    """Pairs of known flow of a universe, pair by pair."""
    observed, found = as_dict(flows), {}
    for o in range(5):
        for d in range(5):
            complete = flows.block is not None and flows.block[o] == flows.block[d] >= 0
            count = observed.get((o, d), 0.0 if complete else None)
            inside = {"full": complete, "positive": bool(count), "gt10": count is not None and count > 10}[universe]
            if inside:
                found[o, d] = count
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([BLOCK, None, (0,) * 5, (-1,) * 5, (0, 1, 2, 3, 4)]),
    st.sampled_from([0.1, 0.5, 1.0]),
)
def test_the_pairs_of_each_universe_are_those_of_the_loop(seed, block, share):
    flows = town(block, seed, share).flows
    pairs = chosen_pairs(flows, everything)
    place = pairs.origin * 5 + pairs.destination
    assert (np.diff(place) > 0).all()  # sorted, none twice
    for universe in UNIVERSES:
        assert as_dict(pairs.select(in_universe(universe, pairs))) == naive_pairs(flows, universe), universe


def test_zeros_asked_of_a_table_without_them_are_no_pairs_at_all():
    """A model may have been trained on full, and its constants name that universe, where the tested region only has a sample of flows."""
    region = town(block=None)
    pairs = chosen_pairs(region.flows, everything)
    assert not in_universe("full", pairs).any()
    scores = score_universes(region, pairs, np.ones(len(pairs)), {"positive": 4.0, "full": 1.0})
    assert set(scores) == {"positive"}


def test_only_the_chosen_pairs_are_scored():
    flows = town().flows
    pairs = chosen_pairs(flows, lambda pairs: pairs.origin == 1)
    assert set(pairs.origin) == {1}
    assert as_dict(pairs) == {pair: y for pair, y in as_dict(chosen_pairs(flows, everything)).items() if pair[0] == 1}


@pytest.mark.parametrize("universe", list(UNIVERSES))
def test_scores_are_those_of_the_universes_pairs_beside_its_constant(universe):
    region = town(share=0.9)
    pairs = chosen_pairs(region.flows, everything)
    predicted = np.random.default_rng(1).uniform(0, 30, len(pairs))
    found = score_universes(region, pairs, predicted, {universe: 7.0})
    wanted = naive_pairs(region.flows, universe)
    by_pair = dict(zip(zip(pairs.origin.tolist(), pairs.destination.tolist(), strict=True), predicted, strict=True))
    common = sum(min(y, by_pair[pair]) for pair, y in wanted.items())
    cpc = 2 * common / (sum(wanted.values()) + sum(by_pair[pair] for pair in wanted))
    flat = 2 * sum(min(y, 7.0) for y in wanted.values()) / (sum(wanted.values()) + 7.0 * len(wanted))
    assert found == {universe: found[universe]}
    assert found[universe]["cpc"] == pytest.approx(cpc)
    assert found[universe]["skill"] == pytest.approx(1 - (1 - cpc) / (1 - flat))
    assert found[universe]["num_pairs"] == len(wanted)


def test_the_constant_itself_has_no_skill():
    region = town(share=0.9)
    found = score_universes(region, chosen_pairs(region.flows, everything), None, {"gt10": 14.0, "positive": 5.0, "full": 2.0})
    assert [scores["skill"] for scores in found.values()] == [0.0] * 3


def test_a_universe_without_chosen_pairs_has_no_scores():
    region = town()
    small = dataclasses.replace(region.flows, count=np.minimum(region.flows.count, 10))
    assert set(score_universes(region, chosen_pairs(small, everything), None, {"gt10": 14.0, "positive": 5.0})) == {"positive"}


def test_pairs_carry_their_distance_and_whether_they_are_one_unit():
    region = town(share=1.0)
    pairs = scored_pairs(region, region.flows, np.ones(25))
    assert isinstance(pairs, metrics.ScoredPairs)
    np.testing.assert_array_equal(pairs.same_unit, np.eye(5, dtype=bool).reshape(-1))
    np.testing.assert_array_equal(pairs.distance_m == 0, pairs.same_unit)
