"""The OD table: who commutes from where (``h_geocode``, home) to where (``w_geocode``, work); and the split of origins.

Inside the program a pair is two positions in the sorted list of units; ids are joined once, here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from imagery2flow.run.errors import Faults, InputError, TableError, shown
from imagery2flow.run.files import read_table
from imagery2flow.run.stage import Ledger

FLOW_COLUMNS = ("h_geocode", "w_geocode", "count")
GT10_MINIMUM = 10  # the published universe keeps flows of more than 10 commuters
UNIVERSES = {"gt10": GT10_MINIMUM, "positive": 0}
SPLITS = ("train", "valid", "test")
# Of five origins of like population three are trained on, one chooses the epoch, one is tested: 60/20/20 (paper, Methods).
SPLIT_BLOCK = ("train", "train", "train", "valid", "test")


@dataclass(frozen=True)
class FlowTable:
    """Pairs of units with their flow, sorted by origin and destination.

    Attributes:
        geocodes: Ids of all units of the region, sorted.
        origin: Position of the home unit in ``geocodes``: [num_pairs].
        destination: Position of the work unit: [num_pairs].
        count: Commuters; NaN where unknown: [num_pairs].
    """

    geocodes: tuple[str, ...]
    origin: np.ndarray
    destination: np.ndarray
    count: np.ndarray

    def __post_init__(self) -> None:
        assert self.origin.shape == self.destination.shape == self.count.shape

    def __len__(self) -> int:
        return len(self.origin)

    def select(self, chosen: np.ndarray) -> FlowTable:
        """The pairs of a mask or of positions."""
        return FlowTable(self.geocodes, self.origin[chosen], self.destination[chosen], self.count[chosen])

    def universe(self, name: str) -> FlowTable:
        """The pairs of a universe: ``gt10`` or ``positive``."""
        return self.select(self.count > UNIVERSES[name])

    def of_origins(self, chosen: np.ndarray) -> FlowTable:
        """The pairs whose origin is among ``chosen``, a mask over units [num_units]."""
        return self.select(chosen[self.origin])

    def to_frame(self) -> pd.DataFrame:
        """Columns h_geocode, w_geocode, count."""
        ids = np.array(self.geocodes, dtype=object)
        return pd.DataFrame({"h_geocode": ids[self.origin], "w_geocode": ids[self.destination], "count": self.count})


def read_flows(path: str | Path, geocodes: Sequence[str], drop_unknown_units: bool, ledger: Ledger) -> FlowTable:
    """Reads and checks an OD table.

    Args:
        path: CSV or Parquet with h_geocode, w_geocode, count; more columns are allowed.
        geocodes: Ids of the region's units, sorted.
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
        faults.add(f"columns {', '.join(absent)} are missing among {', '.join(map(str, table.columns))}; rename or add them")
        faults.raise_if_any()
    ledger.came_in["flows"] = len(table)
    check_counts(table["count"], faults)
    known = check_flow_ids(table, geocodes, drop_unknown_units, faults)
    repeated = table.duplicated(["h_geocode", "w_geocode"], keep="first")
    if repeated.any():
        faults.add(f"{repeated.sum():,} pairs occur more than once ({pairs_shown(table[repeated])}); add up their counts first")
    faults.raise_if_any()
    unknown = table[~known]
    ledger.leave_out("flows of units that are not in the units file", unknown.h_geocode + ">" + unknown.w_geocode)
    return to_flow_table(table[known], geocodes)


def to_flow_table(table: pd.DataFrame, geocodes: Sequence[str]) -> FlowTable:
    """Joins ids to positions; every id must be among ``geocodes``."""
    index = pd.Index(geocodes)
    origin, destination = index.get_indexer(table.h_geocode), index.get_indexer(table.w_geocode)
    assert (origin >= 0).all() and (destination >= 0).all()
    order = np.lexsort((destination, origin))
    return FlowTable(tuple(geocodes), origin[order], destination[order], table["count"].to_numpy(np.float64)[order])


def check_counts(count: pd.Series, faults: Faults) -> None:
    """Notes counts that are no number of people."""
    numbers = pd.to_numeric(count, errors="coerce")
    absent = count.isna()
    wrong = {
        "are missing": absent,
        "are no numbers": numbers.isna() & ~absent,
        "are negative": numbers < 0,
        "are infinite": np.isinf(numbers),
        "are fractions": (numbers % 1 != 0) & numbers.notna() & ~np.isinf(numbers),
    }
    for problem, rows in wrong.items():
        if rows.any():
            # Rows are named as a text editor numbers them: the header is line 1.
            lines = shown(f"line {position + 2}: {count.iloc[position]}" for position in np.flatnonzero(rows))
            faults.add(f"{int(rows.sum()):,} counts {problem} ({lines}); a count is a whole number of commuters, 0 or more")


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
    repeated = ids[ids.duplicated()]
    if len(repeated):
        faults.add(f"{len(repeated)} ids occur more than once ({shown(repeated)}); keep one row each")


def explain_unknown(column: str, unknown: pd.Index, known: pd.Index, drop_unknown_units: bool, faults: Faults) -> None:
    """Notes unknown ids with their likely cause: leading zeros lost, another census vintage, or another area."""
    if unknown.empty:
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


def split_origins(flows: FlowTable, population: np.ndarray | None, random: np.random.Generator) -> np.ndarray:
    """Assigns origins to train, valid and test, 60/20/20, alike in population (paper, Methods).

    Origins are ranked by population; each five neighbours in rank get three, one and one at random. Origins of unknown population are
    ranked at random behind the others.

    Args:
        flows: Observed flows; a unit without outflow belongs to no split.
        population: Per unit, NaN where unknown [num_units], or None.
        random: Source of randomness.

    Returns:
        Split of each unit, "" for none: [num_units] of text.

    Raises:
        InputError: There are fewer than five origins, so that a split would be empty.
    """
    origins = np.unique(flows.origin)
    if len(origins) < len(SPLIT_BLOCK):
        raise InputError(
            f"only {len(origins)} units have flows, too few for the splits {', '.join(SPLITS)}; give a region with more, or a split with --split_path"
        )
    known = np.full(len(flows.geocodes), np.nan) if population is None else population
    # The random number decides among equal and unknown populations; NaN sorts last.
    ranked = origins[np.lexsort((random.random(len(origins)), known[origins]))]
    split = np.full(len(flows.geocodes), "", dtype=object)
    for start in range(0, len(ranked), len(SPLIT_BLOCK)):
        block = ranked[start : start + len(SPLIT_BLOCK)]
        split[block] = random.permutation(np.array(SPLIT_BLOCK, dtype=object))[: len(block)]
    return split


def read_split(path: str, flows: FlowTable, ledger: Ledger) -> np.ndarray:
    """Reads a split that was written before: geocode, split.

    Raises:
        TableError: Columns, ids or values are wrong, or a split has no flow.
    """
    table = read_table(path, "split", ("geocode",))
    ledger.reads(path)
    faults = Faults(f"split {path}")
    if not {"geocode", "split"} <= set(table.columns):
        raise TableError(f"split {path} needs the columns geocode and split, but has {', '.join(map(str, table.columns))}; rename them")
    wrong = table[~table.split.isin(SPLITS)]
    if len(wrong):
        faults.add(f"{len(wrong)} values are not among {', '.join(SPLITS)} ({shown(wrong.split)}); correct them")
    check_unit_ids(table.geocode, flows.geocodes, faults)
    faults.raise_if_any()
    by_id = table.set_index("geocode").split
    outside = by_id.index.difference(flows.geocodes)
    ledger.leave_out("units of the split file that are not in the region", outside)
    return by_id.reindex(list(flows.geocodes)).fillna("").to_numpy(object)


def check_split(split: np.ndarray, flows: FlowTable, universe: str) -> None:
    """Refuses a split in which training, validation or test has no flow.

    Raises:
        InputError: One is empty.
    """
    pairs = flows.universe(universe)
    for name in SPLITS:
        if not (split[pairs.origin] == name).any():
            raise InputError(
                f"the {name} split has no flow of the universe {universe} (of {len(pairs):,} such flows in all); use more units, --universe positive, or another --split_path"
            )


def read_population(path: str, column: str, geocodes: Sequence[str], ledger: Ledger) -> np.ndarray:
    """Population per unit, NaN where unknown or below 0, as the census codes what it withholds: [num_units].

    Raises:
        TableError: A column is missing, an id occurs more than once, or a population is no number.
    """
    table = read_table(path, "population", ("geocode",))
    ledger.reads(path)
    if not {"geocode", column} <= set(table.columns):
        raise TableError(
            f"population {path} needs the columns geocode and {column}, but has {', '.join(map(str, table.columns[:8]))}, ...; name the column with --population_column"
        )
    faults = Faults(f"population {path}")
    check_unit_ids(table.geocode, geocodes, faults)
    numbers = pd.to_numeric(table[column], errors="coerce")
    wrong = table[column][numbers.isna() & table[column].notna()]
    if len(wrong):
        faults.add(f"{len(wrong)} values of {column} are no numbers ({shown(wrong)}); give numbers, or leave the cell empty where unknown")
    faults.raise_if_any()
    values = numbers.where(numbers >= 0).set_axis(table.geocode).reindex(list(geocodes))
    ledger.leave_out("units without a known population, ranked at random in the split", values.index[values.isna()])
    return values.to_numpy(np.float64)
