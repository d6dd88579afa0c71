"""The laws of spatial interaction: gravity, fitted to flows, and radiation, which has no parameter. They are baselines of the flow models.

Gravity, of an origin i and a destination j, with masses m and n and a deterrence f of the distance d

    f(d) = max(d, floor)^-beta  (power)   or   exp(-beta d)  (exponential)
    none:         T_ij = C m_i^a n_j^b f(d_ij)
    origin:       T_ij = O_i n_j^b f(d_ij) / sum_k n_k^b f(d_ik)      O_i the outflow, k over the pairs of i
    destination:  T_ij = D_j m_i^a f(d_ij) / sum_k m_k^a f(d_kj)      D_j the inflow, k over the pairs of j
    both:         T_ij = A_i B_j O_i D_j f(d_ij), A and B such that all O and D hold

Wilson 1971, doi 10.1068/a030001. All are fitted by Poisson maximum likelihood (Flowerdew and Aitkin 1982, doi
10.1111/j.1467-9787.1982.tb00744.x). Given its margin a Poisson flow is multinomial, so that C, or the factor of every origin or destination,
drops out and a convex problem in two or three parameters is left; of ``both`` only beta is left, and at its maximum the mean distance (of
power: of log distance) of the model is the observed one (Hyman 1969, doi 10.1068/a010105).

Radiation (Simini et al. 2012, eq. 2, doi 10.1038/nature10856), with s_ij the population within the distance r_ij of i but that of i and j

    T_ij = O_i m_i n_j / ((m_i + s_ij) (m_i + n_j + s_ij))

and for a finite system of population M divided by 1 - m_i / M (Masucci et al. 2013, doi 10.1103/PhysRevE.88.022812).

Only the pairs given take part: a pair that is not given is unknown, not 0. Names of dimensions: num_pairs, num_units; pairs are positions of units.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import sparse
from scipy.optimize import brentq
from scipy.special import logsumexp

from imagery2flow.run.errors import InputError

Deterrence = Literal["power", "exponential"]
Constraint = Literal["none", "origin", "destination", "both"]
# Distances from units, given as positions [k], to all units, in metres: [k, num_units].
DistanceRows = Callable[[np.ndarray], np.ndarray]

# A unit without mass counts as this much, so that its logarithm exists: next to nothing as people, jobs or square kilometres.
SMALLEST_MASS = 1e-3
FLOOR_M = 500.0
GRADIENT_TOLERANCE = 1e-9  # of the mean log-likelihood, by standard deviation of a column
MOST_NEWTON_STEPS = 100
ROUNDING = 1e-12  # of the mean log-likelihood; a step that raises the loss by no more is not halved
OPEN_DIRECTION = 1e-9  # a direction of parameters of less curvature than this share of the largest is left open by the flows
# Where the flows fit ever steeper laws ever better, the decay ends at this many e-foldings per standard deviation of distance.
STEEPEST = 32.0
BALANCE_TOLERANCE = 1e-9  # share of the commuters that may arrive at a wrong unit
MOST_BALANCE_STEPS = 1_000
STANDSTILL = 1 - 1e-6  # steps that leave more than this share of the fault lead nowhere, and in time to infinite factors
ORIGINS_PER_BLOCK = 256  # rows of the distance matrix that radiation sorts at once


@dataclass(frozen=True)
class GravityModel:
    """A fitted gravity law. A parameter whose place the constraint takes is NaN.

    Attributes:
        constraint: Whose margins are given.
        deterrence: Form of f.
        log_constant: log C.
        origin_exponent: a.
        destination_exponent: b.
        decay: beta; without unit (power) or per metre (exponential). Below 0 where flows grow with distance.
        floor_m: Least distance of the power law, metres.
    """

    constraint: Constraint
    deterrence: Deterrence
    log_constant: float
    origin_exponent: float
    destination_exponent: float
    decay: float
    floor_m: float = FLOOR_M

    def predict(
        self,
        origin: np.ndarray,
        destination: np.ndarray,
        distance_m: np.ndarray,
        origin_mass: np.ndarray,
        destination_mass: np.ndarray,
        outflow: np.ndarray | None = None,
        inflow: np.ndarray | None = None,
    ) -> np.ndarray:
        """Flows of pairs, in commuters [num_pairs].

        Args:
            origin: Positions of the home units [num_pairs].
            destination: Positions of the work units [num_pairs].
            distance_m: Metres [num_pairs].
            origin_mass: Masses m, 0 or more; not used by the constraints ``origin`` and ``both`` [num_units].
            destination_mass: Masses n, 0 or more; not used by ``destination`` and ``both`` [num_units].
            outflow: Commuters who leave each unit for a pair given; needed by ``origin`` and ``both`` [num_units].
            inflow: Commuters who arrive; needed by ``destination`` and ``both``, where it is scaled to the total outflow [num_units].

        Raises:
            InputError: A margin is missing.
        """
        log_deterrence = -self.decay * distance_term(distance_m, self.deterrence, self.floor_m)  # [num_pairs]
        if self.constraint == "both":
            flow, astray = balance(log_deterrence, origin, destination, self._margin(outflow, "outflow"), self._margin(inflow, "inflow"))
            if astray > BALANCE_TOLERANCE:
                warnings.warn(f"the pairs cannot carry these margins: {astray:.2g} of the commuters arrive at a wrong unit", stacklevel=2)
            return flow
        from_origin, from_destination = log_mass(origin_mass)[origin], log_mass(destination_mass)[destination]
        if self.constraint == "origin":
            score = self.destination_exponent * from_destination + log_deterrence
            return self._margin(outflow, "outflow")[origin] * np.exp(log_share(score, origin))
        if self.constraint == "destination":
            score = self.origin_exponent * from_origin + log_deterrence
            return self._margin(inflow, "inflow")[destination] * np.exp(log_share(score, destination))
        masses = self.origin_exponent * from_origin + self.destination_exponent * from_destination
        return np.exp(self.log_constant + masses + log_deterrence)

    def _margin(self, margin: np.ndarray | None, name: str) -> np.ndarray:
        if margin is None:
            raise InputError(
                f"a gravity model of the constraint {self.constraint} needs the {name} of every unit; give it or use the constraint none"
            )
        return margin


def fit_gravity(
    origin: np.ndarray,
    destination: np.ndarray,
    distance_m: np.ndarray,
    count: np.ndarray,
    origin_mass: np.ndarray,
    destination_mass: np.ndarray,
    constraint: Constraint,
    deterrence: Deterrence,
    floor_m: float = FLOOR_M,
) -> GravityModel:
    """The gravity law that makes the flows of the pairs given the most likely.

    A parameter that the flows leave open, such as the exponent of equal masses, is 0.

    Args:
        origin: Positions of the home units [num_pairs].
        destination: Positions of the work units [num_pairs].
        distance_m: Metres, 0 for a pair within one unit [num_pairs].
        count: Commuters, 0 or more [num_pairs].
        origin_mass: 0 or more; below ``SMALLEST_MASS`` taken for that [num_units].
        destination_mass: Likewise [num_units].
        constraint: Whose margins the law is given: with ``origin`` the flows of one origin are shared out, and so on.
        deterrence: Form of the deterrence.
        floor_m: The power law, infinite at 0, takes shorter distances for this one, metres. It stands for the way within a unit; half
            the distance to the nearest unit is usual, and the default that of tracts of a square kilometre. The exponential law needs none.

    Raises:
        InputError: There are no commuters.
    """
    assert origin.shape == destination.shape == distance_m.shape == count.shape
    assert np.isfinite(count).all() and (count >= 0).all()
    if count.sum() == 0:
        raise InputError(f"no commuters on the {len(count):,} pairs to fit a gravity model to; give pairs with flows")
    term = distance_term(distance_m, deterrence, floor_m)
    if constraint == "both":
        return GravityModel(constraint, deterrence, np.nan, np.nan, np.nan, fit_balanced_decay(origin, destination, term, count), floor_m)
    columns = {"decay": -term}
    if constraint != "origin":
        columns["origin_exponent"] = log_mass(origin_mass)[origin]
    if constraint != "destination":
        columns["destination_exponent"] = log_mass(destination_mass)[destination]
    matrix = np.stack(list(columns.values()), axis=1)  # [num_pairs, num_parameters]
    group = {"none": np.zeros_like(origin), "origin": origin, "destination": destination}[constraint]
    values = fit_shares(matrix, group, count)
    log_constant = float(np.log(count.sum()) - logsumexp(matrix @ values)) if constraint == "none" else np.nan
    found = {"origin_exponent": np.nan, "destination_exponent": np.nan} | dict(zip(columns, values.tolist(), strict=True))
    return GravityModel(constraint, deterrence, log_constant, floor_m=floor_m, **found)


def distance_term(distance_m: np.ndarray, deterrence: Deterrence, floor_m: float) -> np.ndarray:
    """What the decay multiplies, -log f / beta: log of the metres, at least those of the floor, or the metres [num_pairs]."""
    assert floor_m > 0
    return np.log(np.maximum(distance_m, floor_m)) if deterrence == "power" else np.asarray(distance_m, np.float64)


def log_mass(mass: np.ndarray) -> np.ndarray:
    """Logarithm of masses, of ``SMALLEST_MASS`` for what is smaller [num_units]."""
    assert np.isfinite(mass).all() and (mass >= 0).all()
    return np.log(np.maximum(mass, SMALLEST_MASS))


def log_share(score: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Logarithm of exp(score) as a share of its group's sum; score and group, 0 or more: [num_pairs]."""
    highest = np.full(group.max(initial=-1) + 1, -np.inf)  # [num_groups]
    np.maximum.at(highest, group, score)
    score = score - highest[group]
    return score - np.log(np.bincount(group, np.exp(score))[group])


def fit_shares(columns: np.ndarray, group: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Parameters theta that maximise the multinomial likelihood sum count log share, share = softmax of columns . theta within groups.

    Newton's method with step halving: the problem is convex.

    Args:
        columns: [num_pairs, num_parameters].
        group: Whose commuters are shared out [num_pairs].
        count: Commuters [num_pairs].

    Returns:
        [num_parameters].
    """
    spread = columns.std(axis=0)
    spread[spread <= OPEN_DIRECTION * np.abs(columns).max(axis=0)] = np.inf  # a constant says nothing; only rounding makes it vary
    x = (columns - columns.mean(axis=0)) / spread
    theta = np.zeros(x.shape[1])
    share, loss = shares_and_loss(x, theta, group, count)
    for _ in range(MOST_NEWTON_STEPS):
        gradient, curvature = derivatives(x, share, group, count)
        if np.abs(gradient).max() <= GRADIENT_TOLERANCE:
            break
        step = np.linalg.pinv(curvature, rcond=OPEN_DIRECTION, hermitian=True) @ gradient
        before = loss
        share, loss = shares_and_loss(x, theta - step, group, count)
        while loss > before + ROUNDING * (1 + before):
            step /= 2
            share, loss = shares_and_loss(x, theta - step, group, count)
        theta = theta - step
    return theta / spread


def shares_and_loss(x: np.ndarray, theta: np.ndarray, group: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, float]:
    """Shares [num_pairs] and the mean negative log-likelihood per commuter."""
    logarithm = log_share(x @ theta, group)
    return np.exp(logarithm), -float(count @ logarithm / count.sum())


def derivatives(x: np.ndarray, share: np.ndarray, group: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradient [num_parameters] and curvature [num_parameters, num_parameters] of the loss: the covariance of x under the shares, within groups."""
    of_group = np.bincount(group, count)  # [num_groups]
    expected = of_group[group] * share  # [num_pairs]
    mean = np.stack([np.bincount(group, share * column) for column in x.T], axis=1)  # [num_groups, num_parameters]
    curvature = (expected * x.T) @ x - (of_group * mean.T) @ mean
    return (expected - count) @ x / count.sum(), curvature / count.sum()


def fit_balanced_decay(origin: np.ndarray, destination: np.ndarray, term: np.ndarray, count: np.ndarray) -> float:
    """The decay at which the balanced flows have the observed mean of the distance term, which is that of the highest likelihood.

    The mean falls as the decay grows, so that there is one such decay, unless the margins alone fix all flows: then 0.
    """
    num_units = 1 + max(origin.max(), destination.max())
    outflow, inflow = (np.bincount(place, count, num_units) for place in (origin, destination))
    spread = term.std() or 1.0
    x = (term - term.mean()) / spread

    def excess(decay: float) -> float:
        """Mean term of the model less the observed one, in standard deviations."""
        return float((balance(-decay * x, origin, destination, outflow, inflow)[0] - count) @ x / count.sum())

    now = excess(0.0)
    if abs(now) < GRADIENT_TOLERANCE:
        return 0.0
    end = np.copysign(1.0, now)
    while excess(end) * now > 0 and abs(end) < STEEPEST:
        end *= 2
    return float((brentq(excess, 0.0, end, xtol=1e-10) if excess(end) * now < 0 else end) / spread)


def balance(
    log_deterrence: np.ndarray, origin: np.ndarray, destination: np.ndarray, outflow: np.ndarray, inflow: np.ndarray
) -> tuple[np.ndarray, float]:
    """Flows A_i B_j O_i D_j f of given margins, by turns of A and B (Furness 1965).

    Inflows are scaled to the total of the outflows, both of units with pairs. Where no flows on these pairs have these margins the inflows give way.

    Args:
        log_deterrence: log f [num_pairs].
        origin: Positions [num_pairs].
        destination: Positions [num_pairs].
        outflow: O, commuters [num_units].
        inflow: D, commuters [num_units].

    Returns:
        Commuters [num_pairs], and the share of them that arrive at a wrong unit.
    """
    num_units = len(outflow)
    # Any factor per origin is A's to choose: without the largest of each, no origin has a deterrence of 0 to all its destinations.
    highest = np.full(num_units, -np.inf)
    np.maximum.at(highest, origin, log_deterrence)
    deterrence = np.exp(log_deterrence - highest[origin])
    by_origin = sparse.csr_array((deterrence, (origin, destination)), shape=(num_units, num_units))
    by_destination = by_origin.T.tocsr()
    leaving, arriving = (
        margin * (np.bincount(place, minlength=num_units) > 0) for margin, place in ((outflow, origin), (inflow, destination))
    )
    arriving = arriving * quotient(leaving.sum(), arriving.sum())
    b_times_d, before = arriving, np.inf
    for _ in range(MOST_BALANCE_STEPS):
        a_times_o = quotient(leaving, by_origin @ b_times_d)
        pull = by_destination @ a_times_o
        astray = float(quotient(np.abs(b_times_d * pull - arriving).sum(), leaving.sum()))
        if astray <= BALANCE_TOLERANCE or astray > STANDSTILL * before:
            break
        used, before, b_times_d = b_times_d, astray, quotient(arriving, pull)
    else:
        b_times_d = used  # those that a_times_o and astray belong to
    return a_times_o[origin] * b_times_d[destination] * deterrence, astray


def quotient(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Numerator / denominator, 0 where that is 0."""
    return np.divide(numerator, denominator, out=np.zeros(np.shape(denominator)), where=denominator > 0)


def radiation(
    origin: np.ndarray,
    destination: np.ndarray,
    distance_m: np.ndarray | DistanceRows,
    population: np.ndarray,
    outflow: np.ndarray,
    finite: bool = False,
) -> np.ndarray:
    """Flows by the radiation law, in commuters [num_pairs].

    The law is of commuters who leave their unit: a pair of one unit gets 0, and O_i should not count those who stay. Units exactly as far from i
    as j lie within the distance r_ij: their population belongs to s_ij. Nobody leaves a unit without population.

    Args:
        origin: Positions of the home units [num_pairs].
        destination: Positions of the work units [num_pairs].
        distance_m: Metres between all units, 0 from each to itself [num_units, num_units]; or a function that gives rows of it.
        population: m and n; all units of the region take part, also those without pairs [num_units].
        outflow: Commuters who leave each unit, O [num_units].
        finite: Divide by 1 - m_i / M, so that the flows from i to all others add up to O_i (but for ties in distance).
    """
    assert np.isfinite(population).all() and (population >= 0).all()
    flow = np.zeros(len(origin))
    for units, chosen in blocks_of_origins(origin):
        rows = distance_m(units) if callable(distance_m) else distance_m[units]
        between = population_between(units, rows, population)  # [num_rows, num_units]
        own, other = population[origin[chosen]], population[destination[chosen]]  # [num_chosen]
        nearer = own + between[np.searchsorted(units, origin[chosen]), destination[chosen]]
        flow[chosen] = quotient(outflow[origin[chosen]] * own * other, nearer * (nearer + other))
    if finite:
        total = population.sum()
        flow = quotient(flow * total, total - population[origin])
    return np.where(origin == destination, 0.0, flow)


def blocks_of_origins(origin: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Some of the origins, sorted [k], and the positions of their pairs, until all had their turn."""
    order = np.argsort(origin, kind="stable")
    units, first = np.unique(origin[order], return_index=True)
    ends = np.append(first, len(origin))
    for start in range(0, len(units), ORIGINS_PER_BLOCK):
        stop = min(start + ORIGINS_PER_BLOCK, len(units))
        yield units[start:stop], order[ends[start] : ends[stop]]


def population_between(units: np.ndarray, distance_m: np.ndarray, population: np.ndarray) -> np.ndarray:
    """s: the population as near to a unit as each other one or nearer, without the two of them.

    Args:
        units: Positions of the units i [k].
        distance_m: Metres from them to every unit j [k, num_units].
        population: [num_units].

    Returns:
        s_ij, where j is not i [k, num_units].
    """
    order = np.argsort(distance_m, axis=1)
    ranked = np.take_along_axis(distance_m, order, axis=1)
    within = np.cumsum(population[order], axis=1, dtype=np.float64)
    # Among units of equal distance the last rank's sum has them all; sums grow with rank, so it is the least among the last ranks that follow.
    last = np.ones(ranked.shape, dtype=bool)
    last[:, :-1] = ranked[:, 1:] > ranked[:, :-1]
    within = np.minimum.accumulate(np.where(last, within, np.inf)[:, ::-1], axis=1)[:, ::-1]
    between = np.empty(within.shape)
    np.put_along_axis(between, order, within, axis=1)
    return np.maximum(between - population[units, None] - population, 0.0)  # rounding must not turn nobody into less
