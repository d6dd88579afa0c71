"""What is found out of cities: held together, written, and printed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from imagery2flow.cities.similarity import PlanarMap
from imagery2flow.run.files import save_figure, write_json
from imagery2flow.run.tables import write_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFUSION, COSINE, FRECHET = "confusion", "cosine", "frechet"
SIMILARITY_FILE = "city_similarity_"
TABLES = ("scores_by_class", "confusion", "confused_pairs", "calibration", "looks_like", "index_scores", "index_by_city")
FIGURES = ("confusion", "reliability", "dendrogram", "city_map", "index_by_city")
ROWS_PRINTED = 5


@dataclass
class CityResults:
    """Everything that the command finds out; a part that its inputs do not allow is absent.

    Attributes:
        metrics: For metrics.json, by part: cities, similarity, indexes.
        tables: By file name without its suffix, one of ``TABLES``.
        similarity: By measure: a square table of cities, by name in both directions; NaN where the measure says nothing.
        distances: By measure: the same as distances, of the cities only that it knows.
        maps: By measure: those cities in a plane.
    """

    metrics: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    similarity: dict[str, pd.DataFrame] = field(default_factory=dict)
    distances: dict[str, pd.DataFrame] = field(default_factory=dict)
    maps: dict[str, PlanarMap] = field(default_factory=dict)


def write_results(results: CityResults, figures: Mapping[str, Figure], folder: Path) -> None:
    """Writes tables, figures and metrics.json; what an earlier run left there and this one does not make is removed."""
    tables = results.tables | {
        SIMILARITY_FILE + name: table.rename_axis("city_name").reset_index() for name, table in results.similarity.items()
    }
    names = {f"{name}.csv" for name in (*TABLES, *(SIMILARITY_FILE + name for name in (CONFUSION, COSINE, FRECHET)))} | {
        f"{name}.png" for name in FIGURES
    }
    for name in names | {"metrics.json"}:
        (folder / name).unlink(missing_ok=True)
    for name, table in tables.items():
        write_table(folder / f"{name}.csv", table)
    for name, figure in figures.items():
        save_figure(folder / f"{name}.png", figure)
    write_json(folder / "metrics.json", results.metrics)


def as_text(results: CityResults) -> str:
    """What the command prints: scores, the pairs most confused, what unseen cities look like, scores of indexes."""
    parts = []
    if "cities" in results.metrics:
        numbers = {name.replace("_", " "): value for name, value in results.metrics["cities"].items()}
        parts.append(
            "\n".join(f"{name:<30} {value:,}" if isinstance(value, int) else f"{name:<30} {value:.3f}" for name, value in numbers.items())
        )
    for name, title in (("confused_pairs", "most confused pairs"), ("looks_like", "cities never seen"), ("index_scores", "indexes")):
        table = results.tables.get(name, pd.DataFrame())
        if name == "confused_pairs":
            table = table.head(ROWS_PRINTED)
        elif name == "looks_like" and len(table):
            table = table.groupby("city").head(ROWS_PRINTED)
        if len(table):
            parts.append(f"{title}\n{table.to_string(index=False, float_format=lambda value: f'{value:.3f}', na_rep='')}")
    return "\n\n".join(parts)
