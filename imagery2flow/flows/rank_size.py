"""How employment concentrates: the jobs of units against their rank, the largest first, and the slope of that in logarithms.

The jobs of a unit are the commuters who work there, so that both follow from the flows alone. A slope of -1 is Zipf's law; the steeper, the
more of a region's jobs lie in few units.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import rankdata


def rank_size(flows: pd.DataFrame) -> tuple[pd.DataFrame, float]:
    """Jobs and rank of each unit where anybody works, and the slope of ``rank_size_slope``.

    Args:
        flows: w_geocode, count (commuters; NaN where unknown, which counts as nobody): the pairs that are to count, such as those above 10.

    Returns:
        Columns geocode, jobs (commuters, above 0), rank (1 is the largest, the mean rank where jobs are equal), by rank and then by id; and
        the slope.
    """
    jobs = flows.groupby("w_geocode")["count"].sum()
    jobs = jobs[jobs > 0]
    table = pd.DataFrame({"geocode": jobs.index.to_numpy(object), "jobs": jobs.to_numpy(float), "rank": ranks(jobs.to_numpy(float))})
    table = table.sort_values(["rank", "geocode"], ignore_index=True)
    return table, rank_size_slope(table.jobs.to_numpy())


def rank_size_slope(jobs: np.ndarray) -> float:
    """Slope of the least-squares line of log10 jobs on log10 rank.

    Args:
        jobs: Jobs of each unit, 0 or more, in any order; units without a job have no logarithm and no rank: [num_units].

    Returns:
        The slope, usually below 0; NaN where fewer than two ranks differ.
    """
    jobs = jobs[jobs > 0]
    x, y = np.log10(ranks(jobs)), np.log10(jobs)
    if len(x) == 0 or np.ptp(x) == 0:
        return np.nan
    x = x - x.mean()
    return float(x @ y / (x @ x))


def ranks(jobs: np.ndarray) -> np.ndarray:
    """Rank of each unit, 1 for the most jobs; equal jobs share the mean of their ranks: [num_units]."""
    return rankdata(-jobs, method="average")
