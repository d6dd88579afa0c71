"""The pixels of a patch set at halving resolutions, and where they are kept: on the device, in main memory, or in a file.

Level 0 is the images as they are stored, level 1 averages over the valid pixels of blocks of 2 x 2, and so on. The pixels keep their integer type. What
fits stays on the device for the whole run; of what does not fit, each step sends the crops that it shows (``imagery.views.cut``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from imagery2flow.imagery.patchset import Normalisation, PatchSet
from imagery2flow.run.memory import Allocate

UINT16_VALUES = 1 << 16
EXACT_IN_SINGLE = 1 << 24  # whole numbers up to it have no neighbour that single precision lacks


@dataclass(frozen=True)
class Pyramid:
    """Pixels of a patch set at every level; the small tables of where they are stay on the CPU, where crops are drawn.

    Attributes:
        values: Of each level [num_pixels, num_bands]; uint16 as the int16 of the same bits, since torch cannot index uint16.
        valid_share: Of each level, share of a pixel's block, as far as it lies within the image, that is valid, 0 to 1 [num_pixels]; bool at level 0.
        is_uint16: Whether the values are uint16.
        first_pixel: Row at which an image begins in its level: [num_images, num_levels].
        height: [num_images, num_levels].
        width: [num_images, num_levels].
        frames: Image, top, left, height and width in pixels of level 0 of each patch [num_patches, 5].
        valid_pixel: Positions within the patch (row-major, level 0) of its valid pixels, patch after patch; none of patches of which all is valid.
        first_valid: Where each patch's positions begin in ``valid_pixel``: [num_patches + 1].
        normalisation: Statistics of the bands.
    """

    values: tuple[Tensor, ...]
    valid_share: tuple[Tensor, ...]
    is_uint16: bool
    first_pixel: Tensor
    height: Tensor
    width: Tensor
    frames: Tensor
    valid_pixel: Tensor
    first_valid: Tensor
    normalisation: Normalisation

    @property
    def device(self) -> torch.device:
        """Where the pixels are."""
        return self.values[0].device

    @property
    def num_bands(self) -> int:
        """Bands of a pixel."""
        return self.values[0].shape[1]

    @property
    def num_bytes(self) -> int:
        """Size of the pixels with their shares."""
        return sum(part.nbytes for part in (*self.values, *self.valid_share))

    def to(self, device: torch.device) -> Pyramid:
        """The same pixels on another device."""
        return replace(
            self, values=tuple(part.to(device) for part in self.values), valid_share=tuple(part.to(device) for part in self.valid_share)
        )


def build_pyramid(patches: PatchSet, normalisation: Normalisation, view_size: int, allocate: Allocate = np.empty) -> Pyramid:
    """Averages the images of a patch set to ever coarser levels, until the largest patch is no larger than twice a view.

    Args:
        patches: The patches; level 0 shares their memory where torch knows their type.
        normalisation: Statistics of the bands.
        view_size: Side of a view in pixels.
        allocate: Makes the arrays that are as long as there are pixels.
    """
    largest = int(patches.frames[:, 3:].max())
    num_levels = max(1, int(np.ceil(np.log2(max(largest / view_size, 1)))) + 1)
    sides = 2 ** np.arange(num_levels)
    height, width = -(-patches.height[:, None] // sides), -(-patches.width[:, None] // sides)
    sizes = height * width
    first_pixel = np.concatenate([np.zeros((1, num_levels), np.int64), np.cumsum(sizes, axis=0)[:-1]])
    values, shares = [patches.values], [patches.valid]
    for level in range(1, num_levels):
        values.append(allocate((int(sizes[:, level].sum()), patches.values.shape[1]), patches.values.dtype))
        shares.append(allocate((int(sizes[:, level].sum()),), np.dtype(np.float32)))
    for number in range(len(height)) if num_levels > 1 else ():
        for level, (pixels, share) in enumerate(coarser_levels(*patches.image(number), num_levels - 1), start=1):
            rows = slice(int(first_pixel[number, level]), int(first_pixel[number, level] + share.size))
            values[level][rows], shares[level][rows] = pixels.reshape(-1, pixels.shape[-1]), share.reshape(-1)
    valid_pixel, first_valid = places_of_valid_pixels(patches, allocate)
    return Pyramid(
        values=tuple(as_tensor(part) for part in values),
        valid_share=tuple(torch.from_numpy(part) for part in shares),
        is_uint16=patches.values.dtype == np.uint16,
        first_pixel=torch.from_numpy(first_pixel),
        height=torch.from_numpy(height),
        width=torch.from_numpy(width),
        frames=torch.from_numpy(patches.frames),
        valid_pixel=torch.from_numpy(valid_pixel),
        first_valid=torch.from_numpy(first_valid),
        normalisation=normalisation,
    )


def places_of_valid_pixels(patches: PatchSet, allocate: Allocate) -> tuple[np.ndarray, np.ndarray]:
    """``valid_pixel`` and ``first_valid`` of a pyramid."""
    count = np.array([np.count_nonzero(patches.patch(position)[1]) for position in range(len(patches))])
    count[count == patches.frames[:, 3] * patches.frames[:, 4]] = 0  # of these, a position is its own number
    first_valid = np.concatenate([[0], np.cumsum(count)])
    valid_pixel = allocate((int(count.sum()),), np.dtype(np.int32))
    for position in np.flatnonzero(count).tolist():
        valid_pixel[first_valid[position] : first_valid[position + 1]] = np.flatnonzero(patches.patch(position)[1])
    return valid_pixel, first_valid


def as_tensor(values: np.ndarray) -> Tensor:
    """A tensor of a type that torch can index and that holds the values, as far as possible in the same memory; ``as_float`` reads them."""
    if values.dtype == np.uint16:
        return torch.from_numpy(values.view(np.int16))
    kept = {"uint8", "int8", "int16", "int32", "float32"}
    return torch.from_numpy(values if values.dtype.name in kept else values.astype(np.float32))


def as_float(values: Tensor, is_uint16: bool) -> Tensor:
    """Pixel values in single precision."""
    return (values.int() & (UINT16_VALUES - 1)).float() if is_uint16 else values.float()


def coarser_levels(pixels: np.ndarray, mask: np.ndarray, num_levels: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Averages over the valid pixels of ever larger blocks; sums are carried from level to level, so that each valid pixel counts alike.

    Args:
        pixels: [height, width, num_bands].
        mask: [height, width].
        num_levels: How often the sides are halved (rounded up).

    Yields:
        Averages in the pixels' own type, and the share of each block, as far as it lies within the patch, that is valid.
    """
    exact = sum_type(pixels.dtype, num_levels)
    is_full = bool(mask.all())
    total = pixels if is_full else pixels * mask[..., None]
    count, sides = mask[..., None], mask.shape
    for level in range(1, num_levels + 1):
        total = halve(total, exact)
        size = np.outer(*(block_sides(side, 1 << level) for side in sides))[..., None]  # pixels of each block
        count = size if is_full else halve(count, exact)
        average = total / np.maximum(count, 1).astype(np.float64)
        average = average if pixels.dtype.kind == "f" else np.rint(average)
        yield average.astype(pixels.dtype), (count / size)[..., 0].astype(np.float32)


def sum_type(dtype: np.dtype, num_levels: int) -> np.dtype:
    """The smaller type in which sums over the largest blocks are exact; for pixels that are no whole numbers double precision."""
    limits = np.iinfo(dtype) if dtype.kind in "iu" else None
    fits = limits is not None and max(limits.max, -limits.min) * 4**num_levels < EXACT_IN_SINGLE
    return np.dtype(np.float32 if fits else np.float64)


def block_sides(side: int, block: int) -> np.ndarray:
    """Lengths of the blocks that a side is divided into; the last one is what remains."""
    return np.diff(np.append(np.arange(0, side, block), side))


def halve(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Sums 2 x 2 blocks of values [height, width, n] in a type; a lone last row or column is a block of its own."""
    height, width, _ = values.shape
    padded = np.pad(values, ((0, height % 2), (0, width % 2), (0, 0))) if height % 2 or width % 2 else values
    rows = np.add(padded[0::2], padded[1::2], dtype=dtype)  # [height / 2, width, n]
    return rows[:, 0::2] + rows[:, 1::2]
