"""Stage 1: cut one patch per areal unit out of one or several scenes (paper, Methods: "one patch per census tract").

Writes, under ``<output_tif_dir>/<region>/<tag>_<year>/``:

- ``<tag>_<year>_<geocode>.tif`` per unit: the scene's bands and type, 0 where a pixel is missing or, without a margin, outside the unit;
- ``manifest.csv``: every unit, also those without a patch: status, scene, window, size, share of the unit's own pixels that are valid;
- ``stats.json``: bands with mean, standard deviation, minimum and maximum over all valid pixels, type, scenes, pixel size.

Each unit takes the scene in which most of its pixels are valid; scenes keep their own CRS, the units are reprojected. Only windows are
read: memory is bounded by the largest patch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rasterio
import shapely
from rasterio.features import rasterize
from rasterio.windows import Window
from rasterio.windows import transform as window_transform
from tqdm import tqdm

from imagery2flow.imagery import units as areal_units
from imagery2flow.imagery.scene import Scene, SceneReader, check_scenes_agree, open_scene
from imagery2flow.run.config import PreprocessingConfig
from imagery2flow.run.errors import InputError, MissingInputError, shown
from imagery2flow.run.files import check_output_folder, filling, read_table, write_json, write_table
from imagery2flow.run.stage import Ledger

WRITTEN, OUTSIDE, ALL_NODATA, TOO_FEW_VALID = "written", "outside every scene", "all nodata", "below --min_valid"
WINDOW_COLUMNS = ("column_offset", "row_offset", "width", "height")
WELL_COVERED = 0.95  # share of a unit's pixels; units below are named in the ledger
UNITS_PER_CHUNK = 64
# Units are cut in the order of scene tiles of this side, so that GDAL's block cache serves neighbours.
LOCALITY_PIXELS = 512


@dataclass(frozen=True)
class Candidate:
    """A scene that a unit can be cut from: the window, and the unit's outline in the scene's CRS (None if the window is the unit)."""

    scene_number: int
    window: Window
    outline: shapely.Geometry | None


@dataclass(frozen=True)
class CutTask:
    """One unit and the scenes that it lies on."""

    geocode: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class CutOptions:
    """What is the same for every unit of a run."""

    folder: Path
    prefix: str
    all_touched: bool
    keep_surroundings: bool
    min_valid: float


@dataclass(frozen=True)
class CutResult:
    """What became of a unit: a row of the manifest, and the sums from which the statistics of the bands are made."""

    row: dict[str, Any]
    sums: BandSums | None


@dataclass(frozen=True)
class BandSums:
    """Per band over valid pixels: [num_bands] each."""

    count: int
    total: np.ndarray
    squares: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray


def cut_patches(config: PreprocessingConfig, ledger: Ledger) -> Path:
    """Runs stage 1 and returns the path of its ``run.json``.

    Raises:
        InputError: A scene or the units cannot be used, or no unit lies on a scene; nothing is written then.
    """
    check_output_folder(config.output_tif_dir, "--output_tif_dir")
    scenes = [open_scene(path, config.bands, config.band_names, config.nodata) for path in config.input_tif_path]
    check_scenes_agree(scenes)
    for scene in scenes:
        describe_scene(scene, ledger)
    tasks = make_tasks(config, scenes, ledger)
    folder = Path(config.output_tif_dir) / config.region / f"{config.tag}_{config.year}"
    with filling(folder, last="manifest.csv") as temporary:
        prefix, keep_surroundings = f"{config.tag}_{config.year}", config.context_m is not None
        options = CutOptions(temporary, prefix, config.all_touched, keep_surroundings, config.min_valid)
        results = cut_all(tasks, scenes, options, config.workers)
        if not any(result.row["status"] == WRITTEN for result in results):
            named = shown(f"{scene.path}, nodata {nodata_text(scene)}" for scene in scenes)
            raise InputError(
                f"all {len(tasks):,} units have too few valid pixels on the scenes ({named}); check that value, or --min_valid {config.min_valid:g}"
            )
        manifest = pd.DataFrame([result.row for result in results])
        write_table(temporary / "manifest.csv", manifest.astype(dict.fromkeys(WINDOW_COLUMNS, "Int64")))
        write_json(temporary / "stats.json", collect_statistics(results, scenes, config))
    fill_ledger(ledger, results, folder)
    return folder / "run.json"


def describe_scene(scene: Scene, ledger: Ledger) -> None:
    """Says what was found in a scene, and warns of what makes it slow or ambiguous."""
    ledger.reads(scene.path)
    crs = "no CRS" if scene.crs is None else scene.crs.to_string()
    ledger.note(
        f"scene {scene.path.name}: {scene.width:,} x {scene.height:,} px of {scene.gsd_m:.4g} m, "
        f"{', '.join(scene.band_names)} ({scene.dtype}), {crs}, nodata {nodata_text(scene)}"
    )
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


def make_tasks(config: PreprocessingConfig, scenes: Sequence[Scene], ledger: Ledger) -> list[CutTask]:
    """The units with the scenes that they lie on, in the order of their ids.

    Raises:
        InputError: No unit lies on a scene.
    """
    if config.mode == "grid":
        ids, owners, windows = areal_units.grid_tiles(scenes, config.size, config.stride or config.size)
        ledger.came_in["tiles"] = len(ids)
        tiles = zip(ids, owners, windows, strict=True)
        tasks = [CutTask(geocode, (Candidate(int(owner), areal_units.as_window(window), None),)) for geocode, owner, window in tiles]
        return sorted(tasks, key=lambda task: task.geocode)
    units = areal_units.read_units(str(config.shp_path), config.id_column, ledger)
    ledger.came_in["units"] = len(units) + sum(len(ids) for ids in ledger.left_out.values())
    found: dict[str, list[Candidate]] = {geocode: [] for geocode in units.index}
    for number, scene in enumerate(scenes):
        geometries = areal_units.to_scene_crs(units, scene, ledger)
        for geocode, candidate in candidates_on(scene, number, geometries, config):
            found[geocode].append(candidate)
    if not any(found.values()):
        raise InputError(no_overlap_message(units, scenes, config))
    return [CutTask(geocode, tuple(candidates)) for geocode, candidates in found.items()]


def candidates_on(scene: Scene, number: int, geometries: Any, config: PreprocessingConfig) -> Iterator[tuple[str, Candidate]]:
    """The units that meet the scene: points by their square, zones by themselves, for a margin holds no pixel of the unit."""
    if config.mode == "points":
        windows = areal_units.point_windows(geometries, scene, config.size)
    else:
        windows = areal_units.zone_windows(geometries, scene, config.context_m)
    column, row, width, height = windows.T
    meets = (column < scene.width) & (row < scene.height) & (column + width > 0) & (row + height > 0)
    corners = [scene.transform * corner for corner in ((0, 0), (scene.width, 0), (scene.width, scene.height), (0, scene.height))]
    if config.mode == "zones":
        meets &= geometries.intersects(shapely.Polygon(corners)).to_numpy()
    for position in np.flatnonzero(meets):
        outline = geometries.iloc[position] if config.mode == "zones" else None
        yield geometries.index[position], Candidate(number, areal_units.as_window(windows[position]), outline)


def no_overlap_message(units: Any, scenes: Sequence[Scene], config: PreprocessingConfig) -> str:
    """The sentence for units and scenes that lie apart, with both extents in degrees."""
    west, south, east, north = units.to_crs(4326).total_bounds
    extents = []
    for scene in scenes:
        bounds = rasterio.warp.transform_bounds(
            scene.crs, "EPSG:4326", *rasterio.transform.array_bounds(scene.height, scene.width, scene.transform)
        )
        extents.append(f"{scene.path.name} {bounds[0]:.3f} {bounds[1]:.3f} {bounds[2]:.3f} {bounds[3]:.3f}")
    return (
        f"no unit of {config.shp_path} lies on a scene: the units cover {west:.3f} {south:.3f} {east:.3f} {north:.3f} (west south east north, degrees), "
        f"the scenes {'; '.join(extents)}; name a scene of that place, or mend the CRS of one of them"
    )


def cut_all(tasks: Sequence[CutTask], scenes: Sequence[Scene], options: CutOptions, workers: int) -> list[CutResult]:
    """Cuts every unit, in several processes where there are many; the results come in the order of the ids."""
    order = sorted(tasks, key=locality)
    chunks = [order[start : start + UNITS_PER_CHUNK] for start in range(0, len(order), UNITS_PER_CHUNK)]
    workers = min(workers or cpu_count() or 1, len(chunks))
    results: list[CutResult] = []
    with tqdm(total=len(tasks), desc="cut patches", unit="unit", disable=None) as bar:
        if workers == 1:
            for chunk in chunks:
                results += cut_chunk(chunk, scenes, options)
                bar.update(len(chunk))
        else:
            with ProcessPoolExecutor(workers) as pool:
                for part in pool.map(cut_chunk, chunks, [scenes] * len(chunks), [options] * len(chunks)):
                    results += part
                    bar.update(len(part))
    return sorted(results, key=lambda result: result.row["geocode"])


def locality(task: CutTask) -> tuple[int, int, int, str]:
    """Sort key that keeps units near each other on a scene together."""
    if not task.candidates:
        return (-1, 0, 0, task.geocode)
    first = task.candidates[0]
    return (first.scene_number, first.window.row_off // LOCALITY_PIXELS, first.window.col_off // LOCALITY_PIXELS, task.geocode)


def cut_chunk(tasks: Sequence[CutTask], scenes: Sequence[Scene], options: CutOptions) -> list[CutResult]:
    """Cuts some units in this process."""
    reader = SceneReader(scenes)
    try:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            return [cut_unit(task, reader, options) for task in tasks]
    finally:
        reader.close()


def cut_unit(task: CutTask, reader: SceneReader, options: CutOptions) -> CutResult:
    """Cuts one unit from the scene in which most of its own pixels are valid, writes its patch and reports."""
    best: tuple[float, Candidate, np.ndarray, np.ndarray] | None = None
    for candidate in task.candidates:
        values, valid = reader.read(candidate.scene_number, candidate.window)
        inside = outline_mask(candidate, reader.scenes[candidate.scene_number], options.all_touched)
        share = float((valid & inside).sum() / inside.sum())
        if best is None or share > best[0]:
            best = (share, candidate, values, valid if options.keep_surroundings else valid & inside)
        if share == 1.0:
            break
    if best is None:
        return CutResult(manifest_row(task.geocode, OUTSIDE), None)
    share, candidate, values, valid = best
    scene = reader.scenes[candidate.scene_number]
    status = ALL_NODATA if share == 0 else TOO_FEW_VALID if share < options.min_valid else WRITTEN
    row = manifest_row(task.geocode, status, candidate.window, scene, share)
    if status != WRITTEN:
        return CutResult(row, None)
    values[:, ~valid] = 0
    row["path"] = f"{options.prefix}_{task.geocode}.tif"
    write_patch(options.folder / row["path"], values, valid, scene, candidate.window)
    return CutResult(row, band_sums(values[:, valid]))


def outline_mask(candidate: Candidate, scene: Scene, all_touched: bool) -> np.ndarray:
    """The pixels [height, width] that belong to the unit; never empty: a sliver without a pixel centre keeps the pixels it touches."""
    shape = (candidate.window.height, candidate.window.width)
    if candidate.outline is None:
        return np.ones(shape, dtype=bool)
    transform = window_transform(candidate.window, scene.transform)
    inside = rasterize([candidate.outline], out_shape=shape, transform=transform, all_touched=all_touched, dtype="uint8").astype(bool)
    if not inside.any():
        inside = rasterize([candidate.outline], out_shape=shape, transform=transform, all_touched=True, dtype="uint8").astype(bool)
    return inside if inside.any() else np.ones(shape, dtype=bool)


def manifest_row(geocode: str, status: str, window: Window | None = None, scene: Scene | None = None, share: float = 0.0) -> dict[str, Any]:
    """One row of ``manifest.csv``; the fields of a unit without a scene stay empty."""
    place = (window.col_off, window.row_off, window.width, window.height) if window else (None,) * 4
    row = {"geocode": geocode, "status": status, "path": None, "scene": scene.path.name if scene else None}
    return row | dict(zip(WINDOW_COLUMNS, place, strict=True)) | {"valid_fraction": round(share, 6)}


def write_patch(path: Path, values: np.ndarray, valid: np.ndarray, scene: Scene, window: Window) -> None:
    """Writes a patch [num_bands, height, width].

    0 marks missing pixels, as published. Where a valid pixel is 0 itself, the file carries a mask instead, so that nothing valid is lost.
    """
    zero_is_free = not (values[:, valid] == 0).any()
    profile = {
        "driver": "GTiff",
        "width": values.shape[2],
        "height": values.shape[1],
        "count": values.shape[0],
        "dtype": values.dtype,
        "crs": scene.crs,
        "transform": window_transform(window, scene.transform),
        "nodata": 0 if zero_is_free else None,
        # Unless told, GDAL labels the fourth of four uint8 bands as alpha, and whoever reads the patch loses it.
        "photometric": "MINISBLACK",
        "alpha": "NO",
    }
    with rasterio.open(path, "w", **profile) as patch:  # into a temporary folder; see cut_patches
        patch.write(values)
        patch.descriptions = scene.band_names
        if not zero_is_free:
            patch.write_mask(valid)


def band_sums(pixels: np.ndarray) -> BandSums:
    """Sums over pixels [num_bands, num_pixels], in double precision."""
    exact = pixels.astype(np.float64)
    return BandSums(exact.shape[1], exact.sum(axis=1), np.square(exact).sum(axis=1), exact.min(axis=1), exact.max(axis=1))


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
    used = sorted({result.row["scene"] for result in results if result.row["status"] == WRITTEN})
    return {
        "region": config.region,
        "tag": config.tag,
        "year": config.year,
        "mode": config.mode,
        "context_m": config.context_m,
        "bands": bands,
        "dtype": scenes[0].dtype,
        "nodata": 0,
        "gsd_m": scenes[0].gsd_m,
        "num_valid_pixels": count,
        "scenes": used,
    }


def fill_ledger(ledger: Ledger, results: Sequence[CutResult], folder: Path) -> None:
    """Counts what became of every unit."""
    for status in (OUTSIDE, ALL_NODATA, TOO_FEW_VALID):
        ledger.leave_out(status, [result.row["geocode"] for result in results if result.row["status"] == status])
    written = [result.row for result in results if result.row["status"] == WRITTEN]
    ledger.went_out["patches"] = len(written)
    partial = [row["geocode"] for row in written if row["valid_fraction"] < WELL_COVERED]
    if partial:
        ledger.note(
            f"{len(partial):,} units are covered by less than {WELL_COVERED:.0%} by imagery ({shown(partial)}); "
            "a unit takes one scene: where it lies on two beside each other, merge them first, with: rio merge"
        )
    ledger.note(f"patches, manifest.csv and stats.json are in {folder}")


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
