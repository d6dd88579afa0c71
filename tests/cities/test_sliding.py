"""Windows over a scene: where they lie, what is read, and how the cells between them are made."""

import numpy as np
import pytest
import torch
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from imagery2flow.cities import sliding
from imagery2flow.cities.sliding import WindowGrid, blend, cell_values, cells_with_pixels, make_grid, slide, tent, window_shares
from imagery2flow.imagery.patchset import Normalisation
from imagery2flow.imagery.scene import open_scene
from imagery2flow.run.errors import InputError
from tests.imagery.helpers import noise

PLAIN = Normalisation(("band1", "band2"), (0.0, 0.0), (1.0, 1.0), (255.0, 255.0), "uint8")


def means(views: torch.Tensor) -> torch.Tensor:
    """A model that says the mean of each band."""
    return views.mean(dim=(2, 3))


def run(scene, size=8, stride=4, geometry="centre", model=means, min_valid=0.5):
    grid = make_grid(scene, size, stride, geometry)
    found = slide(scene, grid, geometry, model, PLAIN, size, 5, min_valid, torch.device("cpu"))
    return grid, found


def test_every_window_has_the_value_of_its_own_pixels(write_scene):
    values = noise(2, 21, 30, "uint8")
    _, found = run(open_scene(write_scene(values)))
    assert found.values.shape == (2, 4, 6)  # rows 0, 4, 8, 12; columns 0 to 20
    for row in range(4):
        for column in range(6):
            expected = values[:, 4 * row : 4 * row + 8, 4 * column : 4 * column + 8].mean(axis=(1, 2))
            assert found.values[:, row, column] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("geometry", ["centre", "blend"])
def test_bands_of_rows_give_what_the_whole_scene_gives(write_scene, monkeypatch, geometry):
    values = noise(2, 45, 30, "uint8")
    values[:, 10:30, 5:20] = 0
    scene = open_scene(write_scene(values, nodata=0))
    grid, whole = run(scene, geometry=geometry)
    monkeypatch.setattr(sliding, "PIXELS_PER_BAND", 30 * 2 * 13)  # two rows of windows
    _, parts = run(scene, geometry=geometry)
    assert np.array_equal(whole.values, parts.values, equal_nan=True)
    assert np.array_equal(cell_values(whole, grid, geometry), cell_values(parts, grid, geometry), equal_nan=True)


def test_cells_around_centres_lie_where_the_windows_lie():
    grid = WindowGrid(4800, 4800, 480, 60)
    assert (grid.rows, grid.columns) == (73, 73)  # 5,329 windows, as published
    transform = grid.transform(Affine(0.5, 0, 1000, 0, -0.5, 9000), "centre")
    assert transform * (0.5, 0.5) == (1000 + 0.5 * 240, 9000 - 0.5 * 240)  # centre of the first window
    assert transform * (72.5, 72.5) == (1000 + 0.5 * (72 * 60 + 240), 9000 - 0.5 * (72 * 60 + 240))
    turned = Affine.rotation(30) @ Affine.scale(2)
    assert grid.transform(turned, "centre") * (0.5, 0.5) == pytest.approx(turned * (240, 240))


def test_cells_of_blended_windows_begin_at_the_corner():
    grid = WindowGrid(480, 480, 120, 60)
    assert grid.transform(Affine.identity(), "blend") * (1, 1) == (60, 60)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**20))
def test_blending_is_the_weighted_mean_over_all_windows_that_hold_a_cell(cells, rows, columns, seed):
    random = np.random.default_rng(seed)
    values = random.normal(size=(2, rows, columns))
    values[:, random.random((rows, columns)) < 0.3] = np.nan
    weight = tent(cells)
    found = blend(values, weight)
    for row in range(rows + cells - 1):
        for column in range(columns + cells - 1):
            holding = [
                (weight[row - i, column - j], values[:, i, j])
                for i in range(rows)
                for j in range(columns)
                if 0 <= row - i < cells and 0 <= column - j < cells and np.isfinite(values[0, i, j])
            ]
            expected = sum(w * v for w, v in holding) / sum(w for w, _ in holding) if holding else np.full(2, np.nan)
            assert found[:, row, column] == pytest.approx(expected, rel=1e-5, abs=1e-6, nan_ok=True)


def test_a_tent_is_highest_in_the_middle_and_nowhere_0():
    assert tent(1).tolist() == [[1.0]]
    assert np.allclose(tent(4)[0] / tent(4)[0, 0], [1, 3, 3, 1])
    assert (tent(8) > 0).all()


def test_a_constant_stays_constant_however_windows_overlap(write_scene):
    scene = open_scene(write_scene(noise(2, 33, 40, "uint8")))
    for geometry in ("centre", "blend"):
        grid, found = run(scene, geometry=geometry, model=lambda views: torch.full((len(views), 1), 0.37))
        assert np.allclose(cell_values(found, grid, geometry), 0.37, rtol=1e-6)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**20))
def test_shares_of_windows_are_counted(height, width, size, stride, seed):
    if size > min(height, width):
        return
    valid = np.random.default_rng(seed).random((height, width)) < 0.5
    found = window_shares(valid, size, stride)
    for i, top in enumerate(range(0, height - size + 1, stride)):
        for j, left in enumerate(range(0, width - size + 1, stride)):
            assert found[i, j] == pytest.approx(valid[top : top + size, left : left + size].mean())


def test_what_is_missing_stays_missing(write_scene):
    values = noise(2, 32, 32, "uint8")
    values[:, :, :16] = 0
    scene = open_scene(write_scene(values, nodata=0))
    grid, found = run(scene, geometry="centre")
    assert np.isnan(found.values[0, :, :3]).all()  # windows from 0, 4 and 8 hold less than half
    assert np.isfinite(found.values[0, :, 3:]).all()
    cells = cell_values(found, grid, "centre")  # of 4 px, from pixel 2 on
    assert np.isnan(cells[0, :, :3]).all()
    assert np.isfinite(cells[0, :, 3:]).all()
    grid, found = run(scene, geometry="blend")
    cells = cell_values(found, grid, "blend")
    assert np.isnan(cells[0, :, :4]).all()  # no value where no pixel is, though windows reach there
    assert np.isfinite(cells[0, :, 4:]).all()


def test_a_cell_with_one_valid_pixel_counts():
    valid = np.zeros((12, 12), bool)
    valid[7, 4] = True
    grid = WindowGrid(12, 12, 8, 2)
    assert np.argwhere(cells_with_pixels(valid, grid, "centre", is_last=True)).tolist() == [[2, 0]]  # cells from pixel 3 on
    assert np.argwhere(cells_with_pixels(valid, grid, "blend", is_last=True)).tolist() == [[3, 2]]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"size": 40}, "--size 40 is larger than scene .* of 30 x 21 pixels"),
        ({"size": 8, "stride": 3, "geometry": "blend"}, "--size 8 is no multiple of --stride 3"),
    ],
)
def test_windows_that_do_not_fit_are_refused(write_scene, settings, sentence):
    with pytest.raises(InputError, match=sentence):
        run(open_scene(write_scene(noise(2, 21, 30, "uint8"))), **settings)


def test_a_scene_without_a_valid_window_is_refused(write_scene):
    with pytest.raises(InputError, match=r"no window of scene .* has enough valid pixels"):
        run(open_scene(write_scene(np.zeros((2, 21, 30), "uint8"), nodata=0)))
