#!/usr/bin/env python
"""The figures of docs/performance.md: clipping New York's tracts, an epoch of the flow model on its pairs, encoder rates.

    python benchmarks/speed.py --data ../shared/data

Times are wall seconds, each the median of several runs, on whatever machine this runs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from imagery2flow.encoder.backbones import build_backbone  # noqa: E402
from imagery2flow.encoder.objectives import SimCLR, nt_xent  # noqa: E402
from imagery2flow.flows.fitting import NetworkFitting  # noqa: E402
from imagery2flow.flows.region import Region, load_region  # noqa: E402
from imagery2flow.flows.sampling import every_pair  # noqa: E402
from imagery2flow.flows.scaling import fit_scaling  # noqa: E402
from imagery2flow.imagery.patches import cut_patches  # noqa: E402
from imagery2flow.run.config import PreprocessingConfig  # noqa: E402
from imagery2flow.run.device import choose_device, choose_precision  # noqa: E402
from imagery2flow.run.flow_config import FlowTrainingConfig  # noqa: E402
from imagery2flow.run.stage import Ledger  # noqa: E402

EMBEDDING_DIM = 512
VIEW_PX = 64
PATCHES = {"resnet18": 128, "resnet50": 64}


def median_s(work: Callable[[], object], repeats: int) -> float:
    """Median wall time of several calls."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def clipping(data: Path, repeats: int) -> str:
    """Stage 1 on New York's 2,165 tracts, as the stage runs it."""
    with tempfile.TemporaryDirectory() as folder:
        config = PreprocessingConfig(
            input_tif_path=[str(next((data / "nyc/imagery").glob("*median*.tif")))],
            shp_path=str(data / "nyc/units.gpkg"),
            output_tif_dir=folder,
            region="nyc",
            tag="l5",
            year=2010,
        )

        def work() -> None:
            shutil.rmtree(Path(folder) / "nyc", ignore_errors=True)
            with contextlib.redirect_stderr(open(os.devnull, "w")):  # noqa: PTH123
                cut_patches(config, Ledger("speed", quiet=True))

        seconds = median_s(work, repeats)
        count = len(list((Path(folder) / "nyc/l5_2010").glob("*.tif")))
    return f"| clip New York, {count:,} tracts | {seconds:.2f} s | {1000 * seconds / count:.2f} ms a tract |"


def epochs(data: Path, repeats: int, width: int, loss: str) -> str:
    """One epoch of the graph network on New York's pairs above 10, all of them trained on; random embeddings, which cost the same."""
    config = FlowTrainingConfig(
        node_feats_path=["unused"], region=["nyc"], units_path=[str(data / "nyc/units.gpkg")], flows_path=[str(data / "nyc/flows.csv")],
        embedding_size=width, loss=loss,
    )  # fmt: skip
    region = load_with_random_vectors(config)
    pairs = every_pair(region.observed().universe("gt10"))
    fitting = NetworkFitting(config, region, fit_scaling(region, True, config.num_components), pairs, pairs, choose_device(config.device))
    fitting.run_epoch(0)
    seconds = median_s(lambda: fitting.run_epoch(10), repeats)
    label = f"epoch of the flow model, {len(region.graph.geocodes):,} tracts, {len(pairs):,} pairs, width {width}, {loss}"
    return f"| {label} | {seconds:.2f} s | {len(pairs) / seconds:,.0f} pairs/s |"


def load_with_random_vectors(config: FlowTrainingConfig) -> Region:
    """The region with a table of random numbers for embeddings."""
    import geopandas as gpd
    import pandas as pd

    ledger = Ledger("speed", quiet=True)
    geocodes = gpd.read_file(config.units_path[0]).GEOID
    vectors = np.random.default_rng(0).normal(size=(len(geocodes), EMBEDDING_DIM)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/vectors.parquet"
        pd.DataFrame(vectors, columns=[*map(str, range(EMBEDDING_DIM))]).assign(geocode=geocodes).to_parquet(path)
        return load_region(dataclasses.replace(config, node_feats_path=[path]), ledger, flows_required=True)


def encoder_rate(name: str, repeats: int) -> str:
    """A training step of SimCLR, two views of each patch, without the drawing of views."""
    device = choose_device("auto")
    precision, _ = choose_precision("auto", device)
    backbone, dim = build_backbone(name, 3, VIEW_PX, seed=0)
    model = SimCLR(backbone, dim, 128, seed=1).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters())
    count = PATCHES[name]
    views = torch.randn(2 * count, 3, VIEW_PX, VIEW_PX, device=device).contiguous(memory_format=torch.channels_last)

    def step() -> float:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            _, projected = model(views)
        loss, _ = nt_xent(projected[:count], projected[count:], 0.5, None, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    step()
    seconds = median_s(step, repeats)
    return f"| SimCLR step, {name}, {VIEW_PX} px, {precision}, {count} patches | {seconds:.2f} s | {2 * count / seconds:,.0f} images/s |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the real sample")
    parser.add_argument("--repeats", type=int, default=5)
    flags = parser.parse_args()
    if not (flags.data / "nyc").is_dir():
        sys.exit(f"--data {flags.data} has no folder nyc; name the folder of the real sample")
    print(f"{torch.get_num_threads()} CPU threads, torch {torch.__version__}, device {choose_device('auto')}\n")
    print("| what | time | rate |\n| --- | --- | --- |")
    print(clipping(flags.data, flags.repeats), flush=True)
    for width, loss in ((128, "poisson"), (128, "balanced_mse"), (512, "balanced_mse")):
        print(epochs(flags.data, flags.repeats, width, loss), flush=True)
    for name in PATCHES:
        print(encoder_rate(name, flags.repeats), flush=True)


if __name__ == "__main__":
    main()
