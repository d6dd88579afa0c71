"""A set of patches in memory, as one flat table of pixels.

Patches differ in size, so their pixels stand one behind the other: ``values`` [num_pixels, num_bands] in the patches' own type, ``valid``
[num_pixels] of bool; patch i takes the rows from ``first_pixel[i]``, row-major, ``height[i]`` x ``width[i]``. Patches are sorted by id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PIXELS_PER_BLOCK = 1 << 22


@dataclass(frozen=True)
class Normalisation:
    """How pixel values become numbers around 0: (value - mean) / std per band; ``highest`` scales values to 0..1 for RGB jitter.

    Attributes:
        band_names: Name of each band.
        mean: Mean over valid pixels, per band, in the patches' units.
        std: Standard deviation, per band; 1 for a constant band.
        highest: Largest value, per band; for uint8 always 255.
        dtype: NumPy type of the patches, which tells their scale.
    """

    band_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    highest: tuple[float, ...]
    dtype: str


@dataclass(frozen=True)
class PatchSet:
    """Patches of different size in one flat table; see the module's docstring for the layout."""

    geocodes: tuple[str, ...]
    values: np.ndarray
    valid: np.ndarray
    first_pixel: np.ndarray
    height: np.ndarray
    width: np.ndarray
    normalisation: Normalisation

    def __len__(self) -> int:
        return len(self.geocodes)

    def patch(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """One patch: values [height, width, num_bands] and valid [height, width]."""
        height, width = int(self.height[position]), int(self.width[position])
        rows = slice(int(self.first_pixel[position]), int(self.first_pixel[position]) + height * width)
        return self.values[rows].reshape(height, width, -1), self.valid[rows].reshape(height, width)


def measure(values: np.ndarray, valid: np.ndarray, names: Sequence[str]) -> Normalisation:
    """Statistics per band over valid pixels [num_pixels, num_bands], in double precision; in two passes over blocks, so that memory stays small."""
    blocks = [slice(start, start + PIXELS_PER_BLOCK) for start in range(0, len(valid), PIXELS_PER_BLOCK)]
    count = np.count_nonzero(valid)
    mean = sum(values[rows][valid[rows]].sum(axis=0, dtype=np.float64) for rows in blocks) / count
    std = np.sqrt(sum(np.square(values[rows][valid[rows]] - mean).sum(axis=0) for rows in blocks) / count)
    highest = np.max([values[rows][valid[rows]].max(axis=0, initial=0) for rows in blocks], axis=0).astype(np.float64)
    highest = np.full(len(names), 255.0) if values.dtype == np.uint8 else highest
    return Normalisation(
        band_names=tuple(names),
        mean=tuple(mean.tolist()),
        std=tuple(np.where(std > 0, std, 1.0).tolist()),
        highest=tuple(np.where(highest > 0, highest, 1.0).tolist()),
        dtype=values.dtype.name,
    )


def unit_statistics(patches: PatchSet, normalisation: Normalisation) -> np.ndarray:
    """Mean and standard deviation of every band over each patch's valid pixels, in normalised units: [num_patches, 2 * num_bands]."""
    num_bands = len(normalisation.band_names)
    owner = np.repeat(np.arange(len(patches)), patches.height * patches.width)[patches.valid]
    pixels = (patches.values[patches.valid].astype(np.float64) - normalisation.mean) / normalisation.std
    count = np.maximum(np.bincount(owner, minlength=len(patches)), 1)[:, None]
    total, squares = np.zeros((len(patches), num_bands)), np.zeros((len(patches), num_bands))
    for band in range(num_bands):
        total[:, band] = np.bincount(owner, pixels[:, band], minlength=len(patches))
        squares[:, band] = np.bincount(owner, pixels[:, band] ** 2, minlength=len(patches))
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    return np.concatenate([mean, std], axis=1)
