import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imagery2flow.imagery import views
from imagery2flow.imagery.patchset import Normalisation
from imagery2flow.imagery.pyramid import Pyramid, build_pyramid
from imagery2flow.imagery.views import (
    Boxes,
    choose_view_size,
    cut,
    draw_boxes,
    draw_orientation,
    draw_views,
    embedding_views,
    jittered_views,
    normalise,
    random_views,
    sampling_grid,
    tile_side,
    whole_patches,
)
from imagery2flow.run.config import ViewConfig

from .helpers import as_patch_set, naive_level

PLAIN = ViewConfig(flip=False, turn=False, shift=0, gain=0)


def pyramid_of(images, masks=None, view_size: int = 8) -> Pyramid:
    patches = as_patch_set(images, masks)
    return build_pyramid(patches, patches.normalisation, view_size)


def image(height: int, width: int, num_bands: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 60_000, (height, width, num_bands)).astype("uint16")


def render(pyramid: Pyramid, boxes: Boxes, view_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return views.render(cut(pyramid, boxes, view_size), pyramid.is_uint16)


def boxes(patch, top, left, height, width, orientation=0) -> Boxes:
    """One box, or several from lists."""
    parts = [torch.tensor(np.atleast_1d(part)) for part in (patch, top, left, height, width, orientation)]
    parts[5] = parts[5].expand(len(parts[0]))
    return Boxes(parts[0], *(part.float() for part in parts[1:5]), parts[5])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def naive_view(pixels: np.ndarray, share: np.ndarray, box: tuple[float, float, float, float], size: int):
    """Bilinear interpolation over valid pixels, one pixel of the view after the other; ``share`` of each pixel's block is valid."""
    top, left, height, width = box
    values, valid = np.zeros((pixels.shape[2], size, size)), np.zeros((size, size), bool)
    for i in range(size):
        for j in range(size):
            y, x = top + (i + 0.5) / size * height - 0.5, left + (j + 0.5) / size * width - 0.5
            total, weights, seen = np.zeros(pixels.shape[2]), 0.0, 0.0
            for row in (math.floor(y), math.floor(y) + 1):
                for column in (math.floor(x), math.floor(x) + 1):
                    inside = min(max(row, 0), share.shape[0] - 1), min(max(column, 0), share.shape[1] - 1)
                    near = (1 - abs(y - row)) * (1 - abs(x - column))
                    total += near * share[inside] * pixels[inside]
                    weights += near * share[inside]
                    seen += near * (share[inside] > 0)
            values[:, i, j] = total / max(weights, 1e-6)
            valid[i, j] = seen >= 0.5
    return values, valid


@pytest.mark.parametrize("box", [(0.0, 0.0, 9.0, 7.0), (1.3, 2.1, 4.6, 3.7), (2.0, 0.4, 1.0, 1.0)])
def test_rendering_equals_naive_bilinear_interpolation_over_valid_pixels(box):
    pixels, mask = image(9, 7), np.random.default_rng(1).random((9, 7)) < 0.7
    pyramid = pyramid_of([image(5, 5), pixels], [np.ones((5, 5), bool), mask])
    values, valid = render(pyramid, boxes(1, *box), 8)
    expected, expected_valid = naive_view(pixels, mask, box, 8)
    assert np.array_equal(valid[0, 0].numpy(), expected_valid)
    assert expected_valid.sum() > 0
    np.testing.assert_allclose(values[0].numpy()[:, expected_valid], expected[:, expected_valid], rtol=1e-4, atol=0.5)


@pytest.mark.parametrize("side", [2, 4])
def test_a_crop_larger_than_the_view_is_read_from_averages_over_valid_pixels(side):
    height, width = 10 * side - 1, 9 * side  # the last row of blocks is cut
    pixels, mask = image(height, width), np.random.default_rng(1).random((height, width)) < 0.4
    values, valid = render(pyramid_of([pixels], [mask]), boxes(0, 1.0 * side, 0.5 * side, 8.5 * side, 8.0 * side), 8)
    expected, expected_valid = naive_view(*naive_level(pixels, mask, side), (1.0, 0.5, 8.5, 8.0), 8)
    assert np.array_equal(valid[0, 0].numpy(), expected_valid)
    np.testing.assert_allclose(values[0].numpy()[:, expected_valid], expected[:, expected_valid], rtol=1e-4)


@pytest.mark.parametrize("size", [33, 129])
def test_averages_of_odd_sizes_lie_where_their_pixels_do(size):
    # Every pixel holds its own horizontal position; so does the view, but for its last pixel, beside the lone last column.
    ramp = np.tile((np.arange(size, dtype="float32") + 0.5)[None, :, None], (size, 1, 1))
    pyramid = pyramid_of([ramp], view_size=16)
    values, _ = render(pyramid, whole_patches(pyramid, torch.tensor([0])), 16)
    positions = (np.arange(16) + 0.5) * size / 16
    np.testing.assert_allclose(values[0, 0, 8, :-1].numpy(), positions[:-1], atol=0.01)


@pytest.mark.parametrize("size", [8, 16, 21])
def test_a_whole_patch_at_its_own_size_is_the_patch(size):
    pixels = image(size, size)
    pyramid = pyramid_of([pixels], view_size=size)
    values, valid = render(pyramid, whole_patches(pyramid, torch.tensor([0])), size)
    assert valid.all()
    np.testing.assert_allclose(values[0].numpy(), pixels.transpose(2, 0, 1), rtol=1e-5, atol=0.02)


@pytest.mark.parametrize("orientation", range(8))
def test_each_orientation_is_a_flip_or_transpose_of_the_upright_view(orientation):
    pyramid, box = pyramid_of([image(8, 8, 1)]), (0, 0.7, 1.2, 5.0, 6.0)
    upright, turned = (render(pyramid, boxes(*box, number), 8)[0][0, 0].numpy() for number in (0, orientation))
    expected = upright.T if orientation & 4 else upright
    expected = np.fliplr(expected) if orientation & 1 else expected
    expected = np.flipud(expected) if orientation & 2 else expected
    np.testing.assert_allclose(turned, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("flip", "turn", "orientations"),
    [(False, False, {0}), (True, False, {0, 1}), (False, True, {0, 2, 4, 6}), (True, True, set(range(8)))],
)
def test_orientations_that_may_be_drawn(flip, turn, orientations):
    drawn = draw_orientation((torch.arange(800) + 0.5) / 800, ViewConfig(flip=flip, turn=turn))
    share = 800 // len(orientations)
    assert torch.bincount(drawn, minlength=8).tolist() == [share if number in orientations else 0 for number in range(8)]


@settings(max_examples=60)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    min_share=st.floats(0.05, 1.0),
    share_valid=st.floats(0.01, 1.0),
    seed=st.integers(0, 1000),
)
def test_crops_hold_a_valid_pixel_lie_within_the_patch_and_keep_their_share(height, width, min_share, share_valid, seed):
    mask = np.random.default_rng(seed).random((height, width)) < share_valid
    mask[seed % height, seed % width] = True
    other = np.ones((3, 3), bool)
    pyramid = pyramid_of([image(3, 3), image(height, width)], [other, mask])
    drawn = draw_boxes(pyramid, torch.ones(20, dtype=torch.long), ViewConfig(crop_min_share=min_share), generator(seed))
    rows, columns = np.nonzero(mask)
    for top, left, crop_height, crop_width in torch.stack([drawn.top, drawn.left, drawn.height, drawn.width], dim=1).tolist():
        assert top >= 0 and left >= 0 and top + crop_height <= height + 1e-4 and left + crop_width <= width + 1e-4
        inside_rows = (rows + 0.5 >= top - 1e-4) & (rows + 0.5 <= top + crop_height + 1e-4)
        assert (inside_rows & (columns + 0.5 >= left - 1e-4) & (columns + 0.5 <= left + crop_width + 1e-4)).any()
        # A patch that is longer than a crop may be caps the share: at 3/4 of its short side by its long side.
        lowest = min(min_share, 0.75 * min(height, width) / max(height, width))
        assert lowest - 1e-4 <= crop_height * crop_width / (height * width) <= 1 + 1e-4


def test_crops_of_the_whole_area_are_the_whole_patch_whatever_its_shape():
    pyramid = pyramid_of([image(7, 19), image(16, 16)])
    drawn = draw_boxes(pyramid, torch.tensor([0, 1] * 20), ViewConfig(crop_min_share=1.0), generator())
    assert (drawn.top == 0).all() and (drawn.left == 0).all()
    assert drawn.height.tolist() == [7.0, 16.0] * 20 and drawn.width.tolist() == [19.0, 16.0] * 20


def test_crops_are_spread_over_shares_and_places():
    pyramid = pyramid_of([image(32, 32)])
    drawn = draw_boxes(pyramid, torch.zeros(2000, dtype=torch.long), ViewConfig(crop_min_share=0.2), generator())
    share = drawn.height * drawn.width / 32**2
    assert share.min() < 0.22 and share.max() > 0.97
    assert share.mean() == pytest.approx(0.59, abs=0.03)  # uniform in .2 to 1, a little less where the aspect ratio is cut
    ratio = drawn.width / drawn.height
    assert ratio.min() >= 0.7499 and ratio.max() <= 1.3334
    assert (drawn.top + drawn.height / 2).mean() == pytest.approx(16, abs=0.3)


def test_the_same_generator_gives_the_same_views_and_another_gives_others():
    pyramid = pyramid_of([image(12, 10, 3), image(9, 9, 3)])
    config = ViewConfig(band_drop_probability=0.3, blur_probability=0.5, rgb_jitter=0.5, grey_probability=0.2)
    first, again, other = (random_views(pyramid, torch.tensor([0, 1, 0]), config, 8, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[2])  # the same patch twice: each image draws its own crop


def test_other_images_of_the_batch_do_not_change_a_rendering():
    pyramid = pyramid_of([image(20, 18, seed=number) for number in range(4)])
    drawn = draw_boxes(pyramid, torch.arange(4), ViewConfig(), generator())
    together, _ = render(pyramid, drawn, 8)
    for number in range(4):
        alone = drawn.select(torch.tensor([number]))
        assert torch.equal(render(pyramid, alone, 8)[0][0], together[number])


def test_a_narrow_unit_does_not_vanish_at_a_coarse_level():
    pixels, mask = np.full((256, 256, 1), 7, "uint8"), np.eye(256, dtype=bool)
    pyramid = pyramid_of([pixels], [mask], view_size=16)
    values, valid = render(pyramid, whole_patches(pyramid, torch.tensor([0])), 16)
    assert valid[0, 0].diagonal().all()
    torch.testing.assert_close(values[valid], torch.full_like(values[valid], 7.0))


@settings(max_examples=25)
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 1000))
def test_a_constant_patch_stays_constant_at_any_crop(height, width, seed):
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    mask[seed % height, seed % width] = True
    pixels = np.where(mask, 37, 0)[..., None].astype("uint8")
    pyramid = pyramid_of([pixels], [mask])
    values, valid = render(pyramid, draw_boxes(pyramid, torch.zeros(8, dtype=torch.long), ViewConfig(), generator(seed)), 8)
    assert valid.any()
    torch.testing.assert_close(values[valid], torch.full_like(values[valid], 37.0))


def test_missing_pixels_are_exactly_zero_after_normalising():
    pixels = np.full((8, 8, 1), 5, "uint8")
    mask = np.ones((8, 8), bool)
    mask[:4] = False
    patches = as_patch_set([pixels], [mask])
    pyramid = build_pyramid(patches, Normalisation(("a",), (3.0,), (4.0,), (255.0,), "uint8"), 8)
    views = embedding_views(pyramid, torch.tensor([0]), 8)
    assert (views[0, 0, :4] == 0).all()
    assert (views[0, 0, 4:] == 0.5).all()  # (5 - 3) / 4
    jittered = random_views(pyramid, torch.tensor([0]), ViewConfig(crop_min_share=1.0, flip=False, turn=False, shift=1.0), 8, generator())
    assert (jittered == 0).any() and (jittered != 0).any()


def test_normalising_by_hand():
    pyramid = pyramid_of([np.array([[[1, 10], [3, 30]]], "uint8")])  # means 2 and 20, deviations 1 and 10
    values = torch.tensor([4.0, 5.0]).reshape(1, 2, 1, 1)
    assert normalise(values, torch.ones(1, 1, 1, 1, dtype=torch.bool), pyramid.normalisation).flatten().tolist() == [2.0, -1.5]


def test_uint16_above_32767_is_rendered_exactly():
    pixels = np.array([[[40_000], [65_535]], [[32_768], [1]]], "uint16").repeat(4, axis=0).repeat(4, axis=1)
    pyramid = pyramid_of([pixels])
    values, _ = render(pyramid, whole_patches(pyramid, torch.tensor([0])), 8)
    assert np.array_equal(values[0, 0].numpy(), pixels[..., 0])


@pytest.mark.parametrize(("sides", "view_size"), [([10, 20, 900], 64), ([128, 128], 64), ([129, 10, 500], 224)])
def test_the_view_size_follows_the_median_patch(sides, view_size):
    assert choose_view_size(as_patch_set([np.zeros((2, side, 1), "uint8") for side in sides])) == view_size


def test_random_views_of_everything_off_are_the_normalised_crops():
    pyramid = pyramid_of([image(12, 10)])
    expected = normalise(*render(pyramid, draw_boxes(pyramid, torch.tensor([0]), PLAIN, generator(3)), 8), pyramid.normalisation)
    assert torch.equal(random_views(pyramid, torch.tensor([0]), PLAIN, 8, generator(3)), expected)


@pytest.mark.parametrize(
    ("extent", "side"), [(1, 8), (8, 8), (9, 12), (12, 12), (13, 16), (17, 24), (24, 24), (25, 32), (65, 80), (129, 160), (193, 224)]
)
def test_sides_of_tiles_by_hand(extent, side):
    assert tile_side(torch.tensor([extent])).tolist() == [side]


def test_a_sampling_grid_by_hand():
    grid = sampling_grid(torch.tensor([[0.0, 3.5]]), torch.tensor([[7.0, 1.75]]), 8)
    assert grid.tolist() == [[[[1, -1], [-0.5, -1]], [[1, 0], [-0.5, 0]]]]  # across, down


def test_views_in_parts_are_those_of_the_whole_batch():
    pyramid = pyramid_of([image(12 + 9 * number, 40 - 5 * number, 3, seed=number) for number in range(6)])
    config = ViewConfig(band_drop_probability=0.5, blur_probability=0.5, rgb_jitter=0.5, grey_probability=0.3)
    drawn = draw_views(pyramid, torch.tensor([5, 0, 3, 1, 2, 4, 4]), config, generator())
    whole = jittered_views(cut(pyramid, drawn.boxes, 8), drawn, pyramid)
    for part in (torch.tensor([0]), torch.tensor([6, 2, 3])):
        some = drawn.select(part)
        torch.testing.assert_close(jittered_views(cut(pyramid, some.boxes, 8), some, pyramid), whole[part])


def test_views_come_with_the_channels_last_as_convolutions_like_them():
    pyramid = pyramid_of([image(12, 10, 3), image(30, 9, 3)])
    assert random_views(pyramid, torch.tensor([0, 1]), ViewConfig(), 8, generator()).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("height", [3, 64, 131])
def test_whole_patches_in_bfloat16_regions_are_still_rendered_in_single_precision(height):
    pixels = image(height, 50)
    pyramid = pyramid_of([pixels], view_size=32)
    expected = embedding_views(pyramid, torch.tensor([0]), 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(embedding_views(pyramid, torch.tensor([0]), 32), expected)
