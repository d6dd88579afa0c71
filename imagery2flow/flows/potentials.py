"""How many leave and how many arrive at a unit, predicted from its features alone: the margins that a gravity law needs and no image shows.

Of each unit of the training pairs log(1 + outflow) and log(1 + inflow) are known. A Gaussian process (Rasmussen and Williams 2006, ch. 2, radial kernel
and noise) predicts them from the unit's features. Trees that read a prediction fitted to the very unit would trust it too much, so that for units of the
training pairs it comes from the other four fifths of them (cross-fitting); for any other unit, of this city or another, from all.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import cdist
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from imagery2flow.flows.table import FlowTable

SIDES = ("outflow", "inflow")
FOLDS = 5
MOST_UNITS = 1000  # that a process is fitted to: its cost grows with their cube
MOST_TUNING_UNITS = 400  # that its kernel is chosen on


@dataclass(frozen=True)
class Process:
    """The mean of a fitted Gaussian process: m + s k(x, X) w, with k(x, z) = v exp(-|x - z|^2 / 2 l^2).

    Attributes:
        inputs: X [num_fitted, dim].
        weight: w [num_fitted].
        variance: v.
        length: l.
        mean: m.
        scale: s.
    """

    inputs: np.ndarray
    weight: np.ndarray
    variance: float
    length: float
    mean: float
    scale: float

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Values of units: [num_units, dim] -> [num_units]."""
        return self.mean + self.scale * (kernel(features, self.inputs, self.variance, self.length) @ self.weight)


def kernel(left: np.ndarray, right: np.ndarray, variance: float, length: float) -> np.ndarray:
    """V exp(-|x - z|^2 / 2 l^2): [num_left, dim], [num_right, dim] -> [num_left, num_right]."""
    return variance * np.exp(-0.5 * cdist(left, right, "sqeuclidean") / length**2)


def choose_kernel(features: np.ndarray, values: np.ndarray) -> tuple[float, float, float]:
    """Variance, length and noise of the largest marginal likelihood, for values of zero mean and unit deviation."""
    start = ConstantKernel(1.0, (1e-3, 1e3)) * RBF(np.sqrt(features.shape[1]), (1e-1, 1e3)) + WhiteKernel(0.3, (1e-3, 1e1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a value at the edge of its range is as good as beyond it
        chosen = GaussianProcessRegressor(start).fit(features, values).kernel_
    return float(chosen.k1.k1.constant_value), float(chosen.k1.k2.length_scale), float(chosen.k2.noise_level)


def fit_process(features: np.ndarray, values: np.ndarray, shape: tuple[float, float, float]) -> Process:
    """Fits the process with a chosen variance, length and noise: [num_units, dim], [num_units]."""
    variance, length, noise = shape
    mean, scale = values.mean(), max(values.std(), 1e-9)
    matrix = kernel(features, features, variance, length) + noise * np.eye(len(features))
    return Process(features, cho_solve(cho_factor(matrix), (values - mean) / scale), variance, length, float(mean), float(scale))


@dataclass(frozen=True)
class Potentials:
    """Predicted log(1 + outflow) and log(1 + inflow).

    Attributes:
        processes: For outflow and inflow, fitted to all units of the training pairs.
        crossed: Cross-fitted values of those units, NaN for the others [num_units, 2].
    """

    processes: tuple[Process, Process]
    crossed: np.ndarray

    def of(self, features: np.ndarray) -> np.ndarray:
        """Of units of another region [num_units, dim]: [num_units, 2]."""
        return np.stack([process.predict(features) for process in self.processes], axis=1)

    def of_source(self, features: np.ndarray) -> np.ndarray:
        """Of the units of the source region, in their order [num_units, dim]: [num_units, 2]."""
        return np.where(np.isnan(self.crossed), self.of(features), self.crossed)


def fit_potentials(features: np.ndarray, train: FlowTable, random: np.random.Generator) -> Potentials:
    """Learns potentials from the training pairs.

    Args:
        features: Scaled features of the source region's units [num_units, dim].
        train: Training pairs between them.
        random: Source of randomness.
    """
    num_units = len(features)
    crossed = np.full((num_units, len(SIDES)), np.nan)
    processes = []
    for side, unit in enumerate((train.origin, train.destination)):
        total = np.log1p(np.bincount(unit, train.count, minlength=num_units))
        units = random.permutation(np.unique(unit))
        tuning = units[:MOST_TUNING_UNITS]
        shape = choose_kernel(features[tuning], standardised(total[tuning]))
        for fold in np.array_split(units, min(FOLDS, len(units))):
            others = np.setdiff1d(units, fold, assume_unique=True)
            if len(others):
                fitted = random.permutation(others)[:MOST_UNITS]
                crossed[fold, side] = fit_process(features[fitted], total[fitted], shape).predict(features[fold])
        processes.append(fit_process(features[units[:MOST_UNITS]], total[units[:MOST_UNITS]], shape))
    return Potentials((processes[0], processes[1]), crossed)


def standardised(values: np.ndarray) -> np.ndarray:
    """Values of zero mean and, unless they are constant, unit deviation: [num_units]."""
    return (values - values.mean()) / max(values.std(), 1e-9)
