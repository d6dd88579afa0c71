"""``python -m imagery2flow distances``: distances by road between neighbouring units, as a table that stages 4 and 5 read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from imagery2flow.flows.graph import RegionGraph, build_graph
from imagery2flow.imagery.units import read_units
from imagery2flow.run.distances_config import DistancesConfig
from imagery2flow.run.errors import InputError
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import check_table_suffix, write_table
from imagery2flow.sources.osrm import osrm_distances
from imagery2flow.sources.roads import read_roads, road_distances


def write_distances(config: DistancesConfig, ledger: Ledger) -> Path:
    """Writes h_geocode, w_geocode, distance_m of neighbouring units, both ways; returns the path of the run file.

    Raises:
        InputError: Units or roads cannot be read, the server does not answer, or no two units are joined by road.
    """
    check_table_suffix(config.output_path, "--output_path")
    units = read_units(config.units_path, config.id_column, ledger)
    ledger.take_in("units", len(units))
    graph = build_graph(units, None, ledger, f"the units {config.units_path}")
    distance_m = measure(config, graph, ledger)
    origin, destination = np.array(graph.geocodes, dtype=object)[graph.edge]
    absent = ~(distance_m > 0)  # NaN too; 0 where both ends lie at one place of a road, and 0 off the diagonal means unknown
    ledger.leave_out(
        "pairs of neighbours without a way by road between them, or at one place of a road", origin[absent] + ">" + destination[absent]
    )
    lonely = np.setdiff1d(graph.edge, graph.edge[:, ~absent])
    ledger.leave_out("units without a way to or from any neighbour", np.array(graph.geocodes, dtype=object)[lonely])
    if absent.all():
        raise InputError(
            f"no two neighbours among the {len(units):,} units {config.units_path} are joined by road; use roads of the same place, or a larger --snap_m"
        )
    table = pd.DataFrame({"h_geocode": origin, "w_geocode": destination, "distance_m": distance_m.round(1)})[~absent]
    write_table(Path(config.output_path), table)
    ledger.went_out["distances"] = len(table)
    return Path(f"{config.output_path}.run.json")


def measure(config: DistancesConfig, graph: RegionGraph, ledger: Ledger) -> np.ndarray:
    """Distance of every edge of the graph in metres, NaN where there is no way [num_edges].

    Raises:
        InputError: Roads cannot be read, or the server does not answer.
    """
    places = (graph.longitude, graph.latitude, graph.edge, ledger, config.snap_m)
    if config.distance == "osrm":
        assert config.osrm_url is not None
        return osrm_distances(config.osrm_url, *places)
    assert config.osm_pbf is not None
    return road_distances(read_roads(config.osm_pbf, ledger), *places)
