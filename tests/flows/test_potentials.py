import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from imagery2flow.flows import potentials
from imagery2flow.flows.potentials import (
    FOLDS,
    PENALTIES,
    Process,
    choose_kernel,
    choose_shape,
    fit_line,
    fit_potentials,
    fit_process,
    kernel,
    standardised,
)
from imagery2flow.flows.table import FlowTable

SHAPE = (1.3, 2.0, 0.2)  # variance, length, noise


def flow_table(count):
    """Every pair of a matrix of counts [num_units, num_units] that is above 0."""
    origin, destination = np.nonzero(count)
    ids = tuple(f"{number:03d}" for number in range(len(count)))
    return FlowTable(ids, origin, destination, count[origin, destination].astype(float))


def town(num_units=30, seed=0):
    """Features of units and flows that they drive."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(num_units, 2))
    mass = np.exp(features[:, 0])
    return features, random.poisson(3 * mass[:, None] * mass + 0.5)


@pytest.fixture
def fixed_kernel(monkeypatch):
    monkeypatch.setattr(potentials, "choose_kernel", lambda *_: SHAPE)


def naive_line(inputs, values):
    """Ridge regression whose penalty leaves the smallest squared error of units that are left out in turn, all by loops."""
    best = (np.inf, None, None)
    for penalty in PENALTIES:
        error = 0.0
        for left_out in [*range(len(values)), None]:
            kept = [unit for unit in range(len(values)) if unit != left_out]
            x, y = inputs[kept] - inputs[kept].mean(axis=0), values[kept] - values[kept].mean()
            slope = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)
            mean = values[kept].mean() - inputs[kept].mean(axis=0) @ slope
            if left_out is not None:
                error += (values[left_out] - mean - inputs[left_out] @ slope) ** 2
        if error < best[0]:
            best = (error, mean, slope)
    return best[1:]


def test_the_line_is_that_of_the_loop():
    random = np.random.default_rng(0)
    inputs = random.normal(size=(14, 3))
    values = 3 + inputs @ np.array([1.0, -0.5, 0.0]) + random.normal(0, 0.7, 14)
    mean, slope = fit_line(inputs, values)
    expected_mean, expected_slope = naive_line(inputs, values)
    assert mean == pytest.approx(expected_mean)
    np.testing.assert_allclose(slope, expected_slope)


def test_the_process_around_the_line_is_that_of_scikit_learn():
    random = np.random.default_rng(0)
    features, values = random.normal(2, 3, size=(40, 3)), random.normal(5, 2, 40)
    elsewhere = features[:15] + 0.1 * (features.mean(axis=0) - features[:15])  # within the range of the features
    variance, length, noise = SHAPE
    law = ConstantKernel(variance) * RBF(length) + WhiteKernel(noise)
    inputs, others = ((x - features.mean(axis=0)) / features.std(axis=0) for x in (features, elsewhere))
    mean, slope = naive_line(inputs, values)
    rest = values - mean - inputs @ slope
    other = GaussianProcessRegressor(law, optimizer=None, alpha=0.0).fit(inputs, standardised(rest))
    expected = mean + others @ slope + rest.mean() + rest.std() * other.predict(others)
    np.testing.assert_allclose(
        fit_process(features, values, SHAPE).predict(elsewhere), expected.clip(values.min(), values.max()), rtol=1e-8
    )


def test_the_kernel_is_that_of_the_loop():
    random = np.random.default_rng(1)
    left, right = random.normal(size=(4, 3)), random.normal(size=(5, 3))
    naive = [[1.3 * np.exp(-sum((a - b) ** 2 for a, b in zip(x, z, strict=True)) / (2 * 2.0**2)) for z in right] for x in left]
    np.testing.assert_allclose(kernel(left, right, 1.3, 2.0), naive)


def test_one_unit_by_hand():
    """With k(x, x) = 3 and noise 1 the weight of a value 1 is 1/4: at the unit 3/4, at a distance l sqrt(2 ln 3) a third of it."""
    far = 2 * np.sqrt(2 * np.log(3))
    inputs, weight = np.array([[0.0], [1e3]]), np.array([1 / 4, 0.0])
    flat = Process(np.zeros(1), np.ones(1), inputs, weight, np.zeros(1), 3.0, 2.0, mean=10.0, scale=4.0, low=-99.0, high=99.0)
    np.testing.assert_allclose(flat.predict(np.array([[0.0], [far], [500.0]])), [13.0, 11.0, 10.0])
    # The feature 5 + 2 x is standardised to x; the line adds 1/2 a step, and ends at the largest value.
    sloped = Process(np.full(1, 5.0), np.full(1, 2.0), inputs, weight, np.full(1, 0.5), 3.0, 2.0, mean=10.0, scale=4.0, low=0.0, high=200.0)
    np.testing.assert_allclose(sloped.predict(np.array([[5.0], [5 + 2 * far], [205.0], [1e6]])), [13.0, 11.0 + far / 2, 60.0, 200.0])


def test_the_line_goes_on_far_from_every_unit():
    features = np.append(np.random.default_rng(2).uniform(-1, 1, 60), 9.0)[:, None]
    process = fit_process(features, 3 * features[:, 0], SHAPE)
    assert process.predict(np.array([[5.0]]))[0] == pytest.approx(15, abs=1)


def test_no_prediction_leaves_the_range_of_the_values():
    features, count = town()
    total = np.log1p(count.sum(axis=1))
    far = fit_process(features, total, SHAPE).predict(np.array([[1e4, 1e4], [-1e4, 0.0], [0.0, 1e9]]))
    assert (far >= total.min()).all()
    assert (far <= total.max()).all()
    assert far[0] == total.max()  # the first feature drives the flows
    assert far[1] == total.min()


def test_the_shape_is_that_of_what_the_line_leaves_over():
    random = np.random.default_rng(3)
    features = random.normal(4, 2, size=(25, 2))
    values = features[:, 0] + np.sin(2 * features[:, 1])
    inputs = (features - features.mean(axis=0)) / features.std(axis=0)
    mean, slope = fit_line(inputs, values)
    assert choose_shape(features, values) == pytest.approx(choose_kernel(inputs, standardised(values - mean - inputs @ slope)))


def test_constant_totals_are_no_division_by_zero():
    shape = choose_kernel(np.random.default_rng(0).normal(size=(6, 2)), standardised(np.full(6, 3.0)))
    np.testing.assert_allclose(fit_process(np.eye(6), np.full(6, 3.0), shape).predict(np.ones((1, 6))), 3.0)


def test_potentials_of_other_units_are_processes_fitted_to_the_totals_of_the_training_pairs(fixed_kernel):
    features, count = town()
    found = fit_potentials(features, flow_table(count), np.random.default_rng(0)).of(features + 0.5)
    for side, total in enumerate((count.sum(axis=1), count.sum(axis=0))):
        units = np.flatnonzero(total)
        expected = fit_process(features[units], np.log1p(total[units]), SHAPE).predict(features + 0.5)
        np.testing.assert_allclose(found[:, side], expected, rtol=1e-9)


@pytest.mark.parametrize("side", [0, 1])
def test_a_cross_fitted_value_does_not_depend_on_the_units_own_total(fixed_kernel, side):
    features, count = town()
    before = fit_potentials(features, flow_table(count), np.random.default_rng(0)).crossed
    more = count.copy()
    more[(7, slice(None)) if side == 0 else (slice(None), 7)] *= 50  # the other units' totals of that side stay as they were
    after = fit_potentials(features, flow_table(more), np.random.default_rng(0)).crossed
    assert after[7, side] == before[7, side]
    assert (after[:, side] != before[:, side]).sum() > len(features) // 2  # most of the others lean on it


def test_cross_fitted_values_are_those_of_a_loop_over_folds(fixed_kernel):
    features, count = town()
    found = fit_potentials(features, flow_table(count), np.random.default_rng(3)).crossed
    random = np.random.default_rng(3)
    total = np.log1p(count.sum(axis=1))
    units = random.permutation(np.flatnonzero(count.sum(axis=1)))
    for fold in np.array_split(units, FOLDS):
        others = np.array([unit for unit in units if unit not in fold])
        np.testing.assert_allclose(found[fold, 0], fit_process(features[others], total[others], SHAPE).predict(features[fold]), rtol=1e-9)


def test_a_unit_outside_the_training_pairs_is_unknown_in_crossed_and_filled_from_all():
    features, count = town()
    count[4] = 0  # nobody leaves
    count[:, 9] = 0  # nobody arrives
    count[11] = count[:, 11] = 0
    fitted = fit_potentials(features, flow_table(count), np.random.default_rng(0))
    unknown = np.zeros((30, 2), dtype=bool)
    unknown[[4, 11], 0] = unknown[[9, 11], 1] = True
    np.testing.assert_array_equal(np.isnan(fitted.crossed), unknown)
    of_source, of_all = fitted.of_source(features), fitted.of(features)
    np.testing.assert_array_equal(of_source[unknown], of_all[unknown])
    np.testing.assert_array_equal(of_source[~unknown], fitted.crossed[~unknown])
    assert not (of_source == of_all)[~unknown].any()


def test_they_foresee_the_totals_that_features_drive():
    features, count = town(num_units=120)
    crossed = fit_potentials(features, flow_table(count), np.random.default_rng(0)).crossed
    for side, total in enumerate((count.sum(axis=1), count.sum(axis=0))):
        known = ~np.isnan(crossed[:, side])
        assert np.corrcoef(crossed[known, side], np.log1p(total[known]))[0, 1] > 0.9


@pytest.mark.parametrize("num_units", [1, 2, 4])
def test_fewer_units_than_folds_are_enough(num_units):
    fitted = fit_potentials(np.eye(num_units), flow_table(np.full((num_units, num_units), 20)), np.random.default_rng(0))
    assert np.isfinite(fitted.of_source(np.eye(num_units))).all()


def test_more_units_than_a_process_takes_are_all_predicted(monkeypatch):
    monkeypatch.setattr(potentials, "MOST_UNITS", 10)
    monkeypatch.setattr(potentials, "MOST_TUNING_UNITS", 8)
    features, count = town()
    fitted = fit_potentials(features, flow_table(count + 1), np.random.default_rng(0))
    assert np.isfinite(fitted.crossed).all()
    assert [len(process.inputs) for process in fitted.processes] == [10, 10]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(-50, 50), st.floats(0.01, 100))
def test_predictions_move_and_stretch_with_the_values(seed, shift, stretch):
    random = np.random.default_rng(seed)
    features, values = random.normal(size=(8, 2)), random.normal(size=8)
    before, after = (fit_process(features, these, SHAPE).predict(features) for these in (values, shift + stretch * values))
    np.testing.assert_allclose(after, shift + stretch * before, rtol=1e-5, atol=1e-5)
