"""Small patch sets, in memory and on disk, and a one-second encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from rasterio import Affine
from torch import nn

from imagery2flow.encoder import trainer
from imagery2flow.encoder.training import train_encoder
from imagery2flow.imagery.patchset import PatchSet, measure, whole_images
from imagery2flow.run.config import EncoderConfig
from imagery2flow.run.stage import Ledger

BANDS = ("red", "nir", "thermal")
TINY_DIM = 8


def draw_images(num_patches: int, num_bands: int = 3, seed: int = 0, dtype: str = "uint16") -> dict[str, np.ndarray]:
    """Patches of differing size [num_bands, height, width] by id; each has its own colour, a gradient and noise; some pixels are missing (0)."""
    random = np.random.default_rng(seed)
    images = {}
    for number in range(num_patches):
        height, width = random.integers(7, 23, size=2)
        colour = random.uniform(60, 190, size=(num_bands, 1, 1))
        slope = np.linspace(-20, 20, width) * random.uniform(-1, 1, size=(num_bands, 1, 1))
        image = np.clip(colour + slope + random.normal(0, 5, size=(num_bands, height, width)), 1, 250).astype(dtype)
        image[:, : height // 3, : width // 3] = 0
        images[f"{number:05d}"] = image
    return images


def as_patch_set(images: dict[str, np.ndarray], names: Sequence[str] = BANDS) -> PatchSet:
    """The patches in memory; 0 marks missing pixels."""
    ordered = dict(sorted(images.items()))
    values = np.concatenate([image.reshape(len(names), -1).T for image in ordered.values()])
    shapes = np.array([image.shape[1:] for image in ordered.values()])
    valid = (values != 0).all(axis=1)
    first_pixel = np.concatenate([[0], np.cumsum(shapes.prod(axis=1))[:-1]])
    return PatchSet(
        tuple(ordered), values, valid, first_pixel, shapes[:, 0], shapes[:, 1], measure(values, valid, names), whole_images(*shapes.T)
    )


def write_patches(folder: Path, images: dict[str, np.ndarray], names: Sequence[str] = BANDS) -> Path:
    """The patches as stage 1 leaves them: one GeoTIFF each and manifest.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for geocode, image in images.items():
        name = f"l8_2020_{geocode}.tif"
        shape = {"count": len(image), "height": image.shape[1], "width": image.shape[2], "dtype": image.dtype}
        with rasterio.open(folder / name, "w", driver="GTiff", nodata=0, transform=Affine(30, 0, 0, 0, -30, 0), **shape) as patch:
            patch.write(image)
            patch.descriptions = tuple(names)
        rows.append({"geocode": geocode, "status": "written", "path": name})
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder


def small_config(**changes: Any) -> EncoderConfig:
    """Settings that train in about a second on a CPU."""
    settings = {"data_path": "unused", "view_size": 16, "batch_size": 4, "total_epoch": 2, "projection_dim": 8}
    return EncoderConfig(**{**settings, "device": "cpu", "precision": "fp32", "log": "small", **changes})


def build_tiny_backbone(name: str, num_bands: int, view_size: int, seed: int) -> tuple[nn.Module, int]:
    """Stands in for ResNet-18 where the network does not matter: convolution, batch norm, pooling."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = (nn.Conv2d(num_bands, TINY_DIM, 3, stride=2), nn.BatchNorm2d(TINY_DIM), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return nn.Sequential(*layers), TINY_DIM


@pytest.fixture
def two_threads() -> Iterator[None]:
    """For tests of equal bits, which threads could spoil."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def tiny_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training uses ``build_tiny_backbone``."""
    monkeypatch.setattr(trainer, "build_backbone", build_tiny_backbone)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger("test", quiet=True)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> EncoderConfig:
    """A ResNet-18 trained for one epoch on nine uint16 patches of red, nir, thermal: the settings of its run."""
    folder = tmp_path_factory.mktemp("trained")
    write_patches(folder / "patches", draw_images(9))
    config = small_config(data_path=str(folder / "patches"), model_path=str(folder / "ckpt"), total_epoch=1, batch_size=9)
    train_encoder(config, Ledger("test", quiet=True))
    return config
