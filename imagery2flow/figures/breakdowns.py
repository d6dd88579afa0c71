"""CPC of one or several predictors by groups of origins and flows."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from imagery2flow.figures.style import GREY, LABEL_SIZE, LIGHT_GREY, legend_below, new_figure, series_styles, span

LABEL_WIDTH = 13  # characters of a group's name in one line


def cpc_by_population(tables: Mapping[str, pd.DataFrame], pooled: bool = False) -> Figure:
    """CPC by quantiles of the origins' population (figure 2d).

    Args:
        tables: By predictor, from ``flows.groups.population_groups``.
        pooled: Whether to show the pooled CPC of each group instead of the published mean and deviation over origins.

    Raises:
        ValueError: There is no predictor, or the predictors' groups differ.
    """
    return group_figure(tables, "origins by population, from the most populous (1) to the least", "origins", pooled)


def cpc_by_distance(tables: Mapping[str, pd.DataFrame], pooled: bool = False) -> Figure:
    """CPC of flows by distance (figure 2e): tables of ``flows.groups.distance_groups``, else as ``cpc_by_population``."""
    return group_figure(tables, "great-circle distance (km; a bin holds its upper limit)", "flows", pooled)


def cpc_by_intensity(tables: Mapping[str, pd.DataFrame], pooled: bool = False) -> Figure:
    """CPC of flows by the observed flow (figure 2f): tables of ``flows.groups.intensity_groups``, else as ``cpc_by_population``."""
    return group_figure(tables, "observed flow (commuters; a bin holds its upper limit)", "flows", pooled)


def cpc_by_group(tables: Mapping[str, pd.DataFrame], what: str = "land use of the origin", pooled: bool = False) -> Figure:
    """CPC of origins by a label of theirs, as bars (figures 4c and 4d).

    Args:
        tables: By predictor, from ``flows.groups.label_groups``.
        what: What the labels are, below the axis.
        pooled: Whether to show the pooled CPC of each group instead of the published mean and deviation over origins.

    Raises:
        ValueError: There is no predictor, or the predictors' groups differ.
    """
    return group_figure(tables, what, "origins", pooled, bars=True)


def group_figure(tables: Mapping[str, pd.DataFrame], what: str, items: str, pooled: bool, bars: bool = False) -> Figure:
    """CPC of each group, predictors side by side; a group without any origin or flow is a gap.

    Args:
        tables: By predictor: group, num, mean, std, pooled (``flows.groups``).
        what: What the groups are, below the axis.
        items: What is counted: origins or flows.
        pooled: Whether to show ``pooled``, else ``mean`` with ``std``.
        bars: Bars from 0, else points joined by lines, broken at gaps, where groups have an order.

    Raises:
        ValueError: There is no predictor, or the predictors' groups differ.
    """
    names = common_groups(tables)
    figure, (axis,) = new_figure(float(np.clip(1.5 + 0.75 * len(names), 4.5, 10)), 3.4)
    step = 0.8 / len(tables) if bars else min(0.14, 0.6 / len(tables))
    handles: list[Any] = []
    for number, (name, look) in enumerate(series_styles(tables).items()):
        x = np.arange(len(names)) + (number - (len(tables) - 1) / 2) * step
        height = tables[name]["pooled" if pooled else "mean"].to_numpy(float)
        spread = None if pooled else tables[name]["std"].to_numpy(float)
        if bars:
            handles.append(axis.bar(x, height, 0.92 * step, color=look["color"], label=name))
            axis.errorbar(x, height, spread, fmt="none", ecolor="black", elinewidth=0.8, capsize=2)
        else:
            handles.append(axis.errorbar(x, height, spread, **look, label=name, markersize=4, linewidth=1, elinewidth=0.8, capsize=2))
    axis.set_xticks(range(len(names)), group_labels(names, tables))
    axis.set(xlim=(-0.6, len(names) - 0.4), xlabel=what, ylabel=f"pooled CPC of the {'group' if items == 'origins' else 'bin'}")
    if not pooled:
        axis.set_ylabel(f"CPC (mean \N{PLUS-MINUS SIGN} sd over {items})")
    show_range(axis, bars, any(np.isfinite(table["mean"]).any() for table in tables.values()))
    legend_below(figure, handles, title=f"n = number of {items}; {span([int(table.num.sum()) for table in tables.values()])} in all")
    return figure


def common_groups(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Names of the groups, which all predictors share.

    Raises:
        ValueError: There is no predictor, or the predictors' groups differ.
    """
    if not tables:
        raise ValueError("no predictor is given; give one table or more")
    lists = {name: table.group.tolist() for name, table in tables.items()}
    first = next(iter(lists))
    for name, groups in lists.items():
        if groups != lists[first]:
            raise ValueError(
                f"the groups of {name} ({', '.join(groups)}) are not those of {first} ({', '.join(lists[first])}); group both alike"
            )
    return lists[first]


def group_labels(names: list[str], tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Names of the groups with their numbers, which can differ between predictors where a CPC is not defined."""
    numbers = np.stack([table.num.to_numpy(int) for table in tables.values()])  # [num_predictors, num_groups]
    return [f"{textwrap.fill(name, LABEL_WIDTH)}\nn = {span(number)}" for name, number in zip(names, numbers.T, strict=True)]


def show_range(axis: Axes, from_zero: bool, has_values: bool) -> None:
    """Limits of a CPC; a figure without a value says so."""
    if not has_values:
        axis.set_ylim(0, 1)
        axis.text(0.5, 0.5, "no pair of known flow", transform=axis.transAxes, ha="center", va="center", fontsize=LABEL_SIZE, color=GREY)
    elif from_zero:
        axis.set_ylim(0, max(1.0, axis.get_ylim()[1]))
    axis.yaxis.grid(True, color=LIGHT_GREY, linewidth=0.5)
    axis.set_axisbelow(True)
