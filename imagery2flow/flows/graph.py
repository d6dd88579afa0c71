"""The region as a graph: units are nodes, units that touch are joined, distance in metres is the feature of an edge (paper, Methods).

A unit that touches no other (an island) is joined to its nearest unit, and named in the ledger: without a neighbour the network would not
see its surroundings. Distances are great-circle distances between centroids unless a table of distances is given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from imagery2flow.flows.table import as_numbers, explain_unknown, note_numeric_ids, pairs_shown
from imagery2flow.imagery.units import check_polygons
from imagery2flow.run.earth import SQUARE_METRES_PER_KM2, pair_distance_m, utm_epsg
from imagery2flow.run.errors import Faults, TableError, shown
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import read_header, read_table

TOUCHING_M = 1.0  # borders that digitising left this far apart still touch


@dataclass(frozen=True)
class RegionGraph:
    """Units of a region and who is next to whom.

    Attributes:
        geocodes: Ids, sorted.
        longitude: Of the centroid, degrees WGS 84 [num_units].
        latitude: Of the centroid [num_units].
        area_km2: [num_units].
        edge: Positions of neighbour and unit [2, num_edges]; each pair in both directions, sorted.
        table_m: Distances in metres from the user's table [num_units, num_units], NaN where it has none; None without a table.
    """

    geocodes: tuple[str, ...]
    longitude: np.ndarray
    latitude: np.ndarray
    area_km2: np.ndarray
    edge: np.ndarray
    table_m: np.ndarray | None = None

    def distance_m(self, origin: np.ndarray, destination: np.ndarray) -> np.ndarray:
        """Distance of pairs of units in metres [num_pairs]: from the table where it has one, else great circle; 0 within a unit."""
        distance = pair_distance_m(self.longitude, self.latitude, origin, destination)
        if self.table_m is not None:
            given = self.table_m[origin, destination]
            distance = np.where(np.isnan(given), distance, given)
        return np.where(origin == destination, 0.0, distance)

    def edge_distance_m(self) -> np.ndarray:
        """Length of every edge: [num_edges]."""
        return self.distance_m(self.edge[0], self.edge[1])


def build_graph(units: gpd.GeoDataFrame, distance_path: str | None, ledger: Ledger, where: str = "the units") -> RegionGraph:
    """Makes the graph of a region.

    Args:
        units: Index ``geocode`` (sorted), polygons, any CRS.
        distance_path: Table of distances in metres, or None.
        ledger: Takes islands and distances that the table lacks.
        where: What to call the units in a message.

    Raises:
        InputError: The units are not polygons.
        TableError: The table of distances has faults.
    """
    check_polygons(units, "the graph", where)
    metric = units.to_crs(utm_epsg(units))
    longitude, latitude = centroid_degrees(metric.geometry)
    graph = RegionGraph(
        geocodes=tuple(units.index),
        longitude=longitude,
        latitude=latitude,
        area_km2=metric.area.to_numpy() / SQUARE_METRES_PER_KM2,
        edge=contiguity(metric.geometry, ledger),
    )
    return graph if distance_path is None else with_distances(graph, distance_path, ledger)


def centroid_degrees(polygons: gpd.GeoSeries) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude, WGS 84, of the centroids of polygons in a projected CRS [num_units]."""
    centroid = polygons.centroid.to_crs(4326)
    return centroid.x.to_numpy(), centroid.y.to_numpy()


def with_distances(graph: RegionGraph, path: str, ledger: Ledger) -> RegionGraph:
    """The same graph with distances in metres out of a table.

    Raises:
        TableError: The table of distances has faults.
    """
    table_m = read_distances(path, graph.geocodes, ledger)
    lacking = np.isnan(table_m[graph.edge[0], graph.edge[1]]).sum()
    ledger.note(f"{lacking:,} of {graph.edge.shape[1]:,} edges are not in {path} and take the great-circle distance")
    return dataclasses.replace(graph, table_m=table_m)


def join_graphs(graphs: Sequence[RegionGraph], positions: Sequence[np.ndarray]) -> RegionGraph:
    """Graphs of several regions as one without edges between them.

    Args:
        graphs: The graphs.
        positions: Where each graph's units stand in the joined one, [num_units] each.
    """
    order = np.argsort(np.concatenate(positions))
    edge = np.concatenate([place[graph.edge] for graph, place in zip(graphs, positions, strict=True)], axis=1)
    table_m = None
    if any(graph.table_m is not None for graph in graphs):
        table_m = np.full((len(order), len(order)), np.nan)
        for graph, place in zip(graphs, positions, strict=True):
            if graph.table_m is not None:
                table_m[np.ix_(place, place)] = graph.table_m
    values = {name: np.concatenate([getattr(graph, name) for graph in graphs])[order] for name in ("longitude", "latitude", "area_km2")}
    ids = [geocode for graph in graphs for geocode in graph.geocodes]
    return RegionGraph(tuple(ids[position] for position in order), **values, edge=edge[:, np.lexsort(edge[::-1])], table_m=table_m)


def contiguity(polygons: gpd.GeoSeries, ledger: Ledger) -> np.ndarray:
    """Pairs of polygons in metres that touch, both directions, islands joined to the nearest: [2, num_edges]."""
    shapes = polygons.to_numpy()
    tree = shapely.STRtree(shapes)
    left, right = tree.query(shapes, predicate="dwithin", distance=TOUCHING_M)
    edges = np.stack([left, right])[:, left != right]
    islands = np.setdiff1d(np.arange(len(shapes)), edges[0])
    if len(islands) and len(shapes) > 1:
        # The neighbour that is not the island itself; exclusive leaves out equal geometries, so compare positions instead.
        nearest = [nearest_other(tree, shapes, island) for island in islands]
        joined = np.array([islands, nearest])
        edges = np.concatenate([edges, joined, joined[::-1]], axis=1)
        names = [f"{polygons.index[island]} to {polygons.index[other]}" for island, other in zip(islands, nearest, strict=True)]
        ledger.note(f"{len(islands)} units touch no other and are joined to their nearest: {shown(names)}")
    unique = np.unique(edges, axis=1)
    return unique.astype(np.int64)


def nearest_other(tree: shapely.STRtree, shapes: np.ndarray, position: int) -> int:
    """Position of the polygon nearest to another; the first of equals."""
    distance = shapely.distance(shapes[position], shapes)
    distance[position] = np.inf
    return int(np.argmin(distance))


def read_distances(path: str | Path, geocodes: Sequence[str], ledger: Ledger) -> np.ndarray:
    """Reads a square matrix (ids in the first column and the header) or a long table (h_geocode, w_geocode, distance_m).

    Args:
        path: CSV or Parquet.
        geocodes: Ids of the region's units; empty where they are not known, so that the table itself is all that is checked.
        ledger: Takes what is left out.

    Returns:
        Metres [num_units, num_units]; NaN for what is not in the table. Off the diagonal 0 means unknown, as published.

    Raises:
        TableError: Ids are unknown or repeated, or distances are negative; all faults at once.
    """
    table, index = read_long_distances(path), pd.Index(geocodes)
    ledger.reads(path)
    faults = Faults(f"distances {path}")
    check_distances(table, index, faults)
    faults.raise_if_any()
    table = table.assign(distance_m=pd.to_numeric(table.distance_m)).dropna(subset=["distance_m"])
    table = table[(table.distance_m != 0) | (table.h_geocode == table.w_geocode)]
    origin, destination = index.get_indexer(table.h_geocode), index.get_indexer(table.w_geocode)
    inside = (origin >= 0) & (destination >= 0)
    foreign = set(table.h_geocode[origin < 0]) | set(table.w_geocode[destination < 0])
    ledger.leave_out("distances of units that are not in the region", sorted(foreign) if len(index) else ())
    matrix = np.full((len(index), len(index)), np.nan)
    matrix[origin[inside], destination[inside]] = table.distance_m.to_numpy(np.float64)[inside]
    return matrix


def read_long_distances(path: str | Path) -> pd.DataFrame:
    """Reads either form of the table as columns h_geocode, w_geocode, distance_m.

    Raises:
        TableError: A column of the long form is missing, or the header of the square form has faults.
    """
    table = read_table(path, "distances", ("h_geocode", "w_geocode", 0))
    if {"h_geocode", "w_geocode", "distance_m"} <= set(table.columns):
        return table
    if {"h_geocode", "w_geocode", "distance_m"} & set(table.columns):
        listing = shown(table.columns)
        raise TableError(f"distances {path} need the columns h_geocode, w_geocode and distance_m, but have {listing}; rename or add them")
    check_header(path)
    square = table.set_index(table.columns[0]).rename_axis("h_geocode")
    return square.melt(ignore_index=False, var_name="w_geocode", value_name="distance_m").reset_index()


def check_header(path: str | Path) -> None:
    """Refuses a header of ids, some of which are empty: pandas would rename them, and they would join to no unit.

    Raises:
        TableError: Ids are empty.
    """
    ids = read_header(path)[1:]
    faults = Faults(f"distances {path}, header")
    if "" in ids:
        faults.add(f"{ids.count('')} ids are empty; give every column the id of its unit")
    faults.raise_if_any()


def check_distances(table: pd.DataFrame, index: pd.Index, faults: Faults) -> None:
    """Notes what cannot be a distance in metres between two units."""
    numbers = as_numbers(table.distance_m)
    wrong = table.distance_m[(numbers.isna() & table.distance_m.notna()) | np.isinf(numbers)]
    if len(wrong):
        faults.add(f"{len(wrong):,} values are infinite or no numbers ({shown(wrong)}); give metres")
    if (numbers < 0).any():
        faults.add(f"{(numbers < 0).sum():,} values are negative ({shown(table.distance_m[numbers < 0])}); give metres, 0 or more")
    for column in ("h_geocode", "w_geocode"):
        if not note_numeric_ids(table[column], column, faults):
            ids = table[column].dropna()
            explain_unknown(column, pd.Index(ids[~ids.isin(index)].unique()), index, True, faults)
        if table[column].isna().any():
            faults.add(f"{table[column].isna().sum():,} values of {column} are empty; give every distance both ids")
    repeated = table[table[["h_geocode", "w_geocode"]].duplicated()]
    if len(repeated):
        faults.add(f"{len(repeated):,} pairs occur more than once ({pairs_shown(repeated)}); keep one row each")
    if len(index) and not faults.sentences and not (table.h_geocode.isin(index) & table.w_geocode.isin(index)).any():
        faults.add(
            f"none of the {len(index):,} units is named ({shown(table.h_geocode)} there, {shown(index)} in the units); check that ids are text of equal length"
        )
