"""How far people commute: P(d), the distribution of trip lengths of a region, and its decay with distance d in km.

The published recipe rounds distances to whole km, drops flows of 0 km, counts every commuter once, and fits
p(d) = lambda exp(-lambda (d - 1)) from 1 km on: lambda = 1 / (mean d - 1), per km. That is the maximum likelihood of a continuous
exponential, applied to rounded km. Rounding moves whoever travels .5 to 1 km to 1 km; ``rounded=False`` takes distances as they are and
drops those below 1 km instead.

Two other laws stand beside it: the power law d^-a, and the truncated power law d^-a exp(-lambda d), whose integral from 1 km on is
lambda^(a - 1) Gamma(1 - a, lambda) with the upper incomplete gamma function. Akaike weights [1] compare the three with k = 1, 1 and 2
parameters. Read them with two cautions.
- They are vacuous here: every commuter counts as an independent observation, so that n is in the millions and the smallest misfit decides
  for one law with weight 1. That is why n stands beside every weight.
- The truncated power law holds the exponential in it (a = 0). The published comparison cannot see that, because the package it uses
  (powerlaw [2], up to 1.5) admits only a > 1, which is the default here. ``smallest_exponent=None`` frees a: then the truncated law is
  never less likely, and its exponent says how far the decay is from an exponential.

Kolmogorov-Smirnov D is the largest difference between the shares of commuters up to a distance, observed and fitted. ``ks_d`` looks at
both sides of every step, which is the statistic; of rounded distances it is often no more than the share of commuters at 1 km, where the
fitted share begins at 0. ``ks_d_below`` looks at the shares strictly below each distance, as [2] does and so the published values.

[1] Burnham and Anderson 2002, Model Selection and Multimodel Inference, section 2.9
[2] Alstott, Bullmore and Plenz 2014, doi 10.1371/journal.pone.0085777
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import rel_entr

from imagery2flow.flows.metrics import jensen_shannon
from imagery2flow.run.earth import METRES_PER_KM

SHORTEST_KM = 1.0  # where all three laws begin
EXPONENTIAL, POWER_LAW, TRUNCATED = "exponential", "power law", "truncated power law"
PUBLISHED_SMALLEST_EXPONENT = 1.0
EXPONENT_BOUND = 20.0  # in size; a law of distance is far within
LAMBDA_RANGE_PER_KM = (1e-9, 1e3)
NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(300)
NEGLIGIBLE = 745.0  # exp(-745) is the smallest positive double


@dataclass(frozen=True)
class TripLengths:
    """Distances with the commuters who travel them.

    Attributes:
        distance_km: Sorted, each once, 1 or more: [num_lengths].
        commuters: Above 0; predicted ones need not be whole: [num_lengths].
        left_out: Commuters who travel less.
    """

    distance_km: np.ndarray
    commuters: np.ndarray
    left_out: float

    @property
    def total(self) -> float:
        """Commuters in all."""
        return float(self.commuters.sum())

    def mean(self, values: np.ndarray) -> float:
        """Mean over commuters of a value per length [num_lengths]."""
        return float(self.commuters @ values / self.total)


@dataclass(frozen=True)
class FittedLaw:
    """A law of trip lengths from 1 km on, fitted by maximum likelihood.

    Attributes:
        exponent: a of the power; 0 for the exponential.
        lambda_per_km: Rate of the exponential; 0 for the power law.
        num_parameters: Parameters that were fitted.
        log_likelihood: In nats, of all commuters.
        akaike_weight: 0..1, among the laws that were compared.
    """

    exponent: float
    lambda_per_km: float
    num_parameters: int
    log_likelihood: float
    akaike_weight: float


@dataclass(frozen=True)
class DistanceDecay:
    """The decay of a region's trip lengths; what commuters leave undefined is NaN.

    Attributes:
        num_commuters: n, the commuters of the fit.
        num_left_out: Commuters who travel less than the laws' shortest distance.
        mean_km: Mean distance of the commuters of the fit.
        lambda_per_km: 1 / (mean - 1).
        ks_d: Kolmogorov-Smirnov D of the exponential, both sides of every step, 0..1.
        ks_d_below: The same from shares strictly below each distance, as published.
        laws: The three laws by name; none where lambda is undefined.
    """

    num_commuters: float
    num_left_out: float
    mean_km: float
    lambda_per_km: float
    ks_d: float
    ks_d_below: float
    laws: Mapping[str, FittedLaw]


def trip_lengths(distance_m: np.ndarray, commuters: np.ndarray, rounded: bool = True) -> TripLengths:
    """Commuters by distance.

    Args:
        distance_m: Metres, 0 or more: [num_pairs].
        commuters: Of each pair, observed or predicted, 0 or more: [num_pairs].
        rounded: To whole km (halves to even ones), without 0 km, as published; else as they are, without those below 1 km.
    """
    assert distance_m.shape == commuters.shape == (len(distance_m),)
    assert np.isfinite(commuters).all() and (commuters >= 0).all()
    distance_km = distance_m / METRES_PER_KM
    length_km, place = np.unique(np.rint(distance_km) if rounded else distance_km, return_inverse=True)
    total = np.bincount(place, commuters, minlength=len(length_km))
    far, some = length_km >= SHORTEST_KM, total > 0
    return TripLengths(length_km[far & some], total[far & some], float(total[~far].sum()))


def trip_length_shares(distance_m: np.ndarray, commuters: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """P(d): the share of commuters at every whole km from 1 km on.

    A prediction for observed pairs only takes over their distances, and with them most of P(d); one for all pairs does not.

    Args:
        distance_m: Metres: [num_pairs].
        commuters: Name (observed, a model's name) -> commuters of the same pairs [num_pairs].

    Returns:
        Index km, 1, 2, ... to the largest; a column per name, which sums to 1, or is NaN where nobody travels 1 km.
    """
    lengths = {name: trip_lengths(distance_m, values) for name, values in commuters.items()}
    longest = max((int(length.distance_km[-1]) for length in lengths.values() if len(length.distance_km)), default=0)
    km = pd.Index(np.arange(1, longest + 1), name="km")
    shares = {
        name: pd.Series(length.commuters / length.total if length.total else [], index=length.distance_km.astype(np.int64)).reindex(
            km, fill_value=0.0 if length.total else np.nan
        )
        for name, length in lengths.items()
    }
    return pd.DataFrame(shares, index=km, dtype=np.float64)


def divergences(observed: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """Kullback-Leibler divergence of the observed from the predicted P(d), and their Jensen-Shannon divergence, both in bits.

    Args:
        observed: Share or commuters per km: [num_km].
        predicted: The same: [num_km].

    Returns:
        KL, 0 or more, infinite where people travel a distance that the prediction rules out; JS, 0..1. NaN where either is empty.
    """
    if not (observed.sum() > 0 and predicted.sum() > 0):
        return np.nan, np.nan
    kl = rel_entr(observed / observed.sum(), predicted / predicted.sum()).sum() / np.log(2)
    return max(0.0, float(kl)), jensen_shannon(observed, predicted)


def fit_distance_decay(lengths: TripLengths, smallest_exponent: float | None = PUBLISHED_SMALLEST_EXPONENT) -> DistanceDecay:
    """Fits the three laws to the distances of a region's commuters.

    Args:
        lengths: Commuters by distance.
        smallest_exponent: Of the truncated power law; None for any, also below 0.

    Returns:
        NaN and no laws where nobody travels further than 1 km.
    """
    total = lengths.total
    excess_km = lengths.mean(lengths.distance_km - SHORTEST_KM) if total > 0 else 0.0
    if excess_km <= 0:
        return DistanceDecay(total, lengths.left_out, SHORTEST_KM if total > 0 else np.nan, np.nan, np.nan, np.nan, {})
    rate = 1 / excess_km
    exponent = 1 + 1 / lengths.mean(np.log(lengths.distance_km / SHORTEST_KM))
    fitted = {
        EXPONENTIAL: (0.0, rate, 1, exponential_log_likelihood(lengths, rate)),
        POWER_LAW: (exponent, 0.0, 1, power_law_log_likelihood(lengths, exponent)),
        TRUNCATED: fit_truncated(lengths, smallest_exponent),
    }
    weights = akaike_weights(np.array([law[2] for law in fitted.values()]), np.array([law[3] for law in fitted.values()]))
    laws = {name: FittedLaw(*law, float(weight)) for (name, law), weight in zip(fitted.items(), weights, strict=True)}
    below, both = kolmogorov_smirnov(lengths, rate)
    return DistanceDecay(total, lengths.left_out, excess_km + SHORTEST_KM, rate, both, below, laws)


def exponential_log_likelihood(lengths: TripLengths, rate: float) -> float:
    """Sum over commuters of log(lambda exp(-lambda (d - 1)))."""
    return lengths.total * (np.log(rate) - rate * lengths.mean(lengths.distance_km - SHORTEST_KM))


def power_law_log_likelihood(lengths: TripLengths, exponent: float) -> float:
    """Sum over commuters of log((a - 1) d^-a)."""
    return lengths.total * (np.log(exponent - 1) - exponent * lengths.mean(np.log(lengths.distance_km)))


def truncated_log_likelihood(lengths: TripLengths, exponent: float, rate: float) -> float:
    """Sum over commuters of log(d^-a exp(-lambda d) / integral)."""
    log_integral = truncated_moments(exponent, rate)[0]
    return lengths.total * (-exponent * lengths.mean(np.log(lengths.distance_km)) - rate * lengths.mean(lengths.distance_km) - log_integral)


def fit_truncated(lengths: TripLengths, smallest_exponent: float | None) -> tuple[float, float, int, float]:
    """Exponent, lambda per km, number of parameters and log-likelihood of the truncated power law.

    It is an exponential family in (a, lambda), whose likelihood has one maximum; the search is in log lambda, which keeps lambda above 0.
    """
    mean_log, mean_km = lengths.mean(np.log(lengths.distance_km)), lengths.mean(lengths.distance_km)

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        exponent, rate = point[0], np.exp(point[1])
        log_integral, expected_log, expected_km = truncated_moments(exponent, rate)
        value = exponent * mean_log + rate * mean_km + log_integral
        return value, np.array([mean_log - expected_log, (mean_km - expected_km) * rate])

    smallest = -EXPONENT_BOUND if smallest_exponent is None else smallest_exponent
    start = np.array([max(smallest, 0.0), -np.log(mean_km - SHORTEST_KM)])
    bounds = [(smallest, EXPONENT_BOUND), tuple(np.log(LAMBDA_RANGE_PER_KM))]
    found = minimize(loss, start, jac=True, bounds=bounds, options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 1000})
    exponent, rate = float(found.x[0]), float(np.exp(found.x[1]))
    return exponent, rate, 2, truncated_log_likelihood(lengths, exponent, rate)


def truncated_moments(exponent: float, rate: float) -> tuple[float, float, float]:
    """Log of the integral of x^-a exp(-lambda x) from 1 on, lambda^(a - 1) Gamma(1 - a, lambda), and the means of log x and of x.

    SciPy's incomplete gamma function needs 1 - a above 0, and its confluent hypergeometric function, which goes on, errs by up to all of
    its digits below. So the integral is a Gauss-Legendre sum over log x, where the integrand is smooth; the tests hold it to the gamma
    function where that exists, and to adaptive integration.
    """
    end = np.log1p(NEGLIGIBLE / rate)
    log_x = (NODES + 1) * end / 2
    log_integrand = (1 - exponent) * log_x - rate * np.expm1(log_x)
    largest = log_integrand.max()
    mass = np.exp(log_integrand - largest) * NODE_WEIGHTS * end / 2
    total = mass.sum()
    return float(np.log(total) + largest - rate), float(mass @ log_x / total), float(mass @ np.exp(log_x) / total)


def akaike_weights(num_parameters: np.ndarray, log_likelihood: np.ndarray) -> np.ndarray:
    """exp(-delta / 2) with delta = AIC - least AIC and AIC = 2 k - 2 log L, divided by its sum: [num_laws]."""
    aic = 2 * num_parameters - 2 * log_likelihood
    relative = np.exp(-(aic - aic.min()) / 2)
    return np.asarray(relative / relative.sum())


def kolmogorov_smirnov(lengths: TripLengths, rate: float) -> tuple[float, float]:
    """D of the exponential from the shares strictly below each distance, and from both sides of every step."""
    fitted = -np.expm1(-rate * (lengths.distance_km - SHORTEST_KM))
    up_to = np.cumsum(lengths.commuters) / lengths.total
    below = np.concatenate([[0.0], up_to[:-1]])
    distance_below = float(np.abs(below - fitted).max())
    return distance_below, max(distance_below, float(np.abs(up_to - fitted).max()))
