#!/usr/bin/env python
"""How near to the limit of one GPU the encoder and the flow model train; within ten minutes.

    python benchmarks/gpu.py                    on an NVIDIA GPU
    python benchmarks/gpu.py --size toy         anything, in seconds: to see that it runs

Everything is generated. Needs torch, torchvision, torch_geometric, lightning-fabric, numpy, pandas, scipy and scikit-learn; no raster or vector library.
The share of the peak is the floating-point operations of the bare network, counted by torch, times the measured rate, divided by what the card does on
one large bf16 matrix product in the same run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from imagery2flow.encoder.compiling import wait  # noqa: E402
from imagery2flow.encoder.embeddings import embed  # noqa: E402
from imagery2flow.encoder.trainer import Trainer  # noqa: E402
from imagery2flow.imagery.patchset import Normalisation, PatchSet  # noqa: E402
from imagery2flow.run.config import EncoderConfig  # noqa: E402
from imagery2flow.run.device import make_fabric  # noqa: E402
from imagery2flow.run.stage import Ledger  # noqa: E402

NUM_BANDS, EPOCHS = 3, 120
M1_UNITS, M1_PAIRS, NEIGHBOURS = 4_953, 120_559, 6  # of the paper's largest metropolitan area


@dataclass(frozen=True)
class Size:
    """How large everything is.

    Attributes:
        encoders: Backbones with the patches of a batch (each is seen twice).
        view_size: Side of a view in pixels.
        patch_side: Smallest and largest side of a patch in pixels.
        num_patches: Patches that are held.
        steps: Steps that are timed, after some to warm up.
        matrix: Side of the matrices that measure the peak.
        num_units, num_pairs, width: Of the flow model.
    """

    encoders: dict[str, int]
    view_size: int
    patch_side: tuple[int, int]
    num_patches: int
    steps: int
    matrix: int
    num_units: int
    num_pairs: int
    width: int


SIZES = {
    "full": Size({"vit_l_16": 128, "resnet50": 256, "resnet18": 512}, 224, (80, 300), M1_UNITS, 10, 8192, M1_UNITS, M1_PAIRS, 512),
    "toy": Size({"resnet18": 4}, 32, (9, 40), 24, 2, 256, 60, 300, 16),
}


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Mean wall time after two calls to warm up."""
    for _ in range(2):
        work()
    wait(device)
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(device)
    return (time.perf_counter() - started) / repeats


def matrix_peak(side: int, device: torch.device) -> float:
    """Floating-point operations a second of one bf16 product of random square matrices."""
    first, second = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / seconds_of(lambda: first @ second, device, 20)


def generate_patches(size: Size) -> PatchSet:
    """Random uint16 patches of many sizes, some pixels missing."""
    random = np.random.default_rng(0)
    height, width = random.integers(*size.patch_side, size=(2, size.num_patches))
    num_pixels = int((height * width).sum())
    values = np.resize(random.integers(1, 10_000, (min(num_pixels, 1_000_003), NUM_BANDS), dtype=np.uint16), (num_pixels, NUM_BANDS))
    valid = np.resize(random.random(min(num_pixels, 1_000_003)) < 0.9, num_pixels)
    first_pixel = np.concatenate([[0], np.cumsum(height * width)[:-1]])
    names, constant = tuple(f"band{number}" for number in range(NUM_BANDS)), (2_900.0,) * NUM_BANDS
    normalisation = Normalisation(names, (5_000.0,) * NUM_BANDS, constant, (10_000.0,) * NUM_BANDS, "uint16")
    return PatchSet(tuple(f"{number:05d}" for number in range(size.num_patches)), values, valid, first_pixel, height, width, normalisation)


class EncoderBenchmark:
    """One backbone: the bare network, the step on constant views, the step as it is trained, and embedding."""

    def __init__(self, name: str, batch_size: int, size: Size, patches: PatchSet, device: str, folder: str, compile_mode: str) -> None:
        self.size = size
        self.fabric, self.choice = make_fabric(device, "auto")
        settings: dict[str, Any] = {"view_size": size.view_size, "batch_size": batch_size, "total_epoch": EPOCHS, "model_path": folder}
        config = EncoderConfig(data_path="generated", resnet=name, compile=compile_mode, **settings)
        self.trainer = Trainer(config, patches, size.view_size, self.fabric, Ledger("gpu", quiet=True))
        self.trainer.model.train()
        self.trainer.choose_encoder()
        self.steps = self.endless_steps()
        self.num_patches, self.parts = next(self.steps)
        self.constant = self.trainer.loader.views(self.parts[0])  # [2n, num_bands, view_size, view_size]

    def endless_steps(self) -> Iterator[tuple[int, Any]]:
        """Steps with their views, epoch after epoch."""
        while True:
            batches = self.trainer.batches()
            for batch, parts in zip(batches, self.trainer.loader.steps(self.trainer.jobs(batches)), strict=True):
                yield len(batch), parts
            self.trainer.epoch += 1

    def bare_pass(self) -> None:
        """The backbone alone, forward and backward."""
        backbone: nn.Module = self.trainer.model.module
        with self.fabric.autocast():
            backbone.encode(self.constant).float().square().mean().backward()
        self.trainer.optimizer.zero_grad()

    def operations(self) -> int:
        """Floating-point operations of the bare pass."""
        with FlopCounterMode(display=False) as counter:
            features = self.trainer.model.module.backbone(self.constant[:2])
            features.square().mean().backward()
        self.trainer.optimizer.zero_grad()
        return counter.get_total_flops() * len(self.constant) // 2

    def training_step(self) -> None:
        """A step as stage 2 makes it."""
        self.trainer.train_step(*next(self.steps))

    def embedding_seconds(self) -> tuple[float, float]:
        """Of one batch: embedding whole patches, and the bare forward pass."""
        count = min(len(self.constant), self.trainer.num_patches)
        backbone, pyramid = self.trainer.model.module.backbone.eval(), self.trainer.loader.pyramid

        def bare() -> Tensor:
            with torch.inference_mode():
                return backbone(self.constant[:count])

        def ours() -> object:
            return embed(backbone, pyramid, self.size.view_size, count, torch.arange(count))

        with self.fabric.autocast():
            return seconds_of(ours, self.fabric.device, self.size.steps), seconds_of(bare, self.fabric.device, self.size.steps)
