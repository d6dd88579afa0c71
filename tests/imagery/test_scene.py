from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rasterio.transform import from_origin
from rasterio.windows import Window

from imagery2flow.imagery.scene import Scene, SceneReader, band_name, check_scenes_agree, fits_type, open_scene
from imagery2flow.run.errors import BandError, InputError

from .helpers import noise


def read(scene: Scene, window: tuple[int, int, int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Values and valid of a window (column, row, width, height); of the whole scene without one."""
    reader = SceneReader([scene])
    try:
        return reader.read(0, Window(*(window or (0, 0, scene.width, scene.height))))
    finally:
        reader.close()


def write_vrt(path: Path, bands: list[tuple[str, str, str]], size: int) -> str:
    """A VRT of one band per (GDAL type, nodata or "", source file), all of size x size pixels."""
    parts = [
        f'<VRTRasterBand dataType="{kind}" band="{number}">{f"<NoDataValue>{nodata}</NoDataValue>" if nodata else ""}'
        f"<SimpleSource><SourceFilename>{source}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
        for number, (kind, nodata, source) in enumerate(bands, start=1)
    ]
    place = "<SRS>EPSG:32618</SRS><GeoTransform>500000,30,0,4500000,0,-30</GeoTransform>"
    path.write_text(f'<VRTDataset rasterXSize="{size}" rasterYSize="{size}">{place}{"".join(parts)}</VRTDataset>')
    return str(path)


@pytest.mark.parametrize(
    ("description", "name"),
    [
        ("TM3_red", "red"),
        ("nir_toa_reflectance_x10000", "nir"),
        ("Red Edge 1", "rededge"),
        ("brightness_temperature_K", "thermal"),
        ("SWIR22", "swir2"),
        ("SR_B4", "sr_b4"),
        ("", "band7"),
        (None, "band7"),
    ],
)
def test_common_name_of_a_band_is_found_in_its_description(description, name):
    assert band_name(description, 7) == name


def test_a_scene_says_what_its_file_says(write_scene):
    scene = open_scene(write_scene(noise(3, 4, 6, "int16"), names=("red", "nir", "thermal"), nodata=-9999))
    assert (scene.width, scene.height, scene.dtype, scene.nodata) == (6, 4, "int16", (-9999,))
    assert (scene.bands, scene.band_names, scene.has_mask) == ((1, 2, 3), ("red", "nir", "thermal"), False)
    assert scene.crs.to_epsg() == 32618
    assert scene.gsd_m == 30


def test_bands_are_read_by_name_or_number_in_the_order_asked(write_scene):
    values = noise(3, 4, 4)
    scene = open_scene(write_scene(values, names=("red", "nir", "thermal")), bands=["thermal", "1"])
    assert scene.band_names == ("thermal", "red")
    assert np.array_equal(read(scene)[0], values[[2, 0]])


def test_a_band_that_is_not_there_is_refused_with_those_that_are(write_scene):
    path = write_scene(noise(2, 4, 4), names=("red", "nir"))
    with pytest.raises(BandError, match=r"has no blue; its bands are 1 red, 2 nir"):
        open_scene(path, bands=["blue"])


def test_given_names_replace_those_of_the_file_whatever_their_case(write_scene):
    path = write_scene(noise(2, 4, 4), names=("red", "nir"))
    assert open_scene(path, bands=["NIR"], names=["RED", "NIR"]).bands == (2,)
    with pytest.raises(BandError, match=r"names 3 bands .* has 2"):
        open_scene(path, names=["a", "b", "c"])


def test_bands_of_two_dates_keep_different_names(write_scene):
    scene = open_scene(write_scene(noise(2, 4, 4), names=("red_2019", "red_2020")))
    assert len(set(scene.band_names)) == 2


def test_an_alpha_band_is_a_mask_and_no_imagery(write_scene):
    values = noise(4, 4, 4, "uint8")
    values[3], values[3, 0, 0] = 255, 0
    scene = open_scene(write_scene(values, photometric="RGB", alpha="YES"))
    assert (scene.bands, scene.has_mask) == ((1, 2, 3), True)
    assert not read(scene)[1][0, 0]
    assert read(scene)[1].sum() == 15


def test_a_fourth_uint8_band_that_is_described_as_imagery_is_no_alpha_band(write_scene):
    # GDAL takes the fourth band of any uint8 GeoTIFF for alpha unless its writer says otherwise.
    values = noise(4, 4, 4, "uint8")
    scene = open_scene(write_scene(values, names=("red", "green", "blue", "nir")))
    assert scene.band_names == ("red", "green", "blue", "nir")
    assert np.array_equal(read(scene)[0], values)


@pytest.mark.parametrize(
    "asked",
    [{"names": ["b2", "b3", "b4", "b8"]}, {"bands": ["1", "2", "3", "4"]}, {"bands": ["4", "3", "2"]}, {"bands": ["band4", "band1"]}],
)
def test_a_band_that_the_user_names_or_asks_for_is_imagery_though_gdal_takes_it_for_alpha(write_scene, asked):
    values = noise(4, 4, 4, "uint8")
    values[3, 0, 0] = 0
    scene = open_scene(write_scene(values), **asked)
    assert 4 in scene.bands and not scene.alpha_bands
    found, valid = read(scene)
    assert valid.all()
    assert np.array_equal(found, values[[number - 1 for number in scene.bands]])


def test_a_band_that_is_named_alpha_stays_a_mask(write_scene):
    values = noise(4, 4, 4, "uint8")
    values[3, 0, 0] = 0
    scene = open_scene(write_scene(values), names=["red", "green", "blue", "Alpha"])
    assert (scene.bands, scene.alpha_bands) == ((1, 2, 3), (4,))
    assert read(scene)[1].sum() == 15


def test_bands_that_are_called_by_digits_are_meant_by_their_name(write_scene):
    values = noise(4, 4, 4)
    scene = open_scene(write_scene(values, names=("4", "3", "2", "nir")), bands=["4", "2", "1"])  # no band is called 1
    assert (scene.bands, scene.band_names) == ((1, 3, 1), ("4", "2", "4"))


@pytest.mark.parametrize("content", [None, "no raster"])
def test_a_scene_that_is_absent_or_no_raster_is_refused_in_one_sentence(tmp_path, content):
    path = tmp_path / "scene.tif"
    if content:
        path.write_text(content)
    with pytest.raises(InputError, match=f"scene {path} (does not exist|cannot be opened as a raster).*--input_tif_path"):
        open_scene(str(path))


def test_complex_pixels_are_refused(write_scene):
    with pytest.raises(InputError, match="complex pixels"):
        open_scene(write_scene(np.ones((1, 2, 2), "complex64")))


def test_pixel_size_is_metres_also_for_feet_and_degrees(write_scene):
    feet = open_scene(write_scene(noise(1, 4, 4), crs="EPSG:2263", transform=from_origin(0, 0, 100, 100)))
    assert feet.gsd_m == pytest.approx(30.48, rel=1e-5)
    # Centre at 60 degrees north, where a degree of longitude is half as long: sqrt(55.66 * 111.32).
    degrees = open_scene(write_scene(noise(1, 10, 10), crs="EPSG:4326", transform=from_origin(10, 60.005, 0.001, 0.001)))
    assert degrees.pixel_sides_m() == pytest.approx((55.66, 111.32))
    assert degrees.gsd_m == pytest.approx(78.716, abs=0.001)


def test_only_large_scenes_in_strips_are_called_slow(write_scene):
    small = open_scene(write_scene(noise(1, 4, 4)))
    large = replace(small, width=3000, height=3000, block_width=3000)
    assert [scene.is_large_strips for scene in (small, large, replace(large, block_width=512))] == [False, True, False]


def test_what_lies_beyond_the_scene_is_zero_and_not_valid(write_scene):
    values = noise(2, 3, 3)
    found, valid = read(open_scene(write_scene(values)), (-1, 2, 3, 2))
    assert found.shape == (2, 2, 3)
    assert valid.tolist() == [[False, True, True], [False, False, False]]
    assert np.array_equal(found[:, 0, 1:], values[:, 2, :2])
    assert (found[:, ~valid] == 0).all()


def test_a_pixel_is_missing_if_any_band_that_is_read_is(write_scene):
    values = noise(2, 2, 2)
    values[0, 0, 0], values[1, 1, 1] = 0, 0
    path = write_scene(values, nodata=0)
    found, valid = read(open_scene(path))
    assert valid.tolist() == [[False, True], [True, False]]
    assert found[1, 0, 0] == found[0, 1, 1] == 0
    assert read(open_scene(path, bands=["2"]))[1].tolist() == [[True, True], [True, False]]


def test_nodata_may_be_told_where_the_file_declares_none(write_scene):
    values = noise(1, 2, 2)
    values[0, 0, 0] = 0
    path = write_scene(values)
    assert read(open_scene(path))[1].all()
    assert read(open_scene(path, nodata=0))[1].tolist() == [[False, True], [True, True]]


def test_a_nodata_value_that_is_told_counts_beside_the_one_that_the_file_declares(write_scene):
    path = write_scene(np.array([[[0, 255], [7, 8]]], "uint8"), nodata=255)
    scene = open_scene(path, nodata=0)
    assert scene.nodata == (255, 0)
    assert read(scene)[1].tolist() == [[False, False], [True, True]]
    assert open_scene(path, nodata=255).nodata == (255,)


def test_nan_is_missing_with_and_without_a_nodata_value(write_scene):
    values = np.array([[[1, np.nan], [-1, 2]]], dtype="float32")
    assert read(open_scene(write_scene(values)))[1].tolist() == [[True, False], [True, True]]
    assert read(open_scene(write_scene(values, nodata=np.nan)))[1].tolist() == [[True, False], [True, True]]
    assert read(open_scene(write_scene(values, nodata=-1)))[1].tolist() == [[True, False], [False, True]]


def test_infinity_is_missing(write_scene):
    assert not read(open_scene(write_scene(np.array([[[1, np.inf]]], dtype="float32"))))[1][0, 1]


def test_a_nodata_value_that_the_type_cannot_hold_marks_nothing():
    cases = [(-9999.0, "uint8", False), (0.5, "uint8", False), (255.0, "uint8", True), (-9999.0, "int16", True), (-9999.0, "float32", True)]
    assert [fits_type(value, np.dtype(dtype)) for value, dtype, _ in cases] == [fits for _, _, fits in cases]


def test_the_mask_of_the_file_counts(write_scene):
    mask = np.array([[True, False], [True, True]])
    values = np.array([[[0, 7], [0, 3]]], dtype="uint8")
    found, valid = read(open_scene(write_scene(values, mask=mask)))
    assert np.array_equal(valid, mask)
    assert found.tolist() == [[[0, 0], [0, 3]]]


def test_each_band_of_a_vrt_has_its_own_nodata_value(tmp_path, write_scene):
    first, second = write_scene(np.array([[[1, 5], [5, 5]]], "uint8"), "a.tif"), write_scene(np.array([[[5, 2], [1, 5]]], "uint8"), "b.tif")
    scene = open_scene(write_vrt(tmp_path / "scene.vrt", [("Byte", "1", first), ("Byte", "2", second)], 2))
    assert read(scene)[1].tolist() == [[False, False], [True, True]]


def test_bands_of_different_types_are_refused_or_read_in_their_own_type(tmp_path, write_scene):
    narrow, wide = write_scene(noise(1, 2, 2, "uint8"), "a.tif"), write_scene(np.full((1, 2, 2), 470, "uint16"), "b.tif")
    path = write_vrt(tmp_path / "scene.vrt", [("Byte", "", narrow), ("UInt16", "", wide)], 2)
    with pytest.raises(BandError, match="type"):
        open_scene(path)
    assert (read(open_scene(path, bands=["2"]))[0] == 470).all()


def test_a_truncated_scene_is_an_input_error(write_scene):
    path = Path(write_scene(noise(1, 40, 40)))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=f"scene {path} cannot be read at .*truncated"):
        read(open_scene(str(path)))


def test_scenes_of_one_set_have_equal_bands_and_types(write_scene):
    first = open_scene(write_scene(noise(2, 4, 4), names=("red", "nir")))
    check_scenes_agree([first, replace(first, path=Path("other.tif"))])
    with pytest.raises(BandError, match=r"other.tif has the bands red, green but .*scene.tif has red, nir"):
        check_scenes_agree([first, replace(first, path=Path("other.tif"), band_names=("red", "green"))])
    with pytest.raises(BandError, match=r"holds uint8 but .* holds uint16"):
        check_scenes_agree([first, replace(first, dtype="uint8")])
