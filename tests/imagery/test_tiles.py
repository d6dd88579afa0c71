"""Tiles of a grid: where they lie, which pixels are counted with which, and what stage 1 makes of a tree of cities."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st

from imagery2flow.imagery.scene import open_scene
from imagery2flow.imagery.sites import Part, whole_scenes
from imagery2flow.imagery.tiles import grid_tiles
from imagery2flow.run.errors import InputError
from tests.imagery.helpers import cut, noise


def part(width: int, height: int, prefix: str = "", column: int = 0, row: int = 0) -> Part:
    return Part(0, prefix, column, row, width, height)


def as_tuple(window) -> tuple[int, int, int, int]:
    return window.col_off, window.row_off, window.width, window.height


def test_tiles_lie_within_their_part_in_row_major_order():
    tiles = grid_tiles([part(10, 8, column=100)], size=4, stride=3)  # columns 0, 3, 6; rows 0, 3 of the part
    assert [tile.geocode for tile in tiles] == ["r0000c0000", "r0000c0001", "r0000c0002", "r0001c0000", "r0001c0001", "r0001c0002"]
    corners = [(100, 0), (103, 0), (106, 0), (100, 3), (103, 3), (106, 3)]
    assert [as_tuple(tile.window) for tile in tiles] == [(*corner, 4, 4) for corner in corners]


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 12), st.integers(1, 14))
def test_each_pixel_of_a_tile_is_counted_with_one_tile(width, height, size, stride):
    if size > min(width, height):
        return
    covered, counted = np.zeros((height, width), int), np.zeros((height, width), int)
    for tile in grid_tiles([part(width, height)], size, stride):
        for count, window in ((covered, tile.window), (counted, tile.counted)):
            count[window.row_off : window.row_off + window.height, window.col_off : window.col_off + window.width] += 1
    assert np.array_equal(counted, covered > 0)


def test_tiles_of_several_scenes_carry_the_scenes_name(write_scene):
    scenes = [open_scene(write_scene(noise(1, 4, 4), name)) for name in ("a.tif", "b.tif")]
    tiles = grid_tiles(whole_scenes(scenes), 4, 4)
    assert [(tile.geocode, tile.part.scene_number) for tile in tiles] == [("a-r0000c0000", 0), ("b-r0000c0000", 1)]
    with pytest.raises(InputError, match=r"scenes share a file name \(a\)"):
        whole_scenes([scenes[0], scenes[0]])


def test_a_tile_larger_than_the_scene_is_refused():
    with pytest.raises(InputError, match=r"--size 9 is larger than every scene \(the largest fits 8 pixels\)"):
        grid_tiles([part(10, 8)], 9, 9)


@pytest.fixture
def cities(tmp_path) -> Path:
    """Two cities of two sites; the scenes, of 12 x 8 pixels and one of 7 x 8, as PNG, JPEG and TIFF without a CRS."""
    root = tmp_path / "raw"
    for number, name in enumerate(
        ("Almaty (ALA)/s1/a.png", "Almaty (ALA)/s2/a.png", "Bonn/s1/b.png", "Bonn/s1/narrow.png", "Bonn/s2/b.png")
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(root / name, noise(3, 8, 7 if "narrow" in name else 12, "uint8", seed=number))
    (root / "Bonn" / "notes.txt").write_text("not an image")
    (root / ".ipynb_checkpoints").mkdir()
    return root


def write_image(path: Path, values: np.ndarray) -> None:
    with rasterio.open(path, "w", driver="PNG", width=values.shape[2], height=values.shape[1], count=len(values), dtype="uint8") as image:
        image.write(values)


def test_a_tree_of_cities_is_cut_by_the_published_split(cities, tmp_path):
    folder, manifest, ledger = cut(tmp_path / "out", str(cities), mode="grid", size=4, stride=2)
    # 5 x 3 tiles of 12 x 8, 2 x 3 of 7 x 8 (one column of pixels is left over), 2 x 3 of each half of 6 x 8.
    assert manifest.groupby(["city", "site", "split"]).size().to_dict() == {
        ("Almaty (ALA)", "s1", "train"): 15,
        ("Almaty (ALA)", "s2", "test"): 6,
        ("Almaty (ALA)", "s2", "validation"): 6,
        ("Bonn", "s1", "train"): 21,
        ("Bonn", "s2", "test"): 6,
        ("Bonn", "s2", "validation"): 6,
    }
    assert manifest.loc["Bonn-s2-b-half1-r0000c0001", "column_offset"] == 2
    assert manifest.loc["Bonn-s2-b-half2-r0000c0001", "column_offset"] == 8
    assert ledger.left_out == {"files that are no images": ["Bonn/notes.txt"]}
    assert any("pixels lie in no tile" in note for note in ledger.notes)
    with rasterio.open(folder / "l8_2020_Bonn-s2-b-half2-r0001c0001.tif") as tile, rasterio.open(cities / "Bonn/s2/b.png") as scene:
        assert np.array_equal(tile.read(), scene.read()[:, 2:6, 8:12])


def test_no_tile_crosses_from_one_split_into_another(cities, tmp_path):
    _, manifest, _ = cut(tmp_path / "out", str(cities), mode="grid", size=3, stride=1)
    for _, tiles in manifest[manifest.site == "s2"].groupby("city"):
        columns = {
            split: {column for start in own.column_offset for column in range(start, start + 3)} for split, own in tiles.groupby("split")
        }
        assert columns == {"test": set(range(6)), "validation": set(range(6, 12))}


def test_tiles_that_stay_windows_have_the_manifest_of_those_that_are_written(cities, tmp_path):
    _, written, _ = cut(tmp_path / "written", str(cities), mode="grid", size=4, stride=2)
    folder, windows, ledger = cut(tmp_path / "windows", str(cities), mode="grid", size=4, stride=2, materialize=False)
    assert windows.drop(columns=["path", "status"]).equals(written.drop(columns=["path", "status"]))
    assert set(windows.status) == {"window"}
    assert windows.path["Bonn-s1-narrow-r0000c0000"] == "Bonn/s1/narrow.png"
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.csv", "stats.json"]
    assert f"tiles stay windows of their scenes: give the next stages --scene_dir {cities}" in ledger.notes


def test_statistics_of_windows_count_every_pixel_once(cities, tmp_path):
    folder, _, _ = cut(tmp_path / "windows", str(cities), mode="grid", size=4, stride=2, materialize=False, split="none")
    images = [rasterio.open(path).read() for path in sorted(cities.rglob("*.png"))]
    pixels = np.concatenate([image[:, :, : image.shape[2] // 2 * 2].reshape(3, -1) for image in images], axis=1)  # 6 of the 7 columns
    found = json.loads((folder / "stats.json").read_text())
    assert found["num_valid_pixels"] == pixels.shape[1]
    assert [band["mean"] for band in found["bands"]] == pytest.approx(pixels.mean(axis=1).tolist(), rel=1e-12)
    assert [band["std"] for band in found["bands"]] == pytest.approx(pixels.std(axis=1).tolist(), rel=1e-9)


def test_missing_pixels_count_in_windows_as_in_files(write_scene, tmp_path):
    values = noise(2, 9, 11, "uint8")
    values[:, :5, :4] = 0
    scene = write_scene(values, nodata=0)
    _, written, of_files = cut(tmp_path / "written", scene, mode="grid", size=4, stride=1, min_valid=0.3)
    _, windows, ledger = cut(tmp_path / "windows", scene, mode="grid", size=4, stride=1, min_valid=0.3, materialize=False)
    assert windows.valid_fraction.equals(written.valid_fraction)
    assert windows.status.replace("window", "written").equals(written.status)
    assert ledger.left_out == of_files.left_out
    assert {"all nodata", "below --min_valid"} == set(ledger.left_out)


def test_several_processes_measure_the_same(cities, tmp_path, monkeypatch):
    monkeypatch.setattr("imagery2flow.imagery.cutting.SMALLEST_CHUNK", 5)
    alone, _, _ = cut(tmp_path / "alone", str(cities), mode="grid", size=4, stride=2, materialize=False)
    shared, _, _ = cut(tmp_path / "shared", str(cities), mode="grid", size=4, stride=2, materialize=False, workers=2)
    for name in ("manifest.csv", "stats.json"):
        assert (alone / name).read_bytes() == (shared / name).read_bytes()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"split": "sites"}, "2 cities have too few sites"),
        ({"split": "last_site", "size": 9}, "--size 9 is larger than every scene"),
    ],
)
def test_what_a_tree_cannot_give_is_refused(cities, tmp_path, settings, sentence):
    with pytest.raises(InputError, match=sentence):
        cut(tmp_path / "out", str(cities), **{"mode": "grid", "size": 4, **settings})


def test_a_split_needs_a_tree(write_scene, tmp_path):
    with pytest.raises(InputError, match="--split sites needs a folder of <city>/<site>/<image>"):
        cut(tmp_path / "out", write_scene(noise(1, 8, 8)), mode="grid", size=4, split="sites")
