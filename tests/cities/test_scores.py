import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from scipy import stats
from sklearn import metrics

from imagery2flow.cities import scores

NAN = float("nan")
NAMES = ("a", "b", "c", "d")


@pytest.fixture
def tiles():
    """Probabilities of 200 tiles over 4 classes, of which the last has no tile, with some equal probabilities; true classes."""
    random = np.random.default_rng(0)
    probabilities = random.integers(1, 6, (200, 4)).astype(float)
    return probabilities / probabilities.sum(axis=1, keepdims=True), random.integers(0, 3, 200)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 9])
def test_top_k_is_that_of_a_naive_loop(tiles, k):
    probabilities, true = tiles
    right = [t in sorted(range(4), key=lambda c: (-row[c], c))[:k] for row, t in zip(probabilities.tolist(), true.tolist(), strict=True)]
    assert scores.top_k_accuracy(probabilities, true, k) == pytest.approx(np.mean(right))


def test_a_model_that_knows_nothing_is_not_right_everywhere():
    nothing = np.full((4, 4), 0.25)
    assert scores.top_k_accuracy(nothing, np.arange(4), 1) == 0.25
    assert scores.top_k_accuracy(nothing, np.arange(4), 3) == 0.75


def test_top_1_is_the_accuracy(tiles):
    found = scores.all_class_scores(*tiles, top_k=1, num_bins=15)
    assert found["top_1_accuracy"] == found["accuracy"]


def test_confusion_and_class_scores_are_those_of_sklearn(tiles):
    probabilities, true = tiles
    called = scores.called_class(probabilities)
    confusion = scores.confusion_matrix(true, called, 4)
    assert (confusion == metrics.confusion_matrix(true, called, labels=range(4))).all()
    table = scores.class_scores(confusion, NAMES)
    precision, recall, f1, tiles_of = metrics.precision_recall_fscore_support(true, called, labels=range(4), zero_division=0)
    assert table.tiles.tolist() == tiles_of.tolist()
    np.testing.assert_allclose(table.precision, precision)
    np.testing.assert_allclose(table.recall[:3], recall[:3])
    np.testing.assert_allclose(table.f1[:3], f1[:3])
    assert np.isnan(table.recall["d"]) and np.isnan(table.f1["d"])  # no tile: nothing is known
    for place in range(4):
        assert table.accuracy.iloc[place] == pytest.approx(np.mean((called == place) == (true == place)))
    assert scores.all_class_scores(probabilities, true, 5, 15)["macro_f1"] == pytest.approx(f1[:3].mean())


def test_class_scores_by_hand():
    table = scores.class_scores(np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]]), ["a", "b", "c"])
    assert table.loc["a"].tolist() == pytest.approx([4, 3 / 5, 3 / 4, 6 / 9, 5 / 8])
    assert table.loc["b"].tolist() == pytest.approx([4, 2 / 3, 2 / 4, 4 / 7, 5 / 8])
    np.testing.assert_equal(table.loc["c"].tolist(), [0, NAN, NAN, NAN, 1.0])


def test_pairs_are_sorted_as_numbers_and_carry_both_directions():
    # As text "9" is above "80": the order of the published script.
    confusion = np.array([[1, 9, 90], [80, 20, 0], [0, 0, 0]])
    table = scores.confused_pairs(confusion, ["a", "b", "c"])
    assert table[["first", "second"]].to_numpy().tolist() == [["a", "c"], ["a", "b"]]
    assert table.symmetrised_share.tolist() == pytest.approx([0.9, (0.09 + 0.8) / 2])  # c has no tiles: one direction exists
    assert table.tiles_first_as_second.tolist() == [90, 9] and table.tiles_second_as_first.tolist() == [0, 80]
    assert np.isnan(table.share_second_as_first[0])


def test_pairs_are_those_of_a_naive_loop():
    confusion = np.random.default_rng(1).integers(0, 3, (6, 6))
    table = scores.confused_pairs(confusion, list("abcdef"))
    expected = {}
    for i in range(6):
        for j in range(i + 1, 6):
            if confusion[i, j] or confusion[j, i]:
                expected["abcdef"[i], "abcdef"[j]] = (confusion[i, j] / confusion[i].sum() + confusion[j, i] / confusion[j].sum()) / 2
    found = {(row["first"], row["second"]): row.symmetrised_share for _, row in table.iterrows()}
    assert found == pytest.approx(expected)
    assert table.symmetrised_share.is_monotonic_decreasing


def test_nothing_confused_is_an_empty_table_with_its_columns():
    table = scores.confused_pairs(np.diag([3, 4]), ["a", "b"])
    assert len(table) == 0 and "symmetrised_share" in table


def naive_ece(confidence, right, num_bins):
    total = 0.0
    for number in range(num_bins):
        members = [i for i, c in enumerate(confidence) if number / num_bins < c <= (number + 1) / num_bins]
        if members:
            gap = np.mean([right[i] for i in members]) - np.mean([confidence[i] for i in members])
            total += len(members) / len(confidence) * abs(gap)
    return total


@pytest.mark.parametrize("num_bins", [1, 7, 15])
def test_ece_is_that_of_a_naive_loop(num_bins):
    random = np.random.default_rng(2)
    confidence = random.uniform(0.05, 1, 300)
    right = random.random(300) < 0.6
    bins = scores.calibration_bins(confidence, right, num_bins)
    assert scores.calibration_error(bins) == pytest.approx(naive_ece(confidence, right, num_bins))
    assert bins.tiles.sum() == 300


def test_ece_by_hand():
    bins = scores.calibration_bins(np.array([0.9, 0.9, 0.6, 1.0]), np.array([True, False, True, True]), 2)
    assert bins.tiles.tolist() == [0, 4]
    assert scores.calibration_error(bins) == pytest.approx(abs(0.75 - 0.85))
    # The upper end belongs to the bin below.
    assert scores.calibration_bins(np.array([0.5, 1.0, 0.0]), np.ones(3, bool), 2).tiles.tolist() == [2, 1]


@hypothesis.given(strategies.lists(strategies.integers(1, 20), min_size=1, max_size=8))
def test_a_calibrated_set_has_ece_0(right_of_20):
    confidence = np.repeat(np.array(right_of_20) / 20, 20)
    right = np.concatenate([np.arange(20) < number for number in right_of_20])
    assert scores.calibration_error(scores.calibration_bins(confidence, right, 15)) == pytest.approx(0, abs=1e-12)


def test_no_tiles_have_no_scores():
    found = scores.all_class_scores(np.empty((0, 3)), np.empty(0, dtype=int), 5, 15)
    assert found.pop("num_tiles") == 0 and found.pop("num_classes") == 3
    assert all(np.isnan(value) for value in found.values())


def test_one_class_is_always_right():
    found = scores.all_class_scores(np.ones((5, 1)), np.zeros(5, dtype=int), 5, 15)
    assert [found[name] for name in ("accuracy", "top_5_accuracy", "macro_f1", "ece", "accuracy_of_most_common_class")] == [1, 1, 1, 0, 1]


def test_scores_of_indexes_are_those_of_the_libraries():
    random = np.random.default_rng(3)
    observed = random.integers(0, 9, 50).astype(float)
    predicted = observed + random.normal(size=50)
    assert scores.r2(observed, predicted) == pytest.approx(metrics.r2_score(observed, predicted))
    assert scores.rmse(observed, predicted) == pytest.approx(metrics.root_mean_squared_error(observed, predicted))
    assert scores.spearman(observed, predicted) == pytest.approx(stats.spearmanr(observed, predicted).statistic)


def test_scores_of_indexes_by_hand():
    observed, predicted = np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])
    assert scores.r2(observed, predicted) == pytest.approx(0)
    assert scores.rmse(observed, predicted) == pytest.approx(np.sqrt(2 / 3))
    assert scores.spearman(observed, predicted) == pytest.approx(0.5)
    assert scores.r2(observed, np.full(3, 2.0)) == 0  # the mean of the same values is the zero of the scale
    assert scores.spearman(observed, observed**3) == pytest.approx(1)


def test_constants_have_no_r2_and_no_ranks():
    constant = np.full(7, 0.1)
    assert np.isnan(scores.r2(constant, np.arange(7.0))) and np.isnan(scores.spearman(np.arange(7.0), constant))
    assert np.isnan(scores.rmse(np.array([]), np.array([])))
    assert scores.rmse(constant, constant) == 0
