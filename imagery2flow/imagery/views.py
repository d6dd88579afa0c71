"""From patches of any size to a batch of equally large views, on the device: crops for training, whole patches for embeddings.

Three steps: crops and jitter are drawn on the CPU (``draw_views``), the pixels that they show are cut out where those are kept (``cut``), and resampled
where the encoder is (``render``), bilinearly. A crop that is larger than the view is read from a coarser level of the pyramid, against aliasing. Missing
pixels have no weight, and become 0 after normalisation, which is the mean of the band.

Shapes: a batch of views is [batch, num_bands, view_size, view_size]. Each image draws its own random numbers, from an explicit generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from imagery2flow.imagery.jitter import Jitter, draw_jitter, jitter_bands, jitter_rgb
from imagery2flow.imagery.patchset import Normalisation, PatchSet
from imagery2flow.imagery.pyramid import Pyramid, as_float
from imagery2flow.run.config import ViewConfig
from imagery2flow.run.device import send

SMALL_VIEW, LARGE_VIEW, LARGEST_SMALL_PATCH = 64, 224, 128
ASPECT_RATIO = 4 / 3  # crops are at most this much wider than high, or higher than wide (RandomResizedCrop's default)
SMALLEST_TILE, COARSE_STEPS_TO = 8, 64
# A pixel of a view that lies half on valid pixels is valid, whatever way a device rounds.
HALF = 0.5 - 1e-4


@dataclass(frozen=True)
class Boxes:
    """Which part of which patch a view shows: corner in the patch and size in pixels of level 0 [batch], and the orientation [batch] 0..7."""

    patch: Tensor
    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    orientation: Tensor

    def select(self, chosen: Tensor) -> Boxes:
        """Some of the boxes."""
        return Boxes(*(part[chosen] for part in vars(self).values()))


@dataclass(frozen=True)
class Drawn:
    """All random numbers of a batch of views."""

    boxes: Boxes
    jitter: Jitter

    def select(self, chosen: Tensor) -> Drawn:
        """Those of some of the views."""
        return Drawn(self.boxes.select(chosen), self.jitter.select(chosen))


@dataclass(frozen=True)
class Axis:
    """Where the rows of views, or their columns, lie in their images.

    Attributes:
        first: First row of the image that the view needs [batch].
        last: Last row of the patch [batch].
        stride: From one row of the image to the next, in pixels as they are stored [batch].
        extent: Rows that the view needs [batch].
        position: Centres of the view's rows, in rows from the first [batch, view_size].
    """

    first: Tensor
    last: Tensor
    stride: Tensor
    extent: Tensor
    position: Tensor

    def select(self, chosen: Tensor) -> Axis:
        """Those of some of the views."""
        return Axis(*(part[chosen] for part in vars(self).values()))

    def offsets(self, side: int) -> Tensor:
        """Places of ``side`` rows from the first, the patch's last row repeated [batch, side]."""
        rows = self.first[:, None] + torch.arange(side)
        return torch.minimum(rows, self.last[:, None]) * self.stride[:, None]


@dataclass(frozen=True)
class Tiles:
    """The pixels that some views of a batch need, as stored, in squares of one side.

    Attributes:
        view: Numbers of the views in the batch [n].
        values: [n, side, side, num_bands].
        valid_share: [n, side, side].
        vertical: Centres of the view's rows, in rows of the tile [n, view_size].
        horizontal: Centres of its columns [n, view_size].
        is_full: Whether all pixels of their patches are valid, as far as is known without a look at the device.
    """

    view: Tensor
    values: Tensor
    valid_share: Tensor
    vertical: Tensor
    horizontal: Tensor
    is_full: bool

    def pinned(self) -> Tiles:
        """The same in memory that a GPU reads by itself."""
        return self.map(Tensor.pin_memory)

    def to(self, device: torch.device) -> Tiles:
        """The same on another device."""
        return self.map(lambda part: send(part, device))

    def map(self, change: Callable[[Tensor], Tensor]) -> Tiles:
        """The same with every tensor changed."""
        return Tiles(
            change(self.view), change(self.values), change(self.valid_share), change(self.vertical), change(self.horizontal), self.is_full
        )


def choose_view_size(patches: PatchSet) -> int:
    """Side of a view: 64 where the median patch is at most 128 pixels wide, else 224 as published."""
    side = np.median(patches.frames[:, 3:].max(axis=1))
    return SMALL_VIEW if side <= LARGEST_SMALL_PATCH else LARGE_VIEW


def draw_views(pyramid: Pyramid, patch: Tensor, config: ViewConfig, generator: torch.Generator) -> Drawn:
    """The random numbers of one view of each patch of a batch, on the CPU."""
    return Drawn(draw_boxes(pyramid, patch, config, generator), draw_jitter(len(patch), pyramid.num_bands, config, generator))


def whole_patches(pyramid: Pyramid, patch: Tensor) -> Boxes:
    """Boxes that show whole patches, upright: what an embedding is made from."""
    zero = torch.zeros(len(patch))
    return Boxes(patch, zero, zero, pyramid.frames[patch, 3].float(), pyramid.frames[patch, 4].float(), zero.long())


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
    patch_height, patch_width = pyramid.frames[patch, 3].float(), pyramid.frames[patch, 4].float()
    area = patch_height * patch_width * (config.crop_min_share + (1 - config.crop_min_share) * uniform[:, 0])
    ratio = torch.exp((2 * uniform[:, 1] - 1) * float(np.log(ASPECT_RATIO)))
    width = torch.minimum((area * ratio).sqrt().clamp(min=1), patch_width)
    height = torch.minimum((area / ratio).sqrt().clamp(min=1), patch_height)
    if config.crop_min_share == 1:  # the whole patch, whatever its aspect ratio
        height, width = patch_height, patch_width
    chosen = choose_valid_pixel(pyramid, patch, uniform[:, 2])
    row, column = chosen // patch_width.long(), chosen % patch_width.long()
    # The corner lies so that the crop holds the chosen pixel's centre and stays within the patch.
    top = around(row + 0.5, height, patch_height, uniform[:, 3])
    left = around(column + 0.5, width, patch_width, uniform[:, 4])
    return Boxes(patch, top, left, height, width, draw_orientation(uniform[:, 5], config))


def choose_valid_pixel(pyramid: Pyramid, patch: Tensor, uniform: Tensor) -> Tensor:
    """Position (row-major) of a random valid pixel in each patch [batch]."""
    listed = pyramid.first_valid[patch + 1] - pyramid.first_valid[patch]
    is_full = listed == 0
    count = torch.where(is_full, pyramid.frames[patch, 3] * pyramid.frames[patch, 4], listed)
    number = torch.minimum((uniform * count).long(), count - 1)
    if bool(is_full.all()):
        return number
    place = torch.where(is_full, 0, pyramid.first_valid[patch] + number)
    return torch.where(is_full, number, pyramid.valid_pixel[place].long())


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


def cut(pyramid: Pyramid, boxes: Boxes, view_size: int) -> list[Tiles]:
    """Takes the pixels that views need out of the pyramid, on its device; views of like size and level stand together."""
    level = choose_level(boxes, view_size, len(pyramid.values))
    scale = 0.5 ** level.double()
    image, top, left, height, width = pyramid.frames[boxes.patch].T
    first_pixel, stride = pyramid.first_pixel[image, level], pyramid.width[image, level].double()
    # Start and length of the crop, first row and end of the patch, stride of its pixels [5, batch], along the image's rows and along its columns.
    rows = torch.stack([(boxes.top.double() + top) * scale, boxes.height * scale, top * scale, (top + height) * scale, stride])
    columns = torch.stack(
        [(boxes.left.double() + left) * scale, boxes.width * scale, left * scale, (left + width) * scale, torch.ones_like(scale)]
    )
    transposed = boxes.orientation & 4 > 0
    vertical = locate(torch.where(transposed, columns, rows), boxes.orientation & 2 > 0, view_size)
    horizontal = locate(torch.where(transposed, rows, columns), boxes.orientation & 1 > 0, view_size)
    side = tile_side(torch.maximum(vertical.extent, horizontal.extent))
    tiles = []
    is_full = pyramid.first_valid[boxes.patch + 1] == pyramid.first_valid[boxes.patch]
    for number, size in torch.unique(torch.stack([level, side]), dim=1).T.tolist():
        view = torch.nonzero((level == number) & (side == size))[:, 0]
        down, right = vertical.select(view), horizontal.select(view)
        top, below, beside = (send(part, pyramid.device) for part in (first_pixel[view], down.offsets(size), right.offsets(size)))
        place = (top[:, None, None] + below[:, :, None] + beside[:, None, :]).reshape(-1)  # [n * size * size]
        values = pyramid.values[number].index_select(0, place).reshape(len(view), size, size, -1)
        share = pyramid.valid_share[number].index_select(0, place).reshape(len(view), size, size)
        tiles.append(Tiles(view, values, share, down.position, right.position, bool(is_full[view].all())))
    return tiles


def locate(crop: Tensor, flipped: Tensor, view_size: int) -> Axis:
    """Finds the rows of images that views need.

    Args:
        crop: Start and length of the crop, first row and end of the patch, stride of its pixels: [5, batch].
        flipped: Whether the view begins at the crop's end [batch].
        view_size: Pixels of a view.
    """
    start, length, lowest, end, stride = crop
    lowest, last = lowest.floor(), end.ceil() - 1
    centres = torch.arange(view_size) + 0.5
    centres = torch.where(flipped[:, None], view_size - centres, centres)
    position = start[:, None] + centres * (length / view_size)[:, None] - 0.5  # [batch, view_size]
    position = torch.minimum(torch.maximum(position, lowest[:, None]), last[:, None])  # the outermost rows reach to the patch's border
    first = position.amin(dim=1).floor()
    extent = position.amax(dim=1).ceil() - first + 1
    return Axis(first.long(), last.long(), stride.long(), extent.long(), (position - first[:, None]).float())


def tile_side(extent: Tensor) -> Tensor:
    """Side of the tile for crops of that extent: 8, 12, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, ..., so that few shapes occur and little is padded."""
    extent = extent.clamp(min=SMALLEST_TILE)
    power = 2 ** torch.log2(extent.double()).ceil().long()
    step = torch.where(power <= SMALLEST_TILE, power, torch.where(power <= COARSE_STEPS_TO, power // 4, power // 8))
    return -(-extent // step) * step


def render(tiles: list[Tiles], is_uint16: bool) -> tuple[Tensor, Tensor]:
    """Resamples tiles to views.

    Returns:
        Values in the patches' units, averaged over valid pixels only [batch, num_bands, view_size, view_size], and whether a view's pixel
        is valid [batch, 1, view_size, view_size]: at least half of what it is made of is a valid pixel, or a block with one.
    """
    batch, view_size, num_bands = sum(len(part.view) for part in tiles), tiles[0].vertical.shape[1], tiles[0].values.shape[-1]
    device = tiles[0].values.device
    values = torch.empty((batch, num_bands, view_size, view_size), device=device, memory_format=torch.channels_last)
    valid = torch.empty((batch, 1, view_size, view_size), dtype=torch.bool, device=device)
    for part in tiles:
        place = send(part.view, device)
        grid = sampling_grid(send(part.vertical, device), send(part.horizontal, device), part.values.shape[1])
        if part.is_full:
            values[place], valid[place] = resample(as_float(part.values, is_uint16), grid), True
            continue
        share = part.valid_share.float()[..., None]  # [n, side, side, 1]
        weight = resample(share, grid)
        values[place] = resample(as_float(part.values, is_uint16) * share, grid) / weight.clamp(min=1e-6)
        # A block with any valid pixel counts as valid, so that a narrow unit does not vanish where it is shown at a coarse level.
        whole_pixels = part.valid_share.dtype == torch.bool  # of which all is valid, or nothing
        valid[place] = (weight if whole_pixels else resample((share > 0).float(), grid)) >= HALF
    return values, valid


def resample(tiles: Tensor, grid: Tensor) -> Tensor:
    """Bilinear means of tiles [n, side, side, num_layers] at the places of a grid: [n, num_layers, view_size, view_size]."""
    return nn.functional.grid_sample(tiles.permute(0, 3, 1, 2), grid, mode="bilinear", padding_mode="border", align_corners=True)


def sampling_grid(vertical: Tensor, horizontal: Tensor, side: int) -> Tensor:
    """Where each pixel of a view lies in its tile as ``grid_sample`` has it, across before down, -1 to 1 from the first pixel to the last.

    Args:
        vertical: Of the view's rows, in pixels from the first [n, view_size].
        horizontal: Of its columns [n, view_size].
        side: Pixels of a tile.

    Returns:
        [n, view_size, view_size, 2].
    """
    down, across = (2 * position / (side - 1) - 1 for position in (vertical, horizontal))
    return torch.stack(torch.broadcast_tensors(across[:, None, :], down[:, :, None]), dim=-1)


def choose_level(boxes: Boxes, view_size: int, num_levels: int) -> Tensor:
    """The coarsest level at which the longer side of a crop still has at least one pixel per pixel of the view."""
    pixels_per_pixel = torch.maximum(boxes.height, boxes.width) / view_size
    return torch.log2(pixels_per_pixel.clamp(min=1)).floor().long().clamp(max=num_levels - 1)


@lru_cache(maxsize=8)
def statistics_on(device: torch.device, normalisation: Normalisation) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation and largest value of the bands on a device [num_bands, 1, 1] each; sent once."""
    parts = (normalisation.mean, normalisation.std, normalisation.highest)
    mean, std, highest = (torch.tensor(part, dtype=torch.float32)[:, None, None].to(device) for part in parts)
    return mean, std, highest


def normalise(values: Tensor, valid: Tensor, normalisation: Normalisation) -> Tensor:
    """(value - mean) / std per band, and 0 where missing: [batch, num_bands, view_size, view_size]."""
    mean, std, _ = statistics_on(values.device, normalisation)
    return ((values - mean) / std).mul_(valid)


def jittered_views(tiles: list[Tiles], drawn: Drawn, pyramid: Pyramid) -> Tensor:
    """The views of tiles, normalised and jittered: [batch, num_bands, view_size, view_size]."""
    values, valid = render(tiles, pyramid.is_uint16)
    if drawn.jitter.is_rgb:
        values = jitter_rgb(values, statistics_on(values.device, pyramid.normalisation)[2], drawn.jitter)
    return jitter_bands(normalise(values, valid, pyramid.normalisation), drawn.jitter).mul_(valid)


def random_views(pyramid: Pyramid, patch: Tensor, config: ViewConfig, view_size: int, generator: torch.Generator) -> Tensor:
    """One random view of each patch, normalised: [batch, num_bands, view_size, view_size]."""
    drawn = draw_views(pyramid, patch, config, generator)
    return jittered_views(cut(pyramid, drawn.boxes, view_size), drawn, pyramid)


def embedding_views(pyramid: Pyramid, patch: Tensor, view_size: int) -> Tensor:
    """The whole of each patch, normalised, without randomness: [batch, num_bands, view_size, view_size]."""
    tiles = cut(pyramid, whole_patches(pyramid, patch), view_size)
    return normalise(*render(tiles, pyramid.is_uint16), pyramid.normalisation)
