"""Cutting along polygons. Scenes that meet, modes and options are in test_patches_scenes.py."""

import json
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import rasterio.mask
import shapely

from imagery2flow.imagery import cutting, patches
from imagery2flow.imagery.patch_files import load_patches
from imagery2flow.imagery.patches import read_manifest
from imagery2flow.run import parallel
from imagery2flow.run.errors import CRSError, InputError, MissingInputError

from .helpers import cut, noise, place, quiet, read, rectangle

ROOT = Path(__file__).parents[2]


def irregular_shapes(count: int = 12) -> dict[str, shapely.Geometry]:
    """Triangles, discs with a hole and two-part shapes inside a scene of 40 x 40 pixels."""
    random = np.random.default_rng(3)
    shapes: dict[str, shapely.Geometry] = {}
    for number in range(count):
        corners = [place(*position) for position in random.uniform(2, 38, (3, 2))]
        disc = shapely.Point(place(*random.uniform(10, 30, 2))).buffer(30 * random.uniform(1, 8))
        ring = disc.difference(disc.buffer(-30 * random.uniform(0.5, 2)))
        kinds = [shapely.Polygon(corners), ring, shapely.MultiPolygon([rectangle(3, 3, 2, 2), rectangle(20.3, 9.3, 4, 3)])]
        shapes[f"{number:03d}"] = kinds[number % 3]
    return shapes


def reference(scene: str, shape: shapely.Geometry, all_touched: bool = False):
    """The unit cut by rasterio: values with 0 outside, and their transform."""
    with rasterio.open(scene) as dataset:
        return rasterio.mask.mask(dataset, [shape], crop=True, nodata=0, all_touched=all_touched)


@pytest.mark.parametrize("all_touched", [False, True])
@pytest.mark.parametrize(
    ("dtype", "num_bands", "nodata"), [("uint8", 1, None), ("uint16", 6, 0), ("int16", 3, -9999), ("float32", 2, np.nan), ("uint8", 4, 0)]
)
def test_patches_equal_rasterios_masks_byte_for_byte(tmp_path, write_scene, write_units, dtype, num_bands, nodata, all_touched):
    shapes = irregular_shapes()
    profile = {"photometric": "MINISBLACK"} if dtype == "uint8" else {}
    scene = write_scene(noise(num_bands, 40, 40, dtype), nodata=nodata, **profile)
    folder, manifest, _ = cut(tmp_path / "out", scene, write_units(shapes), all_touched=all_touched)
    assert list(manifest.index) == list(shapes)
    for geocode, shape in shapes.items():
        values, transform = reference(scene, shape, all_touched)
        with rasterio.open(folder / f"l8_2020_{geocode}.tif") as patch:
            assert np.array_equal(patch.read(), values)
            assert (patch.dtypes[0], patch.crs.to_epsg()) == (dtype, 32618)
            assert patch.transform.almost_equals(transform)


def test_the_manifest_says_where_each_patch_came_from(tmp_path, write_scene, write_units):
    values = noise(1, 10, 10)
    values[0, 2, 3] = 0
    folder, manifest, ledger = cut(tmp_path, write_scene(values, nodata=0), write_units({"01": rectangle(3, 2, 2, 4)}))
    assert folder == tmp_path / "M1" / "l8_2020"
    columns = ["status", "path", "scene", "column_offset", "row_offset", "width", "height", "valid_fraction"]
    assert list(manifest.columns) == columns
    assert manifest.loc["01"].tolist() == ["written", "l8_2020_01.tif", "scene.tif", 3, 2, 2, 4, 0.875]
    assert ledger.summary() == "in: 1 units; out: 1 patches; left out: nothing"


def test_units_without_a_patch_stay_in_manifest_and_ledger(tmp_path, write_scene, write_units):
    values = noise(1, 10, 10)
    values[0, 5:, 5:] = 0
    shapes = {"written": rectangle(1, 1, 2, 2), "outside": rectangle(50, 50, 2, 2), "dark": rectangle(6, 6, 2, 2)}
    folder, manifest, ledger = cut(tmp_path, write_scene(values, nodata=0), write_units(shapes))
    assert manifest.status.to_dict() == {"written": "written", "outside": "outside every scene", "dark": "all nodata"}
    assert ledger.left_out == {"outside every scene": ["outside"], "all nodata": ["dark"]}
    assert (ledger.came_in, ledger.went_out) == ({"units": 3}, {"patches": 1})
    assert manifest.path.notna().to_dict() == {"written": True, "outside": False, "dark": False}
    assert sorted(path.name for path in folder.iterdir()) == ["l8_2020_written.tif", "manifest.csv", "stats.json"]


def test_a_unit_whose_polygon_misses_the_scene_is_outside_though_its_bounding_box_is_not(tmp_path, write_scene, write_units):
    corner = shapely.Polygon([place(-30, 10), place(7, -30), place(-30, -30)])
    _, manifest, _ = cut(tmp_path, write_scene(noise(1, 40, 40)), write_units({"corner": corner, "in": rectangle(1, 1, 3, 3)}))
    assert manifest.status["corner"] == "outside every scene"


def test_units_without_geometry_are_counted(tmp_path, write_scene, write_units):
    _, _, ledger = cut(tmp_path, write_scene(noise(1, 9, 9)), write_units({"a": rectangle(1, 1, 2, 2), "b": None}))
    assert ledger.summary() == "in: 2 units; out: 1 patches; left out: 1 without geometry in the units file (b)"


def test_units_apart_from_the_scene_are_refused_with_both_extents_and_nothing_is_written(tmp_path, write_scene, write_units):
    shapes = {"a": gpd.GeoSeries([rectangle(1000, 0, 2, 2)], crs=32618).to_crs(4326)[0]}
    with pytest.raises(InputError, match=r"no unit of .*units.gpkg lies on a scene: the units cover -74\.\d+ .*scene.tif -75\.000 40\.\d+"):
        cut(tmp_path / "out", write_scene(noise(1, 9, 9)), write_units(shapes, crs=4326))
    assert not (tmp_path / "out").exists()


def test_units_that_are_all_missing_are_refused(tmp_path, write_scene, write_units):
    scene = write_scene(np.zeros((1, 9, 9), "uint8"), nodata=0)
    with pytest.raises(
        InputError,
        match=r"all 1 units have too few valid pixels on the scenes \(.*scene.tif, nodata 0\); check that value, or --min_valid 0",
    ):
        cut(tmp_path, scene, write_units({"a": rectangle(1, 1, 2, 2)}))


def test_units_in_degrees_give_the_same_patches_and_a_note(tmp_path, write_scene, write_units):
    shapes, scene = irregular_shapes(), write_scene(noise(2, 40, 40))
    degrees = gpd.GeoSeries(shapes, crs=32618).to_crs(4326).to_dict()
    straight, _, _ = cut(tmp_path / "utm", scene, write_units(shapes))
    turned, _, ledger = cut(tmp_path / "degrees", scene, write_units(degrees, crs="EPSG:4326"))
    assert "units reprojected from EPSG:4326 to EPSG:32618 for scene scene.tif" in ledger.notes
    assert all(np.array_equal(read(straight, geocode), read(turned, geocode)) for geocode in shapes)


def test_a_scene_without_crs_is_refused(tmp_path, write_scene, write_units):
    with pytest.raises(CRSError, match=r"scene .*scene.tif states no CRS"):
        cut(tmp_path, write_scene(noise(1, 9, 9), crs=None), write_units({"a": rectangle(1, 1, 2, 2)}))


def test_valid_zeros_stay_valid_by_a_mask_in_the_file(tmp_path, write_scene, write_units):
    scene = write_scene(np.array([[[0, 0, 9], [9, 9, 9], [9, 9, 9]]], dtype="uint8"))
    triangle = shapely.Polygon([place(0, 0), place(2.9, 0), place(0, 2.9)])
    folder, manifest, _ = cut(tmp_path, scene, write_units({"a": triangle}))
    loaded = load_patches(str(folder), [], quiet())
    values, valid = loaded.patch(0)
    assert valid.tolist() == [[True, True, False], [True, False, False], [False, False, False]]
    assert values[..., 0].tolist() == [[0, 0, 0], [9, 0, 0], [0, 0, 0]]
    assert (manifest.valid_fraction["a"], loaded.normalisation.mean) == (1, (3.0,))
    assert sorted(path.name for path in folder.iterdir()) == ["l8_2020_a.tif", "manifest.csv", "stats.json"]
    with rasterio.open(folder / "l8_2020_a.tif") as patch:
        assert patch.nodata is None


def test_without_valid_zeros_nodata_is_zero_as_published(tmp_path, write_scene, write_units):
    folder, _, _ = cut(tmp_path, write_scene(noise(1, 9, 9)), write_units({"a": rectangle(1, 1, 2, 2)}))
    with rasterio.open(folder / "l8_2020_a.tif") as patch:
        assert patch.nodata == 0


def test_a_sliver_without_a_pixel_centre_keeps_the_pixels_it_touches(tmp_path, write_scene, write_units):
    values = noise(1, 9, 9)
    shapes = {"sliver": rectangle(1.1, 2.1, 3, 0.2), "speck": rectangle(5.6, 5.6, 0.1, 0.1)}
    folder, manifest, _ = cut(tmp_path, write_scene(values), write_units(shapes))
    assert np.array_equal(read(folder, "sliver")[0], values[0, 2:3, 1:5])
    assert np.array_equal(read(folder, "speck")[0], values[0, 5:6, 5:6])
    assert (manifest.status == "written").all()


def test_statistics_equal_numpys_over_all_valid_pixels(tmp_path, write_scene, write_units):
    shapes = {"a": rectangle(0, 0, 3, 2), "b": rectangle(5, 4, 2, 5)}
    values = noise(2, 10, 10, "float32") * np.float32(0.1)
    values[:, 0, 0] = np.nan
    folder, _, _ = cut(tmp_path, write_scene(values, names=("red", "nir")), write_units(shapes), region="X", tag="l8", year=2020)
    valid = np.concatenate([values[:, 0:2, 0:3].reshape(2, -1)[:, 1:], values[:, 4:9, 5:7].reshape(2, -1)], axis=1).astype(float)
    content = json.loads((folder / "stats.json").read_text())
    for number, band in enumerate(content["bands"]):
        assert band["name"] == ("red", "nir")[number]
        found = [band[name] for name in ("mean", "std", "min", "max")]
        pixels = valid[number]
        assert found == pytest.approx([pixels.mean(), pixels.std(), pixels.min(), pixels.max()], rel=1e-12)
    rest = {name: content[name] for name in ("region", "tag", "year", "mode", "dtype", "nodata", "gsd_m", "num_valid_pixels", "scenes")}
    assert rest == {
        "region": "X",
        "tag": "l8",
        "year": 2020,
        "mode": "zones",
        "dtype": "float32",
        "nodata": 0,
        "gsd_m": 30.0,
        "num_valid_pixels": 15,
        "scenes": ["scene.tif"],
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_two_processes_write_the_same_bytes_as_one(tmp_path, write_scene, write_units, monkeypatch):
    monkeypatch.setattr(cutting, "SMALLEST_CHUNK", 2)
    scene, units = write_scene(noise(2, 40, 40, "float32") / 7), write_units(irregular_shapes())
    pools: list[int] = []
    start_pool = parallel.ProcessPoolExecutor
    monkeypatch.setattr(
        parallel, "ProcessPoolExecutor", lambda workers, *context, **more: pools.append(workers) or start_pool(workers, *context, **more)
    )
    one, manifest, _ = cut(tmp_path / "one", scene, units, workers=1)
    two, _, _ = cut(tmp_path / "two", scene, units, workers=2)
    assert pools == [2]
    assert len(contents(one)) == 14
    assert list(manifest.index) == sorted(manifest.index)
    assert contents(one) == contents(two)


def test_a_crash_leaves_the_folder_of_an_earlier_run_as_it_was(tmp_path, write_scene, write_units, monkeypatch):
    scene = write_scene(noise(1, 40, 40))
    folder, _, _ = cut(tmp_path, scene, write_units({"a": rectangle(1, 1, 3, 3)}))
    before = contents(folder)
    monkeypatch.setattr(patches, "collect_statistics", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cut(tmp_path, scene, write_units({"a": rectangle(5, 5, 3, 3), "b": rectangle(1, 1, 3, 3)}))
    assert contents(folder) == before


def test_the_manifest_is_the_last_file_that_is_put_in_place(tmp_path, write_scene, write_units, monkeypatch):
    moved = []
    replace = Path.replace
    scene, units = write_scene(noise(1, 40, 40)), write_units(irregular_shapes())
    cut(tmp_path, scene, units)
    monkeypatch.setattr(Path, "replace", lambda path, target: moved.append(target.name) or replace(path, target))
    folder, _, _ = cut(tmp_path, scene, units)  # into the folder that is there
    assert len(list(folder.iterdir())) == 14
    assert [name for name in moved if not name.startswith(".")][-1] == "manifest.csv"  # then the temporary folder goes


def test_the_order_of_the_rows_of_the_units_changes_nothing(tmp_path, write_scene, write_units):
    scene, shapes = write_scene(noise(2, 40, 40, "float32") / 7), irregular_shapes()
    straight, _, _ = cut(tmp_path / "straight", scene, write_units(shapes))
    backwards, _, _ = cut(tmp_path / "backwards", scene, write_units(dict(reversed(shapes.items()))))
    assert contents(straight) == contents(backwards)


def test_a_unit_named_na_keeps_its_name(tmp_path, write_scene, write_units):
    folder, _, _ = cut(tmp_path, write_scene(noise(1, 9, 9)), write_units({"NA": rectangle(1, 1, 2, 2), "001": rectangle(3, 3, 2, 2)}))
    assert read_manifest(folder).geocode.tolist() == ["001", "NA"]
    assert load_patches(str(folder), [], quiet()).geocodes == ("001", "NA")


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(MissingInputError, match=r"has no manifest.csv; make the patches with img_preprocessing.py"):
        read_manifest(tmp_path)


def test_the_stage_runs_from_the_command_line(tmp_path, write_scene, write_units):
    scene, units = write_scene(noise(1, 9, 9)), write_units({"01": rectangle(1, 1, 2, 2), "02": rectangle(70, 70, 2, 2)})
    flags = f"--input_tif_path {scene} --shp_path {units} --output_tif_dir {tmp_path} --region R --year 2021 --tag s2".split()
    answer = subprocess.run([sys.executable, str(ROOT / "img_preprocessing.py"), *flags], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "in: 2 units; out: 1 patches; left out: 1 outside every scene (02)" in answer.stderr
    folder = tmp_path / "R" / "s2_2021"
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.csv", "run.json", "s2_2021_01.tif", "stats.json"]
    assert set(json.loads((folder / "run.json").read_text())["inputs_sha256"]) == {scene, units}
