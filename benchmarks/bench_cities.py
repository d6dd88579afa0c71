"""Tiles of large images beside bare windowed reads, and the map of a scene beside bare forward passes on ready batches."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin
from timing import Row, Settings, Target, alternate

from imagery2flow.cities.sliding import make_grid, slide
from imagery2flow.encoder.backbones import build_backbone
from imagery2flow.imagery.patch_files import find_patches, read_patches
from imagery2flow.imagery.patches import cut_patches
from imagery2flow.imagery.patchset import Normalisation
from imagery2flow.imagery.pyramid import build_pyramid
from imagery2flow.imagery.scene import open_scene
from imagery2flow.imagery.views import cut, whole_patches
from imagery2flow.run.config import PreprocessingConfig
from imagery2flow.run.stage import Ledger

TILE_PX, VIEW_PX, MAP_STRIDE, BATCH = 480, 224, 60, 64
OF_BARE_READS = Target(90, "%", at_least=True)
OF_BARE_PASSES = Target(1.2, "x")


def tiles(settings: Settings) -> list[Row]:
    """Stage 1 on tiles that stay windows, and reading them for training, beside one rasterio read per window; in one process."""
    side, size = settings.size(4800, 480), settings.size(TILE_PX, 48)
    rows = []
    for kind in ("tif", "jpg"):
        root = write_image(settings.scratch / f"tiles_{side}_{kind}", side, kind)
        run = TileRun(root, size, size // 2)
        cut, bare = alternate([run.cut, run.bare], settings.repeats)
        read, bare_again = alternate([run.read, run.bare], settings.repeats)
        stage = f"{run.count:,} tiles of {size} px every {size // 2} from {side:,} px {kind}"
        rows.append(rate_row(f"1 measure {stage}", run.count, cut, bare))
        rows.append(rate_row(f"2 read {stage} into memory, once a run", run.count, read, bare_again))
        served, bare_again = alternate([run.serve, run.bare], settings.repeats)
        rows.append(rate_row(f"2 cut {stage} out of memory, each epoch", run.count, served, bare_again))
        shutil.rmtree(run.folder)
    return rows


def rate_row(stage: str, count: int, ours_s: float, bare_s: float) -> Row:
    """Throughputs, and ours as a share of that of bare reads."""
    return Row(
        stage, f"{count / ours_s:,.0f} tiles/s", f"a rasterio read each {count / bare_s:,.0f} tiles/s", 100 * bare_s / ours_s, OF_BARE_READS
    )


def write_image(root: Path, side: int, kind: str) -> Path:
    """A tree of one city, site and image of noise on blocks, which compresses as imagery does."""
    path = root / f"city/site/image.{kind}"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(0)
        blocks = random.integers(40, 200, (3, side // 16, side // 16)).repeat(16, axis=1).repeat(16, axis=2)
        values = np.clip(blocks + random.integers(-9, 10, blocks.shape), 1, 255).astype(np.uint8)
        options = {"driver": "GTiff", "tiled": True, "compress": "deflate"} if kind == "tif" else {"driver": "JPEG", "quality": 90}
        place = {"crs": "EPSG:32618", "transform": from_origin(500_000, 4_500_000, 0.5, 0.5)} if kind == "tif" else {}
        with rasterio.open(path, "w", height=side, width=side, count=3, dtype="uint8", **options, **place) as image:
            image.write(values)
    return root


class TileRun:
    """The ways to go through the tiles of one image."""

    def __init__(self, root: Path, size: int, stride: int) -> None:
        self.root, self.size, self.folder = root, size, root.with_name(root.name + "_out")
        self.image = next(root.glob("*/*/*"))
        self.config = PreprocessingConfig(
            input_tif_path=[str(root)],
            output_tif_dir=str(self.folder),
            region="r",
            mode="grid",
            size=size,
            stride=stride,
            split="none",
            materialize=False,
            workers=1,
        )
        self.cut()
        files = find_patches(str(self.folder / "r/l8_2020"), (), Ledger("bench", quiet=True), scene_dir=str(root))
        self.files, self.count = files, len(files.paths)
        patches = read_patches(files)
        self.pyramid = build_pyramid(patches, patches.normalisation, VIEW_PX)

    def cut(self) -> None:
        """Stage 1."""
        cut_patches(self.config, Ledger("bench", quiet=True))

    def read(self) -> None:
        """What stage 2 reads before it trains."""
        read_patches(self.files)

    def serve(self) -> None:
        """What an epoch of stage 2 takes out of memory: every tile at the resolution that views of 224 px need."""
        for chosen in torch.arange(self.count).split(BATCH):
            cut(self.pyramid, whole_patches(self.pyramid, chosen), VIEW_PX)

    def bare(self) -> None:
        """One windowed read per tile, row by row."""
        with rasterio.Env(GDAL_CACHEMAX=128 << 20), rasterio.open(self.image) as image:
            for window in self.files.windows.values():
                image.read(window=((window.row, window.row + window.height), (window.column, window.column + window.width)))


def scene_map(settings: Settings) -> list[Row]:
    """All windows of a scene through ResNet-18, and as many forward passes on ready batches."""
    side, size = settings.size(4800, 480), settings.size(TILE_PX, 64)
    stride, view_px = settings.size(MAP_STRIDE, 32), 64
    root = write_image(settings.scratch / f"tiles_{side}_tif", side, "tif")
    scene = open_scene(str(next(root.glob("*/*/*"))))
    grid = make_grid(scene, size, stride, "centre")
    backbone, _ = build_backbone("resnet18", 3, view_px, seed=0)
    backbone = backbone.eval().to(memory_format=torch.channels_last)
    normalisation = Normalisation(scene.band_names, (120.0,) * 3, (40.0,) * 3, (255.0,) * 3, "uint8")
    ready = torch.randn(BATCH, 3, view_px, view_px).to(memory_format=torch.channels_last)
    count = grid.rows * grid.columns

    def ours() -> None:
        slide(scene, grid, "centre", backbone, normalisation, view_px, BATCH, 0.5, torch.device("cpu"))

    @torch.inference_mode()
    def bare() -> None:
        for start in range(0, count, BATCH):
            backbone(ready[: min(BATCH, count - start)])

    mapped, alone = alternate([ours, bare], settings.repeats)
    stage = f"map of {side:,} x {side:,} px, {count:,} windows of {size} px at stride {stride}, resnet18, {view_px} px"
    return [Row(stage, f"{mapped:.1f} s", f"bare forward passes {alone:.1f} s", mapped / alone, OF_BARE_PASSES)]
