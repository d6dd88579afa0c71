"""Concentration of jobs, calibration of predictors, and predictors beside their controls."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from imagery2flow.figures.style import COLOURS, CONSTANT, GREY, LIGHT_GREY, TITLE_SIZE, legend_below, new_figure, series_styles, span
from imagery2flow.flows.rank_size import rank_size

SCORE_NAMES = {"cpc": "CPC", "cpc_off_diagonal": "CPC between different units", "rmse": "RMSE (commuters)", "mae": "MAE (commuters)"}
UNIVERSE_NAMES = {"gt10": "pairs above 10 commuters", "positive": "all observed flows", "full": "all pairs, zeros too"}


def job_rank_size(flows: Mapping[str, pd.DataFrame]) -> Figure:
    """Jobs of units against their rank, one line per region, with the slope of its logarithms (figure 1b).

    Args:
        flows: By region: w_geocode, count (commuters; NaN where unknown): the pairs that are to count, such as those above 10.
    """
    figure, (axis,) = new_figure(6, 4)
    handles = []
    for name, look in series_styles(flows).items():
        table, slope = rank_size(flows[name])
        found = f"slope {slope:.2f}" if np.isfinite(slope) else "no slope"
        label = f"{name}: {found}, n = {len(table):,} units"
        handles += axis.plot(table["rank"], table.jobs, color=look["color"], linestyle=look["linestyle"], linewidth=1.2, label=label)
        if len(table) == 1:
            handles[-1].set_marker(look["marker"])
    axis.set(xscale="log", yscale="log", xlabel="rank of the unit by employment", ylabel="employment (commuters who work there)")
    legend_below(figure, handles, columns=2, title="slope: least squares of log10 employment on log10 rank")
    return figure


def calibration(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Mean observed against mean predicted flow in bins of the prediction, on logarithmic axes with the diagonal of a calibrated one.

    Args:
        tables: By predictor, from ``flows.breakdown.calibration``. Bins where either mean is 0 have no place and are counted in the legend.
    """
    figure, (axis,) = new_figure(4.4, 4.5)
    handles, drawn = [], []
    for name, look in series_styles(tables).items():
        table = tables[name]
        has_place = (table.mean_predicted > 0) & (table.mean_observed > 0)
        means = table.loc[has_place, ["mean_predicted", "mean_observed"]].to_numpy(float)  # [num_bins, 2]
        absent = int((~has_place & (table.num_pairs > 0)).sum())
        label = f"{name} (n = {table.num_pairs.sum():,} pairs" + (f"; {absent} of {len(table)} bins at 0)" if absent else ")")
        handles += axis.plot(means[:, 0], means[:, 1], **look, linewidth=1, markersize=4, label=label)
        drawn.append(means)
    low, high = limits(np.concatenate([np.empty((0, 2)), *drawn]))
    handles += axis.plot([low, high], [low, high], color="black", linewidth=0.8, linestyle=":", label="calibrated", zorder=1)
    axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
    axis.set(xlabel="mean predicted flow of the bin (commuters)", ylabel="mean observed flow of the bin (commuters)")
    for dimension in (axis.xaxis, axis.yaxis):
        dimension.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1_000 else (1,)))
        dimension.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
        dimension.set_minor_formatter(NullFormatter())
    bins = span([len(table) for table in tables.values()])
    legend_below(figure, handles, columns=1, title=f"{bins} bins of equal number of pairs, by the prediction")
    return figure


def limits(values: np.ndarray) -> tuple[float, float]:
    """Limits of a logarithmic axis around values above 0."""
    return (values.min() / 1.3, values.max() * 1.3) if values.size else (1.0, 10.0)


def controls_dots(scores: pd.DataFrame, score: str = "cpc") -> Figure:
    """A score of every predictor, one panel per universe of pairs: mean and deviation over seeds, each seed, and the constant as a line.

    Args:
        scores: universe, predictor, the score, one row per seed; also num_pairs if it is to be shown. Predictors are drawn from the top in
            their order. Of one split only.
        score: Name of the column.

    Raises:
        ValueError: There is no row, or there are rows of several splits.
    """
    if scores.empty or ("split" in scores and len(set(scores["split"])) > 1):
        raise ValueError(f"the table holds {len(scores)} rows of several splits or none; choose the rows of one split")
    universes = sorted(scores.universe.unique(), key=lambda name: (*UNIVERSE_NAMES, name).index(name))
    predictors = [name for name in scores.predictor.unique() if name != CONSTANT]
    height = 1.7 + 0.24 * len(predictors)
    figure, axes = new_figure(2.4 + 2.3 * len(universes), height, columns=len(universes), sharey=True)
    for axis, universe in zip(axes, universes, strict=True):
        draw_dots(axis, scores[scores.universe == universe], predictors, score)
        axis.set_title(panel_title(scores[scores.universe == universe], universe), fontsize=TITLE_SIZE)
        axis.set_xlabel(SCORE_NAMES.get(score, score))
    axes[0].set_yticks(range(len(predictors)), predictors)
    axes[0].set_ylim(len(predictors) - 0.5, -0.5)
    legend_below(figure, legend_of_dots(scores))
    return figure


def draw_dots(axis: Axes, scores: pd.DataFrame, predictors: list[str], score: str) -> None:
    """One panel: a row per predictor, empty where the universe has none."""
    for place, name in enumerate(predictors):
        values = scores.loc[scores.predictor == name, score].to_numpy(float)
        if not len(values):
            continue
        if len(values) > 1:
            axis.plot(values, np.full(len(values), place), ".", color=COLOURS[0], alpha=0.35, markersize=4, markeredgewidth=0)
        spread = values.std(ddof=1) if len(values) > 1 else 0.0
        axis.errorbar(values.mean(), place, xerr=spread or None, fmt="o", color=COLOURS[0], markersize=5, linewidth=1.2, capsize=2)
    level = scores.loc[scores.predictor == CONSTANT, score].to_numpy(float)
    if len(level):
        axis.axvline(level.mean(), color=GREY, linestyle="--", linewidth=1, zorder=1)
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.yaxis.grid(True, color=LIGHT_GREY, linewidth=0.5)
    axis.set_axisbelow(True)


def panel_title(scores: pd.DataFrame, universe: str) -> str:
    """Universe, number of seeds and of pairs."""
    lines = [UNIVERSE_NAMES.get(universe, universe)]
    if "num_pairs" in scores:
        lines.append(f"n = {span(scores.num_pairs.astype(int).tolist())} pairs")
    seeds = scores.groupby("predictor").size().max()
    return "\n".join([*lines, f"{seeds} seeds"] if seeds > 1 else lines)


def legend_of_dots(scores: pd.DataFrame) -> list[Line2D]:
    """What the signs of ``controls_dots`` mean."""
    several = scores.groupby(["universe", "predictor"]).size().max() > 1
    handles = [Line2D([], [], color=COLOURS[0], marker="o", linestyle="-" if several else "", label="score")]
    if several:
        handles[0].set_label("mean \N{PLUS-MINUS SIGN} sd over seeds")
        handles.append(Line2D([], [], color=COLOURS[0], marker=".", alpha=0.35, linestyle="", label="one seed"))
    if (scores.predictor == CONSTANT).any():
        handles.append(Line2D([], [], color=GREY, linestyle="--", label="best constant"))
    return handles
