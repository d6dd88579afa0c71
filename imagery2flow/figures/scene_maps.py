"""The map of a scene as a picture: the imagery, and beside it what a model says of every place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely
from affine import Affine
from matplotlib import colormaps
from matplotlib.colorbar import Colorbar
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure

from imagery2flow.cities.scene_map import SceneMap, beside, map_scene
from imagery2flow.figures.cartography import map_panels, title_panel
from imagery2flow.figures.maps import read_picture
from imagery2flow.figures.style import TICK_SIZE
from imagery2flow.run.files import save_figure
from imagery2flow.run.scene_map_config import SceneMapConfig
from imagery2flow.run.stage import Ledger

MOST_NAMED_CLASSES = 5
MOST_LAYERS = 7  # that the picture shows; the file holds all
SHADES = "viridis"
CLASS_COLOURS = "tab20"
COLOUR_BAR = (0.4, -0.06, 0.6, 0.03)  # left, lower, width, height below a panel, in shares of it; the scale bar is on its left


def write_scene_map(config: SceneMapConfig, ledger: Ledger) -> Path:
    """Maps a scene, and draws the map; returns the path of the run file.

    Raises:
        InputError: The model, the scene or the districts cannot be used, or do not fit each other.
    """
    scene_map = map_scene(config, ledger)
    picture = beside(config, ".png")
    save_figure(picture, scene_map_figure(scene_map))
    ledger.note(f"map: {config.output_path}, layers {', '.join(scene_map.layers[:MOST_LAYERS])}; picture: {picture}")
    return Path(config.output_path + ".run.json")


def scene_map_figure(scene_map: SceneMap) -> Figure:
    """The scene, then the most probable class of a classifier, then the layers, each with its colours.

    Args:
        scene_map: The map; a scene that is turned against its CRS, or has none, is drawn in pixels.
    """
    shown, scene = shown_layers(scene_map), scene_map.scene
    crs = None if scene.crs is None or scene.transform.b or scene.transform.d else scene.crs.to_wkt()
    base = Affine.identity() if crs is None else scene.transform
    outline = gpd.GeoSeries([shapely.box(*edges(base, scene.width, scene.height))], crs=crs)
    figure, axes = map_panels(outline, 1 + len(shown), title_lines=1)
    left, bottom, right, top = edges(base, scene.width, scene.height)
    axes[0].imshow(read_picture(scene).pixels, extent=(left, right, bottom, top), aspect="auto")
    title_panel(axes[0], "imagery")
    rows, columns = scene_map.values.shape[1:]
    west, south, east, north = edges(base @ ~scene.transform @ scene_map.transform, columns, rows)
    for axis, (title, values, cmap, norm) in zip(axes[1:], shown, strict=True):
        image = axis.imshow(values, extent=(west, east, south, north), aspect="auto", interpolation="nearest", cmap=cmap, norm=norm)
        title_panel(axis, title)
        bar = figure.colorbar(image, cax=axis.inset_axes(COLOUR_BAR), orientation="horizontal")
        bar.ax.tick_params(labelsize=TICK_SIZE)
        if isinstance(norm, BoundaryNorm):
            name_classes(bar, scene_map.layers)
    for axis in axes:
        axis.set(xlim=(left, right), ylim=(bottom, top))
    return figure


def name_classes(bar: Colorbar, layers: Sequence[str]) -> None:
    """Names below the colours of classes; of many only their numbers in the file, as many as fit."""
    if len(layers) <= MOST_NAMED_CLASSES:
        bar.set_ticks(list(range(len(layers))), labels=[layer.removeprefix("probability_") for layer in layers])
        bar.ax.tick_params(rotation=20)
    else:
        bar.set_ticks(list(range(0, len(layers), -(-len(layers) // MOST_NAMED_CLASSES))))


def edges(transform: Affine, width: int, height: int) -> tuple[float, float, float, float]:
    """Left, lower, right and upper edge of an image as it is drawn, the first row above."""
    (left, top), (right, bottom) = transform * (0, 0), transform * (width, height)
    return left, bottom, right, top


def shown_layers(scene_map: SceneMap) -> list[tuple[str, np.ndarray, Colormap, Normalize]]:
    """Title, values [rows, columns] and colours of the panels: of many classes the most probable ones on average."""
    order = np.arange(len(scene_map.layers))
    panels = []
    if scene_map.kind == "classes":
        order = np.argsort(-np.nanmean(scene_map.values, axis=(1, 2)), kind="stable")
        panels.append(class_panel(scene_map))
    for number in order[: MOST_LAYERS - len(panels)]:
        values = scene_map.values[number]
        limits = (float(np.nanmin(values)), float(np.nanmax(values))) if scene_map.kind == "targets" else (0.0, 1.0)
        name = scene_map.layers[number].replace("_", " ", 1)
        panels.append((name, values, colormaps[SHADES], Normalize(*limits)))
    return panels


def class_panel(scene_map: SceneMap) -> tuple[str, np.ndarray, Colormap, Normalize]:
    """The most probable class of each cell, in the numbers that ``<name>_class.tif`` has."""
    known = np.isfinite(scene_map.values).all(axis=0)
    number = np.where(known, np.where(known, scene_map.values, 0).argmax(axis=0), np.nan)
    count = len(scene_map.layers)
    colours = [colormaps[CLASS_COLOURS](place % 20) for place in range(count)]
    return "most probable class", number, ListedColormap(colours), BoundaryNorm(np.arange(count + 1) - 0.5, count)
