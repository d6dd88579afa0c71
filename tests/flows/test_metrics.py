import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagery2flow.flows.metrics import cpc, format_scores, mae, rmse, score, score_table, score_universes

flows = st.lists(st.tuples(st.integers(0, 500), st.floats(0, 500)), min_size=1, max_size=20)


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


def test_universes_are_flows_above_10_and_above_0():
    observed, predicted = np.array([0.0, 1.0, 10.0, 11.0]), np.array([9.0, 1.0, 10.0, 22.0])
    scores = score_universes(observed, predicted)
    assert set(scores) == {"gt10", "positive"}
    assert scores["gt10"] == {"cpc": pytest.approx(22 / 33), "rmse": 11.0, "mae": 11.0, "num_pairs": 1}
    assert scores["positive"]["num_pairs"] == 3
    assert scores["positive"]["mae"] == pytest.approx(11 / 3)
    assert set(score_universes(np.array([3.0]), np.array([3.0]))) == {"positive"}  # no flow above 10: no such row


def test_the_printed_table_has_a_row_per_model_and_a_column_per_score():
    scores = {name: score_universes(np.array([4.0, 20.0]), np.array([value, 20.0])) for name, value in (("exact", 4.0), ("far", 8.0))}
    table = score_table(scores)
    assert table.index.tolist() == ["exact", "far"]
    assert table.loc["exact", "positive cpc"] == 1
    assert table.loc["far", "positive mae"] == 2
    text = format_scores(scores, "town")
    assert text.startswith("town (1 pairs gt10, 2 pairs positive)\n")
    assert "0.923" in text  # far: 2 x (4 + 20) / (24 + 28)
