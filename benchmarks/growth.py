"""How the work grows with its size: time for each of three sizes, each twice the one before, where it should double at most."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import torch
from bench_flows import make_fitting, target_region, trained_model
from encoder_run import draw_patches
from generated import make_region, write_scene, write_units
from timing import Settings, alternate

from imagery2flow.flows.model import BalancedMSE
from imagery2flow.flows.outflow import RegionPredictor
from imagery2flow.flows.prediction import all_pairs
from imagery2flow.imagery.patches import cut_patches
from imagery2flow.imagery.pyramid import build_pyramid
from imagery2flow.imagery.views import random_views
from imagery2flow.run.config import PreprocessingConfig, ViewConfig
from imagery2flow.run.device import generator
from imagery2flow.run.flow_config import FlowTrainingConfig
from imagery2flow.run.stage import Ledger

VIEW_PX = 64
HEADERS = ("work", "doubled", "sizes", "seconds", "factor per doubling")


@dataclass(frozen=True)
class Growth:
    """Times of one kind of work.

    Attributes:
        work: What is done.
        doubled: What is doubled twice.
        sizes: Three of them.
        seconds: Median time of each.
    """

    work: str
    doubled: str
    sizes: tuple[int, ...]
    seconds: list[float]

    def cells(self) -> tuple[str, ...]:
        """As text: 2 is linear growth, less is better, more is worse."""
        factors = [after / before for before, after in zip(self.seconds[:-1], self.seconds[1:], strict=True)]
        listing = ", ".join(f"{taken:.3f}" for taken in self.seconds)
        return (
            self.work,
            self.doubled,
            ", ".join(f"{size:,}" for size in self.sizes),
            listing,
            ", ".join(f"{factor:.2f}" for factor in factors),
        )


def measure(work: str, doubled: str, smallest: int, make: Callable[[int], Callable[[], object]], repeats: int) -> Growth:
    """Times work of three sizes, which take turns."""
    sizes = (smallest, 2 * smallest, 4 * smallest)
    return Growth(work, doubled, sizes, alternate([make(size) for size in sizes], repeats))


def growth(settings: Settings) -> list[Growth]:
    """Every kind of work."""
    return [*clipping(settings), *drawing(settings), *training(settings), *predicting(settings)]


def clipping(settings: Settings) -> list[Growth]:
    """Stage 1 in this process, which starts others."""
    side_px = settings.size(4_000, 600)

    def clip(side_px: int, num_units: int, num_bands: int) -> Callable[[], object]:
        scene = write_scene(settings.scratch / f"growth_{side_px}_{num_bands}.tif", side_px, num_bands)
        units = write_units(settings.scratch / f"growth_{side_px}_{num_units}.gpkg", side_px, num_units)
        region = f"{side_px}_{num_units}_{num_bands}"
        folder = settings.scratch / "growth"
        config = PreprocessingConfig(
            input_tif_path=[str(scene)], shp_path=str(units), output_tif_dir=str(folder), region=region, tag="l5", year=2010
        )

        def work() -> None:
            shutil.rmtree(folder / region, ignore_errors=True)
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # noqa: PTH123
                cut_patches(config, Ledger("bench", quiet=True))

        return work

    units, repeats = settings.size(1_000, 10), settings.repeats
    pixels = side_px**2 // 2
    return [
        measure("1 clip", f"units of a scene of {side_px:,} px", units, lambda count: clip(side_px, count, 3), repeats),
        measure("1 clip", f"pixels of a scene of {units:,} units", pixels, lambda count: clip(math.isqrt(count), units, 3), repeats),
        measure("1 clip", f"bands of a scene of {side_px // 2:,} px and {units:,} units", 2, lambda count: clip(side_px // 2, units, count), repeats),
    ]  # fmt: skip


def drawing(settings: Settings) -> list[Growth]:
    """Random views."""

    def draw(num_patches: int, num_bands: int) -> Callable[[], object]:
        patches = draw_patches(num_patches, num_bands=num_bands)
        pyramid, random = build_pyramid(patches, patches.normalisation, VIEW_PX), generator(0)
        return lambda: random_views(pyramid, torch.arange(num_patches), ViewConfig(), VIEW_PX, random)

    count = settings.size(128, 8)
    return [
        measure("2 random views of 64 px", "patches of 3 bands", count, lambda patches: draw(patches, 3), settings.repeats),
        measure("2 random views of 64 px", f"bands of {count} patches", 2, lambda bands: draw(count, bands), settings.repeats),
    ]


def training(settings: Settings) -> list[Growth]:
    """Epochs of the flow model, and the balanced loss alone."""
    width, num_units, num_pairs = settings.size(128, 8), settings.size(1_000, 40), settings.size(20_000, 200)

    def epoch(num_units: int, num_pairs: int) -> Callable[[], object]:
        config = FlowTrainingConfig(region=["city"], node_feats_path=["none"], loss="balanced_mse", embedding_size=width)
        fitting = make_fitting(config, make_region("city", num_units, num_pairs=num_pairs))
        return lambda: fitting.run_epoch(0)

    def loss(num_pairs: int) -> Callable[[], object]:
        random = torch.Generator().manual_seed(0)
        target = torch.randint(11, 300, (num_pairs,), generator=random).float().log2()
        predicted = (target + torch.randn(num_pairs, generator=random)).requires_grad_()
        balanced = BalancedMSE(1.0)
        return lambda: balanced(predicted, target).backward()

    return [
        measure(f"4 epoch, width {width}, balanced MSE", f"pairs of {num_units:,} units", num_pairs, lambda count: epoch(num_units, count), settings.repeats),
        measure(f"4 epoch, width {width}, balanced MSE", f"units of {num_pairs:,} pairs", num_units, lambda count: epoch(count, num_pairs), settings.repeats),
        measure("4 balanced MSE, exact", "pairs", settings.size(50_000, 1_000), loss, settings.repeats),
    ]  # fmt: skip


def predicting(settings: Settings) -> list[Growth]:
    """Predictions by both decoders."""
    record = trained_model(settings)
    embedded = record.embed(target_region(settings.size(1_000, 60)))
    predictor = RegionPredictor(record, embedded)
    pairs = next(all_pairs(embedded.seen.region))
    smallest = len(pairs) // 8

    def predict(count: int) -> Callable[[], object]:
        chosen = pairs.select(torch.arange(count).numpy())
        return lambda: predictor.predict(chosen)

    return [measure("5 predictions, both decoders", "pairs", smallest, predict, settings.repeats)]
