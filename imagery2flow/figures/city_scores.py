"""How well cities are recognised, which look alike, and what was predicted of their indexes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from scipy.cluster.hierarchy import dendrogram

from imagery2flow.cities.indexes import TRAINING_MEAN
from imagery2flow.cities.results import CONFUSION, COSINE, FRECHET, CityResults
from imagery2flow.cities.scores import calibration_error, share_of_row
from imagery2flow.cities.similarity import PlanarMap, average_linkage
from imagery2flow.figures.regions import readable_on
from imagery2flow.figures.style import COLOURS, GREY, LETTER, LIGHT_GREY, TICK_SIZE, TITLE_SIZE, legend_below, new_figure
from imagery2flow.run.keys import code_of

SHARES = "Blues"  # white is none, so that the few cells that count are seen
FEW_CLASSES = 12  # with more, cells and letters are smaller
SMALLEST_WRITTEN = 0.005  # a share that rounds to 1 %
SMALL_SIZE = 5  # points
PANELS_PER_ROW = 3
DISTANCE_NAMES = {
    CONFUSION: "1 \N{MINUS SIGN} symmetrised confusion",
    COSINE: "distance between\ndirections of means",
    FRECHET: "Fr\N{LATIN SMALL LETTER E WITH ACUTE}chet distance of features",
}
# Where a name may stand around its point, and how many points of type away: the first place that hides least is taken.
SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
GAPS = (4, 12, 20, 28)
COST_OF_A_GAP = 0.1  # of a name's own area for each of those further out, where a line leads to the point


def city_figures(results: CityResults) -> dict[str, Figure]:
    """Every figure that the results allow, by file name without its suffix."""
    figures, tables = {}, results.tables
    with rc_context({"text.parse_math": False}):  # a name may hold dollar signs
        if "confusion" in tables:
            figures["confusion"] = confusion_shares(tables["confusion"].set_index("true_city"))
            figures["reliability"] = reliability(tables["calibration"])
        if results.distances:
            figures["dendrogram"] = city_trees(results.distances)
            figures["city_map"] = city_maps({name: (list(results.distances[name]), plane) for name, plane in results.maps.items()})
        if "index_by_city" in tables:
            figures["index_by_city"] = index_by_city(tables["index_by_city"], tables["index_scores"])
    return figures


def confusion_shares(confusion: pd.DataFrame) -> Figure:
    """Share of each city's tiles (rows) that are called each city (columns), in percent.

    Args:
        confusion: Tiles: index true_city, columns called, the same names.
    """
    shares, number = share_of_row(confusion.to_numpy()), len(confusion)  # [num_classes, num_classes]
    few = number <= FEW_CLASSES
    cell = 0.5 if few else 0.185
    margin = 0.5 + LETTER * max(len(str(name)) for name in confusion)
    figure, (axis,) = new_figure(max(3.0, margin + number * cell + 0.9), max(2.6, margin + number * cell + 0.3))
    colours = colormaps[SHARES].with_extremes(bad=LIGHT_GREY)
    scale = PowerNorm(0.5, 0, 1)  # the root gives rare confusions, which are what one looks for, a colour that is seen
    image = axis.imshow(np.ma.masked_invalid(shares), cmap=colours, norm=scale, aspect="equal")
    for row, column in np.argwhere(shares >= SMALLEST_WRITTEN):
        colour = readable_on(colours(scale(shares[row, column])))
        size = TICK_SIZE if few else SMALL_SIZE
        axis.text(column, row, f"{100 * shares[row, column]:.0f}", ha="center", va="center", fontsize=size, color=colour)
    size = TICK_SIZE if few else TICK_SIZE - 2
    tiles = confusion.sum(axis=1)
    axis.set_xticks(range(number), list(confusion), rotation=90, fontsize=size)
    axis.set_yticks(range(number), [f"{name}" if count else f"{name} (no tiles)" for name, count in tiles.items()], fontsize=size)
    axis.set(xlabel="city that the tile is called", ylabel="city that the tile lies in")
    axis.spines[["top", "right"]].set_visible(True)
    axis.set_title(f"n = {tiles.sum():,} tiles of {number} cities", fontsize=TITLE_SIZE)
    bar = figure.colorbar(image, ax=axis, shrink=0.6 if few else 0.3, pad=0.02, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1", "5", "20", "50", "100"])
    bar.ax.tick_params(labelsize=TICK_SIZE)
    bar.set_label("share of the city's tiles (%)", fontsize=TICK_SIZE)
    return figure


def reliability(bins: pd.DataFrame) -> Figure:
    """Accuracy against confidence in bins, beside the diagonal of a calibrated model; below, how many tiles each bin has.

    Args:
        bins: From ``cities.scores.calibration_bins``.
    """
    figure, (axis, counts) = new_figure(4.2, 5.2, rows=2, sharex=True, height_ratios=(4, 1))
    width = bins.upper - bins.lower
    filled = bins[bins.tiles > 0]
    bars = axis.bar(
        bins.lower, bins.accuracy, width, align="edge", color=COLOURS[5], edgecolor="white", linewidth=0.5, label="accuracy of the bin"
    )
    lines = axis.plot(filled.mean_confidence, filled.accuracy, "o", color=COLOURS[0], markersize=4, label="at its mean confidence")
    lines += axis.plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=0.8, label="calibrated")
    axis.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share of tiles called rightly")
    axis.set_title(
        f"expected calibration error {calibration_error(bins):.3f}\nn = {bins.tiles.sum():,} tiles, {len(bins)} bins", fontsize=TITLE_SIZE
    )
    counts.bar(bins.lower, bins.tiles, width, align="edge", color=GREY, edgecolor="white", linewidth=0.5)
    counts.set(xlabel="confidence: probability of the called city", ylabel="tiles")
    counts.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    legend_below(figure, [bars, *lines])
    return figure


def city_trees(distances: Mapping[str, pd.DataFrame]) -> Figure:
    """A tree of cities per measure of distance: two cities meet where the mean distance of their branches is (average linkage).

    Args:
        distances: By measure: square tables of two or more cities.
    """
    number = max(len(table) for table in distances.values())
    longest = max(len(str(name)) for table in distances.values() for name in table)
    figure, axes = new_figure(len(distances) * (2.2 + LETTER * longest), 1.0 + 0.16 * max(number, 5), columns=len(distances))
    for axis, (measure, table) in zip(axes, distances.items(), strict=True):
        tree = dendrogram(average_linkage(table.to_numpy()), labels=list(table), no_plot=True)
        for along, across in zip(tree["dcoord"], tree["icoord"], strict=True):
            axis.plot(along, across, color=COLOURS[0], linewidth=1, solid_joinstyle="miter")
        # scipy sets leaves 10 apart, the first at 5.
        axis.set_yticks(np.arange(len(table)) * 10 + 5, tree["ivl"], fontsize=TICK_SIZE if number <= FEW_CLASSES else TICK_SIZE - 2)
        axis.set(xlabel=DISTANCE_NAMES[measure], ylim=(0, len(table) * 10))
        axis.set_xlim(limits_of_tree(np.array(tree["dcoord"])))
        axis.yaxis.tick_right()
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.xaxis.set_major_locator(MaxNLocator(4))
    return figure


def limits_of_tree(distances: np.ndarray) -> tuple[float, float]:
    """Limits of the axis of a tree with its cities at the right: from its root to 0, or to less where all its joints lie close together, far from 0."""
    joints = distances.max(axis=1)
    smallest, largest = joints.min(), max(joints.max(), 1e-9)
    return largest + 0.02 * (largest - smallest), max(0.0, smallest - (largest - smallest) / 2) if smallest < largest else 0.0


def city_maps(planes: Mapping[str, tuple[Sequence[str], PlanarMap]]) -> Figure:
    """Cities in a plane per measure, near where they are alike; each panel says how much of the distances its plane shows.

    Args:
        planes: By measure: names of the cities, and their places. Names with a code in parentheses are written as that.
    """
    side = 3.2 if max(len(names) for names, _ in planes.values()) <= FEW_CLASSES else 4.8
    figure, axes = new_figure(side * len(planes), side + 0.6, columns=len(planes))
    for axis, (measure, (names, plane)) in zip(axes, planes.items(), strict=True):
        axis.plot(plane.places[:, 0], plane.places[:, 1], "o", color=COLOURS[0], markersize=4, markeredgewidth=0, zorder=3)
        reach = max(np.ptp(plane.places, axis=0).max() * 0.6, 1e-9)
        middle = (plane.places.max(axis=0) + plane.places.min(axis=0)) / 2
        axis.set(xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - reach, middle[1] + reach), aspect="equal")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[["top", "right"]].set_visible(True)
        write_names(axis, plane.places, [code_of(str(name)) or str(name) for name in names], 2 * reach / ((side - 0.4) * 72))
        title = DISTANCE_NAMES[measure].replace("\n", " ")
        axis.set_title(f"{title}\n{plane.variance_shown:.0%} of the variance shown, stress {plane.stress:.2f}", fontsize=TITLE_SIZE)
        draw_bar(axis, reach)
    return figure


def write_names(axis: Axes, places: np.ndarray, names: Sequence[str], units_per_point: float) -> None:
    """Writes names around their points, each where it covers least of other names and points, with a line to its point where that is not beside it.

    Args:
        axis: Of a map with equal scales.
        places: [num_names, 2].
        names: One per place.
        units_per_point: Of the axis, for a typographic point.
    """
    size = TICK_SIZE - 1
    points = places / units_per_point
    frame = np.array([*axis.get_xlim(), *axis.get_ylim()])[[0, 2, 1, 3]] / units_per_point
    taken = [np.array([x - 3, y - 3, x + 3, y + 3]) for x, y in points]  # boxes: left, bottom, right, top
    for point, name in zip(points, names, strict=True):
        half = np.array([0.31 * size * len(name), 0.55 * size])  # of the name's width and height
        boxes = [box_beside(point, half, np.array(side), gap) for gap in GAPS for side in SIDES]
        # A part outside the map costs more than one over another name.
        costs = [round(covered(box, taken) - 3 * covered(box, [frame]), 3) for box in boxes]  # rounded: equal ones are equal
        best = int(np.argmin(costs + COST_OF_A_GAP * 4 * half.prod() * (np.arange(len(boxes)) // len(SIDES))))
        taken.append(boxes[best])
        middle, end = (boxes[best][:2] + boxes[best][2:]) / 2, np.clip(point, boxes[best][:2], boxes[best][2:])
        axis.text(middle[0] * units_per_point, middle[1] * units_per_point, name, ha="center", va="center", fontsize=size)
        if best >= len(SIDES):
            line = np.stack([point, end]) * units_per_point
            axis.plot(line[:, 0], line[:, 1], color=GREY, linewidth=0.4, zorder=1)


def box_beside(point: np.ndarray, half: np.ndarray, side: np.ndarray, gap: float) -> np.ndarray:
    """Box (left, bottom, right, top) of half a width and height on a side (-1, 0 or 1 along x and y) of a point, so far away."""
    middle = point + side * (half + gap / np.abs(side).sum())
    return np.concatenate([middle - half, middle + half])


def covered(box: np.ndarray, others: Sequence[np.ndarray]) -> float:
    """Area that a box (left, bottom, right, top) shares with others."""
    other = np.array(others)  # [num_others, 4]
    sides = np.minimum(box[2:], other[:, 2:]) - np.maximum(box[:2], other[:, :2])
    return float(np.prod(np.maximum(sides, 0), axis=1).sum())


def draw_bar(axis: Axes, reach: float) -> None:
    """A bar of a round distance in the lower left corner of a map."""
    length = 10 ** np.floor(np.log10(reach * 0.7))
    length *= next((factor for factor in (5, 2) if factor * length <= reach * 0.7), 1)
    left, bottom = axis.get_xlim()[0] + 0.08 * reach, axis.get_ylim()[0] + 0.08 * reach
    axis.plot([left, left + length], [bottom, bottom], color="black", linewidth=1.5, solid_capstyle="butt")
    axis.annotate(f"{length:g}", (left + length, bottom), xytext=(3, 0), textcoords="offset points", fontsize=TICK_SIZE - 1, va="center")


def index_by_city(cities: pd.DataFrame, scores: pd.DataFrame) -> Figure:
    """What was predicted for the tiles of each city, mean and standard deviation, beside its true value; a panel per index.

    Args:
        cities: target, city, observed, predicted_mean, predicted_std, training_mean; a row per target and city.
        scores: target, over, predictor, r2; for the titles.
    """
    targets = list(dict.fromkeys(cities.target))
    number, columns = int(cities.target.value_counts().max()), min(len(targets), PANELS_PER_ROW)
    rows = -(-len(targets) // columns)
    width = 2.6 + LETTER * max(len(str(name)) for name in cities.city)
    figure, axes = new_figure(max(columns * width, 4.5), rows * (1.2 + 0.17 * max(number, 4)) + 0.3, rows, columns)
    for axis in axes[len(targets) :]:
        axis.set_axis_off()
    for axis, target in zip(axes, targets, strict=False):
        draw_index(axis, cities[cities.target == target].sort_values(["observed", "city"]))
        axis.set_title(title_of_index(target, scores), fontsize=TITLE_SIZE)
    handles = [
        Line2D([], [], color="black", marker="|", linestyle="", markersize=8, markeredgewidth=1.5, label="true"),
        Line2D([], [], color=COLOURS[0], marker="o", markersize=4, label="predicted: mean \N{PLUS-MINUS SIGN} sd of tiles"),
        Line2D([], [], color=GREY, marker="x", linestyle="", markersize=4, label=TRAINING_MEAN),
    ]
    legend_below(figure, handles)
    return figure


def draw_index(axis: Axes, cities: pd.DataFrame) -> None:
    """One panel: a row per city in the order of the true value, the smallest on top."""
    place = np.arange(len(cities))
    axis.plot(cities.training_mean, place, "x", color=GREY, markersize=3.5, zorder=1)
    axis.errorbar(
        cities.predicted_mean,
        place,
        xerr=cities.predicted_std.fillna(0.0),
        fmt="o",
        color=COLOURS[0],
        markersize=4,
        linewidth=1.2,
        capsize=2,
    )
    axis.plot(cities.observed, place, "|", color="black", markersize=8, markeredgewidth=1.5, zorder=4)
    axis.set_yticks(place, cities.city, fontsize=TICK_SIZE if len(cities) <= FEW_CLASSES else TICK_SIZE - 2)
    axis.set_ylim(len(cities) - 0.5, -0.5)
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.yaxis.grid(True, color=LIGHT_GREY, linewidth=0.5)
    axis.set_axisbelow(True)


def title_of_index(target: str, scores: pd.DataFrame) -> str:
    """Name of an index and the model's R2, over tiles and over cities."""
    own = scores[(scores.target == target) & (scores.predictor != TRAINING_MEAN)].set_index("over").r2
    found = ", ".join(f"{own[over]:.2f} of {over}" if np.isfinite(own[over]) else f"none of {over}" for over in ("tiles", "cities"))
    return f"{target}\nR\N{SUPERSCRIPT TWO} {found}"
