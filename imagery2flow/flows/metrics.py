"""Scores of predicted flows y' against observed flows y over a stated set of pairs.

Names of dimensions: num_pairs. Flows are in commuters, y a count and y' any number of 0 or more; a score that its pairs leave undefined is NaN.

CPC = 2 sum min(y, y') / (sum y + sum y')                       common part of commuters, 0..1, 1 is perfect [1]
CPC off the diagonal = CPC of the pairs of two different units  what is left without the easy flow within a unit
RMSE = sqrt(mean (y - y')^2)                                    commuters
MAE = mean |y - y'|                                             commuters
MAPE = mean |y - y'| / y over the pairs with y > 0              a fraction, not percent [2]
CPL = 2 sum 1[y > 0] 1[y' >= .5] / (sum 1[y > 0] + sum 1[y' >= .5])
                                                                common part of links, 0..1 [3, there 1[y' > 0]]. Predictions are real
                                                                numbers, hardly ever 0: a link is one that rounds to a commuter
JSD(p, q) = KL(p, m) / 2 + KL(q, m) / 2, m = (p + q) / 2        Jensen-Shannon divergence, bits, 0..1, 0 is perfect [4]:
  of the flow: p = y / sum y, q = y' / sum y'                   who goes where, whatever the totals
  of the distance: p and q summed within bins of distance       how far people go: 50 equal bins from 0 to the largest distance of the
                                                                pairs, so that it compares predictors on the same pairs, not regions
r = Pearson correlation of log(y + 1) and log(y' + 1)           -1..1; + 1 admits zeros
skill = 1 - (1 - CPC) / (1 - CPC of the constant)               1 is perfect, 0 no better than the constant, below 0 worse [5]

[1] Paper, Methods; Lenormand et al. 2012, doi 10.1371/journal.pone.0045985
[2] Hyndman and Koehler 2006, section 2.2, doi 10.1016/j.ijforecast.2006.03.001
[3] Lenormand, Bassolas and Ramasco 2016, doi 10.1016/j.jtrangeo.2015.12.008
[4] Lin 1991, doi 10.1109/18.61115
[5] The general skill score of Murphy 1988, doi 10.1175/1520-0493(1988)116<2417:SSBOTM>2.0.CO;2, with CPC for the accuracy
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import rel_entr

LINK_MINIMUM = 0.5  # commuters; the smallest prediction that rounds to one
NUM_DISTANCE_BINS = 50


@dataclass(frozen=True)
class ScoredPairs:
    """Pairs with what was observed and what was predicted for them.

    Attributes:
        observed: Commuters, 0 or more; pairs of unknown flow are left out before: [num_pairs].
        predicted: Commuters, 0 or more: [num_pairs].
        distance_m: Metres between the two units, 0 or more: [num_pairs].
        same_unit: Whether origin and destination are one unit: [num_pairs] of bool.
    """

    observed: np.ndarray
    predicted: np.ndarray
    distance_m: np.ndarray
    same_unit: np.ndarray

    def __post_init__(self) -> None:
        assert self.observed.shape == self.predicted.shape == self.distance_m.shape == self.same_unit.shape == (len(self.observed),)
        assert self.same_unit.dtype == bool, "same_unit selects pairs as a mask; numbers would select positions"
        for name in ("observed", "predicted", "distance_m"):
            values = getattr(self, name)
            assert np.isfinite(values).all() and (values >= 0).all(), f"{name} must be finite and 0 or more"

    def __len__(self) -> int:
        return len(self.observed)

    def select(self, chosen: np.ndarray) -> ScoredPairs:
        """The pairs of a mask or of positions."""
        return ScoredPairs(self.observed[chosen], self.predicted[chosen], self.distance_m[chosen], self.same_unit[chosen])


def cpc(observed: np.ndarray, predicted: np.ndarray) -> float:
    """Common part of commuters; NaN where nobody commutes in either."""
    total = observed.sum() + predicted.sum()
    return float(2 * np.minimum(observed, predicted).sum() / total) if total > 0 else np.nan


def rmse(observed: np.ndarray, predicted: np.ndarray) -> float:
    """Root mean squared error, in commuters; NaN without pairs."""
    return float(np.sqrt(np.mean((observed - predicted) ** 2))) if len(observed) else np.nan


def mae(observed: np.ndarray, predicted: np.ndarray) -> float:
    """Mean absolute error, in commuters; NaN without pairs."""
    return float(np.mean(np.abs(observed - predicted))) if len(observed) else np.nan


def mape(observed: np.ndarray, predicted: np.ndarray) -> float:
    """Mean absolute error relative to the observed flow, as a fraction; NaN where nobody was observed."""
    positive = observed > 0
    return float(np.mean(np.abs(observed[positive] - predicted[positive]) / observed[positive])) if positive.any() else np.nan


def cpl(observed: np.ndarray, predicted: np.ndarray) -> float:
    """Common part of links, 0..1; NaN where neither has a link.

    Among pairs chosen for their positive flow it only tells how many were predicted; it means most on all pairs.
    """
    link, predicted_link = observed > 0, predicted >= LINK_MINIMUM
    num_links = link.sum() + predicted_link.sum()
    return float(2 * (link & predicted_link).sum() / num_links) if num_links else np.nan


def jensen_shannon(observed: np.ndarray, predicted: np.ndarray) -> float:
    """Jensen-Shannon divergence of the shares of two sets of masses [num_cells], in bits, 0..1; NaN where either has no mass."""
    observed_total, predicted_total = observed.sum(), predicted.sum()
    if not (observed_total > 0 and predicted_total > 0):
        return np.nan
    p, q = observed / observed_total, predicted / predicted_total
    # KL(p, m) = KL(2p, p + q) / 2; the sum, unlike the mean m, cannot round a tiny share down to 0.
    total = p + q
    bits = (rel_entr(2 * p, total) + rel_entr(2 * q, total)).sum() / (4 * np.log(2))
    return float(np.clip(bits, 0.0, 1.0))  # rounding may leave the range by 1e-16


def distance_bins(distance_m: np.ndarray) -> np.ndarray:
    """Bin of each pair, 0 to 49, among equal bins from 0 to the largest distance, which itself lies in the last: [num_pairs] of int."""
    largest_m = distance_m.max(initial=0.0)
    if largest_m == 0:
        return np.zeros(len(distance_m), dtype=np.int64)
    return np.minimum((distance_m / largest_m * NUM_DISTANCE_BINS).astype(np.int64), NUM_DISTANCE_BINS - 1)


def jsd_distance(pairs: ScoredPairs) -> float:
    """Jensen-Shannon divergence of the distances that commuters travel, in bits, 0..1; NaN where nobody commutes in either."""
    bins = distance_bins(pairs.distance_m)
    return jensen_shannon(
        np.bincount(bins, pairs.observed, minlength=NUM_DISTANCE_BINS), np.bincount(bins, pairs.predicted, minlength=NUM_DISTANCE_BINS)
    )


def r_log(observed: np.ndarray, predicted: np.ndarray) -> float:
    """Pearson correlation of log(flow + 1), -1..1; NaN where either is constant."""
    y, x = np.log1p(observed), np.log1p(predicted)
    # Asked of the values: the deviations of a constant from its rounded mean need not be 0.
    if len(y) == 0 or np.ptp(y) == 0 or np.ptp(x) == 0:
        return np.nan
    y, x = y - y.mean(), x - x.mean()
    spread = np.linalg.norm(y) * np.linalg.norm(x)  # 0 for deviations so small that their squares are
    return float(np.clip(y @ x / spread, -1.0, 1.0)) if spread > 0 else np.nan


def skill(model_cpc: float, constant_cpc: float | None) -> float:
    """Share of what the constant leaves of a perfect CPC that the model gains; both CPC are of the same pairs.

    NaN where no constant is given or the constant is perfect.
    """
    return np.nan if constant_cpc is None or constant_cpc >= 1 else 1 - (1 - model_cpc) / (1 - constant_cpc)


def all_scores(pairs: ScoredPairs, constant_cpc: float | None = None) -> dict[str, float]:
    """Every score of the module on one set of pairs, NaN where undefined.

    Args:
        pairs: What is scored.
        constant_cpc: CPC of the best constant on the same pairs, or None: the skill is NaN then.

    Returns:
        cpc, cpc_off_diagonal, rmse, mae, mape, cpl, jsd_flow, jsd_distance, r_log, skill, num_pairs.
    """
    flows = pairs.observed, pairs.predicted
    apart = ~pairs.same_unit
    return {
        "cpc": cpc(*flows),
        "cpc_off_diagonal": cpc(pairs.observed[apart], pairs.predicted[apart]),
        "rmse": rmse(*flows),
        "mae": mae(*flows),
        "mape": mape(*flows),
        "cpl": cpl(*flows),
        "jsd_flow": jensen_shannon(*flows),
        "jsd_distance": jsd_distance(pairs),
        "r_log": r_log(*flows),
        "skill": skill(cpc(*flows), constant_cpc),
        "num_pairs": len(pairs),
    }


SCORES = {"cpc": cpc, "rmse": rmse, "mae": mae}


def score(observed: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """All scores of one set of pairs."""
    return {name: function(observed, predicted) for name, function in SCORES.items()} | {"num_pairs": len(observed)}


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
