import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist

from imagery2flow.cities import similarity
from imagery2flow.cities.similarity import (
    average_linkage,
    confusion_distance,
    cosine_distance,
    cosine_similarity,
    fit_gaussians,
    frechet_distance,
    frechet_distances,
    planar_map,
    square_root,
    symmetrised_confusion,
)


def covariance(random, size):
    factor = random.normal(size=(size, size))
    return factor @ factor.T


def test_confusion_is_the_mean_of_both_directions():
    found = symmetrised_confusion(np.array([[6, 2, 2], [0, 5, 0], [0, 0, 0]]))
    np.testing.assert_allclose(found[:2, :2], [[0.6, 0.1], [0.1, 1.0]])
    assert np.isnan(found[2]).all() and np.isnan(found[:, 2]).all()  # a city without tiles
    distance = confusion_distance(found)
    np.testing.assert_allclose(distance[:2, :2], [[0, 0.9], [0.9, 0]])
    assert np.isnan(distance[2]).all()


def test_cosine_is_that_of_a_naive_loop_and_knows_no_length():
    means = np.random.default_rng(0).normal(size=(4, 6)) * [[1], [10], [0.1], [3]]
    found = cosine_similarity(means)
    for i in range(4):
        for j in range(4):
            assert found[i, j] == pytest.approx(means[i] @ means[j] / np.linalg.norm(means[i]) / np.linalg.norm(means[j]))
            unit = means / np.linalg.norm(means, axis=1, keepdims=True)
            assert cosine_distance(found)[i, j] == pytest.approx(np.linalg.norm(unit[i] - unit[j]), abs=1e-7)
    assert np.isnan(cosine_similarity(np.array([[0.0, 0], [1, 0]]))).tolist() == [[True, True], [True, False]]


def test_means_of_cities_are_those_of_a_loop():
    random = np.random.default_rng(1)
    vectors, city = random.normal(size=(20, 3)), np.repeat([2, 0, 1], [5, 14, 1])
    found = similarity.city_means(vectors, city, 3)
    for number in range(3):
        np.testing.assert_allclose(found[number], vectors[city == number].mean(axis=0))


def test_the_frechet_distance_is_the_formula_with_the_matrix_root():
    random = np.random.default_rng(2)
    for _ in range(5):
        a, b, mean_a, mean_b = covariance(random, 6), covariance(random, 6), random.normal(size=6), random.normal(size=6)
        expected = np.sqrt(((mean_a - mean_b) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real))
        found = frechet_distance(mean_a, square_root(a), mean_b, square_root(b))
        assert found == pytest.approx(expected)
        assert frechet_distance(mean_b, square_root(b), mean_a, square_root(a)) == pytest.approx(found)
        assert frechet_distance(mean_a, square_root(a), mean_a, square_root(a)) < 1e-12  # the difference of traces would leave 1e-8


def test_of_diagonal_gaussians_it_is_the_distance_of_means_and_deviations():
    mean_a, mean_b, std_a, std_b = np.array([0.0, 3]), np.array([4.0, 0]), np.array([1.0, 2]), np.array([2.0, 0])
    expected = np.sqrt(((mean_a - mean_b) ** 2).sum() + ((std_a - std_b) ** 2).sum())  # sqrt(25 + 5)
    assert frechet_distance(mean_a, np.diag(std_a), mean_b, np.diag(std_b)) == pytest.approx(expected)


def test_singular_covariances_have_a_distance():
    random = np.random.default_rng(3)
    thin = random.normal(size=(8, 2))
    root = square_root(thin @ thin.T)
    assert frechet_distance(np.zeros(8), root, np.zeros(8), root) < 1e-12
    assert frechet_distance(np.zeros(8), root, np.zeros(8), np.zeros((8, 8))) == pytest.approx(np.sqrt((thin**2).sum()))


def test_cities_of_equal_tiles_are_at_0_and_the_table_is_symmetric():
    random = np.random.default_rng(4)
    one, other = random.normal(size=(10, 5)), random.normal(size=(30, 5)) + 2
    vectors, city = np.concatenate([one, one[::-1], other]), np.repeat([0, 1, 2], [10, 10, 30])
    distance = frechet_distances(fit_gaussians(vectors, city, 3))
    assert distance[0, 1] < 1e-10 and distance[0, 2] > 3
    assert (distance == distance.T).all() and (distance.diagonal() == 0).all()
    order = random.permutation(50)
    np.testing.assert_allclose(frechet_distances(fit_gaussians(vectors[order], city[order], 3)), distance, atol=1e-9)


def test_many_tiles_reach_the_distance_of_their_distributions_and_components_are_a_rotation():
    random = np.random.default_rng(5)
    turn = np.linalg.qr(random.normal(size=(3, 3)))[0]
    a, b = random.normal(size=(20_000, 3)) * [1, 2, 0.5], random.normal(size=(20_000, 3)) * [2, 2, 0.5] + [3, 0, 0]
    found = frechet_distances(fit_gaussians(np.concatenate([a, b]) @ turn, np.repeat([0, 1], 20_000), 2))[0, 1]
    assert found == pytest.approx(np.sqrt(9 + 1), rel=0.01)


def test_covariances_are_drawn_to_the_mean_within_cities_by_the_rule():
    random = np.random.default_rng(6)
    vectors, city = random.normal(size=(13, 2)), np.repeat([0, 1, 2], [8, 4, 1])
    fitted = fit_gaussians(vectors, city, 3)
    sums = [(len(own) - 1) * np.cov(own.T) if len(own) > 1 else np.zeros((2, 2)) for own in (vectors[city == n] for n in range(3))]
    pooled = sum(sums) / (13 - 3)
    for number, count in enumerate((8, 4, 1)):
        expected = (sums[number] + 2 * pooled) / (count - 1 + 2)
        found = fitted.roots[number] @ fitted.roots[number]
        # Components are a rotation, which keeps the eigenvalues.
        np.testing.assert_allclose(np.linalg.eigvalsh(found), np.linalg.eigvalsh(expected))
    assert fitted.variance_kept == pytest.approx(1)


def test_small_samples_of_one_distribution_come_nearer_to_0_than_unshrunk_ones():
    random = np.random.default_rng(7)
    vectors, city = random.normal(size=(60, 20)), np.repeat(np.arange(6), 10)
    fitted = fit_gaussians(vectors, city, 6)
    own = [np.cov(fitted.means.dtype.type(1) * vectors[city == n].T) for n in range(6)]
    means = [vectors[city == n].mean(axis=0) for n in range(6)]
    plain = frechet_distance(means[0], square_root(own[0]), means[1], square_root(own[1]))
    assert frechet_distances(fitted)[0, 1] < 0.8 * plain


def test_one_tile_each_is_the_distance_of_the_tiles():
    vectors = np.random.default_rng(8).normal(size=(4, 512))
    distance = frechet_distances(fit_gaussians(vectors, np.arange(4), 4))
    np.testing.assert_allclose(distance, cdist(vectors, vectors), atol=1e-9)


def test_equal_tiles_have_no_distance():
    fitted = fit_gaussians(np.ones((6, 3)), np.repeat([0, 1], 3), 2)
    assert (frechet_distances(fitted) == 0).all() and fitted.variance_kept == 1


def test_components_are_limited_and_their_share_is_told():
    vectors = np.random.default_rng(9).normal(size=(200, 10)) * [9, 9, 1, 1, 1, 1, 1, 1, 1, 1]
    fitted = fit_gaussians(vectors, np.repeat([0, 1], 100), 2, most_components=2)
    assert fitted.means.shape == (2, 2) and fitted.roots.shape == (2, 2, 2)
    variance = np.linalg.eigvalsh(np.cov(vectors.T))
    assert fitted.variance_kept == pytest.approx(variance[-2:].sum() / variance.sum())


def test_the_map_reproduces_distances_of_a_plane():
    places = np.random.default_rng(10).normal(size=(7, 2)) * [3, 1]
    distance = cdist(places, places)
    found = planar_map(distance)
    np.testing.assert_allclose(cdist(found.places, found.places), distance, atol=1e-9)
    assert found.variance_shown == pytest.approx(1) and found.stress == pytest.approx(0, abs=1e-9)


def test_what_a_plane_cannot_show_is_told():
    found = planar_map(1 - np.eye(4))  # a regular tetrahedron: three equal eigenvalues
    assert found.variance_shown == pytest.approx(2 / 3)
    shown = cdist(found.places, found.places)
    assert found.stress == pytest.approx(np.sqrt(((1 - np.eye(4) - shown) ** 2).sum() / 12))


@pytest.mark.parametrize("distance", [np.zeros((1, 1)), np.array([[0.0, 2], [2, 0]]), np.zeros((3, 3))])
def test_one_two_and_equal_cities_have_a_map(distance):
    found = planar_map(distance)
    np.testing.assert_allclose(cdist(found.places, found.places), distance, atol=1e-7)
    assert found.variance_shown == 1 and found.stress == pytest.approx(0, abs=1e-7)


def test_the_tree_joins_by_mean_distance():
    distance = np.array([[0.0, 1, 5], [1, 0, 7], [5, 7, 0]])
    tree = average_linkage(distance)
    assert sorted(tree[0, :2]) == [0, 1] and tree[:, 2].tolist() == [1, 6]
