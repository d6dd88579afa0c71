"""Random changes of brightness, contrast, colour and sharpness of views; every image draws its own.

Two kinds: per-band changes of normalised views of any number of bands (our default, weak), and the RGB recipe that SimCLR and the paper use
(Chen et al. 2020, appendix A: brightness, contrast, saturation and hue in random order, then grey), for three bands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from imagery2flow.run.config import ViewConfig
from imagery2flow.run.device import send
from imagery2flow.run.errors import BandError

GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # ITU-R BT.601 luma of red, green, blue
BLUR_RADIUS = 3  # pixels; the kernel has twice as many and one
BLUR_SIGMA = (0.1, 2.0)  # pixels (Chen et al. 2020)
RGB_OPERATIONS = 4


@dataclass(frozen=True)
class Jitter:
    """The random numbers of a batch's changes, on the CPU; of a change that is switched off there are none.

    Attributes:
        gain: Relative change of contrast per band [batch, num_bands].
        shift: Offset per band, in standard deviations [batch, num_bands].
        kept: 0 for a band that is dropped, else 1 [batch, num_bands].
        sigma: Of the blur, in pixels; 0 is none [batch].
        factors: Changes of brightness, contrast, saturation and hue [batch, 4].
        order: In which these are made; -1 throughout for images that keep their colours [batch, 4].
        grey: Whether an image becomes grey [batch].
    """

    gain: Tensor | None = None
    shift: Tensor | None = None
    kept: Tensor | None = None
    sigma: Tensor | None = None
    factors: Tensor | None = None
    order: Tensor | None = None
    grey: Tensor | None = None

    @property
    def is_rgb(self) -> bool:
        """Whether the colours of RGB images change."""
        return self.order is not None

    def select(self, chosen: Tensor) -> Jitter:
        """Those of some of the images."""
        return Jitter(**{name: None if part is None else part[chosen] for name, part in vars(self).items()})


def draw_jitter(batch: int, num_bands: int, config: ViewConfig, generator: torch.Generator) -> Jitter:
    """Draws the random numbers of a batch."""
    drawn: dict[str, Tensor] = {}
    if config.rgb_jitter > 0 or config.grey_probability > 0:
        strength = config.rgb_jitter
        spread = torch.tensor([strength, strength, strength, strength / 4])  # brightness, contrast, saturation, hue
        drawn["factors"] = (2 * torch.rand(batch, RGB_OPERATIONS, generator=generator) - 1) * spread
        drawn["order"] = torch.rand(batch, RGB_OPERATIONS, generator=generator).argsort(dim=1)
        jittered = (torch.rand(batch, generator=generator) < config.rgb_jitter_probability) & (strength > 0)
        drawn["order"][~jittered] = -1
        drawn["grey"] = torch.rand(batch, generator=generator) < config.grey_probability
    if config.shift > 0 or config.gain > 0:
        uniform = 2 * torch.rand(2, batch, num_bands, generator=generator) - 1
        drawn["gain"], drawn["shift"] = config.gain * uniform[0], config.shift * uniform[1]
    if config.band_drop_probability > 0:
        dropped = torch.rand(batch, generator=generator) < config.band_drop_probability
        band = torch.randint(num_bands, (batch,), generator=generator)
        drawn["kept"] = torch.ones(batch, num_bands)
        drawn["kept"][dropped, band[dropped]] = 0
    if config.blur_probability > 0:
        blurred = torch.rand(batch, generator=generator) < config.blur_probability
        sigma = BLUR_SIGMA[0] + (BLUR_SIGMA[1] - BLUR_SIGMA[0]) * torch.rand(batch, generator=generator)
        drawn["sigma"] = sigma * blurred
    return Jitter(**drawn)


def jitter_bands(views: Tensor, jitter: Jitter) -> Tensor:
    """Shifts, stretches, drops bands of, and blurs normalised views [batch, num_bands, height, width]."""
    device = views.device
    if jitter.gain is not None and jitter.shift is not None:
        gain, shift = (send(part[:, :, None, None], device) for part in (jitter.gain, jitter.shift))
        views = torch.addcmul(shift, views, 1 + gain)
    if jitter.kept is not None:
        views = views * send(jitter.kept[:, :, None, None], device)
    if jitter.sigma is not None:
        blurred = torch.nonzero(jitter.sigma)[:, 0]
        if len(blurred):
            place, views = send(blurred, device), views.clone()
            views[place] = blur(views[place], send(jitter.sigma[blurred], device))
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


def jitter_rgb(values: Tensor, highest: Tensor, jitter: Jitter) -> Tensor:
    """The published RGB recipe on values in the patches' units [batch, 3, height, width]; ``highest`` [3, 1, 1] is what 1 stands for.

    Raises:
        BandError: There are not three bands.
    """
    if values.shape[1] != 3:
        raise BandError(
            f"RGB jitter needs the three bands red, green, blue but the patches have {values.shape[1]} bands; set --views.rgb_jitter 0 --views.grey_probability 0"
        )
    assert jitter.factors is not None and jitter.order is not None and jitter.grey is not None
    device = values.device
    images = (values / highest).clamp(0, 1)
    for turn in range(RGB_OPERATIONS):
        for number, operation in enumerate(OPERATIONS):
            chosen = torch.nonzero(jitter.order[:, turn] == number)[:, 0]  # on the CPU: a GPU need not be waited for
            if len(chosen):
                place, factor = send(chosen, device), send(jitter.factors[chosen, number][:, None, None, None], device)
                images[place] = operation(images[place], factor)
    grey = send(torch.nonzero(jitter.grey)[:, 0], device)
    images[grey] = luma(images[grey]).expand(-1, 3, -1, -1)
    return images * highest


def luma(images: Tensor) -> Tensor:
    """Grey value of RGB images [batch, 3, height, width]: [batch, 1, height, width]."""
    red, green, blue = (weight * band for weight, band in zip(GREY_WEIGHTS, images.unbind(dim=1), strict=True))
    return (red + green + blue)[:, None]


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
