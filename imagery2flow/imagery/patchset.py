"""A set of patches in memory, as one flat table of pixels.

The pixels stand in images, one behind the other: ``values`` [num_pixels, num_bands] in the images' own type, ``valid`` [num_pixels] of bool; image i takes
the rows from ``first_pixel[i]``, row-major, ``height[i]`` x ``width[i]``. A patch is a frame of an image: most often all of it; tiles that overlap each other
share the pixels of their scene instead. Patches are sorted by id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PIXELS_PER_BLOCK = 1 << 22
COUNTED = (np.uint8, np.uint16)  # types of so few values that counting them is faster than reckoning with each


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


def whole_images(height: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Frames of patches that are images of their own [num_images, 5]."""
    zero = np.zeros_like(height)
    return np.stack([np.arange(len(height)), zero, zero, height, width], axis=1).astype(np.int64)


@dataclass(frozen=True)
class PatchSet:
    """Patches of different size in one flat table; see the module's docstring for the layout.

    Attributes:
        geocodes: Id of each patch, sorted.
        values: Pixels of the images [num_pixels, num_bands].
        valid: Whether a pixel is there [num_pixels].
        first_pixel: Of each image [num_images].
        height: Of each image [num_images].
        width: Of each image [num_images].
        normalisation: Statistics of the bands.
        frames: Image, top, left, height and width in pixels of each patch [num_patches, 5].
    """

    geocodes: tuple[str, ...]
    values: np.ndarray
    valid: np.ndarray
    first_pixel: np.ndarray
    height: np.ndarray
    width: np.ndarray
    normalisation: Normalisation
    frames: np.ndarray

    def __len__(self) -> int:
        return len(self.geocodes)

    def image(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """One image: values [height, width, num_bands] and valid [height, width]."""
        height, width = int(self.height[number]), int(self.width[number])
        rows = slice(int(self.first_pixel[number]), int(self.first_pixel[number]) + height * width)
        return self.values[rows].reshape(height, width, -1), self.valid[rows].reshape(height, width)

    def patch(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """One patch: values [height, width, num_bands] and valid [height, width]."""
        number, top, left, height, width = self.frames[position].tolist()
        values, valid = self.image(number)
        return values[top : top + height, left : left + width], valid[top : top + height, left : left + width]


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
        [
            block_moments(values[rows] if valid[rows].all() else values[rows][valid[rows]])
            for rows in (slice(start, start + PIXELS_PER_BLOCK) for start in starts)
        ]
    )


def block_moments(pixels: np.ndarray) -> BandMoments:
    """Moments of pixels [num_pixels, num_bands]."""
    if not len(pixels):
        return BandMoments(0, *np.zeros((3, pixels.shape[1])))
    if pixels.dtype in COUNTED:
        return BandMoments(len(pixels), *np.transpose([counted_moments(band) for band in pixels.T]))
    exact = pixels.astype(np.float64)
    return BandMoments(len(pixels), exact.mean(axis=0), exact.var(axis=0), exact.max(axis=0, initial=0.0))


def counted_moments(band: np.ndarray) -> tuple[float, float, float]:
    """Mean, variance and largest value of a band [num_pixels] of few possible values, from how often each occurs: one pass over the pixels."""
    counts = np.bincount(band)
    values, share = np.arange(len(counts)), counts / len(band)
    mean = float(values @ share)
    return mean, float((values - mean) ** 2 @ share), float(len(counts) - 1)


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
