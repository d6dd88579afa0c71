import math

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely

from imagery2flow.flows.graph import build_graph, contiguity, read_distances
from imagery2flow.run.earth import EARTH_RADIUS_M
from imagery2flow.run.errors import InputError, TableError

from .conftest import make_line_graph

IDS = ("0101", "0102", "0103")


def series(**boxes):
    """Squares by name, from (west, south, east, north) in metres."""
    return gpd.GeoSeries({name: shapely.box(*box) for name, box in boxes.items()}, crs="EPSG:32618")


def edges_of(polygons, ledger):
    """Pairs of names."""
    edge = contiguity(polygons, ledger)
    return [(polygons.index[a], polygons.index[b]) for a, b in edge.T]


def grid3x3():
    """Units 0..8, row by row."""
    boxes = {
        f"{3 * row + column}": (column * 100, row * 100, column * 100 + 100, row * 100 + 100) for row in range(3) for column in range(3)
    }
    return series(**boxes)


def test_units_that_share_a_side_or_a_corner_are_neighbours(ledger):
    edges = edges_of(grid3x3(), ledger)
    neighbours = {unit: "".join(sorted(b for a, b in edges if a == unit)) for unit in "012345678"}
    assert neighbours == {
        "0": "134",
        "1": "02345",
        "2": "145",
        "3": "01467",
        "4": "01235678",
        "5": "12478",
        "6": "347",
        "7": "34568",
        "8": "457",
    }
    assert ledger.notes == []


def test_edges_are_sorted_unique_in_both_directions_and_never_loops(ledger):
    edge = contiguity(grid3x3(), ledger)
    pairs = list(map(tuple, edge.T))
    assert pairs == sorted(set(pairs))
    assert {(b, a) for a, b in pairs} == set(pairs)
    assert all(a != b for a, b in pairs)
    assert edge.dtype == np.int64


def test_an_island_is_joined_to_its_nearest_and_named(ledger):
    polygons = series(a=(0, 0, 10, 10), b=(10, 0, 20, 10), island=(500, 0, 510, 10))
    assert edges_of(polygons, ledger) == [("a", "b"), ("b", "a"), ("b", "island"), ("island", "b")]
    assert ledger.notes == ["1 units touch no other and are joined to their nearest: island to b"]


def test_islands_may_be_each_others_nearest(ledger):
    polygons = series(a=(0, 0, 10, 10), b=(50, 0, 60, 10))
    assert edges_of(polygons, ledger) == [("a", "b"), ("b", "a")]


def test_a_sliver_under_a_metre_does_not_part_neighbours_but_two_metres_do(ledger):
    pairs = {"a": (0, 0, 10, 10), "a2": (-10, 0, 0, 10), "b": (10.9, 0, 20, 10), "b2": (15, 10, 20, 20)}
    polygons = series(**pairs, c=(22, 0, 30, 10), c2=(30, 0, 40, 10))
    assert [edge for edge in edges_of(polygons, ledger) if edge[0] < edge[1]] == [("a", "a2"), ("a", "b"), ("b", "b2"), ("c", "c2")]


def test_a_single_unit_has_no_edges(ledger):
    graph = build_graph(gpd.GeoDataFrame(geometry=series(only=(500_000, 4_500_000, 501_000, 4_501_000))), None, ledger)
    assert graph.edge.shape == (2, 0)
    assert graph.edge_distance_m().shape == (0,)


def test_a_graph_knows_places_areas_and_distances_in_any_crs(ledger):
    squares = series(a=(500_000, 4_500_000, 501_000, 4_502_000), b=(501_000, 4_500_000, 502_000, 4_502_000))
    for crs in ("EPSG:32618", "EPSG:4326", "EPSG:3857"):
        graph = build_graph(gpd.GeoDataFrame(geometry=squares.to_crs(crs)), None, ledger)
        assert graph.geocodes == ("a", "b")
        assert graph.area_km2 == pytest.approx([2, 2], rel=1e-5)
        assert graph.longitude[0] == pytest.approx(-75 + 0.00591, abs=1e-4)  # 500 m east of the central meridian
        assert graph.edge_distance_m() == pytest.approx([1000, 1000], rel=4e-3)


def test_units_that_are_no_polygons_are_refused(ledger):
    points = gpd.GeoDataFrame(geometry=[shapely.Point(0, 0)], index=["a"], crs=4326)
    with pytest.raises(InputError, match="the graph needs polygons but the units hold Point"):
        build_graph(points, None, ledger)


def test_distances_are_0_within_a_unit_and_come_from_the_table_where_it_has_one():
    graph = make_line_graph([0, 1, 2], [0, 0, 0])
    table = np.array([[7.0, 50.0, np.nan], [60.0, np.nan, np.nan], [np.nan, np.nan, np.nan]])
    graph = type(graph)(**{**vars(graph), "table_m": table})
    origin, destination = (axis.reshape(-1) for axis in np.meshgrid(range(3), range(3), indexing="ij"))
    degree = math.pi / 180 * EARTH_RADIUS_M
    expected = [0, 50, 2 * degree, 60, 0, degree, 2 * degree, degree, 0]
    assert graph.distance_m(origin, destination) == pytest.approx(expected)
    assert graph.edge_distance_m() == pytest.approx([50, degree, 60, degree])


def expected_matrix():
    """What every form of the table below says: 0 off the diagonal and empty are unknown."""
    return np.array([[0.0, 1500.0, np.nan], [1600.0, 0.0, np.nan], [np.nan, 900.0, 0.0]])


@pytest.mark.parametrize("corner", ["", "geocode", "GEOID20"])
def test_a_square_table_is_read_by_its_ids(tmp_path, ledger, corner):
    path = tmp_path / "square.csv"
    path.write_text(f"{corner},0102,0101,0103\n0103,900,,0\n0101,1500.0,0,0\n0102,0,1600,\n")
    np.testing.assert_array_equal(read_distances(path, IDS, ledger), expected_matrix())
    assert ledger.inputs == [path]


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ("id,0101,0102,0102", r"1 names stand above more than one column \(0102\); keep one column each"),
        ("id,0101,,0103", "header: 1 ids are empty; give every column the id of its unit"),
    ],
)
def test_a_square_table_with_repeated_or_empty_ids_in_its_header_is_refused(tmp_path, ledger, header, sentence):
    path = tmp_path / "square.csv"
    path.write_text(f"{header}\n0101,0,5,6\n0102,5,0,7\n0103,6,7,0\n")
    with pytest.raises(TableError, match=sentence):
        read_distances(path, IDS, ledger)


def test_a_square_table_with_an_empty_id_in_its_first_column_is_refused(tmp_path, ledger):
    path = tmp_path / "square.csv"
    path.write_text("id,0101,0102\n0101,0,5\n,5,0\n")
    with pytest.raises(TableError, match="2 values of h_geocode are empty"):
        read_distances(path, IDS, ledger)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_long_table_is_read_by_its_ids(tmp_path, ledger, suffix):
    rows = [("0103", "0102", 900), ("0101", "0102", 1500), ("0102", "0101", 1600), ("0101", "0103", 0), ("0102", "0103", np.nan)]
    rows += [(unit, unit, 0) for unit in IDS]
    table = pd.DataFrame(rows, columns=["h_geocode", "w_geocode", "distance_m"])
    path = tmp_path / f"long{suffix}"
    table.to_parquet(path) if suffix == ".parquet" else table.to_csv(path, index=False)
    np.testing.assert_array_equal(read_distances(path, IDS, ledger), expected_matrix())


def test_distances_of_other_units_are_left_out_and_counted(tmp_path, ledger):
    path = tmp_path / "long.csv"
    path.write_text("h_geocode,w_geocode,distance_m\n0101,0102,5\n9901,0102,6\n0101,9902,7\n")
    matrix = read_distances(path, IDS, ledger)
    assert np.isfinite(matrix).sum() == 1
    assert ledger.left_out == {"distances of units that are not in the region": ["9901", "9902"]}


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("0101,0102,-5", r"1 values are negative \(-5\); give metres, 0 or more"),
        ("0101,0102,5\n0101,0102,6", r"1 pairs occur more than once \(0101>0102\); keep one row each"),
        ("9901,9902,5", "none of the 3 units is named"),
        ("101,102,5", r"2 faults: 1 ids of h_geocode have lost their leading zeros \(101\)"),
        ("0101,0102,far", "far"),
        ("0101,0102,inf", "infinite"),
        (",0102,5\n0101,0102,5", "1 values of h_geocode are empty; give every distance both ids"),
        ("0101,,5\n9901,,5", "2 values of w_geocode are empty"),
    ],
)
def test_faults_of_a_table_of_distances_are_named(tmp_path, ledger, rows, sentence):
    path = tmp_path / "long.csv"
    path.write_text(f"h_geocode,w_geocode,distance_m\n{rows}\n")
    with pytest.raises(TableError, match=sentence) as error:
        read_distances(path, IDS, ledger)
    assert str(path) in str(error.value)


def test_edges_that_the_table_lacks_are_counted(tmp_path, ledger):
    path = tmp_path / "long.csv"
    path.write_text("h_geocode,w_geocode,distance_m\na,b,1234\n")
    squares = series(a=(500_000, 4_500_000, 501_000, 4_501_000), b=(501_000, 4_500_000, 502_000, 4_501_000))
    graph = build_graph(gpd.GeoDataFrame(geometry=squares), str(path), ledger)
    assert graph.edge_distance_m() == pytest.approx([1234, 1000], rel=4e-3)
    assert ledger.notes == [f"1 of 2 edges are not in {path} and take the great-circle distance"]
