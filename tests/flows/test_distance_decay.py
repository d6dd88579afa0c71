import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import exp1, gamma, gammaincc

from imagery2flow.flows import distance_decay as decay
from imagery2flow.flows.distance_decay import (
    EXPONENTIAL,
    POWER_LAW,
    TRUNCATED,
    TripLengths,
    divergences,
    fit_distance_decay,
    trip_length_shares,
    trip_lengths,
)

EXPONENTS = [-3.0, -0.5, 0.0, 0.5, 0.999999, 1.0, 1.000001, 1.7, 2.0, 3.0, 8.0]
RATES = [1e-4, 0.01, 0.1, 1.0, 10.0]


def lengths_of(distance_km, commuters=None):
    distance_m = 1000 * np.asarray(distance_km, dtype=float)
    return trip_lengths(distance_m, np.ones(len(distance_m)) if commuters is None else np.asarray(commuters, float), rounded=False)


def test_rounded_lengths_are_summed_and_0_km_is_left_out_and_counted():
    found = trip_lengths(np.array([0.0, 400, 600, 1400, 1600, 2500, 9000]), np.array([1.0, 2, 4, 8, 16, 32, 0]))
    assert found.distance_km.tolist() == [1, 2]  # 2.5 goes to the even number; nobody travels 9 km
    assert found.commuters.tolist() == [12, 48]
    assert found.left_out == 3


def test_exact_lengths_begin_at_1_km():
    found = trip_lengths(np.array([999.0, 1000, 1250, 1250]), np.array([5.0, 1, 2, 3]), rounded=False)
    assert (found.distance_km.tolist(), found.commuters.tolist(), found.left_out) == ([1, 1.25], [1, 5], 5)


def test_lambda_is_the_reciprocal_of_the_mean_beyond_1_km():
    found = fit_distance_decay(trip_lengths(np.array([0.0, 1100, 2900, 7000]), np.array([9.0, 1, 2, 1])))
    # mean of 1, 3, 3, 7 is 3.5
    assert (found.num_commuters, found.num_left_out, found.mean_km) == (4, 9, 3.5)
    assert found.lambda_per_km == pytest.approx(0.4)
    assert found.laws[EXPONENTIAL].log_likelihood == pytest.approx(sum(np.log(0.4) - 0.4 * (d - 1) for d in (1, 3, 3, 7)))
    exponent = 1 + 4 / (2 * np.log(3) + np.log(7))
    assert found.laws[POWER_LAW].exponent == pytest.approx(exponent)
    assert found.laws[POWER_LAW].log_likelihood == pytest.approx(sum(np.log((exponent - 1) * d**-exponent) for d in (1, 3, 3, 7)))


def test_weights_are_those_of_aic():
    found = fit_distance_decay(trip_lengths(np.array([1100.0, 2900, 7000]), np.array([1.0, 2, 1])))
    relative = {name: np.exp(law.log_likelihood - law.num_parameters) for name, law in found.laws.items()}
    for name, law in found.laws.items():
        assert law.akaike_weight == pytest.approx(relative[name] / sum(relative.values()))
    assert [found.laws[name].num_parameters for name in (EXPONENTIAL, POWER_LAW, TRUNCATED)] == [1, 1, 2]


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("rate", RATES)
def test_the_truncated_law_is_normalised_and_its_moments_are_those_of_adaptive_integration(exponent, rate):
    log_integral, mean_log, mean_km = decay.truncated_moments(exponent, rate)

    def integral(weight):
        density = lambda t: weight(t) * np.exp((1 - exponent) * t - rate * np.exp(t) - log_integral)  # noqa: E731
        return quad(density, 0, np.log1p(745 / rate), epsabs=0, epsrel=1e-11, limit=1000)[0]

    assert integral(lambda t: 1.0) == pytest.approx(1, abs=1e-9)
    assert integral(lambda t: t) == pytest.approx(mean_log, rel=1e-8)
    assert integral(np.exp) == pytest.approx(mean_km, rel=1e-8)


@pytest.mark.parametrize("rate", RATES)
def test_the_normalisation_is_the_upper_incomplete_gamma_function_where_scipy_has_it(rate):
    for exponent in (-3.0, -0.5, 0.0, 0.5, 0.9):
        expected = rate ** (exponent - 1) * gamma(1 - exponent) * gammaincc(1 - exponent, rate)
        assert np.exp(decay.truncated_moments(exponent, rate)[0]) == pytest.approx(expected, rel=1e-9)
    assert np.exp(decay.truncated_moments(1.0, rate)[0]) == pytest.approx(exp1(rate), rel=1e-9)


def test_the_likelihood_of_the_truncated_law_is_the_sum_over_commuters():
    distance_km = np.array([1.0, 2.5, 2.5, 9.0])
    normal = quad(lambda x: x**-1.4 * np.exp(-0.2 * x), 1, np.inf)[0]
    expected = np.log(distance_km**-1.4 * np.exp(-0.2 * distance_km) / normal).sum()
    assert decay.truncated_log_likelihood(lengths_of(distance_km), 1.4, 0.2) == pytest.approx(expected)


def test_samples_of_an_exponential_give_back_their_rate():
    sample = 1 + np.random.default_rng(0).exponential(1 / 0.08, 100_000)
    found = fit_distance_decay(lengths_of(sample), smallest_exponent=None)
    assert found.lambda_per_km == pytest.approx(0.08, rel=0.01)
    assert found.ks_d < 0.005
    assert found.ks_d == pytest.approx(found.ks_d_below, abs=2e-5)  # one step of 100,000
    truncated = found.laws[TRUNCATED]
    assert truncated.exponent == pytest.approx(0, abs=0.02)
    assert truncated.lambda_per_km == pytest.approx(0.08, rel=0.03)


def test_samples_of_a_truncated_power_law_give_back_their_parameters():
    random = np.random.default_rng(0)
    sample = 1 + random.exponential(10.0, 400_000)
    sample = sample[random.random(len(sample)) < sample**-1.3]  # rejection: exp(-.1 d) thinned by d^-1.3
    found = fit_distance_decay(lengths_of(sample))
    assert found.laws[TRUNCATED].exponent == pytest.approx(1.3, abs=0.03)
    assert found.laws[TRUNCATED].lambda_per_km == pytest.approx(0.1, rel=0.06)
    assert found.laws[TRUNCATED].akaike_weight > 0.999


def test_the_published_bound_hides_that_the_truncated_law_holds_the_exponential():
    sample = lengths_of(1 + np.random.default_rng(1).gamma(1.5, 8.0, 20_000))  # more trips of a few km than an exponential has
    bounded, free = fit_distance_decay(sample), fit_distance_decay(sample, smallest_exponent=None)
    assert bounded.laws[TRUNCATED].exponent == pytest.approx(1)
    assert bounded.laws[EXPONENTIAL].akaike_weight > 0.999
    assert free.laws[TRUNCATED].log_likelihood > free.laws[EXPONENTIAL].log_likelihood
    assert free.laws[EXPONENTIAL].akaike_weight < 0.001
    assert bounded.lambda_per_km == free.lambda_per_km


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 5)), min_size=2, max_size=12))
def test_weights_equal_repeated_distances(pairs):
    km, count = np.array(pairs).T
    weighted, repeated = trip_lengths(1000.0 * km, count.astype(float)), trip_lengths(1000.0 * np.repeat(km, count), np.ones(count.sum()))
    assert weighted.distance_km.tolist() == repeated.distance_km.tolist()
    first, second = fit_distance_decay(weighted), fit_distance_decay(repeated)
    if (km == 1).all():
        assert np.isnan(first.lambda_per_km) and first.laws == {}
        return
    every = np.repeat(km, count)
    assert first.lambda_per_km == pytest.approx(1 / (every.mean() - 1))
    assert second.lambda_per_km == pytest.approx(first.lambda_per_km)
    for name, law in first.laws.items():
        assert second.laws[name].log_likelihood == pytest.approx(law.log_likelihood, rel=1e-6, abs=1e-6)
    assert first.laws[TRUNCATED].log_likelihood <= free_truncated(weighted) + 1e-6


def free_truncated(lengths):
    return fit_distance_decay(lengths, smallest_exponent=None).laws[TRUNCATED].log_likelihood


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 5)), min_size=2, max_size=12))
def test_a_free_truncated_law_is_at_least_as_likely_as_the_exponential(pairs):
    km, count = np.array(pairs, dtype=float).T
    found = fit_distance_decay(trip_lengths(1000 * km, count), smallest_exponent=None)
    if found.laws and found.lambda_per_km < 10:
        assert found.laws[TRUNCATED].log_likelihood >= found.laws[EXPONENTIAL].log_likelihood - 1e-6


def test_d_of_a_hand_made_distribution():
    found = fit_distance_decay(trip_lengths(np.array([1000.0, 3000]), np.array([1.0, 1])))
    # rate 1: the fit holds 0 below 1 km and 1 - exp(-2) below 3 km; the commuters 0 and .5, and with the step .5 and 1
    assert found.ks_d_below == pytest.approx(1 - np.exp(-2) - 0.5)
    assert found.ks_d == pytest.approx(0.5)


@pytest.mark.parametrize(("distance_m", "commuters"), [([], []), ([0.0, 300.0], [5.0, 5.0]), ([1000.0], [0.0])])
def test_without_commuters_beyond_0_km_everything_is_undefined(distance_m, commuters):
    found = fit_distance_decay(trip_lengths(np.array(distance_m), np.array(commuters)))
    assert found.num_commuters == 0 and found.num_left_out == sum(commuters) * (len(distance_m) > 1)
    assert np.isnan([found.mean_km, found.lambda_per_km, found.ks_d, found.ks_d_below]).all()
    assert found.laws == {}


def test_where_all_travel_1_km_the_rate_is_undefined_and_the_mean_is_not():
    found = fit_distance_decay(trip_lengths(np.array([1000.0, 1200]), np.array([5.0, 5])))
    assert (found.mean_km, found.num_commuters) == (1, 10) and np.isnan(found.lambda_per_km)


def test_shares_hold_every_km_also_those_nobody_travels():
    found = trip_length_shares(np.array([100.0, 1000, 1300, 4000]), {"observed": np.array([7.0, 1, 2, 1]), "none": np.zeros(4)})
    assert found.index.tolist() == [1, 2, 3, 4] and found.index.name == "km"
    assert found.observed.tolist() == [0.75, 0, 0, 0.25]
    assert found["none"].isna().all()
    assert trip_length_shares(np.zeros(1), {"observed": np.ones(1)}).empty


def test_divergences_of_hand_made_shares():
    kl, js = divergences(np.array([0.5, 0.5]), np.array([0.25, 0.75]))
    assert kl == pytest.approx(0.5 * np.log2(2) + 0.5 * np.log2(2 / 3))
    middle = np.array([0.375, 0.625])
    assert js == pytest.approx(sum(np.sum(p * np.log2(p / middle)) / 2 for p in (np.array([0.5, 0.5]), np.array([0.25, 0.75]))))
    assert divergences(np.array([2.0, 2]), np.array([5.0, 5])) == (0, 0)
    assert divergences(np.array([1.0, 1]), np.array([1.0, 0])) == (np.inf, pytest.approx(0.3112781))
    assert divergences(np.array([1.0, 0]), np.array([1.0, 1])) == (pytest.approx(1), pytest.approx(0.3112781))
    assert np.isnan(divergences(np.zeros(2), np.ones(2))).all()


def test_lengths_are_never_repeated_in_memory():
    found = fit_distance_decay(TripLengths(np.array([1.0, 2.0]), np.array([1e12, 1e12]), 0.0))
    assert found.num_commuters == 2e12 and found.lambda_per_km == pytest.approx(2)


def test_shares_are_those_of_the_lengths():
    random = np.random.default_rng(0)
    distance_m, commuters = random.uniform(0, 30_000, 50), random.integers(0, 9, 50).astype(float)
    naive = {}
    for metres, count in zip(distance_m, commuters, strict=True):
        km = round(metres / 1000)
        if km:
            naive[km] = naive.get(km, 0) + count
    expected = pd.Series(naive).reindex(range(1, max(k for k, v in naive.items() if v) + 1), fill_value=0)
    assert trip_length_shares(distance_m, {"o": commuters}).o.tolist() == pytest.approx((expected / expected.sum()).tolist())
