#!/usr/bin/env python
"""How near to the limit of one GPU the encoder and the flow model train; takes less than ten minutes.

    python benchmarks/gpu.py                    on an NVIDIA GPU
    python benchmarks/gpu.py --size toy         on anything, in seconds: to see that it runs

Everything is generated. Needs torch, torchvision, torch_geometric, lightning-fabric, numpy and pandas, but no raster or vector library. The share of the
peak is the floating-point operations of the bare network, counted by torch, times the measured rate, divided by what the card does on one large bf16
matrix product in the same run.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from encoder_run import EncoderRun, draw_patches
from timing import machine, print_table

from imagery2flow.encoder.compiling import seconds
from imagery2flow.flows.attention import GraphTensors
from imagery2flow.flows.epochs import NetworkTraining, PairTensors
from imagery2flow.flows.model import FlowModel
from imagery2flow.imagery.patchset import PatchSet
from imagery2flow.run.device import choose_device
from imagery2flow.run.flow_config import FlowTrainingConfig
from imagery2flow.run.stage import source_commit

M1_UNITS, M1_PAIRS = 4_953, 120_559  # of the paper's largest metropolitan area
EPOCHS, NEIGHBOURS = 120, 6
LEAST_SHARE_OF_PEAK = {"vit_l_16": 45}  # percent
WARM_UP = 3
ENCODER_HEADERS = (
    "encoder", "patches a step", "images/s", "of the step on constant views", "of torchvision alone", "of the matrix peak", "120 epochs of M1", "vectors/s",
    "of the bare forward pass",
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How large everything is.

    Attributes:
        encoders: Backbones, with the patches of a step (each is seen twice).
        view_size: Side of a view in pixels.
        patch_side: Smallest and largest side of a patch in pixels.
        num_patches: Patches that are held.
        steps: Steps that are timed.
        matrix: Side of the matrices that measure the peak.
        num_units: Units of the flow model.
        num_pairs: Its pairs.
        width: Its width.
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
    "full": Size({"vit_l_16": 128, "resnet50": 256, "resnet18": 512}, 224, (80, 300), M1_UNITS, 20, 8192, M1_UNITS, M1_PAIRS, 512),
    "toy": Size({"resnet18": 8}, 32, (9, 40), 32, 2, 256, 60, 300, 16),
}


def matrix_peak(side: int, device: torch.device) -> float:
    """Floating-point operations a second of one bf16 product of random square matrices."""
    first, second = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / seconds(lambda: first @ second, device, 20, WARM_UP)


def encoder_row(name: str, batch_size: int, size: Size, patches: PatchSet, peak: float, settings: argparse.Namespace) -> list[str]:
    """Measures one backbone; the cells of ENCODER_HEADERS."""
    with tempfile.TemporaryDirectory() as folder:
        flags = {"device": settings.device, "total_epoch": EPOCHS, "model_path": folder, "compile": settings.compile}
        run = EncoderRun(name, patches, batch_size, size.view_size, **flags)
    device, images = run.fabric.device, len(run.images)
    for note in [run.choice, *run.ledger.notes]:
        print(f"{name}: {note}", flush=True)
    trained_s, constant_s, bare_s = (
        seconds(step, device, size.steps, WARM_UP) for step in (run.training_step, run.constant_step, run.bare_step)
    )
    share = run.operations() / trained_s / peak
    embedded_s = seconds(lambda: run.embed(batch_size), device, 1)
    ready_s = seconds(lambda: run.embed_ready_batches(batch_size), device, 1)
    num_ready = size.num_patches // batch_size * batch_size
    bound = LEAST_SHARE_OF_PEAK.get(name)
    verdict = "" if bound is None else f" (target {bound} %: {'met' if share >= bound / 100 else 'MISSED'})"
    whole_run_min = EPOCHS * 2 * M1_UNITS / (images / trained_s) / 60
    return [
        f"{name}, {size.view_size} px", str(run.num_patches), f"{images / trained_s:,.0f}", f"{constant_s / trained_s:.1%}", f"{bare_s / trained_s:.1%}",
        f"{share:.1%}{verdict}", f"{whole_run_min:.1f} min", f"{size.num_patches / embedded_s:,.0f}",
        f"{size.num_patches / embedded_s / (num_ready / ready_s):.1%}",
    ]  # fmt: skip


def flow_epoch(size: Size, device: torch.device) -> str:
    """An epoch of the published network: three layers, balanced loss, random features, neighbours and flows."""
    config = FlowTrainingConfig(
        region=["generated"], node_feats_path=["none"], embedding_size=size.width, num_hidden_layers=2, loss="balanced_mse"
    )
    random = torch.Generator().manual_seed(0)
    features = torch.randn(size.num_units, 512, generator=random)
    edge = torch.stack([torch.randint(size.num_units, (NEIGHBOURS * size.num_units,), generator=random) for _ in range(2)])
    graph = GraphTensors(*(part.to(device) for part in (features, edge, torch.rand(edge.shape[1], 1, generator=random))))
    ends = torch.randint(size.num_units, (2, size.num_pairs), generator=random)
    count = torch.randint(11, 300, (size.num_pairs,), generator=random).float()
    pairs = PairTensors(
        *(part.to(device) for part in (*ends, torch.rand(size.num_pairs, generator=random), count, torch.ones(size.num_pairs)))
    )
    shape = {name: getattr(config, name) for name in ("embedding_size", "num_hidden_layers", "dropout", "unit_terms", "pair_distance")}
    training = NetworkTraining(config, FlowModel(features.shape[1], **shape).to(device), graph, pairs)
    epoch_s = seconds(lambda: training.run_epoch(0), device, 3)
    return (
        f"flow model, {size.num_units:,} units, {size.num_pairs:,} pairs, width {size.width}, {config.num_hidden_layers + 1} layers, "
        f"{min(config.batch_size, size.num_pairs):,} pairs a step: {epoch_s:.3f} s an epoch, {size.num_pairs / epoch_s:,.0f} pairs/s"
    )


def main() -> None:
    """Measures everything and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help="as in train_img_encoder.py")
    parser.add_argument("--only", nargs="+", help="encoders to measure; default all")
    flags = parser.parse_args()
    size, device = SIZES[flags.size], choose_device(flags.device)
    if flags.size == "full" and device.type != "cuda":
        sys.exit(f"the full size needs an NVIDIA GPU and this run has the device {device}; try --size toy")
    print(f"{datetime.date.today()}, commit {source_commit()}, {machine()}", flush=True)
    peak = matrix_peak(size.matrix, device)
    print(f"bf16 product of {size.matrix:,} x {size.matrix:,}: {peak / 1e12:,.2f} TFLOP/s\n{flow_epoch(size, device)}", flush=True)
    patches = draw_patches(size.num_patches, *size.patch_side)
    wanted = {name: count for name, count in size.encoders.items() if not flags.only or name in flags.only}
    rows = []
    for name, count in wanted.items():
        rows.append(encoder_row(name, count, size, patches, peak, flags))
        print(" | ".join(rows[-1]), flush=True)
    print()
    print_table(ENCODER_HEADERS, rows)


if __name__ == "__main__":
    main()
