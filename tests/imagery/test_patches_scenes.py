"""Several scenes, other files than GeoTIFF, the modes grid and points, margins and thresholds."""

import time

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import shapely
from rasterio.transform import from_origin
from rasterio.windows import Window

from imagery2flow.imagery.patch_files import load_patches
from imagery2flow.run.errors import BandError

from .helpers import GSD_M, LEFT, TOP, cut, noise, place, quiet, read, rectangle


def test_each_of_two_utm_zones_serves_its_own_units(tmp_path, write_scene, write_units):
    west, east = noise(1, 20, 20, seed=1), noise(1, 20, 20, seed=2)
    scenes = [write_scene(west, "west.tif", crs="EPSG:32617"), write_scene(east, "east.tif", crs="EPSG:32618")]
    shape = rectangle(3, 4, 5, 6)
    degrees = {name: gpd.GeoSeries([shape], crs=crs).to_crs(4326)[0] for name, crs in (("w", 32617), ("e", 32618))}
    folder, manifest, _ = cut(tmp_path, scenes, write_units(degrees, crs="EPSG:4326"))
    assert manifest.scene.to_dict() == {"e": "east.tif", "w": "west.tif"}
    assert np.array_equal(read(folder, "w"), west[:, 4:10, 3:8])
    assert np.array_equal(read(folder, "e"), east[:, 4:10, 3:8])
    for geocode, epsg in (("w", 32617), ("e", 32618)):
        with rasterio.open(folder / f"l8_2020_{geocode}.tif") as patch:
            assert patch.crs.to_epsg() == epsg
            assert (patch.transform.c, patch.transform.f) == (LEFT + 3 * GSD_M, TOP - 4 * GSD_M)


def test_of_overlapping_scenes_the_one_with_most_valid_pixels_wins(tmp_path, write_scene, write_units):
    cloudy, clear = noise(1, 20, 20, seed=1), noise(1, 20, 20, seed=2)
    cloudy[0, :, :10] = 0  # missing in the west
    clear[0, 0, 0] = clear[0, 5, 15] = 0
    scenes = [write_scene(cloudy, "cloudy.tif", nodata=0), write_scene(clear, "clear.tif", nodata=0)]
    shapes = {"west": rectangle(0, 0, 4, 4), "east": rectangle(14, 4, 4, 4), "both": rectangle(12, 12, 3, 3)}
    folder, manifest, _ = cut(tmp_path, scenes, write_units(shapes))
    assert manifest.scene.to_dict() == {"west": "clear.tif", "east": "cloudy.tif", "both": "cloudy.tif"}
    assert manifest.valid_fraction["west"] == pytest.approx(15 / 16)
    assert np.array_equal(read(folder, "west"), clear[:, :4, :4])
    assert np.array_equal(read(folder, "both"), cloudy[:, 12:15, 12:15])


def test_a_unit_that_lies_on_two_scenes_beside_each_other_is_named(tmp_path, write_scene, write_units):
    east = from_origin(LEFT + 20 * GSD_M, TOP, GSD_M, GSD_M)
    scenes = [write_scene(noise(1, 20, 20), "west.tif"), write_scene(noise(1, 20, 20), "east.tif", transform=east)]
    shapes = {"both": rectangle(14, 4, 10, 4), "mostly": rectangle(0, 0, 20.4, 10), "west": rectangle(2, 2, 4, 4)}
    _, manifest, ledger = cut(tmp_path, scenes, write_units(shapes))
    assert manifest.valid_fraction.to_dict() == {"both": 0.6, "mostly": 1.0, "west": 1.0}
    assert any(note.startswith("1 units are covered by less than 95% by imagery (both); a unit takes one scene") for note in ledger.notes)


def test_scenes_with_other_bands_are_refused(tmp_path, write_scene, write_units):
    scenes = [write_scene(noise(1, 9, 9), "a.tif", names=["red"]), write_scene(noise(1, 9, 9), "b.tif", names=["nir"])]
    with pytest.raises(BandError, match="choose common ones with --bands"):
        cut(tmp_path, scenes, write_units({"a": rectangle(1, 1, 2, 2)}))


def test_a_vrt_gives_the_patches_of_its_source(tmp_path, write_scene, write_units):
    source = write_scene(noise(3, 20, 20, "int16"), names=("red", "nir", "thermal"), nodata=-1)
    vrt = str(tmp_path / "scene.vrt")
    rasterio.shutil.copy(source, vrt, driver="VRT")
    units = write_units({"a": rectangle(2, 3, 4, 5)})
    (straight, _, _), (virtual, _, _) = cut(tmp_path / "a", source, units), cut(tmp_path / "b", vrt, units)
    assert (virtual / "l8_2020_a.tif").read_bytes() == (straight / "l8_2020_a.tif").read_bytes()


def test_bands_are_chosen_by_name_and_named_in_the_patches(tmp_path, write_scene, write_units):
    values = noise(3, 9, 9)
    scene = write_scene(values, names=("TM3_red", "TM4_nir", "TM6_thermal"))
    folder, _, _ = cut(tmp_path, scene, write_units({"a": rectangle(1, 1, 2, 2)}), bands=["thermal", "red"])
    assert np.array_equal(read(folder, "a"), values[[2, 0], 1:3, 1:3])
    assert load_patches(str(folder), [], quiet()).normalisation.band_names == ("thermal", "red")


@pytest.mark.parametrize("lowest", [0, 1])  # a patch with valid zeros carries a mask, one without has nodata 0
def test_a_fourth_uint8_band_without_a_name_reaches_the_encoder(tmp_path, write_scene, write_units, lowest):
    values = noise(4, 9, 9, "uint8")
    values[3, 2, 2] = lowest
    scene = write_scene(values, photometric="RGB", alpha="NO")  # as aerial photographs with near infrared are delivered
    folder, _, _ = cut(tmp_path, scene, write_units({"a": rectangle(1, 1, 4, 5)}))
    with rasterio.open(folder / "l8_2020_a.tif") as patch:
        assert "alpha" not in [kind.name for kind in patch.colorinterp]
    patches = load_patches(str(folder), ["4"], quiet())
    assert patches.valid.all()
    assert np.array_equal(patches.patch(0)[0], values[:, 1:6, 1:5].transpose(1, 2, 0))


def test_the_ledger_says_what_is_taken_as_alpha_and_what_marks_missing_pixels(tmp_path, write_scene, write_units):
    scene, units = write_scene(noise(4, 9, 9, "uint8"), nodata=255), write_units({"a": rectangle(1, 1, 2, 2)})
    _, _, ledger = cut(tmp_path / "mask", scene, units, nodata=0.0)
    assert ledger.notes[0].endswith("nodata 255 and 0")
    assert ledger.notes[1].startswith("scene scene.tif: band 4 is taken as alpha, not as imagery; if it is imagery, name it")
    _, _, ledger = cut(tmp_path / "imagery", scene, units, bands=["1", "2", "3", "4"])
    assert not any("alpha" in note for note in ledger.notes)


def test_a_unit_at_the_edge_keeps_its_window_and_counts_what_lies_beyond_as_missing(tmp_path, write_scene, write_units):
    values = noise(1, 9, 9)
    folder, manifest, _ = cut(tmp_path, write_scene(values), write_units({"a": rectangle(-1, 7, 4, 4)}))
    expected = np.zeros((1, 4, 4), "uint16")
    expected[:, :2, 1:] = values[:, 7:, :3]
    assert np.array_equal(read(folder, "a"), expected)
    assert manifest.valid_fraction["a"] == 6 / 16


def test_a_margin_keeps_the_imagery_around_the_unit(tmp_path, write_scene, write_units):
    values = noise(1, 12, 12)
    triangle = shapely.Polygon([place(4, 4), place(8, 4), place(4, 8)])
    scene, units = write_scene(values), write_units({"a": triangle})
    blackened, _, _ = cut(tmp_path / "none", scene, units)
    kept, _, _ = cut(tmp_path / "zero", scene, units, context_m=0.0)
    widened, _, _ = cut(tmp_path / "sixty", scene, units, context_m=60.0)
    assert (read(blackened, "a") == 0).any()
    assert np.array_equal(read(kept, "a"), values[:, 4:8, 4:8])
    assert np.array_equal(read(widened, "a"), values[:, 2:10, 2:10])


def test_a_margin_does_not_make_a_patch_of_other_units_pixels(tmp_path, write_scene, write_units):
    values = noise(1, 12, 12)
    values[0, :4, :4], values[0, 8:, 8:10] = 0, 0  # clouds over "dark", over half of "half"
    beyond, dark, half = rectangle(12.5, 3, 3, 3), rectangle(0, 0, 4, 4), rectangle(8, 8, 4, 4)
    units = write_units({"beyond": beyond, "dark": dark, "half": half, "whole": rectangle(5, 4, 2, 2)})
    folder, manifest, _ = cut(tmp_path, write_scene(values, nodata=0), units, context_m=60.0, min_valid=0.6)
    expected = {"beyond": "outside every scene", "dark": "all nodata", "half": "below --min_valid", "whole": "written"}
    assert manifest.status.to_dict() == expected
    assert manifest.valid_fraction.to_dict() == {"beyond": 0, "dark": 0, "half": 0.5, "whole": 1}
    assert np.array_equal(read(folder, "whole"), values[:, 2:8, 3:9])


def test_too_few_valid_pixels_leave_a_unit_out(tmp_path, write_scene, write_units):
    values = noise(1, 12, 12)
    values[0, 0, 0], values[0, 6:8, 6] = 0, 0  # 3/4 of a valid, half of b
    units = write_units({"a": rectangle(0, 0, 2, 2), "b": rectangle(6, 6, 2, 2)})
    _, manifest, ledger = cut(tmp_path, write_scene(values, nodata=0), units, min_valid=0.75)
    assert manifest.status.to_dict() == {"a": "written", "b": "below --min_valid"}
    assert manifest.valid_fraction.to_dict() == {"a": 0.75, "b": 0.5}
    assert ledger.left_out == {"below --min_valid": ["b"]}


def test_the_published_grid_of_a_4800_pixel_scene_has_361_tiles(tmp_path, write_scene):
    values = np.full((1, 4800, 4800), 7, "uint8")
    values[0, 240, 480] = 9
    folder, manifest, ledger = cut(tmp_path, write_scene(values, tiled=True, compress="deflate"), mode="grid", size=480, stride=240)
    assert (len(manifest), ledger.went_out) == (361, {"patches": 361})
    assert (manifest.status == "written").all()
    assert manifest.loc["r0018c0018", ["column_offset", "row_offset", "width", "height"]].tolist() == [4320, 4320, 480, 480]
    assert read(folder, "r0001c0002")[0, 0, 0] == 9
    assert read(folder, "r0000c0001")[0, 240, 240] == 9
    assert sum(path.suffix == ".tif" for path in folder.iterdir()) == 361


@pytest.mark.parametrize("crs", [None, 'LOCAL_CS["site grid",UNIT["metre",1]]'])
def test_the_grid_needs_no_crs_and_the_stride_is_the_size_by_default(tmp_path, write_scene, crs):
    values = noise(3, 8, 12, "uint8")
    values[:, :4, :4] = 0
    folder, manifest, ledger = cut(tmp_path, write_scene(values, crs=crs, nodata=0), mode="grid", size=4)
    assert ledger.summary() == "in: 6 tiles; out: 5 patches; left out: 1 all nodata (r0000c0000)"
    assert np.array_equal(read(folder, "r0001c0002"), values[:, 4:8, 8:12])
    assert manifest.status["r0000c0000"] == "all nodata"


def test_points_get_the_square_around_them(tmp_path, write_scene, write_units):
    values = noise(2, 12, 12)
    points = {"a": shapely.Point(place(5, 6)), "edge": shapely.Point(place(0, 6)), "far": shapely.Point(place(60, 6))}
    folder, manifest, _ = cut(tmp_path, write_scene(values), write_units(points), mode="points", size=4)
    assert np.array_equal(read(folder, "a"), values[:, 4:8, 3:7])
    assert manifest.status.to_dict() == {"a": "written", "edge": "written", "far": "outside every scene"}
    assert manifest.valid_fraction["edge"] == 0.5


def test_only_windows_of_a_huge_scene_are_read(tmp_path, write_units):
    scene, corner = tmp_path / "huge.tif", np.full((1, 8, 8), 7, "uint8")
    size = {"count": 1, "height": 60_000, "width": 60_000, "dtype": "uint8", "nodata": 0}
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "SPARSE_OK": "TRUE"}
    transform = from_origin(LEFT, TOP, GSD_M, GSD_M)
    with rasterio.open(scene, "w", driver="GTiff", crs="EPSG:32618", transform=transform, **size, **layout) as dataset:
        dataset.write(corner, window=Window(50_000, 50_000, 8, 8))
    started = time.perf_counter()
    folder, manifest, _ = cut(tmp_path, str(scene), write_units({"far": rectangle(50_000, 50_000, 8, 8), "dark": rectangle(9, 9, 9, 9)}))
    assert time.perf_counter() - started < 5  # reading all of its 3.6 GB takes longer
    assert manifest.status.to_dict() == {"dark": "all nodata", "far": "written"}
    assert np.array_equal(read(folder, "far"), corner)


def test_units_on_the_other_side_of_the_earth_are_outside(tmp_path, write_scene, write_units):
    near = gpd.GeoSeries([rectangle(1, 1, 2, 2)], crs=32618).to_crs(4326)[0]
    shapes = {"near": near, "pole": shapely.box(10, 89, 11, 90), "antipode": shapely.box(105, -1, 106, 1)}
    _, manifest, _ = cut(tmp_path, write_scene(noise(1, 9, 9)), write_units(shapes, crs="EPSG:4326"))
    assert manifest.status.to_dict() == {"antipode": "outside every scene", "near": "written", "pole": "outside every scene"}
