"""Everything that stages 4 and 5 read of a region, joined by id: units, embeddings, flows, graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from imagery2flow.flows.graph import RegionGraph, build_graph
from imagery2flow.flows.table import FlowTable, check_unit_ids, read_flows
from imagery2flow.imagery.units import read_units
from imagery2flow.run.config import RegionConfig
from imagery2flow.run.errors import Faults, MissingInputError, TableError, shown
from imagery2flow.run.files import read_table
from imagery2flow.run.stage import Ledger


@dataclass(frozen=True)
class Region:
    """A region whose parts share one order of units.

    Attributes:
        name: Its name.
        graph: Units that have an embedding, sorted by id, and their neighbours.
        columns: Names of the embedding's columns.
        embeddings: [num_units, dim].
        flows: Observed flows between those units, or None.
    """

    name: str
    graph: RegionGraph
    columns: tuple[str, ...]
    embeddings: np.ndarray
    flows: FlowTable | None

    def __post_init__(self) -> None:
        assert len(self.graph.geocodes) == len(self.embeddings)
        assert self.flows is None or self.flows.geocodes == self.graph.geocodes


def load_region(config: RegionConfig, ledger: Ledger, flows_required: bool) -> Region:
    """Reads a region and joins its parts by id; units without an embedding, and their flows, are left out and counted.

    Raises:
        MissingInputError: A file is absent.
        TableError: A table has faults, or tables share no id.
    """
    units_path = find_units(config)
    units = read_units(units_path, config.id_column, ledger)
    ledger.came_in["units"] = len(units)
    embeddings = read_embeddings(config.node_feats_path, units.index, ledger)
    graph = build_graph(units.loc[embeddings.index], config.distance_path, ledger, f"the units {units_path}")
    flows_path = find_flows(config, flows_required, ledger)
    flows = None
    if flows_path is not None:
        flows = keep_units(read_flows(flows_path, tuple(units.index), config.drop_unknown_units, ledger), graph.geocodes, ledger)
    return Region(config.region, graph, tuple(embeddings.columns), embeddings.to_numpy(np.float32), flows)


def find_units(config: RegionConfig) -> Path:
    """The units file: as given, or in the region's folder.

    Raises:
        MissingInputError: There is none.
    """
    if config.units_path is not None:
        return Path(config.units_path)
    folder = Path(config.data_root) / config.region
    for name in ("units.gpkg", "units.shp", "units.geojson"):
        if (folder / name).is_file():
            return folder / name
    raise MissingInputError(f"region {config.region} has no units.gpkg in {folder}; put it there or name the units with --units_path")


def find_flows(config: RegionConfig, required: bool, ledger: Ledger) -> Path | None:
    """The flows: as given, or in the region's folder, the year's own first; None where there are none and none are needed.

    Raises:
        MissingInputError: Flows are required and there are none.
    """
    if config.flows_path is not None:
        return Path(config.flows_path)
    folder = Path(config.data_root) / config.region
    for name in (f"flows_{config.year}.csv", "flows.csv", f"flows_{config.year}.parquet", "flows.parquet"):
        if (folder / name).is_file():
            return folder / name
    if required:
        raise MissingInputError(
            f"region {config.region} has neither flows_{config.year}.csv nor flows.csv in {folder}; put one there or name the flows with --flows_path"
        )
    ledger.note(f"no flows in {folder}: predictions only, no scores")
    return None


def read_embeddings(path: str, units: pd.Index, ledger: Ledger) -> pd.DataFrame:
    """Reads a table of features per unit: index geocode (sorted, only units of the region), numeric columns.

    Raises:
        MissingInputError: The file is absent.
        TableError: Ids or values have faults, or no id is a unit of the region.
    """
    table = read_table(path, "features", ("geocode",))
    ledger.reads(path)
    if "geocode" not in table.columns:
        if table.index.name != "geocode":
            raise TableError(f"features {path} have no column geocode, but {shown(table.columns)}; name the column of ids geocode")
        table = table.reset_index()
    ledger.came_in["embeddings"] = len(table)
    table.columns = table.columns.astype(str)
    faults = Faults(f"features {path}")
    check_features(table, units, faults)
    faults.raise_if_any()
    table = table.set_index("geocode").sort_index()
    foreign = table.index.difference(units)
    if len(foreign) == len(table):
        faults.add(
            f"none of its {len(table):,} ids ({shown(table.index)}) is among the {len(units):,} units ({shown(units)}); use the features of this region and census year"
        )
    faults.raise_if_any()
    ledger.leave_out("embeddings of units that are not in the units file", foreign)
    ledger.leave_out("units without an embedding", units.difference(table.index))
    return table.loc[table.index.isin(units)]


def check_features(table: pd.DataFrame, units: pd.Index, faults: Faults) -> None:
    """Notes ids and values that cannot be used."""
    ids, values = table["geocode"], table.drop(columns="geocode")
    if table.empty or values.shape[1] == 0:
        faults.add(f"the table has {len(table)} rows and {values.shape[1]} columns of features; make it with get_img_embedding.py")
        return
    check_unit_ids(ids, units, faults)
    if ids.isna().any():
        faults.add(f"{ids.isna().sum()} ids are empty; give every row an id")
    texts = [str(column) for column in values if not pd.api.types.is_numeric_dtype(values[column])]
    if texts:
        first = pd.to_numeric(values[texts[0]], errors="coerce").isna().to_numpy().argmax()
        faults.add(f"columns {shown(texts)} are not numbers ({ids.iloc[first]}: {values[texts[0]].iloc[first]}); mend or remove them")
    numbers = values.drop(columns=[column for column in values if str(column) in texts])
    bad = ~np.isfinite(numbers.to_numpy(np.float64))
    if bad.any():
        faults.add(
            f"columns {shown(numbers.columns[bad.any(axis=0)])} hold missing or infinite values, in the rows of {shown(ids[bad.any(axis=1)])}; remove those columns or rows, or fill them knowingly"
        )


def keep_units(flows: FlowTable, geocodes: tuple[str, ...], ledger: Ledger) -> FlowTable:
    """The flows between the given units, with positions in that list; the rest goes to the ledger."""
    place = pd.Index(geocodes).get_indexer(pd.Index(flows.geocodes))  # [num_units before], -1 for a unit that is gone
    origin, destination = place[flows.origin], place[flows.destination]
    kept = (origin >= 0) & (destination >= 0)
    frame = flows.select(~kept).to_frame()
    ledger.leave_out("flows of units without an embedding", frame.h_geocode + ">" + frame.w_geocode)
    return FlowTable(geocodes, origin[kept], destination[kept], flows.count[kept])
