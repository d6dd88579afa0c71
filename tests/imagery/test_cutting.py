"""The fast path against plain loops, the order of reading, and killed processes; what is cut is in test_patches.py."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.mask
import shapely
from rasterio.windows import Window

from imagery2flow.imagery import cutting
from imagery2flow.imagery.cutting import Candidate, CutOptions, CutResult, CutTask, band_sums, cut_chunk, reading_order
from imagery2flow.imagery.scene import Scene, blacken, open_scene
from imagery2flow.run.errors import InputError

from .helpers import cut, noise, place

DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]
TILED = {"tiled": True, "blockxsize": 32, "blockysize": 16, "compress": "deflate"}


def image(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Values [3, 20, 30] with negative ones where the type has them, NaN and infinity where not valid, and valid [20, 30]."""
    random = np.random.default_rng(3)
    valid = random.random((20, 30)) < 0.6
    values = random.integers(0 if dtype.startswith("u") else -120, 120, (3, 20, 30)).astype(dtype)
    values[0, valid] = np.abs(values[0, valid]) + 1  # a band without 0, whose minimum is not that of the blackened pixels
    if not dtype.startswith("u"):
        values[1, valid] = -values[0, valid]
    if dtype.startswith("f"):
        values[:, ~valid] = random.choice([np.nan, np.inf, -np.inf, -3.5], (3, (~valid).sum()))
    return values, valid


@pytest.mark.parametrize("dtype", DTYPES)
def test_blackened_pixels_are_zero_and_the_others_untouched(dtype):
    values, valid = image(dtype)
    expected = np.where(valid, values, np.zeros((), dtype))
    blacken(values, valid)
    assert values.tobytes() == expected.tobytes()  # not -0.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_equal_those_of_the_valid_pixels_alone(dtype):
    values, valid = image(dtype)
    pixels = values[:, valid].astype(np.float64)
    blacken(values, valid)
    sums = band_sums(values, valid)
    assert sums.count == valid.sum()
    assert np.array_equal(sums.total, pixels.sum(axis=1))
    assert np.array_equal(sums.squares, np.square(pixels).sum(axis=1))
    assert np.array_equal(sums.minimum, pixels.min(axis=1))
    assert np.array_equal(sums.maximum, pixels.max(axis=1))


def many_shapes(count: int, width: int, height: int) -> dict[str, shapely.Geometry]:
    """Discs and triangles all over a scene, across the borders of its blocks."""
    random = np.random.default_rng(5)
    shapes: dict[str, shapely.Geometry] = {}
    for number in range(count):
        column, row = random.uniform(25, width - 25), random.uniform(25, height - 25)
        corners = [place(column + x, row + y) for x, y in random.uniform(-20, 20, (3, 2))]
        shapes[f"{number:03d}"] = (
            shapely.Polygon(corners) if number % 2 else shapely.Point(place(column, row)).buffer(30 * random.uniform(1, 20))
        )
    return shapes


@pytest.mark.parametrize("all_touched", [False, True])
@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", 0), ("uint16", None), ("int16", -9), ("float32", np.nan)])
def test_units_across_blocks_equal_a_loop_over_rasterios_masks(tmp_path, write_scene, write_units, dtype, nodata, all_touched):
    values = noise(3, 130, 150, dtype)
    if nodata is not None:
        values[:, 40:60, 30:90] = nodata
    shapes = many_shapes(60, 150, 130)
    scene = write_scene(values, nodata=nodata, photometric="MINISBLACK", **TILED)
    folder, manifest, _ = cut(tmp_path / "out", scene, write_units(shapes), all_touched=all_touched)
    with rasterio.open(scene) as dataset:
        for geocode, shape in shapes.items():
            expected, _ = rasterio.mask.mask(dataset, [shape], crop=True, nodata=0 if nodata is None else nodata, all_touched=all_touched)
            missing = np.isnan(expected) if dtype == "float32" else expected == (nodata or 0)
            expected[missing] = 0
            if manifest.status[geocode] == "all nodata":
                assert not expected.any()
                continue
            with rasterio.open(folder / f"l8_2020_{geocode}.tif") as patch:
                assert patch.read().tobytes() == expected.tobytes()
    assert (manifest.status == "written").sum() > 50


def decoded_blocks(order: Sequence[CutTask], scene: Scene, cache_bytes: int) -> tuple[int, int]:
    """How many blocks are decoded with a cache that forgets what was used longest ago, and how many there are to decode."""
    cached: dict[tuple[int, int], None] = {}
    decoded, touched = 0, set()
    for task in order:
        window = task.candidates[0].window
        rows = range(window.row_off // scene.block_height, (window.row_off + window.height - 1) // scene.block_height + 1)
        columns = range(window.col_off // scene.block_width, (window.col_off + window.width - 1) // scene.block_width + 1)
        for block in ((row, column) for row in rows for column in columns):
            decoded += block not in cached
            cached.pop(block, None)
            cached[block] = None
            touched.add(block)
            if len(cached) * scene.block_bytes > cache_bytes:
                del cached[next(iter(cached))]
    return decoded, len(touched)


@pytest.mark.parametrize(("cache_blocks", "most"), [(1000, 1.0), (60, 1.1), (30, 1.3)])
def test_each_block_is_decoded_about_once(write_scene, monkeypatch, cache_blocks, most):
    scene = open_scene(write_scene(np.ones((1, 640, 640), "uint8"), **TILED | {"blockxsize": 16}))  # 40 x 40 blocks
    assert (scene.block_width, scene.block_height, scene.block_bytes) == (16, 16, 256)
    random = np.random.default_rng(0)
    places = random.integers(0, 628, (3000, 2))
    tasks = [
        CutTask(f"{number:04d}", (Candidate(0, Window(int(column), int(row), 12, 12), None),))
        for number, (column, row) in enumerate(places)
    ]
    # Half of the cache is kept free for patches, so that this many blocks are cut in bands of half as many.
    monkeypatch.setattr(cutting, "BLOCK_CACHE_BYTES", 2 * cache_blocks * scene.block_bytes)
    order = reading_order(tasks, [scene])
    assert sorted(order, key=lambda task: task.geocode) == tasks
    decoded, blocks = decoded_blocks(order, scene, cache_blocks * scene.block_bytes)
    assert blocks <= decoded <= most * blocks
    by_id, _ = decoded_blocks(tasks, scene, min(cache_blocks, 60) * scene.block_bytes)
    assert by_id > 3 * blocks  # the order of the ids decodes them many times


def test_gdals_cache_is_bounded_while_units_are_cut(tmp_path, write_scene, write_units, monkeypatch):
    found: list[int] = []
    inner = cutting.cut_unit
    monkeypatch.setattr(cutting, "cut_unit", lambda *arguments: found.append(rasterio.env.getenv()["GDAL_CACHEMAX"]) or inner(*arguments))
    cut(tmp_path, write_scene(noise(1, 60, 60)), write_units(many_shapes(3, 60, 60)))
    assert found == [128 * 2**20] * 3


def killed_half_way(tasks: Sequence[CutTask], scenes: Sequence[Scene], options: CutOptions) -> list[CutResult]:
    """Cuts units, but the process that is the first to reach unit 030 is killed after half of its units, in the middle of a file."""
    marker = options.folder.parent / "killed"
    if any(task.geocode == "030" for task in tasks) and not marker.exists():
        marker.touch()
        cut_chunk(tasks[: len(tasks) // 2], scenes, options)
        (options.folder / f".{options.prefix}_030.tif.machine.1.tif").write_bytes(b"half a patch")
        os.kill(os.getpid(), signal.SIGKILL)
    return cut_chunk(tasks, scenes, options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("where", ["processes", "cluster"])
def test_a_killed_process_changes_no_byte_of_what_is_written(tmp_path, write_scene, write_units, monkeypatch, request, where):
    monkeypatch.setattr(cutting, "SMALLEST_CHUNK", 8)
    scene, units = write_scene(noise(2, 130, 150, "float32") / 7, **TILED), write_units(many_shapes(60, 150, 130))
    alone, _, _ = cut(tmp_path / "alone", scene, units)
    monkeypatch.setattr(cutting, "cut_chunk", killed_half_way)
    dask = request.getfixturevalue("cluster").scheduler_address if where == "cluster" else None
    together, _, ledger = cut(tmp_path / "together", scene, units, workers=2, dask=dask)
    assert list((tmp_path / "together").rglob("killed"))
    assert len(contents(alone)) == 62
    assert contents(alone) == contents(together)
    assert ledger.went_out == {"patches": 60}


def test_paths_of_this_folder_are_found_by_a_cluster_that_works_in_another(tmp_path, write_scene, write_units, monkeypatch, cluster):
    write_scene(noise(1, 60, 60)), write_units(many_shapes(3, 60, 60))
    monkeypatch.chdir(tmp_path)
    _, manifest, ledger = cut(Path("out"), "scene.tif", "units.gpkg", dask=cluster.scheduler_address)
    assert (manifest.status == "written").all()
    assert any("workers of the dask scheduler at" in note for note in ledger.notes)


def test_a_worker_that_does_not_see_the_output_folder_is_refused_in_one_sentence(tmp_path):
    options = CutOptions(tmp_path / "elsewhere" / ".l8_2020.x", "l8_2020", False, False, 0.0)
    with pytest.raises(
        InputError, match=rf"does not see the output folder {tmp_path}/elsewhere; with --dask all machines must share one file"
    ):
        cut_chunk([], [], options)
