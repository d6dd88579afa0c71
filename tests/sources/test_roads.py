"""Shortest ways on small road networks whose lengths are known, and on random ones beside a naive search."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
from scipy.sparse import csr_array

from imagery2flow.run.earth import EARTH_RADIUS_M
from imagery2flow.run.errors import InputError
from imagery2flow.run.stage import Ledger
from imagery2flow.sources import roads
from imagery2flow.sources.roads import car_directions, read_roads, road_distances, shortest_ways

osmium = pytest.importorskip("osmium")
STEP_M = EARTH_RADIUS_M * np.radians(0.01)  # between neighbouring nodes on the equator


def write_osm(path, nodes, ways):
    """An extract: nodes id -> (longitude, latitude); ways as (ids of nodes, tags)."""
    lines = [f'<node id="{n}" lon="{x}" lat="{y}" version="1"/>' for n, (x, y) in nodes.items()]
    for number, (refs, tags) in enumerate(ways):
        inner = "".join(f'<nd ref="{ref}"/>' for ref in refs) + "".join(f'<tag k="{k}" v="{v}"/>' for k, v in tags.items())
        lines.append(f'<way id="{number + 1}" version="1">{inner}</way>')
    path.write_text('<osm version="0.6" generator="test">' + "".join(lines) + "</osm>")
    return path


@pytest.fixture
def square(tmp_path):
    """Four corners on the equator: 1-2-3-4-1, where 4-1 is one-way from 4 to 1; a footpath is the short way from 1 to 3."""
    nodes = {1: (0, 0), 2: (0.01, 0), 3: (0.01, 0.01), 4: (0, 0.01), 9: (1, 0), 10: (1.01, 0)}
    ways = [
        ([1, 2, 3, 4], {"highway": "residential"}),
        ([4, 1], {"highway": "residential", "oneway": "yes"}),
        ([1, 3], {"highway": "footway"}),
        ([9, 10], {"highway": "residential"}),  # far away, joined to nothing
    ]
    return write_osm(tmp_path / "square.osm", nodes, ways)


def distances(path, longitude, latitude, pairs, snap_m=500.0):
    ledger = Ledger("test", quiet=True)
    graph = read_roads(path, ledger)
    return road_distances(graph, np.array(longitude), np.array(latitude), np.array(pairs).T, ledger, snap_m)


def test_ways_follow_roads_and_directions(square):
    found = distances(square, [0, 0.01, 0.0], [0, 0.01, 0.01], [(0, 1), (1, 0), (0, 2), (2, 0)])
    np.testing.assert_allclose(found / STEP_M, [2, 2, 3, 1], rtol=1e-4)


def test_a_place_far_from_roads_has_no_distance(square):
    found = distances(square, [0, 0.01, 0.03], [0, 0.01, 0.0], [(0, 1), (0, 2), (2, 1)])
    assert np.isnan(found).tolist() == [False, True, True]
    assert not np.isnan(distances(square, [0, 0.03], [0, 0], [(0, 1)], snap_m=3_000.0)).any()


def test_parts_that_do_not_reach_each_other_have_no_distance(square):
    found = distances(square, [0, 1.0, 1.01], [0, 0, 0], [(0, 1), (1, 2)])
    assert np.isnan(found[0]) and found[1] == pytest.approx(STEP_M, rel=1e-4)


def test_a_dead_part_is_not_moved_to(square, monkeypatch):
    monkeypatch.setattr(roads, "SMALLEST_PART", 0.6)  # of four nodes: the pair of nodes far away is dead
    assert np.isnan(distances(square, [1.0, 1.01], [0, 0], [(0, 1)])).all()


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"highway": "primary"}, (True, True)),
        ({"highway": "primary", "oneway": "yes"}, (True, False)),
        ({"highway": "primary", "oneway": "-1"}, (False, True)),
        ({"highway": "motorway"}, (True, False)),
        ({"highway": "motorway", "oneway": "no"}, (True, True)),
        ({"highway": "tertiary", "junction": "roundabout"}, (True, False)),
        ({"highway": "footway"}, None),
        ({"highway": "service", "access": "private"}, None),
        ({"highway": "service", "access": "no", "motor_vehicle": "yes"}, (True, True)),
    ],
)
def test_tags_say_where_cars_may_go(tags, expected):
    assert car_directions(tags) == expected


def test_a_road_ends_where_the_extract_lacks_a_node(tmp_path):
    nodes = {1: (0, 0), 2: (0.01, 0), 4: (0.03, 0), 5: (0.04, 0)}
    path = write_osm(tmp_path / "cut.osm", nodes, [([1, 2, 3, 4, 5], {"highway": "residential"})])
    found = distances(path, [0, 0.01, 0.03], [0, 0, 0], [(0, 1), (1, 2)])
    assert found[0] == pytest.approx(STEP_M, rel=1e-4) and np.isnan(found[1])


def test_files_that_are_no_extract_end_in_a_sentence(tmp_path):
    (tmp_path / "text.osm").write_text("roads")
    with pytest.raises(InputError, match=r"cannot be read .*name a file that ends in .osm.pbf or .osm"):
        read_roads(tmp_path / "text.osm", Ledger("test", quiet=True))
    path = write_osm(tmp_path / "paths.osm", {1: (0, 0), 2: (1, 0)}, [([1, 2], {"highway": "footway"})])
    with pytest.raises(InputError, match="has no road for cars"):
        read_roads(path, Ledger("test", quiet=True))


def naive_way(edges, start, end):
    """Dijkstra's search with a heap; ``edges`` node -> [(node, length)]."""
    best, waiting = {}, [(0.0, start)]
    while waiting:
        length, node = heapq.heappop(waiting)
        if node in best:
            continue
        best[node] = length
        for other, step in edges.get(node, []):
            heapq.heappush(waiting, (length + step, other))
    return best.get(end, np.nan)


@pytest.mark.parametrize("limit_m", [0.0, 1.0, 1e9])
def test_shortest_ways_equal_a_naive_search(limit_m, monkeypatch):
    random = np.random.default_rng(3)
    num_nodes, num_edges, num_pairs = 60, 110, 200
    edge = np.unique(random.integers(0, num_nodes, (2, num_edges)), axis=1)
    edge = edge[:, edge[0] != edge[1]]
    length = random.uniform(0.1, 3.0, edge.shape[1])
    edges = {}
    for (tail, head), step in zip(edge.T, length, strict=True):
        edges.setdefault(tail, []).append((head, step))
    pairs = random.integers(0, num_nodes, (2, num_pairs))
    monkeypatch.setattr(roads, "BATCH_BYTES", 8 * num_nodes * 7)  # seven origins at once
    matrix = csr_array((length, tuple(edge)), shape=(num_nodes, num_nodes))
    found = shortest_ways(matrix, pairs, np.full(num_pairs, limit_m) * random.random(num_pairs))
    expected = np.array([naive_way(edges, a, b) for a, b in pairs.T])
    assert np.isnan(expected).any() and not np.isnan(expected).all()
    np.testing.assert_allclose(found, expected)
