"""Areal units: tracts or any polygons, points, or the tiles of a regular grid; each has an id (``geocode``, text).

Every stage that needs units reads them here, sorted by id, so that the order of rows in a file never matters.
"""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from pyproj import CRS
from rasterio.windows import Window

from imagery2flow.imagery.scene import Scene
from imagery2flow.run.errors import CRSError, Faults, InputError, TableError, shortened, shown
from imagery2flow.run.geofiles import read_vector_file
from imagery2flow.run.stage import Ledger

ID_COLUMNS = ("GEOID20", "GEOID", "geocode", "GEOID10")
LONGEST_ID_BYTES = 160  # of the 255 that file systems allow: a patch's name holds sensor and year too
POLYGONS = ("Polygon", "MultiPolygon")


def read_units(path: str | Path, id_column: str | None, ledger: Ledger) -> gpd.GeoDataFrame:
    """Reads areal units: index ``geocode`` (text, sorted), valid geometries, a CRS.

    Args:
        path: GeoPackage, Shapefile, GeoJSON, and what else ``run.geofiles`` knows.
        id_column: Column of the ids; default the first of GEOID20, GEOID, geocode, GEOID10 that is there.
        ledger: Takes the units without geometry and the geometries that were mended.

    Raises:
        MissingInputError: The file is absent or unreadable.
        CRSError: The file states no CRS, or a local one.
        TableError: The ids are absent, numbers, empty, repeated, or unfit as file names; all of it at once.
    """
    table = read_vector(Path(path))
    ledger.reads(path)
    if table.crs is None:
        raise CRSError(f"units {path} state no CRS; write it into the file, for example with geopandas: units.set_crs(4326).to_file(...)")
    if not (table.crs.is_geographic or table.crs.is_projected):
        raise CRSError(
            f"units {path} state the local CRS {table.crs.name}, which says nothing of where on Earth they lie; write the right one into the file, "
            "for example with units.set_crs(CODE, allow_override=True)"
        )
    check_degrees(table, path)
    column = find_id_column(table, id_column, path)
    check_ids(table[column], f"units {path}, column {column}")
    table = table.set_index(pd.Index(table[column].astype(str), name="geocode")).sort_index()
    absent = table.geometry.isna() | table.geometry.is_empty
    ledger.leave_out("without geometry in the units file", table.index[absent])
    table = table[~absent].copy()
    if table.empty:
        raise TableError(f"units {path} hold no geometry; name a file with polygons or points")
    broken = ~table.geometry.is_valid
    if broken.any():
        mended = np.array([mend(shape) for shape in table.geometry[broken]], dtype=object)
        table.loc[broken, table.geometry.name] = gpd.GeoSeries(mended, index=table.index[broken], crs=table.crs)
        ledger.note(f"{broken.sum():,} invalid geometries were mended: {shown(table.index[broken])}")
    return table


def mend(shape: shapely.Geometry) -> shapely.Geometry:
    """A valid geometry; of a polygon its areas, without the lines that a spike leaves behind, which later stages could not take for a unit."""
    valid = shapely.make_valid(shape)
    if valid.geom_type != "GeometryCollection" or shape.geom_type not in POLYGONS:
        return valid
    parts = shapely.get_parts(shapely.get_parts(valid))  # a collection may hold a MultiPolygon
    areas = parts[shapely.area(parts) > 0]
    return shapely.union_all(areas) if len(areas) else valid


def read_vector(path: Path) -> gpd.GeoDataFrame:
    """Reads a vector file.

    Raises:
        MissingInputError: The file is absent or unreadable.
        InputError: The file has no geometries, or several layers, or could refer to other files.
    """
    table = read_vector_file(path, "units")
    if not isinstance(table, gpd.GeoDataFrame):
        raise InputError(f"units {path} hold a table without geometries; name a file with polygons or points")
    return table


def check_degrees(table: gpd.GeoDataFrame, path: str | Path) -> None:
    """Refuses coordinates that cannot be the degrees that the file's CRS says they are.

    Raises:
        CRSError: They are too large.
    """
    extent = table.total_bounds
    if table.crs.is_geographic and (np.abs(extent) > [360, 90, 360, 90]).any():
        raise CRSError(
            f"units {path} state {crs_name(table.crs)}, which is in degrees, but their coordinates reach from {extent[0]:.0f} {extent[1]:.0f} "
            f"to {extent[2]:.0f} {extent[3]:.0f}; write their own CRS into the file, for example with units.set_crs(CODE, allow_override=True)"
        )


def find_id_column(table: pd.DataFrame, id_column: str | None, path: str | Path) -> str:
    """Name of the column of ids.

    Raises:
        TableError: It is not there.
    """
    columns = [str(column) for column in table.columns if column != "geometry"]
    candidates = ID_COLUMNS if id_column is None else (id_column,)
    for candidate in candidates:
        if candidate in columns:
            return candidate
    raise TableError(
        f"units {path} have no id column {' or '.join(candidates)}; their columns are {', '.join(shortened(name) for name in columns)}: name one with --id_column"
    )


def check_ids(ids: pd.Series, where: str) -> None:
    """Refuses ids that cannot join tables or name files.

    Raises:
        TableError: All faults at once.
    """
    faults = Faults(where)
    if pd.api.types.is_numeric_dtype(ids):
        example = ids.dropna().iloc[0] if ids.notna().any() else "none"
        faults.add(
            f"the ids are numbers ({example}), so that leading zeros are lost; store them as text, for example with .astype(str).str.zfill(11)"
        )
    texts = ids.dropna().astype(str)
    if ids.isna().any() or (texts.str.strip() == "").any():
        faults.add(f"{int(ids.isna().sum() + (texts.str.strip() == '').sum())} ids are empty; give every unit an id")
    repeated = texts[texts.duplicated()].unique()
    if len(repeated):
        faults.add(f"{len(repeated)} ids occur more than once ({shown(sorted(repeated))}); dissolve or rename those units")
    # Control characters would break lines of tables and the terminal.
    unfit = texts[texts.str.contains(r"[/\\\x00-\x1f\x7f-\x9f]|^\.|^\s|\s$", regex=True)]
    if len(unfit):
        faults.add(f"{len(unfit)} ids cannot be part of a file name ({shown(unfit)}); use letters, digits, '-' and '.'")
    too_long = texts[texts.str.encode("utf-8", "surrogatepass").str.len() > LONGEST_ID_BYTES]
    if len(too_long):
        faults.add(f"{len(too_long)} ids are longer than {LONGEST_ID_BYTES} bytes ({too_long.iloc[0][:20]}...); shorten them")
    faults.raise_if_any()


def check_polygons(units: gpd.GeoDataFrame, purpose: str, where: str) -> None:
    """Refuses units that have no area.

    Raises:
        InputError: Some are points or lines.
    """
    if not units.geom_type.isin(POLYGONS).all():
        raise InputError(f"{purpose} needs polygons but {where} hold {', '.join(sorted(set(units.geom_type)))}; give the tracts themselves")


def to_scene_crs(units: gpd.GeoDataFrame, scene: Scene, ledger: Ledger) -> gpd.GeoSeries:
    """Geometries in the CRS of a scene; a reprojection is said in the ledger.

    Raises:
        CRSError: The scene has no CRS, or a local one.
    """
    crs = scene_crs(scene)
    if units.crs == crs:
        return units.geometry
    ledger.note(f"units reprojected from {crs_name(units.crs)} to {crs_name(crs)} for scene {scene.path.name}")
    return units.geometry.to_crs(crs)


def scene_crs(scene: Scene) -> CRS:
    """The CRS of a scene.

    Raises:
        CRSError: The scene has no CRS, or a local one.
    """
    crs = None if scene.crs is None else CRS.from_user_input(scene.crs.to_wkt())
    if crs is None or not scene.lies_on_earth:
        stated = "no CRS" if crs is None else f"the local CRS {crs.name}"
        raise CRSError(
            f"scene {scene.path} states {stated}, so that units cannot be laid over it; assign one with: rio edit-info --crs EPSG:CODE {scene.path}"
        )
    return crs


def crs_name(crs: CRS) -> str:
    """``EPSG:32618`` where the CRS has a code, else its name."""
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else crs.name


def zone_windows(geometries: gpd.GeoSeries, scene: Scene, context_m: float | None) -> np.ndarray:
    """Pixel windows of units: the bounding box, widened by the margin.

    Args:
        geometries: Polygons in the scene's CRS.
        scene: The scene.
        context_m: Margin in metres, or None.

    Returns:
        Integers [num_units, 4]: column and row offset, width and height; they may reach beyond the scene.
    """
    left, bottom, right, top = geometries.bounds.to_numpy().T
    corners_x = np.stack([left, left, right, right])  # [4, num_units]
    corners_y = np.stack([bottom, top, bottom, top])
    columns, rows = ~scene.transform * (corners_x, corners_y)
    side_x_m, side_y_m = scene.pixel_sides_m()
    margin_x, margin_y = (context_m or 0.0) / side_x_m, (context_m or 0.0) / side_y_m
    # A bound that lies on a pixel's edge up to rounding must not add a row or column of pixels.
    tolerance = 1e-6
    first_column = np.floor(columns.min(axis=0) - margin_x + tolerance)
    first_row = np.floor(rows.min(axis=0) - margin_y + tolerance)
    last_column = np.ceil(columns.max(axis=0) + margin_x - tolerance)
    last_row = np.ceil(rows.max(axis=0) + margin_y - tolerance)
    width, height = np.maximum(last_column - first_column, 1), np.maximum(last_row - first_row, 1)
    return np.stack([first_column, first_row, width, height], axis=1).astype(np.int64)


def point_windows(points: gpd.GeoSeries, scene: Scene, size: int) -> np.ndarray:
    """Squares of ``size`` pixels around points: integers [num_units, 4] as ``zone_windows`` returns them.

    Raises:
        InputError: A geometry is not a point.
    """
    check_points(points)
    columns, rows = ~scene.transform * (points.x.to_numpy(), points.y.to_numpy())
    # A square of even side is centred on the pixel corner nearest to the point, one of odd side on the centre of the point's pixel.
    first_column, first_row = np.floor(columns - size / 2 + 0.5), np.floor(rows - size / 2 + 0.5)
    side = np.full(len(points), size)
    return np.stack([first_column, first_row, side, side], axis=1).astype(np.int64)


def check_points(points: gpd.GeoSeries) -> None:
    """Refuses geometries that are not points.

    Raises:
        InputError: Some are not.
    """
    if not (points.geom_type == "Point").all():
        raise InputError(
            f"--mode points needs points but the units hold {', '.join(sorted(set(points.geom_type)))}; use --mode zones for polygons"
        )


def as_window(row: np.ndarray) -> Window:
    """A rasterio window from one row of ``zone_windows``."""
    return Window(*(int(value) for value in row))
