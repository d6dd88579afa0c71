"""Folders of runs as stages 4 and 5 leave them, for the tests of reports."""

import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

SCORE = {"cpc": 0.5, "rmse": 12.0, "mae": 6.0, "num_pairs": 3}
DECODERS = ("bilinear", "lightgbm")


def write_run(folder: Path, units: gpd.GeoDataFrame, pairs: pd.DataFrame, stage="train_ODPrediction", **settings) -> Path:
    """A run in ``folder`` / outputs / m, whose units lie in ``folder`` / units.gpkg.

    Args:
        folder: Where everything is written.
        units: With a column geocode.
        pairs: h_geocode, w_geocode, count, bilinear, lightgbm and split (stage 4) or scored (stage 5).
        stage: Which stage the folder is said to be of.
        settings: More of its configuration.
    """
    run = folder / "outputs" / "m"
    run.mkdir(parents=True)
    units.to_file(folder / "units.gpkg")
    for decoder in DECODERS:
        pairs.drop(columns=list(DECODERS)).assign(prediction=pairs[decoder]).to_csv(run / f"predictions_{decoder}.csv", index=False)
    config = {"region": ["here"], "year": 2020, "log": "m", "units_path": [str(folder / "units.gpkg")], "node_feats_path": ["features.csv"]}
    record = {
        "stage": stage,
        "command": [f"{stage}.py", "--log", "m"],
        "config": config | {"split": "origin", "universe": "positive"} | settings,
        "ledger": {"in": {"units": len(units)}, "out": {}, "left_out": {}, "notes": ["said while running"]},
        "versions": {"numpy": np.__version__},
    }
    (run / "run.json").write_text(json.dumps(record))
    if pairs["count"].notna().any():
        scores = {name: {"positive": SCORE} for name in ("bilinear", "lightgbm", "constant", "distance only")}
        (run / "metrics.json").write_text(json.dumps(scores))
    return run


def squares(ids, side_m=1000.0) -> gpd.GeoDataFrame:
    """Squares side by side, from west to east in the order of ``ids``."""
    shapes = [shapely.box(500_000 + side_m * n, 4_500_000, 500_000 + side_m * (n + 1), 4_500_000 + side_m) for n in range(len(ids))]
    return gpd.GeoDataFrame({"geocode": list(ids)}, geometry=shapes, crs="EPSG:32618")


def city(num_units: int, seed: int = 0, side_m: float = 40_000.0) -> gpd.GeoDataFrame:
    """A city of ``num_units`` tracts without gaps, smaller in the middle, with winding borders: about 60 vertices each."""
    random = np.random.default_rng(seed)
    places = 500_000 + side_m / 2 * np.clip(random.normal(0, 0.35, (num_units, 2)), -0.99, 0.99) + [0, 4_000_000]
    frame = shapely.box(500_000 - side_m / 2, 4_500_000 - side_m / 2, 500_000 + side_m / 2, 4_500_000 + side_m / 2)
    cells = shapely.get_parts(shapely.voronoi_polygons(shapely.multipoints(places), extend_to=frame))
    cells = shapely.intersection(cells, frame)
    winding = shapely.segmentize(shapely.set_precision(cells, 1.0), side_m / 600)

    def wind(points):
        # A function of the place alone, so that neighbours keep their common border.
        return points + 4.0 * np.stack([np.sin(points[:, 1] / 37), np.cos(points[:, 0] / 31)], axis=1)

    ids = [f"36061{number:06d}" for number in range(len(winding))]
    name = random.choice(["north", "south", "harbour"], len(winding))
    return gpd.GeoDataFrame({"geocode": ids, "quarter": name}, geometry=shapely.transform(winding, wind), crs="EPSG:32618")


def gravity_pairs(units: gpd.GeoDataFrame, num_pairs: int, seed: int = 0) -> pd.DataFrame:
    """The ``num_pairs`` largest flows of a law of masses and distance, observed with noise, and two predictions of them."""
    random = np.random.default_rng(seed)
    place = np.stack([units.centroid.x, units.centroid.y], axis=1) / 1000
    home, work = random.lognormal(3, 0.6, (2, len(units)))
    distance_km = np.linalg.norm(place[:, None] - place[None], axis=-1)
    mean = home[:, None] * work[None] / (1 + distance_km) ** 1.5
    origin, destination = np.unravel_index(np.sort(np.argsort(-mean, axis=None, kind="stable")[:num_pairs]), mean.shape)
    flow = mean[origin, destination]
    ids = units.geocode.to_numpy()
    table = pd.DataFrame({"h_geocode": ids[origin], "w_geocode": ids[destination], "count": 1.0 + random.poisson(flow)})
    for decoder, spread in zip(DECODERS, (0.5, 0.3), strict=True):
        table[decoder] = flow * random.lognormal(0, spread, len(flow))
    return table.assign(split=np.where(origin % 5 == 0, "test", "train"))
