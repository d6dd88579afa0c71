"""Figures of several regions: where and how large they are (1a), transfer between them (5a-d), what covers their land (6)."""

from __future__ import annotations

from collections.abc import Mapping

import geopandas as gpd
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from imagery2flow.figures.cartography import HATCH, HATCH_COLOUR, absent_handle, round_below
from imagery2flow.figures.style import COLOURS, GREY, LIGHT_GREY, TICK_SIZE, TITLE_SIZE, legend_below, new_figure
from imagery2flow.flows import urban_form
from imagery2flow.run.earth import METRES_PER_KM

PANELS_PER_ROW = 5
PANEL_WIDTH = 2.4  # inches
COLOUR_MAP = "cividis"  # the same to readers with and without red-green blindness
HATCHES = ("", "///", "...")
WRITTEN_SHARE = 0.06  # smaller segments of a bar have no room for their number
OTHER = "other"
ROUNDING = 1e-6


def study_areas(regions: Mapping[str, gpd.GeoSeries]) -> Figure:
    """Outlines of regions with their units, each in an equal-area projection of its own, all to one scale and with north up.

    Args:
        regions: Name -> polygons in any CRS; regions may lie anywhere on the Earth.

    Raises:
        ValueError: There is no region.
    """
    if not regions:
        raise ValueError("a map of study areas needs at least one region")
    projected = {name: urban_form.equal_area(units) for name, units in regions.items()}
    corners = np.array([units.total_bounds for units in projected.values()])  # [num_regions, 4]
    width, height = (corners[:, 2] - corners[:, 0]).max() * 1.05, (corners[:, 3] - corners[:, 1]).max() * 1.05
    columns = min(len(projected), PANELS_PER_ROW)
    rows = -(-len(projected) // columns)
    panel_height = min(PANEL_WIDTH * height / width, 2 * PANEL_WIDTH)
    figure, axes = new_figure(max(columns * PANEL_WIDTH, 3.5), rows * (panel_height + 0.7) + 0.3, rows, columns)
    for axis in axes:
        axis.set_axis_off()
    for axis, (name, units), (left, bottom, right, top) in zip(axes, projected.items(), corners, strict=False):
        draw_region(axis, units, name)
        middle_x, middle_y = (left + right) / 2, (bottom + top) / 2
        axis.set(xlim=(middle_x - width / 2, middle_x + width / 2), ylim=(middle_y - height / 2, middle_y + height / 2), aspect="equal")
    draw_scale_bar(axes[0], width)
    return figure


def draw_region(axis: Axes, units: gpd.GeoSeries, name: str) -> None:
    """Units of an equal-area projection, their common outline, and how many, how large and where they are."""
    units.plot(ax=axis, facecolor=LIGHT_GREY, edgecolor=GREY, linewidth=0.1, aspect=None)
    outline = gpd.GeoSeries([urban_form.dissolve(units)], crs=units.crs)
    outline.boundary.plot(ax=axis, color=COLOURS[0], linewidth=0.6, aspect=None)
    place = outline.representative_point().to_crs(4326).iloc[0]
    where = f"{abs(place.y):.1f}° {'N' if place.y >= 0 else 'S'}, {abs(place.x):.1f}° {'E' if place.x >= 0 else 'W'}"
    area_km2 = urban_form.unit_areas_km2(units).sum()
    axis.set_title(f"{name}\n{len(units):,} units, {area_km2:,.0f} km²\n{where}", fontsize=TICK_SIZE)


def draw_scale_bar(axis: Axes, width_m: float) -> None:
    """A bar of a round length, at most a third of the panel's width, in its lower left corner; all panels share its scale."""
    length_m = round_below(width_m / 3)
    text = f"{length_m / METRES_PER_KM:g} km, all panels" if length_m >= METRES_PER_KM else f"{length_m:g} m, all panels"
    left, bottom = axis.get_xlim()[0], axis.get_ylim()[0]
    axis.plot([left, left + length_m], [bottom, bottom], color="black", linewidth=2, solid_capstyle="butt", clip_on=False)
    axis.annotate(text, (left, bottom), xytext=(0, -4), textcoords="offset points", fontsize=TICK_SIZE, va="top", annotation_clip=False)


def transfer_matrix(matrices: Mapping[str, pd.DataFrame], score: str = "CPC") -> Figure:
    """How well a model of each region predicts each other one: a square per pair, one scale of colours for all panels.

    Args:
        matrices: Title of the panel (sensor, decoder) -> index target region, columns source region, a score, NaN where there is none.
        score: Its name, at the scale.

    Raises:
        ValueError: There is no matrix, or no score.
    """
    values = np.concatenate([matrix.to_numpy(float).reshape(-1) for matrix in matrices.values()]) if matrices else np.array([])
    if not np.isfinite(values).any():
        raise ValueError("a figure of transfer needs a matrix with at least one score")
    scale = Normalize(np.nanmin(values), np.nanmax(values))
    columns = min(len(matrices), 2)
    rows = -(-len(matrices) // columns)
    across, down = (max(matrix.shape[side] for matrix in matrices.values()) for side in (1, 0))
    figure, axes = new_figure(columns * (1.2 + 0.42 * across) + 0.9, rows * (1.2 + 0.38 * down), rows, columns)
    for axis in axes[len(matrices) :]:
        axis.set_axis_off()
    for axis, (title, matrix) in zip(axes, matrices.items(), strict=False):
        image = draw_matrix(axis, matrix, scale)
        axis.set_title(title, fontsize=TITLE_SIZE)
    bar = figure.colorbar(image, ax=axes, shrink=0.6)
    bar.set_label(score)
    bar.ax.tick_params(labelsize=TICK_SIZE)
    handles = [Patch(fill=False, edgecolor="black", linewidth=1.2, label="the same region")]
    if np.isnan(values).any():
        handles.append(absent_handle("no score"))
    legend_below(figure, handles)
    return figure


def draw_matrix(axis: Axes, matrix: pd.DataFrame, scale: Normalize) -> ScalarMappable:
    """One panel: a number in every cell that has one, hatches in the others, a frame where source and target are one region."""
    values = matrix.to_numpy(float)  # [num_targets, num_sources]
    image = axis.imshow(values, cmap=COLOUR_MAP, norm=scale, aspect="auto")
    for row, target in enumerate(matrix.index):
        for column, source in enumerate(matrix.columns):
            value = values[row, column]
            corner = (column - 0.5, row - 0.5)
            if np.isnan(value):
                axis.add_patch(Rectangle(corner, 1, 1, facecolor=LIGHT_GREY, edgecolor=HATCH_COLOUR, hatch=HATCH, linewidth=0.1))
            else:
                colour = readable_on(colormaps[COLOUR_MAP](scale(value)))
                axis.text(column, row, two_digits(value), ha="center", va="center", fontsize=TICK_SIZE, color=colour)
            if source == target:
                axis.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=1.2, zorder=3))
    axis.set_xticks(range(matrix.shape[1]), matrix.columns, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(matrix.shape[0]), matrix.index)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_xlabel("trained on")
    axis.set_ylabel("tested on")
    return image


def land_cover_shares(table: pd.DataFrame) -> Figure:
    """Shares of each region's land by class, as one bar per region; what the classes leave of a region is ``other``.

    Args:
        table: Index region, columns class, shares 0..1 of the region's area; a region without any known share has no bar.

    Raises:
        ValueError: Shares are negative, or sum to more than 1.
    """
    totals = table.sum(axis=1)
    if (table < 0).any(axis=None) or (totals > 1 + ROUNDING).any():
        raise ValueError(f"shares must be 0 or more and sum to at most 1 in each region, but sum to {totals.max():.3f} at most")
    known = table.notna().any(axis=1)
    filled = table.fillna(0.0)
    if (totals[known] < 1 - ROUNDING).any():
        filled = filled.assign(**{OTHER: (1 - totals).where(known, 0.0)})
    figure, (axis,) = new_figure(max(0.75 * len(table) + 2.4, 4.5), 3.8)
    start = np.zeros(len(filled))
    for number, name in enumerate(filled.columns):
        share = filled[name].to_numpy()
        draw_segments(axis, start, share, str(name), number)
        start = start + share
    for place in np.flatnonzero(~known):
        axis.text(float(place), 0.5, "no data", rotation=90, ha="center", va="center", fontsize=TICK_SIZE, color=GREY)
    axis.set_xticks(range(len(table)), table.index, rotation=45, ha="right", rotation_mode="anchor")
    axis.set(ylim=(0, 1), xlim=(-0.6, len(table) - 0.4))
    axis.set_ylabel("share of the area")
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center", frameon=False, fontsize=TICK_SIZE)
    return figure


def draw_segments(axis: Axes, start: np.ndarray, share: np.ndarray, name: str, number: int) -> None:
    """One class over all regions, in the ``number``-th colour, or in a hatch where the colours are used up; numbers where there is room."""
    colours = COLOURS[:-1]  # black hides hatches and numbers
    colour = LIGHT_GREY if name == OTHER else colours[number % len(colours)]
    hatch = "" if name == OTHER else HATCHES[number // len(colours) % len(HATCHES)]
    places = np.arange(len(share))
    axis.bar(places, share, bottom=start, width=0.8, color=colour, hatch=hatch, edgecolor="white", linewidth=0.5, label=name)
    for place in places[share >= WRITTEN_SHARE]:
        box = {"facecolor": colour, "edgecolor": "none", "pad": 1.5}
        middle, ink = start[place] + share[place] / 2, readable_on(to_rgba(colour))
        axis.text(float(place), middle, two_digits(share[place]), ha="center", va="center", fontsize=7, color=ink, bbox=box)


def two_digits(value: float) -> str:
    """A number with two digits behind the point, and none before it where that is 0: .82, 1.00, -.05."""
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 0.995 else f"{value:.2f}"


def readable_on(colour: tuple[float, ...]) -> str:
    """Black or white, whichever is easier to read on a colour (red, green, blue, opacity, 0..1), by its luma (Rec. 601)."""
    red, green, blue, _ = colour
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "black"
