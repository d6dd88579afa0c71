"""Patches of made-up cities, each with a texture of its own, as stage 1 leaves them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from .conftest import write_patches

RGB = ("red", "green", "blue")
SIDE = 24
CITIES = ("Almaty (ALA)", "Bogota (BOG)", "Cairo (CAI)", "Dublin (DUB)")
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]
# Equal in mean and deviation, so that colour tells nothing: stripes along one axis, along the other, squares, along the diagonal.
TEXTURES: dict[str, np.ndarray] = dict(
    zip(CITIES, (ROWS // 3 % 2, COLUMNS // 3 % 2, (ROWS // 6 + COLUMNS // 6) % 2, (ROWS + COLUMNS) // 3 % 2), strict=True)
)


def draw_tile(city: str, random: np.random.Generator) -> np.ndarray:
    """A tile of a city's texture, shifted at random and with noise [3, SIDE, SIDE]."""
    shifted = np.roll(TEXTURES[city], random.integers(0, SIDE, 2), axis=(0, 1))
    return np.clip(80 + 80 * shifted + random.normal(0, 15, (3, SIDE, SIDE)), 1, 255).astype("uint8")


def write_cities(
    folder: Path,
    per_split: dict[str, int],
    cities: Sequence[str] = CITIES,
    draw: Callable[[str, np.random.Generator], np.ndarray] = draw_tile,
) -> pd.DataFrame:
    """Writes so many tiles of each city for each split; returns the manifest, which has columns city, site and split."""
    random = np.random.default_rng(0)
    rows = [
        {"geocode": f"{city}-{split}-{number:03d}", "city": city, "site": split, "split": split}
        for city in cities
        for split, count in per_split.items()
        for number in range(count)
    ]
    write_patches(folder, {row["geocode"]: draw(row["city"], random) for row in rows}, RGB)
    written = pd.read_csv(folder / "manifest.csv", dtype=str)
    manifest = written.merge(pd.DataFrame(rows), on="geocode", validate="one_to_one")
    manifest.to_csv(folder / "manifest.csv", index=False)
    return manifest
