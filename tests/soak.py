"""A soak: many small units through stages 1 and 3, while another process looks at memory and open files; ``python -m tests.soak --units 50000``.

Memory may grow while libraries and caches warm up, and by the rows of what is written; it may not grow with every unit that has passed.
The encoder is a tiny one, so that the vectors, which stage 3 holds until it writes the table, weigh nothing (8 numbers instead of 512).
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .processes import children, open_files, resident_bytes

SIDE_PX = 16  # of a unit
COLUMNS = 250  # of units in a row of the scene
WARM_UP = 0.3  # share of the units that is not counted
POLL_S = 0.1
CHUNKS = 12  # of stage 3, at least


@dataclass(frozen=True)
class Sample:
    """What was seen at one time, of a process and all that it began.

    Attributes:
        passed: Units that have passed.
        num_bytes: Resident memory.
        files: Open files.
    """

    passed: int
    num_bytes: int
    files: int


@dataclass(frozen=True)
class Growth:
    """What a stage took.

    Attributes:
        stage: 1 or 3.
        units: Units that passed.
        seconds: Wall time.
        largest_bytes: Largest resident memory of all its processes.
        bytes_per_unit: Slope of the memory after the warm-up, by least squares.
        files_before: Most open files in the first half of what follows the warm-up.
        files_after: The same of the second half.
    """

    stage: int
    units: int
    seconds: float
    largest_bytes: int
    bytes_per_unit: float
    files_before: int
    files_after: int

    def __str__(self) -> str:
        return (
            f"stage {self.stage}: {self.units:,} units in {self.seconds:.1f} s, at most {self.largest_bytes / 2**20:.0f} MB, "
            f"{self.bytes_per_unit:+.0f} bytes per unit, at most {self.files_before}, then {self.files_after} open files"
        )


def write_scene(folder: Path, units: int) -> Path:
    """A scene of red, nir and thermal that holds so many tiles: noise, so that nothing is shared."""
    import rasterio

    rows = math.ceil(units / COLUMNS)
    path, shape = folder / "scene.tif", (3, rows * SIDE_PX, min(units, COLUMNS) * SIDE_PX)
    profile = {"count": 3, "height": shape[1], "width": shape[2], "dtype": "uint8", "tiled": True, "blockxsize": 256, "blockysize": 256}
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        compress="deflate",
        zlevel=1,
        crs="EPSG:32618",
        transform=rasterio.Affine(30, 0, 5e5, 0, -30, 45e5),
        **profile,
    ) as scene:
        scene.write(np.random.default_rng(0).integers(1, 255, shape, dtype=np.uint8))
        scene.descriptions = ("red", "nir", "thermal")
    return path


def cut(folder: Path, workers: int, passed: Any) -> None:
    """Stage 1."""
    from imagery2flow.imagery.patches import cut_patches
    from imagery2flow.run.config import PreprocessingConfig
    from imagery2flow.run.stage import Ledger

    size = {"mode": "grid", "size": SIDE_PX, "workers": workers}
    cut_patches(
        PreprocessingConfig(input_tif_path=[str(folder / "scene.tif")], output_tif_dir=str(folder), **size), Ledger("soak", quiet=True)
    )


def embed(folder: Path, workers: int, passed: Any) -> None:
    """Stage 3, in this process, whose encoder is a tiny one that stands in for ResNet-18; ``passed`` counts the patches that were read."""
    import torch

    from imagery2flow.encoder import checkpoint, embeddings
    from imagery2flow.imagery import patch_files
    from imagery2flow.run.config import EmbeddingConfig
    from imagery2flow.run.files import save_tensors
    from imagery2flow.run.stage import Ledger

    from .encoder.conftest import BANDS, build_tiny_backbone

    assert workers == 1, "another process would not know of the tiny encoder"
    torch.set_num_threads(1)
    inner, count = patch_files.read_patch, len(list(patches_of(folder).glob("*.tif")))

    def counting(*arguments: Any) -> Any:
        passed.value += 1
        return inner(*arguments)

    patch_files.read_patch = counting
    embeddings.PATCHES_PER_CHUNK = min(embeddings.PATCHES_PER_CHUNK, count // CHUNKS)
    checkpoint.build_backbone = embeddings.build_backbone = build_tiny_backbone
    weights = build_tiny_backbone("resnet18", len(BANDS), SIDE_PX, seed=1)[0].state_dict()
    normalisation = {"band_names": list(BANDS), "mean": [128.0] * 3, "std": [73.0] * 3, "highest": [255.0] * 3, "dtype": "uint8"}
    content = {"format": checkpoint.FORMAT, "config": {"resnet": "resnet18", "total_epoch": 1}, "normalisation": normalisation}
    model = {f"backbone.{name}": tensor for name, tensor in weights.items()}
    save_tensors(folder / "tiny.pth", {**content, "view_size": SIDE_PX, "epoch": 1, "model": model})
    paths = {"data_path": str(patches_of(folder)), "output_path": str(folder / "vectors.csv"), "ckpt": str(folder / "tiny.pth")}
    embeddings.make_embeddings(EmbeddingConfig(**paths, device="cpu", workers=workers), Ledger("soak", quiet=True))


def patches_of(folder: Path) -> Path:
    """Where stage 1 leaves its patches."""
    from imagery2flow.run.config import PreprocessingConfig

    config = PreprocessingConfig(input_tif_path=["scene.tif"], output_tif_dir=str(folder), mode="grid", size=SIDE_PX)
    return folder / config.region / f"{config.tag}_{config.year}"


def watched(stage: Callable[[Path, int, Any], None], folder: Path, workers: int) -> tuple[list[Sample], float]:
    """Runs a stage in a process of its own and looks at it, and at all that it begins, until it has ended; what was seen, and its seconds.

    Raises:
        RuntimeError: It failed.
    """
    context = multiprocessing.get_context("spawn")
    passed = context.Value("q", 0)
    process = context.Process(target=stage, args=(folder, workers, passed))
    process.start()
    started, samples = time.monotonic(), []
    while process.is_alive():
        family = [process.pid, *children(process.pid)]
        count = passed.value or sum(
            1 for path in folder.glob("*/.*/*.tif") if not path.name.startswith(".")
        )  # stage 1 fills a hidden folder
        samples.append(Sample(count, sum(map(resident_bytes, family)), sum(map(open_files, family))))
        process.join(POLL_S)
    if process.exitcode != 0:
        raise RuntimeError(f"{stage.__name__} ended with {process.exitcode}")
    return samples, time.monotonic() - started


def growth_of(number: int, units: int, samples: list[Sample], seconds: float) -> Growth:
    """Slope and extremes of what was seen after the warm-up, until the last unit has passed."""
    late = [sample for sample in samples if WARM_UP * units <= sample.passed < units]
    slope = np.polyfit([sample.passed for sample in late], [sample.num_bytes for sample in late], 1)[0]
    first, second = late[: len(late) // 2], late[len(late) // 2 :]
    files = [max(sample.files for sample in half) for half in (first, second)]
    return Growth(number, units, seconds, max(sample.num_bytes for sample in samples), float(slope), *files)


def soak(folder: Path, units: int, workers: int) -> list[Growth]:
    """Sends so many units through stage 1, in several processes, and stage 3."""
    write_scene(folder, units)
    growths = [growth_of(1, units, *watched(cut, folder, workers)), growth_of(3, units, *watched(embed, folder, 1))]
    written = sum(path.suffix == ".tif" for path in patches_of(folder).iterdir())
    with (folder / "vectors.csv").open() as table:
        rows = sum(1 for _ in table) - 1
    assert written == rows == units, f"{units} units gave {written} patches and {rows} vectors"
    return growths


def main() -> int:
    """Prints what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=50_000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for growth in soak(Path(folder), arguments.units, arguments.workers):
            print(growth)
    return 0


if __name__ == "__main__":
    sys.exit(main())
