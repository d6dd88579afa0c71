"""Maps of a region: its imagery with the units, and flows as lines between units."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import shapely
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from rasterio.errors import RasterioIOError

from imagery2flow.figures.style import COLOURS, GREY, new_figure
from imagery2flow.flows import metrics
from imagery2flow.flows.table import note_numeric_ids
from imagery2flow.imagery.scene import Scene, open_scene
from imagery2flow.imagery.units import read_units, to_scene_crs
from imagery2flow.run.config import MapConfig
from imagery2flow.run.errors import Faults, InputError, first_sentence, shown
from imagery2flow.run.files import check_output_folder, read_table, save_figure
from imagery2flow.run.stage import Ledger

LARGEST_SIDE_PX = 1200  # a map shows no more
STRETCH_PERCENT = (2.0, 98.0)
LINES_SHOWN = 1500
WIDEST_LINE = 2.0  # points
SUFFIXES = (".png", ".pdf", ".svg")
PREDICTION_COLUMNS = ("h_geocode", "w_geocode", "count", "prediction")


def draw_map(config: MapConfig, ledger: Ledger) -> Path:
    """Draws the imagery, the observed and the predicted flows of a region; returns the path of the run file.

    Raises:
        InputError: A file cannot be used.
    """
    output = Path(config.output_path)
    if output.suffix not in SUFFIXES or output.is_dir():
        raise InputError(f"--output_path {output} must be a file that ends in {', '.join(SUFFIXES)}")
    check_output_folder(output.parent, "--output_path")
    scene = open_scene(config.scene_path, flag="--scene_path")
    ledger.reads(config.scene_path)
    units = read_units(config.units_path, config.id_column, ledger)
    table = read_predictions(config.predictions_path, units.index, ledger)
    ledger.came_in.update({"units": len(units), "flows": len(table)})
    outlines = to_scene_crs(units, scene, ledger)
    check_same_place(scene, outlines, config)
    save_figure(output, region_map(scene, outlines, table))
    ledger.went_out["pictures"] = 1
    ledger.note(f"{output} shows the {min(LINES_SHOWN, len(table)):,} largest flows of each kind")
    return Path(config.output_path + ".run.json")


def read_predictions(path: str, geocodes: pd.Index, ledger: Ledger) -> pd.DataFrame:
    """Predictions of stage 4 or 5: h_geocode, w_geocode, count (NaN where unknown), prediction.

    Raises:
        MissingInputError: The file is absent.
        TableError: The table has faults; all are named at once.
    """
    table = read_table(path, "predictions", ("h_geocode", "w_geocode"))
    ledger.reads(path)
    faults = Faults(f"predictions {path}")
    absent = [column for column in PREDICTION_COLUMNS if column not in table]
    if absent or table.empty:
        problem = (
            f"columns {', '.join(absent)} are missing among {', '.join(map(str, table.columns))}" if absent else "the table has 0 rows"
        )
        faults.add(f"{problem}; name a table that train_ODPrediction.py or test_ODPrediction.py wrote")
        faults.raise_if_any()
    for column in ("h_geocode", "w_geocode"):
        unknown = table[column][~table[column].isin(geocodes)].unique()
        if not note_numeric_ids(table[column], column, faults) and len(unknown):
            faults.add(f"{len(unknown)} ids of {column} are not among the units ({shown(unknown)}); name the units that they were made for")
    for column in ("count", "prediction"):
        numbers = pd.to_numeric(table[column], errors="coerce")
        wrong = table[column][(numbers.isna() & table[column].notna()) | np.isinf(numbers) | (numbers < 0)]
        if len(wrong):
            faults.add(f"{len(wrong):,} values of {column} are no numbers of commuters ({shown(wrong)}); mend or remove them")
    faults.raise_if_any()
    return table


def check_same_place(scene: Scene, outlines: gpd.GeoSeries, config: MapConfig) -> None:
    """Refuses units beside the scene, which a map of both cannot show.

    Raises:
        InputError: No unit lies on the scene, or the scene's CRS does not reach as far as the units do.
    """
    extent = rasterio.transform.array_bounds(scene.height, scene.width, scene.transform)
    if not np.isfinite(outlines.total_bounds).all() or not outlines.intersects(shapely.box(*extent)).any():
        raise InputError(
            f"units {config.units_path} do not lie on scene {config.scene_path}; name the scene of that place with --scene_path"
        )


def region_map(scene: Scene, units: gpd.GeoSeries, table: pd.DataFrame) -> Figure:
    """Imagery with the units, observed flows, predicted flows.

    Args:
        scene: Its first three bands are shown as red, green, blue; the first alone if there are fewer.
        units: Index geocode, polygons in the scene's CRS.
        table: h_geocode, w_geocode, count (NaN where unknown), prediction.
    """
    known = table.dropna(subset=["count"])
    figure, (image, observed, predicted) = new_figure(12, 4.2, columns=3)
    draw_scene(image, scene)
    units.boundary.plot(ax=image, color="white", linewidth=0.3)
    image.set_title(f"imagery ({', '.join(scene.band_names[:3])}) and {len(units):,} units", fontsize=10)
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


def draw_scene(axis: Axes, scene: Scene) -> None:
    """Shows a scene, thinned to the size of a map, each band stretched between two percentiles of its valid pixels.

    Raises:
        InputError: The file is damaged.
    """
    step = max(1, max(scene.width, scene.height) // LARGEST_SIDE_PX)
    bands = scene.bands[:3] if len(scene.bands) >= 3 else scene.bands[:1] * 3
    try:
        with rasterio.open(scene.path) as dataset:
            pixels = dataset.read(list(bands), out_shape=(3, scene.height // step, scene.width // step), masked=True).astype(np.float64)
            bounds = dataset.bounds
    except RasterioIOError as error:
        raise InputError(
            f"scene {scene.path} cannot be read ({first_sentence(error)}); the file may be truncated: copy it again"
        ) from error
    valid, pixels = ~np.ma.getmaskarray(pixels).any(axis=0), np.ma.getdata(pixels)
    picture = np.ones((*valid.shape, 3))
    for band in range(3):
        low, high = np.percentile(pixels[band][valid], STRETCH_PERCENT) if valid.any() else (0.0, 1.0)
        picture[valid, band] = np.clip((pixels[band][valid] - low) / max(high - low, 1e-12), 0, 1)
    axis.imshow(picture, extent=(bounds.left, bounds.right, bounds.bottom, bounds.top), interpolation="nearest")


def draw_flows(axis: Axes, units: gpd.GeoSeries, table: pd.DataFrame, column: str, largest: float, colour: str) -> None:
    """Draws the largest flows between different units as lines, wider and darker with more commuters; ``largest`` sets the scale."""
    between = table[(table.h_geocode != table.w_geocode) & (table[column] > 0)].nlargest(LINES_SHOWN, column).iloc[::-1]
    centroid = units.centroid
    place = np.stack([centroid.x, centroid.y], axis=1)  # [num_units, 2]
    ends = [units.index.get_indexer(between[name]) for name in ("h_geocode", "w_geocode")]
    share = between[column].to_numpy(float) / largest
    units.boundary.plot(ax=axis, color=GREY, linewidth=0.15)
    lines = [*np.stack([place[end] for end in ends], axis=1)]  # [2, 2] each
    axis.add_collection(LineCollection(lines, linewidths=WIDEST_LINE * np.sqrt(share), colors=colour, alpha=np.clip(share, 0.05, 1)))
