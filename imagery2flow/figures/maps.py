"""Maps of a region: its imagery with the units, and flows as lines between units."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from imagery2flow.figures.style import COLOURS, GREY, new_figure
from imagery2flow.flows import metrics
from imagery2flow.imagery.units import read_units
from imagery2flow.run.config import MapConfig
from imagery2flow.run.errors import InputError, TableError, shown
from imagery2flow.run.files import read_table, save_figure
from imagery2flow.run.stage import Ledger

LARGEST_SIDE_PX = 1200  # a map shows no more
STRETCH_PERCENT = (2.0, 98.0)
LINES_SHOWN = 1500
WIDEST_LINE = 2.0  # points
SUFFIXES = (".png", ".pdf", ".svg")


def draw_map(config: MapConfig, ledger: Ledger) -> Path:
    """Draws the imagery, the observed and the predicted flows of a region; returns the path of the run file.

    Raises:
        InputError: A file cannot be used.
    """
    output = Path(config.output_path)
    if output.suffix not in SUFFIXES:
        raise InputError(f"--output_path {output} must end in {', '.join(SUFFIXES)}")
    units = read_units(config.units_path, config.id_column, ledger)
    table = read_table(config.predictions_path, "predictions", ("h_geocode", "w_geocode"))
    ledger.reads(config.predictions_path)
    unknown = sorted((set(table.h_geocode) | set(table.w_geocode)) - set(units.index))
    if unknown:
        raise TableError(
            f"predictions {config.predictions_path} name {len(unknown)} units that are not in {config.units_path} ({shown(unknown)}); name the units that they were made for"
        )
    ledger.came_in.update({"units": len(units), "flows": len(table)})
    save_figure(output, region_map(config.scene_path, units, table))
    ledger.went_out["pictures"] = 1
    ledger.note(f"{output} shows the {min(LINES_SHOWN, len(table)):,} largest flows of each kind")
    return Path(config.output_path + ".run.json")


def region_map(scene_path: str, units: gpd.GeoDataFrame, table: pd.DataFrame) -> Figure:
    """Imagery with the units, observed flows, predicted flows.

    Args:
        scene_path: Scene whose first three bands are shown as red, green, blue; the first alone if there are fewer.
        units: Index geocode, polygons with a CRS.
        table: h_geocode, w_geocode, count (NaN where unknown), prediction.
    """
    with rasterio.open(scene_path) as scene:
        units = units.to_crs(scene.crs)
        names = [scene.descriptions[number] or f"band {number + 1}" for number in range(min(scene.count, 3))]
    known = table.dropna(subset=["count"])
    figure, (image, observed, predicted) = new_figure(12, 4.2, columns=3)
    draw_scene(image, scene_path)
    units.boundary.plot(ax=image, color="white", linewidth=0.3)
    image.set_title(f"imagery ({', '.join(names)}) and {len(units):,} units", fontsize=10)
    largest = float(max(known["count"].max(), known.prediction.max())) if len(known) else float(table.prediction.max())
    draw_flows(observed, units, known, "count", largest, COLOURS[0])
    observed.set_title(f"observed: {known['count'].sum():,.0f} commuters", fontsize=10)
    draw_flows(predicted, units, table, "prediction", largest, COLOURS[1])
    score = f", CPC {metrics.cpc(known['count'].to_numpy(float), known.prediction.to_numpy(float)):.2f}" if len(known) else ""
    predicted.set_title(f"predicted: {table.prediction.sum():,.0f} commuters{score}", fontsize=10)
    left, bottom, right, top = units.total_bounds
    for axis in (image, observed, predicted):
        axis.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
        axis.set_axis_off()
    return figure


def draw_scene(axis: Axes, scene_path: str) -> None:
    """Shows a scene, thinned to the size of a map, each band stretched between two percentiles of its valid pixels."""
    with rasterio.open(scene_path) as scene:
        step = max(1, max(scene.width, scene.height) // LARGEST_SIDE_PX)
        bands = [1, 2, 3] if scene.count >= 3 else [1, 1, 1]
        pixels = scene.read(bands, out_shape=(3, scene.height // step, scene.width // step), masked=True).astype(np.float64)
        bounds = scene.bounds
    valid = ~np.ma.getmaskarray(pixels).any(axis=0)
    picture = np.ones((*valid.shape, 3))
    for band in range(3):
        low, high = np.percentile(pixels[band][valid], STRETCH_PERCENT) if valid.any() else (0.0, 1.0)
        picture[valid, band] = np.clip((pixels[band][valid] - low) / max(high - low, 1e-12), 0, 1)
    axis.imshow(picture, extent=(bounds.left, bounds.right, bounds.bottom, bounds.top), interpolation="nearest")


def draw_flows(axis: Axes, units: gpd.GeoDataFrame, table: pd.DataFrame, column: str, largest: float, colour: str) -> None:
    """Draws the largest flows between different units as lines, wider and darker with more commuters; ``largest`` sets the scale."""
    between = table[(table.h_geocode != table.w_geocode) & (table[column] > 0)].nlargest(LINES_SHOWN, column).iloc[::-1]
    centroid = units.geometry.centroid
    place = np.stack([centroid.x, centroid.y], axis=1)  # [num_units, 2]
    ends = [units.index.get_indexer(between[name]) for name in ("h_geocode", "w_geocode")]
    share = between[column].to_numpy(float) / largest
    units.boundary.plot(ax=axis, color=GREY, linewidth=0.15)
    lines = [*np.stack([place[end] for end in ends], axis=1)]  # [2, 2] each
    axis.add_collection(LineCollection(lines, linewidths=WIDEST_LINE * np.sqrt(share), colors=colour, alpha=np.clip(share, 0.05, 1)))
