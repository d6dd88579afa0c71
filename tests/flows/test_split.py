"""The split of origins: drawn, stratified by population, or read (``flows.table``)."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagery2flow.flows.table import SPLITS, FlowTable, read_population, read_split, split_origins
from imagery2flow.run.errors import InputError, TableError


def flows_from(origins, num_units):
    """One flow from each of the origins."""
    geocodes = tuple(f"{n:04d}" for n in range(num_units))
    origins = np.array(origins, dtype=int)
    return FlowTable(geocodes, origins, np.zeros_like(origins), np.ones(len(origins)))


def counts_of(split):
    return [int((split == name).sum()) for name in SPLITS]


@given(num_units=st.integers(5, 60), seed=st.integers(0, 99))
def test_60_20_20_up_to_the_last_block_of_five(num_units, seed):
    split = split_origins(flows_from(range(num_units), num_units), None, np.random.default_rng(seed))
    whole_blocks, rest = divmod(num_units, 5)
    train, valid, test = (count - share * whole_blocks for count, share in zip(counts_of(split), (3, 1, 1), strict=True))
    assert train + valid + test == rest
    assert 0 <= train <= 3
    assert 0 <= valid <= 1
    assert 0 <= test <= 1


def test_each_five_neighbours_in_rank_give_three_one_and_one():
    population = np.random.default_rng(1).permutation(100) * 37.0
    split = split_origins(flows_from(range(100), 100), population, np.random.default_rng(0))
    ranked = split[np.argsort(population)]
    for start in range(0, 100, 5):
        assert sorted(ranked[start : start + 5]) == ["test", "train", "train", "train", "valid"]


def test_the_splits_are_alike_in_population():
    population = np.random.default_rng(1).permutation(500).astype(float)
    split = split_origins(flows_from(range(500), 500), population, np.random.default_rng(0))
    for name in SPLITS:
        # Within a block of five a unit is at most 2 from the block's mean, so the mean of a split is too.
        assert population[split == name].mean() == pytest.approx(population.mean(), abs=2)


def test_without_population_the_split_is_drawn_from_all_ranks():
    flows = flows_from(range(500), 500)
    first, again, other = (split_origins(flows, None, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()
    blocks = [sorted(first[start : start + 5]) for start in range(0, 500, 5)]
    assert blocks.count(["test", "train", "train", "train", "valid"]) < 60  # neighbours by id are no block


def test_origins_of_unknown_population_are_ranked_behind_the_others():
    population = np.array([5.0, np.nan, 3.0, np.nan, 4.0, 1.0, np.nan, 2.0, np.nan, np.nan])
    split = split_origins(flows_from(range(10), 10), population, np.random.default_rng(0))
    for block in (~np.isnan(population), np.isnan(population)):
        assert counts_of(split[block]) == [3, 1, 1]


def test_units_without_outflow_belong_to_no_split():
    split = split_origins(flows_from([0, 2, 4, 6, 8], 10), None, np.random.default_rng(0))
    assert counts_of(split) == [3, 1, 1]
    assert set(split[1::2]) == {""}


def test_fewer_than_five_origins_are_refused():
    with pytest.raises(InputError, match=r"only 4 units have flows, too few for the splits train, valid, test; .*--split_path"):
        split_origins(flows_from(range(4), 9), None, np.random.default_rng(0))


def write(path, text):
    path.write_text(text)
    return str(path)


def test_a_split_is_read_by_id_whatever_the_order(tmp_path, ledger):
    path = write(tmp_path / "split.csv", "geocode,split\n0002,test\n0000,train\n7777,valid\n")
    assert read_split(path, flows_from(range(4), 4), ledger).tolist() == ["train", "", "test", ""]
    assert ledger.left_out == {"units of the split file that are not in the region": ["7777"]}


def test_faults_of_a_split_file_are_named_at_once(tmp_path, ledger):
    path = write(tmp_path / "split.csv", "geocode,split\n0002,test\n0002,train\n0001,validation\n")
    with pytest.raises(
        TableError, match=r"2 faults: 1 values are not among train, valid, test \(validation\).* 1 ids occur more than once \(0002\)"
    ):
        read_split(path, flows_from(range(4), 4), ledger)
    with pytest.raises(TableError, match="needs the columns geocode and split, but has geocode, part"):
        read_split(write(tmp_path / "other.csv", "geocode,part\n0002,test\n"), flows_from(range(4), 4), ledger)


def test_population_is_joined_by_id_and_unknown_ones_are_counted(tmp_path, ledger):
    path = write(tmp_path / "population.csv", "geocode,P1,name\n0002,20,x\n0000,10,y\n0001,,z\n0004,-666666666,z\n7777,70,w\n")
    values = read_population(path, "P1", ("0000", "0001", "0002", "0003", "0004"), ledger)
    np.testing.assert_array_equal(values, [10, np.nan, 20, np.nan, np.nan])
    assert ledger.left_out == {"units without a known population, ranked at random in the split": ["0001", "0003", "0004"]}


def test_a_population_that_is_no_number_is_refused(tmp_path, ledger):
    path = write(tmp_path / "population.csv", 'geocode,P1\n0002,"1,200"\n0001,5\n')
    with pytest.raises(TableError, match=r"1 values of P1 are no numbers \(1,200\); give numbers"):
        read_population(path, "P1", ("0001", "0002"), ledger)


def test_a_population_without_its_column_or_with_repeated_ids_is_refused(tmp_path, ledger):
    path = write(tmp_path / "population.csv", "geocode,P1\n0002,20\n0002,10\n")
    with pytest.raises(TableError, match=r"needs the columns geocode and population, but has geocode, P1, .*--population_column"):
        read_population(path, "population", ("0002",), ledger)
    with pytest.raises(TableError, match=r"1 ids occur more than once \(0002\)"):
        read_population(path, "P1", ("0002",), ledger)


def test_a_population_whose_ids_are_numbers_is_refused(tmp_path, ledger):
    pd.DataFrame({"geocode": [1, 2], "population": [5, 6]}).to_parquet(tmp_path / "population.parquet")
    with pytest.raises(TableError, match="leading zeros"):
        read_population(str(tmp_path / "population.parquet"), "population", ("0001", "0002"), ledger)
