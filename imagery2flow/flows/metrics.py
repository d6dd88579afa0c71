"""Scores of predicted flows y' against observed flows y over a stated set of pairs (paper, Methods).

CPC = 2 sum min(y, y') / (sum y + sum y')      common part of commuters, 0..1, 1 is perfect
RMSE = sqrt(mean (y - y')^2)                   commuters
MAE = mean |y - y'|                            commuters
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from imagery2flow.flows.table import UNIVERSES


def cpc(observed: np.ndarray, predicted: np.ndarray) -> float:
    """Common part of commuters; NaN where nobody commutes in either."""
    total = observed.sum() + predicted.sum()
    return float(2 * np.minimum(observed, predicted).sum() / total) if total > 0 else float("nan")


def rmse(observed: np.ndarray, predicted: np.ndarray) -> float:
    """Root mean squared error, in commuters."""
    return float(np.sqrt(np.mean((observed - predicted) ** 2)))


def mae(observed: np.ndarray, predicted: np.ndarray) -> float:
    """Mean absolute error, in commuters."""
    return float(np.mean(np.abs(observed - predicted)))


SCORES = {"cpc": cpc, "rmse": rmse, "mae": mae}


def score(observed: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """All scores of one set of pairs."""
    return {name: function(observed, predicted) for name, function in SCORES.items()} | {"num_pairs": len(observed)}


def score_universes(observed: np.ndarray, predicted: np.ndarray) -> dict[str, dict[str, float]]:
    """Scores on the pairs of each universe that holds any."""
    chosen = {name: observed > minimum for name, minimum in UNIVERSES.items()}
    return {name: score(observed[mask], predicted[mask]) for name, mask in chosen.items() if mask.any()}


def score_table(scores: dict[str, dict[str, dict[str, float]]]) -> pd.DataFrame:
    """Scores by model and universe as a table: one row per model, columns ``<universe> <score>``."""
    rows = {
        model: {f"{universe} {name}": values[name] for universe, values in by_universe.items() for name in SCORES}
        for model, by_universe in scores.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def format_scores(scores: dict[str, dict[str, dict[str, float]]], title: str) -> str:
    """The table that a stage prints."""
    table = score_table(scores)
    pairs = ", ".join(f"{values['num_pairs']:,} pairs {name}" for name, values in next(iter(scores.values())).items())
    return f"{title} ({pairs})\n{table.to_string(float_format=lambda value: f'{value:.3f}')}"
