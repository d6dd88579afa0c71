import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagery2flow.flows import gravity
from imagery2flow.flows.gravity import GravityModel, fit_gravity, radiation
from imagery2flow.run.errors import InputError

NUM_UNITS = 40
CONSTRAINTS = ["none", "origin", "destination", "both"]
PARAMETERS = ["log_constant", "origin_exponent", "destination_exponent", "decay"]
LAWS = {"power": (7.0, 1.4), "exponential": (-2.0, 2e-4)}  # log of the constant, decay


def draw_city(num_units=NUM_UNITS, seed=0):
    """All pairs of units at random places within 15 km, and two masses per unit."""
    random = np.random.default_rng(seed)
    place = random.uniform(0, 15_000, (num_units, 2))
    distance_m = np.linalg.norm(place[:, None] - place, axis=2)
    origin, destination = (position.ravel() for position in np.indices(distance_m.shape))
    return origin, destination, distance_m, random.lognormal(5, 0.8, num_units), random.lognormal(5, 0.8, num_units)


def draw_flows(deterrence, seed=0):
    """Pairs, and Poisson counts of the law with exponents .8 and .6."""
    origin, destination, distance_m, leaving, arriving = draw_city(seed=seed)
    log_constant, decay = LAWS[deterrence]
    law = GravityModel("none", deterrence, log_constant, 0.8, 0.6, decay)
    mean = law.predict(origin, destination, distance_m.ravel(), leaving, arriving)
    return origin, destination, distance_m.ravel(), np.random.default_rng(seed + 1).poisson(mean).astype(float), leaving, arriving


def naive_deterrence(model, distance_m):
    return max(distance_m, model.floor_m) ** -model.decay if model.deterrence == "power" else math.exp(-model.decay * distance_m)


def naive_flow(model, pairs, chosen, distance_m, leaving, arriving, outflow, inflow):
    """The equations of Wilson 1971, pair by pair."""

    def pull(pair):
        i, j = pairs[pair]
        own = 1.0 if model.constraint == "origin" else leaving[i] ** model.origin_exponent
        other = 1.0 if model.constraint == "destination" else arriving[j] ** model.destination_exponent
        return own * other * naive_deterrence(model, distance_m[pair])

    i, j = pairs[chosen]
    if model.constraint == "none":
        return math.exp(model.log_constant) * pull(chosen)
    if model.constraint == "origin":
        return outflow[i] * pull(chosen) / sum(pull(pair) for pair in range(len(pairs)) if pairs[pair][0] == i)
    return inflow[j] * pull(chosen) / sum(pull(pair) for pair in range(len(pairs)) if pairs[pair][1] == j)


@pytest.mark.parametrize("deterrence", ["power", "exponential"])
@pytest.mark.parametrize("constraint", ["none", "origin", "destination"])
def test_gravity_equals_its_equation_pair_by_pair(constraint, deterrence):
    origin, destination, distance_m, leaving, arriving = draw_city(7)
    kept = np.random.default_rng(3).random(len(origin)) < 0.6
    origin, destination, distance_m = origin[kept], destination[kept], distance_m.ravel()[kept]
    outflow, inflow = np.arange(1.0, 8.0), np.arange(9.0, 2.0, -1.0)
    model = GravityModel(constraint, deterrence, -1.0, 0.7, 0.9, 1.2 if deterrence == "power" else 3e-4, floor_m=2_000.0)
    found = model.predict(origin, destination, distance_m, leaving, arriving, outflow, inflow)
    pairs = list(zip(origin, destination, strict=True))
    expected = [naive_flow(model, pairs, pair, distance_m, leaving, arriving, outflow, inflow) for pair in range(len(pairs))]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_gravity_by_hand():
    origin, destination, distance_m = np.array([0, 0, 1]), np.array([1, 2, 2]), np.array([1_000.0, 2_000.0, 0.0])
    leaving, arriving = np.array([4.0, 9.0, 1.0]), np.array([1.0, 2.0, 8.0])
    power = GravityModel("none", "power", math.log(1e6), 0.5, 1.0, 2.0, floor_m=500.0)
    # 1e6 x sqrt(4) x 2 / 1000^2 = 4; 1e6 x 2 x 8 / 2000^2 = 4; own unit: 1e6 x 3 x 8 / 500^2 = 96.
    np.testing.assert_allclose(power.predict(origin, destination, distance_m, leaving, arriving), [4, 4, 96])
    shared = GravityModel("origin", "power", math.nan, math.nan, 1.0, 2.0)
    # Both destinations of unit 0 pull alike, unit 1 has one.
    np.testing.assert_allclose(shared.predict(origin, destination, distance_m, leaving, arriving, np.array([10.0, 7.0, 1.0])), [5, 5, 7])


def test_balanced_flows_by_hand():
    # f = [[2, 1], [1, 2]] and margins of 3 and 3 both ways: T = f. Inflows are scaled to the outflows.
    origin, destination = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    model = GravityModel("both", "exponential", math.nan, math.nan, math.nan, math.log(2))
    flow = model.predict(origin, destination, np.array([0.0, 1.0, 1.0, 0.0]), np.ones(2), np.ones(2), np.full(2, 3.0), np.full(2, 5.0))
    np.testing.assert_allclose(flow, [2, 1, 1, 2])


@pytest.mark.parametrize("deterrence", ["power", "exponential"])
@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_parameters_are_recovered_from_flows_of_the_law(constraint, deterrence):
    log_constant, decay = LAWS[deterrence]
    model = fit_gravity(*draw_flows(deterrence), constraint, deterrence)
    expected = dict(zip(PARAMETERS, (log_constant, 0.8, 0.6, decay), strict=True))
    unused = {"none": [], "origin": PARAMETERS[:2], "destination": [PARAMETERS[0], PARAMETERS[2]], "both": PARAMETERS[:3]}[constraint]
    for name, value in expected.items():
        found = getattr(model, name)
        assert math.isnan(found) if name in unused else found == pytest.approx(value, rel=0.05), name


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_the_fit_solves_the_likelihood_equations(constraint):
    """At the maximum the model has the observed total, mean log distance, and mean log masses."""
    origin, destination, distance_m, count, leaving, arriving = draw_flows("power")
    model = fit_gravity(origin, destination, distance_m, count, leaving, arriving, constraint, "power")
    flow = model.predict(origin, destination, distance_m, leaving, arriving, np.bincount(origin, count), np.bincount(destination, count))
    columns = [np.ones(len(count)), np.log(np.maximum(distance_m, 500)), np.log(leaving)[origin], np.log(arriving)[destination]]
    for column in columns:
        assert flow @ column == pytest.approx(count @ column, rel=1e-7)


def test_every_constrained_fit_is_the_most_likely_one():
    """No other decay makes the observed counts more likely."""
    origin, destination, distance_m, count, leaving, arriving = draw_flows("exponential")
    margins = np.bincount(origin, count), np.bincount(destination, count)
    for constraint in CONSTRAINTS:
        model = fit_gravity(origin, destination, distance_m, count, leaving, arriving, constraint, "exponential")

        def likelihood(decay, model=model):
            changed = GravityModel(**{**vars(model), "decay": decay})
            flow = changed.predict(origin, destination, distance_m, leaving, arriving, *margins)
            return count @ np.log(flow) - flow.sum()

        assert likelihood(model.decay) > max(likelihood(model.decay * factor) for factor in (0.99, 1.01))


@pytest.mark.parametrize("constraint", ["origin", "destination", "both"])
@given(st.integers(0, 1_000), st.floats(-1, 4))
@settings(max_examples=15)
def test_constrained_flows_have_the_margins_given(constraint, seed, decay):
    origin, destination, distance_m, leaving, arriving = draw_city(8, seed)
    outflow = np.random.default_rng(seed).integers(0, 50, 8).astype(float)
    outflow[0] += 1
    inflow = np.roll(outflow, 3)
    model = GravityModel(constraint, "power", math.nan, 0.5, 0.5, decay)
    flow = model.predict(origin, destination, distance_m.ravel(), leaving, arriving, outflow, inflow)
    if constraint != "destination":
        np.testing.assert_allclose(np.bincount(origin, flow), outflow, rtol=1e-9)
    if constraint != "origin":
        np.testing.assert_allclose(np.bincount(destination, flow), inflow, atol=1e-6)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_a_permutation_of_units_and_pairs_changes_nothing(constraint):
    origin, destination, distance_m, count, leaving, arriving = draw_flows("power")
    random = np.random.default_rng(5)
    pairs, place = random.permutation(len(origin)), random.permutation(NUM_UNITS)  # place: new position of each unit
    masses = leaving[np.argsort(place)], arriving[np.argsort(place)]
    renamed = place[origin[pairs]], place[destination[pairs]], distance_m[pairs]
    model = fit_gravity(origin, destination, distance_m, count, leaving, arriving, constraint, "power")
    other = fit_gravity(*renamed, count[pairs], *masses, constraint, "power")
    for name in PARAMETERS:
        assert getattr(other, name) == pytest.approx(getattr(model, name), rel=1e-7, nan_ok=True)
    margins = np.bincount(origin, count), np.bincount(destination, count)
    flow = model.predict(origin, destination, distance_m, leaving, arriving, *margins)
    moved = model.predict(*renamed, *masses, *(margin[np.argsort(place)] for margin in margins))
    np.testing.assert_allclose(moved, flow[pairs], rtol=1e-6)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_units_without_mass_and_without_flows_are_no_trouble(constraint):
    origin, destination, distance_m, count, leaving, arriving = draw_flows("power")
    leaving[3] = arriving[4] = 0
    count[(origin == 3) | (destination == 4)] = 0
    model = fit_gravity(origin, destination, distance_m, count, leaving, arriving, constraint, "power")
    flow = model.predict(origin, destination, distance_m, leaving, arriving, np.bincount(origin, count), np.bincount(destination, count))
    assert np.isfinite(flow).all()
    assert flow[(origin == 3) & (destination != 3)].max() < 1e-2 * flow.max()
    assert model.decay == pytest.approx(1.4, rel=0.06)


def test_what_the_flows_leave_open_is_0():
    origin, destination, distance_m, count, *_ = draw_flows("power")
    alike = np.full(NUM_UNITS, 7.3)
    model = fit_gravity(origin, destination, distance_m, count, alike, alike, "none", "power")
    assert (model.origin_exponent, model.destination_exponent) == (0, 0)
    everywhere = np.full(len(origin), 123.4)
    for constraint in CONSTRAINTS:
        assert fit_gravity(origin, destination, everywhere, count, alike, alike, constraint, "exponential").decay == 0


def test_flows_within_units_only_leave_the_law_finite():
    origin, destination, distance_m, leaving, arriving = draw_city(6)
    for constraint in CONSTRAINTS:
        model = fit_gravity(origin, destination, distance_m.ravel(), (origin == destination) * 5.0, leaving, arriving, constraint, "power")
        assert 5 < model.decay < math.inf


def test_margins_that_the_pairs_cannot_carry_are_told():
    # Unit 1 can only send to unit 0, which receives too little.
    model = GravityModel("both", "power", math.nan, math.nan, math.nan, 1.0)
    pairs = np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([0.0, 900.0, 900.0])
    with pytest.warns(UserWarning, match="cannot carry these margins"):
        flow = model.predict(*pairs, np.ones(2), np.ones(2), np.array([1.0, 5.0]), np.array([2.0, 4.0]))
    np.testing.assert_allclose(np.bincount(pairs[0], flow), [1, 5])


def test_faults_are_told_in_a_sentence():
    origin, destination, distance_m, count, leaving, arriving = draw_flows("power")
    with pytest.raises(InputError, match="no commuters on the 1,600 pairs"):
        fit_gravity(origin, destination, distance_m, count * 0, leaving, arriving, "none", "power")
    for constraint, name in (("origin", "outflow"), ("destination", "inflow"), ("both", "outflow")):
        with pytest.raises(InputError, match=f"{constraint} needs the {name} of every unit"):
            GravityModel(constraint, "power", 0.0, 1.0, 1.0, 1.0).predict(origin, destination, distance_m, leaving, arriving)


def naive_radiation(i, j, distance_m, population, outflow, finite):
    """Simini et al. 2012, eq. 2, and the factor of Masucci et al. 2013."""
    if i == j:
        return 0.0
    m, n = population[i], population[j]
    s = sum(population[k] for k in range(len(population)) if k not in (i, j) and distance_m[i, k] <= distance_m[i, j])
    if m == 0:
        return 0.0
    return outflow[i] * m * n / ((m + s) * (m + n + s)) / ((1 - m / sum(population)) if finite else 1)


@pytest.mark.parametrize("finite", [False, True])
@given(st.integers(0, 1_000), st.booleans())
@settings(max_examples=15)
def test_radiation_equals_a_loop_over_pairs(finite, seed, on_a_grid):
    origin, destination, distance_m, *_ = draw_city(12, seed)
    if on_a_grid:  # many ties
        distance_m = np.abs(np.subtract.outer(np.arange(12), np.arange(12))) * 100.0
    random = np.random.default_rng(seed)
    population, outflow = random.integers(0, 6, 12), random.integers(0, 90, 12)
    chosen = random.permutation(len(origin))[:100]
    found = radiation(origin[chosen], destination[chosen], distance_m, population, outflow, finite)
    expected = [naive_radiation(origin[k], destination[k], distance_m, population, outflow, finite) for k in chosen]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_radiation_by_hand():
    # On a line at 0, 1 and 3 with populations 1, 2 and 3: from 0 to 2, s = 2, 60 x 1 x 3 / ((1 + 2)(1 + 3 + 2)) = 10.
    place = np.array([0.0, 1.0, 3.0])
    distance_m, population, outflow = np.abs(place[:, None] - place), np.array([1, 2, 3]), np.array([60.0, 0.0, 0.0])
    origin, destination = np.array([0, 0, 0]), np.array([2, 1, 0])
    np.testing.assert_allclose(radiation(origin, destination, distance_m, population, outflow), [10, 40, 0])
    # A sixth of the population is at home: 50 / (1 - 1 / 6) = 60, all who leave.
    np.testing.assert_allclose(radiation(origin, destination, distance_m, population, outflow, finite=True), [12, 48, 0])


def test_the_normalised_radiation_sends_everyone_somewhere(monkeypatch):
    monkeypatch.setattr(gravity, "ORIGINS_PER_BLOCK", 7)
    origin, destination, distance_m, population, outflow = draw_city()
    flow = radiation(origin, destination, distance_m, population, outflow, finite=True)
    np.testing.assert_allclose(np.bincount(origin, flow), outflow)
    assert (radiation(origin, destination, lambda units: distance_m[units], population, outflow, finite=True) == flow).all()


def test_radiation_of_permuted_units_is_the_same():
    origin, destination, distance_m, population, outflow = draw_city()
    place = np.random.default_rng(2).permutation(NUM_UNITS)
    back = np.argsort(place)
    moved = radiation(place[origin], place[destination], distance_m[np.ix_(back, back)], population[back], outflow[back])
    np.testing.assert_allclose(moved, radiation(origin, destination, distance_m, population, outflow), rtol=1e-9)


def test_radiation_without_people_moves_nobody():
    origin, destination, distance_m, _, outflow = draw_city(4)
    assert (radiation(origin, destination, distance_m, np.zeros(4), outflow, finite=True) == 0).all()
    assert (radiation(origin, destination, distance_m, np.array([5.0, 0, 0, 0]), outflow, finite=True) == 0).all()
