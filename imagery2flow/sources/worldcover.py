"""ESA WorldCover: land cover of 2020 and 2021 in pixels of 10 m, in tiles of 3 x 3 degrees.

The two editions were made by different algorithms: what differs between them is not only the land. There is no tile where there is only open sea.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from rasterio.errors import RasterioIOError

from imagery2flow.run.acquire_config import AcquireConfig
from imagery2flow.run.errors import InputError, first_sentence, shown
from imagery2flow.run.geofiles import open_raster
from imagery2flow.run.stage import Ledger
from imagery2flow.sources.download import AbsentError, Downloader, Remote

TILE_DEGREES = 3
HALF_PIXEL_DEGREES = TILE_DEGREES / 36_000 / 2  # what lies nearer to a tile's edge holds no centre of its pixels
FIRST_YEAR = 2020
EDITIONS = {FIRST_YEAR: "v100", 2021: "v200"}
NO_CLASS = 0
LandCoverCounter = Callable[[gpd.GeoDataFrame, list[Path], Ledger, int], pd.DataFrame]


def edition_of(year: int) -> int:
    """Year of the edition that stands for a year: 2020 for itself, 2021 for every other."""
    return year if year in EDITIONS else max(EDITIONS)


def tile_names(units: gpd.GeoDataFrame) -> list[str]:
    """Names of the tiles on which units lie, from the south-west: those of their lower left corners, such as N39W078."""
    shapes = units.to_crs(4326).geometry
    tree = shapely.STRtree(shapes.to_numpy())
    first_x, first_y, last_x, last_y = np.floor(shapes.bounds.to_numpy() / TILE_DEGREES).astype(int).T
    corners = {
        corner
        for left, bottom, right, top in zip(first_x, first_y, last_x, last_y, strict=True)
        for corner in product(range(bottom, top + 1), range(left, right + 1))
    }
    names = []
    for row, column in sorted(corners):
        south, west = TILE_DEGREES * row, TILE_DEGREES * column
        inner = shapely.box(west, south, west + TILE_DEGREES, south + TILE_DEGREES).buffer(-HALF_PIXEL_DEGREES)
        if len(tree.query(inner, predicate="intersects")):
            names.append(f"{'N' if south >= 0 else 'S'}{abs(south):02}{'E' if west >= 0 else 'W'}{abs(west):03}")
    return names


def land_cover_files(units: gpd.GeoDataFrame, config: AcquireConfig, addresses: dict[str, str]) -> list[Remote]:
    """The tiles of the edition that stands for ``config.year``; those of open sea are not there."""
    year = edition_of(config.year)
    parts = {"version": EDITIONS[year], "year": year}
    return [
        Remote(f"WorldCover {year} {tile}", addresses["worldcover"].format(tile=tile, **parts), may_be_absent=True)
        for tile in tile_names(units)
    ]


def fetch_land_cover(
    units: gpd.GeoDataFrame,
    config: AcquireConfig,
    addresses: dict[str, str],
    downloader: Downloader,
    ledger: Ledger,
    count: LandCoverCounter,
) -> pd.DataFrame:
    """Area of every class in every unit, as ``count`` (``imagery.land_cover.count_land_cover``, which stands above this folder) finds it.

    Raises:
        InputError: A tile cannot be fetched or read, or there is none.
    """
    year = edition_of(config.year)
    if year != config.year:
        ledger.note(f"land cover is that of {year}: WorldCover has {' and '.join(map(str, EDITIONS))}, none of {config.year}")
    paths, absent = [], []
    for remote in land_cover_files(units, config, addresses):
        try:
            paths.append(checked(downloader.fetch(remote), remote, downloader))
        except AbsentError as error:
            absent.append(remote)
            missing = error
    if not paths:
        raise missing
    if absent:
        ledger.note(f"{len(absent)} tiles are not there, as of open sea, and count as nodata: {shown(remote.address for remote in absent)}")
    return count(units, paths, ledger, NO_CLASS)


def checked(path: Path, remote: Remote, downloader: Downloader) -> Path:
    """The path of a tile that is a raster; any other is forgotten.

    Raises:
        InputError: It is none.
    """
    try:
        open_raster(path, "tile", allow_remote=None).close()
    except RasterioIOError as error:
        downloader.forget(remote)
        raise InputError(
            f"{remote.what} from {remote.address} cannot be read as a raster ({first_sentence(error)}); run the same command again, "
            "or name another address with --addresses"
        ) from error
    return path
