"""Distances by road as the user asks for them, and as stages 4 and 5 read them."""

import json

import numpy as np
import pytest

from imagery2flow.__main__ import main
from imagery2flow.flows.graph import build_graph
from imagery2flow.imagery.units import read_units
from imagery2flow.run.stage import Ledger
from tests.flows.conftest import COLUMNS, GEOCODES, NUM_UNITS, grid_units
from tests.sources.test_roads import write_osm


@pytest.fixture
def streets(tmp_path, monkeypatch):
    """The grid of thirty units, with a street of right angles through all centroids but the last one's."""
    monkeypatch.chdir(tmp_path)
    units = grid_units()
    units.to_file("units.gpkg")
    centroids = units.centroid.to_crs(4326)
    nodes = {number + 1: (point.x, point.y) for number, point in enumerate(centroids) if number < NUM_UNITS - 1}
    across = [(n, n + 1) for n in nodes if n % COLUMNS and n + 1 in nodes]
    along = [(n, n + COLUMNS) for n in nodes if n + COLUMNS in nodes]
    write_osm(tmp_path / "town.osm", nodes, [(pair, {"highway": "residential"}) for pair in across + along])
    return tmp_path


FLAGS = ["distances", "--units_path", "units.gpkg", "--output_path", "distances.csv"]


def test_the_table_is_what_the_stages_read(streets):
    assert main([*FLAGS, "--distance", "osm", "--osm_pbf", "town.osm", "--snap_m", "300"]) == 0
    units = read_units("units.gpkg", None, Ledger("test", quiet=True))
    graph = build_graph(units, "distances.csv", Ledger("test", quiet=True))
    straight = build_graph(units, None, Ledger("test", quiet=True)).edge_distance_m()
    ratio = graph.edge_distance_m() / straight
    without_road = (graph.edge == NUM_UNITS - 1).any(axis=0)
    diagonal = straight > 1_200  # neighbours at a corner: two sides of a square instead of its diagonal
    np.testing.assert_allclose(ratio[without_road], 1.0)  # the great circle
    np.testing.assert_allclose(ratio[diagonal & ~without_road], np.sqrt(2), rtol=2e-3)
    np.testing.assert_allclose(ratio[~diagonal & ~without_road], 1.0, rtol=2e-3)
    ledger = json.loads((streets / "distances.csv.run.json").read_text())["ledger"]
    assert ledger["left_out"]["units without a way to or from any neighbour"] == [GEOCODES[-1]]
    assert ledger["out"]["distances"] == (~without_road).sum()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--distance", "osm"], "--osm_pbf None must be given with --distance osm"),
        (["--distance", "osrm", "--osrm_url", "localhost:5000"], "must be an address that begins with http"),
        (["--distance", "osm", "--osm_pbf", "a.osm", "--osrm_url", "http://b"], "must be left out with --distance osm"),
        (["--distance", "osm", "--osm_pbf", "absent.osm.pbf"], "absent.osm.pbf does not exist"),
    ],
)
def test_bad_settings_are_one_sentence(streets, capsys, flags, says):
    try:
        status = main([*FLAGS, *flags])
    except SystemExit as end:
        status = end.code
    error = capsys.readouterr().err
    assert status == 2 and says in error.splitlines()[-1]


def test_roads_of_another_place_are_refused(streets, capsys):
    write_osm(streets / "elsewhere.osm", {1: (0, 0), 2: (0.01, 0)}, [([1, 2], {"highway": "residential"})])
    assert main([*FLAGS, "--distance", "osm", "--osm_pbf", "elsewhere.osm"]) == 2
    assert "no two neighbours among the 30 units units.gpkg are joined by road" in capsys.readouterr().err
    assert not (streets / "distances.csv").exists()
