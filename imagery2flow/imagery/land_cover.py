"""``python -m imagery2flow land_cover``: area of every class of land cover or land use in every areal unit, from rasters of class codes.

A unit is counted on the grid of the first raster that it meets, continued beyond its edges: every pixel of this grid whose centre lies in the unit
counts once. Its class is that of the first raster, in the order given, that has one at this centre (other grids and CRSs are sampled there), so that
overlapping tiles count no place twice. Where no raster has one, the pixel goes to ``nodata_m2``: a row adds up to the number of the unit's pixels times
their area. A unit that meets no raster has no pixels: its own area is its ``nodata_m2``.

The area of a pixel is true on the ellipsoid for a CRS in degrees, and as the CRS has it otherwise: true for equal-area ones (NLCD's EPSG:5070); a CRS
that stretches areas by more than 1 % is named in the ledger. Only windows are read, in strips of at most ``STRIP_PIXELS``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import rasterio
from rasterio.crs import CRS
from rasterio.windows import Window
from tqdm import tqdm

from imagery2flow.imagery.cutting import BLOCK_CACHE_BYTES, CutTask, pixels_of, reading_order
from imagery2flow.imagery.patches import WELL_COVERED, describe_scenes, nodata_text, units_on_scenes
from imagery2flow.imagery.scene import Scene, SceneReader, open_scene
from imagery2flow.imagery.units import check_polygons, crs_name, read_units
from imagery2flow.run.earth import graticule_areas_m2
from imagery2flow.run.errors import BandError, InputError, shown
from imagery2flow.run.land_cover_config import LandCoverConfig
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import check_table_suffix, write_table

STRIP_PIXELS = 1 << 21
MAX_CLASSES = 1_000  # more are elevations or intensities, not classes
NOTED_DISTORTION = 0.01  # of areas in a CRS
EQUAL_AREA = "EPSG:6933"
CODE, NODATA = "class_", "nodata_m2"


def write_land_cover(config: LandCoverConfig, ledger: Ledger) -> Path:
    """Writes the area of every class in every unit; returns the path of the run file.

    Raises:
        InputError: Units or rasters cannot be read, or do not meet.
    """
    check_table_suffix(config.output_path, "--output_path")
    units = read_units(config.units_path, config.id_column, ledger)
    ledger.take_in("units", len(units))
    table = count_land_cover(units, config.raster_path, ledger, config.raster_nodata, config.units_path, config.allow_remote)
    write_table(Path(config.output_path), table)
    return Path(f"{config.output_path}.run.json")


def count_land_cover(
    units: gpd.GeoDataFrame,
    paths: Sequence[str | Path],
    ledger: Ledger,
    nodata: int | None = None,
    units_path: str = "the region",
    allow_remote: bool = False,
) -> pd.DataFrame:
    """Area of every class in every unit.

    Args:
        units: Index ``geocode``, polygons, any CRS.
        paths: Rasters of class codes, in the order of their precedence.
        ledger: Takes what the rasters are, reprojections, and units without pixels.
        nodata: Code that means no class, besides the one that a raster declares.
        units_path: Where the units come from, for messages.
        allow_remote: Whether rasters may refer to what does not lie in their folder.

    Returns:
        ``geocode``, ``class_<code>`` in m2 (rounded to .01; sorted by code), ``nodata_m2``; rows in the order of ``units``.

    Raises:
        InputError: A raster is none of classes or has no CRS, units are no polygons, or no unit has a class.
    """
    check_polygons(units, "land cover", units_path)
    rasters = [open_classes(path, nodata, allow_remote) for path in paths]
    for raster in rasters:
        describe_scenes([raster], ledger)
    note_distortion(rasters, units, ledger)
    tasks = reading_order(units_on_scenes(units, rasters, ledger, units_path), rasters)
    reader = SceneReader(rasters)
    try:
        with rasterio.Env(GDAL_CACHEMAX=BLOCK_CACHE_BYTES):
            areas = {task.geocode: unit_areas(task, reader) for task in tqdm(tasks, desc="land cover", unit="unit", disable=None)}
    finally:
        reader.close()
    table = as_table(units, areas, [task.geocode for task in tasks if not task.candidates], ledger)
    num_classes = table.shape[1] - len(("geocode", NODATA))
    if not num_classes:
        named = shown(f"{raster.path}, nodata {nodata_text(raster)}" for raster in rasters)
        raise InputError(f"no pixel of the {len(units):,} units has a class in the rasters ({named}); check that value, and the place")
    ledger.went_out["classes"] = num_classes
    return table


def open_classes(path: str | Path, nodata: int | None, allow_remote: bool) -> Scene:
    """A raster of class codes.

    Raises:
        BandError: It has several bands.
        InputError: Its pixels are no whole numbers, or a grid in degrees is turned.
    """
    raster = open_scene(str(path), nodata=nodata, flag="--raster_path", allow_remote=allow_remote)
    bands = (*raster.bands, *raster.alpha_bands)
    if len(bands) > 1:
        raise BandError(
            f"raster {path} has {len(bands)} bands but classes stand in one; take it out with: gdal_translate -b NUMBER {path} classes.tif"
        )
    if np.dtype(raster.dtype).kind not in "iu":
        raise InputError(
            f"raster {path} holds {raster.dtype} but class codes are whole numbers; if they are, write them as such with: gdal_translate -ot Int16 {path} classes.tif"
        )
    if raster.crs is not None and raster.crs.is_geographic and raster.transform.d:
        raise InputError(
            f"raster {path} is a turned grid in degrees, whose pixels have no area by row; straighten it with: gdalwarp {path} straight.tif"
        )
    return raster


def note_distortion(rasters: Sequence[Scene], units: gpd.GeoDataFrame, ledger: Ledger) -> None:
    """Names every CRS in metres whose areas differ from those on Earth where the units lie."""
    west, south, east, north = units.to_crs(4326).total_bounds
    for wkt in dict.fromkeys(raster.crs.to_wkt() for raster in rasters if raster.crs is not None and raster.crs.is_projected):
        crs = pyproj.CRS.from_wkt(wkt)
        scale = pyproj.Proj(crs).get_factors((west + east) / 2, (south + north) / 2).areal_scale
        if abs(scale - 1) > NOTED_DISTORTION:
            ledger.note(f"areas in {crs_name(crs)} are {scale:.3f} times those on Earth at the units; shares of a unit are hardly affected")


def unit_areas(task: CutTask, reader: SceneReader) -> dict[str, float]:
    """Area in m2 of each class in a unit, by column, and of what has none; empty where it holds the centre of no pixel."""
    areas: defaultdict[str, float] = defaultdict(float)
    if not task.candidates:
        return areas
    own, numbers = task.candidates[0], [candidate.scene_number for candidate in task.candidates]
    raster = reader.scenes[own.scene_number]
    for strip in strips(own.window):
        rows, columns = np.nonzero(pixels_of(own.outline, strip, raster))
        if not len(rows):
            continue
        row_m2 = pixel_areas_m2(raster, strip.row_off, strip.height)
        codes, known = classes_at(reader, numbers, rows + strip.row_off, columns + strip.col_off)
        labels, found = pd.factorize(codes[known])
        for code, area_m2 in zip(found, np.bincount(labels, weights=row_m2[rows[known]]), strict=True):
            areas[f"{CODE}{code}"] += area_m2
        areas[NODATA] += row_m2[rows[~known]].sum()
    return areas


def strips(window: Window) -> Iterator[Window]:
    """A window as strips of whole rows of at most ``STRIP_PIXELS``, or of one row."""
    height = max(STRIP_PIXELS // window.width, 1)
    for row in range(0, window.height, height):
        yield Window(window.col_off, window.row_off + row, window.width, min(height, window.height - row))


def pixel_areas_m2(raster: Scene, first_row: int, height: int) -> np.ndarray:
    """Area of a pixel in each of some rows, which may lie beyond the raster [height]; in degrees the true one on the ellipsoid."""
    assert raster.crs is not None
    if not raster.crs.is_geographic:
        _, metres_per_unit = raster.crs.linear_units_factor
        return np.full(height, abs(raster.transform.determinant) * metres_per_unit**2)
    ellipsoid = pyproj.CRS.from_wkt(raster.crs.to_wkt()).get_geod()
    assert ellipsoid is not None
    latitude_edges = raster.transform.f + raster.transform.e * np.arange(first_row, first_row + height + 1)
    return graticule_areas_m2(latitude_edges, abs(raster.transform.a), ellipsoid.b, ellipsoid.es)


def classes_at(reader: SceneReader, numbers: Sequence[int], rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class codes at the centres of pixels, from the first raster that has one there.

    Args:
        reader: All rasters.
        numbers: Of the rasters that are asked, in this order; on the grid of the first lie the pixels.
        rows: Of the pixels, which may lie beyond that raster [num_pixels].
        columns: Of the same [num_pixels].

    Returns:
        Codes [num_pixels], and whether there is one [num_pixels].
    """
    own, *others = numbers
    codes, known = read_pixels(reader, own, rows, columns)
    for number in others:
        lacking = np.flatnonzero(~known)
        there, other_rows, other_columns = same_places(reader.scenes[own], reader.scenes[number], rows[lacking], columns[lacking])
        if there.any():
            found = lacking[there]
            codes[found], known[found] = read_pixels(reader, number, other_rows, other_columns)
    return codes, known


def same_places(own: Scene, other: Scene, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pixels of another raster that hold the centres of pixels of one raster.

    Returns:
        Which of the centres lie on the other raster [num_pixels], and rows and columns there of those that do.
    """
    centres: Any = (columns + 0.5, rows + 0.5)
    x, y = own.transform * centres
    if own.crs != other.crs:
        x, y = transformer(own.crs, other.crs).transform(x, y)
    other_columns, other_rows = ~other.transform * (x, y)
    there = (other_columns >= 0) & (other_columns < other.width) & (other_rows >= 0) & (other_rows < other.height)  # infinite ones are not
    return there, other_rows[there].astype(np.int64), other_columns[there].astype(np.int64)


@lru_cache
def transformer(source: CRS, target: CRS) -> pyproj.Transformer:
    """From one CRS to another; x before y."""
    return pyproj.Transformer.from_crs(source.to_wkt(), target.to_wkt(), always_xy=True)


def read_pixels(reader: SceneReader, number: int, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class codes of some pixels of a raster and whether they have one [num_pixels] each, in windows of bounded size."""
    top, left = int(rows.min()), int(columns.min())
    height, width = int(rows.max()) - top + 1, int(columns.max()) - left + 1
    if height * width > STRIP_PIXELS and len(rows) > 1:  # a finer raster, or a tilted one
        half = len(rows) // 2
        parts = [read_pixels(reader, number, rows[part], columns[part]) for part in (slice(half), slice(half, None))]
        return np.concatenate([codes for codes, _ in parts]), np.concatenate([known for _, known in parts])
    values, valid = reader.read(number, Window(left, top, width, height))
    flat = (rows - top) * width + (columns - left)  # one index instead of two: faster
    return values.ravel()[flat].astype(np.int64), valid.ravel()[flat]


def as_table(units: gpd.GeoDataFrame, areas: dict[str, dict[str, float]], outside: Sequence[str], ledger: Ledger) -> pd.DataFrame:
    """The table of ``count_land_cover``; units without pixels, or with few that have a class, are named in the ledger.

    Raises:
        InputError: There are more codes than any map has classes.
    """
    columns = {column for found in areas.values() for column in found} - {NODATA}
    if len(columns) > MAX_CLASSES:
        raise InputError(f"the rasters hold {len(columns):,} different codes, which no map of classes has; name others with --raster_path")
    codes = sorted(columns, key=lambda column: int(column.removeprefix(CODE)))
    table = pd.DataFrame.from_dict(areas, orient="index", columns=[*codes, NODATA]).reindex(units.index).fillna(0.0)
    is_outside = table.index.isin(outside)
    table.loc[is_outside, NODATA] = units.geometry[is_outside].to_crs(EQUAL_AREA).area
    ledger.leave_out("units that meet no raster: all of their area is nodata_m2", table.index[is_outside])
    is_empty = table.index.isin([geocode for geocode, found in areas.items() if not found]) & ~is_outside
    ledger.leave_out("units too small to hold the centre of a pixel: all of their row is 0", table.index[is_empty])
    partial = table.index[(table[NODATA] > (1 - WELL_COVERED) * table.sum(axis=1)) & ~is_outside]
    if len(partial):
        ledger.note(
            f"{len(partial):,} units have a class on less than {WELL_COVERED:.0%} of their area ({shown(partial)}); the rest is {NODATA}"
        )
    return table.round(2).rename_axis("geocode").reset_index()
