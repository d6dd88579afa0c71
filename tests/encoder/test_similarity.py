import numpy as np
import pytest
from sklearn.decomposition import PCA

from imagery2flow.encoder.similarity import nearest_by_cosine, principal_components


def test_the_nearest_are_those_of_a_naive_loop_whatever_the_length():
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(12, 5)) * generator.uniform(0.1, 10, (12, 1))
    nearest, similarity = nearest_by_cosine(vectors, np.array([3, 7]), 4)
    for row, own in enumerate((3, 7)):
        cosine = {n: vectors[own] @ vectors[n] / np.linalg.norm(vectors[own]) / np.linalg.norm(vectors[n]) for n in range(12) if n != own}
        expected = sorted(cosine, key=cosine.get, reverse=True)[:4]
        assert nearest[row].tolist() == expected
        assert similarity[row] == pytest.approx([cosine[n] for n in expected])


def test_equal_vectors_come_in_order_and_the_unit_itself_does_not():
    nearest, similarity = nearest_by_cosine(np.array([[1.0, 0], [2, 0], [0, 1], [3, 0]]), np.array([1]), 3)
    assert nearest.tolist() == [[0, 3, 2]]
    assert similarity.tolist() == [[1, 1, 0]]


@pytest.mark.parametrize(
    ("vectors", "k"), [(np.eye(3), 3), (np.eye(3), 0), (np.array([[1.0, 0], [0, 0]]), 1), (np.array([[1.0], [np.nan]]), 1)]
)
def test_too_few_others_and_vectors_without_direction_are_refused(vectors, k):
    with pytest.raises(ValueError, match=r"give 1 to that|leave its unit out"):
        nearest_by_cosine(vectors, np.array([0]), k)


def test_components_are_those_of_standardised_columns_with_one_sign():
    vectors = np.random.default_rng(0).normal(size=(30, 6)) * [1, 10, 100, 1, 1, 0] + 5
    components, share = principal_components(vectors, 3)
    scaled = (vectors - vectors.mean(axis=0)) / np.where(vectors.std(axis=0) > 0, vectors.std(axis=0), 1)
    expected = PCA(3, svd_solver="full").fit(scaled)
    np.testing.assert_allclose(np.abs(components), np.abs(expected.transform(scaled)), atol=1e-9)
    np.testing.assert_allclose(share, expected.explained_variance_ratio_)
    for component in components.T:
        loading = scaled.T @ component
        assert loading[np.abs(loading).argmax()] > 0
    order = np.random.default_rng(1).permutation(30)
    np.testing.assert_allclose(principal_components(vectors[order], 3)[0], components[order], atol=1e-9)


def test_components_that_do_not_exist_are_0():
    components, share = principal_components(np.array([[1.0, 2.0], [3.0, 4.0]]), 3)
    assert share == pytest.approx([1, 0, 0])
    assert np.abs(components[:, 1:]).max() < 1e-12
    components, share = principal_components(np.array([[1.0, 2.0]]), 3)
    assert (components == 0).all() and (share == 0).all()
