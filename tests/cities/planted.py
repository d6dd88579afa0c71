"""Tiles of two classes that differ by a small textured square in them, a model trained on such, and a folder of them as stage 1 leaves it."""

import copy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
import torch
from rasterio.transform import from_origin

from imagery2flow.encoder.backbones import build_backbone
from imagery2flow.encoder.checkpoint import save_checkpoint
from imagery2flow.encoder.supervised import Outputs, Supervised
from imagery2flow.imagery.patchset import Normalisation, PatchSet, measure, whole_images
from imagery2flow.imagery.pyramid import build_pyramid
from imagery2flow.imagery.views import embedding_views
from imagery2flow.run.config import EncoderConfig

VIEW_SIZE, SIDE = 64, 16
CLASSES = Outputs("classes", ("plain", "square"), column="city")
TARGETS = Outputs("targets", ("overall", "planet"), mean=(30.0, 10.0), std=(5.0, 2.0))
LEFT, TOP, GSD_M = 500_000.0, 4_500_000.0, 30.0


@dataclass(frozen=True)
class Tile:
    """Pixels [height, width, 2], whether there is a square in them, and where [height, width]."""

    pixels: np.ndarray
    is_square: bool
    square: np.ndarray


def make_tile(height: int, width: int, is_square: bool, rng: np.random.Generator) -> Tile:
    """Noise, with a brighter chequerboard at a random place in tiles of the class square."""
    pixels = rng.integers(60, 100, (height, width, 2))
    square = np.zeros((height, width), bool)
    row, column = rng.integers(0, height - SIDE), rng.integers(0, width - SIDE)
    if is_square:
        square[row : row + SIDE, column : column + SIDE] = True
        chequers = np.indices((height, width)).sum(axis=0) // 2 % 2
        pixels[square] += (60 + 60 * chequers)[square][:, None]
    return Tile(pixels.astype(np.uint8), is_square, square)


def make_tiles(number: int, height: int, width: int, seed: int) -> list[Tile]:
    rng = np.random.default_rng(seed)
    return [make_tile(height, width, position % 2 == 1, rng) for position in range(number)]


def as_patch_set(tiles: list[Tile]) -> PatchSet:
    values = np.concatenate([tile.pixels.reshape(-1, 2) for tile in tiles])
    sizes = np.array([tile.square.shape for tile in tiles])
    first = np.concatenate([[0], np.cumsum(sizes.prod(axis=1))[:-1]])
    valid = np.ones(len(values), bool)
    names = tuple(f"{position:03d}" for position in range(len(tiles)))
    return PatchSet(names, values, valid, first, sizes[:, 0], sizes[:, 1], measure(values, valid, ("red", "nir")), whole_images(*sizes.T))


@lru_cache(maxsize=1)
def trained() -> tuple[Supervised, PatchSet]:
    """A small ResNet that tells such tiles apart, and the patches that it was trained on."""
    tiles = make_tiles(48, 64, 64, seed=1)
    patches = as_patch_set(tiles)
    views, label = views_of(tiles), torch.tensor([tile.is_square for tile in tiles]).long()
    backbone, dim = build_backbone("resnet18", 2, VIEW_SIZE, seed=11)
    model = Supervised(backbone, dim, 2, seed=4).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(5)
    for _ in range(4):
        for chosen in torch.randperm(len(tiles), generator=generator).split(8):
            loss = torch.nn.functional.cross_entropy(model(views[chosen])[1], label[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval(), patches


def views_of(tiles: list[Tile], normalisation: Normalisation | None = None) -> torch.Tensor:
    """The tiles as a model sees them, by default with their own statistics."""
    patches = as_patch_set(tiles)
    return embedding_views(build_pyramid(patches, normalisation or patches.normalisation, VIEW_SIZE), torch.arange(len(tiles)), VIEW_SIZE)


def as_regressor(model: Supervised) -> Supervised:
    """The same encoder with two scores: how much more the square speaks than its absence, and 0."""
    other = copy.deepcopy(model)
    for part in (other.head.weight.data, other.head.bias.data):
        part.copy_(torch.stack([part[1] - part[0], 0 * part[0]]))
    return other


def write_checkpoint(path: Path, outputs: Outputs = CLASSES) -> Path:
    """The trained model as stage 2 leaves it."""
    model, patches = trained()
    model = model if outputs.kind == "classes" else as_regressor(model)
    config = EncoderConfig(data_path="patches", resnet="resnet18", total_epoch=1)
    content = {"epoch": 1, "step": 0, "sums": {}, "history": [], "view_size": VIEW_SIZE, "outputs": outputs.as_plain()}
    save_checkpoint(path, model, torch.optim.Adam(model.parameters()), config, content, patches.normalisation)
    return path


def write_folder(folder: Path, tiles: dict[str, Tile], columns: dict[str, list] | None = None, missing: np.ndarray | None = None) -> Path:
    """Tiles by id as stage 1 leaves them, 0 where ``missing``, with more columns in the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (geocode, tile) in enumerate(tiles.items()):
        height, width = tile.square.shape
        pixels = tile.pixels if missing is None else tile.pixels * ~missing[..., None]
        profile = {"driver": "GTiff", "height": height, "width": width, "count": 2, "dtype": "uint8", "nodata": 0}
        place = {"crs": "EPSG:32618", "transform": from_origin(LEFT + 10_000 * number, TOP, GSD_M, GSD_M)}
        with rasterio.open(folder / f"l8_2020_{geocode}.tif", "w", **profile, **place) as patch:
            patch.write(pixels.transpose(2, 0, 1))
            patch.descriptions = ("red", "nir")
        rows.append({"geocode": geocode, "status": "written", "path": f"l8_2020_{geocode}.tif", "width": width, "height": height})
    pd.DataFrame(rows).assign(**(columns or {})).to_csv(folder / "manifest.csv", index=False)
    return folder
