"""Figures of distance decay and urban form: P(d) of each region (figure 3), and its decay against the region's form (supplement)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from scipy.stats import linregress

from imagery2flow.figures.style import COLOURS, GREY, LINE_STYLES, TICK_SIZE, TITLE_SIZE, legend_below, new_figure
from imagery2flow.flows.distance_decay import EXPONENTIAL, DistanceDecay

OBSERVED = "observed"
FITTED = "exponential fitted to the observed, with its Kolmogorov-Smirnov D and Akaike weight among three laws (powers above 1)"
PANELS_PER_ROW = 4
PANEL_WIDTH, PANEL_HEIGHT = 2.7, 2.5  # inches
RELATION_WIDTH, RELATION_HEIGHT = 3.5, 3.6  # inches
LETTER_WIDTH, LINE_HEIGHT = 0.65, 1.0  # in font sizes, about
FEWEST_OF_A_LINE = 3  # two points lie on a line whatever they are
FORM_LABELS = {
    "bcsi": "Boyce-Clark shape index (0: disc)",
    "population_density_per_km2": "population density (residents per km²)",
    "job_rank_size_slope": "slope of log jobs on log rank",
}
# For comparison only: read off the outputs of the earlier code's notebook, BCSI off the pixels of its scatter (+-.1). Its boundaries,
# the centre of its BCSI and its population table are not known, so that values for the same areas may differ.
PUBLISHED = """
region lambda_per_km ks_d_below bcsi population_density_per_km2 job_rank_size_slope
M1  .1063 .0447 35.2 607.04 -1.650
M2  .0880 .0786 26.5 710.76 -1.433
M3  .0722 .0588 17.2 215.11 -1.653
M4  .0616 .1046 14.1 230.41 -1.835
M5  .0607 .0922 11.7 240.42 -1.755
M6  .0750 .0802 14.9 222.18 -1.777
M7  .0994 .0921 15.5 298.55 -1.569
M8  .0831 .1072 33.4 347.60 -1.650
M9  .0624 .1101 10.4 183.74 -1.708
M10 .0580 .1094 18.6  89.50 -1.847
"""


def published_form() -> pd.DataFrame:
    """Published decay and form of the ten metropolitan areas, to compare with: index region, columns as in ``flows.form_table``."""
    header, *rows = (line.split() for line in PUBLISHED.strip().splitlines())
    return pd.DataFrame(rows, columns=header).set_index("region").astype(float)


def distance_decay(shares: Mapping[str, pd.DataFrame], decays: Mapping[str, DistanceDecay]) -> Figure:
    """P(d) of each region on logarithmic axes: observed as dots, predictions as lines, the fitted exponential dotted.

    Args:
        shares: Region -> index km from 1 on; column ``observed`` and one per prediction, shares of commuters
            (``flows.distance_decay.trip_length_shares``). A km that nobody travels has no place on the axis.
        decays: Region -> the fit to what was observed.

    Raises:
        ValueError: There is no region, or one has no fit.
    """
    if not shares or set(shares) != set(decays):
        raise ValueError(
            f"the regions of the shares ({', '.join(shares)}) and of the fits ({', '.join(decays)}) must be the same, and some"
        )
    columns = min(len(shares), PANELS_PER_ROW)
    rows = -(-len(shares) // columns)
    figure, axes = new_figure(max(columns * PANEL_WIDTH, 4.0), rows * PANEL_HEIGHT + 0.6, rows, columns)
    drawn = pd.concat(shares.values())
    positive = drawn.to_numpy()[drawn.to_numpy() > 0]
    lowest, highest = (positive.min() / 2, positive.max() * 2) if len(positive) else (1e-3, 1.0)
    predictions = list(dict.fromkeys(name for table in shares.values() for name in table.columns if name != OBSERVED))
    for axis, (region, table) in zip(axes, shares.items(), strict=False):
        draw_decay(axis, table, decays[region], predictions)
        axis.set(xscale="log", yscale="log", xlim=(0.9, max(drawn.index.max(), 2) * 1.1), ylim=(lowest, highest))
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_title(region, fontsize=TITLE_SIZE)
        axis.set_xlabel("distance d (km)")
        axis.set_ylabel("P(d), share per km")
    for axis in axes[len(shares) :]:
        axis.set_axis_off()
    handles = {handle.get_label(): handle for axis in axes for handle in axis.get_legend_handles_labels()[0]}
    legend_below(figure, list(handles.values()))
    return figure


def draw_decay(axis: Axes, table: pd.DataFrame, decay: DistanceDecay, predictions: list[str]) -> None:
    """One region; ``predictions`` are all names of the figure, which give each its colour."""
    visible = table.where(table > 0)
    for number, name in enumerate(predictions):
        if name in visible:
            style = LINE_STYLES[number % len(LINE_STYLES)]
            colour = COLOURS[number % len(COLOURS)]
            # Dots too: between two km that nobody travels there is no line.
            axis.plot(visible.index, visible[name], marker=".", markersize=2, color=colour, linestyle=style, linewidth=1, label=name)
    axis.plot(visible.index, visible[OBSERVED], ".", color="black", markersize=3, label=OBSERVED)
    if not decay.laws:
        axis.text(
            0.05, 0.06, f"no fit: {decay.num_commuters:,.0f} commuters\ntravel 1 km or more", fontsize=TICK_SIZE, transform=axis.transAxes
        )
        return
    rate = decay.lambda_per_km
    km = np.geomspace(1, visible.index.max(), 200)
    axis.plot(km, rate * np.exp(-rate * (km - 1)), color=GREY, linestyle=":", linewidth=1.5, label=FITTED)
    weight = decay.laws[EXPONENTIAL].akaike_weight
    caption = f"$\\lambda$ = {rate:.4f} per km\nD = {decay.ks_d:.2f}\nAkaike weight {weight:.2f}\nn = {decay.num_commuters:,.0f}"
    axis.text(0.05, 0.06, caption, fontsize=TICK_SIZE, transform=axis.transAxes)


def decay_against_form(table: pd.DataFrame) -> Figure:
    """The rate of distance decay against shape, density and concentration of jobs, with the least-squares line and Pearson's r.

    Args:
        table: Index region; lambda_per_km, bcsi, population_density_per_km2, job_rank_size_slope, NaN where unknown
            (``flows.form_table``).
    """
    figure, axes = new_figure(len(FORM_LABELS) * RELATION_WIDTH, RELATION_HEIGHT, columns=len(FORM_LABELS))
    for axis, (column, label) in zip(axes, FORM_LABELS.items(), strict=True):
        draw_relation(axis, table[column], table.lambda_per_km)
        axis.set_xlabel(label)
        axis.set_ylabel("$\\lambda$ (per km)")
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    return figure


def draw_relation(axis: Axes, x: pd.Series, y: pd.Series) -> None:
    """Regions as labelled points, and the line through them where there are enough; the title says what was found, or why nothing was."""
    known = x.notna() & y.notna()
    absent = f"; without {', '.join(map(str, x.index[~known]))}" if not known.all() else ""
    x, y = x[known].astype(float), y[known].astype(float)
    axis.plot(x, y, "o", color=COLOURS[0], markersize=4)
    axis.margins(0.1)
    ends = np.full((2, 2), np.nan)  # of the line: x, y
    title = f"n = {len(x)}{absent}"
    if len(x) < FEWEST_OF_A_LINE:
        title = f"no line: fewer than {FEWEST_OF_A_LINE} regions\n{title}"
    elif np.ptp(x) == 0 or np.ptp(y) == 0:
        title = f"no line: all regions have one value\n{title}"
    else:
        line = linregress(x, y)
        ends = np.array([(place, line.intercept + line.slope * place) for place in (x.min(), x.max())])
        axis.plot(*ends.T, color=GREY, linestyle="--", linewidth=1)
        title = f"Pearson r = {line.rvalue:.2f}, p = {line.pvalue:.3f}\n{title}"
    axis.set_title(title, fontsize=TITLE_SIZE, wrap=True)
    label_points(axis, np.stack([x, y], axis=1), [str(region) for region in x.index], ends)


def label_points(axis: Axes, points: np.ndarray, names: list[str], ends: np.ndarray) -> None:
    """Writes each point's name beside it, on the side where it covers the least of points, names and line, and stays within the axes.

    Args:
        axis: Its limits are final.
        points: In units of the axes: [num_regions, 2].
        names: Of the points.
        ends: Of a line that is drawn, NaN without one: [2, 2].
    """
    left_bottom, right_top = np.array([axis.get_xlim(), axis.get_ylim()]).T
    # The size of the axes in points, about: labels and titles take the rest of the panel.
    frame = 72 * np.array([RELATION_WIDTH - 0.65, RELATION_HEIGHT - 0.82])
    placed, line = ((places - left_bottom) / (right_top - left_bottom) * frame for places in (points, ends))
    along = line[0] + np.linspace(0, 1, 60)[:, None] * (line[1] - line[0])  # [60, 2]
    taken = [np.concatenate([place - radius, place + radius]) for places, radius in ((placed, 3.0), (along, 1.0)) for place in places]
    for name, point, place in zip(names, points, placed, strict=True):
        size = np.array([LETTER_WIDTH * len(name), LINE_HEIGHT]) * TICK_SIZE
        boxes = [np.concatenate([corner, corner + size]) for corner in label_corners(place, size)]
        inside = [overlap(box, np.array([0, 0, *frame])) for box in boxes]
        covered = [np.nansum([overlap(box, other) for other in taken]) for box in boxes]
        best = boxes[int(np.argmin(np.subtract(covered, inside)))]
        taken.append(best)
        axis.annotate(name, tuple(point), tuple(best[:2] - place), textcoords="offset points", fontsize=TICK_SIZE)


def label_corners(point: np.ndarray, size: np.ndarray) -> list[np.ndarray]:
    """Lower left corners of a label to the right of a point, to its left, above, below, and at its four corners: points [2] each."""
    gap = 4.0
    across, along = (gap, -size[0] - gap, -size[0] / 2), (-size[1] / 2, gap, -size[1] - gap)
    order = ((0, 0), (1, 0), (2, 1), (2, 2), (0, 1), (0, 2), (1, 1), (1, 2))
    return [point + np.array([across[i], along[j]]) for i, j in order]


def overlap(box: np.ndarray, other: np.ndarray) -> float:
    """Area that two boxes (left, bottom, right, top) share."""
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    return float(np.prod(np.maximum(sides, 0)))
