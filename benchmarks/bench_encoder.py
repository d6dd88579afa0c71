"""Stages 2 and 3 beside the same encoder without views, and beside torchvision's model alone."""

from __future__ import annotations

from encoder_run import EncoderRun, draw_patches
from timing import Row, Settings, Target, alternate, peak_mb

from imagery2flow.run.config import EmbeddingConfig

VIEW_PX = 64
DIM = 128  # of projected views
OF_CONSTANT_BATCH, OF_BARE_MODEL, OF_BARE_FORWARD = (Target(share, "%", at_least=True) for share in (95, 90, 95))
NT_XENT_MEMORY = Target(3000, "MB")
BATCHES = {"resnet18": 128, "resnet50": 64, "vit_l_16": 16}  # patches, of which a step sees two views each

NT_XENT_PREPARE = """
import torch
from imagery2flow.encoder.objectives import nt_xent
random = torch.Generator().manual_seed(0)
first, second = (torch.randn({count}, {dim}, generator=random).requires_grad_() for _ in range(2))
"""
NT_XENT_WORK = "nt_xent(first, second, 0.5)[0].backward()"


def views(settings: Settings) -> list[Row]:
    """A training step with random views, and the same step fed one constant batch."""
    count = settings.size(BATCHES["resnet18"], 8)
    run = EncoderRun("resnet18", draw_patches(4 * count), count, VIEW_PX)
    drawn, still = alternate([run.training_step, run.constant_step], 3 * settings.repeats)
    stage = f"2 step with views, resnet18, {VIEW_PX} px, {count} patches"
    return [rate_row(stage, "constant batch", 2 * count, drawn, still, OF_CONSTANT_BATCH)]


def simclr(settings: Settings) -> list[Row]:
    """A whole training step, and torchvision's model forwards and backwards on as many images."""
    rows = []
    for name, full in BATCHES.items():
        if settings.quick and name == "vit_l_16":
            continue  # its 300 million weights alone take seconds
        count = settings.size(full, 4)
        run = EncoderRun(name, draw_patches(4 * count), count, VIEW_PX)
        whole, alone = alternate([run.training_step, run.bare_step], settings.repeats)
        stage = f"2 SimCLR step, {name}, {VIEW_PX} px, {count} patches"
        rows.append(rate_row(stage, "bare torchvision forward and backward", 2 * count, whole, alone, OF_BARE_MODEL))
    return rows


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
    precision = EmbeddingConfig(data_path="none", output_path="none.csv").precision  # of stage 3 by default
    run = EncoderRun("resnet18", draw_patches(count), batch_size, VIEW_PX, precision=precision)
    whole, alone = alternate([lambda: run.embed(batch_size), lambda: run.embed_ready_batches(batch_size)], settings.repeats)
    return [
        rate_row(
            f"3 vectors of {count:,} patches of many sizes, resnet18, {VIEW_PX} px, {precision}",
            "bare forward pass",
            count,
            whole,
            alone,
            OF_BARE_FORWARD,
        )
    ]


def rate_row(stage: str, reference: str, images: int, ours_s: float, reference_s: float, target: Target) -> Row:
    """Throughputs, and ours as a share of the reference's."""
    return Row(
        stage, f"{images / ours_s:,.1f} images/s", f"{reference} {images / reference_s:,.1f} images/s", 100 * reference_s / ours_s, target
    )
