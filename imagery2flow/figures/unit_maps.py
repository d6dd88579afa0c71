"""Maps of one value or colour per unit: errors of origins, and embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import geopandas as gpd
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from imagery2flow.encoder.similarity import principal_components
from imagery2flow.figures.cartography import absent_handle, draw_absent, draw_values, map_panels, title_panel
from imagery2flow.figures.style import LABEL_SIZE, TICK_SIZE, legend_below

OriginError = Literal["cpc", "outflow"]
STRETCH_PERCENT = (2.0, 98.0)
SMALLEST_RANGE = 0.01  # of a colour bar


def origin_error_map(origins: Mapping[str, pd.DataFrame], units: gpd.GeoSeries, error: OriginError = "cpc") -> Figure:
    """How well the flows out of each unit are predicted, one panel per predictor with one scale (figures 4a and 4b).

    The paper does not say which error it maps. The scale runs between the 2nd and 98th percentile of all panels; what lies beyond has the
    colour of the end, and the bar a point there.

    Args:
        origins: By predictor: geocode, observed, predicted, cpc (``flows.breakdown.by_origin``).
        units: Index geocode, polygons; those without a value are hatched.
        error: ``cpc``, or ``outflow``: predicted less observed outflow, relative to the observed.
    """
    values = {name: error_of(table, error).reindex(units.index).to_numpy(float) for name, table in origins.items()}
    mappable, extend = error_scale(np.concatenate(list(values.values())), error)
    figure, axes = map_panels(units, len(values), colour_bar=True)
    for axis, (name, value) in zip(axes, values.items(), strict=False):
        draw_values(axis, units, value, mappable)
        title_panel(axis, f"{name}\nn = {np.isfinite(value).sum():,} of {len(units):,} units")
    bar = figure.colorbar(mappable, cax=axes[-1], extend=extend)
    label = "CPC of the flows\nout of the unit" if error == "cpc" else "(predicted - observed)\n/ observed outflow"
    bar.set_label(label, fontsize=LABEL_SIZE)
    bar.ax.tick_params(labelsize=TICK_SIZE)
    if any(np.isnan(value).any() for value in values.values()):
        legend_below(figure, [absent_handle("no scored flow out of the unit: learned from, or nobody commutes")])
    return figure


def error_of(table: pd.DataFrame, error: OriginError) -> pd.Series:
    """The error by geocode; NaN where it is not defined."""
    table = table.set_index("geocode")
    if error == "cpc":
        return table.cpc
    return (table.predicted - table.observed) / table.observed.where(table.observed > 0)


def error_scale(values: np.ndarray, error: OriginError) -> tuple[ScalarMappable, str]:
    """Colours, and which ends of their bar have a point: a relative error has its middle at 0."""
    values = values[np.isfinite(values)]
    if error == "outflow":
        high = float(np.percentile(np.abs(values), STRETCH_PERCENT[1])) if len(values) else 1.0
        low, high, colours = -max(high, SMALLEST_RANGE), max(high, SMALLEST_RANGE), "PuOr_r"
    else:
        low, high = (float(limit) for limit in np.percentile(values, STRETCH_PERCENT)) if len(values) else (0.0, 1.0)
        low, high, colours = (
            (low, high, "cividis") if high - low >= SMALLEST_RANGE else (low - SMALLEST_RANGE, high + SMALLEST_RANGE, "cividis")
        )
    ends = ("neither", "min", "max", "both")[int((values < low).any()) + 2 * int((values > high).any())]
    return ScalarMappable(Normalize(low, high), colours), ends


def embedding_rgb_map(vectors: pd.DataFrame, units: gpd.GeoSeries) -> Figure:
    """Units coloured by the first three principal components of their vectors as red, green and blue: like colours, like vectors.

    Args:
        vectors: Index geocode, one column per dimension, no NaN; columns are standardised. Each component is stretched between two
            percentiles of its units.
        units: Index geocode, polygons; those without a vector are hatched.
    """
    components, share = principal_components(vectors.to_numpy(float), 3)  # [num_vectors, 3], [3]
    low, high = np.percentile(components, STRETCH_PERCENT, axis=0)
    varies = high > low
    colours = np.full(components.shape, 0.5)
    colours[:, varies] = np.clip((components[:, varies] - low[varies]) / (high - low)[varies], 0, 1)
    shown = units.index.intersection(vectors.index)
    figure, (axis,) = map_panels(units, 1)
    units.loc[shown].plot(ax=axis, color=colours[vectors.index.get_indexer(shown)], edgecolor="white", linewidth=0.1, aspect=None)
    absent = units[~units.index.isin(shown)]
    draw_absent(axis, absent)
    title_panel(axis, f"principal components of {vectors.shape[1]:,} dimensions\nn = {len(shown):,} of {len(units):,} units")
    names = ("red", "green", "blue")
    handles = [
        Patch(color=name if name != "green" else "lime", label=f"{name}: component {n + 1} ({share[n]:.0%})")
        for n, name in enumerate(names)
    ]
    legend_below(
        figure, [*handles, *([absent_handle("no vector")] if len(absent) else [])], columns=2, title="share of the variance in brackets"
    )
    return figure
