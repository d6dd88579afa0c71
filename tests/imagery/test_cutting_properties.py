"""Patches of random units on random grids against a loop over pixels, each asked by itself whether it lies in the unit."""

import tempfile
from itertools import pairwise
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from .helpers import cut

HEIGHT, WIDTH, NUM_UNITS = 14, 17, 5
CLOSE = 1e-6  # pixels; what touches a pixel by less may count or not
GRIDS = {
    "north up": ("EPSG:32618", Affine(30, 0, 500_000, 0, -30, 4_500_000)),
    "south up": ("EPSG:32618", Affine(30, 0, 500_000, 0, 30, 4_400_000)),
    "rotated": ("EPSG:32618", Affine.translation(500_000, 4_500_000) * Affine.rotation(-33) * Affine.scale(30, -20)),
    "degrees": ("EPSG:4326", Affine(3e-4, 0, -75, 0, -2e-4, 40)),
    "degrees, rotated": ("EPSG:4326", Affine.translation(-75, 40) * Affine.rotation(17) * Affine.scale(3e-4, -3e-4)),
}


def draw_star(random: np.random.Generator) -> shapely.Geometry:
    """A simple polygon of 3 to 9 corners, in pixels, often with a hole, often beyond the scene's edge."""
    angles = np.sort(random.uniform(0, 2 * np.pi, random.integers(3, 10)))
    radii = random.uniform(1, 6, (len(angles), 1))
    middle = random.uniform([-1, -1], [WIDTH + 1, HEIGHT + 1])
    corners = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii
    outside, inside = shapely.make_valid(shapely.Polygon(middle + corners)), shapely.make_valid(shapely.Polygon(middle + 0.6 * corners))
    return outside.difference(inside) if random.random() < 0.5 else outside


def draw_unit(random: np.random.Generator, transform: Affine) -> shapely.Geometry:
    """One star, or several as one unit, in the coordinates of the scene."""
    parts = [draw_star(random) for _ in range(random.choice([1, 1, 2, 3]))]
    return shapely.transform(shapely.union_all(parts), lambda places: np.stack(transform * places.T, axis=1))


def holds(unit: shapely.Geometry, x: float, y: float) -> bool:
    """Whether a ray to the right crosses the unit's rings an odd number of times."""
    crossings = 0
    for polygon in shapely.get_parts(unit):
        for ring in (polygon.exterior, *polygon.interiors):
            places = shapely.get_coordinates(ring)
            for (x1, y1), (x2, y2) in pairwise(places):
                crossings += (y1 > y) != (y2 > y) and x < x1 + (y - y1) * (x2 - x1) / (y2 - y1)
    return crossings % 2 == 1


def naive_inside(unit: shapely.Geometry, transform: Affine, rows: range, columns: range) -> np.ndarray:
    """The pixels [rows, columns] whose centre lies in the unit."""
    return np.array([[holds(unit, *(transform * (column + 0.5, row + 0.5))) for column in columns] for row in rows])


def touched(unit: shapely.Geometry, transform: Affine, rows: range, columns: range) -> tuple[np.ndarray, np.ndarray]:
    """The pixels [rows, columns] that the unit surely touches, and those that it may touch."""
    unit = shapely.transform(unit, lambda places: np.stack(~transform * places.T, axis=1))  # in pixels
    pixels = np.array([[shapely.box(column, row, column + 1, row + 1) for column in columns] for row in rows])
    return shapely.area(shapely.intersection(unit, pixels)) > CLOSE, shapely.distance(unit, pixels) < CLOSE


def cut_random(seed: int, grid: str, folder: Path, **options):
    """Scene [2, height, width] with 0 for nodata, its valid pixels, and unit, row of the manifest and patch (or None) of every unit."""
    random = np.random.default_rng(seed)
    crs, transform = GRIDS[grid]
    values = random.integers(1, 250, (2, HEIGHT, WIDTH)).astype("uint8")
    values[:, random.random((HEIGHT, WIDTH)) < random.choice([0, 0.2, 0.6])] = 0
    units = {f"{number:02d}": draw_unit(random, transform) for number in range(NUM_UNITS)}
    # One that surely lies on the scene: without any, the stage refuses.
    units["99"] = shapely.transform(shapely.box(1.2, 1.2, WIDTH - 2, HEIGHT - 2), lambda places: np.stack(transform * places.T, axis=1))
    profile = {"count": 2, "height": HEIGHT, "width": WIDTH, "dtype": "uint8", "nodata": 0}
    with rasterio.open(folder / "scene.tif", "w", driver="GTiff", crs=crs, transform=transform, **profile) as scene:
        scene.write(values)
    gpd.GeoDataFrame({"GEOID20": list(units)}, geometry=list(units.values()), crs=crs).to_file(folder / "units.fgb")
    patches, manifest, _ = cut(folder, str(folder / "scene.tif"), str(folder / "units.fgb"), **options)
    found = []
    for geocode, unit in units.items():
        row = manifest.loc[geocode]
        patch = None
        if row.status == "written":
            with rasterio.open(patches / row.path) as dataset:
                patch = dataset.read()
        found.append((unit, row, patch))
    return values, transform, found


def scene_window(values: np.ndarray, row) -> tuple[np.ndarray, range, range]:
    """The window of a row of the manifest out of the scene, 0 beyond it [num_bands, height, width], with its rows and columns."""
    column, first_row, width, height = (int(float(row[name])) for name in ("column_offset", "row_offset", "width", "height"))
    rows, columns = range(first_row, first_row + height), range(column, column + width)
    window = np.zeros((len(values), len(rows), len(columns)), values.dtype)
    for i, r in enumerate(rows):
        for j, c in enumerate(columns):
            if 0 <= r < HEIGHT and 0 <= c < WIDTH:
                window[:, i, j] = values[:, r, c]
    return window, rows, columns


def cut_windows(seed: int, grid: str, **options):
    """Unit, row of the manifest, patch, and the scene's window with its rows and columns of every unit that was cut; the grid's transform."""
    with tempfile.TemporaryDirectory() as folder:
        values, transform, found = cut_random(seed, grid, Path(folder), **options)
    return [(unit, row, patch, *scene_window(values, row)) for unit, row, patch in found if patch is not None], transform


@pytest.mark.parametrize("grid", GRIDS)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=6)
def test_a_patch_holds_the_valid_pixels_whose_centre_lies_in_the_unit(grid, seed):
    with tempfile.TemporaryDirectory() as folder:
        values, transform, found = cut_random(seed, grid, Path(folder))
    for unit, row, patch in found:
        everywhere = naive_inside(unit, transform, range(HEIGHT), range(WIDTH))
        if row.status == "outside every scene":
            assert not everywhere.any()
            continue
        window, rows, columns = scene_window(values, row)
        inside = naive_inside(unit, transform, rows, columns)
        if not inside.any():
            continue  # a sliver, which keeps what it touches
        valid = inside & (window != 0).all(axis=0)
        assert row.valid_fraction == pytest.approx(valid.sum() / inside.sum(), abs=1e-6)
        assert (row.status == "written") == valid.any()
        assert everywhere.sum() == sum(
            inside[i, j] for i, r in enumerate(rows) for j, c in enumerate(columns) if 0 <= r < HEIGHT and 0 <= c < WIDTH
        )
        if patch is not None:
            assert np.array_equal(patch, np.where(valid, window, 0))


@pytest.mark.parametrize("grid", GRIDS)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=4)
def test_with_a_margin_a_patch_is_the_scene_around_the_unit(grid, seed):
    margin_m = 70.0
    found, transform = cut_windows(seed, grid, context_m=margin_m)
    for unit, row, patch, window, rows, columns in found:
        assert np.array_equal(patch, window)
        inside = naive_inside(unit, transform, rows, columns)
        if inside.any():
            assert row.valid_fraction == pytest.approx((inside & (window != 0).all(axis=0)).sum() / inside.sum(), abs=1e-6)
        # Of a grid that is not turned the window is the bounding box and the margin, in whole pixels.
        if transform.b == 0:
            side_x_m, side_y_m = (
                (30.0, 30.0) if abs(transform.a) > 1 else (3e-4 * 111_320 * np.cos(np.radians(40 - 2e-4 * HEIGHT / 2)), 2e-4 * 111_320)
            )
            x, y = ~transform * shapely.get_coordinates(unit).T
            assert (columns.start, columns.stop) == (np.floor(x.min() - margin_m / side_x_m), np.ceil(x.max() + margin_m / side_x_m))
            assert (rows.start, rows.stop) == (np.floor(y.min() - margin_m / side_y_m), np.ceil(y.max() + margin_m / side_y_m))


@pytest.mark.parametrize("grid", GRIDS)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=6)
def test_with_all_touched_a_patch_holds_the_valid_pixels_that_the_unit_touches(grid, seed):
    found, transform = cut_windows(seed, grid, all_touched=True)
    for unit, _, patch, window, rows, columns in found:
        surely, perhaps = touched(unit, transform, rows, columns)
        kept = (patch != 0).all(axis=0)
        valid = (window != 0).all(axis=0)
        assert not (surely & valid & ~kept).any() and not (kept & ~(perhaps & valid)).any()
        assert np.array_equal(patch, np.where(kept, window, 0))
