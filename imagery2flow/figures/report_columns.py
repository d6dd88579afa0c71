"""Numbers of units that the map of a report can show: totals and scores of their flows, and columns of files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from imagery2flow.figures.report_data import NAMES, OBSERVED, ReportRun
from imagery2flow.flows.breakdown import by_origin
from imagery2flow.run.errors import TableError, shown
from imagery2flow.run.report_config import ReportConfig
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import read_table


@dataclass(frozen=True)
class UnitColumn:
    """Numbers of units that the map can show.

    Attributes:
        name: What they are, with the unit of measure where one is known.
        group: Under which heading of the list they stand.
        values: NaN where there is none [num_units].
        diverging: Whether 0 is the middle of the scale.
    """

    name: str
    group: str
    values: np.ndarray
    diverging: bool = False


def unit_columns(run: ReportRun, config: ReportConfig, ledger: Ledger) -> list[UnitColumn]:
    """Every number that the map can show of a unit: totals and scores of its flows, then the columns of the files.

    Raises:
        InputError: A table that was asked for cannot be read, or lacks the column geocode.
    """
    columns = list(flow_columns(run))
    columns += numbers_of(run.units.drop(columns=run.units.geometry.name), "Units file")
    settings = run.record["config"]
    for path in [*settings.get("node_feats_path", []), *settings.get("extra_feats", [])]:
        if Path(path).is_file():
            columns += numbers_of(read_columns(path, run.units.index, ledger), "Features of the run")
        else:
            ledger.note(f"the features {path} of the run are not there any more: the map cannot show their columns")
    for path in config.columns_path:
        found = numbers_of(read_columns(path, run.units.index, ledger), Path(path).name)
        if not found:
            raise TableError(f"--columns_path {path} holds no named column of numbers; name a table that has some")
        columns += found
    return columns


def flow_columns(run: ReportRun) -> Iterable[UnitColumn]:
    """Totals of observed and predicted flows, their difference over the pairs of known flow, and the CPC of each origin's scored pairs."""
    sources = [OBSERVED] * run.has_observed + list(run.decoders)
    for side, name in (("origin", "Outflow"), ("destination", "Inflow")):
        for source in sources:
            yield UnitColumn(f"{name}, {NAMES.get(source, source)} (commuters)", "Flows", total(run, side, run.pairs[source]))
        for decoder in run.decoders * run.has_observed:
            difference = run.pairs[decoder] - run.pairs[OBSERVED]  # NaN where either is unknown
            yield UnitColumn(
                f"{name}, {NAMES.get(decoder, decoder)} minus observed (commuters)", "Flows", total(run, side, difference), diverging=True
            )
    for decoder in run.decoders:
        pairs = run.scored(decoder)
        if len(pairs):
            table = by_origin(pairs.h_geocode.to_numpy(), run.scored_pairs(decoder)).set_index("geocode").reindex(run.units.index)
            yield UnitColumn(f"CPC of the origin's scored pairs, {NAMES.get(decoder, decoder)} (0 to 1)", "Flows", table["cpc"].to_numpy())


def total(run: ReportRun, side: str, values: pd.Series) -> np.ndarray:
    """Sum of a unit's known values, NaN where it has none [num_units]."""
    known = values.notna()
    position, num_units = run.pairs[side][known], len(run.units)
    sums = np.bincount(position, values[known], minlength=num_units)
    return np.where(np.bincount(position, minlength=num_units) > 0, sums, np.nan)


def numbers_of(table: pd.DataFrame, group: str) -> list[UnitColumn]:
    """The columns of a table that hold finite numbers and have a name of their own, unlike an encoder's."""
    columns = []
    for name in table.columns:
        if pd.api.types.is_numeric_dtype(table[name]) and not str(name).isdigit():
            values = table[name].to_numpy(np.float64, na_value=np.nan)
            columns.append(UnitColumn(str(name), group, np.where(np.isfinite(values), values, np.nan)))
    return columns


def read_columns(path: str, geocodes: pd.Index, ledger: Ledger) -> pd.DataFrame:
    """A table of columns per unit, in the order of the units.

    Raises:
        TableError: It has no geocode, a geocode twice, or knows none of the units.
    """
    table = read_table(path, "columns", ("geocode",))
    ledger.reads(path)
    if "geocode" not in table:
        raise TableError(f"columns {path} lack the column geocode among {shown(table.columns)}; name the ids of the units so")
    table = table.set_index(table.pop("geocode").astype(str))
    if table.index.has_duplicates:
        raise TableError(
            f"columns {path} hold ids more than once ({shown(table.index[table.index.duplicated()].unique())}); keep one row of each"
        )
    if not table.index.isin(geocodes).any():
        raise TableError(
            f"columns {path} know none of the units ({shown(table.index)} instead of {shown(geocodes)}); name a table of this region"
        )
    ledger.leave_out(f"rows of {path} of other units", table.index.difference(geocodes))
    return table.reindex(geocodes)
