"""Tiles that stay windows of their scenes: what the manifest says of them, and in which images they are read.

Tiles that overlap share their pixels. Those of one scene and split are read as one image, the rectangle around them, and each tile is a frame of it; tiles
that lie far apart are read one by one. No image holds pixels of two splits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from rasterio.windows import Window

from imagery2flow.imagery.scene import SceneReader, open_scene
from imagery2flow.run.errors import BandError, InputError, MissingInputError, TableError, first_sentence, shown
from imagery2flow.run.geofiles import inside

LONGEST_SIDE = 1 << 20  # pixels of a patch; what is longer is a damaged manifest
MOST_UNUSED_SHARE = 0.5  # of the pixels of an image that lie in no tile; tiles that lie farther apart are read by themselves


class TileWindow(NamedTuple):
    """What of its scene a tile shows, in pixels, and the split that it belongs to (empty without one)."""

    column: int
    row: int
    width: int
    height: int
    split: str


@dataclass(frozen=True)
class SceneSettings:
    """How the scenes were read when their tiles were measured.

    Attributes:
        bands: Names of the bands that tiles have.
        band_names: Names that all bands of the scenes were given; empty if they carry their own.
        nodata: Value that marks missing pixels, besides the one that a scene declares.
        dtype: NumPy type of the pixels.
    """

    bands: tuple[str, ...]
    band_names: tuple[str, ...]
    nodata: float | None
    dtype: str


@dataclass(frozen=True)
class ImagePlan:
    """An image that is read at once: a rectangle of a scene, and the tiles in it."""

    path: Path
    window: Window
    geocodes: tuple[str, ...]


def scene_settings(folder: Path) -> SceneSettings:
    """What ``stats.json`` says of the scenes.

    Raises:
        InputError: It is absent or damaged.
    """
    path = folder / "stats.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        told, nodata = content["windows"], content["windows"]["nodata"]
        names = tuple(str(band["name"]) for band in content["bands"])
        dtype = np.dtype(str(content["dtype"])).name
        return SceneSettings(names, tuple(map(str, told["band_names"])), None if nodata is None else float(nodata), dtype)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{path} does not say how the tiles' scenes are read ({first_sentence(error)[:100]}); run img_preprocessing.py again"
        ) from error


def scene_paths(rows: pd.DataFrame, folder: Path, scene_dir: str | None) -> dict[str, Path]:
    """The scene of each tile by its id.

    Args:
        rows: Rows of the manifest.
        folder: Folder of the manifest, for messages.
        scene_dir: Folder that the scenes' paths begin from.

    Raises:
        MissingInputError: The folder is not given, or scenes are not there.
        InputError: A path leads out of the folder.
    """
    if scene_dir is None:
        raise MissingInputError(f"the {len(rows):,} tiles of {folder} are windows of scenes; name the folder of those with --scene_dir")
    found = {name: inside(Path(scene_dir), name, f"{folder}/manifest.csv") for name in sorted(set(rows.path))}
    gone = [str(path) for path in found.values() if not path.is_file()]
    if gone:
        raise MissingInputError(
            f"{len(gone)} scenes of {folder}/manifest.csv are not in --scene_dir {scene_dir} ({shown(gone)}); name their folder"
        )
    return {geocode: found[name] for geocode, name in zip(rows.geocode, rows.path, strict=True)}


def tile_windows(rows: pd.DataFrame, folder: Path) -> dict[str, TileWindow]:
    """The window of each tile by its id.

    Raises:
        TableError: A window is no rectangle of pixels.
    """
    columns = ["column_offset", "row_offset", "width", "height"]
    numbers = rows.reindex(columns=columns).apply(pd.to_numeric, errors="coerce")
    lowest = [0, 0, 1, 1]
    good = ((numbers >= lowest) & (numbers <= LONGEST_SIDE) & (numbers % 1 == 0)).all(axis=1)
    if not good.all():
        bad = rows.geocode[~good]
        raise TableError(
            f"{folder}/manifest.csv has {len(bad):,} windows that are no rectangles of pixels ({shown(bad)}); run img_preprocessing.py again"
        )
    splits = rows["split"].fillna("") if "split" in rows else pd.Series("", index=rows.index)
    values = numbers.astype(np.int64).to_numpy().tolist()
    return {
        geocode: TileWindow(column, row, width, height, split)
        for geocode, (column, row, width, height), split in zip(rows.geocode, values, splits, strict=True)
    }


def plan_images(paths: dict[str, Path], windows: dict[str, TileWindow]) -> list[ImagePlan]:
    """The images that tiles are read in, in the order of their first tiles."""
    groups: dict[tuple[Path, str], list[str]] = {}
    for geocode, path in paths.items():
        groups.setdefault((path, windows[geocode].split), []).append(geocode)
    return [plan for (path, _), geocodes in groups.items() for plan in plan_group(path, geocodes, windows)]


def plan_group(path: Path, geocodes: Sequence[str], windows: dict[str, TileWindow]) -> list[ImagePlan]:
    """One image around some tiles of a scene, or one for each where most of it would lie in no tile."""
    around = bounding_window([windows[geocode] for geocode in geocodes])
    area = sum(windows[geocode].width * windows[geocode].height for geocode in geocodes)
    if len(geocodes) == 1 or area >= (1 - MOST_UNUSED_SHARE) * around.width * around.height:
        return [ImagePlan(path, around, tuple(geocodes))]
    return [ImagePlan(path, bounding_window([windows[geocode]]), (geocode,)) for geocode in geocodes]


def bounding_window(windows: Sequence[TileWindow]) -> Window:
    """The smallest window that holds all."""
    column, row = min(window.column for window in windows), min(window.row for window in windows)
    end_column = max(window.column + window.width for window in windows)
    end_row = max(window.row + window.height for window in windows)
    return Window(column, row, end_column - column, end_row - row)


def read_images(
    plans: Sequence[ImagePlan], settings: SceneSettings, names: Sequence[str]
) -> Iterator[tuple[ImagePlan, np.ndarray, np.ndarray]]:
    """Reads images, each scene once opened until the next one.

    Args:
        plans: Which.
        settings: How the scenes are read.
        names: Bands to read.

    Yields:
        The plan, values [num_bands, height, width] and valid [height, width].

    Raises:
        BandError: A scene has another type than when it was measured.
        InputError: A scene cannot be read, or is smaller than a tile says.
    """
    reader: SceneReader | None = None
    try:
        for plan in plans:
            if reader is None or reader.scenes[0].path != plan.path:
                if reader is not None:
                    reader.close()
                reader = SceneReader([open_scene(str(plan.path), names, settings.band_names, settings.nodata, "--scene_dir")])
            scene = reader.scenes[0]
            if scene.dtype != settings.dtype:
                raise BandError(
                    f"scene {plan.path} holds {scene.dtype} but its tiles were measured as {settings.dtype}; run img_preprocessing.py again"
                )
            if plan.window.col_off + plan.window.width > scene.width or plan.window.row_off + plan.window.height > scene.height:
                raise InputError(
                    f"scene {plan.path} has {scene.width:,} x {scene.height:,} pixels but tiles reach beyond them ({shown(plan.geocodes)}); "
                    "run img_preprocessing.py again"
                )
            yield plan, *reader.read(0, plan.window)
    finally:
        if reader is not None:
            reader.close()
