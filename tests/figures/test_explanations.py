import numpy as np
import pytest
from matplotlib.image import imread

from imagery2flow.cities.explain import ExplainedTile
from imagery2flow.cities.tile_maps import kept_pixels
from imagery2flow.figures.explanations import contact_sheet, draw_explanations, heading, overlaid, picture_of
from imagery2flow.imagery.patchset import Normalisation
from imagery2flow.run.explain_config import ExplainConfig

RGB = Normalisation(("red", "green", "blue"), (100.0, 50.0, 10.0), (25.0, 10.0, 5.0), (255.0,) * 3, "uint8")
GREY = tuple([0xDD / 255] * 3)


def config(*layers, **settings):
    return ExplainConfig(data_path="p", output_dir="o", layers=list(layers or ("layer4",)), **settings)


def explained(geocode="t1", shape=(4, 6), layers=("layer4",), predicted="Oslo", num_bands=3):
    """Pixels at the mean of each band, a map that is largest at the lower right corner, one missing pixel at the upper left."""
    valid = np.ones(shape, bool)
    valid[0, 0] = False
    values = np.where(valid, np.arange(valid.size).reshape(shape) - 5.0, np.nan).astype(np.float32)
    pixels = np.broadcast_to(np.array([100, 50, 10], np.uint8)[:num_bands], (*shape, num_bands)) * valid[..., None]
    maps = dict.fromkeys(layers, values)
    masks = {layer: kept_pixels(values, "mean_plus_std") for layer in layers}
    return ExplainedTile(geocode, "Oslo", pixels, valid, "Oslo", predicted, 0.75, maps, masks, dict.fromkeys(layers, 0.0))


def images(figure):
    return [axis.images[0].get_array() for axis in figure.axes if axis.images]


def test_a_tile_stands_beside_its_map_and_what_is_kept_of_it():
    tile = explained()
    figure = contact_sheet([tile], config(), RGB)
    original, overlay, masked = images(figure)
    np.testing.assert_allclose(original[1, 1], 0.5)  # the mean of each band
    assert (original[0, 0] == 1).all() and (masked[0, 0] == 1).all()  # missing: white
    np.testing.assert_allclose(overlay[0, 3], original[0, 3])  # not positive: not drawn
    brightest = np.array([0.988362, 0.998364, 0.644924])  # the end of the colour scale
    np.testing.assert_allclose(overlay[3, 5], 0.15 * 0.5 + 0.85 * brightest, atol=1e-3)
    kept = tile.masks["layer4"]
    assert 0 < kept.sum() < 6
    np.testing.assert_allclose(masked[kept], original[kept])
    assert np.allclose(masked[~kept & tile.valid], GREY)
    assert "Oslo: Relevance-CAM" in figure.get_suptitle() and "mean + standard deviation" in figure.get_suptitle()


@pytest.mark.parametrize(("number", "layers", "panels"), [(1, 1, 3), (2, 1, 6), (3, 1, 12), (3, 2, 15)])
def test_a_sheet_has_two_tiles_beside_each_other_where_they_fit(number, layers, panels):
    names = [f"layer{layer}" for layer in range(1, layers + 1)]
    tiles = [explained(f"t{position}", layers=names) for position in range(number)]
    figure = contact_sheet(tiles, config(*names, method="grad_cam", mask="half"), RGB)
    assert len(figure.axes) == panels + 1  # and the colour bar
    assert len(images(figure)) == number * (1 + 2 * layers)
    assert all(np.ptp(axis.get_xlim()) == np.ptp(axis.get_ylim()) == 6 for axis in figure.axes if axis.images)
    labelled = [axis.get_xlabel() for axis in figure.axes[:-1] if axis.get_xlabel()]
    across = 2 if layers == 1 and number > 1 else 1
    assert labelled[: 1 + 2 * layers] == ["tile", *(label for name in names for label in (name, f"{name}, masked"))]
    assert len(labelled) == across * (1 + 2 * layers)
    assert "Grad-CAM" in figure.get_suptitle() and "half" in figure.get_suptitle()


def test_headings_say_what_is_explained():
    assert heading(explained(), 57) == "t1\nOslo, probability 0.750"
    assert heading(explained(predicted="Rome"), 57) == "t1\nOslo, probability 0.750, predicted: Rome"
    assert heading(explained("a" * 50 + "-r0001c0002", predicted=""), 20) == "...aaaaaa-r0001c0002\nOslo 0.75"


def test_bands_are_stretched_alike_in_every_tile_and_one_band_is_grey():
    tile = explained(num_bands=1)
    picture = picture_of(tile, Normalisation(("red",), (50.0,), (25.0,), (255.0,), "uint8"))
    assert picture.shape == (4, 6, 3)
    np.testing.assert_allclose(picture[2, 2], 1.0)  # two deviations above the mean
    assert (picture_of(explained(), RGB)[1:] == 0.5).all()


def test_a_map_without_a_positive_part_leaves_the_picture():
    picture = np.full((2, 2, 3), 0.3)
    np.testing.assert_array_equal(overlaid(picture, np.array([[-1.0, 0.0], [np.nan, -2.0]])), picture)


def test_files_are_written_and_repeatable(tmp_path):
    tiles = [explained("t1", layers=("layer1", "layer4")), explained("t2", layers=("layer1", "layer4"), shape=(5, 3))]
    contents = []
    for _ in range(2):
        draw_explanations(tiles, config("layer1", "layer4"), RGB, tmp_path / "contact_Oslo.png")
        contents.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert contents[0] == contents[1]
    names = {f"{tile}_relevance_cam_{layer}_masked.png" for tile in ("t1", "t2") for layer in ("layer1", "layer4")}
    assert set(contents[0]) == names | {"contact_Oslo.png"}
    assert imread(tmp_path / "t2_relevance_cam_layer1_masked.png").shape[:2] == (5, 3)
