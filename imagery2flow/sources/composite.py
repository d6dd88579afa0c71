"""One cloud-free image of a region and season: the median of all images, pixel by pixel, in blocks.

An image that cannot be read ends the run with a sentence that names it, and ``--without`` leaves it out: what is written follows from
the settings, not from which servers answered. Tiles of one overpass overlap, so that a day may count twice in the median where they do.
The size of the blocks changes nothing, but for images of another UTM zone: GDAL finds their pixels to an eighth of a pixel, from where
the block lies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import shapely
from affine import Affine
from rasterio.enums import Resampling
from rasterio.warp import transform_bounds
from rasterio.windows import Window
from tqdm import tqdm

from imagery2flow.run.acquire_config import TILE_PIXELS, AcquireConfig
from imagery2flow.run.files import replacing, write_table
from imagery2flow.run.stage import Ledger
from imagery2flow.sources.stac import DEGREES, LARGEST, SENSORS, cloud_cover_percent, find_items, offset_to_remove, read_item

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox
    from pystac import Item

OUTLINE_ERROR_DEGREES = 0.02  # catalogues draw the outlines of images with few points


def fetch_imagery(units: gpd.GeoDataFrame, config: AcquireConfig, addresses: dict[str, str], ledger: Ledger) -> None:
    """Writes the region's imagery, and beside it a table of the images that it is made of, unless it is there.

    Raises:
        InputError: No image is found, or one cannot be read.
    """
    path = config.imagery_path
    if path.exists():
        ledger.note(f"{path} is there: not fetched")
        return
    items = find_items(place_of(units), config, addresses[config.catalogue], ledger)
    note_scale(items, config, ledger)
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = make_grid(units, config)
    clear = write_composite(items, grid, config)
    ledger.leave_out("images without a clear pixel of the region", [item.id for item, count in zip(items, clear, strict=True) if not count])
    ledger.went_out["images used"] = int((clear > 0).sum())
    table = {
        "item": [item.id for item in items],
        "datetime": [str(item.datetime) for item in items],
        "cloud_cover": [cloud_cover_percent(item) for item in items],
        "platform": [item.properties["platform"] for item in items],
        "valid_share": [count / (grid.width * grid.height) for count in clear],
    }
    write_table(path.with_name(f"{path.stem}_scenes.csv"), pd.DataFrame(table))


def print_imagery_plan(units: gpd.GeoDataFrame | None, config: AcquireConfig, addresses: dict[str, str], ledger: Ledger) -> None:
    """Prints the images that would be combined, with their cloud cover, and the size of the result.

    Raises:
        InputError: No image is found.
    """
    if config.imagery_path.exists() or units is None:
        print(f"{config.imagery_path.name}: " + ("is there" if units is not None else "follows from units.gpkg, which is not there yet"))
        return
    items = find_items(place_of(units), config, addresses[config.catalogue], ledger)
    grid = make_grid(units, config)
    print(
        f"{config.imagery_path.name}: {grid.width} x {grid.height} pixels of {SENSORS[config.sensor].gsd_m} m ({grid.crs}), "
        f"{', '.join(config.imagery_bands)}, out of {len(items)} images:"
    )
    for item in items:
        print(f"  {item.datetime:%Y-%m-%d}  cloud {cloud_cover_percent(item):5.1f} %  {item.id}")
    print("; ".join(f"left out: {len(ids)} {why}" for why, ids in ledger.left_out.items()) or "none left out")


def place_of(units: gpd.GeoDataFrame) -> shapely.Geometry:
    """The rectangle around all units, in degrees."""
    return shapely.box(*units.to_crs(DEGREES).total_bounds)


def note_scale(items: Sequence[Item], config: AcquireConfig, ledger: Ledger) -> None:
    """Says which digital numbers came and what they became."""
    if SENSORS[config.sensor].is_landsat:
        ledger.note("digital numbers x 0.0000275 - 0.2 are reflectance; written is reflectance x 10,000, 0 where there is none")
        return
    shifted = sum(offset_to_remove(item) != 0 for item in items)
    ledger.note(
        f"digital numbers / 10,000 are reflectance, of {shifted} of {len(items)} images after an offset of -1000 that their catalogue has not applied; "
        "written is reflectance x 10,000, 0 where there is none"
    )


def make_grid(units: gpd.GeoDataFrame, config: AcquireConfig) -> GeoBox:
    """Whole pixels around all units, in the UTM zone of their centre; edges as those of the sensor's own pixels."""
    from odc.geo.geobox import GeoBox

    sensor, crs = SENSORS[config.sensor], units.estimate_utm_crs()
    bounds = (units.to_crs(crs).total_bounds - sensor.origin_m) / sensor.gsd_m
    left, bottom, right, top = (int(side) for side in (*np.floor(bounds[:2]), *np.ceil(bounds[2:])))
    corner_x, corner_y = (side * sensor.gsd_m + sensor.origin_m for side in (left, top))
    transform = Affine(sensor.gsd_m, 0, corner_x, 0, -sensor.gsd_m, corner_y)
    return GeoBox((top - bottom, right - left), transform, f"EPSG:{crs.to_epsg()}")


def write_composite(items: Sequence[Item], grid: GeoBox, config: AcquireConfig) -> np.ndarray:
    """Writes the median of all images; returns the number of clear pixels of each [num_items].

    Memory is that of one block: ``block``^2 pixels x bands x 2 bytes for every image that touches it.

    Raises:
        InputError: An image cannot be read.
    """
    bands, clear = config.imagery_bands, np.zeros(len(items), dtype=np.int64)
    profile = {
        "driver": "GTiff",
        "width": grid.width,
        "height": grid.height,
        "count": len(bands),
        "dtype": "uint16",
        "crs": str(grid.crs),
        "transform": grid.affine,
        "nodata": 0,
        "tiled": True,
        "blockxsize": TILE_PIXELS,
        "blockysize": TILE_PIXELS,
        "compress": "deflate",
        "predictor": 2,
        "photometric": "minisblack",  # the fourth band is no alpha
        "bigtiff": "if_safer",
    }
    with replacing(config.imagery_path) as temporary:
        with rasterio.open(temporary, "w", **profile) as dataset:
            dataset.descriptions = bands
            for rows, columns in tqdm(list(blocks_of(grid, config.block)), desc="blocks", disable=None):
                part = grid[rows, columns]
                touching = [number for number, item in enumerate(items) if touches(item, part)]
                values, counts = composite([items[number] for number in touching], part, config)
                clear[touching] += counts
                dataset.write(values, window=Window.from_slices(rows, columns))
        with rasterio.open(temporary, "r+") as dataset:
            factors = [2**level for level in range(1, 8) if max(dataset.shape) > TILE_PIXELS * 2 ** (level - 1)]
            dataset.build_overviews(factors, Resampling.average)
    return clear


def blocks_of(grid: GeoBox, side: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the blocks, from the top left."""
    for row in range(0, grid.height, side):
        for column in range(0, grid.width, side):
            yield slice(row, min(row + side, grid.height)), slice(column, min(column + side, grid.width))


def touches(item: Item, part: GeoBox) -> bool:
    """Whether an image may have pixels in a part of the grid."""
    outline = shapely.box(*transform_bounds(str(part.crs), DEGREES, *part.boundingbox.bbox))
    return item.geometry is None or shapely.geometry.shape(item.geometry).distance(outline) < OUTLINE_ERROR_DEGREES


def composite(items: Sequence[Item], part: GeoBox, config: AcquireConfig) -> tuple[np.ndarray, np.ndarray]:
    """The median of the clear pixels of all images, in one part of the grid; the mean of the middle two, rounded down.

    Returns:
        Values [num_bands, height, width], 0 where no image is clear, and the number of clear pixels of each image [num_items].
    """
    stack = np.full((max(len(items), 1), len(config.imagery_bands), *part.shape), LARGEST, dtype=np.uint16)
    num_clear = np.zeros(part.shape, dtype=np.intp)  # [height, width]
    counts = np.zeros(len(items), dtype=np.int64)
    for number, item in enumerate(items):
        values, valid = read_item(item, part, config)
        np.copyto(stack[number], values, where=valid)
        num_clear += valid
        counts[number] = valid.sum()
    stack.sort(axis=0)  # what is not clear is largest and comes last
    middle = [np.take_along_axis(stack, np.maximum(rank, 0)[None, None], axis=0)[0] for rank in ((num_clear - 1) // 2, num_clear // 2)]
    median = ((middle[0].astype(np.uint32) + middle[1]) // 2).astype(np.uint16)
    median[:, num_clear == 0] = 0
    return median, counts
