"""Shortest ways for cars on an extract of OpenStreetMap.

Every way with a highway for cars is cut into edges between its nodes, with their great-circle lengths; a one-way street has edges in one direction.
A place is moved to the nearest node of a part of the network whose nodes reach each other, as routing services do: a car park behind a barrier, or
a road that the edge of the extract cuts off, leads nowhere. Turn restrictions, ferries and speeds are not considered.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.spatial import cKDTree

from imagery2flow.run.earth import EARTH_RADIUS_M, pair_distance_m
from imagery2flow.run.errors import InputError, first_sentence
from imagery2flow.run.files import existing_file
from imagery2flow.run.stage import Ledger

MAIN_ROADS = ("motorway", "trunk", "primary", "secondary", "tertiary")
CAR_ROADS = {*MAIN_ROADS, *(f"{road}_link" for road in MAIN_ROADS), "unclassified", "residential", "living_street", "service", "road"}
ACCESS_TAGS = ("motorcar", "motor_vehicle", "vehicle", "access")  # the first that is there counts
CLOSED = {"no", "private"}
ONE_WAY = {"motorway", "motorway_link"}  # unless a tag says otherwise
FORWARD, BACKWARD = {"yes", "true", "1"}, {"-1", "reverse"}
SMALLEST_PART = 0.01  # of the nodes of the largest part whose nodes reach each other; smaller parts lead nowhere
SHORTEST_EDGE_M = 0.001  # a stored 0 would be no edge
BATCH_BYTES = 256 * 2**20  # of distances to every node, which scipy keeps at once
DETOUR, START_M = 3.0, 5_000.0  # ways are first sought up to DETOUR times the great circle plus START_M


@dataclass(frozen=True)
class RoadGraph:
    """Nodes and edges of a road network.

    Attributes:
        longitude: Of the nodes, degrees WGS 84 [num_nodes].
        latitude: [num_nodes].
        length_m: Lengths of the edges in metres: sparse [num_nodes, num_nodes], from row to column.
    """

    longitude: np.ndarray
    latitude: np.ndarray
    length_m: csr_array

    def places(self) -> np.ndarray:
        """Nodes on a sphere in metres [num_nodes, 3]."""
        return on_sphere(self.longitude, self.latitude)


def on_sphere(longitude: np.ndarray, latitude: np.ndarray) -> np.ndarray:
    """Points in degrees as points in space, in metres [num_points, 3]: near each other there if they are on the ground."""
    x, y = np.radians(longitude), np.radians(latitude)
    return EARTH_RADIUS_M * np.stack([np.cos(y) * np.cos(x), np.cos(y) * np.sin(x), np.sin(y)], axis=1)


def road_distances(
    graph: RoadGraph, longitude: np.ndarray, latitude: np.ndarray, pairs: np.ndarray, ledger: Ledger, snap_m: float
) -> np.ndarray:
    """Length of the shortest way between the nodes nearest to places, in metres; NaN where there is none [num_pairs].

    Args:
        graph: Roads.
        longitude: Of the places, degrees WGS 84 [num_places].
        latitude: [num_places].
        pairs: Positions of origin and destination [2, num_pairs].
        ledger: Takes how far the places lie from their nodes.
        snap_m: How far a place may lie from its node.
    """
    off_m, node = cKDTree(graph.places()).query(on_sphere(longitude, latitude))
    ledger.note(f"centroids lie {np.median(off_m):,.0f} m from the nearest node of a road in the median, {off_m.max():,.0f} m at most")
    near = off_m <= snap_m
    chosen = np.flatnonzero(near[pairs].all(axis=0))
    straight_m = pair_distance_m(longitude, latitude, *pairs[:, chosen])
    distance_m = np.full(pairs.shape[1], np.nan)
    distance_m[chosen] = shortest_ways(graph.length_m, node[pairs[:, chosen]], DETOUR * straight_m + START_M)
    return distance_m


def shortest_ways(length_m: csr_array, pairs: np.ndarray, limit_m: np.ndarray) -> np.ndarray:
    """Length of the shortest way between nodes, NaN where there is none [num_pairs].

    Ways are first sought within a limit, which leaves most of the network unseen, and those that are not found without one: a way that is found within
    a limit is the shortest of all.

    Args:
        length_m: Sparse [num_nodes, num_nodes].
        pairs: Nodes of origin and destination [2, num_pairs].
        limit_m: First limit of each pair [num_pairs].
    """
    distance_m = np.full(pairs.shape[1], np.inf)
    batch = max(BATCH_BYTES // (8 * length_m.shape[0]), 1)
    for is_limited in (True, False):
        sought = np.flatnonzero(np.isinf(distance_m))
        origins, row = np.unique(pairs[0, sought], return_inverse=True)
        widest_m = np.zeros(len(origins))
        np.maximum.at(widest_m, row, limit_m[sought])
        order = np.argsort(widest_m, kind="stable")  # origins of like limits together: a batch has one
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order))
        for start in range(0, len(order), batch):
            together = order[start : start + batch]
            limit = widest_m[together].max() if is_limited else np.inf
            found_m = dijkstra(length_m, indices=origins[together], limit=limit)  # [len(together), num_nodes]
            inside = (rank[row] >= start) & (rank[row] < start + batch)
            distance_m[sought[inside]] = found_m[rank[row[inside]] - start, pairs[1, sought[inside]]]
    return np.where(np.isinf(distance_m), np.nan, distance_m)


def read_roads(path: str | Path, ledger: Ledger) -> RoadGraph:
    """Reads the roads for cars of an extract of OpenStreetMap.

    Raises:
        MissingInputError: There is no such file.
        InputError: It cannot be read, or has no roads for cars, or the package osmium is absent.
    """
    try:
        import osmium
    except ImportError as error:
        raise InputError('reading OpenStreetMap needs the package osmium; install it with: pip install "imagery2flow[roads]"') from error
    existing_file(path, "OpenStreetMap extract")
    ledger.reads(path)
    streets = Streets()
    try:
        ways = osmium.FileProcessor(str(path)).with_locations().with_filter(osmium.filter.EntityFilter(osmium.osm.WAY))
        for way in ways.with_filter(osmium.filter.KeyFilter("highway")):
            streets.add(way)
    except RuntimeError as error:
        raise InputError(
            f"OpenStreetMap extract {path} cannot be read ({first_sentence(error)}); name a file that ends in .osm.pbf or .osm"
        ) from error
    ledger.take_in("roads for cars", streets.num_ways)
    if not streets.node:
        raise InputError(f"OpenStreetMap extract {path} has no road for cars; name an extract that covers the units")
    if streets.num_absent:
        ledger.note(f"{streets.num_absent:,} nodes of roads are not in {path}: roads end there")
    whole = streets.graph()
    graph = connected_part(whole)
    num_dead = len(whole.longitude) - len(graph.longitude)
    ledger.note(
        f"roads of {len(graph.longitude):,} nodes and {graph.length_m.nnz:,} edges; {num_dead:,} nodes more lie where no way leads out or in"
    )
    return graph


class Streets:
    """Collects the nodes of ways, one after another."""

    def __init__(self) -> None:
        self.node, self.stretch = array("q"), array("q")  # id of a node; number of the unbroken stretch that it is of
        self.longitude, self.latitude = array("d"), array("d")
        self.forward, self.backward = array("b"), array("b")
        self.num_ways = self.num_absent = self.num_stretches = 0

    def add(self, way: Any) -> None:
        """Takes a way, if cars may use it."""
        tags = dict(way.tags)
        directions = car_directions(tags)
        if directions is None:
            return
        self.num_ways += 1
        self.num_stretches += 1
        for node in way.nodes:
            if not node.location.valid():
                self.num_absent += 1
                self.num_stretches += 1
                continue
            self.node.append(node.ref)
            self.stretch.append(self.num_stretches)
            self.longitude.append(node.lon)
            self.latitude.append(node.lat)
            self.forward.append(directions[0])
            self.backward.append(directions[1])

    def graph(self) -> RoadGraph:
        """The network of all ways."""
        _, first, node = np.unique(np.frombuffer(self.node, dtype=np.int64), return_index=True, return_inverse=True)
        longitude, latitude = (np.frombuffer(values)[first] for values in (self.longitude, self.latitude))  # [num_nodes]
        stretch = np.frombuffer(self.stretch, dtype=np.int64)
        joined = (stretch[1:] == stretch[:-1]) & (node[1:] != node[:-1])
        parts = []
        for allowed, tail, head in ((self.forward, node[:-1], node[1:]), (self.backward, node[1:], node[:-1])):
            used = joined & (np.frombuffer(allowed, dtype=np.int8)[1:] == 1)
            parts.append(np.stack([tail[used], head[used]]))
        edge = np.unique(np.concatenate(parts, axis=1), axis=1)  # two ways along one stretch of ground count once
        length_m = pair_distance_m(longitude, latitude, *edge)
        matrix = csr_array((np.maximum(length_m, SHORTEST_EDGE_M), (edge[0], edge[1])), shape=(len(first), len(first)))
        return RoadGraph(longitude, latitude, matrix)


def car_directions(tags: dict[str, str]) -> tuple[bool, bool] | None:
    """Whether cars may use a way forwards and backwards; None where they may not at all."""
    road = tags.get("highway", "")
    access = next((tags[name] for name in ACCESS_TAGS if name in tags), "yes")
    if road not in CAR_ROADS or access in CLOSED:
        return None
    one_way = tags.get("oneway")
    if one_way in BACKWARD:
        return False, True
    implied = one_way is None and (road in ONE_WAY or tags.get("junction") in ("roundabout", "circular"))
    return True, not (implied or one_way in FORWARD)


def connected_part(graph: RoadGraph) -> RoadGraph:
    """The network without the small parts that cannot be left or reached."""
    part = connected_components(graph.length_m, directed=True, connection="strong")[1]
    size = np.bincount(part)
    kept = np.flatnonzero(size[part] >= SMALLEST_PART * size.max())
    return RoadGraph(graph.longitude[kept], graph.latitude[kept], graph.length_m[kept][:, kept])
