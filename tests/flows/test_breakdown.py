import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagery2flow.flows.breakdown import DISTANCE_EDGES_KM, VOLUME_EDGES, by_distance, by_origin, by_volume, calibration
from imagery2flow.flows.metrics import ScoredPairs, cpc, mae

SCORES = ["num_pairs", "observed", "predicted", "cpc", "mae"]
# (origin, observed, predicted, distance in metres); few values of each, so that origins, edges and predictions coincide; 0 m is one unit.
rows = st.tuples(
    st.sampled_from(["06001", "06002", "36061"]),
    st.sampled_from([0, 1, 2, 5, 19, 100, 400]),
    st.sampled_from([0.0, 0.4, 1.0, 3.5, 120.0]),
    st.sampled_from([0.0, 999.0, 1_000.0, 4_999.0, 50_000.0, 90_000.0]),
)
tables = st.lists(rows, min_size=1, max_size=40)


def scored(table):
    """Ids of the origins and the pairs of a list of rows."""
    origin, observed, predicted, distance_m = zip(*table, strict=True)
    distance_m = np.array(distance_m)
    return np.array(origin, dtype=object), ScoredPairs(np.array(observed, float), np.array(predicted), distance_m, distance_m == 0)


def breakdowns(origin, pairs):
    """All three."""
    return {"origin": by_origin(origin, pairs), "distance": by_distance(pairs), "volume": by_volume(pairs)}


def naive_row(members):
    """num_pairs, observed, predicted, cpc and mae of some (observed, predicted), pair by pair."""
    number, total, predicted, common, absolute = 0, 0.0, 0.0, 0.0, 0.0
    for y, x in members:
        number, total, predicted = number + 1, total + y, predicted + x
        common, absolute = common + min(y, x), absolute + abs(y - x)
    return [
        number,
        total,
        predicted,
        2 * common / (total + predicted) if total + predicted else math.nan,
        absolute / number if number else math.nan,
    ]


def naive_bins(edges):
    """Half-open intervals one after the other."""
    return list(pairwise(edges))


def assert_rows(found, groups):
    """The rows of a table are the naive rows of the groups."""
    assert len(found) == len(groups)
    for position, members in enumerate(groups):
        assert found[SCORES].iloc[position].tolist() == pytest.approx(naive_row(members), nan_ok=True)


@given(tables)
def test_breakdowns_equal_the_loop_over_pairs(table):
    origin, pairs = scored(table)
    found = breakdowns(origin, pairs)
    assert found["origin"].geocode.tolist() == sorted({row[0] for row in table})
    assert_rows(found["origin"], [[(y, x) for home, y, x, _ in table if home == geocode] for geocode in found["origin"].geocode])
    by_km = [[(y, x) for _, y, x, d in table if d > 0 and low <= d / 1_000 < high] for low, high in naive_bins(DISTANCE_EDGES_KM)]
    assert_rows(found["distance"], [[(y, x) for _, y, x, d in table if d == 0], *by_km])
    assert_rows(found["volume"], [[(y, x) for _, y, x, _ in table if low <= y < high] for low, high in naive_bins(VOLUME_EDGES)])


@given(tables)
def test_rows_add_up_to_all_pairs(table):
    origin, pairs = scored(table)
    for name, found in breakdowns(origin, pairs).items():
        assert found.num_pairs.sum() == len(pairs), name
        assert found.observed.sum() == pytest.approx(pairs.observed.sum()), name
        assert found.predicted.sum() == pytest.approx(pairs.predicted.sum()), name
        assert (found.mae * found.num_pairs).sum() == pytest.approx(mae(pairs.observed, pairs.predicted) * len(pairs)), name
        common = (found.cpc * (found.observed + found.predicted)).sum()
        if pairs.observed.any() or pairs.predicted.any():
            assert common == pytest.approx(cpc(pairs.observed, pairs.predicted) * (pairs.observed + pairs.predicted).sum()), name


@given(tables, st.randoms(use_true_random=False))
def test_the_order_of_pairs_changes_nothing(table, random):
    shuffled = random.sample(table, len(table))
    before, after = breakdowns(*scored(table)), breakdowns(*scored(shuffled))
    for name in before:
        pd.testing.assert_frame_equal(before[name], after[name])
    pd.testing.assert_frame_equal(calibration(scored(table)[1]), calibration(scored(shuffled)[1]))


def test_origins_by_hand():
    origin, pairs = scored([("36061", 10, 20.0, 500.0), ("06001", 4, 1.0, 0.0), ("36061", 2, 0.0, 800.0)])
    found = by_origin(origin, pairs)
    assert found.columns.tolist() == ["geocode", *SCORES]
    assert found.geocode.tolist() == ["06001", "36061"]  # the leading zero stays
    assert found.num_pairs.tolist() == [1, 2]
    assert found.observed.tolist() == [4, 12]
    assert found.predicted.tolist() == [1, 20]
    assert found.cpc.tolist() == pytest.approx([2 / 5, 2 * 10 / 32])
    assert found.mae.tolist() == [3, 6]


def test_distances_by_hand_keep_empty_bins_and_the_flow_within_a_unit_apart():
    # A unit's own flow is in its own row even where a distance is given to it.
    pairs = ScoredPairs(
        np.array([9.0, 4.0, 6.0, 1.0]),
        np.array([9.0, 2.0, 6.0, 3.0]),
        np.array([700.0, 0.0, 999.9, 1_000.0]),
        np.array([True, False, False, False]),
    )
    found = by_distance(pairs)
    assert found.columns.tolist() == ["distance_km", "from_km", "to_km", *SCORES]
    assert found.distance_km.tolist() == ["within a unit", "0-1", "1-2", "2-5", "5-10", "10-20", "20-50", "50 or more"]
    assert found.from_km.tolist() == pytest.approx([math.nan, 0, 1, 2, 5, 10, 20, 50], nan_ok=True)
    assert found.to_km.tolist() == pytest.approx([math.nan, 1, 2, 5, 10, 20, 50, math.inf], nan_ok=True)
    assert found.num_pairs.tolist() == [1, 2, 1, 0, 0, 0, 0, 0]
    assert found.observed.tolist() == [9, 10, 1, 0, 0, 0, 0, 0]
    assert found.cpc.tolist()[:3] == pytest.approx([1, 2 * 8 / 18, 2 * 1 / 4])
    assert found.loc[3:, ["cpc", "mae"]].isna().all(axis=None)


def test_volumes_by_hand_have_the_zeros_in_the_first_bin():
    observed = np.array([0.0, 0.0, 1.0, 2.0, 4.0, 100.0])
    found = by_volume(ScoredPairs(observed, np.full(6, 2.0), np.ones(6), np.zeros(6, dtype=bool)))
    assert found.columns.tolist() == ["volume", "from_flow", "to_flow", *SCORES]
    assert found.volume.tolist() == ["0-1", "1-2", "2-5", "5-10", "10-20", "20-50", "50-100", "100 or more"]
    assert found.num_pairs.tolist() == [2, 1, 2, 0, 0, 0, 0, 1]
    assert found.cpc.tolist()[:3] == pytest.approx([0, 2 * 1 / 3, 2 * 4 / 10])
    assert found.mae.tolist()[:3] == [2, 1, 1]
    assert found.mae.iloc[-1] == 98


def test_own_edges_are_taken_and_must_hold_every_pair():
    pairs = ScoredPairs(np.array([1.0, 30.0]), np.ones(2), np.array([100.0, 2_500.0]), np.zeros(2, dtype=bool))
    assert by_volume(pairs, edges=(0, 25, 50)).num_pairs.tolist() == [1, 1]
    assert by_distance(pairs, edges_km=(0, 0.5, 3)).distance_km.tolist() == ["within a unit", "0-0.5", "0.5-3"]
    with pytest.raises(ValueError, match=r"1 observed flows lie outside of the edges \(0, 25\); begin with 0 and end with inf"):
        by_volume(pairs, edges=(0, 25))
    with pytest.raises(ValueError, match=r"1 distances in km lie outside"):
        by_distance(pairs, edges_km=(1, math.inf))
    for edges in ((0, 5, 5, 9), (5, 0), (0,), ()):
        with pytest.raises(ValueError, match=r"do not rise; give two or more in rising order"):
            by_volume(pairs, edges)


def naive_calibration(observed, predicted, num_bins):
    """Bins of the ranked pairs, by loops; of equal predictions each counts with their mean observation."""
    ranked = sorted(range(len(predicted)), key=lambda position: predicted[position])
    bins = [[] for _ in range(num_bins)]
    for rank, position in enumerate(ranked):
        ties = [y for y, x in zip(observed, predicted, strict=True) if x == predicted[position]]
        bins[rank * num_bins // len(ranked)].append((predicted[position], sum(ties) / len(ties)))
    return bins


@given(tables, st.integers(1, 12))
def test_calibration_equals_the_loop_over_ranks(table, num_bins):
    _, pairs = scored(table)
    found = calibration(pairs, num_bins)
    bins = naive_calibration(pairs.observed.tolist(), pairs.predicted.tolist(), num_bins)
    assert found.bin.tolist() == list(range(1, num_bins + 1))
    for row, members in zip(found.itertuples(), bins, strict=True):
        assert row.num_pairs == len(members)
        if members:
            predicted, observed = (sum(values) / len(members) for values in zip(*members, strict=True))
            assert (row.mean_predicted, row.mean_observed) == pytest.approx((predicted, observed))
            assert row.ratio == pytest.approx(observed / predicted if predicted else math.nan, nan_ok=True)
        else:
            assert math.isnan(row.mean_predicted)
            assert math.isnan(row.mean_observed)
            assert math.isnan(row.ratio)


@given(tables, st.integers(1, 12))
def test_calibration_bins_are_equal_rise_and_add_up(table, num_bins):
    _, pairs = scored(table)
    found = calibration(pairs, num_bins)
    assert found.num_pairs.sum() == len(pairs)
    assert found.num_pairs.max() - found.num_pairs.min() <= 1
    assert (found.mean_predicted.dropna().diff().dropna() >= -1e-9).all()
    assert (found.num_pairs * found.mean_predicted).sum() == pytest.approx(pairs.predicted.sum())
    assert (found.num_pairs * found.mean_observed).sum() == pytest.approx(pairs.observed.sum())


@given(tables, st.floats(0.01, 100))
def test_calibration_of_a_scaled_prediction_is_the_ratio_by_the_scale(table, scale):
    _, pairs = scored(table)
    larger = ScoredPairs(pairs.observed, scale * pairs.predicted, pairs.distance_m, pairs.same_unit)
    assert calibration(larger).ratio.tolist() == pytest.approx((calibration(pairs).ratio / scale).tolist(), nan_ok=True)


def test_calibration_by_hand():
    observed, predicted = np.array([8.0, 1.0, 3.0, 12.0]), np.array([5.0, 1.0, 2.0, 20.0])
    found = calibration(ScoredPairs(observed, predicted, np.ones(4), np.zeros(4, dtype=bool)), num_bins=2)
    assert found.columns.tolist() == ["bin", "num_pairs", "mean_predicted", "mean_observed", "ratio"]
    assert found.to_numpy().tolist() == [[1, 2, 1.5, 2.0, pytest.approx(4 / 3)], [2, 2, 12.5, 10.0, 0.8]]


def test_calibration_of_a_constant_is_the_same_in_every_bin():
    # Sorted by flow, ties in the order of the table would show a rise that the constant does not predict.
    observed = np.arange(20.0)
    found = calibration(ScoredPairs(observed, np.full(20, 5.0), np.ones(20), np.zeros(20, dtype=bool)))
    assert found.num_pairs.tolist() == [2] * 10
    assert found.ratio.tolist() == pytest.approx([9.5 / 5] * 10)


def test_calibration_without_a_bin_is_refused():
    with pytest.raises(ValueError, match="num_bins is 0; give 1 or more"):
        calibration(scored([("06001", 1, 1.0, 0.0)])[1], num_bins=0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "table",
    [[("a", 0, 0.0, 0.0), ("b", 0, 0.0, 9.0)], [("a", 3, 2.0, 9.0)], [("a", 3, 2.0, 0.0)]],
    ids=["all zero", "one pair", "one unit"],
)
def test_small_cases_have_all_rows_and_warn_of_nothing(table):
    origin, pairs = scored(table)
    sizes = {name: len(found) for name, found in breakdowns(origin, pairs).items()}
    assert sizes == {"origin": len(table), "distance": 8, "volume": 8}
    found = calibration(pairs)
    assert len(found) == 10
    assert found.ratio.notna().sum() == sum(row[2] > 0 for row in table)


@pytest.mark.filterwarnings("error")
def test_no_pair_leaves_the_rows_and_no_origin():
    pairs = ScoredPairs(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0, dtype=bool))
    assert by_origin(np.array([], dtype=object), pairs).empty
    for found in (by_distance(pairs), by_volume(pairs), calibration(pairs)):
        assert (found.num_pairs == 0).all()
        assert found.iloc[:, -1].isna().all()
