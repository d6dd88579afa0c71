"""Stage 1: cut one patch per areal unit out of one or several scenes (paper, Methods: "one patch per census tract").

Writes, under ``<output_tif_dir>/<region>/<tag>_<year>/``:

- ``<tag>_<year>_<geocode>.tif`` per unit: the scene's bands and type, 0 where a pixel is missing or, without a margin, outside the unit;
- ``manifest.csv``: every unit, also those without a patch: status, scene, window, size, share of the unit's own pixels that are valid;
- ``stats.json``: bands with mean, standard deviation, minimum and maximum over all valid pixels, type, scenes, pixel size.

Each unit takes the scene in which most of its pixels are valid; scenes keep their own CRS, the units are reprojected. Only windows are
read: memory is bounded by the largest patch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import shapely

from imagery2flow.imagery import units as areal_units
from imagery2flow.imagery.cutting import (
    ALL_NODATA,
    OUTSIDE,
    TOO_FEW_VALID,
    USABLE,
    WINDOW_COLUMNS,
    WRITTEN,
    Candidate,
    CutOptions,
    CutTask,
    cut_all,
)
from imagery2flow.imagery.journal import CutResult
from imagery2flow.imagery.scene import Scene, check_scenes_agree, open_scene
from imagery2flow.imagery.sites import SceneFile, check_split, find_scenes
from imagery2flow.imagery.tiles import Tile, folder_of, make_tiles, tile_columns
from imagery2flow.run.config import PreprocessingConfig
from imagery2flow.run.errors import InputError, MissingInputError, shown
from imagery2flow.run.files import check_output_folder, write_json
from imagery2flow.run.geofiles import open_raster
from imagery2flow.run.inspection import Inspection
from imagery2flow.run.lock import only_run
from imagery2flow.run.stage import Ledger, installed_version
from imagery2flow.run.tables import read_table, write_table
from imagery2flow.run.unfinished import kept_parts, publish

LARGEST_PATCH_BYTES = 4 << 30
WELL_COVERED = 0.95  # share of a unit's pixels; units below are named in the ledger


def cut_patches(config: PreprocessingConfig, ledger: Ledger) -> Path:
    """Runs stage 1 and returns the path of its ``run.json``.

    Raises:
        InputError: A scene or the units cannot be used, or no unit lies on a scene; nothing is written then.
    """
    sources = read_inputs(config, ledger)
    scenes = sources.scenes
    describe_scenes(scenes, ledger)
    tasks, tiles = make_tasks(config, sources, ledger)
    check_windows(tasks, scenes)
    folder = Path(config.output_tif_dir) / config.region / f"{config.tag}_{config.year}"
    with only_run(folder), kept_parts(folder, what_patches_follow_from(config, scenes, tasks)) as temporary:
        prefix, keep_surroundings = f"{config.tag}_{config.year}", config.context_m is not None
        windows_of = None if config.materialize else folder_of(scenes, sources.root)
        options = CutOptions(temporary, prefix, config.all_touched, keep_surroundings, config.min_valid, windows_of)
        results = cut_all(tasks, scenes, options, config.workers, config.dask, ledger)
        if not any(result.row.status in USABLE for result in results):
            named = shown(f"{scene.path}, nodata {nodata_text(scene)}" for scene in scenes)
            raise InputError(
                f"all {len(tasks):,} units have too few valid pixels on the scenes ({named}); check that value, or --min_valid {config.min_valid:g}"
            )
        manifest = pd.DataFrame([result.row for result in results]).astype(dict.fromkeys(WINDOW_COLUMNS, "Int64"))
        write_table(temporary / "manifest.csv", manifest.merge(tile_columns(tiles), how="left", on="geocode") if tiles else manifest)
        write_json(temporary / "stats.json", collect_statistics(results, scenes, config))
        publish(temporary, folder, last="manifest.csv")
    fill_ledger(ledger, results, folder)
    if windows_of is not None:
        ledger.note(f"tiles stay windows of their scenes: give the next stages --scene_dir {windows_of}")
    return folder / "run.json"


@dataclass(frozen=True)
class Sources:
    """What patches are cut from.

    Attributes:
        scenes: The scenes.
        units: Areal units; None where scenes are cut along a grid.
        files: City and site of each scene, in a tree of cities; else empty.
        root: The folder of the tree, or None.
    """

    scenes: list[Scene]
    units: gpd.GeoDataFrame | None
    files: list[SceneFile]
    root: Path | None


def read_inputs(config: PreprocessingConfig, ledger: Ledger) -> Sources:
    """The scenes and, unless they are cut along a grid, the units; all that is wrong with them is one error.

    Raises:
        InputError: A scene or the units cannot be used, scenes differ, or the output folder cannot be made.
    """
    inspection = Inspection(ledger)
    inspection.look("--output_tif_dir", check_output_folder, config.output_tif_dir, "--output_tif_dir")
    root = Path(config.input_tif_path[0])
    is_tree = config.mode == "grid" and len(config.input_tif_path) == 1 and root.is_dir()
    files = (inspection.look(str(root), find_scenes, root, ledger) or []) if is_tree else []
    inspection.look("--split", check_split, config.split, is_tree, root)
    opened = partial(open_scene, bands=config.bands, names=config.band_names, nodata=config.nodata, allow_remote=config.allow_remote)
    paths = [str(file.path) for file in files] if is_tree else config.input_tif_path
    scenes = open_scenes(paths, opened, config.mode != "grid", inspection)
    units = None
    if config.mode != "grid":
        units = inspection.look(str(config.shp_path), areal_units.read_units, str(config.shp_path), config.id_column, ledger)
    if units is not None and config.mode == "points":
        inspection.look(str(config.shp_path), areal_units.check_points, units.geometry)
    inspection.raise_if_any()
    return Sources(scenes, units, files, root if is_tree else None)


def open_scenes(paths: Sequence[str], opened: Callable[[str], Scene], with_units: bool, inspection: Inspection) -> list[Scene]:
    """Opens all scenes that can be opened and looks whether they can stand beside each other, and under units if ``with_units``.

    Args:
        paths: The files.
        opened: ``open_scene`` with its settings.
        with_units: Whether units are laid over the scenes, so that they need a CRS.
        inspection: Takes the faults.
    """
    found = [inspection.look(path, opened, path) for path in paths]
    scenes = [scene for scene in found if scene is not None]
    if scenes:
        inspection.look(scenes[0].path, check_scenes_agree, scenes)
    for scene in scenes if with_units else ():
        inspection.look(scene.path, areal_units.scene_crs, scene)
    return scenes


def what_patches_follow_from(config: PreprocessingConfig, scenes: Sequence[Scene], tasks: Sequence[CutTask]) -> list[Any]:
    """Settings, units and scenes, for their hash. Of the files only size and time of change: reading them takes as long as cutting."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in ("workers", "dask", "output_tif_dir")}
    files = [str(Path(path).absolute()) for scene in scenes for path in scene_files(scene, config.allow_remote)]
    states = [(path, state.st_size, state.st_mtime_ns) for path in files if (state := Path(path).stat())]
    units = [
        [task.geocode, *(value for each in task.candidates for value in (each.scene_number, *each.window.flatten(), outline_bytes(each)))]
        for task in tasks
    ]
    return [settings, states, units, installed_version("imagery2flow")]


def scene_files(scene: Scene, allow_remote: bool) -> list[str]:
    """The files that a scene lies in: itself, and what a mosaic (VRT) is made of."""
    with open_raster(scene.path, "scene", allow_remote) as source:
        return sorted(path for path in {*source.files, str(scene.path)} if Path(path).is_file())


def outline_bytes(candidate: Candidate) -> bytes | None:
    """The outline of a unit as bytes."""
    return None if candidate.outline is None else shapely.to_wkb(candidate.outline)


def describe_scenes(scenes: Sequence[Scene], ledger: Ledger) -> None:
    """Says what was found in scenes, of many alike once, and warns of what makes one slow or ambiguous."""
    described: dict[str, list[str]] = {}
    for scene in scenes:
        ledger.reads(scene.path)
        described.setdefault(scene_text(scene), []).append(scene.path.name)
    for text, names in described.items():
        ledger.note(f"scene {names[0]}: {text}" if len(names) == 1 else f"{len(names):,} scenes ({shown(names)}): {text}")
    for scene in scenes:
        warn_of_scene(scene, ledger)


def scene_text(scene: Scene) -> str:
    """Size, bands, type, CRS and nodata of a scene."""
    crs = "no CRS" if scene.crs is None else scene.crs.to_string()
    return (
        f"{scene.width:,} x {scene.height:,} px of {scene.gsd_m:.4g} m, "
        f"{', '.join(scene.band_names)} ({scene.dtype}), {crs}, nodata {nodata_text(scene)}"
    )


def warn_of_scene(scene: Scene, ledger: Ledger) -> None:
    """Warns of what makes a scene slow or ambiguous."""
    if scene.alpha_bands:
        ledger.note(
            f"scene {scene.path.name}: band {', '.join(map(str, scene.alpha_bands))} is taken as alpha, not as imagery; "
            "if it is imagery, name it with --band_names, or ask for it by its number with --bands"
        )
    if scene.is_large_strips:
        ledger.note(
            f"scene {scene.path.name} is stored in strips and will be slow; tile it once with: rio cogeo create {scene.path} tiled.tif"
        )


def nodata_text(scene: Scene) -> str:
    """What marks the missing pixels of a scene."""
    marks = [*(["declared by a mask"] if scene.has_mask else []), *(f"{value:g}" for value in scene.nodata)]
    return " and ".join(marks) or "none declared"


def make_tasks(config: PreprocessingConfig, sources: Sources, ledger: Ledger) -> tuple[list[CutTask], list[Tile]]:
    """The units, or without units the tiles, with the scenes that they lie on, in the order of their ids; and the tiles themselves.

    Raises:
        InputError: No unit lies on a scene.
    """
    if sources.units is None:
        tiles = make_tiles(config, sources.files, sources.scenes, ledger)
        ledger.came_in["tiles"] = len(tiles)
        tasks = [CutTask(tile.geocode, (Candidate(tile.part.scene_number, tile.window, None),), tile.counted) for tile in tiles]
        return sorted(tasks, key=lambda task: task.geocode), tiles
    ledger.came_in["units"] = len(sources.units) + sum(len(ids) for ids in ledger.left_out.values())
    point_size = config.size if config.mode == "points" else None
    return units_on_scenes(sources.units, sources.scenes, ledger, str(config.shp_path), point_size, config.context_m), []


def units_on_scenes(
    units: gpd.GeoDataFrame,
    scenes: Sequence[Scene],
    ledger: Ledger,
    units_path: str,
    point_size: int | None = None,
    context_m: float | None = None,
) -> list[CutTask]:
    """The units with the scenes that they lie on, in the order of both.

    Args:
        units: Polygons, or points.
        scenes: Each with its own CRS.
        ledger: Takes reprojections.
        units_path: Where the units come from, for messages.
        point_size: Side in pixels of the square around each point; None for polygons.
        context_m: Margin around polygons in metres.

    Raises:
        InputError: No unit lies on a scene.
    """
    found: dict[str, list[Candidate]] = {geocode: [] for geocode in units.index}
    for number, scene in enumerate(scenes):
        geometries = areal_units.to_scene_crs(units, scene, ledger)
        for geocode, candidate in candidates_on(scene, number, geometries, point_size, context_m):
            found[geocode].append(candidate)
    if not any(found.values()):
        raise InputError(no_overlap_message(units, scenes, units_path))
    return [CutTask(geocode, tuple(candidates)) for geocode, candidates in found.items()]


def candidates_on(
    scene: Scene, number: int, geometries: gpd.GeoSeries, point_size: int | None, context_m: float | None
) -> Iterator[tuple[str, Candidate]]:
    """The units that meet the scene: points by their square, polygons by themselves, for a margin holds no pixel of the unit."""
    if point_size is not None:
        windows = areal_units.point_windows(geometries, scene, point_size)
    else:
        windows = areal_units.zone_windows(geometries, scene, context_m)
    column, row, width, height = windows.T
    meets = (column < scene.width) & (row < scene.height) & (column + width > 0) & (row + height > 0)
    if point_size is None:
        meets &= geometries.intersects(footprint(scene)).to_numpy()
    for position in np.flatnonzero(meets):
        outline = geometries.iloc[position] if point_size is None else None
        yield geometries.index[position], Candidate(number, areal_units.as_window(windows[position]), outline)


def footprint(scene: Scene) -> shapely.Polygon:
    """The outline of a scene in its own CRS."""
    corners = ((0, 0), (scene.width, 0), (scene.width, scene.height), (0, scene.height))
    return shapely.Polygon([scene.transform * corner for corner in corners])


def check_windows(tasks: Sequence[CutTask], scenes: Sequence[Scene]) -> None:
    """Refuses units whose patch would not fit into memory: a unit of another scale than the scene's, or sizes that are not true.

    Raises:
        InputError: There is one.
    """
    for task in tasks:
        for candidate in task.candidates:
            scene, window = scenes[candidate.scene_number], candidate.window
            num_bytes = window.width * window.height * len(scene.bands) * np.dtype(scene.dtype).itemsize
            if num_bytes > LARGEST_PATCH_BYTES:
                raise InputError(
                    f"unit {task.geocode} takes {window.width:,} x {window.height:,} pixels of scene {scene.path}, {num_bytes / 2**30:,.1f} GiB where "
                    f"a patch may have {LARGEST_PATCH_BYTES >> 30}; give smaller units, fewer --bands, or a coarser scene"
                )


def no_overlap_message(units: gpd.GeoDataFrame, scenes: Sequence[Scene], units_path: str) -> str:
    """The sentence for units and scenes that lie apart, with both extents in degrees."""
    west, south, east, north = units.to_crs(4326).total_bounds
    extents = []
    for scene in scenes:
        bounds = rasterio.warp.transform_bounds(
            scene.crs, "EPSG:4326", *rasterio.transform.array_bounds(scene.height, scene.width, scene.transform)
        )
        extents.append(f"{scene.path.name} {bounds[0]:.3f} {bounds[1]:.3f} {bounds[2]:.3f} {bounds[3]:.3f}")
    return (
        f"no unit of {units_path} lies on a scene: the units cover {west:.3f} {south:.3f} {east:.3f} {north:.3f} (west south east north, degrees), "
        f"the scenes {'; '.join(extents)}; name a scene of that place, or mend the CRS of one of them"
    )


def collect_statistics(results: Sequence[CutResult], scenes: Sequence[Scene], config: PreprocessingConfig) -> dict[str, Any]:
    """The content of ``stats.json``. Sums are added in the order of the ids, so that it does not depend on who cut what."""
    sums = [result.sums for result in results if result.sums is not None]
    count = sum(part.count for part in sums)
    mean = np.sum([part.total for part in sums], axis=0) / count
    variance = np.sum([part.squares for part in sums], axis=0) / count - mean**2
    lowest, highest = np.min([part.minimum for part in sums], axis=0), np.max([part.maximum for part in sums], axis=0)
    bands = [
        {
            "name": name,
            "mean": float(mean[i]),
            "std": float(np.sqrt(max(variance[i], 0.0))),
            "min": float(lowest[i]),
            "max": float(highest[i]),
        }
        for i, name in enumerate(scenes[0].band_names)
    ]
    used = sorted({str(result.row.scene) for result in results if result.row.status in USABLE})
    return {
        "region": config.region,
        "tag": config.tag,
        "year": config.year,
        "mode": config.mode,
        "context_m": config.context_m,
        "bands": bands,
        "dtype": scenes[0].dtype,
        "nodata": 0,
        "windows": {"bands": list(scenes[0].bands), "band_names": config.band_names, "nodata": config.nodata},
        "gsd_m": scenes[0].gsd_m,
        "num_valid_pixels": count,
        "scenes": used,
    }


def fill_ledger(ledger: Ledger, results: Sequence[CutResult], folder: Path) -> None:
    """Counts what became of every unit."""
    for status in (OUTSIDE, ALL_NODATA, TOO_FEW_VALID):
        ledger.leave_out(status, [result.row.geocode for result in results if result.row.status == status])
    written = [result.row for result in results if result.row.status in USABLE]
    ledger.went_out["patches"] = len(written)
    partial = [row.geocode for row in written if row.valid_fraction < WELL_COVERED]
    if partial:
        ledger.note(
            f"{len(partial):,} units are covered by less than {WELL_COVERED:.0%} by imagery ({shown(partial)}); "
            "a unit takes one scene: where it lies on two beside each other, merge them first, with: rio merge"
        )
    files = "patches, manifest.csv" if any(row.status == WRITTEN for row in written) else "manifest.csv"
    ledger.note(f"{files} and stats.json are in {folder}")


def read_manifest(folder: Path) -> pd.DataFrame:
    """The manifest of a folder of patches: one row per unit, ids as text.

    Raises:
        MissingInputError: There is none.
    """
    path = folder / "manifest.csv"
    if not path.is_file():
        raise MissingInputError(f"{folder} has no manifest.csv; make the patches with img_preprocessing.py")
    table = read_table(path, "manifest", ("geocode", "path"))
    absent = [name for name in ("geocode", "status", "path") if name not in table]
    if absent:
        raise InputError(f"{path} has no column {', '.join(absent)}; make the patches with img_preprocessing.py, or remove the file")
    return table
