"""The OD table: who commutes from where (``h_geocode``, home) to where (``w_geocode``, work); and the split of origins.

Inside the program a pair is two positions in the sorted list of units; ids are joined once, here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from imagery2flow.run.errors import Faults, InputError, shown
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import read_table

FLOW_COLUMNS = ("h_geocode", "w_geocode", "count")
LARGEST_COUNT = 1e9  # commuters of one pair; more than any city has is a fault of the table
GT10_MINIMUM = 10  # the published universe keeps flows of more than 10 commuters
UNIVERSES = {"gt10": GT10_MINIMUM, "positive": 0, "full": -1}  # pairs with more commuters than that
UNKNOWN_BLOCK = -1


@dataclass(frozen=True)
class FlowTable:
    """Pairs of units with their flow, sorted by origin and destination.

    Attributes:
        geocodes: Ids of all units of the region, sorted.
        origin: Position of the home unit in ``geocodes``: [num_pairs].
        destination: Position of the work unit: [num_pairs].
        count: Commuters; NaN where unknown: [num_pairs].
        block: Number of the complete block that each unit belongs to, -1 for none: between two units of one block an absent pair is a zero;
            elsewhere it is unknown. [num_units], or None where nothing is complete.
    """

    geocodes: tuple[str, ...]
    origin: np.ndarray
    destination: np.ndarray
    count: np.ndarray
    block: np.ndarray | None = None

    def __post_init__(self) -> None:
        assert self.origin.shape == self.destination.shape == self.count.shape

    def __len__(self) -> int:
        return len(self.origin)

    def select(self, chosen: np.ndarray) -> FlowTable:
        """The pairs of a mask or of positions."""
        return FlowTable(self.geocodes, self.origin[chosen], self.destination[chosen], self.count[chosen], self.block)

    def universe(self, name: str) -> FlowTable:
        """The pairs of a universe, sorted: ``gt10``, ``positive``, or ``full``, in which absent pairs of a complete block are zeros.

        Raises:
            InputError: Zeros are asked of a table that is complete nowhere.
        """
        return self.with_zeros() if name == "full" else self.select(self.count > UNIVERSES[name])

    @property
    def has_zeros(self) -> bool:
        """Whether absent pairs are known to be zeros anywhere."""
        return self.block is not None and bool((self.block >= 0).any())

    def with_zeros(self) -> FlowTable:
        """Every pair of units whose flow is known to be a number or zero; pairs outside complete blocks are left out.

        Raises:
            InputError: The table is complete nowhere.
        """
        if self.block is None or not self.has_zeros:
            raise InputError(
                "the universe full needs zeros, but the flows do not say that absent pairs are zeros (a sample of the flows looks the same); "
                "give a column complete_block, or --flows_complete if the table holds every flow"
            )
        parts = [np.flatnonzero(self.block == number) for number in np.unique(self.block[self.block >= 0])]
        origin = np.concatenate([np.repeat(part, len(part)) for part in parts])
        destination = np.concatenate([np.tile(part, len(part)) for part in parts])
        num_units = len(self.geocodes)
        place = origin * num_units + destination
        order = np.argsort(place)
        count = np.zeros(len(place))
        inside = (self.block[self.origin] == self.block[self.destination]) & (self.block[self.origin] >= 0)
        found = np.searchsorted(place[order], (self.origin * num_units + self.destination)[inside])
        count[found] = self.count[inside]
        return FlowTable(self.geocodes, origin[order], destination[order], count, self.block)

    def whole_origins(self) -> np.ndarray | None:
        """The origins, if the pairs are every destination of each of them, in order: [num_origins]; else None."""
        num_units = len(self.geocodes)
        if len(self) == 0 or len(self) % num_units:
            return None
        origin, destination = self.origin.reshape(-1, num_units), self.destination.reshape(-1, num_units)
        whole = (origin == origin[:, :1]).all() and (destination == np.arange(num_units)).all()
        return origin[:, 0] if whole else None

    def of_origins(self, chosen: np.ndarray) -> FlowTable:
        """The pairs whose origin is among ``chosen``, a mask over units [num_units]."""
        return self.select(chosen[self.origin])

    def to_frame(self, categorical: bool = False) -> pd.DataFrame:
        """Columns h_geocode, w_geocode, count; ids as categories take a tenth of the time and memory where pairs are millions."""
        ids = np.array(self.geocodes, dtype=object)
        sides = [
            pd.Categorical.from_codes(side, ids, validate=False) if categorical else ids[side] for side in (self.origin, self.destination)
        ]
        return pd.DataFrame({"h_geocode": sides[0], "w_geocode": sides[1], "count": self.count})


def concatenate(first: FlowTable, second: FlowTable) -> FlowTable:
    """Pairs of two tables of one region, sorted."""
    origin, destination, count = (
        np.concatenate([getattr(first, name), getattr(second, name)]) for name in ("origin", "destination", "count")
    )
    order = np.lexsort((destination, origin))
    return FlowTable(first.geocodes, origin[order], destination[order], count[order], first.block)


def read_flows(path: str | Path, geocodes: Sequence[str], drop_unknown_units: bool, ledger: Ledger, complete: bool = False) -> FlowTable:
    """Reads and checks an OD table.

    Args:
        path: As for ``read_flow_rows``.
        geocodes: Ids of the region's units, sorted.
        drop_unknown_units: As for ``read_flow_rows``.
        ledger: Takes what is left out.
        complete: Every pair of units that is absent is a zero.

    Raises:
        MissingInputError: The file is absent.
        TableError: The table has faults; all are named at once.
    """
    rows = read_flow_rows(path, geocodes, drop_unknown_units, ledger)
    block = np.zeros(len(geocodes), np.int64) if complete else complete_blocks(rows, geocodes)
    return dataclasses.replace(to_flow_table(rows, geocodes), block=block)


def read_flow_rows(path: str | Path, geocodes: Sequence[str], drop_unknown_units: bool, ledger: Ledger) -> pd.DataFrame:
    """The rows of an OD table, checked, whose units are all known.

    Args:
        path: CSV or Parquet with h_geocode, w_geocode, count; more columns are allowed.
        geocodes: Ids of the region's units, sorted; empty where they are not known, so that the table itself is all that is checked.
        drop_unknown_units: Leave out flows that name other units, instead of refusing them.
        ledger: Takes what is left out.

    Raises:
        MissingInputError: The file is absent.
        TableError: The table has faults; all are named at once.
    """
    table = read_table(path, "flows", ("h_geocode", "w_geocode"))
    ledger.reads(path)
    faults = Faults(f"flows {path}")
    absent = [column for column in FLOW_COLUMNS if column not in table]
    if absent:
        faults.add(f"columns {', '.join(absent)} are missing among {shown(table.columns)}; rename or add them")
        faults.raise_if_any()
    ledger.take_in("flows", len(table))
    check_counts(table["count"], faults)
    known = check_flow_ids(table, geocodes, drop_unknown_units, faults)
    repeated = table.duplicated(["h_geocode", "w_geocode"], keep="first")
    if repeated.any():
        faults.add(f"{repeated.sum():,} pairs occur more than once ({pairs_shown(table[repeated])}); add up their counts first")
    faults.raise_if_any()
    if not len(geocodes):
        return table
    unknown = table[~known]
    ledger.leave_out("flows of units that are not in the units file", unknown.h_geocode + ">" + unknown.w_geocode)
    return table[known]


def complete_blocks(table: pd.DataFrame, geocodes: Sequence[str]) -> np.ndarray | None:
    """Complete block of every unit: those joined by a chain of flows whose ``complete_block`` is 1 share one; -1 for the others.

    Args:
        table: Flows whose ids are all among ``geocodes``.
        geocodes: Ids of the region's units, sorted.

    Returns:
        [num_units], or None without such a column.
    """
    if "complete_block" not in table:
        return None
    inside = table[pd.to_numeric(table.complete_block, errors="coerce") == 1]
    index = pd.Index(geocodes)
    origin, destination = index.get_indexer(inside.h_geocode), index.get_indexer(inside.w_geocode)
    links = coo_array((np.ones(len(inside)), (origin, destination)), shape=(len(index), len(index)))
    block = connected_components(links, directed=False)[1].astype(np.int64)
    named = np.zeros(len(index), dtype=bool)
    named[origin] = named[destination] = True
    return np.where(named, block, UNKNOWN_BLOCK)


def to_flow_table(table: pd.DataFrame, geocodes: Sequence[str]) -> FlowTable:
    """Joins ids to positions; every id must be among ``geocodes``."""
    index = pd.Index(geocodes)
    origin, destination = index.get_indexer(table.h_geocode), index.get_indexer(table.w_geocode)
    assert (origin >= 0).all() and (destination >= 0).all()
    order = np.lexsort((destination, origin))
    return FlowTable(tuple(geocodes), origin[order], destination[order], table["count"].to_numpy(np.float64)[order])


def check_counts(count: pd.Series, faults: Faults) -> None:
    """Notes counts that are no number of people."""
    numbers = as_numbers(count)
    absent = count.isna()
    wrong = {
        "are missing": absent,
        "are no numbers": numbers.isna() & ~absent,
        "are negative": numbers < 0,
        "are infinite": np.isinf(numbers),
        "are above a billion": (numbers > LARGEST_COUNT) & ~np.isinf(numbers),
        "are fractions": (numbers % 1 != 0) & numbers.notna() & ~np.isinf(numbers),
    }
    for problem, rows in wrong.items():
        if rows.any():
            # Rows are named as a text editor numbers them: the header is line 1.
            lines = shown(f"line {position + 2}: {count.iloc[position]}" for position in np.flatnonzero(rows))
            faults.add(f"{int(rows.sum()):,} counts {problem} ({lines}); a count is a whole number of commuters, 0 or more")


def as_numbers(values: pd.Series) -> pd.Series:
    """Values as float64, NaN for what is missing or no number; a nullable column would answer comparisons with neither true nor false."""
    numbers = pd.to_numeric(values, errors="coerce")
    return pd.Series(numbers.to_numpy(np.float64, na_value=np.nan), index=values.index, name=values.name)


def check_flow_ids(table: pd.DataFrame, geocodes: Sequence[str], drop_unknown_units: bool, faults: Faults) -> pd.Series:
    """Notes ids that cannot be joined; returns which rows join to known units on both ends."""
    known_ids = pd.Index(geocodes)
    known = pd.Series(True, index=table.index)
    for column in ("h_geocode", "w_geocode"):
        ids = table[column]
        if note_numeric_ids(ids, column, faults):
            continue
        if ids.isna().any():
            faults.add(f"{ids.isna().sum():,} values of {column} are empty; give every flow both ids")
        joined = ids.isin(known_ids)
        unknown = pd.Index(ids[~joined & ids.notna()].unique())
        known &= joined
        explain_unknown(column, unknown, known_ids, drop_unknown_units, faults)
    return known


def note_numeric_ids(ids: pd.Series, column: str, faults: Faults) -> bool:
    """Notes ids that were stored as numbers; returns whether they were."""
    numeric = pd.api.types.is_numeric_dtype(ids)
    if numeric:
        faults.add(f"{column} holds numbers ({ids.iloc[0] if len(ids) else 'none'}), so that leading zeros are lost; store ids as text")
    return numeric


def check_unit_ids(ids: pd.Series, geocodes: Sequence[str], faults: Faults) -> None:
    """Notes ids of a table per unit that are numbers, repeated, or without their leading zeros; foreign units as such may be there."""
    if not note_numeric_ids(ids, "geocode", faults):
        explain_unknown("geocode", pd.Index(ids[~ids.isin(geocodes) & ids.notna()].unique()), pd.Index(geocodes), True, faults)
    repeated = ids[ids.duplicated() & ids.notna()]
    if len(repeated):
        faults.add(f"{len(repeated)} ids occur more than once ({shown(repeated)}); keep one row each")
    if ids.isna().any():
        faults.add(f"{ids.isna().sum()} ids are empty; give every row an id, or remove the row")


def explain_unknown(column: str, unknown: pd.Index, known: pd.Index, drop_unknown_units: bool, faults: Faults) -> None:
    """Notes unknown ids with their likely cause: leading zeros lost, another census vintage, or another area; nothing where no unit is known."""
    if unknown.empty or known.empty:
        return
    width = int(pd.Series(known).str.len().mode().iloc[0])
    lost_zeros = unknown[unknown.str.removesuffix(".0").str.zfill(width).isin(known)]
    if len(lost_zeros):
        remedy = f"store ids as text of {width} characters, for example with .str.zfill({width})"
        faults.add(f"{len(lost_zeros):,} ids of {column} have lost their leading zeros ({shown(lost_zeros)}); {remedy}")
    foreign = unknown.difference(lost_zeros)
    if len(foreign) and not drop_unknown_units:
        hint = " (Connecticut's counties changed in 2022)" if foreign.str.startswith("09").any() else ""
        faults.add(
            f"{len(foreign):,} ids of {column} are not among the {len(known):,} units ({shown(foreign)}); use units of the same place and census year{hint}, "
            "or leave those flows out with --drop_unknown_units"
        )


def pairs_shown(table: pd.DataFrame) -> str:
    """The first pairs of a table, for a message."""
    return shown(f"{home}>{work}" for home, work in zip(table.h_geocode, table.w_geocode, strict=True))
