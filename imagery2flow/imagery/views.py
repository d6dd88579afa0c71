"""From patches of any size to a batch of equally large views, on the device: crops for training, whole patches for embeddings.

The pixels of all patches stay on the device as they are stored; a view is read from them by bilinear interpolation, for the whole batch at
once. Levels of half, quarter, ... resolution (averages over the valid pixels of a block of 2 x 2, 4 x 4, ...) serve crops that are larger
than the view, against aliasing.
Missing pixels become 0 after normalisation, which is the mean of the band.

Shapes: a batch of views is [batch, num_bands, view_size, view_size]. Each image draws its own random numbers, from an explicit generator.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from imagery2flow.imagery.jitter import jitter_bands, jitter_rgb
from imagery2flow.imagery.patchset import Normalisation, PatchSet
from imagery2flow.run.config import ViewConfig

SMALL_VIEW, LARGE_VIEW, LARGEST_SMALL_PATCH = 64, 224, 128
ASPECT_RATIO = 4 / 3  # crops are at most this much wider than high, or higher than wide (RandomResizedCrop's default)


@dataclass(frozen=True)
class Pyramid:
    """Pixels of a patch set at halving resolutions: the pixels on a device, the small tables of where they are on the CPU.

    Attributes:
        values: [num_pixels_all_levels, num_bands].
        valid_share: Share of a pixel's block, as far as it lies within the patch, that is valid, 0 to 1: [num_pixels_all_levels].
        first_pixel: Row of ``values`` at which a patch's level begins: [num_patches, num_levels].
        height: [num_patches, num_levels].
        width: [num_patches, num_levels].
        valid_pixel: Positions within the patch (row-major, level 0) of its valid pixels, patch after patch.
        first_valid: Where each patch's positions begin in ``valid_pixel``: [num_patches + 1].
        mean, std, highest: Statistics of the bands: [num_bands].
    """

    values: Tensor
    valid_share: Tensor
    first_pixel: Tensor
    height: Tensor
    width: Tensor
    valid_pixel: Tensor
    first_valid: Tensor
    mean: Tensor
    std: Tensor
    highest: Tensor

    def to(self, device: torch.device) -> Pyramid:
        """The same pixels on another device; the tables stay on the CPU, where boxes are drawn."""
        return replace(self, **{name: getattr(self, name).to(device) for name in ("values", "valid_share", "mean", "std", "highest")})


@dataclass(frozen=True)
class Boxes:
    """Which part of which patch a view shows: corner and size in pixels of level 0 [batch], and the orientation [batch] 0..7."""

    patch: Tensor
    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    orientation: Tensor


def choose_view_size(patches: PatchSet) -> int:
    """Side of a view: 64 where the median patch is at most 128 pixels wide, else 224 as published."""
    side = np.median(np.maximum(patches.height, patches.width))
    return SMALL_VIEW if side <= LARGEST_SMALL_PATCH else LARGE_VIEW


def build_pyramid(patches: PatchSet, normalisation: Normalisation, view_size: int) -> Pyramid:
    """Lays out a patch set for sampling; levels go down until the largest patch is no larger than twice a view."""
    largest = int(max(patches.height.max(), patches.width.max()))
    num_levels = max(1, int(np.ceil(np.log2(max(largest / view_size, 1)))) + 1)
    shape = (len(patches), num_levels)
    first_pixel, height, width = np.zeros(shape, np.int64), np.ones(shape, np.int64), np.ones(shape, np.int64)
    first_pixel[:, 0], height[:, 0], width[:, 0] = patches.first_pixel, patches.height, patches.width
    values, valid_share = [patches.values], [patches.valid.astype(np.float32)]
    end = len(patches.valid)
    for position in range(len(patches)) if num_levels > 1 else ():
        for level, (pixels, share) in enumerate(coarser_levels(*patches.patch(position), num_levels - 1), start=1):
            first_pixel[position, level], (height[position, level], width[position, level]) = end, share.shape
            values.append(pixels.reshape(-1, pixels.shape[-1]))
            valid_share.append(share.reshape(-1))
            end += share.size
    owner = np.repeat(np.arange(len(patches)), patches.height * patches.width)
    valid_rows = np.flatnonzero(patches.valid)
    return Pyramid(
        values=as_tensor(np.concatenate(values)),
        valid_share=torch.from_numpy(np.concatenate(valid_share)),
        first_pixel=torch.from_numpy(first_pixel),
        height=torch.from_numpy(height),
        width=torch.from_numpy(width),
        valid_pixel=torch.from_numpy(valid_rows - patches.first_pixel[owner[valid_rows]]),
        first_valid=torch.from_numpy(np.searchsorted(owner[valid_rows], np.arange(len(patches) + 1))),
        mean=torch.tensor(normalisation.mean, dtype=torch.float32),
        std=torch.tensor(normalisation.std, dtype=torch.float32),
        highest=torch.tensor(normalisation.highest, dtype=torch.float32),
    )


def as_tensor(values: np.ndarray) -> Tensor:
    """A tensor of the smallest type that torch can index and that holds the values exactly; of float32 for 64 bits and uint32."""
    kept = {"uint8": np.uint8, "int8": np.int16, "int16": np.int16, "uint16": np.int32, "int32": np.int32}
    return torch.from_numpy(values.astype(kept.get(values.dtype.name, np.float32), copy=False))


def coarser_levels(pixels: np.ndarray, mask: np.ndarray, num_levels: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Averages over the valid pixels of ever larger blocks; sums are carried from level to level, so that each valid pixel counts alike.

    Args:
        pixels: [height, width, num_bands].
        mask: [height, width].
        num_levels: How often the sides are halved (rounded up).

    Yields:
        Averages in the pixels' own type, and the share of each block, as far as it lies within the patch, that is valid.
    """
    weight = np.stack([mask, np.ones_like(mask)], axis=-1).astype(np.float64)
    sums = np.concatenate([pixels * weight[..., :1], weight], axis=-1)  # [height, width, num_bands + 2]: bands, valid pixels, pixels
    for _ in range(num_levels):
        sums = halve(sums)
        total, count, size = sums[..., :-2], sums[..., -2], sums[..., -1]
        average = total / np.maximum(count, 1)[..., None]
        average = average if pixels.dtype.kind == "f" else np.rint(average)
        yield average.astype(pixels.dtype), (count / size).astype(np.float32)


def halve(values: np.ndarray) -> np.ndarray:
    """Sums 2 x 2 blocks of values [height, width, n]; a lone last row or column is a block of its own."""
    height, width, _ = values.shape
    padded = np.pad(values, ((0, height % 2), (0, width % 2), (0, 0)))
    return padded[0::2, 0::2] + padded[0::2, 1::2] + padded[1::2, 0::2] + padded[1::2, 1::2]


def whole_patches(pyramid: Pyramid, patch: Tensor) -> Boxes:
    """Boxes that show whole patches, upright: what an embedding is made from."""
    zero = torch.zeros(len(patch))
    return Boxes(patch, zero, zero, pyramid.height[patch, 0].float(), pyramid.width[patch, 0].float(), zero.long())


def draw_boxes(pyramid: Pyramid, patch: Tensor, config: ViewConfig, generator: torch.Generator) -> Boxes:
    """Random crops, each around a random valid pixel; a view can still be empty where valid pixels stand alone among missing ones.

    A crop covers ``crop_min_share`` to 1 of the patch's area with an aspect ratio between 3/4 and 4/3, as far as the patch allows.

    Args:
        pyramid: The patches.
        patch: Numbers of the patches [batch].
        config: Ranges.
        generator: Source of randomness.
    """
    uniform = torch.rand(len(patch), 6, generator=generator)
    patch_height, patch_width = pyramid.height[patch, 0].float(), pyramid.width[patch, 0].float()
    area = patch_height * patch_width * (config.crop_min_share + (1 - config.crop_min_share) * uniform[:, 0])
    ratio = torch.exp((2 * uniform[:, 1] - 1) * float(np.log(ASPECT_RATIO)))
    width = torch.minimum((area * ratio).sqrt().clamp(min=1), patch_width)
    height = torch.minimum((area / ratio).sqrt().clamp(min=1), patch_height)
    first, last = pyramid.first_valid[patch], pyramid.first_valid[patch + 1]
    chosen = pyramid.valid_pixel[first + torch.minimum((uniform[:, 2] * (last - first)).long(), last - first - 1)]
    row, column = chosen // patch_width.long(), chosen % patch_width.long()
    # The corner lies so that the crop holds the chosen pixel's centre and stays within the patch.
    top = around(row + 0.5, height, patch_height, uniform[:, 3])
    left = around(column + 0.5, width, patch_width, uniform[:, 4])
    return Boxes(patch, top, left, height, width, draw_orientation(uniform[:, 5], config))


def around(centre: Tensor, size: Tensor, limit: Tensor, uniform: Tensor) -> Tensor:
    """A random corner in [0, limit - size] such that [corner, corner + size] holds ``centre``."""
    lowest = (centre - size).clamp(min=0)
    highest = torch.minimum(centre, limit - size).clamp(min=0)
    return lowest + (highest - lowest).clamp(min=0) * uniform


def draw_orientation(uniform: Tensor, config: ViewConfig) -> Tensor:
    """One of the eight orientations of a square, or of the two of a left-right flip: bits 1 left-right, 2 top-bottom, 4 transpose."""
    choices = [0] + ([1] if config.flip else []) + ([2, 4, 6] if config.turn else []) + ([3, 5, 7] if config.flip and config.turn else [])
    numbers = torch.tensor(sorted(choices))
    return numbers[(uniform * len(numbers)).long().clamp(max=len(numbers) - 1)]


def render(pyramid: Pyramid, boxes: Boxes, view_size: int) -> tuple[Tensor, Tensor]:
    """Reads views out of the patches.

    Returns:
        Values in the patches' units, averaged over valid pixels only [batch, num_bands, view_size, view_size], and whether a view's pixel
        is valid [batch, 1, view_size, view_size]: at least half of what it is made of is a valid pixel, or a block with one.
    """
    device = pyramid.values.device
    level = choose_level(boxes, view_size, pyramid.height.shape[1])
    at_level = tuple(table[boxes.patch, level] for table in (pyramid.first_pixel, pyramid.height, pyramid.width))
    scale = 0.5**level
    corner = (boxes.top * scale, boxes.left * scale, boxes.height * scale, boxes.width * scale)
    first, height, width = (part.to(device)[:, None, None] for part in at_level)
    top, left, box_height, box_width = (part.to(device)[:, None, None] for part in corner)
    vertical, horizontal = oriented_grid(boxes.orientation.to(device), view_size)  # [batch, view_size, view_size], 0..1
    y, x = top + vertical * box_height / view_size - 0.5, left + horizontal * box_width / view_size - 0.5
    row, column = y.floor(), x.floor()
    below, right = y - row, x - column  # weights of the next row and column
    total = torch.zeros((*y.shape, pyramid.values.shape[1]), device=device)
    weights, seen = torch.zeros(y.shape, device=device), torch.zeros(y.shape, device=device)
    for step_y, weight_y in ((0, 1 - below), (1, below)):
        for step_x, weight_x in ((0, 1 - right), (1, right)):
            rows = torch.minimum((row.long() + step_y).clamp(min=0), height - 1)
            columns = torch.minimum((column.long() + step_x).clamp(min=0), width - 1)
            place = (first + rows * width + columns).reshape(-1)
            share = pyramid.valid_share[place].reshape(y.shape)
            near = weight_y * weight_x
            weight = near * share
            total += weight[..., None] * pyramid.values.index_select(0, place).reshape(total.shape).float()
            weights += weight
            seen += near * (share > 0)
    # A block with any valid pixel counts as valid, so that a narrow unit does not vanish where it is shown at a coarse level.
    values = total / weights.clamp(min=1e-6)[..., None]
    return values.permute(0, 3, 1, 2).contiguous(), (seen >= 0.5)[:, None]


def choose_level(boxes: Boxes, view_size: int, num_levels: int) -> Tensor:
    """The coarsest level at which the longer side of a crop still has at least one pixel per pixel of the view."""
    pixels_per_pixel = torch.maximum(boxes.height, boxes.width) / view_size
    return torch.log2(pixels_per_pixel.clamp(min=1)).floor().long().clamp(max=num_levels - 1)


def oriented_grid(orientation: Tensor, view_size: int) -> tuple[Tensor, Tensor]:
    """Relative vertical and horizontal position in the crop, 0..1, of every pixel of a view, by orientation: [batch, size, size] each."""
    centres = torch.arange(view_size, device=orientation.device) + 0.5
    batch = len(orientation)
    vertical = centres[None, :, None].expand(batch, view_size, view_size)
    horizontal = centres[None, None, :].expand(batch, view_size, view_size)
    bit = orientation[:, None, None]
    horizontal, vertical = (
        torch.where(bit & 1 > 0, view_size - horizontal, horizontal),
        torch.where(bit & 2 > 0, view_size - vertical, vertical),
    )
    transposed = bit & 4 > 0
    return torch.where(transposed, horizontal, vertical), torch.where(transposed, vertical, horizontal)


def normalise(values: Tensor, valid: Tensor, pyramid: Pyramid) -> Tensor:
    """(value - mean) / std per band, and 0 where missing: [batch, num_bands, view_size, view_size]."""
    mean, std = pyramid.mean[:, None, None], pyramid.std[:, None, None]
    return (values - mean) / std * valid


def random_views(pyramid: Pyramid, patch: Tensor, config: ViewConfig, view_size: int, generator: torch.Generator) -> Tensor:
    """One random view of each patch, normalised: [batch, num_bands, view_size, view_size]."""
    values, valid = render(pyramid, draw_boxes(pyramid, patch, config, generator), view_size)
    if config.rgb_jitter > 0 or config.grey_probability > 0:
        values = jitter_rgb(values, pyramid.highest, config, generator)
    views = normalise(values, valid, pyramid)
    return jitter_bands(views, config, generator) * valid


def embedding_views(pyramid: Pyramid, patch: Tensor, view_size: int) -> Tensor:
    """The whole of each patch, normalised, without randomness: [batch, num_bands, view_size, view_size]."""
    return normalise(*render(pyramid, whole_patches(pyramid, patch), view_size), pyramid)
