"""A run of stage 2 that can be stepped: whole training steps, the same on constant views, and torchvision's model alone on as many images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from imagery2flow.encoder.features import embed
from imagery2flow.encoder.loading import ViewPart
from imagery2flow.encoder.trainer import Trainer
from imagery2flow.imagery.patchset import PatchSet, measure, whole_images
from imagery2flow.imagery.views import embedding_views
from imagery2flow.run.config import EncoderConfig
from imagery2flow.run.device import make_fabric
from imagery2flow.run.stage import Ledger


def draw_patches(num_patches: int, smallest_px: int = 20, largest_px: int = 120, num_bands: int = 3) -> PatchSet:
    """Patches of many sizes, a tenth of whose pixels are missing."""
    random = np.random.default_rng(0)
    height, width = random.integers(smallest_px, largest_px + 1, (2, num_patches))
    num_pixels = int((height * width).sum())
    values = random.integers(1, 255, (num_pixels, num_bands), dtype=np.uint8)
    valid = random.random(num_pixels) > 0.1
    names = tuple(f"band{number}" for number in range(1, num_bands + 1))
    first_pixel = np.concatenate([[0], np.cumsum(height * width)[:-1]])
    ids = tuple(f"{number:06d}" for number in range(num_patches))
    return PatchSet(ids, values, valid, first_pixel, height, width, measure(values, valid, names), whole_images(height, width))


class EncoderRun:
    """One backbone on some patches.

    Args:
        name: Backbone.
        patches: Patches in memory.
        batch_size: Patches of a step, of which the encoder sees two views each.
        view_size: Side of a view in pixels.
        settings: Further settings of stage 2.
    """

    def __init__(self, name: str, patches: PatchSet, batch_size: int, view_size: int, **settings: Any) -> None:
        config = EncoderConfig(data_path="generated", resnet=name, batch_size=batch_size, **settings)  # type: ignore[arg-type]
        self.fabric, self.choice = make_fabric(config.device, config.precision)
        self.ledger = Ledger("bench", quiet=True)
        self.trainer = Trainer(config, patches, view_size, self.fabric, self.ledger)
        self.trainer.prepare()
        self.steps = self.endless_steps()
        self.part = next(self.steps)
        self.num_patches = len(self.part.patches)
        self.images = self.trainer.loader.views(self.part)  # [2 * num_patches, num_bands, view_size, view_size]
        self.bare = self.bare_model(name, view_size)

    def endless_steps(self) -> Iterator[ViewPart]:
        """Steps with their views, epoch after epoch."""
        while True:
            batches = self.trainer.batches()
            for parts in self.trainer.loader.steps(self.trainer.jobs(batches, first=0)):
                yield parts[0]
            self.trainer.epoch += 1

    def bare_model(self, name: str, view_size: int) -> nn.Module:
        """Torchvision's model without its head, in the memory format that ours has."""
        is_vit = name == "vit_l_16"
        model = getattr(torchvision.models, name)(weights=None, **({"image_size": view_size} if is_vit else {}))
        setattr(model, "heads" if is_vit else "fc", nn.Identity())
        model = model.to(self.fabric.device).train()
        return model if is_vit else model.to(memory_format=torch.channels_last)

    def training_step(self) -> None:
        """A step as stage 2 makes it, with views of its own."""
        self.trainer.train_step([next(self.steps)])

    def constant_step(self) -> None:
        """The same step on the views of the first."""
        with mock.patch.object(self.trainer.loader, "views", lambda part: self.images):
            self.trainer.train_step([self.part])

    def bare_step(self) -> None:
        """The bare model forwards and backwards."""
        with self.fabric.autocast():
            loss = self.bare(self.images).float().square().mean()
        self.bare.zero_grad()
        loss.backward()

    def operations(self) -> int:
        """Floating-point operations of a bare step."""
        with FlopCounterMode(display=False) as counter:
            self.bare(self.images[:2]).square().mean().backward()
        return counter.get_total_flops() * len(self.images) // 2

    def embed(self, batch_size: int) -> None:
        """Stage 3's vectors of all patches."""
        with self.fabric.autocast():
            embed(self.trainer.model.module.backbone.eval(), self.trainer.loader.pyramid, self.trainer.view_size, batch_size)
        self.trainer.model.train()

    @torch.inference_mode()
    def embed_ready_batches(self, batch_size: int) -> Tensor:
        """The bare model's forward pass on as many ready images."""
        ready = embedding_views(self.trainer.loader.pyramid, torch.arange(batch_size), self.trainer.view_size)
        self.bare.eval()
        with self.fabric.autocast():
            found = [self.bare(ready).float() for _ in range(self.trainer.num_patches // batch_size)]
        self.bare.train()
        return torch.cat(found).cpu()
