"""What the map of a report draws, as JSON: outlines in whole numbers, flows and columns as typed arrays in base64.

``report/data.js`` reads it. Numbers are little-endian. Names of dimensions: num_units, num_rings, num_vertices, num_pairs.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from imagery2flow.figures.report_columns import UnitColumn
from imagery2flow.figures.report_data import NAMES, OBSERVED, ReportRun
from imagery2flow.flows.graph import centroid_degrees
from imagery2flow.run.stage import Ledger

TOLERANCE_SHARE = 0.02  # of the side of a typical unit, by which outlines may move: less than a pixel until one unit fills the map
LARGEST_STEP = 65_535  # coordinates are 16 bits: 1 m in a region of 65 km
TEXT_COLUMNS_SHOWN = 6
TOP_SHARE = 0.9999  # of the flows; a few outliers would leave all others in the lowest class


def map_content(run: ReportRun, columns: Sequence[UnitColumn], largest_flows: int, ledger: Ledger) -> dict[str, Any]:
    """Everything that the map needs.

    Args:
        run: What is shown.
        columns: Numbers of units to choose from.
        largest_flows: Most pairs that are drawn; of more the largest.
        ledger: Takes how many pairs are not drawn.

    Returns:
        units (ids, centroids, outlines, texts), flows, columns: an object that JSON can hold.
    """
    pairs = largest(run, largest_flows, ledger)
    return {
        "units": units_content(run.units),
        "flows": flows_content(run, pairs),
        "columns": [
            {"name": column.name, "group": column.group, "diverging": column.diverging, "values": packed(column.values, "<f4")}
            for column in columns
        ],
    }


def largest(run: ReportRun, most: int, ledger: Ledger) -> pd.DataFrame:
    """The pairs with the largest flow, observed or by any decoder; equal ones by their ids."""
    if len(run.pairs) <= most:
        return run.pairs
    volume = run.pairs[[OBSERVED, *run.decoders]].max(axis=1)
    kept = volume.sort_values(ascending=False, kind="stable").index[:most]
    ledger.note(
        f"the map holds the {most:,} largest of {len(run.pairs):,} pairs (those of {volume[kept[-1]]:.3g} commuters and more; --largest_flows); totals and scores are of all"
    )
    return run.pairs.loc[kept.sort_values()]


def flows_content(run: ReportRun, pairs: pd.DataFrame) -> dict[str, Any]:
    """Pairs sorted by origin: where each origin begins [num_units + 1], destinations and flows [num_pairs], and how far scales of lines reach."""
    between = pairs[pairs.origin != pairs.destination]
    differences = between[list(run.decoders)].sub(between[OBSERVED], axis=0)
    start = np.searchsorted(pairs.origin.to_numpy(), np.arange(len(run.units) + 1))
    return {
        "start": packed(start, "<u4"),
        "destination": packed(pairs.destination, "<u4"),
        "observed": packed(pairs[OBSERVED], "<f4") if run.has_observed else None,
        "predicted": [{"name": NAMES.get(name, name), "values": packed(pairs[name], "<f4")} for name in run.decoders],
        "top_flow": top(between[[OBSERVED, *run.decoders]]),
        "top_difference": top(differences.abs()),
    }


def top(flows: pd.DataFrame) -> float:
    """What all but the largest flows of every column stay below; 0 where none is known."""
    tops = flows.quantile(TOP_SHARE)
    return 0.0 if tops.isna().all() else float(tops.max())


def units_content(units: gpd.GeoDataFrame) -> dict[str, Any]:
    """Ids, centroids in degrees and on the map, outlines, and the file's first columns of text."""
    longitude, latitude = centroid_degrees(units.geometry)
    left, bottom, right, top = units.total_bounds
    step_m = max(right - left, top - bottom, 1.0) / LARGEST_STEP
    centroid = units.geometry.centroid
    vertices, ring_start, unit_start = outlines(units, step_m)
    texts = [name for name in units.columns.drop(units.geometry.name) if is_text(units[name])]
    return {
        "ids": list(units.index),
        "longitude": packed(longitude, "<f8"),
        "latitude": packed(latitude, "<f8"),
        "x": packed((centroid.x - left) / step_m, "<f4"),
        "y": packed((top - centroid.y) / step_m, "<f4"),
        "step_m": step_m,
        "width": (right - left) / step_m,
        "height": (top - bottom) / step_m,
        "vertices": packed(vertices, "<u2"),
        "ring_start": packed(ring_start, "<u4"),
        "unit_start": packed(unit_start, "<u4"),
        "texts": [{"name": str(name), "values": units[name].fillna("").astype(str).tolist()} for name in texts[:TEXT_COLUMNS_SHOWN]],
    }


def is_text(column: pd.Series) -> bool:
    """Whether a column says something of units in words; their ids stand there anyway."""
    return not pd.api.types.is_numeric_dtype(column) and not (column.astype(str) == column.index).all()


def outlines(units: gpd.GeoDataFrame, step_m: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Simplified rings in steps from the upper left corner.

    Args:
        units: Polygons in a projected CRS.
        step_m: Metres of a step, so that no coordinate exceeds 16 bits.

    Returns:
        Vertices [num_vertices, 2]; where each ring begins among them [num_rings + 1]; where each unit begins among the rings [num_units + 1].
    """
    left, _, _, top = units.total_bounds
    shapes = simplified(units.geometry.to_numpy())
    parts, part_unit = shapely.get_parts(shapes, return_index=True)
    rings, ring_part = shapely.get_rings(parts, return_index=True)
    points, point_ring = shapely.get_coordinates(rings, return_index=True)
    vertices = np.rint((points - [left, top]) * [1, -1] / step_m).clip(0, LARGEST_STEP).astype(np.int64)
    # Neighbours that fell on one step say nothing; the last vertex of a ring repeats its first.
    same = (np.diff(vertices, axis=0) == 0).all(axis=1) & (np.diff(point_ring) == 0)
    kept = np.concatenate([[True], ~same])
    ring_start = np.searchsorted(point_ring[kept], np.arange(len(rings) + 1))
    unit_start = np.searchsorted(part_unit[ring_part], np.arange(len(units) + 1))
    return vertices[kept], ring_start, unit_start


def simplified(shapes: np.ndarray) -> np.ndarray:
    """Outlines with fewer vertices; borders between neighbours stay common where shapely can do that (2.1 and newer)."""
    tolerance_m = TOLERANCE_SHARE * float(np.sqrt(np.median(shapely.area(shapes))))
    if hasattr(shapely, "coverage_simplify"):
        return np.asarray(shapely.coverage_simplify(shapes, tolerance_m))
    return np.asarray(shapely.simplify(shapes, tolerance_m, preserve_topology=True))


def packed(values: Any, kind: str) -> str:
    """Numbers in base64, row by row."""
    return base64.b64encode(np.ascontiguousarray(np.asarray(values).astype(kind)).tobytes()).decode("ascii")
