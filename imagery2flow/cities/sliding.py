"""A window that slides over a scene: what a model says of every place, on a grid of cells that lie where the windows lie.

Windows of ``size`` pixels begin every ``stride`` pixels, and none reaches beyond the scene. A scene is read in bands of rows, each once but for the rows that
two bands share, and windows are frames of a band: pixels that many windows share are held once.

Two geometries of the cells, each ``stride`` pixels wide and high:

- ``centre``: a cell lies around the centre of one window and has its value; a margin of nearly half a window has none.
- ``blend``: a cell has the mean over all windows that hold it, each weighted by how near its centre is (``tent``); all of the scene that a window reaches has one.

Shapes: values are [num_layers, grid_rows, grid_columns]; NaN where a window has too few valid pixels, or a cell has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from affine import Affine
from rasterio.windows import Window
from torch import Tensor
from tqdm import tqdm

from imagery2flow.encoder.features import embed
from imagery2flow.imagery.patch_files import in_single_precision
from imagery2flow.imagery.patchset import Normalisation, PatchSet
from imagery2flow.imagery.pyramid import build_pyramid
from imagery2flow.imagery.scene import Scene, SceneReader
from imagery2flow.run.errors import InputError

PIXELS_PER_BAND = 1 << 26  # of all bands of the scene together
Geometry = Literal["centre", "blend"]


@dataclass(frozen=True)
class WindowGrid:
    """Windows over a scene, all in pixels.

    Attributes:
        width: Of the scene.
        height: Of the scene.
        size: Side of a window.
        stride: From one window to the next.
    """

    width: int
    height: int
    size: int
    stride: int

    @property
    def rows(self) -> int:
        """Windows below each other."""
        return (self.height - self.size) // self.stride + 1

    @property
    def columns(self) -> int:
        """Windows beside each other."""
        return (self.width - self.size) // self.stride + 1

    def first_cell(self, geometry: Geometry) -> float:
        """Pixels from the scene's corner to that of the first cell, along both axes."""
        return (self.size - self.stride) / 2 if geometry == "centre" else 0.0

    def transform(self, scene: Affine, geometry: Geometry) -> Affine:
        """From (column, row) of a cell's corner to the scene's coordinates."""
        offset = self.first_cell(geometry)
        return scene @ Affine.translation(offset, offset) @ Affine.scale(self.stride)


@dataclass(frozen=True)
class Sliding:
    """What was found.

    Attributes:
        values: Of each window, NaN where too little of it is valid [num_layers, rows, columns].
        cell_has_pixel: Whether a cell of the geometry has a valid pixel [cell_rows, cell_columns].
    """

    values: np.ndarray
    cell_has_pixel: np.ndarray


def make_grid(scene: Scene, size: int, stride: int, geometry: Geometry) -> WindowGrid:
    """The windows over a scene.

    Raises:
        InputError: The scene is smaller than a window, or windows do not hold whole cells.
    """
    if min(scene.width, scene.height) < size:
        raise InputError(f"--size {size} is larger than scene {scene.path} of {scene.width} x {scene.height} pixels; use a smaller --size")
    if geometry == "blend" and size % stride:
        raise InputError(
            f"--size {size} is no multiple of --stride {stride}, so that windows do not hold whole cells; change one, or use --geometry centre"
        )
    return WindowGrid(scene.width, scene.height, size, stride)


def slide(
    scene: Scene,
    grid: WindowGrid,
    geometry: Geometry,
    model: Callable[[Tensor], Tensor],
    normalisation: Normalisation,
    view_size: int,
    batch_size: int,
    min_valid: float,
    device: torch.device,
) -> Sliding:
    """Runs a model on every window of a scene.

    Args:
        scene: The scene, with the model's bands in its order.
        grid: The windows.
        geometry: That of the cells.
        model: Views [batch, num_bands, view_size, view_size] -> [batch, num_layers], on the device.
        normalisation: What scales the bands.
        view_size: Side of a view in pixels.
        batch_size: Windows per pass.
        min_valid: Smallest share of valid pixels of a window, 0 to 1; one pixel is always needed.
        device: Where the model is.
    """
    values: np.ndarray | None = None
    cells: list[np.ndarray] = []
    with tqdm(total=grid.rows * grid.columns, desc="map", unit="window", disable=None) as bar:
        for first, end, pixels, valid in read_bands(scene, grid):
            cells.append(cells_with_pixels(valid, grid, geometry, is_last=end == grid.rows))
            share = window_shares(valid, grid.size, grid.stride)  # [band_rows, columns]
            row, column = np.nonzero((share >= min_valid) & (share > 0))
            if len(row):
                patches = as_patches(pixels, valid, row * grid.stride, column * grid.stride, grid.size, normalisation)
                pyramid = build_pyramid(patches, normalisation, view_size).to(device)
                found = embed(model, pyramid, view_size, batch_size)  # [n, num_layers]
                if values is None:
                    values = np.full((found.shape[1], grid.rows, grid.columns), np.nan, dtype=np.float32)
                values[:, first + row, column] = found.T
            bar.update((end - first) * grid.columns)
    if values is None:
        raise InputError(f"no window of scene {scene.path} has enough valid pixels; check its nodata value, or --min_valid {min_valid:g}")
    return Sliding(values, np.concatenate(cells))


def read_bands(scene: Scene, grid: WindowGrid) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """Reads a scene in bands of rows of windows.

    Yields:
        First row of windows, the row after the last, values [height, width, num_bands] and valid [height, width].
    """
    pixels_of_row = grid.width * len(scene.bands)
    rows_of_band = max(1, (PIXELS_PER_BAND // pixels_of_row - grid.size) // grid.stride + 1)
    reader = SceneReader([scene])
    try:
        for first in range(0, grid.rows, rows_of_band):
            end = min(first + rows_of_band, grid.rows)
            window = Window(0, first * grid.stride, grid.width, (end - 1 - first) * grid.stride + grid.size)
            values, valid = in_single_precision(*reader.read(0, window))
            yield first, end, pixels_last(values), valid
    finally:
        reader.close()


def pixels_last(values: np.ndarray) -> np.ndarray:
    """Values [num_bands, height, width] as [height, width, num_bands]; band by band takes a quarter of the time of one transposed copy."""
    pixels = np.empty((*values.shape[1:], len(values)), dtype=values.dtype)
    for number, band in enumerate(values):
        pixels[..., number] = band
    return pixels


def as_patches(
    pixels: np.ndarray, valid: np.ndarray, top: np.ndarray, left: np.ndarray, size: int, normalisation: Normalisation
) -> PatchSet:
    """Windows of one image as patches: pixels [height, width, num_bands], valid [height, width], corners [n]."""
    height, width, num_bands = pixels.shape
    zero, side = np.zeros_like(top), np.full_like(top, size)
    return PatchSet(
        geocodes=tuple(str(number) for number in range(len(top))),
        values=pixels.reshape(-1, num_bands),
        valid=valid.reshape(-1),
        first_pixel=np.array([0]),
        height=np.array([height]),
        width=np.array([width]),
        normalisation=normalisation,
        frames=np.stack([zero, top, left, side, side], axis=1).astype(np.int64),
    )


def window_shares(valid: np.ndarray, size: int, stride: int) -> np.ndarray:
    """Share of valid pixels of each window of an image [height, width]: [rows, columns], by sums over its upper left corner."""
    rows, columns = ((side - size) // stride + 1 for side in valid.shape)
    if valid.all():
        return np.ones((rows, columns))
    total = np.zeros((valid.shape[0] + 1, valid.shape[1] + 1), dtype=np.int64)
    np.cumsum(np.cumsum(valid, axis=0, dtype=np.int64), axis=1, out=total[1:, 1:])
    top, left = np.arange(0, valid.shape[0] - size + 1, stride)[:, None], np.arange(0, valid.shape[1] - size + 1, stride)[None, :]
    counts = total[top + size, left + size] - total[top, left + size] - total[top + size, left] + total[top, left]
    return np.asarray(counts / size**2)


def cells_with_pixels(valid: np.ndarray, grid: WindowGrid, geometry: Geometry, is_last: bool) -> np.ndarray:
    """Whether the cells of a band [height, width] have a valid pixel; of the cells that reach into the next band, that one tells.

    A cell around the centre of a window that begins within a pixel takes the pixels from the one before.
    """
    offset = int(grid.first_cell(geometry))
    cells = 1 if geometry == "centre" else grid.size // grid.stride
    band_rows = (valid.shape[0] - grid.size) // grid.stride + 1
    rows = band_rows + (cells - 1 if is_last else 0)
    columns = grid.columns + cells - 1
    inside = valid[offset : offset + rows * grid.stride, offset : offset + columns * grid.stride]
    return np.asarray(inside.reshape(rows, grid.stride, columns, grid.stride).any(axis=(1, 3)))


def tent(cells: int) -> np.ndarray:
    """Weights of the cells of a window [cells, cells]: 1 at its centre, falling evenly to nearly 0 at its sides."""
    side = 1 - np.abs((np.arange(cells) + 0.5) / cells * 2 - 1)
    return np.outer(side, side)


def blend(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted mean of all windows that hold a cell; NaN where none has a value.

    Args:
        values: Of each window [num_layers, rows, columns].
        weight: Of each cell of a window [cells, cells], above 0.

    Returns:
        [num_layers, rows + cells - 1, columns + cells - 1].
    """
    cells, (num_layers, rows, columns) = len(weight), values.shape
    known = np.isfinite(values).all(axis=0)
    filled = np.where(known, values, 0.0)
    total = np.zeros((num_layers, rows + cells - 1, columns + cells - 1))
    weights = np.zeros(total.shape[1:])
    for row in range(cells):
        for column in range(cells):
            place = (slice(row, row + rows), slice(column, column + columns))
            total[:, *place] += weight[row, column] * filled
            weights[place] += weight[row, column] * known
    return np.divide(total, weights, out=np.full_like(total, np.nan), where=weights > 0).astype(np.float32)


def cell_values(found: Sliding, grid: WindowGrid, geometry: Geometry) -> np.ndarray:
    """Values of the cells [num_layers, cell_rows, cell_columns]; NaN in cells without a valid pixel."""
    values = blend(found.values, tent(grid.size // grid.stride)) if geometry == "blend" else found.values
    return np.where(found.cell_has_pixel, values, np.float32(np.nan))
