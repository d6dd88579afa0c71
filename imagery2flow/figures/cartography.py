"""Panels of maps: their size, extent, proportions and scale bar, and units with and without a value."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.transforms import blended_transform_factory

from imagery2flow.figures.style import DOTS_PER_INCH, LIGHT_GREY, TICK_SIZE, TITLE_SIZE
from imagery2flow.run.earth import EARTH_RADIUS_M, METRES_PER_KM

PANEL_HEIGHT = 3.6  # inches, as all below
NARROWEST, WIDEST = 2.5, 5.0  # of a panel
NARROWEST_FIGURE = 4.6  # a legend below a single panel needs them
GAP, TITLE_LINE, SCALE_BAR, LEGEND, COLOUR_BAR = 0.1, 0.18, 0.3, 0.65, 1.1
PANELS_PER_ROW = 4
HATCH, HATCH_COLOUR = "////", "#AAAAAA"


def map_panels(units: gpd.GeoSeries, number: int, title_lines: int = 2, colour_bar: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure with panels of equal extent, shaped like the region, each with a scale bar; without axes.

    Places are reckoned here: matplotlib's layouts leave gaps between panels whose proportions are fixed.

    Args:
        units: Polygons in any CRS; what is drawn in degrees is stretched as at the region's middle.
        number: Number of panels.
        title_lines: Lines of text above each panel.
        colour_bar: Whether the last of the axes is a place for a colour bar on the right.
    """
    left, bottom, right, top = units.total_bounds
    stretch = 1 / np.cos(np.radians((bottom + top) / 2)) if is_geographic(units) else 1.0  # height by width of a unit square
    shape = (right - left) / ((top - bottom) * stretch)
    rows = -(-number // PANELS_PER_ROW)
    columns = -(-number // rows)
    panel_width = float(np.clip(PANEL_HEIGHT * shape, NARROWEST, WIDEST))
    panel_height = min(PANEL_HEIGHT, panel_width / shape)
    row_height = TITLE_LINE * title_lines + GAP + panel_height + SCALE_BAR
    used = columns * (panel_width + GAP) + GAP + COLOUR_BAR * colour_bar
    width, height = max(used, NARROWEST_FIGURE), rows * row_height + LEGEND
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH)
    axes = []
    for panel in range(number):
        x = (width - used) / 2 + GAP + (panel % columns) * (panel_width + GAP)
        y = LEGEND + (rows - 1 - panel // columns) * row_height + SCALE_BAR
        axes.append(figure.add_axes((x / width, y / height, panel_width / width, panel_height / height)))
        axes[-1].set(xlim=(left, right), ylim=(bottom, top), aspect=stretch)
        axes[-1].set_axis_off()
        scale_bar(axes[-1], units)
    if colour_bar:
        x = (width - used) / 2 + GAP + columns * (panel_width + GAP)
        y, tall = LEGEND + SCALE_BAR, (rows - 1) * row_height + panel_height
        axes.append(figure.add_axes((x / width, (y + 0.05 * tall) / height, 0.15 / width, 0.9 * tall / height)))
    return figure, axes


def title_panel(axis: Axes, text: str) -> None:
    """A title right above a panel; matplotlib itself would lift it above the "1e6" of an axis, also where the axis is off."""
    axis.set_title(text, fontsize=TITLE_SIZE, y=1.0)


def is_geographic(units: gpd.GeoSeries) -> bool:
    """Whether coordinates are degrees."""
    return units.crs is not None and units.crs.is_geographic


def scale_bar(axis: Axes, units: gpd.GeoSeries) -> None:
    """A bar of a round length, at most a third of the map's width, below the map; none where the CRS, and so the length, is unknown."""
    if units.crs is None:
        return
    left, bottom, right, top = units.total_bounds
    if is_geographic(units):
        metres = np.radians(1) * EARTH_RADIUS_M * np.cos(np.radians((bottom + top) / 2))  # of a degree of longitude
    else:
        metres = units.crs.axis_info[0].unit_conversion_factor
    length_m = round_below((right - left) * metres / 3)
    place = blended_transform_factory(axis.transData, axis.transAxes)
    axis.plot([left, left + length_m / metres], [-0.03, -0.03], color="black", linewidth=1.5, transform=place, clip_on=False)
    text = f"{length_m / METRES_PER_KM:g} km" if length_m >= METRES_PER_KM else f"{length_m:g} m"
    axis.text(left, -0.045, text, fontsize=TICK_SIZE, va="top", transform=place)


def round_below(value: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is not above a value above 0."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(max(digit * power for digit in (1, 2, 5) if digit * power <= value * (1 + 1e-9)))


def draw_values(axis: Axes, units: gpd.GeoSeries, values: np.ndarray, mappable: ScalarMappable) -> None:
    """Colours units by value, grey and hatched where it is NaN: values [num_units]."""
    known = np.isfinite(values)
    if known.any():
        units[known].plot(ax=axis, color=mappable.to_rgba(values[known]), edgecolor="white", linewidth=0.1, aspect=None)
    draw_absent(axis, units[~known])


def draw_absent(axis: Axes, units: gpd.GeoSeries) -> None:
    """Units without a value, hatched as one shape: thousands of hatches take long."""
    if len(units):
        gpd.GeoSeries([units.union_all()], crs=units.crs).plot(
            ax=axis, facecolor=LIGHT_GREY, edgecolor=HATCH_COLOUR, hatch=HATCH, linewidth=0.1, aspect=None
        )


def absent_handle(label: str) -> Patch:
    """The sign of units without a value in a legend."""
    return Patch(facecolor=LIGHT_GREY, edgecolor=HATCH_COLOUR, hatch=HATCH, linewidth=0.1, label=label)
