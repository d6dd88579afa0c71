"""Maps of a region: its imagery with the units, and flows as lines between units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import shapely
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rasterio.errors import RasterioIOError

from imagery2flow.figures.cartography import map_panels, round_below, title_panel
from imagery2flow.figures.style import GREY, legend_below, series_styles
from imagery2flow.flows import metrics
from imagery2flow.flows.table import note_numeric_ids
from imagery2flow.imagery.scene import Scene, open_scene
from imagery2flow.imagery.units import read_units, to_scene_crs
from imagery2flow.run.config import FlowMapConfig
from imagery2flow.run.errors import Faults, InputError, first_sentence, shown
from imagery2flow.run.files import check_output_folder, save_figure
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import read_table

LARGEST_SIDE_PX = 1200  # a map shows no more
STRETCH_PERCENT = (2.0, 98.0)
LINES_SHOWN = 1000
WIDEST_LINE = 1.4  # points
MOST_IN_LEGEND = 25  # the largest flow by the smallest that the legend shows
SUFFIXES = (".png", ".pdf", ".svg")
PREDICTION_COLUMNS = ("h_geocode", "w_geocode", "count", "prediction")


def draw_map(config: FlowMapConfig, ledger: Ledger) -> Path:
    """Draws the imagery, the observed and the predicted flows of a region; returns the path of the run file.

    Raises:
        InputError: A file cannot be used.
    """
    output = Path(config.output_path)
    if output.suffix not in SUFFIXES or output.is_dir():
        raise InputError(f"--output_path {output} must be a file that ends in {', '.join(SUFFIXES)}")
    check_output_folder(output.parent, "--output_path")
    scene = open_scene(config.scene_path, flag="--scene_path", allow_remote=config.allow_remote)
    ledger.reads(config.scene_path)
    units = read_units(config.units_path, config.id_column, ledger)
    table = read_predictions(config.predictions_path, units.index, ledger)
    ledger.came_in.update({"units": len(units), "flows": len(table)})
    outlines = to_scene_crs(units, scene, ledger)
    check_same_place(scene, outlines, config)
    save_figure(output, flow_maps({"predicted": table}, outlines, read_picture(scene)))
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
        problem = f"columns {', '.join(absent)} are missing among {shown(table.columns)}" if absent else "the table has 0 rows"
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


def check_same_place(scene: Scene, outlines: gpd.GeoSeries, config: FlowMapConfig) -> None:
    """Refuses units beside the scene, which a map of both cannot show.

    Raises:
        InputError: No unit lies on the scene, or the scene's CRS does not reach as far as the units do.
    """
    extent = rasterio.transform.array_bounds(scene.height, scene.width, scene.transform)
    if not np.isfinite(outlines.total_bounds).all() or not outlines.intersects(shapely.box(*extent)).any():
        raise InputError(
            f"units {config.units_path} do not lie on scene {config.scene_path}; name the scene of that place with --scene_path"
        )


def flow_maps(predictions: Mapping[str, pd.DataFrame], units: gpd.GeoSeries, picture: Picture | None = None) -> Figure:
    """Observed flows and those of each predictor as lines of one scale, beside imagery if it is given (figures 2a to 2c).

    Args:
        predictions: By predictor: h_geocode, w_geocode, count (NaN where unknown), prediction; observed flows are those of the first.
            Where no flow is known there is no panel of them.
        units: Index geocode, polygons, in the CRS of the picture.
        picture: Imagery of the region.

    Raises:
        ValueError: There is no predictor, or their known flows differ.
    """
    known = same_known_flows(predictions)
    panels = [("observed", known, "count", "black")] if len(known) else []
    panels += [(name, predictions[name], "prediction", look["color"]) for name, look in series_styles(predictions).items()]
    drawn = [lines_drawn(table, column) for _, table, column, _ in panels]
    flows = np.concatenate([lines[column].to_numpy(float) for lines, (_, _, column, _) in zip(drawn, panels, strict=True)])
    figure, axes = map_panels(units, len(panels) + (picture is not None), title_lines=3)
    if picture is not None:
        draw_picture(axes.pop(0), picture, units)
    for axis, lines, (name, table, column, colour) in zip(axes, drawn, panels, strict=True):
        draw_flows(axis, units, lines, column, flows.max(initial=0.0), colour)
        title_panel(axis, f"{name}\n{flows_told(table, column)}")
    most = max(map(len, drawn))
    told = f"commuters ({'the' if most == LINES_SHOWN else 'up to'} {most:,} {'largest ' if most == LINES_SHOWN else ''}flows between different units)"
    legend_below(figure, width_handles(flows), title=told)
    return figure


def same_known_flows(predictions: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Rows of known flow of the first predictor's table.

    Raises:
        ValueError: There is no predictor, or another one's known flows differ.
    """
    if not predictions:
        raise ValueError("no predictor is given; give one table or more")
    keys = ["h_geocode", "w_geocode"]
    known = {name: table.dropna(subset=["count"]).set_index(keys)["count"].sort_index() for name, table in predictions.items()}
    first = next(iter(predictions))
    for name, counts in known.items():
        if not counts.equals(known[first]):
            raise ValueError(f"the known flows of {name} are not those of {first}; give predictions of the same pairs")
    return predictions[first].dropna(subset=["count"])


def flows_told(table: pd.DataFrame, column: str) -> str:
    """Sum, score where it is a prediction of known flows, and number of flows, in two lines."""
    told, number = f"{table[column].sum():,.0f} commuters", f"n = {len(table):,} pairs"
    known = table.dropna(subset=["count"])
    if column == "count" or known.empty:
        return f"{told}\n{number}"
    score = f"CPC {metrics.cpc(known['count'].to_numpy(float), known.prediction.to_numpy(float)):.2f}"
    return f"{told}, {score}\n{number}" + (f", {len(known):,} known" if len(known) < len(table) else "")


@dataclass(frozen=True)
class Picture:
    """Imagery as it is shown.

    Attributes:
        pixels: Red, green, blue, 0..1: [height, width, 3].
        bounds: left, bottom, right, top in the scene's CRS.
        title: What it shows.
    """

    pixels: np.ndarray
    bounds: tuple[float, float, float, float]
    title: str


def read_picture(scene: Scene) -> Picture:
    """A scene, thinned to the size of a map, each band stretched between two percentiles of its valid pixels.

    Its first three bands are red, green, blue; of fewer the first is shown in grey.

    Raises:
        InputError: The file is damaged.
    """
    step = max(1, max(scene.width, scene.height) // LARGEST_SIDE_PX)
    bands = scene.bands[:3] if len(scene.bands) >= 3 else scene.bands[:1] * 3
    try:
        with scene.env(), scene.open() as dataset:
            pixels = dataset.read(list(bands), out_shape=(3, scene.height // step, scene.width // step), masked=True).astype(np.float64)
            bounds = tuple(dataset.bounds)
    except RasterioIOError as error:
        raise InputError(
            f"scene {scene.path} cannot be read ({first_sentence(error)}); the file may be truncated: copy it again"
        ) from error
    valid, pixels = ~np.ma.getmaskarray(pixels).any(axis=0), np.ma.getdata(pixels)
    picture = np.ones((*valid.shape, 3))
    for band in range(3):
        low, high = np.percentile(pixels[band][valid], STRETCH_PERCENT) if valid.any() else (0.0, 1.0)
        picture[valid, band] = np.clip((pixels[band][valid] - low) / max(high - low, 1e-12), 0, 1)
    return Picture(picture, bounds, f"imagery ({', '.join(scene.band_names[:3])})")


def draw_picture(axis: Axes, picture: Picture, units: gpd.GeoSeries) -> None:
    """Imagery with the outlines of the units; the panel keeps its extent."""
    left, bottom, right, top = picture.bounds
    extent = (*axis.get_xlim(), *axis.get_ylim())
    axis.imshow(picture.pixels, extent=(left, right, bottom, top), interpolation="nearest")
    units.boundary.plot(ax=axis, color="white", linewidth=0.3, aspect=None)
    axis.set(xlim=extent[:2], ylim=extent[2:])
    title_panel(axis, f"{picture.title}\n{len(units):,} units\n")


def lines_drawn(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """The largest flows between different units, the smallest of them first."""
    return table[(table.h_geocode != table.w_geocode) & (table[column] > 0)].nlargest(LINES_SHOWN, column).iloc[::-1]


def line_look(share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Width in points and opacity of lines, by their share of the largest flow: the shape of ``share`` each."""
    return WIDEST_LINE * np.sqrt(share), np.clip(share**0.75, 0.06, 1)


def draw_flows(axis: Axes, units: gpd.GeoSeries, between: pd.DataFrame, column: str, largest: float, colour: str) -> None:
    """Draws flows of ``lines_drawn`` as lines, wider and darker with more commuters; ``largest`` sets the scale."""
    centroid = shapely.centroid(units.to_numpy())
    place = shapely.get_coordinates(centroid)  # [num_units, 2]
    ends = [units.index.get_indexer(between[name]) for name in ("h_geocode", "w_geocode")]
    assert all((end >= 0).all() for end in ends), "every flow begins and ends in a unit"
    units.boundary.plot(ax=axis, color=GREY, linewidth=0.15, aspect=None)
    lines = [*np.stack([place[end] for end in ends], axis=1)]  # [2, 2] each
    width, opacity = line_look(between[column].to_numpy(float) / largest)
    colours = [(colour, float(one)) for one in opacity]
    axis.add_collection(LineCollection(lines, linewidths=width, colors=colours), autolim=False)


def width_handles(flows: np.ndarray) -> list[Line2D]:
    """Lines of round numbers of commuters for the legend, in the range of the flows drawn [num_lines]; none where nothing is."""
    if not len(flows):
        return []
    smallest, largest = max(flows.min(), flows.max() / MOST_IN_LEGEND), flows.max()
    levels = sorted({round_below(level) for level in (smallest, np.sqrt(smallest * largest), largest)})
    looks = zip(levels, *line_look(np.array(levels) / largest), strict=True)
    return [Line2D([], [], color="black", linewidth=width, alpha=opacity, label=f"{level:,g}") for level, width, opacity in looks]
