import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr

from imagery2flow.figures.form import FITTED, decay_against_form, distance_decay, label_corners, overlap, published_form
from imagery2flow.flows.distance_decay import fit_distance_decay, trip_length_shares, trip_lengths

DISTANCE_M = np.array([1000.0, 2000, 3000, 5000, 9000])
OBSERVED = np.array([40.0, 30, 0, 20, 10])
PREDICTED = np.array([30.0, 35, 5, 20, 10])


@pytest.fixture
def town():
    shares = trip_length_shares(DISTANCE_M, {"observed": OBSERVED, "10 m": PREDICTED})
    return shares, fit_distance_decay(trip_lengths(DISTANCE_M, OBSERVED))


def line(axis, label):
    (found,) = [drawn for drawn in axis.get_lines() if drawn.get_label() == label]
    return np.asarray(found.get_xdata(), float), np.asarray(found.get_ydata(), float)


def test_shares_are_drawn_per_km_and_where_nobody_travels_nothing_is(town):
    axis = distance_decay({"town": town[0]}, {"town": town[1]}).axes[0]
    km, observed = line(axis, "observed")
    assert km.tolist() == list(range(1, 10))
    assert observed[[0, 1, 4, 8]] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert np.isnan(observed[[2, 3, 5, 6, 7]]).all()
    assert line(axis, "10 m")[1][[0, 1, 2, 4, 8]] == pytest.approx([0.3, 0.35, 0.05, 0.2, 0.1])
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")


def test_the_exponential_is_the_fitted_density_and_its_numbers_stand_beside_it(town):
    axis = distance_decay({"town": town[0]}, {"town": town[1]}).axes[0]
    mean_km = (40 + 60 + 100 + 90) / 100
    rate = 1 / (mean_km - 1)
    km, density = line(axis, FITTED)
    assert (km[0], km[-1]) == pytest.approx((1, 9))
    assert density == pytest.approx(rate * np.exp(-rate * (km - 1)))
    weight = town[1].laws["exponential"].akaike_weight
    assert axis.texts[0].get_text() == f"$\\lambda$ = {rate:.4f} per km\nD = {town[1].ks_d:.2f}\nAkaike weight {weight:.2f}\nn = 100"


def test_regions_share_axes_colours_and_a_legend(town):
    shares, decay = town
    other = shares.rename(columns={"10 m": "30 m"})
    figure = distance_decay(dict.fromkeys("abcd", shares) | {"e": other}, dict.fromkeys("abcde", decay))
    panels = [axis for axis in figure.axes if axis.get_title()]
    assert [axis.get_title() for axis in panels] == list("abcde")
    assert len({(axis.get_xlim(), axis.get_ylim()) for axis in panels}) == 1
    colours = {drawn.get_label(): drawn.get_color() for axis in panels for drawn in axis.get_lines()}
    assert colours["10 m"] != colours["30 m"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["10 m", "observed", FITTED, "30 m"]
    assert not figure.axes[-1].axison  # three panels of the second row are empty


def test_a_region_where_nobody_travels_says_so_beside_others(town):
    nobody = trip_length_shares(DISTANCE_M * 0, {"observed": OBSERVED})
    decay = fit_distance_decay(trip_lengths(DISTANCE_M * 0, OBSERVED))
    figure = distance_decay({"town": town[0], "home": nobody}, {"town": town[1], "home": decay})
    assert figure.axes[1].texts[0].get_text() == "no fit: 0 commuters\ntravel 1 km or more"
    figure.draw_without_rendering()


def test_regions_without_a_fit_are_refused(town):
    with pytest.raises(ValueError, match="of the shares \\(town\\) and of the fits \\(city\\) must be the same"):
        distance_decay({"town": town[0]}, {"city": town[1]})
    with pytest.raises(ValueError, match="and some"):
        distance_decay({}, {})


def test_the_published_table_gives_the_published_correlations():
    table = published_form()
    assert table.index.tolist() == [f"M{number}" for number in range(1, 11)]
    titles = [axis.get_title() for axis in decay_against_form(table).axes]
    # Published: .6725 and .033, .7385 and .0147, .6977 and .0249
    assert titles == [f"Pearson r = {r}, p = {p}\nn = 10" for r, p in (("0.67", "0.033"), ("0.74", "0.015"), ("0.70", "0.025"))]
    assert pearsonr(table.population_density_per_km2, table.lambda_per_km).statistic == pytest.approx(0.7385, abs=5e-4)


def test_points_names_and_the_least_squares_line_are_drawn():
    table = published_form().iloc[:4]
    axis = decay_against_form(table).axes[1]
    points, trend = axis.get_lines()
    assert points.get_xdata().tolist() == table.population_density_per_km2.tolist()
    assert points.get_ydata().tolist() == table.lambda_per_km.tolist()
    slope, intercept = np.polyfit(table.population_density_per_km2, table.lambda_per_km, 1)
    ends = np.array([table.population_density_per_km2.min(), table.population_density_per_km2.max()])
    assert trend.get_xdata().tolist() == ends.tolist()
    assert trend.get_ydata() == pytest.approx(intercept + slope * ends)
    assert [text.get_text() for text in axis.texts] == ["M1", "M2", "M3", "M4"]
    assert [text.xy for text in axis.texts] == list(zip(points.get_xdata(), points.get_ydata(), strict=True))


@pytest.mark.parametrize(
    ("values", "title"),
    [
        ([10.0, 20.0, np.nan], "no line: fewer than 3 regions\nn = 2; without c"),
        ([np.nan] * 3, "no line: fewer than 3 regions\nn = 0; without a, b, c"),
        ([5.0, 5.0, 5.0], "no line: all regions have one value\nn = 3"),
    ],
)
def test_where_there_is_no_line_the_title_says_why(values, title):
    columns = ("lambda_per_km", "population_density_per_km2", "job_rank_size_slope")
    table = pd.DataFrame({name: [0.1, 0.2, 0.3] for name in columns}, index=list("abc")).assign(bcsi=values)
    figure = decay_against_form(table)
    figure.draw_without_rendering()
    assert figure.axes[0].get_title() == title
    assert len(figure.axes[0].get_lines()) == 1
    assert figure.axes[1].get_title().startswith("Pearson r = 1.00, p = 0.000")


def test_names_do_not_lie_on_each_other():
    table = published_form()
    figure = decay_against_form(table)
    figure.draw_without_rendering()
    for axis in figure.axes:
        boxes = [text.get_window_extent() for text in axis.texts]
        assert not [(i, j) for i in range(10) for j in range(i) if boxes[i].overlaps(boxes[j])]


def test_boxes_beside_a_point_do_not_cover_it_and_overlap_is_an_area():
    size = np.array([20.0, 8.0])
    for corner in label_corners(np.array([50.0, 50.0]), size):
        assert overlap(np.concatenate([corner, corner + size]), np.array([47.0, 47, 53, 53])) == 0
    assert overlap(np.array([0.0, 0, 4, 3]), np.array([2.0, 1, 9, 9])) == 4
    assert overlap(np.array([0.0, 0, 1, 1]), np.array([1.0, 1, 2, 2])) == 0
