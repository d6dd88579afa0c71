"""Tiles that stay windows of their scenes are the tiles that would have been written."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from imagery2flow.imagery.patch_files import find_patches, georeference, load_patches, read_patches
from imagery2flow.imagery.pyramid import build_pyramid
from imagery2flow.imagery.views import cut as cut_views
from imagery2flow.imagery.views import draw_views, embedding_views, render
from imagery2flow.imagery.windows import TileWindow, plan_images
from imagery2flow.run.config import ViewConfig
from imagery2flow.run.errors import BandError, InputError, MissingInputError, TableError
from tests.imagery.helpers import cut, noise, quiet

SIZE, STRIDE = 32, 16


@pytest.fixture
def tiles(tmp_path, write_scene) -> tuple[Path, Path, Path]:
    """Folder of written tiles, folder of the same as windows, and the folder of their two scenes, with missing pixels."""
    scenes = []
    for number in range(2):
        values = noise(3, 70, 90, "uint16", seed=number)
        values[:, 20:60, 30:50] = 0
        scenes.append(write_scene(values, f"scene{number}.tif", nodata=0))
    settings = {"mode": "grid", "size": SIZE, "stride": STRIDE}
    written, _, _ = cut(tmp_path / "written", scenes, **settings)
    windows, _, _ = cut(tmp_path / "windows", scenes, **settings, materialize=False)
    return written, windows, Path(scenes[0]).parent


def test_tiles_of_windows_hold_the_pixels_of_written_ones(tiles):
    written, windows, scene_dir = tiles
    one = load_patches(str(written), [], quiet())
    two = read_patches(find_patches(str(windows), [], quiet(), scene_dir=str(scene_dir)))
    assert one.geocodes == two.geocodes
    for position in range(len(one)):
        for left, right in zip(one.patch(position), two.patch(position), strict=True):
            assert np.array_equal(left, right)
    assert len(two.values) < 0.5 * len(one.values)  # pixels that tiles share are held once


@pytest.mark.parametrize("view_size", [8, 16, 40])
def test_views_of_windows_are_those_of_written_tiles(tiles, view_size):
    written, windows, scene_dir = tiles
    patches = [load_patches(str(written), [], quiet()), read_patches(find_patches(str(windows), [], quiet(), scene_dir=str(scene_dir)))]
    pyramids = [build_pyramid(part, patches[0].normalisation, view_size) for part in patches]
    everything = torch.arange(len(patches[0]))
    one, two = (embedding_views(pyramid, everything, view_size) for pyramid in pyramids)
    assert torch.equal(one, two)
    drawn = [draw_views(pyramid, everything, ViewConfig(), torch.Generator().manual_seed(3)) for pyramid in pyramids]
    crops = [cut_views(pyramid, part.boxes, view_size) for pyramid, part in zip(pyramids, drawn, strict=True)]
    for left, right in zip(render(crops[0], True), render(crops[1], True), strict=True):
        assert torch.allclose(left.float(), right.float(), atol=1e-2)  # corners of crops are kept in single precision


def test_a_window_lies_where_its_tile_would(tiles):
    written, windows, scene_dir = tiles
    files, own = find_patches(str(written), [], quiet()), find_patches(str(windows), [], quiet(), scene_dir=str(scene_dir))
    for geocode in files.paths:
        assert georeference(own, geocode) == georeference(files, geocode)


def test_some_bands_of_windows_are_read_by_name_or_number(tiles):
    _, windows, scene_dir = tiles
    everything = find_patches(str(windows), [], quiet(), scene_dir=str(scene_dir))
    chosen = find_patches(str(windows), [everything.names[2], "1"], quiet(), scene_dir=str(scene_dir))
    assert chosen.names == (everything.names[2], everything.names[0])
    assert np.array_equal(read_patches(chosen).patch(0)[0], read_patches(everything).patch(0)[0][..., [2, 0]])
    with pytest.raises(BandError, match=r"--bands 4 but the patches of .* have 3 bands"):
        find_patches(str(windows), ["4"], quiet(), scene_dir=str(scene_dir))


def test_no_image_holds_pixels_of_two_splits_and_far_tiles_are_read_alone():
    paths = {name: Path("a.tif") for name in ("near", "nearer", "test", "far")} | {"other": Path("b.tif")}
    windows = {
        "near": TileWindow(0, 0, 8, 8, "train"),
        "nearer": TileWindow(4, 0, 8, 8, "train"),
        "test": TileWindow(12, 0, 8, 8, "test"),
        "far": TileWindow(400, 400, 8, 8, "test"),
        "other": TileWindow(0, 0, 8, 8, "train"),
    }
    plans = plan_images(paths, windows)
    assert [plan.geocodes for plan in plans] == [("near", "nearer"), ("test",), ("far",), ("other",)]
    assert plans[0].window.width == 12
    assert plans[2].window.col_off == 400


def test_windows_without_their_scenes_are_refused(tiles, tmp_path):
    _, windows, scene_dir = tiles
    with pytest.raises(MissingInputError, match=r"are windows of scenes; name the folder of those with --scene_dir"):
        find_patches(str(windows), [], quiet())
    with pytest.raises(MissingInputError, match=r"2 scenes of .*manifest.csv are not in --scene_dir .*scene0.tif"):
        find_patches(str(windows), [], quiet(), scene_dir=str(tmp_path / "none"))
    files = find_patches(str(windows), [], quiet(), scene_dir=str(scene_dir))
    (scene_dir / "scene1.tif").write_bytes((scene_dir / "scene1.tif").read_bytes()[:400])
    with pytest.raises(InputError, match=r"scene .*scene1.tif"):
        read_patches(files)


@pytest.mark.parametrize(
    ("column", "value", "error", "sentence"),
    [
        ("width", "x", TableError, "1 windows that are no rectangles of pixels"),
        ("height", 1e9, TableError, "1 windows that are no rectangles of pixels"),
        ("row_offset", -1, TableError, "1 windows that are no rectangles of pixels"),
        ("column_offset", 70, InputError, "has 90 x 70 pixels but tiles reach beyond them"),
        ("path", "../scene0.tif", InputError, "scene0.tif"),
    ],
)
def test_a_manifest_that_is_not_true_is_refused(tiles, column, value, error, sentence):
    _, windows, scene_dir = tiles
    manifest = pd.read_csv(windows / "manifest.csv", dtype={column: object})
    manifest.loc[0, column] = value
    manifest.to_csv(windows / "manifest.csv", index=False)
    with pytest.raises(error, match=sentence):
        read_patches(find_patches(str(windows), [], quiet(), scene_dir=str(scene_dir)))


def test_statistics_that_do_not_tell_of_scenes_are_refused(tiles):
    _, windows, scene_dir = tiles
    (windows / "stats.json").write_text('{"bands": []}')
    with pytest.raises(InputError, match=r"stats.json does not say how the tiles' scenes are read"):
        find_patches(str(windows), [], quiet(), scene_dir=str(scene_dir))
