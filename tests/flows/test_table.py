import dataclasses
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagery2flow.flows.table import FlowTable, check_counts, complete_blocks, concatenate, explain_unknown, read_flows
from imagery2flow.run.errors import Faults, InputError, MissingInputError, TableError

from .conftest import make_flow_table

UNITS = ("06001", "06003", "06005")
GOOD = pd.DataFrame({"h_geocode": ["06001", "06003"], "w_geocode": ["06003", "06001"], "count": [12, 7]})


@pytest.fixture
def read(tmp_path, ledger):
    """Writes a table and reads it as flows; the suffix chooses the format."""

    def write_and_read(table, suffix=".csv", drop_unknown_units=False, **options):
        path = tmp_path / f"flows{suffix}"
        table.to_parquet(path, index=False) if suffix == ".parquet" else table.to_csv(path, index=False)
        return read_flows(path, UNITS, drop_unknown_units, ledger, **options)

    return write_and_read


def changed(column, value):
    """The good table with one value of its second row replaced."""
    table = GOOD.astype(object)
    table.loc[1, column] = value
    return table


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_flows_become_positions_in_the_sorted_units(read, ledger, suffix):
    flows = read(GOOD, suffix)
    assert flows.geocodes == UNITS
    assert (flows.origin.tolist(), flows.destination.tolist(), flows.count.tolist()) == ([0, 1], [1, 0], [12.0, 7.0])
    assert ledger.came_in == {"flows": 2}
    assert ledger.left_out == {}
    assert ledger.inputs[0].name == f"flows{suffix}"


def test_more_columns_are_allowed_and_the_order_of_rows_does_not_matter(read):
    table = GOOD.assign(distance_m=3.5)
    first, second = read(table), read(table[::-1])
    for name in ("origin", "destination", "count"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_rows_are_sorted_by_origin_then_destination():
    flows = make_flow_table([("b", "b", 3), ("a", "b", 2), ("b", "a", 4), ("a", "a", 1)], ("a", "b"))
    assert flows.to_frame().to_numpy().tolist() == [["a", "a", 1], ["a", "b", 2], ["b", "a", 4], ["b", "b", 3]]


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (GOOD.drop(columns="count"), "columns count are missing among h_geocode, w_geocode"),
        (
            GOOD.rename(columns={"h_geocode": "home", "w_geocode": "work"}),
            "columns h_geocode, w_geocode are missing among home, work, count",
        ),
        (changed("count", None), r"1 counts are missing \(line 3: nan\)"),
        (changed("count", -4), r"1 counts are negative \(line 3: -4\)"),
        (changed("count", 2.5), r"1 counts are fractions \(line 3: 2.5\)"),
        (changed("count", "many"), r"1 counts are no numbers \(line 3: many\)"),
        (changed("count", np.inf), r"1 counts are infinite \(line 3: inf\)"),
        (pd.concat([GOOD, GOOD[:1]]), r"1 pairs occur more than once \(06001>06003\); add up their counts first"),
        (changed("w_geocode", "48001"), r"1 ids of w_geocode are not among the 3 units \(48001\).*--drop_unknown_units"),
        (changed("h_geocode", "09001"), r"1 ids of h_geocode .*\(Connecticut's counties changed in 2022\)"),
        (
            changed("h_geocode", "6001"),
            r"1 ids of h_geocode have lost their leading zeros \(6001\); store ids as text of 5 characters.*zfill\(5\)",
        ),
        (changed("h_geocode", "6001.0"), r"1 ids of h_geocode have lost their leading zeros \(6001.0\)"),
        (changed("h_geocode", None), "1 values of h_geocode are empty; give every flow both ids"),
    ],
)
def test_each_fault_is_named_with_its_value(read, table, sentence):
    with pytest.raises(TableError, match=sentence) as error:
        read(table)
    assert "flows.csv: " in str(error.value)
    assert "\n" not in str(error.value)
    assert "faults" not in str(error.value)  # only one


def test_all_faults_are_named_at_once(read):
    table = pd.DataFrame(
        {
            "h_geocode": ["06001", "06001", "6003", "99999", "06005"],
            "w_geocode": ["06003", "06003", "06001", "06001", None],
            "count": ["1", "-2", "2.5", "x", None],
        }
    )
    with pytest.raises(TableError) as error:
        read(table)
    message = str(error.value)
    assert ": 8 faults: " in message
    for part in ("missing (line 6", "no numbers (line 5: x", "negative (line 3: -2", "fractions (line 4: 2.5"):
        assert part in message
    for part in ("lost their leading zeros (6003)", "not among the 3 units (99999)", "w_geocode are empty", "06001>06003"):
        assert part in message


def test_ids_stored_as_numbers_are_refused(read):
    numbers = GOOD.astype({"h_geocode": int, "w_geocode": int})
    with pytest.raises(
        TableError, match=r"2 faults: h_geocode holds numbers \(6001\).* w_geocode holds numbers \(6003\).*store ids as text"
    ):
        read(numbers, ".parquet")
    with pytest.raises(TableError, match="leading zeros"):
        read(numbers, ".csv")  # the zeros are lost in the file itself


@pytest.mark.parametrize("kind", ["str", "float", "Int64", "uint8"])
def test_whole_counts_of_any_type_are_read(read, kind):
    assert read(GOOD.astype({"count": kind}), ".parquet").count.tolist() == [12.0, 7.0]


@pytest.mark.parametrize("kind", ["int64", "str"])
def test_an_empty_table_is_read_or_refused_but_does_not_crash(read, kind):
    empty = GOOD[:0].astype({"h_geocode": kind, "w_geocode": kind})
    try:
        assert len(read(empty, ".parquet")) == 0
    except InputError as error:
        assert "flows.parquet" in str(error)


def test_flows_of_unknown_units_can_be_left_out_and_are_counted(read, ledger):
    table = pd.concat([GOOD, pd.DataFrame({"h_geocode": ["48001", "06001"], "w_geocode": ["06001", "48003"], "count": [5, 6]})])
    flows = read(table, drop_unknown_units=True)
    assert flows.count.tolist() == [12.0, 7.0]
    assert ledger.left_out == {"flows of units that are not in the units file": ["48001>06001", "06001>48003"]}
    assert ledger.came_in == {"flows": 4}


def test_lost_zeros_are_refused_even_where_unknown_units_may_be_left_out(read):
    with pytest.raises(TableError, match="lost their leading zeros"):
        read(changed("h_geocode", "6001"), drop_unknown_units=True)


def test_a_missing_file_an_unknown_kind_and_a_damaged_table_are_refused(tmp_path, ledger):
    with pytest.raises(MissingInputError, match=r"flows .*gone.csv does not exist"):
        read_flows(tmp_path / "gone.csv", UNITS, False, ledger)
    for name, content in (
        ("flows.xlsx", b"x"),
        ("empty.csv", b""),
        ("damaged.parquet", b"PAR1 and no more"),
        ("binary.csv", b"\xff\xfe\x00\x80,\n"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            read_flows(tmp_path / name, UNITS, False, ledger)


def test_universes_and_origins_select_pairs():
    flows = make_flow_table([("a", "a", 0), ("a", "b", 10), ("b", "a", 11), ("b", "b", 1)], ("a", "b"))
    assert flows.universe("gt10").count.tolist() == [11]
    assert flows.universe("positive").count.tolist() == [10, 11, 1]
    assert flows.of_origins(np.array([False, True])).count.tolist() == [11, 1]
    assert len(FlowTable(("a",), *(np.zeros(0, dtype=int),) * 2, np.zeros(0)).universe("gt10")) == 0


def naive_full(flows):
    """Count of every pair of units of one complete block, pair by pair."""
    known = dict(zip(zip(flows.origin.tolist(), flows.destination.tolist(), strict=True), flows.count.tolist(), strict=True))
    number = flows.block.tolist()
    units = range(len(number))
    return {(i, j): known.get((i, j), 0.0) for i in units for j in units if number[i] >= 0 and number[i] == number[j]}


@given(
    st.dictionaries(st.tuples(st.integers(0, 4), st.integers(0, 4)), st.integers(0, 30), max_size=12),
    st.lists(st.integers(-1, 2), min_size=5, max_size=5).filter(lambda block: max(block) >= 0),
)
def test_the_universe_full_holds_every_pair_of_a_complete_block_sorted_and_absent_ones_are_zeros(counts, block):
    flows = make_flow_table([(f"{i}", f"{j}", count) for (i, j), count in counts.items()], tuple("01234"))
    flows = dataclasses.replace(flows, block=np.array(block))
    full, expected = flows.universe("full"), naive_full(flows)
    assert list(zip(full.origin.tolist(), full.destination.tolist(), strict=True)) == sorted(expected)
    assert full.count.tolist() == [expected[pair] for pair in sorted(expected)]


@pytest.mark.parametrize("block", [None, [-1, -1]])
def test_zeros_of_a_table_that_is_complete_nowhere_are_refused(block):
    flows = dataclasses.replace(make_flow_table([("a", "b", 5)], ("a", "b")), block=None if block is None else np.array(block))
    assert not flows.has_zeros
    with pytest.raises(InputError, match=r"the universe full needs zeros, .*give a column complete_block, or --flows_complete"):
        flows.universe("full")


def test_without_a_word_about_it_a_table_is_complete_nowhere(read):
    assert read(GOOD).block is None


def test_a_table_declared_complete_is_complete_everywhere(read):
    flows = read(GOOD, complete=True)
    assert len(flows.universe("full")) == 9
    assert flows.universe("full").count.tolist() == [0, 12, 0, 7, 0, 0, 0, 0, 0]


def test_units_joined_by_a_chain_of_complete_flows_are_one_block():
    rows = [("a", "b", 1), ("c", "b", 1), ("d", "d", 1), ("e", "a", 0), ("e", "f", None)]
    table = pd.DataFrame(rows, columns=["h_geocode", "w_geocode", "complete_block"])
    block = complete_blocks(table, tuple("abcdef"))
    assert block[0] == block[1] == block[2] >= 0
    assert block[3] >= 0
    assert block[3] != block[0]
    assert block[4:].tolist() == [-1, -1]
    assert complete_blocks(table.drop(columns="complete_block"), tuple("abcdef")) is None


def test_the_column_complete_block_is_read(read):
    flows = read(GOOD.assign(complete_block=[1, 0]))
    assert flows.block[0] == flows.block[1] >= 0
    assert flows.block[2] == -1
    assert flows.universe("full").to_frame()["count"].tolist() == [0, 12, 7, 0]


def test_zeros_are_lost_only_where_adding_them_gives_a_known_id():
    faults = Faults("table")
    explain_unknown("geocode", pd.Index(["6001", "6002"]), pd.Index(UNITS), False, faults)
    lost, foreign = faults.sentences
    assert "(6001)" in lost
    assert "(6002)" in foreign


def test_missing_and_negative_counts_of_a_nullable_column_are_named():
    faults = Faults("flows")
    check_counts(pd.Series([3, None, -2], dtype="Int64"), faults)
    assert [sentence.split(" (")[0] for sentence in faults.sentences] == ["1 counts are missing", "1 counts are negative"]


def test_whole_origins_are_known_by_every_destination_in_order():
    count = np.ones(6)
    rows = FlowTable(("a", "b", "c"), np.repeat([2, 0], 3), np.tile(np.arange(3), 2), count)
    assert rows.whole_origins().tolist() == [2, 0]
    assert rows.select(np.arange(5)).whole_origins() is None  # half an origin
    assert rows.select(np.array([0, 2, 1, 3, 4, 5])).whole_origins() is None  # out of order
    assert rows.select(np.array([0, 4, 2, 3, 1, 5])).whole_origins() is None  # of two origins
    assert rows.select(np.zeros(0, int)).whole_origins() is None


def test_two_tables_are_joined_in_order():
    ids = ("a", "b", "c")
    table = make_flow_table([(o, d, 2.0 + n) for n, (o, d) in enumerate(product(ids, ids))], ids)
    even = np.arange(len(table)) % 2 == 0
    joined = concatenate(table.select(~even), table.select(even))
    for name in ("origin", "destination", "count"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(table, name))
