"""From patches of any size to a batch of equally large views, on the device: crops for training, whole patches for embeddings.

The pixels of all patches stay on the device as they are stored; a view is read from them by bilinear interpolation, for the whole batch at
once. Levels of half, quarter, ... resolution (averages over valid pixels) serve crops that are larger than the view, against aliasing.
Missing pixels become 0 after normalisation, which is the mean of the band.

Shapes: a batch of views is [batch, num_bands, view_size, view_size]. Each image draws its own random numbers, from an explicit generator.
"""

from __future__ import annotations

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
        valid: [num_pixels_all_levels] of bool.
        first_pixel: Row of ``values`` at which a patch's level begins: [num_patches, num_levels].
        height: [num_patches, num_levels].
        width: [num_patches, num_levels].
        valid_pixel: Positions within the patch (row-major, level 0) of its valid pixels, patch after patch.
        first_valid: Where each patch's positions begin in ``valid_pixel``: [num_patches + 1].
        mean, std, highest: Statistics of the bands: [num_bands].
    """

    values: Tensor
    valid: Tensor
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
        return replace(self, **{name: getattr(self, name).to(device) for name in ("values", "valid", "mean", "std", "highest")})


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
    values, valid = [patches.values], [patches.valid]
    end = len(patches.valid)
    for position in range(len(patches)) if num_levels > 1 else ():
        pixels, mask = patches.patch(position)
        for level in range(1, num_levels):
            pixels, mask = halve(pixels, mask)
            first_pixel[position, level], (height[position, level], width[position, level]) = end, mask.shape
            values.append(pixels.reshape(-1, pixels.shape[-1]))
            valid.append(mask.reshape(-1))
            end += mask.size
    owner = np.repeat(np.arange(len(patches)), patches.height * patches.width)
    valid_rows = np.flatnonzero(patches.valid)
    return Pyramid(
        values=as_tensor(np.concatenate(values)),
        valid=torch.from_numpy(np.concatenate(valid)),
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
    """A tensor of the smallest type that torch can index and that holds the values exactly."""
    kept = {"uint8": np.uint8, "int8": np.int16, "int16": np.int16, "uint16": np.int32, "int32": np.int32}
    return torch.from_numpy(values.astype(kept.get(values.dtype.name, np.float32), copy=False))


def halve(pixels: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Averages 2 x 2 blocks over their valid pixels.

    Args:
        pixels: [height, width, num_bands].
        mask: [height, width].

    Returns:
        Both at half the size (rounded up), the pixels in their own type.
    """
    height, width = mask.shape
    padding = ((0, height % 2), (0, width % 2))
    weight = np.pad(mask, padding).astype(np.float64)[..., None]  # [height', width', 1]
    padded = np.pad(pixels, (*padding, (0, 0))).astype(np.float64) * weight
    blocks = (weight.shape[0] // 2, 2, weight.shape[1] // 2, 2)
    count = weight.reshape(*blocks, 1).sum(axis=(1, 3))
    average = padded.reshape(*blocks, -1).sum(axis=(1, 3)) / np.maximum(count, 1)
    if pixels.dtype.kind != "f":
        average = np.rint(average)
    return average.astype(pixels.dtype), count[..., 0] > 0


def whole_patches(pyramid: Pyramid, patch: Tensor) -> Boxes:
    """Boxes that show whole patches, upright: what an embedding is made from."""
    zero = torch.zeros(len(patch))
    return Boxes(patch, zero, zero, pyramid.height[patch, 0].float(), pyramid.width[patch, 0].float(), zero.long())


def draw_boxes(pyramid: Pyramid, patch: Tensor, config: ViewConfig, generator: torch.Generator) -> Boxes:
    """Random crops, each around a random valid pixel, so that no view is empty.

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
        is valid [batch, 1, view_size, view_size].
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
    weights = torch.zeros(y.shape, device=device)
    for step_y, weight_y in ((0, 1 - below), (1, below)):
        for step_x, weight_x in ((0, 1 - right), (1, right)):
            rows = torch.minimum((row.long() + step_y).clamp(min=0), height - 1)
            columns = torch.minimum((column.long() + step_x).clamp(min=0), width - 1)
            place = (first + rows * width + columns).reshape(-1)
            weight = weight_y * weight_x * pyramid.valid[place].reshape(y.shape)
            total += weight[..., None] * pyramid.values.index_select(0, place).reshape(total.shape).float()
            weights += weight
    # A view's pixel is valid where at least half of what it is made of is.
    values = total / weights.clamp(min=1e-6)[..., None]
    return values.permute(0, 3, 1, 2).contiguous(), (weights >= 0.5)[:, None]


def choose_level(boxes: Boxes, view_size: int, num_levels: int) -> Tensor:
    """The coarsest level at which a crop still has at least one pixel per pixel of the view."""
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
