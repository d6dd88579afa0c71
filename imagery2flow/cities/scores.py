"""Scores of what a model says of tiles: which city each lies in, and the city's indexes.

Names of dimensions: num_tiles, num_classes. Tiles have one true class t, probabilities p over the classes, and for indexes a true value y and a predicted one y'.
A score that its tiles leave undefined is NaN.

called class = the most probable one; of equal ones the first        so that a model that knows nothing is not right everywhere
accuracy = share of tiles whose called class is the true one         0..1
top-k accuracy = share of tiles whose true class is among the k most probable ones, of equal ones the first
recall of a class = share of its tiles that are called it            NaN without tiles
precision of a class = share of the tiles called it that lie in it   NaN where none is called it
F1 of a class = 2 TP / (2 TP + FP + FN)                              harmonic mean of the two; NaN without tiles
accuracy of a class = (TP + TN) / num_tiles                          share of tiles rightly told to be, or not to be, of the class
macro F1, mean recall = means over the classes that have tiles       every city counts as much, however many tiles it has
ECE = sum over bins of n_b / n |accuracy_b - confidence_b|           expected calibration error, 0..1, 0 is perfect [1]: confidence is the
                                                                     probability of the called class, bins are of equal width, open below
R2 = 1 - sum (y - y')^2 / sum (y - mean y)^2                         1 is perfect, 0 no better than the mean of the same y; may be below 0
RMSE = sqrt(mean (y - y')^2)                                         in the unit of the index
Spearman = Pearson correlation of the ranks, equal values sharing the mean of theirs      -1..1

[1] Guo et al. 2017, On calibration of modern neural networks, arXiv 1706.04599, equations 2, 3 and 5
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata

NAN = float("nan")


def called_class(probabilities: np.ndarray) -> np.ndarray:
    """Most probable class of each tile: probabilities [num_tiles, num_classes] -> [num_tiles] of int."""
    return probabilities.argmax(axis=1)


def top_k_accuracy(probabilities: np.ndarray, true: np.ndarray, k: int) -> float:
    """Share of tiles whose true class is among the k most probable ones; NaN without tiles.

    Args:
        probabilities: [num_tiles, num_classes].
        true: Position of the true class: [num_tiles] of int.
        k: 1 or more; with as many as there are classes everything is right.
    """
    of_true = probabilities[np.arange(len(true)), true][:, None]  # [num_tiles, 1]
    comes_first = np.arange(probabilities.shape[1]) < true[:, None]
    before = (probabilities > of_true) | ((probabilities == of_true) & comes_first)  # [num_tiles, num_classes]
    return float((before.sum(axis=1) < k).mean()) if len(true) else NAN


def confusion_matrix(true: np.ndarray, called: np.ndarray, num_classes: int) -> np.ndarray:
    """Number of tiles of each class (rows) that are called each class (columns): [num_classes, num_classes] of int."""
    return np.bincount(true * num_classes + called, minlength=num_classes**2).reshape(num_classes, num_classes)


def share_of_row(confusion: np.ndarray) -> np.ndarray:
    """Each row of a confusion matrix as shares of the tiles of that class; NaN for a class without tiles."""
    return divided(confusion, confusion.sum(axis=1, keepdims=True))


def divided(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Quotients, NaN where the divisor is 0."""
    part, whole = np.broadcast_arrays(part.astype(np.float64), whole.astype(np.float64))
    return np.divide(part, whole, out=np.full(part.shape, NAN), where=whole != 0)


def class_scores(confusion: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    """Scores of each class: index class; columns tiles, precision, recall, f1, accuracy.

    Args:
        confusion: [num_classes, num_classes], rows are true.
        names: Of the classes.
    """
    tiles, called, right = confusion.sum(axis=1), confusion.sum(axis=0), confusion.diagonal()
    return pd.DataFrame(
        {
            "tiles": tiles,
            "precision": divided(right, called),
            "recall": divided(right, tiles),
            "f1": np.where(tiles > 0, divided(2 * right, tiles + called), NAN),
            "accuracy": divided(tiles.sum() - tiles - called + 2 * right, tiles.sum()),
        },
        index=pd.Index(names, name="class"),
    )


def confused_pairs(confusion: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    """Pairs of classes that are taken for each other, those most often so first.

    Args:
        confusion: [num_classes, num_classes], rows are true.
        names: Of the classes.

    Returns:
        first, second; tiles_first_as_second, share_first_as_second (of the tiles of the first) and the other way round; symmetrised_share,
        the mean of the two shares, or the one that exists. Pairs that are never confused have no row.
    """
    share = share_of_row(confusion)
    first, second = np.triu_indices(len(confusion), k=1)
    confused = confusion[first, second] + confusion[second, first] > 0
    first, second = first[confused], second[confused]
    table = pd.DataFrame(
        {
            "first": np.asarray(names, dtype=object)[first],
            "second": np.asarray(names, dtype=object)[second],
            "tiles_first_as_second": confusion[first, second],
            "share_first_as_second": share[first, second],
            "tiles_second_as_first": confusion[second, first],
            "share_second_as_first": share[second, first],
        }
    )
    table["symmetrised_share"] = table[["share_first_as_second", "share_second_as_first"]].mean(axis=1)
    return table.sort_values(["symmetrised_share", "first", "second"], ascending=[False, True, True], ignore_index=True)


def calibration_bins(confidence: np.ndarray, right: np.ndarray, num_bins: int) -> pd.DataFrame:
    """Tiles by their confidence, in bins of equal width that hold their upper end.

    Args:
        confidence: Probability of the called class, 0..1: [num_tiles].
        right: Whether it is the true one: [num_tiles] of bool.
        num_bins: 1 or more.

    Returns:
        One row per bin: lower, upper, tiles, mean_confidence, accuracy; the last two NaN where the bin is empty.
    """
    edges = np.linspace(0, 1, num_bins + 1)
    place = np.clip(np.digitize(confidence, edges, right=True) - 1, 0, num_bins - 1)  # [num_tiles]
    tiles = np.bincount(place, minlength=num_bins)
    return pd.DataFrame(
        {
            "lower": edges[:-1],
            "upper": edges[1:],
            "tiles": tiles,
            "mean_confidence": divided(np.bincount(place, confidence, num_bins), tiles),
            "accuracy": divided(np.bincount(place, right, num_bins), tiles),
        }
    )


def calibration_error(bins: pd.DataFrame) -> float:
    """Expected calibration error of the table of ``calibration_bins``; NaN without tiles."""
    gap = (bins.accuracy - bins.mean_confidence).abs().fillna(0.0)
    return float((bins.tiles * gap).sum() / bins.tiles.sum()) if bins.tiles.sum() else NAN


def all_class_scores(probabilities: np.ndarray, true: np.ndarray, top_k: int, num_bins: int) -> dict[str, float]:
    """Every score of the module of one set of tiles.

    Args:
        probabilities: Rows sum to 1: [num_tiles, num_classes].
        true: Position of the true class: [num_tiles] of int.
        top_k: 1 or more.
        num_bins: Of the calibration error.

    Returns:
        num_tiles, num_classes, accuracy, ``top_<k>_accuracy``, macro_f1, mean_recall, ece, mean_confidence, and as what they are read against
        accuracy_of_most_common_class: what a model reaches that calls every tile so.
    """
    confusion = confusion_matrix(true, called_class(probabilities), probabilities.shape[1])
    by_class = class_scores(confusion, [str(number) for number in range(len(confusion))])
    confidence, right = probabilities.max(axis=1, initial=0.0), called_class(probabilities) == true
    return {
        "num_tiles": len(true),
        "num_classes": len(confusion),
        "accuracy": float(right.mean()) if len(true) else NAN,
        f"top_{top_k}_accuracy": top_k_accuracy(probabilities, true, top_k),
        "macro_f1": float(by_class.f1.mean()),
        "mean_recall": float(by_class.recall.mean()),
        "ece": calibration_error(calibration_bins(confidence, right, num_bins)),
        "mean_confidence": float(confidence.mean()) if len(true) else NAN,
        "accuracy_of_most_common_class": float(by_class.tiles.max() / len(true)) if len(true) else NAN,
    }


def r2(observed: np.ndarray, predicted: np.ndarray) -> float:
    """Coefficient of determination; NaN where what was observed is constant."""
    if len(observed) == 0 or np.ptp(observed) == 0:  # asked of the values: deviations from a rounded mean need not be 0
        return NAN
    return float(1 - ((observed - predicted) ** 2).sum() / ((observed - observed.mean()) ** 2).sum())


def rmse(observed: np.ndarray, predicted: np.ndarray) -> float:
    """Root mean squared error, in the unit of the values; NaN without any."""
    return float(np.sqrt(np.mean((observed - predicted) ** 2))) if len(observed) else NAN


def spearman(observed: np.ndarray, predicted: np.ndarray) -> float:
    """Rank correlation, -1..1; NaN where either is constant."""
    if len(observed) == 0 or np.ptp(observed) == 0 or np.ptp(predicted) == 0:
        return NAN
    x, y = (rankdata(values) - (len(values) + 1) / 2 for values in (observed, predicted))
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1.0, 1.0))
