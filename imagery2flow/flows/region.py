"""Everything that stages 4 and 5 read of a region, joined by id: units, embeddings, flows, graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import geopandas as gpd
import numpy as np
import pandas as pd

from imagery2flow.flows.graph import RegionGraph, build_graph, join_graphs, read_distances, with_distances
from imagery2flow.flows.table import UNKNOWN_BLOCK, FlowTable, as_numbers, check_unit_ids, read_flow_rows, read_flows
from imagery2flow.imagery.units import read_units
from imagery2flow.run.errors import Faults, InputError, MissingInputError, TableError, shown
from imagery2flow.run.files import read_json
from imagery2flow.run.flow_config import Place, RegionConfig
from imagery2flow.run.inspection import Inspection
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import read_table, untrained_path

CHECKPOINT_SUFFIX = ".pth"  # of the file of an encoder, as stage 2 writes it
STATISTICS = ("_mean", "_std")  # endings of the columns that stage 3 adds to the encoder's
EXTRA = "extra_"  # of columns of other tables that are named like an image's


class DataFolder(Protocol):
    """Settings that say where a region's files lie."""

    @property
    def data_root(self) -> str:
        """Folder of the regions."""

    @property
    def year(self) -> int:
        """Year of the flows."""


class EncoderFile(NamedTuple):
    """An encoder's checkpoint: where it lay when it was used, and the hash of its content, by which two are told apart."""

    path: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.path} (sha256 {self.sha256[:8]})"


@dataclass(frozen=True)
class Region:
    """A region whose parts share one order of units.

    Attributes:
        names: Its name, or the names of the regions that were joined.
        graph: Units that have an embedding, sorted by id, and their neighbours; regions are not neighbours.
        part: Number of the region in ``names`` that each unit belongs to [num_units].
        columns: Names of the embedding's columns.
        embeddings: [num_units, dim].
        flows: Observed flows between those units, within regions, or None.
        untrained: Numbered columns as an encoder with random weights gives them [num_units, dim], for a control; None where there are none.
        encoder: The encoder whose vectors these are; None where it is not known.
    """

    names: tuple[str, ...]
    graph: RegionGraph
    part: np.ndarray
    columns: tuple[str, ...]
    embeddings: np.ndarray
    flows: FlowTable | None
    untrained: np.ndarray | None = None
    encoder: EncoderFile | None = None

    def __post_init__(self) -> None:
        assert len(self.graph.geocodes) == len(self.embeddings) == len(self.part)
        assert self.flows is None or self.flows.geocodes == self.graph.geocodes

    @property
    def name(self) -> str:
        """The regions' names in one word."""
        return "+".join(self.names)

    def parts(self) -> list[np.ndarray]:
        """Positions of each region's units."""
        return [np.flatnonzero(self.part == number) for number in range(len(self.names))]

    def observed(self) -> FlowTable:
        """The observed flows, where there must be some."""
        assert self.flows is not None
        return self.flows


def load_region(config: RegionConfig, ledger: Ledger, flows_required: bool) -> Region:
    """Reads one or several regions as one, whose parts are no neighbours.

    Raises:
        MissingInputError: A file is absent.
        TableError: A table has faults, or tables share no id.
        InputError: Two regions share ids or columns differ.
    """
    return join_regions(load_places(config, ledger, flows_required))


def load_places(config: RegionConfig, ledger: Ledger, flows_required: bool) -> list[Region]:
    """Reads regions one by one; the faults of all of them are one error.

    Raises:
        MissingInputError: A file is absent.
        TableError: A table has faults, or tables share no id.
    """
    inspection = Inspection(ledger)
    read = [(place, read_parts(config, place, inspection, flows_required)) for place in config.places()]
    inspection.raise_if_any()
    return [join_parts(place, parts, ledger) for place, parts in read]


@dataclass(frozen=True)
class PlaceParts:
    """What could be read of a region; None for what is not there, and for what has faults.

    Attributes:
        units_path: File of the units.
        flows_path: File of the flows.
        units: Polygons, index ``geocode``.
        features: Vectors, index ``geocode``; only units of the region.
        flows: Observed flows between all units.
        graph: Of the units that have features; of all where there are no features.
        untrained: Numbered columns of an untrained encoder [num_units, dim].
        encoder: The encoder of the features.
    """

    units_path: Path | None
    flows_path: Path | None
    units: gpd.GeoDataFrame | None
    features: pd.DataFrame | None
    flows: FlowTable | None
    graph: RegionGraph | None
    untrained: np.ndarray | None = None
    encoder: EncoderFile | None = None


def read_parts(config: RegionConfig, place: Place, inspection: Inspection, flows_required: bool) -> PlaceParts:
    """Reads all files of a region, whatever faults the others have; where the units have faults, the tables are checked for themselves."""
    ledger = inspection.ledger
    units, units_path = None, inspection.look(f"region {place.region}", find_units, config, place)
    if units_path is not None:
        units = inspection.look(units_path, read_units, units_path, config.id_column, ledger)
    known = pd.Index([]) if units is None else units.index
    ledger.take_in("units", len(known))
    features = read_features(config, place, known, inspection)
    graph = None
    if units is not None:
        members = units if features is None else units.loc[features.index]
        graph = inspection.look(units_path, build_graph, members, None, ledger, f"the units {units_path}")
    if place.distance_path is not None and graph is not None:
        graph = inspection.look(place.distance_path, with_distances, graph, place.distance_path, ledger)
    elif place.distance_path is not None:
        inspection.look(place.distance_path, read_distances, place.distance_path, tuple(known), ledger)
    flows_path = inspection.look(f"region {place.region}", find_flows, config, place, flows_required, ledger)
    flows = None if flows_path is None else look_at_flows(config, flows_path, tuple(known), inspection)
    parts = PlaceParts(units_path, flows_path, units, features, flows, graph)
    path = place.node_feats_path
    if features is None or path is None:
        return parts
    untrained = inspection.look(untrained_path(path), read_untrained, path, features, known, ledger)
    return replace(parts, untrained=untrained, encoder=inspection.look(path, find_encoder, path, ledger))


def read_features(config: RegionConfig, place: Place, units: pd.Index, inspection: Inspection) -> pd.DataFrame | None:
    """The region's features with those of further tables; None where there are none, or one table has faults."""
    ledger, features = inspection.ledger, None
    if place.node_feats_path is not None:
        features = inspection.look(place.node_feats_path, read_embeddings, place.node_feats_path, units, ledger)
    for path in config.extra_feats:
        if features is None:
            inspection.look(path, read_embeddings, path, units, ledger)
        else:
            features = inspection.look(path, join_features, features, path, units, ledger)
    return features


def look_at_flows(config: RegionConfig, path: Path, geocodes: tuple[str, ...], inspection: Inspection) -> FlowTable | None:
    """The region's flows; None where they have faults, or no unit is known."""
    ledger = inspection.ledger
    if not geocodes:
        inspection.look(path, read_flow_rows, path, geocodes, config.drop_unknown_units, ledger)
        return None
    return inspection.look(path, read_flows, path, geocodes, config.drop_unknown_units, ledger, config.flows_complete)


def join_parts(place: Place, parts: PlaceParts, ledger: Ledger) -> Region:
    """Joins the parts of a region by id; flows of units without an embedding are left out and counted.

    Raises:
        MissingInputError: There are no features.
    """
    features, graph = parts.features, parts.graph
    if features is None:
        raise MissingInputError(
            f"--node_feats_path names no features of region {place.region}; name the table that get_img_embedding.py wrote"
        )
    assert graph is not None
    flows = None if parts.flows is None else keep_units(parts.flows, graph.geocodes, ledger)
    part = np.zeros(len(features), dtype=np.int64)
    values = features.to_numpy(np.float32)
    return Region((place.region,), graph, part, tuple(features.columns), values, flows, parts.untrained, parts.encoder)


def find_encoder(path: str, ledger: Ledger) -> EncoderFile | None:
    """The encoder that a table of features says it comes from, or None for a table that stage 3 did not write.

    Raises:
        InputError: What stands beside the table is no run file.
    """
    run_file = Path(path + ".run.json")
    remedy = "make the features again with get_img_embedding.py, or remove the file"
    inputs = read_json(run_file, "run file", remedy).get("inputs_sha256", {}) if run_file.is_file() else {}
    if not isinstance(inputs, dict) or not all(isinstance(digest, str) for digest in inputs.values()):
        raise InputError(f"run file {run_file} names its inputs_sha256 otherwise than as hashes by path; {remedy}")
    found = [EncoderFile(name, digest) for name, digest in inputs.items() if name.endswith(CHECKPOINT_SUFFIX)]
    if len(found) != 1:
        ledger.note(f"no {run_file} tells which encoder made the features {path}: that it is the same as another region's is not checked")
        return None
    return found[0]


def read_untrained(path: str, embeddings: pd.DataFrame, units: pd.Index, ledger: Ledger) -> np.ndarray | None:
    """Columns of the untrained encoder that stage 3 wrote beside the table [num_units, dim], or None."""
    other = untrained_path(path)
    numbered = [column for column in embeddings if column.isdigit()]
    if not numbered or not other.is_file():
        return None
    ledger.reads(other)
    # A ledger of its own: what it leaves out the trained encoder's table left out before.
    table = read_embeddings(str(other), units, Ledger(ledger.stage, quiet=True)).reindex(embeddings.index)
    if set(numbered) - set(table.columns) or table.isna().to_numpy().any():
        raise TableError(f"features {other} have other ids or columns than {path}; make both with get_img_embedding.py")
    return table[numbered].to_numpy(np.float32)


def join_regions(regions: Sequence[Region]) -> Region:
    """Several regions as one, units sorted by id; no edge, no flow and no distance leads from one to another.

    Raises:
        InputError: Regions share ids, or their columns differ.
    """
    first = regions[0]
    if len(regions) == 1:
        return first
    ids = np.concatenate([np.array(region.graph.geocodes, dtype=object) for region in regions])
    owner = np.concatenate([np.full(len(region.graph.geocodes), number) for number, region in enumerate(regions)])
    repeated = pd.Index(ids)[pd.Index(ids).duplicated()]
    if len(repeated):
        raise InputError(
            f"the regions {' '.join(region.name for region in regions)} share {len(repeated)} ids of units ({shown(repeated)}); give each unit an id of its own"
        )
    for region in regions[1:]:
        differing = set(region.columns) ^ set(first.columns)
        if differing:
            raise TableError(
                f"the features of {first.name} and {region.name} differ in the columns {shown(sorted(differing))}; embed both with one encoder"
            )
    encoder = common_encoder(regions)
    order = np.argsort(ids)
    place = np.empty(len(ids), dtype=np.int64)  # position in the joined region of a unit of the concatenated ones
    place[order] = np.arange(len(ids))
    starts = np.cumsum([0] + [len(region.graph.geocodes) for region in regions[:-1]])
    positions = [place[start : start + len(region.graph.geocodes)] for start, region in zip(starts, regions, strict=True)]
    embeddings = np.concatenate([region.embeddings[:, [region.columns.index(name) for name in first.columns]] for region in regions])
    names = tuple(region.name for region in regions)
    graph = join_graphs([region.graph for region in regions], positions)
    tables = [region.flows for region in regions]
    flows = (
        None if any(table is None for table in tables) else join_flows([region.observed() for region in regions], positions, graph.geocodes)
    )
    untrained = None
    if all(region.untrained is not None for region in regions):
        numbered = [name for name in first.columns if name.isdigit()]
        untrained = np.concatenate([untrained_columns(region, numbered) for region in regions])[order]
    return Region(names, graph, owner[order], first.columns, embeddings[order], flows, untrained, encoder)


def common_encoder(regions: Sequence[Region]) -> EncoderFile | None:
    """The encoder of all regions, or None where it is known of none.

    Raises:
        InputError: They come from different encoders, whose columns mean different things under equal names.
    """
    known = [region for region in regions if region.encoder is not None]
    for region in known[1:]:
        first = known[0]
        assert first.encoder is not None
        assert region.encoder is not None
        if region.encoder.sha256 != first.encoder.sha256:
            raise InputError(
                f"the features of {first.name} come from the encoder {first.encoder} and those of {region.name} from {region.encoder}; embed both with one encoder"
            )
    return known[0].encoder if known else None


def untrained_columns(region: Region, names: Sequence[str]) -> np.ndarray:
    """Numbered columns of the untrained encoder in the order of ``names``: [num_units, len(names)]."""
    assert region.untrained is not None
    numbered = [name for name in region.columns if name.isdigit()]
    return region.untrained[:, [numbered.index(name) for name in names]]


def join_flows(tables: Sequence[FlowTable], positions: Sequence[np.ndarray], geocodes: tuple[str, ...]) -> FlowTable:
    """Flow tables of several regions as one, by the positions of their units in it."""
    origin, destination, count = (
        np.concatenate(parts)
        for parts in (
            [place[table.origin] for table, place in zip(tables, positions, strict=True)],
            [place[table.destination] for table, place in zip(tables, positions, strict=True)],
            [table.count for table in tables],
        )
    )
    block = np.full(len(geocodes), UNKNOWN_BLOCK, dtype=np.int64)
    first_free = 0
    for table, place in zip(tables, positions, strict=True):
        if table.block is not None:
            block[place] = np.where(table.block >= 0, table.block + first_free, UNKNOWN_BLOCK)
            first_free += int(table.block.max()) + 1
    order = np.lexsort((destination, origin))
    return FlowTable(geocodes, origin[order], destination[order], count[order], block)


def find_units(config: DataFolder, place: Place) -> Path:
    """The units file: as given, or in the region's folder.

    Raises:
        MissingInputError: There is none.
    """
    if place.units_path is not None:
        return Path(place.units_path)
    folder = Path(config.data_root) / place.region
    for name in ("units.gpkg", "units.shp", "units.geojson"):
        if (folder / name).is_file():
            return folder / name
    raise MissingInputError(f"region {place.region} has no units.gpkg in {folder}; put it there or name the units with --units_path")


def find_flows(config: DataFolder, place: Place, required: bool, ledger: Ledger) -> Path | None:
    """The flows: as given, or in the region's folder, the year's own first; None where there are none and none are needed.

    Raises:
        MissingInputError: Flows are required and there are none.
    """
    if place.flows_path is not None:
        return Path(place.flows_path)
    folder = Path(config.data_root) / place.region
    for name in (f"flows_{config.year}.csv", "flows.csv", f"flows_{config.year}.parquet", "flows.parquet"):
        if (folder / name).is_file():
            return folder / name
    if required:
        raise MissingInputError(
            f"region {place.region} has neither flows_{config.year}.csv nor flows.csv in {folder}; put one there or name the flows with --flows_path"
        )
    ledger.note(f"no flows in {folder}: predictions only, no scores")
    return None


def read_embeddings(path: str, units: pd.Index, ledger: Ledger) -> pd.DataFrame:
    """Reads a table of features per unit: index geocode (sorted, only units of the region), numeric columns.

    Args:
        path: CSV or Parquet.
        units: Ids of the region's units; empty where they are not known, so that the table itself is all that is checked.
        ledger: Takes what is left out.

    Raises:
        MissingInputError: The file is absent.
        TableError: Ids or values have faults, or no id is a unit of the region.
    """
    table = read_table(path, "features", ("geocode",))
    ledger.reads(path)
    if "geocode" not in table.columns:
        raise TableError(f"features {path} have no column geocode, but {shown(table.columns)}; name the column of ids geocode")
    ledger.take_in("embeddings", len(table))
    table.columns = table.columns.astype(str)
    faults = Faults(f"features {path}")
    check_features(table, units, faults)
    faults.raise_if_any()
    table = table.set_index("geocode").sort_index()
    if units.empty:
        return table
    foreign = table.index.difference(units)
    if len(foreign) == len(table):
        faults.add(
            f"none of its {len(table):,} ids ({shown(table.index)}) is among the {len(units):,} units ({shown(units)}); use the features of this region and census year"
        )
    faults.raise_if_any()
    ledger.leave_out("embeddings of units that are not in the units file", foreign)
    ledger.leave_out("units without an embedding", units.difference(table.index))
    return table.loc[table.index.isin(units)]


def join_features(features: pd.DataFrame, path: str, units: pd.Index, ledger: Ledger) -> pd.DataFrame:
    """Joins another table of features by id; columns named like an image's get another name, so that they are not taken for one's.

    Raises:
        TableError: The table has faults, or shares a column's name with the others.
    """
    more = read_embeddings(path, units, ledger)
    more.columns = pd.Index([f"{EXTRA}{column}" if is_image_column(column) else column for column in more.columns])
    shared = more.columns.intersection(features.columns)
    if len(shared):
        raise TableError(f"features {path} share the columns {shown(shared)} with another table of features; rename them")
    return features.join(more, how="inner")


def is_image_column(name: str) -> bool:
    """Whether a column of features comes from the image: the encoder's, or a band's mean or deviation."""
    return name.isdigit() or (name.endswith(STATISTICS) and not name.startswith(EXTRA))


def check_features(table: pd.DataFrame, units: pd.Index, faults: Faults) -> None:
    """Notes ids and values that cannot be used."""
    ids, values = table["geocode"], table.drop(columns="geocode")
    if table.empty or values.shape[1] == 0:
        faults.add(f"the table has {len(table)} rows and {values.shape[1]} columns of features; make it with get_img_embedding.py")
        return
    check_unit_ids(ids, units, faults)
    texts = [str(column) for column in values if not pd.api.types.is_numeric_dtype(values[column])]
    if texts:
        first = pd.to_numeric(values[texts[0]], errors="coerce").isna().to_numpy().argmax()
        faults.add(f"columns {shown(texts)} are not numbers ({ids.iloc[first]}: {values[texts[0]].iloc[first]}); mend or remove them")
    numbers = values.drop(columns=[column for column in values if str(column) in texts])
    with np.errstate(over="ignore"):  # a number above 3.4e38 is infinite in the precision that the models compute in
        bad = ~np.isfinite(
            np.column_stack([as_numbers(numbers[column]) for column in numbers] or [np.zeros((len(ids), 0))]).astype(np.float32)
        )
    if bad.any():
        faults.add(
            f"columns {shown(numbers.columns[bad.any(axis=0)])} hold missing, infinite or too large values (above 3.4e38), in the rows of {shown(ids[bad.any(axis=1)])}; remove those columns or rows, or fill them knowingly"
        )


def keep_units(flows: FlowTable, geocodes: tuple[str, ...], ledger: Ledger) -> FlowTable:
    """The flows between the given units, with positions in that list; the rest goes to the ledger."""
    place = pd.Index(geocodes).get_indexer(pd.Index(flows.geocodes))  # [num_units before], -1 for a unit that is gone
    origin, destination = place[flows.origin], place[flows.destination]
    kept = (origin >= 0) & (destination >= 0)
    frame = flows.select(~kept).to_frame()
    ledger.leave_out("flows of units without an embedding", frame.h_geocode + ">" + frame.w_geocode)
    block = None if flows.block is None else flows.block[pd.Index(flows.geocodes).get_indexer(pd.Index(geocodes))]
    return FlowTable(geocodes, origin[kept], destination[kept], flows.count[kept], block)
