import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from imagery2flow.figures.regions import land_cover_shares, readable_on, study_areas, transfer_matrix, two_digits
from imagery2flow.figures.style import COLOURS, LIGHT_GREY


def squares(count, side_m, crs, left=500_000.0):
    return gpd.GeoSeries([shapely.box(left + side_m * n, 5e6, left + side_m * (n + 1), 5e6 + side_m) for n in range(count)], crs=crs)


REGIONS = {"near": squares(3, 10_000, "EPSG:32618"), "far": squares(2, 4_000, "EPSG:32755", 400_000.0)}


def test_regions_anywhere_are_drawn_to_one_scale_with_their_size_and_place():
    figure = study_areas(REGIONS)
    near, far = figure.axes
    # A tenth of a degree of latitude is 11 km; a quarter of the meridian is 10,000 km. The zones have their middles at 75 W and 147 E.
    assert near.get_title() == "near\n3 units, 300 km²\n45.2° N, 74.8° W"
    assert far.get_title() == "far\n2 units, 32 km²\n45.1° S, 145.8° E"
    widths = [np.ptp(axis.get_xlim()) for axis in (near, far)]
    assert widths[0] == pytest.approx(widths[1]) and 30_000 < widths[0] < 33_000
    assert np.ptp(near.get_ylim()) == pytest.approx(np.ptp(far.get_ylim()))
    assert near.get_aspect() == far.get_aspect() == 1


def test_the_scale_bar_has_the_length_that_it_names():
    near, far = study_areas(REGIONS).axes
    (bar,) = near.get_lines()
    assert np.ptp(bar.get_xdata()) == pytest.approx(10_000)  # of 5, 10 and 20 km the longest within a third of 31.5
    assert [text.get_text() for text in near.texts] == ["10 km, all panels"] and not far.get_lines()


def test_every_unit_and_the_common_outline_are_drawn():
    axis = study_areas({"near": REGIONS["near"]}).axes[0]
    units, outline = axis.collections
    assert len(units.get_paths()) == 3
    (ring,) = [path.vertices for path in outline.get_paths()]
    perimeter = np.hypot(*np.diff(ring, axis=0).T).sum()
    assert perimeter == pytest.approx(80_000, rel=2e-3)


def test_eleven_regions_take_three_rows_and_none_is_refused():
    figure = study_areas({str(n): REGIONS["far"] for n in range(11)})
    assert [axis.get_title()[:2].strip() for axis in figure.axes] == [str(n) for n in range(11)] + [""] * 4
    with pytest.raises(ValueError, match="at least one region"):
        study_areas({})


MATRIX = pd.DataFrame([[0.8, 0.4, np.nan], [0.55, 0.7, 1.0]], index=["a", "b"], columns=["a", "b", "c"])


def test_a_matrix_shows_the_source_on_x_the_target_on_y_and_every_number():
    figure = transfer_matrix({"10 m": MATRIX})
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["a", "b", "c"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]
    assert axis.get_ylim()[0] > axis.get_ylim()[1]  # the first target at the top
    written = {text.get_position(): text.get_text() for text in axis.texts}
    assert written == {(0, 0): ".80", (1, 0): ".40", (0, 1): ".55", (1, 1): ".70", (2, 1): "1.00"}
    np.testing.assert_array_equal(np.ma.filled(axis.images[0].get_array(), np.nan), MATRIX)
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("trained on", "tested on")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["the same region", "no score"]
    complete = transfer_matrix({"10 m": MATRIX.fillna(0.5)})
    assert [text.get_text() for text in complete.legends[0].get_texts()] == ["the same region"]


def test_missing_cells_are_hatched_and_own_regions_framed():
    axis = transfer_matrix({"10 m": MATRIX}).axes[0]
    rectangles = [patch for patch in axis.patches if isinstance(patch, Rectangle)]
    assert [patch.get_xy() for patch in rectangles if patch.get_hatch()] == [(1.5, -0.5)]
    assert [patch.get_xy() for patch in rectangles if not patch.get_fill()] == [(-0.5, -0.5), (0.5, 0.5)]


def test_all_panels_share_one_scale_of_colours():
    figure = transfer_matrix({"10 m": MATRIX, "30 m": MATRIX * 0.5, "trees": MATRIX.fillna(0.6)}, score="CPC of flows above 10")
    images = [axis.images[0] for axis in figure.axes[:3]]
    assert {image.get_clim() for image in images} == {(0.2, 1.0)}
    assert [axis.get_title() for axis in figure.axes[:3]] == ["10 m", "30 m", "trees"]
    assert not figure.axes[3].axison
    assert figure.axes[4].get_ylabel() == "CPC of flows above 10"


@pytest.mark.parametrize("matrices", [{}, {"none": MATRIX * np.nan}])
def test_without_any_score_there_is_no_figure(matrices):
    with pytest.raises(ValueError, match="at least one score"):
        transfer_matrix(matrices)


def test_one_score_alone_has_a_colour():
    figure = transfer_matrix({"one": pd.DataFrame([[0.5]], index=["a"], columns=["a"])})
    figure.draw_without_rendering()
    assert figure.axes[0].texts[0].get_text() == ".50"


SHARES = pd.DataFrame({"built up": [0.5, 0.25, np.nan], "forest": [0.3, 0.02, np.nan]}, index=["M1", "M2", "M3"])


def bars(axis):
    """Bottom and height of every segment by class and region."""
    return {part.get_label(): np.round([(bar.get_y(), bar.get_height()) for bar in part], 9).tolist() for part in axis.containers}


def test_bars_are_stacked_and_what_the_classes_leave_is_other():
    axis = land_cover_shares(SHARES).axes[0]
    drawn = bars(axis)
    assert list(drawn) == ["built up", "forest", "other"]
    assert drawn["built up"] == [[0, 0.5], [0, 0.25], [0, 0]]
    assert drawn["forest"] == [[0.5, 0.3], [0.25, 0.02], [0, 0]]
    assert drawn["other"] == [[0.8, 0.2], [0.27, 0.73], [0, 0]]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["M1", "M2", "M3"]


def test_numbers_stand_in_segments_with_room_and_a_region_without_data_says_so():
    axis = land_cover_shares(SHARES).axes[0]
    written = {(round(text.get_position()[0]), text.get_text()) for text in axis.texts}
    assert written == {(0, ".50"), (0, ".30"), (0, ".20"), (1, ".25"), (1, ".73"), (2, "no data")}


def test_no_two_classes_look_alike_and_complete_shares_have_no_other():
    names = [f"class {number}" for number in range(10)]
    table = pd.DataFrame(np.full((2, 10), 0.1), index=["M1", "M2"], columns=names)
    figure = land_cover_shares(table)
    looks = {(to_hex(part[0].get_facecolor()), part[0].get_hatch() or "") for part in figure.axes[0].containers}
    assert len(looks) == 10 and to_hex(LIGHT_GREY) not in {colour for colour, _ in looks}
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names[::-1]  # as the bars are stacked


@pytest.mark.parametrize("wrong", [{"forest": 0.9}, {"forest": -0.1}])
def test_shares_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="shares must be 0 or more and sum to at most 1"):
        land_cover_shares(SHARES.assign(**wrong))


def test_numbers_and_their_ink():
    assert [two_digits(value) for value in (0.825, 0.999, 1, 0, -0.051, 10.5)] == [".82", "1.00", "1.00", ".00", "-.05", "10.50"]
    assert [readable_on(colour) for colour in ((0, 0, 0.5, 1), (1, 1, 0, 1))] == ["white", "black"]
    assert readable_on((*(int(COLOURS[0][n : n + 2], 16) / 255 for n in (1, 3, 5)), 1)) == "white"
