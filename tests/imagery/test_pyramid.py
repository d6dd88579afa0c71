import tracemalloc

import numpy as np
import pytest
import torch

from imagery2flow.imagery.pyramid import as_float, as_tensor, build_pyramid, coarser_levels
from imagery2flow.run.memory import allocator

from .helpers import as_patch_set, naive_level


def image(height: int, width: int, num_bands: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 60_000, (height, width, num_bands)).astype("uint16")


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_every_level_is_the_mean_over_the_valid_pixels_of_its_blocks(dtype):
    pixels, mask = (image(21, 18) % 251).astype(dtype), np.random.default_rng(2).random((21, 18)) < 0.3
    mask[0:4, 0:4] = False
    levels = list(coarser_levels(pixels, mask, 3))
    for side, (found, share) in zip((2, 4, 8), levels, strict=True):
        expected, expected_share = naive_level(pixels, mask, side)
        assert found.dtype == dtype
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        np.testing.assert_allclose(share, expected_share, rtol=1e-3)


def test_a_block_of_few_valid_pixels_does_not_weigh_as_much_as_a_full_one():
    pixels, mask = np.full((4, 4, 1), 10.0), np.ones((4, 4), bool)
    pixels[:2, :2], mask[:2, :2] = 100.0, [[True, False], [False, False]]
    (_, _), (found, share) = coarser_levels(pixels, mask, 2)
    assert (found.item(), share.item()) == (pytest.approx((100 + 12 * 10) / 13), pytest.approx(13 / 16, rel=1e-3))


def test_the_pyramid_holds_each_level_of_each_patch():
    images = [image(20, 9), image(3, 17)]
    patches = as_patch_set(images)
    pyramid = build_pyramid(patches, patches.normalisation, 8)
    assert pyramid.height.tolist() == [[20, 10, 5], [3, 2, 1]]
    assert pyramid.width.tolist() == [[9, 5, 3], [17, 9, 5]]
    for number, pixels in enumerate(images):
        mask = np.ones(pixels.shape[:2], bool)
        for level, (values, share) in enumerate([(pixels, mask), *coarser_levels(pixels, mask, 2)]):
            rows = slice(pyramid.first_pixel[number, level], pyramid.first_pixel[number, level] + share.size)
            assert np.array_equal(as_float(pyramid.values[level][rows], pyramid.is_uint16).numpy(), values.reshape(-1, 2))
            assert (pyramid.valid_share[level][rows] == 1).all()
    assert [len(part) for part in pyramid.values] == [20 * 9 + 3 * 17, 10 * 5 + 2 * 9, 5 * 3 + 1 * 5]


def test_the_stored_pixels_are_not_copied():
    patches = as_patch_set([image(20, 9)])
    pyramid = build_pyramid(patches, patches.normalisation, 8)
    patches.values[0] = 60_001
    assert as_float(pyramid.values[0][0], pyramid.is_uint16).tolist() == [60_001, 60_001]


def test_levels_in_files_hold_what_levels_in_memory_do_and_leave_no_file_behind(tmp_path):
    masks = [np.random.default_rng(3).random(shape) < 0.5 for shape in ((40, 33), (7, 20))]
    patches = as_patch_set([image(40, 33), image(7, 20, seed=1)], masks)
    memory, files = (build_pyramid(patches, patches.normalisation, 8, allocator(where, tmp_path)) for where in ("host", "disk"))
    assert list(tmp_path.iterdir()) == []
    assert len(files.values) == 4
    for name in ("values", "valid_share"):
        assert all(torch.equal(one, two) for one, two in zip(getattr(memory, name), getattr(files, name), strict=True))
    assert torch.equal(files.valid_pixel, memory.valid_pixel)
    assert files.num_bytes == memory.num_bytes == sum(part.nbytes for part in (*memory.values, *memory.valid_share))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "float32"])
def test_values_of_every_type_are_held_exactly(dtype):
    limits = np.finfo(dtype) if dtype == "float32" else np.iinfo(dtype)
    values = np.array([[limits.min], [0], [limits.max]], dtype=dtype)
    held = as_tensor(values)
    assert np.array_equal(held.numpy().astype(dtype), values)
    assert np.array_equal(as_float(held, dtype == "uint16").numpy(), values.astype("float32"))


def test_nothing_as_long_as_the_pixels_is_made_beside_the_allocator(tmp_path):
    mask = np.ones((100, 100), bool)
    mask[0, 0] = False
    patches = as_patch_set([np.ones((100, 100, 1), "uint8")] * 400, [mask] * 400)
    tracemalloc.start()
    pyramid = build_pyramid(patches, patches.normalisation, 64, allocator("disk", tmp_path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(pyramid.valid_pixel) == 400 * (100**2 - 1)
    assert peak < 400 * 100**2  # less than a byte per pixel
