from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio

from imagery2flow.imagery.patch_files import load_patches
from imagery2flow.run.errors import BandError, InputError, MissingInputError, TableError

from .helpers import noise, quiet

RED_NIR = ("red", "nir")


@pytest.fixture
def write_patches(tmp_path, write_scene):
    """Writes images [num_bands, height, width] by geocode, nodata 0, with a manifest if asked; returns the folder."""

    def write(images: dict[str, np.ndarray], names=RED_NIR, manifest: bool = False) -> Path:
        for geocode, image in images.items():
            write_scene(image, f"l8_2020_{geocode}.tif", names=names, nodata=0)
        if manifest:
            rows = [(geocode, "written", f"l8_2020_{geocode}.tif") for geocode in images]
            pd.DataFrame(rows, columns=["geocode", "status", "path"]).to_csv(tmp_path / "manifest.csv", index=False)
        return tmp_path

    return write


@pytest.mark.parametrize("manifest", [True, False])
def test_patches_are_sorted_by_id_and_laid_one_behind_the_other(write_patches, manifest):
    images = {"02": noise(2, 3, 4, seed=1), "01": noise(2, 2, 5, seed=2)}
    images["01"][0, 1, 3] = 0
    patches = load_patches(str(write_patches(images, manifest=manifest)), [], quiet())
    assert patches.geocodes == ("01", "02")
    assert len(patches) == 2
    assert patches.values.shape == (22, 2)
    assert patches.first_pixel.tolist() == [0, 10]
    assert (patches.height.tolist(), patches.width.tolist()) == ([2, 3], [5, 4])
    for position, geocode in enumerate(patches.geocodes):
        values, valid = patches.patch(position)
        assert np.array_equal(values, images[geocode].transpose(1, 2, 0))
        assert np.array_equal(valid, (images[geocode] != 0).all(axis=0))
    assert patches.normalisation.band_names == RED_NIR


def test_the_manifest_decides_which_patches_are_taken(write_patches):
    write_patches({"stale": noise(2, 3, 3)})
    folder = write_patches({"01": noise(2, 3, 3)}, manifest=True)
    with (folder / "manifest.csv").open("a") as manifest:
        manifest.write("02,outside every scene,\n")
    ledger = quiet()
    assert load_patches(str(folder), [], ledger).geocodes == ("01",)
    assert ledger.left_out == {"units without a patch": ["02"]}
    assert ledger.came_in == {"patches": 1}


def test_a_bare_folder_is_said_in_the_ledger(write_patches):
    ledger = quiet()
    load_patches(str(write_patches({"01": noise(2, 3, 3)})), [], ledger)
    assert any("has no manifest.csv" in note for note in ledger.notes)


def test_a_patch_of_the_manifest_that_is_gone_is_refused(write_patches):
    folder = write_patches({"01": noise(2, 3, 3), "02": noise(2, 3, 3)}, manifest=True)
    (folder / "l8_2020_02.tif").unlink()
    with pytest.raises(
        MissingInputError, match=r"1 patches of .*manifest.csv are gone \(.*l8_2020_02.tif\); run img_preprocessing.py again"
    ):
        load_patches(str(folder), [], quiet())


def test_folders_without_patches_are_refused(tmp_path):
    with pytest.raises(MissingInputError, match="holds no patch"):
        load_patches(str(tmp_path), [], quiet())
    with pytest.raises(MissingInputError, match=r"is no folder; name the one that img_preprocessing.py wrote"):
        load_patches(str(tmp_path / "none"), [], quiet())


def test_a_manifest_of_another_program_is_refused(write_patches):
    folder = write_patches({"01": noise(2, 3, 3)})
    (folder / "manifest.csv").write_text("id,file\n01,l8_2020_01.tif\n")
    with pytest.raises(InputError, match=r"manifest.csv"):
        load_patches(str(folder), [], quiet())


def test_repeated_ids_are_refused(tmp_path, write_scene):
    for name in ("a_01.tif", "b_01.tif"):
        write_scene(noise(1, 3, 3), name)
    with pytest.raises(TableError, match="holds 2 images but only 1 ids"):
        load_patches(str(tmp_path), [], quiet())


def test_bands_are_taken_by_count_or_name(write_patches):
    image = noise(3, 3, 3)
    folder = str(write_patches({"01": image}, names=("red", "nir", "thermal")))
    assert load_patches(folder, ["3"], quiet()).normalisation.band_names == ("red", "nir", "thermal")
    chosen = load_patches(folder, ["thermal", "red"], quiet())
    assert chosen.normalisation.band_names == ("thermal", "red")
    assert np.array_equal(chosen.patch(0)[0], image[[2, 0]].transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        (["6"], r"--bands 6 but the patches of .* have 2 bands \(red, nir\); name the ones to use, for example --bands red"),
        (["blue"], r"patches .* has no blue; its bands are 1 red, 2 nir"),
        (["red", "swir1"], r"has no swir1"),
    ],
)
def test_wrong_counts_and_missing_names_of_bands_are_refused(write_patches, bands, message):
    folder = write_patches({"01": noise(2, 3, 3)})
    with pytest.raises(BandError, match=message):
        load_patches(str(folder), bands, quiet())


def test_the_names_of_bands_that_were_read_are_accepted_again(write_patches):
    # Stage 3 asks for the bands that stage 2 found.
    folder = str(write_patches({"01": noise(2, 3, 3)}, names=("red_2019", "red_2020")))
    names = load_patches(folder, [], quiet()).normalisation.band_names
    assert load_patches(folder, names, quiet()).normalisation.band_names == names


def test_the_alpha_band_of_an_image_is_its_mask(tmp_path, write_scene):
    image = noise(4, 3, 3, "uint8")
    image[3], image[3, 1, 1] = 255, 0
    write_scene(image, "city_01.tif", photometric="RGB", alpha="YES")
    ledger = quiet()
    patches = load_patches(str(tmp_path), ["3"], ledger)
    assert np.array_equal(patches.patch(0)[1], image[3] > 0)
    assert f"patches {tmp_path}: band 4 is taken as alpha, not as imagery" in ledger.notes


@pytest.mark.parametrize("bands", [["4"], ["1", "2", "3", "4"], ["band1", "band2", "band3", "band4"]])
def test_a_band_that_is_asked_for_is_imagery_though_gdal_takes_it_for_alpha(tmp_path, write_scene, bands):
    image = noise(4, 3, 3, "uint8")
    image[3, 1, 1] = 0
    write_scene(image, "city_01.tif")
    patches = load_patches(str(tmp_path), bands, quiet())
    assert patches.valid.all()
    assert np.array_equal(patches.patch(0)[0], image.transpose(1, 2, 0))


@pytest.mark.parametrize(("bands", "taken"), [(["4", "3", "2"], [0, 1, 2]), (["2", "4"], [2, 0]), (["4"], [0])])
def test_bands_that_are_called_by_digits_are_meant_by_their_name(write_patches, bands, taken):
    # Stage 3 asks for the names that stage 2 found; its patches may hold more bands than the encoder reads.
    image = noise(4, 3, 3)
    patches = load_patches(str(write_patches({"01": image, "02": image}, names=("4", "3", "2", "8"))), bands, quiet())
    assert patches.normalisation.band_names == tuple(bands)
    assert np.array_equal(patches.patch(1)[0], image[taken].transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("second", "names", "message"),
    [
        (noise(2, 3, 3, "uint8"), RED_NIR, "holds uint8 but the patches before it uint16"),
        (noise(2, 3, 3), ("red", "green"), "has the bands red, green where the others have red, nir"),
        (noise(1, 3, 3), ("red",), "has the bands red where the others have red, nir"),
    ],
)
def test_patches_that_differ_in_type_or_bands_are_refused(write_patches, second, names, message):
    write_patches({"01": noise(2, 3, 3)})
    folder = write_patches({"02": second}, names=names)
    with pytest.raises(BandError, match=rf"patch .*l8_2020_02.tif {message}"):
        load_patches(str(folder), [], quiet())


@pytest.mark.parametrize("kept_bytes", [0, 4, 100, 300, 1000, -400])
def test_a_truncated_patch_is_an_input_error(write_patches, kept_bytes):
    folder = write_patches({"01": noise(2, 40, 40)})
    path = folder / "l8_2020_01.tif"
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(InputError, match=rf"patch {path} cannot be (opened|read) .*truncated: run img_preprocessing.py again"):
        load_patches(str(folder), [], quiet())


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_patches_without_a_single_valid_pixel_are_refused(write_patches, dtype):
    folder = write_patches({"01": np.zeros((2, 3, 3), dtype)})
    with pytest.raises(InputError):
        load_patches(str(folder), [], quiet())


def test_a_patch_without_a_valid_pixel_is_left_out(write_patches):
    images = {"01": noise(2, 3, 4, seed=1), "02": np.zeros((2, 5, 5), "uint16"), "03": noise(2, 4, 3, seed=2)}
    ledger = quiet()
    patches = load_patches(str(write_patches(images)), [], ledger)
    assert patches.geocodes == ("01", "03")
    assert np.array_equal(patches.patch(1)[0], images["03"].transpose(1, 2, 0))
    assert ledger.left_out == {"patches without a valid pixel": ["02"]}
    assert ledger.came_in == {"patches": 3}


def test_nan_and_infinity_are_missing(tmp_path, write_scene):
    write_scene(np.array([[[1, np.nan, np.inf, 4]]], "float32"), "x_01.tif")
    patches = load_patches(str(tmp_path), [], quiet())
    assert patches.valid.tolist() == [True, False, False, True]
    assert patches.values[:, 0].tolist() == [1, 0, 0, 4]


def test_a_mask_in_the_file_decides_which_pixels_are_valid(tmp_path, write_scene):
    mask = np.array([[True, False, True]])
    write_scene(np.array([[[0, 0, 5]]], "uint8"), "x_01.tif", mask=mask)
    with rasterio.open(tmp_path / "x_01.tif") as patch:
        assert patch.nodata is None
    assert load_patches(str(tmp_path), [], quiet()).valid.tolist() == [True, False, True]


def test_patches_that_are_not_what_the_manifest_says_are_refused(write_patches):
    folder = write_patches({"01": noise(2, 3, 4), "02": noise(2, 2, 5)}, manifest=True)
    manifest = pd.read_csv(folder / "manifest.csv", dtype={"geocode": str}).assign(width=[4, 6], height=[3, 2])
    manifest.to_csv(folder / "manifest.csv", index=False)
    with pytest.raises(InputError, match=r"l8_2020_02.tif has 10 pixels but manifest.csv says 12; run img_preprocessing.py again"):
        load_patches(str(folder), [], quiet())
    manifest.assign(width=[4, 5]).to_csv(folder / "manifest.csv", index=False)
    assert load_patches(str(folder), [], quiet()).width.tolist() == [4, 5]


def test_what_single_precision_cannot_hold_is_missing(write_patches):
    image = np.ones((2, 3, 4))
    image[0, 1, 2] = 1e300
    valid = load_patches(str(write_patches({"01": image})), [], quiet()).valid.reshape(3, 4)
    assert not valid[1, 2] and valid.sum() == 11
