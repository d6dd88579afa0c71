"""The published baselines stand on the model's pairs, and a row that is told margins keeps them."""

import numpy as np
import pandas as pd
import pytest

from imagery2flow.flows.compare import compare
from imagery2flow.flows.region import load_region
from imagery2flow.flows.splits import draw_split
from imagery2flow.run.device import CPU
from imagery2flow.run.stage import Ledger

from .test_evaluation import run, settings, write_town

NAMES = ["gravity", "radiation", "deep_gravity", "gmel"]
GRAVITY = {f"gravity, {form}{told}" for form in ("power", "exponential") for told in ("", ", outflow told", ", margins told")}
ROWS = GRAVITY | {"radiation, outflow told", "deep gravity, outflow told", "gmel"}


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Predictions of every baseline for held-out units, and the pairs."""
    folder = tmp_path_factory.mktemp("compared")
    write_town(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        config = settings("town", baselines=NAMES, universe="positive")
        region = load_region(config, Ledger("test", quiet=True), flows_required=True)
    split = draw_split("unit", region, None, 0)
    pairs = region.flows.universe("positive")
    tested = pairs.select(split.of(pairs) == "test")
    return compare(config, region, region, split, tested, CPU), tested


def test_every_baseline_predicts_every_pair(compared):
    found, tested = compared
    assert set(found) == ROWS
    for values in found.values():
        assert values.shape == (len(tested),)
        assert np.isfinite(values).all()
        assert (values >= 0).all()


@pytest.mark.parametrize("row", ["gravity, power, outflow told", "gravity, exponential, margins told", "deep gravity, outflow told"])
def test_a_row_that_is_told_the_outflow_keeps_it(compared, row):
    found, tested = compared
    sums = pd.Series(found[row]).groupby(tested.origin).sum()
    np.testing.assert_allclose(sums, pd.Series(tested.count).groupby(tested.origin).sum(), rtol=1e-5)


def test_a_row_that_is_told_nothing_does_not_read_the_tested_flows(compared, tmp_path, monkeypatch):
    """The same pairs with other counts change the told rows only."""
    found, tested = compared
    write_town(tmp_path)
    monkeypatch.chdir(tmp_path)
    config = settings("town", baselines=NAMES, universe="positive")
    region = load_region(config, Ledger("test", quiet=True), flows_required=True)
    split = draw_split("unit", region, None, 0)
    louder = tested.select(np.arange(len(tested)))
    louder.count[:] = 7 * louder.count
    again = compare(config, region, region, split, louder, CPU)
    for row in ROWS:
        assert np.array_equal(found[row], again[row]) == ("told" not in row), row


def test_baselines_are_rows_of_the_evaluation(tmp_path, monkeypatch):
    write_town(tmp_path)
    trials, summary = run(tmp_path, monkeypatch, splits=["unit"], baselines=["gravity"], controls=False)
    assert set(summary.predictor) >= GRAVITY
    assert trials.groupby("predictor").num_pairs.nunique().eq(1).all()
    assert trials.num_pairs.nunique() == 1
