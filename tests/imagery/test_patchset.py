import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from imagery2flow.imagery.patchset import Normalisation, block_moments, measure, merge_moments, unit_statistics

from .helpers import as_patch_set

RED_NIR = ("red", "nir")


def test_statistics_are_those_of_valid_pixels():
    values = np.array([[1, 7], [3, 7], [99, 99]], "uint16")
    found = measure(values, np.array([True, True, False]), RED_NIR)
    assert found == Normalisation(RED_NIR, mean=(2.0, 7.0), std=(1.0, 1.0), highest=(3.0, 7.0), dtype="uint16")
    assert measure(values.astype("uint8"), np.array([True, True, False]), RED_NIR).highest == (255.0, 255.0)


def test_unit_statistics_equal_a_naive_loop():
    random = np.random.default_rng(0)
    images = [random.normal(100, 20, (height, width, 3)) for height, width in ((3, 4), (5, 2), (6, 6))]
    masks = [random.random(image.shape[:2]) < 0.6 for image in images]
    normalisation = Normalisation(("a", "b", "c"), mean=(90.0, 100.0, 110.0), std=(10.0, 20.0, 30.0), highest=(1.0,) * 3, dtype="float64")
    expected = []
    for image, mask in zip(images, masks, strict=True):
        columns = [(image[..., band][mask] - normalisation.mean[band]) / normalisation.std[band] for band in range(3)]
        expected.append([column.mean() for column in columns] + [column.std() for column in columns])
    np.testing.assert_allclose(unit_statistics(as_patch_set(images, masks), normalisation), expected, rtol=1e-9)


def test_unit_statistics_by_hand():
    image = np.array([[[1.0], [3.0], [50.0]]])
    patches = as_patch_set([image], [np.array([[True, True, False]])])
    normalisation = Normalisation(("a",), mean=(1.0,), std=(2.0,), highest=(1.0,), dtype="float64")
    assert unit_statistics(patches, normalisation).tolist() == [[0.5, 0.5]]  # normalised pixels 0 and 1


@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_moments_of_parts_are_those_of_the_whole(sizes, seed):
    random = np.random.default_rng(seed)
    parts = [random.integers(0, 5, (size, 2)).astype("uint16") for size in sizes]
    merged = merge_moments([block_moments(part) for part in parts])
    whole = np.concatenate(parts)
    assert merged.count == len(whole)
    if len(whole):
        np.testing.assert_allclose(merged.mean, whole.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(merged.variance, whole.var(axis=0), rtol=1e-9, atol=1e-12)
        assert merged.highest.tolist() == whole.max(axis=0).tolist()
