import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagery2flow.flows.rank_size import rank_size, rank_size_slope


def flows(*rows):
    return pd.DataFrame(rows, columns=["h_geocode", "w_geocode", "count"])


def test_jobs_are_the_commuters_who_arrive_and_equal_jobs_share_their_mean_rank():
    table, slope = rank_size(flows(("1", "04", 30), ("2", "04", 70), ("1", "02", 20), ("1", "03", 20), ("2", "05", 5), ("2", "06", np.nan)))
    assert table.columns.tolist() == ["geocode", "jobs", "rank"]
    # 02 and 03 hold ranks 2 and 3; nobody is known to work in 06
    assert table.to_numpy().tolist() == [["04", 100, 1], ["02", 20, 2.5], ["03", 20, 2.5], ["05", 5, 4]]
    assert slope == pytest.approx(np.polyfit(np.log10([1, 2.5, 2.5, 4]), np.log10([100, 20, 20, 5]), 1)[0])


def test_a_power_law_has_its_own_exponent():
    assert rank_size_slope(1e6 * np.arange(1, 200) ** -1.65) == pytest.approx(-1.65)


@given(st.lists(st.integers(0, 500), min_size=1, max_size=50))
def test_the_slope_is_that_of_polyfit_in_any_order_and_unit(jobs):
    jobs = np.array(jobs, float)
    slope = rank_size_slope(jobs)
    ranks = pd.Series(jobs[jobs > 0]).rank(ascending=False)
    if ranks.nunique() < 2:
        assert np.isnan(slope)
        return
    assert slope == pytest.approx(np.polyfit(np.log10(ranks), np.log10(jobs[jobs > 0]), 1)[0])
    assert slope == pytest.approx(rank_size_slope(3 * jobs[::-1]))
    assert slope < 0


def test_no_jobs_and_one_unit_have_no_slope():
    assert np.isnan(rank_size_slope(np.array([]))) and np.isnan(rank_size_slope(np.array([0.0, 7.0])))
    table, slope = rank_size(flows(("1", "2", np.nan)))
    assert table.empty and np.isnan(slope)
