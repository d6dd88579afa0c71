import numpy as np
import pandas as pd
import pytest

from imagery2flow.figures.scores import calibration, controls_dots, job_rank_size
from imagery2flow.figures.style import COLOURS

from .test_breakdowns import legend_texts

NAN = float("nan")


def jobs(*counts):
    return pd.DataFrame({"w_geocode": [f"{n}" for n in range(len(counts))], "count": counts})


def test_jobs_fall_with_their_rank_one_line_per_region():
    figure = job_rank_size({"M1": jobs(10, 1000, 100), "M2": jobs(50, 50, np.nan), "M3": jobs(7)})
    (axis,) = figure.axes
    first, second, third = axis.get_lines()
    assert (first.get_xdata().tolist(), first.get_ydata().tolist()) == ([1, 2, 3], [1000, 100, 10])
    assert (second.get_xdata().tolist(), second.get_ydata().tolist()) == ([1.5, 1.5], [50, 50])
    assert (third.get_xdata().tolist(), third.get_marker()) == ([1], "^")  # a line of one point is none
    slope = np.polyfit(np.log10([1, 2, 3]), [3, 2, 1], 1)[0]
    assert legend_texts(figure)[1:] == [f"M1: slope {slope:.2f}, n = 3 units", "M2: no slope, n = 2 units", "M3: no slope, n = 1 units"]
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    assert axis.get_ylabel() == "employment (commuters who work there)"


def test_ten_regions_are_ten_looks():
    (axis,) = job_rank_size({f"M{n}": jobs(9, 5, 1) for n in range(10)}).axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axis.get_lines()}) == 10


BINS = pd.DataFrame({"bin": [1, 2, 3], "num_pairs": [5, 5, 4], "mean_predicted": [1.0, 4.0, 10.0], "mean_observed": [2.0, 4.0, 8.0]})


def test_bins_of_the_prediction_lie_beside_the_diagonal():
    figure = calibration(
        {"bilinear": BINS, "LightGBM": BINS.assign(mean_observed=[0.0, 3.0, 9.0]), "gravity": BINS.assign(num_pairs=0)[:0]}
    )
    (axis,) = figure.axes
    first, second, third, diagonal = axis.get_lines()
    assert np.transpose(first.get_data()).tolist() == [[1, 2], [4, 4], [10, 8]]
    assert np.transpose(second.get_data()).tolist() == [[4, 3], [10, 9]]  # 0 has no place on a logarithmic axis
    assert len(third.get_xdata()) == 0
    assert tuple(diagonal.get_xdata()) == tuple(diagonal.get_ydata()) == axis.get_xlim() == axis.get_ylim()
    assert legend_texts(figure)[1:] == [
        "bilinear (n = 14 pairs)",
        "LightGBM (n = 14 pairs; 1 of 3 bins at 0)",
        "gravity (n = 0 pairs)",
        "calibrated",
    ]
    assert axis.get_xlabel() == "mean predicted flow of the bin (commuters)"


def test_a_calibration_without_pairs_is_an_empty_figure():
    nothing = BINS.assign(num_pairs=0, mean_predicted=NAN, mean_observed=NAN)
    (axis,) = calibration({"bilinear": nothing}).axes
    assert len(axis.get_lines()[0].get_xdata()) == 0
    assert axis.get_xlim() == (1, 10)


def trials(universe, **cpcs):
    """One row per predictor and seed."""
    rows = [(universe, name, seed, value, 100 + seed) for name, values in cpcs.items() for seed, value in enumerate(values)]
    return pd.DataFrame(rows, columns=["universe", "predictor", "seed", "cpc", "num_pairs"])


def bars(axis):
    """Place, mean, and ends of the bar of every predictor."""
    return [
        (float(line.get_ydata()[0]), float(line.get_xdata()[0]), bars[0].get_segments()[0][:, 0].tolist() if bars else None)
        for line, _, bars in axis.containers
    ]


def test_means_over_seeds_with_deviations_beside_the_constant():
    table = pd.concat(
        [
            trials("full", bilinear=[0.4, 0.2], constant=[0.1, 0.1]),
            trials("gt10", bilinear=[0.7, 0.9], gravity=[0.6, 0.6], constant=[0.5, 0.7]),
        ]
    )
    figure = controls_dots(table)
    left, right = figure.axes
    assert [axis.get_title() for axis in (left, right)] == [
        "pairs above 10 commuters\nn = 100-101 pairs\n2 seeds",
        "all pairs, zeros too\nn = 100-101 pairs\n2 seeds",
    ]
    (place, mean, ends), (other_place, other_mean, other_ends) = bars(left)
    spread = np.std([0.7, 0.9], ddof=1)
    assert (place, mean, ends) == (0, pytest.approx(0.8), pytest.approx([0.8 - spread, 0.8 + spread]))
    assert (other_place, other_mean, other_ends) == (1, pytest.approx(0.6), None)
    assert len(bars(right)) == 1  # gravity has no score there: its row is empty
    assert [label.get_text() for label in left.get_yticklabels()] == ["bilinear", "gravity"]
    assert left.get_ylim()[0] > left.get_ylim()[1]  # the first on top
    assert left.get_lines()[-1].get_xdata() == pytest.approx([0.6, 0.6])  # the constant
    assert [line.get_xdata().tolist() for line in left.get_lines() if line.get_marker() == "."] == [[0.7, 0.9], [0.6, 0.6]]
    assert legend_texts(figure)[1:] == ["mean ± sd over seeds", "one seed", "best constant"]


def test_one_seed_is_one_dot_without_a_bar_and_no_constant_is_no_line():
    table = trials("gt10", bilinear=[0.7]).drop(columns="num_pairs").rename(columns={"cpc": "rmse"})
    figure = controls_dots(table, "rmse")
    (axis,) = figure.axes
    assert bars(axis) == [(0, 0.7, None)]
    assert axis.get_title() == "pairs above 10 commuters"
    assert axis.get_xlabel() == "RMSE (commuters)"
    assert legend_texts(figure)[1:] == ["score"]
    assert axis.containers[0][0].get_color() == COLOURS[0]


def test_rows_of_two_splits_and_no_rows_are_refused():
    table = trials("gt10", bilinear=[0.7, 0.8]).assign(split=["unit", "city"])
    for wrong in (table, table[:0]):
        with pytest.raises(ValueError, match="choose the rows of one split"):
            controls_dots(wrong)
