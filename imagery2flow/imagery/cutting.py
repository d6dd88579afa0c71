"""Cutting units out of scenes: in which order, from which scene, which pixels, and the sums that the statistics are made of.

Shapes: ``values`` [num_bands, height, width] in the scene's type, ``valid`` [height, width] of bool.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
import shapely
from rasterio.features import rasterize
from rasterio.io import MemoryFile
from rasterio.windows import Window
from rasterio.windows import transform as window_transform
from tqdm import tqdm

from imagery2flow.imagery.journal import BandSums, CutResult, ManifestRow, note_in_journal, open_journal, read_journal
from imagery2flow.imagery.scene import Scene, SceneReader, blacken
from imagery2flow.run.files import replacing
from imagery2flow.run.parallel import available_cores, check_shared_folder, each_chunk
from imagery2flow.run.stage import Ledger

WRITTEN, WINDOW, OUTSIDE, ALL_NODATA, TOO_FEW_VALID = "written", "window", "outside every scene", "all nodata", "below --min_valid"
USABLE = (WRITTEN, WINDOW)
WINDOW_COLUMNS = ("column_offset", "row_offset", "width", "height")
# A few chunks per process keep all of them busy to the end; each costs a second decoding of the blocks on its border.
CHUNKS_PER_WORKER = 4
SMALLEST_CHUNK = 64  # units
# Decoded blocks that GDAL keeps per process; its default is a twentieth of the machine's memory for each.
BLOCK_CACHE_BYTES = 128 << 20
LARGEST_STRIP_BYTES = 16 << 20  # of tiles that are read at once; the more rows of them, the fewer pixels are read twice


@dataclass(frozen=True)
class Candidate:
    """A scene that a unit can be cut from: the window, and the unit's outline in the scene's CRS (None if the window is the unit)."""

    scene_number: int
    window: Window
    outline: shapely.Geometry | None


@dataclass(frozen=True)
class CutTask:
    """One unit and the scenes that it lies on; of a tile also the pixels that are counted with it (``units.Tile``)."""

    geocode: str
    candidates: tuple[Candidate, ...]
    counted: Window | None = None


@dataclass(frozen=True)
class CutOptions:
    """What is the same for every unit of a run.

    Attributes:
        folder: Where patches and the journal go.
        prefix: What the patches' names begin with.
        all_touched: Whether pixels that an outline touches belong to the unit.
        keep_surroundings: Whether pixels around the unit stay.
        min_valid: Smallest share of valid pixels.
        windows_of: Folder of the scenes whose tiles stay windows of them; None where patches are written.
    """

    folder: Path
    prefix: str
    all_touched: bool
    keep_surroundings: bool
    min_valid: float
    windows_of: Path | None = None


def cut_all(
    tasks: Sequence[CutTask], scenes: Sequence[Scene], options: CutOptions, workers: int, dask: str | None, ledger: Ledger
) -> list[CutResult]:
    """Cuts every unit that is not cut yet, in several processes or machines where there are many; the results come in the order of the ids."""
    results = read_journal(options.folder)
    if results:
        ledger.note(f"{len(results):,} of {len(tasks):,} units were done by a run that did not come to its end")
    done = {result.row.geocode for result in results}
    order = reading_order([task for task in tasks if task.geocode not in done], scenes)
    # How many workers a cluster has is known later, and may change.
    size = SMALLEST_CHUNK if dask else max(SMALLEST_CHUNK, -(-len(order) // (CHUNKS_PER_WORKER * (workers or available_cores()))))
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    # Processes of other machines begin in another folder.
    scenes = [replace(scene, path=scene.path.absolute()) for scene in scenes] if dask else scenes
    cut = partial(cut_chunk, scenes=scenes, options=replace(options, folder=options.folder.absolute()))
    with tqdm(total=len(tasks), initial=len(results), desc="cut patches", unit="unit", disable=None) as bar:
        for part in each_chunk(cut, chunks, workers, dask, ledger):
            results += part
            bar.update(len(part))
    return sorted(results, key=lambda result: result.row.geocode)


def reading_order(tasks: Sequence[CutTask], scenes: Sequence[Scene]) -> list[CutTask]:
    """The tasks in an order in which a process decodes each block of a scene about once.

    It runs along the rows of the scene's own blocks. The blocks that one row of units shares with the next stay in GDAL's cache if all
    blocks that a row of units touches fit into it; a scene too wide for that is cut into bands of columns, one after the other.
    """
    widths = band_widths(tasks, scenes)

    def place(task: CutTask) -> tuple[int, int, int, int, int, str]:
        if not task.candidates:
            return (-1, 0, 0, 0, 0, task.geocode)
        number, window = task.candidates[0].scene_number, task.candidates[0].window
        row = window.row_off // scenes[number].block_height
        return (number, window.col_off // widths[number], row, window.col_off, window.row_off, task.geocode)

    return sorted(tasks, key=place)


def band_widths(tasks: Sequence[CutTask], scenes: Sequence[Scene]) -> list[int]:
    """Width in pixels of each scene's bands of columns: what fits into half of the cache, whose rest is for patches being written."""
    windows: list[list[Window]] = [[] for _ in scenes]
    for task in tasks:
        for candidate in task.candidates[:1]:
            windows[candidate.scene_number].append(candidate.window)
    widths = []
    for scene, own in zip(scenes, windows, strict=True):
        # A few huge units are better read twice than the bands of all made narrow.
        height, width = np.quantile([(window.height, window.width) for window in own] or [(1, 1)], 0.9, axis=0)
        rows_of_blocks = 1 + math.ceil((height - 1) / scene.block_height)  # that a window reaches into, wherever it begins
        columns_of_blocks = BLOCK_CACHE_BYTES // 2 // (rows_of_blocks * scene.block_bytes)
        widths.append(max(columns_of_blocks * scene.block_width - int(width), scene.block_width))
    return widths


def cut_chunk(tasks: Sequence[CutTask], scenes: Sequence[Scene], options: CutOptions) -> list[CutResult]:
    """Cuts some units in this process."""
    check_shared_folder(options.folder.parent, "output folder")
    reader, results = SceneReader(scenes), []
    try:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True, GDAL_CACHEMAX=BLOCK_CACHE_BYTES), open_journal(options.folder) as journal:
            for result in (
                look_at_tiles(tasks, reader, options) if options.windows_of else (cut_unit(task, reader, options) for task in tasks)
            ):
                results.append(result)
                note_in_journal(journal, result)
    finally:
        reader.close()
    return results


def look_at_tiles(tasks: Sequence[CutTask], reader: SceneReader, options: CutOptions) -> Iterator[CutResult]:
    """Measures tiles that stay windows of their scenes; those of some rows are read at once, so that pixels that they share are read once."""

    def place(task: CutTask) -> tuple[int, int, int]:
        candidate = task.candidates[0]
        return candidate.scene_number, candidate.window.row_off, candidate.window.col_off

    ordered = sorted(tasks, key=place)
    first = 0
    while first < len(ordered):
        number = ordered[first].candidates[0].scene_number
        bytes_of_pixel = len(reader.scenes[number].bands) * np.dtype(reader.scenes[number].dtype).itemsize
        strip, end = ordered[first].candidates[0].window, first + 1
        while end < len(ordered) and ordered[end].candidates[0].scene_number == number:
            wider = union(strip, ordered[end].candidates[0].window)
            # A row of tiles is never divided: its pixels would be read twice.
            if wider.height > strip.height and wider.width * wider.height * bytes_of_pixel > LARGEST_STRIP_BYTES:
                break
            strip, end = wider, end + 1
        values, valid = reader.read(number, strip)
        for task in ordered[first:end]:
            yield measure_tile(task, values, valid, strip, reader.scenes[number], options)
        first = end


def union(one: Window, two: Window) -> Window:
    """The smallest window that holds both."""
    column, row = min(one.col_off, two.col_off), min(one.row_off, two.row_off)
    end_column = max(one.col_off + one.width, two.col_off + two.width)
    end_row = max(one.row_off + one.height, two.row_off + two.height)
    return Window(column, row, end_column - column, end_row - row)


def measure_tile(task: CutTask, values: np.ndarray, valid: np.ndarray, strip: Window, scene: Scene, options: CutOptions) -> CutResult:
    """What becomes of a tile in a strip of its scene: values [num_bands, height, width] and valid [height, width]."""
    window = task.candidates[0].window
    inside, counted = slices_in(window, strip), slices_in(task.counted or window, strip)
    share = float(np.count_nonzero(valid[inside]) / (window.width * window.height))
    sums = band_sums(values[:, *counted], valid[counted])
    status = ALL_NODATA if share == 0 else TOO_FEW_VALID if share < options.min_valid else WINDOW
    path = os.path.relpath(scene.path, options.windows_of) if status == WINDOW else None
    return CutResult(manifest_row(task.geocode, status, window, scene, share)._replace(path=path), sums)


def slices_in(window: Window, strip: Window) -> tuple[slice, slice]:
    """Rows and columns of a window in the arrays of a strip that holds it."""
    row, column = window.row_off - strip.row_off, window.col_off - strip.col_off
    return slice(row, row + window.height), slice(column, column + window.width)


def cut_unit(task: CutTask, reader: SceneReader, options: CutOptions) -> CutResult:
    """Cuts one unit from the scene in which most of its own pixels are valid, writes its patch and reports."""
    best: tuple[float, Candidate, np.ndarray, np.ndarray] | None = None
    for candidate in task.candidates:
        values, valid = reader.read(candidate.scene_number, candidate.window)
        inside = outline_mask(candidate, reader.scenes[candidate.scene_number], options.all_touched)
        valid_inside = valid & inside
        share = float(np.count_nonzero(valid_inside) / np.count_nonzero(inside))
        if best is None or share > best[0]:
            best = (share, candidate, values, valid if options.keep_surroundings else valid_inside)
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
    blacken(values, valid)
    row = row._replace(path=f"{options.prefix}_{task.geocode}.tif")
    content = encode_patch(values, valid, scene, candidate.window)
    with replacing(options.folder / str(row.path), sync=False) as temporary:  # all are brought to the disk together; see run.unfinished
        temporary.write_bytes(content)
    return CutResult(row, band_sums(values, valid), hashlib.sha256(content).hexdigest())


def outline_mask(candidate: Candidate, scene: Scene, all_touched: bool) -> np.ndarray:
    """The pixels [height, width] that belong to the unit; never empty: a sliver without a pixel centre keeps the pixels it touches."""
    everything = np.ones((candidate.window.height, candidate.window.width), dtype=bool)
    if candidate.outline is None:
        return everything
    inside = pixels_of(candidate.outline, candidate.window, scene, all_touched)
    if not inside.any():
        inside = pixels_of(candidate.outline, candidate.window, scene, all_touched=True)
    return inside if inside.any() else everything


def pixels_of(outline: shapely.Geometry, window: Window, scene: Scene, all_touched: bool = False) -> np.ndarray:
    """The pixels of a window whose centre lies in the outline, or that it touches: [height, width] of bool."""
    transform = window_transform(window, scene.transform)
    shape = (window.height, window.width)
    return rasterize([outline], out_shape=shape, transform=transform, dtype="uint8", all_touched=all_touched).view(bool)


def manifest_row(geocode: str, status: str, window: Window | None = None, scene: Scene | None = None, share: float = 0.0) -> ManifestRow:
    """The row of a unit, without its path."""
    row = ManifestRow(geocode, status, None, scene.path.name if scene else None, None, None, None, None, round(share, 6))
    if window is None:
        return row
    return row._replace(column_offset=window.col_off, row_offset=window.row_off, width=window.width, height=window.height)


def encode_patch(values: np.ndarray, valid: np.ndarray, scene: Scene, window: Window) -> bytes:
    """A patch [num_bands, height, width] as the bytes of a GeoTIFF. GDAL writes them in memory: on a full disk it would not always say so.

    0 marks missing pixels, as published. Where a valid pixel is 0 itself, the file carries a mask instead, so that nothing valid is lost.
    """
    zero_is_free = not ((values == 0).any(axis=0) & valid).any()
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
    with MemoryFile() as file:
        with file.open(**profile) as patch:
            patch.write(values)
            patch.descriptions = scene.band_names
            if not zero_is_free:
                patch.write_mask(valid)
        return bytes(file.getbuffer())


def band_sums(values: np.ndarray, valid: np.ndarray) -> BandSums:
    """Sums over the valid pixels, in double precision; the others are 0 (``blacken``) and add nothing."""
    total, squares = [], []
    for band in values.reshape(len(values), -1):
        exact = band.astype(np.float64)  # one band at a time: eight bytes a pixel
        total.append(exact.sum())
        squares.append(np.square(exact, out=exact).sum())
    limits = np.finfo(values.dtype) if values.dtype.kind == "f" else np.iinfo(values.dtype)
    absent = ~valid
    # Added to their 0, the limits keep the absent pixels out of the minimum and the maximum.
    lowest = (values + absent * values.dtype.type(limits.max)).min(axis=(1, 2))
    highest = (values + absent * values.dtype.type(limits.min)).max(axis=(1, 2))
    count = int(np.count_nonzero(valid))
    return BandSums(count, np.array([total, squares, lowest, highest], dtype=np.float64))
