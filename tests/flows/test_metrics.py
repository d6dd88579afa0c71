import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagery2flow.flows.metrics import (
    NUM_DISTANCE_BINS,
    ScoredPairs,
    all_scores,
    cpc,
    cpl,
    distance_bins,
    format_scores,
    jensen_shannon,
    jsd_distance,
    mae,
    mape,
    r_log,
    rmse,
    score,
    score_table,
    skill,
)

flows = st.lists(st.tuples(st.integers(0, 500), st.floats(0, 500)), min_size=1, max_size=20)
# Zeros often, as in a whole matrix; distances in metres, of which 0 is one unit.
rows = st.tuples(st.integers(0, 500) | st.just(0), st.floats(0, 500) | st.just(0.0), st.floats(1, 60_000) | st.just(0.0))
pair_lists = st.lists(rows, min_size=1, max_size=20)
KEYS = ["cpc", "cpc_off_diagonal", "rmse", "mae", "mape", "cpl", "jsd_flow", "jsd_distance", "r_log", "skill", "num_pairs"]


def scored(table):
    """Pairs of (observed, predicted, distance in metres); a distance of 0 is one unit."""
    observed, predicted, distance_m = np.array(table, dtype=float).T
    return ScoredPairs(observed, predicted, distance_m, distance_m == 0)


def naive_scores(observed, predicted):
    """CPC, RMSE and MAE pair by pair."""
    common = squares = absolute = total = 0.0
    for y, x in zip(observed, predicted, strict=True):
        common += 2 * min(y, x)
        total += y + x
        squares += (y - x) ** 2
        absolute += abs(y - x)
    n = len(observed)
    return common / total if total else math.nan, math.sqrt(squares / n), absolute / n


def naive_mape(table):
    """Sum of relative errors over the pairs where somebody commutes, by their number."""
    total, number = 0.0, 0
    for y, x, _ in table:
        if y > 0:
            total, number = total + abs(y - x) / y, number + 1
    return total / number if number else math.nan


def naive_cpl(table):
    """Twice the links in both by the links of each."""
    both = observed = predicted = 0
    for y, x, _ in table:
        both += y > 0 and x >= 0.5
        observed += y > 0
        predicted += x >= 0.5
    return 2 * both / (observed + predicted) if observed + predicted else math.nan


def entropy(shares):
    """Shannon's entropy in bits."""
    return -sum(share * math.log2(share) for share in shares if share > 0)


def naive_jsd(observed, predicted):
    """Entropy of the mean less mean of the entropies: Lin 1991, eq. 4.1 with equal weights."""
    if not (sum(observed) > 0 and sum(predicted) > 0):
        return math.nan
    p, q = [y / sum(observed) for y in observed], [x / sum(predicted) for x in predicted]
    return entropy([(a + b) / 2 for a, b in zip(p, q, strict=True)]) - (entropy(p) + entropy(q)) / 2


def naive_jsd_distance(table):
    """The same of two histograms of 50 bins, filled pair by pair."""
    largest = max(distance for _, _, distance in table)
    observed, predicted = [0.0] * 50, [0.0] * 50
    for y, x, distance in table:
        place = min(int(distance / largest * 50), 49) if largest else 0
        observed[place] += y
        predicted[place] += x
    return naive_jsd(observed, predicted)


def naive_r(table):
    """Covariance by the two standard deviations."""
    a, b = [math.log(y + 1) for y, _, _ in table], [math.log(x + 1) for _, x, _ in table]
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    covariance = sum((u - mean_a) * (v - mean_b) for u, v in zip(a, b, strict=True))
    spread = sum((u - mean_a) ** 2 for u in a) * sum((v - mean_b) ** 2 for v in b)
    return covariance / math.sqrt(spread) if spread > 0 else math.nan


@given(flows)
def test_scores_equal_their_equations(pairs):
    observed, predicted = np.array(pairs, dtype=float).T
    found = (cpc(observed, predicted), rmse(observed, predicted), mae(observed, predicted))
    assert found == pytest.approx(naive_scores(observed, predicted), nan_ok=True)


def test_scores_by_hand():
    observed, predicted = np.array([10.0, 20.0, 30.0]), np.array([20.0, 10.0, 30.0])
    assert cpc(observed, predicted) == pytest.approx(2 * (10 + 10 + 30) / 120)
    assert rmse(observed, predicted) == pytest.approx(math.sqrt(200 / 3))
    assert mae(observed, predicted) == pytest.approx(20 / 3)
    assert score(observed, predicted) == {
        "cpc": cpc(observed, predicted),
        "rmse": rmse(observed, predicted),
        "mae": mae(observed, predicted),
        "num_pairs": 3,
    }


@given(flows, st.floats(0.01, 100))
def test_cpc_is_symmetric_blind_to_units_and_within_0_and_1(pairs, scale):
    observed, predicted = np.array(pairs, dtype=float).T
    if observed.sum() + predicted.sum() < 1e-6:
        return
    value = cpc(observed, predicted)
    assert 0 <= value <= 1 + 1e-12
    assert cpc(predicted, observed) == pytest.approx(value)
    assert cpc(scale * observed, scale * predicted) == pytest.approx(value)
    assert cpc(observed + 1, observed + 1) == 1.0


@given(flows, st.floats(0.01, 100))
def test_errors_are_symmetric_grow_with_the_units_and_mae_is_at_most_rmse(pairs, scale):
    observed, predicted = np.array(pairs, dtype=float).T
    for error in (rmse, mae):
        assert error(observed, observed) == 0
        assert error(predicted, observed) == pytest.approx(error(observed, predicted))
        assert error(scale * observed, scale * predicted) == pytest.approx(scale * error(observed, predicted))
    assert mae(observed, predicted) <= rmse(observed, predicted) * (1 + 1e-9)


def test_cpc_is_0_when_nothing_is_common_and_undefined_when_nobody_commutes():
    assert cpc(np.array([5.0, 0.0]), np.array([0.0, 7.0])) == 0
    assert math.isnan(cpc(np.zeros(3), np.zeros(3)))


@given(pair_lists)
def test_relative_error_and_links_equal_their_equations(table):
    pairs = scored(table)
    assert mape(pairs.observed, pairs.predicted) == pytest.approx(naive_mape(table), nan_ok=True)
    assert cpl(pairs.observed, pairs.predicted) == pytest.approx(naive_cpl(table), nan_ok=True)


@given(pair_lists)
def test_divergences_equal_their_equations(table):
    pairs = scored(table)
    found = jensen_shannon(pairs.observed, pairs.predicted), jsd_distance(pairs)
    expected = naive_jsd(pairs.observed.tolist(), pairs.predicted.tolist()), naive_jsd_distance(table)
    # The difference of entropies in the naive loop rounds to 1e-13 or so.
    assert found == pytest.approx(expected, abs=1e-9, nan_ok=True)


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500).map(float), st.just(0.0)), min_size=1, max_size=20))
def test_correlation_of_logs_equals_its_equation(table):
    pairs = scored(table)
    if len({y for y, _, _ in table}) == 1 or len({x for _, x, _ in table}) == 1:
        assert math.isnan(r_log(pairs.observed, pairs.predicted))
    else:
        assert r_log(pairs.observed, pairs.predicted) == pytest.approx(naive_r(table), abs=1e-9)


def test_mape_by_hand_leaves_out_pairs_without_commuters():
    # |10 - 15| / 10 = .5, |4 - 3| / 4 = .25; the third has no share of nobody.
    assert mape(np.array([10.0, 4.0, 0.0]), np.array([15.0, 3.0, 7.0])) == pytest.approx(0.375)
    assert math.isnan(mape(np.zeros(2), np.ones(2)))


def test_a_predicted_link_is_at_least_half_a_commuter():
    observed = np.array([3.0, 1.0, 0.0, 0.0])
    assert cpl(observed, np.array([0.5, 0.49, 0.5, 0.0])) == pytest.approx(2 * 1 / (2 + 2))
    assert cpl(observed, np.zeros(4)) == 0
    assert math.isnan(cpl(np.zeros(4), np.full(4, 0.49)))


def test_divergence_by_hand():
    # p = (1/2, 1/2, 0), q = (1/2, 0, 1/2), m = (1/2, 1/4, 1/4): H(m) = 1.5 bits, H(p) = H(q) = 1 bit.
    assert jensen_shannon(np.array([6.0, 6.0, 0.0]), np.array([1.0, 0.0, 1.0])) == pytest.approx(0.5)
    assert jensen_shannon(np.array([6.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(1.0)  # nothing in common: one bit
    assert math.isnan(jensen_shannon(np.zeros(2), np.ones(2)))
    assert jensen_shannon(np.array([1.0, 0.0]), np.array([1.0, 5e-324])) == 0  # the smallest number there is


def test_distances_fall_into_fifty_equal_bins_and_the_largest_into_the_last():
    assert NUM_DISTANCE_BINS == 50
    assert distance_bins(np.array([0.0, 199.0, 201.0, 5_000.0, 9_999.0, 10_000.0])).tolist() == [0, 0, 1, 25, 49, 49]
    assert distance_bins(np.zeros(3)).tolist() == [0, 0, 0]
    assert distance_bins(np.zeros(0)).tolist() == []


def test_distance_divergence_by_hand_sees_lengths_and_not_places():
    # The flow goes to another pair of like length: no divergence of the distances, one bit of the flow.
    pairs = scored([(8, 0.0, 1_000.0), (0, 8.0, 1_001.0), (0, 0.0, 10_000.0)])
    assert jsd_distance(pairs) == 0
    assert jensen_shannon(pairs.observed, pairs.predicted) == pytest.approx(1)
    # Observed (1/2, 1/2) near and far, predicted (1/2, 0) and (0, 1/2) in a middle: the 1/2 that moved costs half a bit.
    assert jsd_distance(scored([(5, 3.0, 1_000.0), (0, 3.0, 5_000.0), (5, 0.0, 10_000.0)])) == pytest.approx(0.5)


def test_correlation_by_hand():
    # log(y + 1) = 0, log 2, log 4 and log(x + 1) = log 4, log 2, 0: a falling line.
    assert r_log(np.array([0.0, 1.0, 3.0]), np.array([3.0, 1.0, 0.0])) == pytest.approx(-1)
    assert r_log(np.array([0.0, 1.0, 3.0]), np.array([0.0, 1.0, 3.0])) == pytest.approx(1)
    # In log2: y = (0, 1, 2), x = (0, 2, 1): covariance 1 and spreads 2 and 2.
    assert r_log(np.array([0.0, 1.0, 3.0]), np.array([0.0, 3.0, 1.0])) == pytest.approx(0.5)


@pytest.mark.filterwarnings("error")
def test_correlation_of_constants_is_undefined_without_a_warning():
    assert math.isnan(r_log(np.array([1.0, 2.0, 3.0]), np.full(3, 0.1)))  # three times .1 is not .3
    assert math.isnan(r_log(np.full(3, 4.0), np.array([1.0, 2.0, 3.0])))
    assert math.isnan(r_log(np.array([1.0, 2.0]), np.array([0.0, 1e-300])))  # its square is 0


def test_skill_by_hand():
    assert skill(0.8, 0.6) == pytest.approx(0.5)  # half of the .4 that the constant leaves
    assert skill(0.6, 0.6) == 0
    assert skill(0.4, 0.6) == pytest.approx(-0.5)
    assert skill(1.0, 0.6) == 1
    assert math.isnan(skill(0.8, None))
    assert math.isnan(skill(0.8, 1.0))  # nothing is left to gain
    assert math.isnan(skill(0.8, math.nan))


def test_all_scores_by_hand():
    found = all_scores(scored([(10, 15.0, 0.0), (4, 3.0, 900.0), (0, 2.0, 1_000.0)]), constant_cpc=0.5)
    assert list(found) == KEYS
    assert found["cpc"] == pytest.approx(2 * 13 / 34)
    assert found["cpc_off_diagonal"] == pytest.approx(2 * 3 / 9)
    assert found["mape"] == pytest.approx(0.375)
    assert found["cpl"] == pytest.approx(2 * 2 / 5)
    assert found["skill"] == pytest.approx(1 - (8 / 34) / 0.5)
    assert found["num_pairs"] == 3
    assert math.isnan(all_scores(scored([(10, 15.0, 0.0)]))["skill"])


@given(pair_lists)
def test_all_scores_hold_those_of_the_stages(table):
    pairs = scored(table)
    found = all_scores(pairs)
    common = score(pairs.observed, pairs.predicted)
    assert {name: found[name] for name in common} == pytest.approx(common, nan_ok=True)
    apart = [row for row in table if row[2] > 0]
    expected = naive_scores(*list(zip(*apart, strict=True))[:2])[0] if apart else math.nan
    assert found["cpc_off_diagonal"] == pytest.approx(expected, nan_ok=True)


@given(pair_lists)
def test_a_perfect_prediction_has_perfect_scores(table):
    pairs = scored([(y, y, distance) for y, _, distance in table])
    found = all_scores(pairs, constant_cpc=0.5)
    assert found["rmse"] == found["mae"] == 0
    if pairs.observed.any():
        assert found["cpc"] == found["cpl"] == found["skill"] == 1
        assert found["mape"] == found["jsd_flow"] == found["jsd_distance"] == 0
    if len(set(pairs.observed)) > 1:
        assert found["r_log"] == pytest.approx(1)


@given(pair_lists)
def test_scores_stay_in_their_ranges(table):
    found = all_scores(scored(table))
    for name in ("cpc", "cpc_off_diagonal", "cpl", "jsd_flow", "jsd_distance"):
        assert math.isnan(found[name]) or 0 <= found[name] <= 1 + 1e-12, name
    assert math.isnan(found["r_log"]) or abs(found["r_log"]) <= 1
    # What differs by distance differs by pair: a histogram cannot tell more than the flows it adds up.
    assert not found["jsd_distance"] > found["jsd_flow"] + 1e-9


@given(pair_lists, st.floats(0.01, 100))
def test_what_each_score_is_blind_to(table, scale):
    pairs = scored([(y, round(x), distance) for y, x, distance in table])
    found = all_scores(pairs)
    longer = ScoredPairs(pairs.observed, pairs.predicted, scale * pairs.distance_m, pairs.same_unit)
    assert all_scores(longer)["jsd_flow"] == pytest.approx(found["jsd_flow"], nan_ok=True)
    more = all_scores(ScoredPairs(pairs.observed, scale * pairs.predicted, pairs.distance_m, pairs.same_unit))
    for name in ("jsd_flow", "jsd_distance"):  # shares do not know totals
        assert more[name] == pytest.approx(found[name], abs=1e-9, nan_ok=True)
    other_unit = all_scores(ScoredPairs(scale * pairs.observed, scale * pairs.predicted, pairs.distance_m, pairs.same_unit))
    for name in ("cpc", "cpc_off_diagonal", "mape"):  # numbers without a unit
        assert other_unit[name] == pytest.approx(found[name], nan_ok=True)


@given(pair_lists)
def test_distance_divergence_is_blind_to_the_unit_of_distance(table):
    pairs = scored(table)
    halved = ScoredPairs(pairs.observed, pairs.predicted, pairs.distance_m / 2, pairs.same_unit)  # by 2, so that no edge rounds
    assert jsd_distance(halved) == pytest.approx(jsd_distance(pairs), nan_ok=True)


@given(pair_lists, st.randoms(use_true_random=False))
def test_the_order_of_pairs_changes_nothing(table, random):
    order = random.sample(range(len(table)), len(table))
    pairs = scored(table)
    assert all_scores(pairs.select(np.array(order)), 0.5) == pytest.approx(all_scores(pairs, 0.5), abs=1e-9, nan_ok=True)


@given(pair_lists, st.lists(st.floats(1, 60_000), max_size=10))
def test_zeros_that_are_predicted_as_zeros_change_no_share(table, distances):
    found = all_scores(scored(table))
    more = all_scores(scored([*table, *((0, 0.0, min(distance, max(row[2] for row in table))) for distance in distances)]))
    for name in set(KEYS) - {"rmse", "mae", "r_log", "num_pairs"}:
        assert more[name] == pytest.approx(found[name], abs=1e-9, nan_ok=True), name


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("table", "defined"),
    [
        ([(0, 0.0, 500.0), (0, 0.0, 0.0)], {"rmse", "mae"}),
        ([(0, 3.0, 500.0), (0, 1.0, 0.0)], {"cpc", "cpc_off_diagonal", "rmse", "mae", "cpl"}),
        ([(3, 0.0, 500.0), (1, 0.0, 0.0)], {"cpc", "cpc_off_diagonal", "rmse", "mae", "mape", "cpl"}),
        ([(3, 2.0, 500.0)], set(KEYS) - {"r_log", "skill", "num_pairs"}),
        ([(3, 2.0, 0.0)], set(KEYS) - {"r_log", "skill", "num_pairs", "cpc_off_diagonal"}),
        ([], set()),
    ],
    ids=["all zero", "none observed", "none predicted", "one pair", "one unit", "no pair"],
)
def test_scores_that_are_undefined_are_nan_and_warn_of_nothing(table, defined):
    found = all_scores(scored(np.array(table, dtype=float).reshape(-1, 3)))
    assert list(found) == KEYS
    assert {name for name, value in found.items() if not math.isnan(value)} == defined | {"num_pairs"}


@pytest.mark.parametrize(
    ("fault", "values"),
    [
        ("predicted", np.array([1.0])),
        ("predicted", np.array([-1.0, 1.0])),
        ("observed", np.array([np.nan, 1.0])),
        ("same_unit", np.array([0, 1])),
    ],
    ids=["length", "negative", "unknown", "positions for a mask"],
)
def test_pairs_refuse_what_no_score_could_mean(fault, values):
    fields = {"observed": np.ones(2), "predicted": np.ones(2), "distance_m": np.ones(2), "same_unit": np.zeros(2, dtype=bool)}
    with pytest.raises(AssertionError):
        ScoredPairs(**fields | {fault: values})


def test_pairs_are_selected_together():
    chosen = scored([(1, 2.0, 3.0), (4, 5.0, 0.0), (6, 7.0, 8.0)]).select(np.array([False, True, True]))
    assert len(chosen) == 2
    assert chosen.observed.tolist() == [4, 6]
    assert chosen.predicted.tolist() == [5, 7]
    assert chosen.distance_m.tolist() == [0, 8]
    assert chosen.same_unit.tolist() == [True, False]


def test_the_printed_table_has_a_row_per_model_and_a_column_per_score():
    observed = np.array([0.0, 4.0, 20.0])
    far = np.array([0.0, 8.0, 20.0])
    masks = {"gt10": observed > 10, "positive": observed > 0, "full": observed >= 0}
    scores = {
        name: {universe: score(observed[mask], values[mask]) for universe, mask in masks.items()}
        for name, values in (("exact", observed), ("far", far))
    }
    table = score_table(scores)
    assert table.index.tolist() == ["exact", "far"]
    assert table.loc["exact", "positive cpc"] == 1
    assert table.loc["far", "positive mae"] == 2
    assert table.loc["far", "full mae"] == pytest.approx(4 / 3)
    text = format_scores(scores, "town")
    assert text.startswith("town (1 pairs gt10, 2 pairs positive, 3 pairs full)\n")
    assert "0.923" in text  # far: 2 x (4 + 20) / (24 + 28)


@given(pair_lists)
def test_cpc_is_1_only_of_the_flows_themselves(table):
    pairs = scored(table)
    if pairs.observed.any() or pairs.predicted.any():
        value = cpc(pairs.observed, pairs.predicted)
        assert value == pytest.approx(1 - np.abs(pairs.observed - pairs.predicted).sum() / (pairs.observed.sum() + pairs.predicted.sum()))
        if np.abs(pairs.observed - pairs.predicted).max() > 1e-6 * (pairs.observed.sum() + pairs.predicted.sum()):
            assert value < 1


@given(pair_lists)
def test_cpc_is_at_most_what_the_totals_have_in_common(table):
    pairs = scored(table)
    totals = pairs.observed.sum(), pairs.predicted.sum()
    if sum(totals) > 0:
        assert cpc(pairs.observed, pairs.predicted) <= 2 * min(totals) / sum(totals) + 1e-12


@given(st.lists(st.tuples(rows, st.integers(0, 3)), min_size=1, max_size=20))
def test_scores_of_parts_add_up_to_the_score_of_the_whole(parts):
    """CPC by the parts' commuters, MAE and squared RMSE by their pairs, MAPE by their pairs with commuters."""
    pairs, part = scored([row for row, _ in parts]), np.array([number for _, number in parts])
    some = [pairs.select(part == number) for number in np.unique(part)]

    def combined(value, weight):
        weights = np.array([weight(piece) for piece in some], dtype=float)
        values = np.array([value(piece.observed, piece.predicted) for piece in some])
        return float((values * weights)[weights > 0].sum() / weights.sum()) if weights.sum() > 0 else math.nan

    flows = pairs.observed, pairs.predicted
    assert combined(cpc, lambda piece: piece.observed.sum() + piece.predicted.sum()) == pytest.approx(cpc(*flows), nan_ok=True)
    assert combined(mae, len) == pytest.approx(mae(*flows))
    assert combined(lambda y, x: rmse(y, x) ** 2, len) == pytest.approx(rmse(*flows) ** 2)
    assert combined(mape, lambda piece: (piece.observed > 0).sum()) == pytest.approx(mape(*flows), nan_ok=True)


@given(pair_lists)
def test_divergence_and_links_are_symmetric_and_0_only_for_equal_shares(table):
    pairs = scored(table)
    one, other = jensen_shannon(pairs.observed, pairs.predicted), jensen_shannon(pairs.predicted, pairs.observed)
    assert one == pytest.approx(other, abs=1e-12, nan_ok=True)
    whole = np.round(pairs.predicted)  # of whole numbers a link is the same seen from either side
    assert cpl(pairs.observed, whole) == pytest.approx(cpl(whole, pairs.observed), nan_ok=True)
    if not math.isnan(one):
        shares = pairs.observed / pairs.observed.sum() - pairs.predicted / pairs.predicted.sum()
        # Pinsker: the divergence is at least an eighth of the squared distance of the shares, in nats.
        assert one >= np.abs(shares).sum() ** 2 / (8 * math.log(2)) - 1e-9
