"""What the corpus compares results with: values computed another way, or those of the good input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import shapely

from tests.spoiling import ID, PATCHES, UNITS

NEW = Path("new/M1/l8_2020")


def statistics(folder: str | Path = NEW) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Path(folder) / "stats.json").read_text())
    return content


def manifest() -> pd.DataFrame:
    return pd.read_csv(NEW / "manifest.csv", dtype={"geocode": "str", "path": "str"}).set_index("geocode")


def pixels(geocode: str) -> np.ndarray:
    """Valid pixels of a patch that was cut [num_valid_pixels, num_bands]."""
    with rasterio.open(NEW / f"l8_2020_{geocode}.tif") as patch:
        values, valid = patch.read(), patch.dataset_mask() > 0
    return values[:, valid].T


def same_statistics() -> None:
    """The same pixels as from the good scene, band by band."""
    new, good = statistics(), statistics(PATCHES)
    assert new["num_valid_pixels"] == good["num_valid_pixels"]
    for band, expected in zip(new["bands"], good["bands"], strict=True):
        np.testing.assert_allclose(
            [band[key] for key in ("mean", "std", "min", "max")], [expected[key] for key in ("mean", "std", "min", "max")]
        )


def values_are(value: float, num_units: int = 24) -> Callable[[], None]:
    def check() -> None:
        assert (manifest().status == "written").sum() == num_units
        assert all(band["mean"] == band["min"] == band["max"] == value for band in statistics()["bands"])

    return check


def num_patches(written: int, rows: int | None = None) -> Callable[[], None]:
    def check() -> None:
        table = manifest()
        assert (len(table), (table.status == "written").sum()) == (rows or written, written)

    return check


def pixels_by_centre(geocode: str = ID) -> None:
    """As many pixels as have their centre in the unit's outline, counted one by one."""
    shape = gpd.read_file(UNITS).set_index("GEOID20").geometry[geocode]
    with rasterio.open("data/M1/scene.tif") as scene:
        rows, columns = np.indices(scene.shape)
        x, y = scene.transform * (columns.ravel() + 0.5, rows.ravel() + 0.5)
    expected = int(shapely.contains_xy(shapely.make_valid(shape), x, y).sum())
    assert len(pixels(geocode)) == expected > 0


def run_of(path: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(path).read_text())
    return content


def came_in(path: str, **expected: int) -> Callable[[], None]:
    def check() -> None:
        found = run_of(path)["ledger"]["in"]
        assert {name: found[name] for name in expected} == expected

    return check


def predictions(folder: str = "outputs/M1/M1_2020") -> pd.DataFrame:
    return pd.read_csv(f"{folder}/predictions_bilinear.csv", dtype={"h_geocode": "str", "w_geocode": "str"})
