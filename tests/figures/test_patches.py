import numpy as np
import pytest

from imagery2flow.figures.patches import nearest_patches

GEOCODES = ["01", "02", "03", "04"]
VECTORS = np.array([[1.0, 0], [0, 1], [1, 1], [3, 0.3]])
PATCHES = [np.full((4, 2, 3), 10.0), np.full((4, 3, 2), 50.0), np.full((4, 2, 2), 20.0), np.full((4, 1, 5), 30.0)]


def pictures(figure):
    return [axis.images[0].get_array() for axis in figure.axes]


def test_each_row_holds_a_chosen_unit_and_those_most_alike():
    figure = nearest_patches(GEOCODES, PATCHES, VECTORS, ["01", "02"], k=2)
    assert [axis.get_title() for axis in figure.axes] == [
        "01\n",
        f"04\ncosine {3 / np.hypot(3, 0.3):.3f}",
        f"03\ncosine {np.sqrt(0.5):.3f}",
        "02\n",
        f"03\ncosine {np.sqrt(0.5):.3f}",
        f"04\ncosine {0.3 / np.hypot(3, 0.3):.3f}",
    ]
    assert [picture.shape for picture in pictures(figure)] == [(2, 3, 3), (1, 5, 3), (2, 2, 3), (3, 2, 3), (2, 2, 3), (1, 5, 3)]
    assert [axis.spines["left"].get_visible() for axis in figure.axes] == [True, False, False] * 2
    assert "n = 4 units" in figure.get_suptitle()


def test_all_pictures_have_one_stretch_and_stand_level():
    figure = nearest_patches(GEOCODES, PATCHES, VECTORS, ["01"], k=2, gsd_m=30.0, band_names=("red", "green", "blue", "nir"))
    pixels = np.repeat([10.0, 20.0, 30.0], [6, 4, 5])
    low, high = np.percentile(pixels, [2, 98])
    for picture, value in zip(pictures(figure), (10, 30, 20), strict=True):
        np.testing.assert_allclose(picture, np.clip((value - low) / (high - low), 0, 1))
    assert [axis.get_xlabel() for axis in figure.axes] == ["0.09 km wide", "0.15 km wide", "0.06 km wide"]
    assert all(np.ptp(axis.get_xlim()) == np.ptp(axis.get_ylim()) for axis in figure.axes)
    assert figure.get_suptitle().endswith("red, green, blue as red, green, blue")


def test_what_lies_outside_of_a_unit_is_white_and_two_bands_are_grey():
    patch = np.array([[[0, 5.0], [9, np.nan]], [[0, 0.0], [9, 4]]])  # [2, 2, 2]
    figure = nearest_patches(["a", "b"], [patch, patch], np.eye(2), ["a"], k=1, band_names=("nir", "swir"))
    picture = pictures(figure)[0]
    assert picture[0, 0].tolist() == picture[1, 1].tolist() == [1, 1, 1]
    assert (picture == picture[:, :, :1]).all()
    assert picture[0, 1, 0] < picture[1, 0, 0]  # a 0 in one band is a value
    assert figure.get_suptitle().endswith("nir as grey")
    empty = nearest_patches(["a", "b"], [patch * 0, patch * 0], np.eye(2), ["a"], k=1)
    assert (np.array(pictures(empty)) == 1).all()


@pytest.mark.parametrize(
    ("chosen", "k", "says"), [(["99"], 1, r"1 of 1 chosen ids .*\(99\)"), ([], 1, "0 of 0"), (["01"], 4, "k is 4 but 4 units")]
)
def test_unknown_ids_and_too_many_neighbours_are_refused(chosen, k, says):
    with pytest.raises(ValueError, match=says):
        nearest_patches(GEOCODES, PATCHES, VECTORS, chosen, k)
