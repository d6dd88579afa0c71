"""``python -m imagery2flow adopt``: a region in the published layout of folders, in the form that the stages read.

    CensusTract2020/nodeid_geocode_mapping_<region>.csv      geocode, node_id: which tracts there are
    CensusTract2020/adjacency_matrix_bycar_m_<region>.csv    square, metres by car between neighbours, else 0 or empty
    LODES/CommutingFlow_<region>_<year>gt10.csv              w_geocode, h_geocode, count, dis_m
    Nid/<region>/{train,valid,test}_nids_<fold>.csv          geocode
    */CensusTracts/tl_*_<region>.shp                         the tracts

Embeddings (Vis/) and images have the form that the stages read already.
"""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd

from imagery2flow.flows.graph import check_header
from imagery2flow.flows.splits import SPLITS
from imagery2flow.imagery.units import read_units
from imagery2flow.run.adopt_config import AdoptConfig
from imagery2flow.run.errors import Faults, InputError, MissingInputError, TableError, shown
from imagery2flow.run.files import check_output_folder, replacing
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import read_table, write_table
from imagery2flow.sources.lodes import TRACT_DIGITS


def adopt(config: AdoptConfig, ledger: Ledger) -> Path:
    """Writes what the published folder has of a region; returns the path of the run file.

    Raises:
        InputError: The folder has nothing of the region, or a file has faults.
    """
    check_output_folder(config.folder, "--data_root")
    tables = {"flows": read_published_flows(config, ledger), "distances": read_matrix(config, ledger), "split": read_nids(config, ledger)}
    if all(table is None for table in tables.values()):
        raise MissingInputError(
            f"--published {config.published} has neither LODES, CensusTract2020 nor Nid of the region {config.region} and the year {config.year}; "
            "name the folder that holds these three"
        )
    units = read_tracts(config, ledger)
    if config.pair_distances:
        tables["distances"] = with_pair_distances(tables["distances"], tables["flows"], config)
    if units is not None:
        write_tracts(config, units, ledger)
    for name, table in tables.items():
        if table is not None:
            write_table(config.folder / (f"flows_{config.year}.csv" if name == "flows" else f"{name}.csv"), table)
            ledger.went_out[name] = len(table)
    return config.folder / "adopt_run.json"


def find(config: AdoptConfig, path: str, ledger: Ledger) -> Path | None:
    """A file of the published folder, or None and a note where it is not there."""
    found = Path(config.published) / path
    if found.is_file():
        ledger.reads(found)
        return found
    ledger.note(f"{found} is not there")
    return None


def read_ids(path: Path, what: str, columns: tuple[str, ...], ledger: Ledger) -> pd.DataFrame:
    """Reads a table with tract ids, whose lost leading zeros are put back.

    Raises:
        TableError: A column is missing.
    """
    table = read_table(path, what, columns)
    absent = [column for column in columns if column not in table]
    if absent:
        raise TableError(f"{what} {path} need the columns {', '.join(columns)}, but have {shown(table.columns)}; rename them")
    return table.assign(**{column: whole_ids(table[column], f"{what} {path}", ledger) for column in columns})


def whole_ids(ids: pd.Series, where: str, ledger: Ledger) -> pd.Series:
    """Ids of tracts with the leading zero that a table of numbers has lost.

    Raises:
        TableError: Ids are no tracts'.
    """
    texts = ids.astype("object").where(ids.notna(), "")
    short = texts.str.fullmatch(rf"\d{{{TRACT_DIGITS - 1}}}")
    if short.any():
        ledger.note(f"{where}: {short.sum():,} ids had lost their leading zero ({shown(texts[short])})")
    texts = texts.where(~short, "0" + texts)
    wrong = texts[~texts.str.fullmatch(rf"\d{{{TRACT_DIGITS}}}")]
    if len(wrong):
        raise TableError(f"{where}: {len(wrong):,} ids are no census tracts ({shown(wrong)}); give ids of {TRACT_DIGITS} digits")
    return texts


def read_published_flows(config: AdoptConfig, ledger: Ledger) -> pd.DataFrame | None:
    """Flows: h_geocode, w_geocode, count, and whatever else there is."""
    path = find(config, f"LODES/CommutingFlow_{config.region}_{config.year}gt10.csv", ledger)
    if path is None:
        return None
    table = read_ids(path, "flows", ("h_geocode", "w_geocode"), ledger)
    ledger.take_in("flows", len(table))
    first = ["h_geocode", "w_geocode"]
    return table[first + [column for column in table if column not in first]]


def read_matrix(config: AdoptConfig, ledger: Ledger) -> pd.DataFrame | None:
    """Distances between neighbours: h_geocode, w_geocode, distance_m.

    Raises:
        TableError: The matrix is not square, or holds what is no number.
    """
    path = find(config, f"CensusTract2020/adjacency_matrix_bycar_m_{config.region}.csv", ledger)
    if path is None:
        return None
    table = read_table(path, "distances", (0,))
    check_header(path)
    rows, columns = (whole_ids(ids, f"distances {path}", ledger) for ids in (table.iloc[:, 0], pd.Series(table.columns[1:])))
    try:
        metres = table.iloc[:, 1:].to_numpy(np.float64)
    except ValueError as error:
        raise TableError(f"distances {path} hold what is no number ({error}); give metres, or leave the cell empty") from error
    if sorted(rows) != sorted(columns):
        raise TableError(
            f"distances {path} have other ids in the rows than in the columns ({shown(sorted(set(rows) ^ set(columns)))}); mend it"
        )
    ledger.take_in("units of the matrix", len(rows))
    origin, destination = np.nonzero(np.nan_to_num(metres))  # 0 and empty: not adjacent, or not known
    ids = columns.to_numpy()[destination]
    return pd.DataFrame({"h_geocode": rows.to_numpy()[origin], "w_geocode": ids, "distance_m": metres[origin, destination]})


def read_nids(config: AdoptConfig, ledger: Ledger) -> pd.DataFrame | None:
    """The split of origins: geocode, split; None where one of its three files is absent.

    Raises:
        TableError: A unit is in two of them.
    """
    fold = config.fold or config.region
    paths = {split: find(config, f"Nid/{config.region}/{split}_nids_{fold}.csv", ledger) for split in SPLITS}
    parts = []
    for split, path in paths.items():
        if path is None:
            return None
        parts.append(read_ids(path, f"{split} units", ("geocode",), ledger)[["geocode"]].assign(split=split))
    table = pd.concat(parts, ignore_index=True)
    faults = Faults(f"split {config.published}/Nid/{config.region}")
    repeated = table.geocode[table.geocode.duplicated()]
    if len(repeated):
        faults.add(f"{len(repeated):,} units occur more than once ({shown(repeated)}); keep each in one file")
    faults.raise_if_any()
    return table


def read_tracts(config: AdoptConfig, ledger: Ledger) -> gpd.GeoDataFrame | None:
    """The tracts, of which the published list of nodes keeps some; None and a note where there are none.

    Raises:
        InputError: Several files could be meant, or no tract is in the list.
    """
    paths = (
        [Path(config.units_path)] if config.units_path else sorted(Path(config.published).glob(f"*/CensusTracts/tl_*_{config.region}.shp"))
    )
    if len(paths) > 1:
        raise InputError(f"--published {config.published} has several files of tracts ({shown(paths)}); name one with --units_path")
    if not paths:
        ledger.note(
            f"{config.published} has no */CensusTracts/tl_*_{config.region}.shp: no units.gpkg is written; name tracts with --units_path, or fetch them with acquire"
        )
        return None
    units = read_units(paths[0], None, ledger)
    ledger.take_in("tracts", len(units))
    mapping = find(config, f"CensusTract2020/nodeid_geocode_mapping_{config.region}.csv", ledger)
    if mapping is None:
        return units
    nodes = pd.Index(read_ids(mapping, "nodes", ("geocode",), ledger).geocode)
    ledger.leave_out("tracts that are no nodes", units.index.difference(nodes))
    ledger.leave_out("nodes without a tract", nodes.difference(units.index))
    units = units[units.index.isin(nodes)]
    if units.empty:
        raise InputError(f"none of the tracts {paths[0]} is among the nodes {mapping}; give tracts of the same place and census")
    return units


def write_tracts(config: AdoptConfig, units: gpd.GeoDataFrame, ledger: Ledger) -> None:
    """Writes units.gpkg."""
    target = config.folder / "units.gpkg"
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        units.reset_index(drop=True).to_file(temporary, driver="GPKG", layer="tracts")
    ledger.went_out["units"] = len(units)


def with_pair_distances(distances: pd.DataFrame | None, flows: pd.DataFrame | None, config: AdoptConfig) -> pd.DataFrame:
    """Distances between neighbours, and those that stand beside the flows of other pairs.

    Raises:
        TableError: There are none.
    """
    if flows is None or "dis_m" not in flows:
        raise TableError(f"the flows of {config.published} have no column dis_m; leave --pair_distances out")
    beside = flows.rename(columns={"dis_m": "distance_m"})[["h_geocode", "w_geocode", "distance_m"]].dropna()
    parts = [beside] if distances is None else [distances, beside]
    return pd.concat(parts, ignore_index=True).drop_duplicates(["h_geocode", "w_geocode"])
