"""A generated region: thirty squares of one kilometre, random features, Poisson flows of a gravity law."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely

from imagery2flow.flows.graph import RegionGraph, build_graph
from imagery2flow.flows.region import Region
from imagery2flow.flows.table import FlowTable, to_flow_table
from imagery2flow.flows.training import train_flows
from imagery2flow.run.flow_config import FlowTestConfig, FlowTrainingConfig, TreesConfig
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import read_table

ROWS, COLUMNS, SIDE_M = 5, 6, 1_000
NUM_UNITS = ROWS * COLUMNS
GEOCODES = tuple(f"0600{number:03d}" for number in range(NUM_UNITS))  # they begin with 0, as California's do
NUM_FEATURES = 3
MODEL = Path("outputs/default")  # folder of the model of ``training_config``


def grid_units(west: float = 500_000.0) -> gpd.GeoDataFrame:
    """Squares in UTM 18 north, row by row from the south-west."""
    corners = [(west + SIDE_M * (n % COLUMNS), 4_500_000.0 + SIDE_M * (n // COLUMNS)) for n in range(NUM_UNITS)]
    squares = [shapely.box(x, y, x + SIDE_M, y + SIDE_M) for x, y in corners]
    return gpd.GeoDataFrame({"GEOID20": GEOCODES}, geometry=squares, crs="EPSG:32618")


def draw_features(seed: int = 0) -> pd.DataFrame:
    """Embeddings by id; the first column drives the flows."""
    values = np.random.default_rng(seed).normal(size=(NUM_UNITS, NUM_FEATURES)).astype(np.float32)
    return pd.DataFrame(values, index=pd.Index(GEOCODES, name="geocode"), columns=[str(n) for n in range(NUM_FEATURES)])


def draw_flows(features: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Positive counts of a gravity law: mass exp(feature 0), decay over two kilometres."""
    number = np.arange(NUM_UNITS)
    place = np.stack([number % COLUMNS, number // COLUMNS], axis=1)
    distance_km = np.linalg.norm(place[:, None] - place, axis=2)
    mass = np.exp(0.7 * features["0"].to_numpy(np.float64))
    count = np.random.default_rng(seed + 100).poisson(25 * mass[:, None] * mass * np.exp(-distance_km / 2))
    origin, destination = np.nonzero(count)
    ids = np.array(GEOCODES)
    return pd.DataFrame({"h_geocode": ids[origin], "w_geocode": ids[destination], "count": count[origin, destination]})


def write_region(root: Path, name: str = "town", seed: int = 0, shuffle: int | None = None, west: float = 500_000.0) -> None:
    """Writes units.gpkg, flows.csv, population.csv and <name>.csv of features under ``root``; ``shuffle`` permutes the rows of all."""
    folder = root / "data" / name
    folder.mkdir(parents=True)
    features = draw_features(seed)
    population = pd.DataFrame({"geocode": GEOCODES, "population": np.random.default_rng(seed + 200).integers(100, 9_000, NUM_UNITS)})
    tables = [grid_units(west), draw_flows(features, seed), population, features.reset_index()]
    if shuffle is not None:
        tables = [table.sample(frac=1, random_state=shuffle) for table in tables]
    units, flows, population, features = tables
    units.to_file(folder / "units.gpkg")
    flows.to_csv(folder / "flows.csv", index=False)
    population.to_csv(folder / "population.csv", index=False)
    features.to_csv(root / f"{name}.csv", index=False)


def rename_ids(root: Path, name: str, start: str) -> None:
    """Gives the units of a written region ids of their own, with another start in place of 0600."""
    folder = root / "data" / name
    for path in (root / f"{name}.csv", *folder.glob("*.csv")):
        path.write_text(path.read_text().replace("0600", start))
    units = gpd.read_file(folder / "units.gpkg")
    units.assign(GEOID20=units.GEOID20.str.replace("0600", start)).to_file(folder / "units.gpkg")


def training_config(**changes: Any) -> FlowTrainingConfig:
    """Stage 4 in about a second, without its controls; paths are relative to the working directory."""
    trees = TreesConfig(num_trees=15, num_leaves=7, min_leaf_pairs=5, learning_rate=0.2, early_stopping=5, transfer_trees=10)
    settings = {"max_epochs": 4, "lr": 0.01, "embedding_size": 8, "num_hidden_layers": 1, "batch_size": 64, "warmup_epochs": 1}
    files = {"region": ["town"], "node_feats_path": ["town.csv"], "device": "cpu"}
    # Over 4 km the averages of a town of 6 km hardly differ from unit to unit, so that another town would lie far outside their range.
    return FlowTrainingConfig(**{**files, "trees": trees, "controls": False, "context_m": [1500.0], **settings, **changes})


def prediction_config(region: str, **changes: Any) -> FlowTestConfig:
    """Stage 5 with the model of ``training_config``."""
    return FlowTestConfig(**{"region": [region], "node_feats_path": [f"{region}.csv"], "device": "cpu", **changes})


def make_flow_table(pairs: Sequence[tuple[str, str, float]], geocodes: Sequence[str]) -> FlowTable:
    """Flows from (origin, destination, count)."""
    return to_flow_table(pd.DataFrame(pairs, columns=["h_geocode", "w_geocode", "count"]), geocodes)


def make_region(seed: int = 0, flows: bool = True) -> Region:
    """The region in memory."""
    features = draw_features(seed)
    graph = build_graph(grid_units().set_index("GEOID20"), None, Ledger("test", quiet=True))
    table = to_flow_table(draw_flows(features, seed), GEOCODES) if flows else None
    return Region(("town",), graph, np.zeros(NUM_UNITS, dtype=np.int64), tuple(features.columns), features.to_numpy(), table)


def make_flows_region(flows: FlowTable, longitude: Sequence[float] | None = None) -> Region:
    """A region without features: its flows and units in a line, ids as in ``make_line_graph``."""
    count = len(flows.geocodes)
    graph = make_line_graph(range(count) if longitude is None else longitude, [0.0] * count)
    return Region(("line",), graph, np.zeros(count, dtype=np.int64), (), np.zeros((count, 0), dtype=np.float32), flows)


def make_line_graph(longitude: Sequence[float], latitude: Sequence[float]) -> RegionGraph:
    """Units at given places, each joined to the next."""
    count = len(longitude)
    forward = np.stack([np.arange(count - 1), np.arange(1, count)])
    return RegionGraph(
        tuple(f"{n:03d}" for n in range(count)),
        np.array(longitude, dtype=float),
        np.array(latitude, dtype=float),
        np.ones(count),
        np.concatenate([forward, forward[::-1]], axis=1),
    )


def files_of(folder: Path) -> dict[str, bytes]:
    """Content of every file of a model's folder, without run.json, which tells the time."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "run.json"
    }


def train(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> dict[str, bytes]:
    """Stage 4 in a folder; returns the files that it wrote."""
    monkeypatch.chdir(folder)
    train_flows(training_config(**changes), Ledger("test", quiet=True))
    return files_of(folder / MODEL)


def read(path: Path) -> pd.DataFrame:
    """A table with its ids as text."""
    return read_table(path, "table", ("h_geocode", "w_geocode", "geocode"))


@pytest.fixture
def town(tmp_path: Path) -> Path:
    """A folder with a region."""
    write_region(tmp_path)
    return tmp_path


@pytest.fixture
def ledger() -> Ledger:
    return Ledger("test", quiet=True)
