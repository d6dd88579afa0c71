from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from imagery2flow.figures.breakdowns import cpc_by_distance, cpc_by_group, cpc_by_intensity, cpc_by_population
from imagery2flow.figures.style import COLOURS, GREY
from imagery2flow.flows.groups import intensity_groups
from imagery2flow.flows.metrics import ScoredPairs

NAN = float("nan")
TABLE = pd.DataFrame(
    {"group": ["1", "2", "3"], "num": [4, 0, 1200], "mean": [0.8, NAN, 0.6], "std": [0.1, NAN, 0.05], "pooled": [0.7, NAN, 0.5]}
)
FOUR = {"bilinear": TABLE, "LightGBM": TABLE.assign(mean=TABLE["mean"] + 0.1), "gravity": TABLE, "constant": TABLE}


def ticks(axis):
    return [label.get_text() for label in axis.get_xticklabels()]


def points(container):
    """Place, height and half the error bar of the points of a predictor."""
    line, _, bars = container
    half = [np.ptp(segment[:, 1]) / 2 if len(segment) else NAN for segment in bars[0].get_segments()] if bars else None
    return line.get_xdata(), line.get_ydata(), half


def legend_texts(figure):
    (legend,) = figure.legends
    return [legend.get_title().get_text(), *(text.get_text() for text in legend.get_texts())]


def test_points_are_the_means_with_their_deviations_and_empty_groups_are_gaps():
    (axis,) = cpc_by_population({"bilinear": TABLE}).axes
    x, height, half = points(axis.containers[0])
    np.testing.assert_allclose(x, [0, 1, 2])
    np.testing.assert_allclose(height, [0.8, NAN, 0.6])
    np.testing.assert_allclose(half, [0.1, NAN, 0.05])
    assert ticks(axis) == ["1\nn = 4", "2\nn = 0", "3\nn = 1,200"]
    assert axis.get_ylabel() == "CPC (mean ± sd over origins)"


def test_predictors_stand_side_by_side_in_their_own_colours_and_the_constant_is_grey():
    figure = cpc_by_distance(FOUR)
    (axis,) = figure.axes
    places = np.stack([points(container)[0] for container in axis.containers])
    assert (np.diff(places, axis=0) > 0).all() and np.ptp(places, axis=0).max() < 1
    np.testing.assert_allclose(places.mean(axis=0), [0, 1, 2], atol=1e-12)
    assert [container[0].get_color() for container in axis.containers] == [*COLOURS[:3], GREY]
    np.testing.assert_allclose(points(axis.containers[1])[1], [0.9, NAN, 0.7])
    assert legend_texts(figure) == ["n = number of flows; 1,204 in all", "bilinear", "LightGBM", "gravity", "constant"]
    assert axis.get_xlabel() == "great-circle distance (km; a bin holds its upper limit)"


def test_the_pooled_form_has_no_deviation_and_says_what_it_is():
    (axis,) = cpc_by_intensity({"bilinear": TABLE}, pooled=True).axes
    _, height, half = points(axis.containers[0])
    np.testing.assert_allclose(height, [0.7, NAN, 0.5])
    assert half is None
    assert axis.get_ylabel() == "pooled CPC of the bin"
    assert axis.get_xlabel() == "observed flow (commuters; a bin holds its upper limit)"
    (axis,) = cpc_by_population({"bilinear": TABLE}, pooled=True).axes
    assert axis.get_ylabel() == "pooled CPC of the group"


def test_groups_of_origins_are_bars_from_zero():
    figure = cpc_by_group(FOUR, "land cover of the origin")
    (axis,) = figure.axes
    bars = [container for container in axis.containers if hasattr(container, "patches")]
    np.testing.assert_allclose([patch.get_height() for patch in bars[0]], [0.8, NAN, 0.6])
    np.testing.assert_allclose([patch.get_height() for patch in bars[1]], [0.9, NAN, 0.7])
    edges = sorted((patch.get_x(), patch.get_x() + patch.get_width()) for bar in bars for patch in bar)
    assert all(left[1] < right[0] for left, right in pairwise(edges))
    errors = [container for container in axis.containers if not hasattr(container, "patches")]
    np.testing.assert_allclose([np.ptp(s[:, 1]) / 2 if len(s) else NAN for s in errors[1][2][0].get_segments()], [0.1, NAN, 0.05])
    assert axis.get_ylim()[0] == 0 and axis.get_ylim()[1] >= 1
    assert axis.get_xlabel() == "land cover of the origin"


def test_one_group_of_one_origin_has_no_error_bar():
    one = pd.DataFrame({"group": ["industrial or vacant"], "num": [1], "mean": [0.5], "std": [NAN], "pooled": [0.5]})
    (axis,) = cpc_by_group({"bilinear": one}).axes
    assert ticks(axis) == ["industrial or\nvacant\nn = 1"]
    assert [patch.get_height() for patch in axis.containers[0]] == [0.5]


def test_a_city_without_observed_flows_has_an_empty_figure_that_says_so():
    nothing = intensity_groups(ScoredPairs(*(np.empty(0) for _ in range(3)), np.empty(0, bool)))
    for figure in (cpc_by_intensity({"bilinear": nothing, "LightGBM": nothing}), cpc_by_group({"bilinear": nothing})):
        (axis,) = figure.axes
        assert [text.get_text() for text in axis.texts] == ["no pair of known flow"]
        assert axis.get_ylim() == (0, 1)
        assert ticks(axis)[-1] == "above 100\nn = 0"


def test_numbers_that_differ_between_predictors_are_a_span():
    figure = cpc_by_population({"bilinear": TABLE, "LightGBM": TABLE.assign(num=[3, 0, 1200])})
    assert ticks(figure.axes[0])[0] == "1\nn = 3-4"
    assert legend_texts(figure)[0] == "n = number of origins; 1,203-1,204 in all"


def test_no_predictor_and_other_groups_are_refused():
    with pytest.raises(ValueError, match="no predictor is given"):
        cpc_by_population({})
    with pytest.raises(ValueError, match=r"groups of LightGBM \(1, 2\) are not those of bilinear \(1, 2, 3\)"):
        cpc_by_population({"bilinear": TABLE, "LightGBM": TABLE[:2]})
