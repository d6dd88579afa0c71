import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist

from imagery2flow.__main__ import main
from imagery2flow.cities.results import CONFUSION, COSINE, FIGURES, FRECHET, CityResults
from imagery2flow.cities.scores import calibration_bins
from imagery2flow.cities.similarity import planar_map
from imagery2flow.figures.city_scores import (
    box_beside,
    city_figures,
    city_maps,
    city_trees,
    confusion_shares,
    covered,
    index_by_city,
    limits_of_tree,
    reliability,
)
from tests.cities.example import Example

from .test_breakdowns import legend_texts

NAN = float("nan")


def texts(axis):
    return [text.get_text() for text in axis.texts]


def table_of(counts, names):
    return pd.DataFrame(counts, pd.Index(names, name="true_city"), names)


def test_confusion_is_written_in_percent_of_the_row():
    figure = confusion_shares(table_of([[6, 2, 0], [999, 0, 1], [0, 0, 0]], ["a", "b", "c"]))
    axis, bar = figure.axes
    assert texts(axis) == ["75", "25", "100"]  # 0.1 % rounds to 0 and is not written
    shown = axis.images[0].get_array()
    np.testing.assert_allclose(shown[:2], [[0.75, 0.25, 0], [0.999, 0, 0.001]])
    assert shown.mask[2].all()
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b", "c (no tiles)"]
    assert axis.get_title() == "n = 1,008 tiles of 3 cities"
    assert bar.get_ylabel() == "share of the city's tiles (%)"


@pytest.mark.parametrize("number", [1, 5, 45])
def test_names_and_numbers_of_the_confusion_do_not_overlap(number):
    names = [f"San Francisco {n} (S{n:02d})" for n in range(number)]
    figure = confusion_shares(table_of(np.full((number, number), 100), names))
    figure.draw_without_rendering()
    axis = figure.axes[0]
    cell = axis.transData.transform([(1, 1), (0, 0)])[0] - axis.transData.transform((0, 0))
    for text in axis.texts:
        box = text.get_window_extent()
        assert box.width < abs(cell[0]) and box.height < abs(cell[1])
    for label in axis.get_yticklabels():
        box = label.get_window_extent()
        assert box.x0 >= 0 and box.height < 1.05 * abs(cell[1])


def test_reliability_shows_bins_their_tiles_and_the_error():
    bins = calibration_bins(np.array([0.9, 0.9, 0.3]), np.array([True, False, True]), 2)
    figure = reliability(bins)
    axis, counts = figure.axes
    assert [bar.get_height() for bar in axis.patches] == [1, 0.5]
    points, diagonal = axis.get_lines()
    assert np.transpose(points.get_data()) == pytest.approx(np.array([[0.3, 1], [0.9, 0.5]]))
    assert tuple(diagonal.get_xdata()) == tuple(diagonal.get_ydata()) == (0, 1)
    assert [bar.get_height() for bar in counts.patches] == [1, 2]
    assert axis.get_title() == f"expected calibration error {(0.7 + 2 * 0.4) / 3:.3f}\nn = 3 tiles, 2 bins"
    assert "calibrated" in legend_texts(figure)


def square(places, names):
    return pd.DataFrame(cdist(places, places), names, names)


def test_trees_join_cities_at_their_mean_distance():
    figure = city_trees({CONFUSION: square([[0.0], [0.1], [1]], ["a", "b", "c"]), FRECHET: square([[0.0], [3]], ["a", "b"])})
    first, second = figure.axes
    assert sorted(max(line.get_xdata()) for line in first.get_lines()) == pytest.approx([0.1, 0.95])
    assert {label.get_text() for label in first.get_yticklabels()} == {"a", "b", "c"}
    near = [label.get_text() for label in first.get_yticklabels()]
    assert abs(near.index("a") - near.index("b")) == 1
    left, right = second.get_xlim()
    assert left > right == 0 and left >= 3


def test_a_tree_whose_joints_lie_close_does_not_begin_at_0():
    close = np.array([[0, 0.9, 0.9, 0], [0.9, 1, 1, 0]])
    assert limits_of_tree(close) == pytest.approx((1.002, 0.85))
    assert limits_of_tree(np.zeros((2, 4)))[1] == 0


def test_maps_show_distances_and_how_much_of_them():
    places = np.random.default_rng(0).normal(size=(6, 2))
    names = ["Almaty (ALA)", *"bcdef"]
    plane = planar_map(cdist(places, places))
    figure = city_maps({FRECHET: (names, plane), COSINE: (names, plane)})
    first = figure.axes[0]
    points = np.transpose(first.get_lines()[0].get_data())
    np.testing.assert_allclose(cdist(points, points), cdist(places, places), atol=1e-9)
    assert texts(first)[:6] == ["ALA", *"bcdef"]
    assert first.get_title() == "Fréchet distance of features\n100% of the variance shown, stress 0.00"
    assert first.get_aspect() == 1


@pytest.mark.parametrize("number", [2, 45])
def test_names_stay_in_their_map_and_hide_hardly_each_other(number):
    random = np.random.default_rng(1)
    names = [f"City number {n} (C{n:02d})" if number > 2 else f"City number {n}" for n in range(number)]
    places = random.normal(size=(number, 2)) * [1, 0.3]
    figure = city_maps({FRECHET: (names, planar_map(cdist(places, places)))})
    figure.draw_without_rendering()
    (axis,) = figure.axes
    frame = axis.get_window_extent()
    boxes = [text.get_window_extent() for text in axis.texts[:number]]
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)
    letters = [box.padded(-2) for box in boxes]  # without the space above and below, in pixels
    overlaps = sum(a.overlaps(b) for i, a in enumerate(letters) for b in letters[:i])
    assert overlaps <= number // 15


def test_equal_cities_have_a_map():
    city_maps({FRECHET: (["a", "b"], planar_map(np.zeros((2, 2))))}).draw_without_rendering()


def test_a_name_beside_a_point_begins_after_the_gap():
    beside = [box_beside(np.array([10.0, 10]), np.array([5.0, 2]), np.array(side), 4) for side in [(1, 0), (0, -1), (-1, 1)]]
    np.testing.assert_allclose(beside, [[14, 8, 24, 12], [5, 2, 15, 6], [-2, 12, 8, 16]])


def test_covered_area_by_hand():
    assert covered(np.array([0, 0, 2, 2]), [np.array([1, 1, 3, 3]), np.array([5, 5, 6, 6]), np.array([0, 0, 2, 1])]) == 1 + 2


CITIES = pd.DataFrame(
    {
        "target": ["green"] * 3 + ["blue"] * 2,
        "city": ["a", "b", "c", "a", "b"],
        "observed": [2.0, 1.0, 1.0, 5.0, 6.0],
        "predicted_mean": [2.5, 1.0, 0.0, 5.0, 5.0],
        "predicted_std": [0.5, NAN, 0.1, 1.0, 1.0],
        "training_mean": 1.5,
    }
)
SCORES = pd.DataFrame(
    {
        "target": ["green"] * 4 + ["blue"] * 4,
        "over": ["tiles", "tiles", "cities", "cities"] * 2,
        "predictor": ["model", "training mean"] * 4,
        "r2": [0.5, -0.1, 0.75, -0.2, NAN, NAN, 0.1, NAN],
    }
)


def test_indexes_stand_by_city_even_where_true_values_are_equal():
    figure = index_by_city(CITIES, SCORES)
    green, blue = figure.axes
    assert [label.get_text() for label in green.get_yticklabels()] == ["b", "c", "a"]
    mean, predicted, *_, true = green.get_lines()
    assert mean.get_xdata().tolist() == [1.5] * 3 and predicted.get_xdata().tolist() == [1.0, 0.0, 2.5]
    assert true.get_xdata().tolist() == [1, 1, 2]
    assert green.get_title() == "green\nR² 0.50 of tiles, 0.75 of cities" and blue.get_title() == "blue\nR² none of tiles, 0.10 of cities"
    assert legend_texts(figure)[1:] == ["true", "predicted: mean ± sd of tiles", "training mean"]


def test_nothing_found_is_no_figure():
    assert city_figures(CityResults()) == {}


def test_the_command_writes_every_figure(tmp_path, capsys):
    example = Example(tmp_path, names=["Bern", "A$x^{$", "city", "true"])
    example.predictions["index.csv"] = example.regress()
    argv = ["cities"]
    for name, value in example.write().items():
        argv += [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
    assert main(argv) == 0
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {f"{name}.png" for name in FIGURES}
    assert (tmp_path / "out" / "run.json").is_file()
    assert "most confused pairs" in capsys.readouterr().out
    assert main([*argv, "--label_column", "place"]) == 2
    assert "cities: error: " in capsys.readouterr().err
