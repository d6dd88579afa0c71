"""Stages 2 and 3 beside the same encoder without views, and beside torchvision's model alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torchvision
from generated import draw_patches
from timing import Row, Settings, Target, alternate, peak_mb
from torch import Tensor, nn

from imagery2flow.encoder import training
from imagery2flow.encoder.backbones import build_backbone
from imagery2flow.encoder.embeddings import embed
from imagery2flow.encoder.training import Trainer
from imagery2flow.imagery.views import build_pyramid, embedding_views
from imagery2flow.run.config import EncoderConfig
from imagery2flow.run.device import make_fabric
from imagery2flow.run.stage import Ledger

VIEW_PX = 64
DIM = 128  # of projected views
OF_CONSTANT_BATCH, OF_BARE_MODEL, OF_BARE_FORWARD = (Target(share, "%", at_least=True) for share in (95, 90, 95))
NT_XENT_MEMORY = Target(3000, "MB")
BATCHES = {"resnet18": 128, "resnet50": 64, "vit_l_16": 8}  # patches, of which a step sees two views each

NT_XENT_PREPARE = """
import torch
from imagery2flow.encoder.objectives import nt_xent
random = torch.Generator().manual_seed(0)
first, second = (torch.randn({count}, {dim}, generator=random).requires_grad_() for _ in range(2))
"""
NT_XENT_WORK = "nt_xent(first, second, 0.5)[0].backward()"


def make_trainer(backbone: str, num_patches: int) -> Trainer:
    """A run of stage 2 that has not begun, on generated patches that fill one batch."""
    config = EncoderConfig(data_path="none", resnet=backbone, batch_size=num_patches, projection_dim=DIM)  # type: ignore[arg-type]
    fabric, _ = make_fabric(config.device, config.precision)
    trainer = Trainer(config, draw_patches(num_patches), VIEW_PX, fabric, Ledger("bench", quiet=True))
    trainer.model.train()
    return trainer


def constant_batch(trainer: Trainer) -> Tensor:
    """Views that look like those of a step [num_patches, num_bands, VIEW_PX, VIEW_PX]."""
    shape = (trainer.num_patches, len(trainer.normalisation.band_names), VIEW_PX, VIEW_PX)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(trainer.fabric.device)


@contextmanager
def without_views(views: Tensor) -> Iterator[None]:
    """A step takes these views in place of random ones."""
    with mock.patch.object(training, "random_views", lambda *_: views):
        yield


def views(settings: Settings) -> list[Row]:
    """A training step with random views, and the same step fed one constant batch."""
    trainer = make_trainer("resnet18", settings.size(BATCHES["resnet18"], 8))
    batch, constant = torch.arange(trainer.num_patches), constant_batch(trainer)

    def fed() -> None:
        with without_views(constant):
            trainer.train_step(batch)

    drawn, still = alternate([lambda: trainer.train_step(batch), fed], 3 * settings.repeats)
    stage = f"2 step with views, resnet18, {VIEW_PX} px, {len(batch)} patches"
    return [rate_row(stage, "constant batch", 2 * len(batch), drawn, still, OF_CONSTANT_BATCH)]


def simclr(settings: Settings) -> list[Row]:
    """A whole training step, and torchvision's model forwards and backwards on as many images."""
    rows = []
    for name, count in BATCHES.items():
        if settings.quick and name == "vit_l_16":
            continue  # its 300 million weights alone take seconds
        trainer = make_trainer(name, settings.size(count, 4))
        batch = torch.arange(trainer.num_patches)
        whole, alone = alternate([lambda trainer=trainer, batch=batch: trainer.train_step(batch), bare_step(trainer)], settings.repeats)
        stage = f"2 SimCLR step, {name}, {VIEW_PX} px, {len(batch)} patches"
        rows.append(rate_row(stage, "bare torchvision forward and backward", 2 * len(batch), whole, alone, OF_BARE_MODEL))
    return rows


def bare_step(trainer: Trainer) -> Callable[[], float]:
    """Torchvision's model without its head, forwards and backwards on a ready batch of equal size, precision and memory format."""
    name, fabric = trainer.config.resnet, trainer.fabric
    model = getattr(torchvision.models, name)(weights=None, **({"image_size": VIEW_PX} if name == "vit_l_16" else {}))
    setattr(model, "heads" if name == "vit_l_16" else "fc", nn.Identity())
    images = constant_batch(trainer).repeat(2, 1, 1, 1)
    model = model.to(fabric.device).train()
    if name != "vit_l_16":
        model, images = model.to(memory_format=torch.channels_last), images.contiguous(memory_format=torch.channels_last)

    def step() -> float:
        with fabric.autocast():
            loss = model(images).float().square().mean()
        model.zero_grad()
        loss.backward()
        return loss.item()

    return step


def nt_xent(settings: Settings) -> list[Row]:
    """Peak memory of the loss alone, forwards and backwards."""
    rows = []
    for count in (settings.size(4096, 128), settings.size(8192, 256)):
        before, after = peak_mb(NT_XENT_PREPARE.format(count=count, dim=DIM), NT_XENT_WORK)
        stage = f"2 NT-Xent forward and backward, N = {count:,}, D = {DIM}, peak memory"
        rows.append(Row(stage, f"{after:,.0f} MB", f"{before:,.0f} MB before", after, NT_XENT_MEMORY))
    return rows


def embeddings(settings: Settings) -> list[Row]:
    """Stage 3's vectors of patches of many sizes, and a bare forward pass on ready batches."""
    count, batch_size = settings.size(2_048, 64), settings.size(256, 32)
    fabric, _ = make_fabric("auto", "auto")
    patches = draw_patches(count, largest_px=200)
    pyramid = build_pyramid(patches, patches.normalisation, VIEW_PX).to(fabric.device)
    encoder = build_backbone("resnet18", 3, VIEW_PX, seed=0)[0].eval().to(fabric.device)
    ready = embedding_views(pyramid, torch.arange(batch_size), VIEW_PX)

    def ours() -> None:
        with fabric.autocast():
            embed(encoder, pyramid, VIEW_PX, batch_size)

    @torch.inference_mode()
    def bare() -> None:
        with fabric.autocast():
            for _ in range(count // batch_size):
                encoder(ready).float().cpu()

    whole, alone = alternate([ours, bare], settings.repeats)
    return [rate_row(f"3 vectors of {count:,} patches, resnet18, {VIEW_PX} px", "bare forward pass", count, whole, alone, OF_BARE_FORWARD)]


def rate_row(stage: str, reference: str, images: int, ours_s: float, reference_s: float, target: Target) -> Row:
    """Throughputs, and ours as a share of the reference's."""
    return Row(
        stage, f"{images / ours_s:,.1f} images/s", f"{reference} {images / reference_s:,.1f} images/s", 100 * reference_s / ours_s, target
    )
