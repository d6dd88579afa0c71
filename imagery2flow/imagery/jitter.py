"""Random changes of brightness, contrast, colour and sharpness of views; every image draws its own.

Two kinds: per-band changes of normalised views of any number of bands (our default, weak), and the RGB recipe that SimCLR and the paper use
(Chen et al. 2020, appendix A: brightness, contrast, saturation and hue in random order, then grey), for three bands.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from imagery2flow.run.config import ViewConfig
from imagery2flow.run.errors import BandError

GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # ITU-R BT.601 luma of red, green, blue
BLUR_RADIUS = 3  # pixels; the kernel has twice as many and one
BLUR_SIGMA = (0.1, 2.0)  # pixels (Chen et al. 2020)
RGB_OPERATIONS = 4


def jitter_bands(views: Tensor, config: ViewConfig, generator: torch.Generator) -> Tensor:
    """Shifts, stretches, drops bands of, and blurs normalised views [batch, num_bands, height, width]."""
    batch, num_bands = views.shape[:2]
    device = views.device
    if config.shift > 0 or config.gain > 0:
        uniform = (2 * torch.rand(2, batch, num_bands, 1, 1, generator=generator) - 1).to(device)
        views = views * (1 + config.gain * uniform[0]) + config.shift * uniform[1]
    if config.band_drop_probability > 0:
        dropped = torch.rand(batch, generator=generator) < config.band_drop_probability
        band = torch.randint(num_bands, (batch,), generator=generator)
        keep = torch.ones(batch, num_bands)
        keep[dropped, band[dropped]] = 0
        views = views * keep[:, :, None, None].to(device)
    if config.blur_probability > 0:
        blurred = torch.rand(batch, generator=generator) < config.blur_probability
        sigma = BLUR_SIGMA[0] + (BLUR_SIGMA[1] - BLUR_SIGMA[0]) * torch.rand(batch, generator=generator)
        views = torch.where(blurred[:, None, None, None].to(device), blur(views, sigma.to(device)), views)
    return views


def blur(views: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with each image's own sigma [batch], in pixels; edges are repeated."""
    batch, num_bands, height, width = views.shape
    offset = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=views.device, dtype=views.dtype)
    kernel = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(num_bands, dim=0)  # [batch * num_bands, 2 * radius + 1]
    flat = views.reshape(1, batch * num_bands, height, width)
    flat = torch.nn.functional.pad(flat, (BLUR_RADIUS,) * 4, mode="replicate")
    flat = torch.nn.functional.conv2d(flat, kernel[:, None, :, None], groups=batch * num_bands)
    flat = torch.nn.functional.conv2d(flat, kernel[:, None, None, :], groups=batch * num_bands)
    return flat.reshape(views.shape)


def jitter_rgb(values: Tensor, highest: Tensor, config: ViewConfig, generator: torch.Generator) -> Tensor:
    """The published RGB recipe on values in the patches' units [batch, 3, height, width].

    Raises:
        BandError: There are not three bands.
    """
    if values.shape[1] != 3:
        raise BandError(
            f"RGB jitter needs the three bands red, green, blue but the patches have {values.shape[1]} bands; set --views.rgb_jitter 0 --views.grey_probability 0"
        )
    batch, device = len(values), values.device
    scale = highest[:, None, None]
    images = (values / scale).clamp(0, 1)
    strength = config.rgb_jitter
    spread = torch.tensor([strength, strength, strength, strength / 4])  # brightness, contrast, saturation, hue
    factors = ((2 * torch.rand(batch, RGB_OPERATIONS, generator=generator) - 1) * spread).to(device)
    order = torch.rand(batch, RGB_OPERATIONS, generator=generator).argsort(dim=1).to(device)
    jittered = (torch.rand(batch, generator=generator) < config.rgb_jitter_probability).to(device)
    grey = (torch.rand(batch, generator=generator) < config.grey_probability).to(device)
    if strength > 0:
        for turn in range(RGB_OPERATIONS):
            for number, operation in enumerate(OPERATIONS):
                chosen = jittered & (order[:, turn] == number)
                if chosen.any():
                    images[chosen] = operation(images[chosen], factors[chosen, number][:, None, None, None])
    images = torch.where(grey[:, None, None, None], luma(images).expand_as(images), images)
    return images * scale


def luma(images: Tensor) -> Tensor:
    """Grey value of RGB images [batch, 3, height, width]: [batch, 1, height, width]."""
    return (images * torch.tensor(GREY_WEIGHTS, device=images.device)[:, None, None]).sum(dim=1, keepdim=True)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiplies by 1 + factor."""
    return (images * (1 + factor)).clamp(0, 1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the image's mean grey value."""
    mean = luma(images).mean(dim=(2, 3), keepdim=True)
    return (mean + (1 + factor) * (images - mean)).clamp(0, 1)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the grey image."""
    grey = luma(images)
    return (grey + (1 + factor) * (images - grey)).clamp(0, 1)


def hue(images: Tensor, factor: Tensor) -> Tensor:
    """Turns the hue by ``factor`` of a full circle."""
    highest, position = images.max(dim=1)
    chroma = highest - images.min(dim=1).values
    safe = chroma.clamp(min=1e-8)
    red, green, blue = images.unbind(dim=1)
    sixth = torch.where(position == 0, (green - blue) / safe, torch.where(position == 1, 2 + (blue - red) / safe, 4 + (red - green) / safe))
    turned = (sixth / 6 + factor[:, :, 0]) % 1  # [batch, height, width]
    # A colour of hue h, value v and chroma c has the band n = 5, 3, 1 at v - c max(0, min(k, 4 - k, 1)) with k = (n + 6 h) mod 6.
    bands = []
    for n in (5, 3, 1):
        k = (n + 6 * turned) % 6
        bands.append(highest - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(bands, dim=1)


OPERATIONS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (brightness, contrast, saturation, hue)
