"""Splits of origins, units, blocks and pairs: drawn, stratified by population, or read."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagery2flow.flows.region import join_regions
from imagery2flow.flows.splits import (
    OF_FIVE,
    SPLITS,
    Split,
    check_split,
    draw_split,
    hash_pairs,
    label_ranked,
    note_omitted,
    read_population,
    read_split,
    spatial_blocks,
)
from imagery2flow.flows.table import FlowTable
from imagery2flow.run.errors import InputError, TableError

from .conftest import make_flow_table, make_flows_region, make_line_graph

FOUR = ("0000", "0001", "0002", "0003")


def flows_from(origins, num_units):
    """One flow from each of the origins."""
    geocodes = tuple(f"{n:03d}" for n in range(num_units))
    origins = np.array(origins, dtype=int)
    return FlowTable(geocodes, origins, np.zeros_like(origins), np.ones(len(origins)))


def split_origins(origins, num_units, population, seed):
    """Splits of the units of a region of so many, of which some are origins."""
    return draw_split("origin", make_flows_region(flows_from(origins, num_units)), population, seed).label


def every_pair(num_units):
    """All pairs of units, each with one commuter."""
    origin, destination = (axis.reshape(-1) for axis in np.meshgrid(range(num_units), range(num_units), indexing="ij"))
    return FlowTable(tuple(f"{n:03d}" for n in range(num_units)), origin, destination, np.ones(num_units**2))


def counts_of(split):
    return [int((split == name).sum()) for name in SPLITS]


@given(num_units=st.integers(5, 60), seed=st.integers(0, 99))
def test_60_20_20_up_to_the_last_block_of_five(num_units, seed):
    split = label_ranked(np.full(num_units, np.nan), OF_FIVE, np.random.default_rng(seed))
    whole_blocks, rest = divmod(num_units, 5)
    train, valid, test = (count - share * whole_blocks for count, share in zip(counts_of(split), (3, 1, 1), strict=True))
    assert train + valid + test == rest
    assert 0 <= train <= 3
    assert 0 <= valid <= 1
    assert 0 <= test <= 1


def test_each_five_neighbours_in_rank_give_three_one_and_one():
    population = np.random.default_rng(1).permutation(100) * 37.0
    split = split_origins(range(100), 100, population, 0)
    ranked = split[np.argsort(population)]
    for start in range(0, 100, 5):
        assert sorted(ranked[start : start + 5]) == ["test", "train", "train", "train", "valid"]


def test_the_splits_are_alike_in_population():
    population = np.random.default_rng(1).permutation(500).astype(float)
    split = split_origins(range(500), 500, population, 0)
    for name in SPLITS:
        # Within a block of five a unit is at most 2 from the block's mean, so the mean of a split is too.
        assert population[split == name].mean() == pytest.approx(population.mean(), abs=2)


def test_without_population_the_split_is_drawn_from_all_ranks():
    first, again, other = (split_origins(range(500), 500, None, seed) for seed in (0, 0, 1))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()
    blocks = [sorted(first[start : start + 5]) for start in range(0, 500, 5)]
    assert blocks.count(["test", "train", "train", "train", "valid"]) < 60  # neighbours by id are no block


def test_origins_of_unknown_population_are_ranked_behind_the_others():
    population = np.array([5.0, np.nan, 3.0, np.nan, 4.0, 1.0, np.nan, 2.0, np.nan, np.nan])
    split = split_origins(range(10), 10, population, 0)
    for block in (~np.isnan(population), np.isnan(population)):
        assert counts_of(split[block]) == [3, 1, 1]


def test_units_without_outflow_belong_to_no_split_of_origins():
    split = split_origins(range(0, 20, 2), 20, None, 0)
    assert counts_of(split) == [6, 2, 2]
    assert set(split[1::2]) == {""}


@pytest.mark.parametrize("kind", ["unit", "block"])
def test_units_with_flows_in_either_direction_are_split_and_others_are_not(kind):
    flows = every_pair(40)
    label = draw_split(kind, make_flows_region(flows.select((flows.origin < 10) & (flows.destination % 2 == 0))), None, 0).label
    active = (np.arange(40) < 10) | (np.arange(40) % 2 == 0)
    assert set(label[active]) == set(SPLITS)
    assert set(label[~active]) == {""}


@pytest.mark.parametrize(("kind", "num_units"), [("origin", 4), ("origin", 6), ("unit", 7), ("block", 5)])
def test_a_region_with_too_few_units_for_each_split_is_refused(kind, num_units):
    sentence = rf"region line has {num_units} units with flows, of which the split {kind} gives [01] to (train|valid|test), fewer than 2; "
    with pytest.raises(InputError, match=sentence + ".*--split_path"):
        draw_split(kind, make_flows_region(every_pair(num_units)), None, 0)


@pytest.mark.parametrize("kind", ["origin", "unit", "block"])
def test_each_of_several_regions_is_split_on_its_own(kind):
    parts = [make_flows_region(every_pair(count)) for count in (40, 30)]
    regions = [dataclasses.replace(part, names=(name,)) for part, name in zip(parts, ("east", "west"), strict=True)]
    renamed = tuple(f"w{geocode}" for geocode in regions[1].graph.geocodes)
    graph, flows = (dataclasses.replace(part, geocodes=renamed) for part in (regions[1].graph, regions[1].flows))
    both = join_regions([regions[0], dataclasses.replace(regions[1], graph=graph, flows=flows)])
    label = draw_split(kind, both, None, 3).label
    shares = {"origin": (0.6, 0.2, 0.2), "unit": (0.5, 0.2, 0.3), "block": (0.5, 0.2, 0.3)}[kind]
    for units in both.parts():
        for count, share in zip(counts_of(label[units]), shares, strict=True):
            assert count == pytest.approx(share * len(units), abs=2.5)


def test_neighbours_are_in_one_block_and_blocks_are_of_like_size():
    graph = make_line_graph(np.random.default_rng(0).permutation(200) / 100, [41.0] * 200)
    block = spatial_blocks(graph, np.arange(200))
    sizes = np.bincount(block)
    assert len(sizes) >= 20
    assert sizes.max() <= 2 * sizes.min() + 1
    ordered = block[np.argsort(graph.longitude)]
    assert (np.diff(ordered) != 0).sum() == len(sizes) - 1  # along the line each block is one run


def test_a_block_is_held_out_whole():
    region = make_flows_region(every_pair(200))
    label = draw_split("block", region, None, 5).label
    block = spatial_blocks(region.graph, np.arange(200))
    assert all(len(set(label[block == number])) == 1 for number in range(block.max() + 1))
    assert set(label) == set(SPLITS)


def naive_label(origin, destination):
    """The rule of the module's docstring for a split of units, for one pair."""
    ends = {origin, destination}
    if "" in ends:
        return ""
    if ends == {"test"} or ends == {"train"}:
        return ends.pop()
    return "" if "test" in ends else "valid"


@pytest.mark.parametrize("kind", ["unit", "block"])
def test_a_pair_is_tested_if_both_ends_are_and_seen_if_neither_is(kind):
    label = np.array(["train", "valid", "test", "", "train", "test"], dtype=object)
    pairs = every_pair(len(label))
    expected = [naive_label(label[i], label[j]) for i, j in zip(pairs.origin, pairs.destination, strict=True)]
    assert Split(kind, label).of(pairs).tolist() == expected
    assert set(expected) == {"train", "valid", "test", ""}


def test_a_pair_belongs_to_the_split_of_its_origin():
    label = np.array(["train", "valid", "test", ""], dtype=object)
    pairs = every_pair(4)
    assert Split("origin", label).of(pairs).tolist() == [label[i] for i in pairs.origin]


def test_pairs_are_split_at_random_by_the_pair_and_the_seed_only():
    pairs, region = every_pair(100), make_flows_region(every_pair(100))
    split = draw_split("pair", region, None, 4)
    label = split.of(pairs)
    for name, share in zip(SPLITS, (0.6, 0.2, 0.2), strict=True):
        chosen = label == name
        assert chosen.mean() == pytest.approx(share, abs=0.02)
        assert len(np.unique(pairs.origin[chosen])) == len(np.unique(pairs.destination[chosen])) == 100  # no unit is held out
    some = np.random.default_rng(0).permutation(len(pairs))[:77]
    assert split.of(pairs.select(some)).tolist() == label[some].tolist()
    assert draw_split("pair", region, None, 5).of(pairs).tolist() != label.tolist()
    assert (label.reshape(100, 100) != label.reshape(100, 100).T).any()  # the way back is another pair


@given(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1), st.integers(0, 2**31))
def test_the_hash_of_pairs_is_splitmix64(origin, destination, seed):
    mask = 2**64 - 1
    value = ((origin << 32) + destination + (seed + 1) * 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    assert int(hash_pairs(np.array([origin]), np.array([destination]), seed)[0]) == value ^ (value >> 31)


def test_a_split_without_flows_of_the_universe_is_refused():
    flows = make_flow_table([("a", "b", 20), ("b", "a", 20), ("c", "a", 5)], ("a", "b", "c"))
    split = Split("origin", np.array(["train", "valid", "test"], dtype=object))
    check_split(split, flows.universe("positive"), "positive")
    with pytest.raises(
        InputError, match=r"the test split has no flow of the universe gt10 \(of 2 such flows in all\); .*--universe positive"
    ):
        check_split(split, flows.universe("gt10"), "gt10")
    # A split that holds nothing but zeros holds no flow.
    whole = dataclasses.replace(flows.select(flows.count > 10), block=np.zeros(3, dtype=int))
    with pytest.raises(InputError, match=r"the test split has no flow of the universe full \(of 2 such flows"):
        check_split(split, whole.universe("full"), "full")


def write(path, text):
    path.write_text(text)
    return str(path)


def test_a_split_is_read_by_id_whatever_the_order(tmp_path, ledger):
    path = write(tmp_path / "split.csv", "geocode,split\n0002,test\n0000,train\n7777,valid\n")
    split = read_split(path, "unit", FOUR, ledger)
    assert (split.kind, split.label.tolist()) == ("unit", ["train", "", "test", ""])
    assert ledger.left_out == {"units of the split file that are not in the region": ["7777"]}


def test_faults_of_a_split_file_are_named_at_once(tmp_path, ledger):
    path = write(tmp_path / "split.csv", "geocode,split\n0002,test\n0002,train\n0001,validation\n")
    with pytest.raises(
        TableError, match=r"2 faults: 1 values are not among train, valid, test \(validation\).* 1 ids occur more than once \(0002\)"
    ):
        read_split(path, "origin", FOUR, ledger)
    with pytest.raises(TableError, match="needs the columns geocode and split, but has geocode, part"):
        read_split(write(tmp_path / "other.csv", "geocode,part\n0002,test\n"), "origin", FOUR, ledger)


def test_a_split_file_is_none_of_pairs(tmp_path, ledger):
    path = write(tmp_path / "split.csv", "geocode,split\n0002,test\n")
    with pytest.raises(InputError, match=r"--split_path .*split.csv holds a split of units and --split pair splits pairs"):
        read_split(path, "pair", FOUR, ledger)


def test_population_is_joined_by_id_and_unknown_ones_are_nan(tmp_path, ledger):
    path = write(tmp_path / "population.csv", "geocode,P1,name\n0002,20,x\n0000,10,y\n0001,,z\n0004,-666666666,z\n7777,70,w\n")
    values = read_population(path, "P1", ("0000", "0001", "0002", "0003", "0004"), ledger)
    np.testing.assert_array_equal(values, [10, np.nan, 20, np.nan, np.nan])


def test_a_population_that_is_no_number_is_refused(tmp_path, ledger):
    path = write(tmp_path / "population.csv", 'geocode,P1\n0002,"1,200"\n0001,5\n')
    with pytest.raises(TableError, match=r"1 values of P1 are no numbers \(1,200\); give numbers"):
        read_population(path, "P1", ("0001", "0002"), ledger)


def test_a_population_without_its_column_or_with_repeated_ids_is_refused(tmp_path, ledger):
    path = write(tmp_path / "population.csv", "geocode,P1\n0002,20\n0002,10\n")
    with pytest.raises(TableError, match=r"needs the columns geocode and population, but has geocode, P1; .*--population_column"):
        read_population(path, "population", ("0002",), ledger)
    with pytest.raises(TableError, match=r"1 ids occur more than once \(0002\)"):
        read_population(path, "P1", ("0002",), ledger)


def test_a_population_whose_ids_are_numbers_is_refused(tmp_path, ledger):
    pd.DataFrame({"geocode": [1, 2], "population": [5, 6]}).to_parquet(tmp_path / "population.parquet")
    with pytest.raises(TableError, match="leading zeros"):
        read_population(str(tmp_path / "population.parquet"), "population", ("0001", "0002"), ledger)


def test_empty_ids_of_a_split_or_a_population_are_refused(tmp_path, ledger):
    with pytest.raises(TableError, match="2 ids are empty; give every row an id, or remove the row"):
        read_split(write(tmp_path / "split.csv", "geocode,split\n0002,test\n,train\n,test\n"), "origin", FOUR, ledger)
    with pytest.raises(TableError, match="1 ids are empty"):
        read_population(write(tmp_path / "population.csv", "geocode,P1\n0002,7\n,9\n"), "P1", FOUR, ledger)


def test_a_population_of_nullable_integers_is_read(tmp_path, ledger):
    table = pd.DataFrame({"geocode": ["0000", "0001"], "P1": pd.array([5, None], dtype="Int64")})
    table.to_parquet(tmp_path / "population.parquet")
    np.testing.assert_array_equal(read_population(str(tmp_path / "population.parquet"), "P1", ("0000", "0001"), ledger), [5, np.nan])


@pytest.mark.parametrize(("kind", "omitted"), [("origin", ["b"]), ("unit", ["b", "d"])])
def test_units_with_flows_that_a_split_file_omits_are_named(ledger, kind, omitted):
    flows = make_flow_table([("a", "d", 20), ("b", "a", 3), ("c", "a", 0)], ("a", "b", "c", "d"))
    note_omitted(Split(kind, np.array(["train", "", "", ""], dtype=object)), flows, ledger)
    assert ledger.left_out == {f"{kind}s with flows that the split file omits": omitted}


@pytest.mark.parametrize("kind", ["origin", "unit", "block"])
def test_units_of_explicit_zeros_only_belong_to_no_split(kind):
    ids = tuple(f"{number:03d}" for number in range(40))
    rows = [(home, work, float(home not in ids[:5] and work not in ids[:5])) for home in ids for work in ids]
    label = draw_split(kind, make_flows_region(make_flow_table(rows, ids)), None, 0).label
    assert (label == "").tolist() == [True] * 5 + [False] * 35


@given(
    st.sampled_from(["origin", "unit", "block", "pair"]),
    st.integers(10, 40),
    st.integers(0, 10**6),
    st.sampled_from(["none", "some", "ties"]),
    st.floats(0.3, 1),
)
@settings(max_examples=40)
def test_a_split_is_disjoint_complete_and_follows_from_its_seed_alone(kind, num_units, seed, known, share):
    random = np.random.default_rng(seed)
    pairs = every_pair(num_units)
    chosen = pairs.select(random.random(len(pairs)) < share)
    population = {
        "none": None,
        "some": np.where(random.random(num_units) < 0.5, np.nan, 7.0 * np.arange(num_units)),
        "ties": np.ones(num_units),
    }
    region = make_flows_region(chosen)
    split, again = (draw_split(kind, region, population[known], seed) for _ in range(2))
    assert split.label.tolist() == again.label.tolist()
    label = split.of(chosen)
    masks = [label == name for name in SPLITS]
    assert not (masks[0] & masks[1]).any() and not (masks[0] & masks[2]).any() and not (masks[1] & masks[2]).any()
    assert set(label) <= {*SPLITS, ""}
    if kind in ("origin", "pair"):  # no pair is lost; of units those between a tested and another one are
        assert (label != "").all()
    else:
        tested = split.label == "test"
        assert ((label == "") == (tested[chosen.origin] != tested[chosen.destination])).all()
        for name in ("train", "test"):  # neither end of a pair is in two splits
            ends = np.union1d(chosen.origin[label == name], chosen.destination[label == name])
            assert (split.label[ends] == name).all()
    # The pairs' order is no part of a split.
    order = random.permutation(len(chosen))
    assert split.of(chosen.select(order)).tolist() == label[order].tolist()


@given(st.integers(10, 40), st.integers(0, 10**6))
@settings(max_examples=20)
def test_over_the_five_folds_every_pair_is_tested_once_and_trained_on_three_times(num_units, seed):
    pairs, region = every_pair(num_units), make_flows_region(every_pair(num_units))
    labels = np.stack([draw_split("origin", region, None, seed, fold).of(pairs) for fold in range(5)])  # [5, num_pairs]
    assert ((labels == "test").sum(axis=0) == 1).all()
    assert ((labels == "valid").sum(axis=0) == 1).all()
    assert ((labels == "train").sum(axis=0) == 3).all()
