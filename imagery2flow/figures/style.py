"""The one style of all figures: sizes in inches, a font, colours that colour-blind readers tell apart (Okabe and Ito 2008)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#666666"
LIGHT_GREY = "#DDDDDD"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINE_STYLES = ("-", "--", ":", "-.")
DOTS_PER_INCH = 150
TITLE_SIZE, LABEL_SIZE, TICK_SIZE = 9, 9, 8  # points; a legend's text is as large as that of ticks
LEGEND_ROW, LEGEND_SIGN, LETTER = 0.17, 0.65, 0.055  # inches of a legend's row, its sign with the space around it, and a letter beside it
CONSTANT = "constant"  # the predictor that the others are read against: grey in every figure


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **subplots: Any) -> tuple[Figure, list[Axes]]:
    """A figure outside pyplot's global state, and its axes row by row; ``subplots`` are settings of ``Figure.subplots``."""
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **subplots).reshape(-1).tolist()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=TICK_SIZE)
        axis.xaxis.label.set_size(LABEL_SIZE)
        axis.yaxis.label.set_size(LABEL_SIZE)
    return figure, axes


def series_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and line style by name, in the order of the names: first the colours change, then the line styles; the constant is grey."""
    names = list(names)
    styles: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(name for name in names if name != CONSTANT):
        place = number % len(COLOURS)
        line = LINE_STYLES[number // len(COLOURS) % len(LINE_STYLES)]
        styles[name] = {"color": COLOURS[place], "marker": MARKERS[place], "linestyle": line}
    return {name: styles.get(name, {"color": GREY, "marker": "x", "linestyle": "--"}) for name in names}


def legend_below(figure: Figure, handles: Sequence[Any], columns: int = 4, title: str = "") -> None:
    """A legend below all axes, where it hides no data; the figure grows by its rows after the first.

    Args:
        figure: Grows only if it has a layout that gives the axes what the legend leaves.
        handles: Artists and containers with a label.
        columns: At most; fewer where the labels are too long for the figure.
        title: Above the legend.
    """
    labels = [str(handle.get_label()) for handle in handles]
    entry = LEGEND_SIGN + LETTER * max(map(len, labels), default=0)
    width, height = figure.get_size_inches()
    columns = max(1, min(columns, len(handles), int(width / entry)))
    if figure.get_layout_engine() is not None:
        figure.set_size_inches(width, height + LEGEND_ROW * max(0, -(-len(handles) // columns) - 1))
    figure.legend(
        list(handles),
        labels,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=TICK_SIZE,
        title=title,
        title_fontsize=TICK_SIZE,
    )


def span(numbers: Iterable[int]) -> str:
    """Numbers as text: one where they are equal, else the smallest and the largest."""
    numbers = list(numbers)
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"
