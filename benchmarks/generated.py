"""Generated scenes, units, patches and regions of any size, quickly made; what is in them does not matter for speed."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from rasterio.transform import from_origin
from rasterio.windows import Window

from imagery2flow.flows.graph import build_graph
from imagery2flow.flows.region import Region
from imagery2flow.flows.splits import Split
from imagery2flow.flows.table import FlowTable
from imagery2flow.run.stage import Ledger

LEFT, TOP, GSD_M, CRS = 500_000.0, 4_600_000.0, 10.0, "EPSG:32618"
TILE_PX = 512
SIDE_M = 1_000.0  # of a unit of a region
NUM_COLUMNS = 24  # of features: 20 of an encoder, and means and deviations of two bands
FEATURES = (*map(str, range(20)), "red_mean", "nir_mean", "red_std", "nir_std")
REACH_KM = 3.0


def write_scene(path: Path, side_px: int, num_bands: int = 3) -> Path:
    """A tiled uint8 GeoTIFF of smooth patterns and noise, so that deflate has the work that it has with imagery."""
    if path.is_file():
        return path
    random = np.random.default_rng(0)
    temporary = path.with_suffix(".part.tif")
    profile = {"driver": "GTiff", "width": side_px, "height": side_px, "count": num_bands, "dtype": "uint8", "crs": CRS, "nodata": 0}
    profile |= {"tiled": True, "blockxsize": TILE_PX, "blockysize": TILE_PX, "compress": "deflate", "interleave": "pixel"}
    transform = from_origin(LEFT, TOP, GSD_M, GSD_M)
    with rasterio.open(
        temporary, "w", transform=transform, num_threads="all_cpus", photometric="MINISBLACK", alpha="NO", **profile
    ) as scene:
        column = np.arange(side_px)
        for top in range(0, side_px, TILE_PX):
            row = np.arange(top, min(top + TILE_PX, side_px))[:, None]
            smooth = 128 + 60 * np.sin(row / 97) * np.cos(column / 131) + 30 * np.sin((column + row) / 23)
            noise = random.integers(-6, 7, (num_bands, *smooth.shape))
            scene.write(np.clip(smooth + noise, 1, 255).astype("uint8"), window=Window(0, top, side_px, len(row)))
    temporary.replace(path)
    return path


def write_units(path: Path, side_px: int, num_units: int) -> Path:
    """Voronoi cells of a jittered grid that fill a scene."""
    if path.is_file():
        return path
    random, side_m, per_row = np.random.default_rng(0), side_px * GSD_M, int(np.ceil(np.sqrt(num_units)))
    place = np.stack(np.divmod(np.arange(per_row**2), per_row)[::-1], axis=1) + 0.5 + random.uniform(-0.35, 0.35, (per_row**2, 2))
    chosen = np.sort(random.choice(per_row**2, num_units, replace=False))
    points = place[chosen] * side_m / per_row * (1, -1) + (LEFT, TOP)
    extent = shapely.box(LEFT, TOP - side_m, LEFT + side_m, TOP)
    cells = shapely.intersection(shapely.get_parts(shapely.voronoi_polygons(shapely.multipoints(points), extend_to=extent)), extent)
    gpd.GeoDataFrame({"GEOID20": [f"{number:06d}" for number in range(len(cells))]}, geometry=cells, crs=CRS).to_file(path)
    return path


def make_region(name: str, num_units: int, west_m: float = LEFT, num_pairs: int | None = None) -> Region:
    """Squares of one kilometre; flows by a gravity law, or between so many random pairs of units, all above 10."""
    random, per_row = np.random.default_rng(num_units), int(np.ceil(np.sqrt(num_units)))
    row, column = np.divmod(np.arange(num_units), per_row)
    x, y = west_m + SIDE_M * column, TOP - SIDE_M * row
    ids = [f"{name}{number:06d}" for number in range(num_units)]
    units = gpd.GeoDataFrame(index=ids, geometry=shapely.box(x, y, x + SIDE_M, y + SIDE_M), crs=CRS)
    graph = build_graph(units, None, Ledger("bench", quiet=True))
    features = random.normal(size=(num_units, NUM_COLUMNS)).astype(np.float32)
    if num_pairs is None:
        origin, destination = (side.reshape(-1) for side in np.indices((num_units, num_units)))
        mass = np.exp(0.7 * features[:, 0].astype(np.float64))
        mean = 25 * mass[origin] * mass[destination] * np.exp(-graph.distance_m(origin, destination) / 1000 / REACH_KM)
        count = random.poisson(mean)
    else:
        origin, destination = np.divmod(np.sort(random.choice(num_units**2, num_pairs, replace=False)), num_units)
        count = 10 + np.ceil(random.exponential(15, num_pairs))
    flows = FlowTable(graph.geocodes, origin[count > 0], destination[count > 0], count[count > 0].astype(np.float64))
    return Region((name,), graph, np.zeros(num_units, np.int64), FEATURES, features, flows)


def split_of(region: Region) -> Split:
    """Three in five origins to train on."""
    label = np.resize(np.array(["train", "train", "train", "valid", "test"]), len(region.graph.geocodes))
    return Split("origin", label)
