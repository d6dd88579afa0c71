"""Places in pixels of the test scene, patch sets in memory, and one call that cuts patches."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
import shapely

from imagery2flow.imagery.patches import cut_patches
from imagery2flow.imagery.patchset import PatchSet, measure, whole_images
from imagery2flow.run.config import PreprocessingConfig
from imagery2flow.run.stage import Ledger

LEFT, TOP, GSD_M = 500_000.0, 4_500_000.0, 30.0  # as in tests/conftest.py


def place(column: float, row: float) -> tuple[float, float]:
    """UTM coordinates of a position in pixels of the test scene."""
    return LEFT + GSD_M * column, TOP - GSD_M * row


def rectangle(column: float, row: float, width: float, height: float) -> shapely.Polygon:
    """A rectangle in pixels of the test scene."""
    (left, top), (right, bottom) = place(column, row), place(column + width, row + height)
    return shapely.box(left, bottom, right, top)


def quiet() -> Ledger:
    return Ledger("test", quiet=True)


def noise(num_bands: int, height: int, width: int, dtype: str = "uint16", seed: int = 0) -> np.ndarray:
    """Values of 1 to 199: [num_bands, height, width]."""
    return np.random.default_rng(seed).integers(1, 200, (num_bands, height, width)).astype(dtype)


def cut(output: Path, scenes: str | Sequence[str], units: str | None = None, **settings) -> tuple[Path, pd.DataFrame, Ledger]:
    """Runs stage 1 in this process; returns the folder of patches, the manifest by geocode, and the ledger."""
    paths = [scenes] if isinstance(scenes, str) else list(scenes)
    ledger = quiet()
    config = PreprocessingConfig(input_tif_path=paths, shp_path=units, output_tif_dir=str(output), **{"workers": 1, **settings})
    folder = cut_patches(config, ledger).parent
    manifest = pd.read_csv(folder / "manifest.csv", dtype={"geocode": str}, keep_default_na=False, na_values={"path": [""], "scene": [""]})
    return folder, manifest.set_index("geocode"), ledger


def read(folder: Path, geocode: str) -> np.ndarray:
    """Values of a patch [num_bands, height, width]."""
    with rasterio.open(folder / f"l8_2020_{geocode}.tif") as patch:
        return patch.read()


def as_patch_set(images: Sequence[np.ndarray], masks: Sequence[np.ndarray] | None = None) -> PatchSet:
    """Images [height, width, num_bands], named 0, 1, ...; all pixels valid without masks."""
    masks = [np.ones(image.shape[:2], bool) for image in images] if masks is None else masks
    values = np.concatenate([image.reshape(-1, image.shape[2]) for image in images])
    valid = np.concatenate([mask.reshape(-1) for mask in masks])
    shapes = np.array([mask.shape for mask in masks])
    first_pixel = np.concatenate([[0], np.cumsum(shapes.prod(axis=1))[:-1]])
    names = [f"band{number}" for number in range(1, images[0].shape[2] + 1)]
    geocodes = tuple(str(number) for number in range(len(images)))
    return PatchSet(
        geocodes, values, valid, first_pixel, shapes[:, 0], shapes[:, 1], measure(values, valid, names), whole_images(*shapes.T)
    )


def naive_level(pixels: np.ndarray, mask: np.ndarray, side: int):
    """Average over the valid pixels of each block of side x side, and the share of the block's pixels that are valid."""
    shape = math.ceil(mask.shape[0] / side), math.ceil(mask.shape[1] / side)
    values, share = np.zeros((*shape, pixels.shape[2])), np.zeros(shape)
    for row in range(shape[0]):
        for column in range(shape[1]):
            block = slice(side * row, side * (row + 1)), slice(side * column, side * (column + 1))
            share[row, column] = mask[block].mean()
            if mask[block].any():
                values[row, column] = pixels[block][mask[block]].mean(axis=0, dtype=float)
    return values if pixels.dtype.kind == "f" else np.rint(values), share
