from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagery2flow.flows.outflow import RegionPredictor, largest_destinations
from imagery2flow.flows.table import FlowTable
from imagery2flow.run.stage import Ledger

GEOCODES = tuple("abcd")
# Predicted flows of two decoders [num_units, num_units]; nobody leaves d by the second.
FLOWS = {"bilinear": np.arange(1.0, 17).reshape(4, 4), "lightgbm": np.arange(16.0, 0, -1).reshape(4, 4) * [[1], [2], [3], [0]]}


class FakeRecord:
    """A model whose predictions are a table."""

    def predict(self, embedded, pairs, decoders):
        return {name: FLOWS[name][pairs.origin, pairs.destination] for name in decoders}


def blocks(size):
    """Every pair of four units, in blocks of so many origins."""
    for start in range(0, 4, size):
        origins = np.arange(start, min(start + size, 4))
        yield FlowTable(GEOCODES, np.repeat(origins, 4), np.tile(np.arange(4), len(origins)), np.full(4 * len(origins), np.nan))


def scaled(totals, kind, size=4):
    """Predictions held to totals by decoder [num_units, num_units], and the ledger."""
    ledger = Ledger("test", quiet=True)
    embedded = SimpleNamespace(seen=SimpleNamespace(region=SimpleNamespace(graph=SimpleNamespace(geocodes=GEOCODES))))
    predictor = RegionPredictor(FakeRecord(), embedded).with_outflows(np.array(totals, dtype=float), kind, blocks(size), ledger)
    return {name: values.reshape(4, 4) for name, values in predictor.predict(next(blocks(4))).items()}, ledger


def test_outflows_are_reproduced_and_shares_of_destinations_kept():
    found, ledger = scaled([10, 20, 0, 40], "outflow")
    np.testing.assert_allclose(found["bilinear"].sum(axis=1), [10, 20, 0, 40])
    np.testing.assert_allclose(found["lightgbm"].sum(axis=1), [10, 20, 0, 0])  # nothing to scale up for d
    np.testing.assert_allclose(found["bilinear"][0], 10 * np.array([1, 2, 3, 4]) / 10)
    assert ledger.left_out == {"units with a known total whose lightgbm predictions are all 0, which no factor raises": ["d"]}


def test_units_without_a_total_keep_their_predictions_and_are_named():
    found, ledger = scaled([10, np.nan, 5, np.nan], "outflow")
    np.testing.assert_array_equal(found["bilinear"][[1, 3]], FLOWS["bilinear"][[1, 3]])
    assert list(ledger.left_out.values()) == [["b", "d"]]


@pytest.mark.parametrize("unit", [1.0, 1e-3, 1e6])
def test_shares_keep_the_sum_and_need_no_unit(unit):
    shares = np.array([1.0, 2.0, 3.0, 4.0])
    found, _ = scaled(shares * unit, "share")
    for name in FLOWS:
        assert found[name].sum() == pytest.approx(FLOWS[name].sum())
    np.testing.assert_allclose(found["bilinear"].sum(axis=1), FLOWS["bilinear"].sum() * shares / 10)


def test_shares_with_an_unknown_one_keep_the_sum_of_the_known():
    found, _ = scaled([1, np.nan, 3, 4], "share")
    assert found["bilinear"].sum() == pytest.approx(FLOWS["bilinear"].sum())
    np.testing.assert_array_equal(found["bilinear"][1], FLOWS["bilinear"][1])


@pytest.mark.parametrize("kind", ["outflow", "share"])
def test_blocks_of_origins_change_nothing(kind):
    whole, parts = (scaled([7, 8, 9, np.nan], kind, size)[0] for size in (4, 1))
    for name in FLOWS:
        np.testing.assert_allclose(parts[name], whole[name])


def test_without_totals_predictions_are_the_models():
    predictor = RegionPredictor(FakeRecord(), SimpleNamespace())
    for name, values in predictor.predict(next(blocks(4))).items():
        np.testing.assert_array_equal(values, FLOWS[name].reshape(-1))


def naive_largest(origin, predicted, top_k):
    """Origin by origin: a pair is kept if fewer than k others are larger, or equal and before it."""
    kept = []
    for i, (o, value) in enumerate(zip(origin, predicted, strict=True)):
        rivals = sum(other > value or (other == value and j < i) for j, other in enumerate(predicted) if origin[j] == o)
        kept.append(rivals < top_k)
    return kept


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3) | st.floats(0, 100)), max_size=30), st.integers(1, 6))
def test_the_largest_destinations_are_those_of_the_loop_with_ties_by_order(rows, top_k):
    rows = sorted(rows, key=lambda row: row[0])
    origin, predicted = np.array([o for o, _ in rows], dtype=np.int64), np.array([value for _, value in rows], dtype=float)
    assert largest_destinations(origin, predicted, top_k).tolist() == naive_largest(origin, predicted, top_k)


def test_the_largest_destinations_by_hand():
    origin = np.array([2, 2, 2, 2, 5, 5, 7])
    predicted = np.array([3.0, 9.0, 3.0, 1.0, 0.0, 0.0, 4.0])
    assert largest_destinations(origin, predicted, 2).tolist() == [True, True, False, False, True, True, True]
    assert largest_destinations(origin, predicted, 1).tolist() == [False, True, False, False, True, False, True]
