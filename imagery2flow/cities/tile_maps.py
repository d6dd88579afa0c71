"""Maps on the pixels of tiles: where the cells of a ResNet lie, what a mask keeps, how gathered the mass is, and their GeoTIFFs."""

from __future__ import annotations

import warnings

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from imagery2flow.run.explain_config import LAYERS

UPPER_SHARE = 0.1  # of the pixels, whose share of a map's mass the table gives


def cell_px(layer: str) -> int:
    """Pixels of the view from one cell of a stage of a ResNet to the next: 4 of layer1, 32 of layer4."""
    return 4 << LAYERS.index(layer)


def on_tile(values: np.ndarray, layer: str, view_size: int, shape: tuple[int, ...]) -> np.ndarray:
    """A map on the pixels of the tile that the view shows, between its cells bilinear: [height, width].

    Cell i of a stage looks at pixel i * stride of the view, because every layer that halves the resolution begins at its first pixel. That is not where cells
    of equal size would have their centres, (i + 1/2) * stride: a map that is enlarged in that way lies half a cell too far down and to the right.
    """
    stride = cell_px(layer)
    for axis, length in enumerate(shape):
        view_pixel = (np.arange(length) + 0.5) / length * view_size - 0.5
        place = np.clip(view_pixel / stride, 0, values.shape[axis] - 1)
        before = np.floor(place).astype(int)
        weight = np.expand_dims(place - before, 1 - axis)
        after = np.minimum(before + 1, values.shape[axis] - 1)
        values = values.take(before, axis) * (1 - weight) + values.take(after, axis) * weight
    return values


def kept_pixels(values: np.ndarray, rule: str) -> np.ndarray:
    """The pixels [height, width] that the masked image keeps; of a constant map none."""
    lowest, highest = np.nanmin(values), np.nanmax(values)
    limit = np.nanmean(values, dtype=float) + np.nanstd(values, dtype=float) if rule == "mean_plus_std" else (lowest + highest) / 2
    return (values > limit) & (highest > lowest)


def mass_in_upper_tenth(values: np.ndarray) -> float:
    """Share of a map's positive mass that its highest tenth of the pixels holds: 0.1 where all are alike, NaN where nothing is positive."""
    mass = np.sort(np.clip(values[~np.isnan(values)].astype(float), 0, None))
    highest = mass[len(mass) - int(np.ceil(UPPER_SHARE * len(mass))) :]
    return float(highest.sum() / mass.sum()) if mass.sum() > 0 else float("nan")


def encode_map(values: np.ndarray, crs: CRS | None, transform: Affine) -> bytes:
    """A map as the bytes of a GeoTIFF; GDAL writes them in memory, because on a full disk it would not always say so."""
    height, width = values.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": "float32", "nodata": np.nan, "compress": "deflate"}
    with warnings.catch_warnings(), MemoryFile() as file:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with file.open(**profile, crs=crs, transform=transform) as raster:
            raster.write(values, 1)
        return bytes(file.getbuffer())
