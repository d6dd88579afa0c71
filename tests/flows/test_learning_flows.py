import dataclasses

import numpy as np
import pytest

from imagery2flow.flows.graph import RegionGraph
from imagery2flow.flows.learning import fit_constants, learn, split_by_id, universes_of
from imagery2flow.flows.region import Region
from imagery2flow.flows.sampling import draw_sample
from imagery2flow.flows.splits import SPLITS, Split, draw_split
from imagery2flow.flows.table import FlowTable, concatenate
from imagery2flow.run.device import CPU
from imagery2flow.run.flow_config import FlowTrainingConfig, TreesConfig
from imagery2flow.run.stage import Ledger

NUM_UNITS = 40
KINDS = ["origin", "unit", "block", "pair"]


def town(seed=0, num_regions=2):
    """Units at random places in regions far apart, whose table of flows is complete."""
    random = np.random.default_rng(seed)
    part = np.arange(NUM_UNITS) % num_regions
    ids = tuple(f"{number:03d}" for number in range(NUM_UNITS))
    longitude, latitude = random.uniform(0, 0.1, NUM_UNITS) + part, random.uniform(0, 0.1, NUM_UNITS)
    forward = np.stack([np.arange(NUM_UNITS - num_regions), np.arange(num_regions, NUM_UNITS)])
    graph = RegionGraph(ids, longitude, latitude, np.ones(NUM_UNITS), np.concatenate([forward, forward[::-1]], axis=1))
    features = random.normal(size=(NUM_UNITS, 3)).astype(np.float32)
    place = np.stack([longitude, latitude], axis=1)
    near = np.exp(-np.linalg.norm(place[:, None] - place, axis=2) / 0.03) * (part[:, None] == part)
    origin, destination = np.nonzero(count := random.poisson(4 * near * np.exp(0.5 * (features[:, :1] + features[:, 0]))))
    flows = FlowTable(ids, origin, destination, count[origin, destination].astype(float), part.astype(np.int64))
    return Region(tuple(f"town{number}" for number in range(num_regions)), graph, part, ("0", "1", "rent"), features, flows)


def settings(**changes):
    trees = TreesConfig(num_trees=10, min_leaf_pairs=5, early_stopping=3, transfer_trees=10)
    small = {
        "max_epochs": 2,
        "embedding_size": 8,
        "num_hidden_layers": 0,
        "universe": "positive",
        "trees": trees,
        "batch_size": 256,
        "zeros_per_flow": 0.5,
    }
    return FlowTrainingConfig(**{"region": ["town"], "node_feats_path": ["x"], **small, **changes})


def learned(region, split, **changes):
    return learn(settings(**changes), region, split, Ledger("test", quiet=True), CPU)


def leaks(kind, pairs, label):
    """Held-out units (origins, pairs) that occur in a pair to learn from: empty for an honest split."""
    ends = {"origin": (pairs.origin,), "pair": (pairs.origin * NUM_UNITS + pairs.destination,)}.get(kind, (pairs.origin, pairs.destination))
    tested, seen = label == "test", np.isin(label, ("train", "valid"))
    return {int(unit) for held_out in ends for unit in held_out[tested]} & {int(unit) for end in ends for unit in end[seen]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("universe", ["positive", "full"])
def test_nothing_held_out_is_learned_from_whatever_the_seed(kind, universe):
    region = town()
    pairs = region.flows.universe(universe)
    for seed in range(20):
        label = draw_split(kind, region, None, seed).of(pairs)
        assert {"train", "valid", "test"} <= set(label)
        assert leaks(kind, pairs, label) == set(), seed


@pytest.mark.parametrize("kind", ["origin", "unit", "block"])
@pytest.mark.parametrize("into", ["train", "valid"])
def test_a_planted_leak_is_detected(kind, into):
    region = town()
    pairs = region.flows.universe("positive")
    split = draw_split(kind, region, None, 0)
    label = split.of(pairs)
    leaking = label.copy()
    place = np.flatnonzero(label == "test")[0]
    leaking[place] = into
    assert int(pairs.origin[place]) in leaks(kind, pairs, leaking)


@pytest.mark.parametrize("kind", ["unit", "block"])
def test_holding_out_origins_alone_leaks_destinations(kind):
    region = town()
    pairs = region.flows.universe("positive")
    label = draw_split(kind, region, None, 0).label
    assert leaks(kind, pairs, Split("origin", label).of(pairs))
    assert not leaks(kind, pairs, Split(kind, label).of(pairs))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("universe", ["positive", "full"])
def test_flows_that_are_not_to_be_learned_from_change_no_prediction(kind, universe):
    """Test pairs, and those that belong to no split, are multiplied; every prediction stays as it was, to the bit."""
    region = town()
    split = draw_split(kind, region, None, 1)
    outside = ~np.isin(split.of(region.flows), ("train", "valid"))
    assert outside.any()
    more = dataclasses.replace(region.flows, count=np.where(outside, 1_000 * region.flows.count, region.flows.count))
    before, after = (learned(seen, split, universe=universe).record for seen in (region, dataclasses.replace(region, flows=more)))
    pairs = region.flows.universe("full")
    first, second = (record.predict(record.embed(region), pairs) for record in (before, after))
    for decoder, values in first.items():
        np.testing.assert_array_equal(second[decoder], values, err_msg=decoder)
    assert before.constant == after.constant


def test_flows_to_learn_from_do_change_predictions():
    region = town()
    split = draw_split("unit", region, None, 1)
    inside = split.of(region.flows) == "train"
    more = dataclasses.replace(region.flows, count=np.where(inside, 3 * region.flows.count, region.flows.count))
    first, second = (learned(seen, split).record for seen in (region, dataclasses.replace(region, flows=more)))
    for decoder, values in first.predict(first.embed(region), region.flows).items():
        assert not np.allclose(second.predict(second.embed(region), region.flows)[decoder], values)


def test_equal_runs_are_equal_and_other_seeds_are_not():
    region = town()
    split = draw_split("origin", region, None, 0)
    records = [learned(region, split, seed=seed).record for seed in (1, 1, 2)]
    found = [record.predict(record.embed(region), region.flows) for record in records]
    for decoder in found[0]:
        np.testing.assert_array_equal(found[0][decoder], found[1][decoder])
        assert (found[0][decoder] != found[2][decoder]).any()


@pytest.mark.parametrize("changes", [{"loss": "multinomial"}, {"dual_encoder": True}, {"universe": "full", "loss": "multinomial"}])
def test_the_other_settings_predict_too(changes):
    region = town()
    result = learned(region, draw_split("unit", region, None, 0), **changes)
    embedded = result.record.embed(region)
    assert embedded.seen.hidden.shape == (NUM_UNITS, 16 if "dual_encoder" in changes else 8)
    for values in result.record.predict(embedded, region.flows).values():
        assert np.isfinite(values).all()
        assert (values >= 0).all()
    assert len(result.history) == 2
    assert result.record.flow_range[0] == (0.0 if changes.get("universe") == "full" else 1.0)


def test_without_a_network_only_the_trees_decode():
    region = town()
    result = learn(settings(), region, draw_split("unit", region, None, 0), Ledger("test", quiet=True), CPU, network=False)
    assert result.history == []
    assert set(result.record.predict(result.record.embed(region), region.flows)) == {"lightgbm"}


def test_constants_are_those_of_the_training_pairs_of_each_universe():
    region = town()
    split = draw_split("unit", region, None, 0)
    found = fit_constants(region.flows, split)
    assert set(found) == {"gt10", "positive", "full"}
    for universe, constant in found.items():
        pairs = region.flows.universe(universe)
        train = pairs.count[split.of(pairs) == "train"]

        def naive_cpc(level, train=train):
            return 2 * sum(min(y, level) for y in train) / (train.sum() + len(train) * level)

        assert naive_cpc(constant) == pytest.approx(max(naive_cpc(level) for level in np.unique(train) if level or train.any()))
    assert universes_of(dataclasses.replace(region.flows, block=None)) == ["gt10", "positive"]


def test_tables_are_joined_in_order():
    flows = town().flows
    odd = np.arange(len(flows)) % 2 == 1
    together = concatenate(flows.select(odd), flows.select(~odd))
    for name in ("origin", "destination", "count"):
        np.testing.assert_array_equal(getattr(together, name), getattr(flows, name))


def test_zeros_are_drawn_in_the_full_universe_only():
    flows = town().flows
    full = draw_sample(settings(universe="full"), flows.universe("full"))
    assert (full.pairs.count == 0).sum() == len(flows) // 2
    assert full.weight.sum() == pytest.approx(2 * (NUM_UNITS // 2) ** 2)
    assert draw_sample(settings(), flows).pairs is flows


def test_the_record_names_the_split_of_every_unit():
    region = town()
    split = draw_split("block", region, None, 0)
    assert split_by_id(split, region) == {geocode: name for geocode, name in zip(region.graph.geocodes, split.label, strict=True) if name}
    assert set(split_by_id(draw_split("pair", region, None, 0), region).values()) == {"train"}  # every unit was learned from
    assert set(split_by_id(split, region).values()) == set(SPLITS)
