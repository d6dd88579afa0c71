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


@dataclass(frozen=True)
class BandMoments:
    """Number of some valid pixels, and per band their mean, variance and largest value (0 if all are below) [num_bands]."""

    count: int
    mean: np.ndarray
    variance: np.ndarray
    highest: np.ndarray


def measure(values: np.ndarray, valid: np.ndarray, names: Sequence[str]) -> Normalisation:
    """Statistics per band over valid pixels [num_pixels, num_bands]."""
    return as_normalisation(moments_of(values, valid), names, values.dtype)


def moments_of(values: np.ndarray, valid: np.ndarray) -> BandMoments:
    """Moments of the valid pixels [num_pixels, num_bands], in double precision; in blocks, so that memory stays small."""
    starts = range(0, max(len(valid), 1), PIXELS_PER_BLOCK)
    return merge_moments(
        [block_moments(values[rows][valid[rows]]) for rows in (slice(start, start + PIXELS_PER_BLOCK) for start in starts)]
    )


def block_moments(pixels: np.ndarray) -> BandMoments:
    """Moments of pixels [num_pixels, num_bands]."""
    if not len(pixels):
        return BandMoments(0, *np.zeros((3, pixels.shape[1])))
    exact = pixels.astype(np.float64)
    return BandMoments(len(pixels), exact.mean(axis=0), exact.var(axis=0), exact.max(axis=0, initial=0.0))


def merge_moments(parts: Sequence[BandMoments]) -> BandMoments:
    """The moments of several sets of pixels together: the variance within them and that of their means."""
    counts = np.array([part.count for part in parts])
    share = counts / max(counts.sum(), 1)
    mean = share @ [part.mean for part in parts]
    variance = share @ [part.variance + (part.mean - mean) ** 2 for part in parts]
    return BandMoments(int(counts.sum()), mean, variance, np.max([part.highest for part in parts], axis=0))


def as_normalisation(moments: BandMoments, names: Sequence[str], dtype: np.dtype) -> Normalisation:
    """What scales the bands of pixels with these moments."""
    std = np.sqrt(moments.variance)
    highest = np.full(len(names), 255.0) if dtype == np.uint8 else moments.highest
    return Normalisation(
        band_names=tuple(names),
        mean=tuple(moments.mean.tolist()),
        std=tuple(np.where(std > 0, std, 1.0).tolist()),
        highest=tuple(np.where(highest > 0, highest, 1.0).tolist()),
        dtype=dtype.name,
    )


def unit_statistics(patches: PatchSet, normalisation: Normalisation) -> np.ndarray:
    """Mean and standard deviation of every band over each patch's valid pixels, in normalised units: [num_patches, 2 * num_bands]."""
    num_bands = len(normalisation.band_names)
    found = np.zeros((len(patches), 2 * num_bands))
    for position in range(len(patches)):
        values, valid = patches.patch(position)
        moments = block_moments(values[valid])
        found[position, :num_bands] = (moments.mean - normalisation.mean) / normalisation.std
        found[position, num_bands:] = np.sqrt(moments.variance) / normalisation.std
    return found
