"""One cloud-free image of a region and season: the median of all images, pixel by pixel, in blocks.

An image that cannot be read ends the run with a sentence that names it, and ``--without`` leaves it out: what is written follows from
the settings, not from which servers answered. Tiles of one overpass overlap, so that a day may count twice in the median where they do.
The size of the blocks changes nothing, but for images of another UTM zone: GDAL finds their pixels to an eighth of a pixel, from where
the block lies.

A finished block stays in a hidden folder beside the file until that is written, so that a run that broke continues. Its name is a hash of everything that
it follows from: pixels, bands, images. So other settings or other images never meet a block that is not theirs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from imagery2flow.run.earth import utm_epsg
from imagery2flow.run.errors import InputError
from imagery2flow.run.files import replacing, replacing_by_gdal
from imagery2flow.run.geofiles import open_raster
from imagery2flow.run.lock import only_run
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import write_table
from imagery2flow.sources.stac import (
    DEGREES,
    LARGEST,
    SENSORS,
    asset_name,
    check_packages,
    cloud_cover_percent,
    find_items,
    offset_to_remove,
    read_item,
)

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox
    from pystac import Item

MARGIN_M = 2_000.0  # of imagery around the units, for patches with their surroundings
OUTLINE_ERROR_DEGREES = 0.02  # catalogues draw the outlines of images with few points
DAMAGED_ARCHIVE = (
    OSError,
    EOFError,
    KeyError,
    RuntimeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)  # depending on which byte is wrong
SETTINGS_TAG = "IMAGERY2FLOW_SETTINGS"  # of the file: what its pixels follow from


def check_imagery(units: gpd.GeoDataFrame | None, config: AcquireConfig) -> None:
    """Refuses what cannot become the imagery that is asked for, before anything is fetched: missing packages, or other imagery in its place.

    Raises:
        InputError: A package is missing, or the file that is there was made with other settings or does not cover the units.
    """
    path = config.imagery_path
    if not path.exists():
        check_packages(config)
        return
    remedy = "remove that file, name another --region, or leave imagery out of --what"
    try:
        with open_raster(path, "imagery", allow_remote=None) as dataset:
            made_with, covered = dataset.tags().get(SETTINGS_TAG), shapely.box(*dataset.bounds).buffer(dataset.res[0])
            bounds = None if units is None or dataset.crs is None else units.to_crs(dataset.crs).total_bounds
    except rasterio.errors.RasterioError as error:
        raise InputError(f"{path} is there and cannot be read ({error}); {remedy}") from error
    asked = config.imagery_settings
    if made_with is not None:
        there = json.loads(made_with)
        other = [name for name in asked if there.get(name) != asked[name]]
        if other:
            told = "; ".join(f"--{name} {text_of(there.get(name))}, where {text_of(asked[name])} is asked for" for name in other)
            raise InputError(f"{path} is there, made with {told}; give the settings of that file, or {remedy}")
    if bounds is not None and not covered.contains(shapely.box(*bounds)):
        raise InputError(f"{path} is there and does not cover the units; {remedy}")


def text_of(value: object) -> str:
    """A setting as it is written on the command line."""
    return " ".join(map(str, value)) or "(none)" if isinstance(value, list) else str(value)


def fetch_imagery(units: gpd.GeoDataFrame, config: AcquireConfig, addresses: dict[str, str], ledger: Ledger) -> None:
    """Writes the region's imagery, and beside it a table of the images that it is made of, unless it is there.

    Raises:
        InputError: No image is found, or one cannot be read.
    """
    path = config.imagery_path
    if path.exists():
        ledger.note(f"{path} is there: not fetched")
        shutil.rmtree(block_folder_path(config), ignore_errors=True)  # of a process that was killed at its very end
        return
    items = find_items(place_of(units), config, addresses[config.catalogue], ledger)
    note_scale(items, config, ledger)
    grid = make_grid(units, config)
    with block_folder(config) as folder:
        blocks = Blocks(items, grid, units.to_crs(str(grid.crs)).union_all().buffer(MARGIN_M), config, folder)
        clear = blocks.make(ledger)
        ledger.leave_out(
            "images without a clear pixel of the region", [item.id for item, count in zip(items, clear, strict=True) if not count]
        )
        ledger.went_out["images used"] = int((clear > 0).sum())
        table = {
            "item": [item.id for item in items],
            "datetime": [str(item.datetime) for item in items],
            "cloud_cover": [cloud_cover_percent(item) for item in items],
            "platform": [item.properties["platform"] for item in items],
            "valid_share": [count / blocks.num_pixels for count in clear],
        }
        write_table(path.with_name(f"{path.stem}_scenes.csv"), pd.DataFrame(table))
        write_imagery(blocks, config)  # last: what is there is whole


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

    sensor, epsg = SENSORS[config.sensor], utm_epsg(units)
    bounds = (units.to_crs(epsg).total_bounds - sensor.origin_m) / sensor.gsd_m
    left, bottom, right, top = (int(side) for side in (*np.floor(bounds[:2]), *np.ceil(bounds[2:])))
    corner_x, corner_y = (side * sensor.gsd_m + sensor.origin_m for side in (left, top))
    transform = Affine(sensor.gsd_m, 0, corner_x, 0, -sensor.gsd_m, corner_y)
    return GeoBox((top - bottom, right - left), transform, f"EPSG:{epsg}")


@contextmanager
def block_folder(config: AcquireConfig) -> Iterator[Path]:
    """The folder of finished blocks, for one run at a time; removed if the work comes to its end.

    Raises:
        InputError: Another run is at work there.
    """
    folder = block_folder_path(config)
    with only_run(config.imagery_path):
        folder.mkdir(parents=True, exist_ok=True)
        is_done = False
        try:
            yield folder
            is_done = True
        finally:
            if is_done or not any(folder.glob("*.npz")):
                shutil.rmtree(folder)


def block_folder_path(config: AcquireConfig) -> Path:
    """Where finished blocks are kept."""
    return config.imagery_path.with_name(f".{config.imagery_path.stem}_blocks")


class Blocks:
    """The parts of a composite, each made once and kept in a file.

    Args:
        items: Images.
        grid: Pixels of the composite.
        place: What is asked for, in the grid's CRS; blocks that do not meet it are left empty.
        config: Settings.
        folder: Where finished blocks are kept.
    """

    def __init__(self, items: Sequence[Item], grid: GeoBox, place: shapely.Geometry, config: AcquireConfig, folder: Path) -> None:
        self.items, self.grid, self.config, self.folder = items, grid, config, folder
        shapely.prepare(place)
        windows = blocks_of(grid, config.block)
        self.windows = [window for window in windows if place.intersects(shapely.box(*grid[window].boundingbox.bbox))]
        self.num_pixels = sum(grid[window].shape[0] * grid[window].shape[1] for window in self.windows)

    def make(self, ledger: Ledger) -> np.ndarray:
        """Makes the blocks that are not there; returns the number of clear pixels of each image [num_items].

        Memory is that of one block: ``block``^2 pixels x bands x 2 bytes for every image that touches it.

        Raises:
            InputError: An image cannot be read.
        """
        clear, num_kept = np.zeros(len(self.items), dtype=np.int64), 0
        for rows, columns in tqdm(self.windows, desc="blocks", disable=None):
            part = self.grid[rows, columns]
            touching, path = self.locate(part)
            counts = read_counts(path)
            if counts is None:
                values, counts = composite([self.items[number] for number in touching], part, self.config)
                with replacing(path) as temporary:
                    np.savez_compressed(temporary, values=values, counts=counts)
            else:
                num_kept += 1
            clear[touching] += counts
        if num_kept:
            ledger.note(f"{num_kept:,} of {len(self.windows):,} blocks were there from a call that did not come to its end")
        return clear

    def locate(self, part: GeoBox) -> tuple[list[int], Path]:
        """Positions of the images that touch a part of the grid, and the file that its block is kept in."""
        touching = [number for number, item in enumerate(self.items) if touches(item, part)]
        sensor, bands = SENSORS[self.config.sensor], self.config.imagery_bands
        images = [
            [item.id, offset_to_remove(item)]
            + [item.assets[str(asset_name(item, sensor, band))].href.partition("?")[0] for band in (*bands, "mask")]  # without signatures
            for item in (self.items[number] for number in touching)
        ]
        content = [self.config.sensor, bands, str(part.crs), list(part.affine), list(part.shape), images]
        return touching, self.folder / f"{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]}.npz"

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Values of a finished block [num_bands, height, width]."""
        with np.load(self.locate(self.grid[rows, columns])[1], allow_pickle=False) as content:
            return content["values"]


def read_counts(path: Path) -> np.ndarray | None:
    """The numbers of clear pixels that a finished block holds [num_touching]; None where there is none, or a damaged one."""
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        with np.load(path, allow_pickle=False) as content:
            return None if damaged else content["counts"]
    except DAMAGED_ARCHIVE:
        return None


def write_imagery(blocks: Blocks, config: AcquireConfig) -> None:
    """Writes all blocks as one GeoTIFF with overviews.

    Raises:
        InputError: It cannot be written.
    """
    grid, bands = blocks.grid, config.imagery_bands
    profile: dict[str, Any] = {
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
    with replacing_by_gdal(config.imagery_path) as temporary:
        with rasterio.open(temporary, "w", **profile) as dataset:
            dataset.descriptions = bands
            dataset.update_tags(**{SETTINGS_TAG: json.dumps(config.imagery_settings)})
            for rows, columns in blocks.windows:
                dataset.write(blocks.read(rows, columns), window=Window.from_slices(rows, columns))
        with rasterio.open(temporary, "r+") as dataset:
            factors = [2**level for level in range(1, 8) if max(dataset.shape) > TILE_PIXELS * 2 ** (level - 1)]
            dataset.build_overviews(factors, Resampling.average)
        check_pixels(blocks, temporary)


def check_pixels(blocks: Blocks, path: Path) -> None:
    """Reads everything again: on a full disk GDAL may say nothing when it closes a file.

    Raises:
        OSError: The file holds something else than was written.
    """
    with rasterio.open(path) as dataset:
        for rows, columns in blocks.windows:
            if not np.array_equal(dataset.read(window=Window.from_slices(rows, columns)), blocks.read(rows, columns)):
                raise OSError("it does not hold what was written")


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
