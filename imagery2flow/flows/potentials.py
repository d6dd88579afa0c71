"""How many leave and how many arrive at a unit, predicted from its features alone: the margins that a gravity law needs and no image shows.

Of each unit of the training pairs log(1 + outflow) and log(1 + inflow) are known. Ridge regression, and a Gaussian process of what it leaves over
(Rasmussen and Williams 2006, sec. 2.7, radial kernel and noise), predict them from the unit's features: the line goes on where another city lies outside
the source city's range, the process stays as at its edge (docs/experiments.md). Trees that read a prediction fitted to the very unit would trust it too much, so that for units of the
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
from sklearn.linear_model import RidgeCV

from imagery2flow.flows.table import FlowTable

SIDES = ("outflow", "inflow")
FOLDS = 5
MOST_UNITS = 1000  # that a process is fitted to: its cost grows with their cube
MOST_TUNING_UNITS = 250  # that its kernel is chosen on
FEWEST_UNITS_OF_A_LINE = 5
PENALTIES = np.logspace(-1, 5, 13)
SMALLEST_STD = 1e-9  # below, a feature is constant


@dataclass(frozen=True)
class Process:
    """A line and the mean of a Gaussian process around it: m + b . x + s k(c(x), X) w, with k(x, z) = v exp(-|x - z|^2 / 2 l^2).

    x are the features, standardised; c holds them in the range of the units that were fitted to. The whole is held in the range of their values.

    Attributes:
        centre: Mean of the features [dim].
        spread: Their deviation [dim].
        inputs: X, standardised [num_fitted, dim].
        weight: w [num_fitted].
        slope: b [dim].
        variance: v.
        length: l.
        mean: m.
        scale: s.
        low: Smallest value.
        high: Largest value.
    """

    centre: np.ndarray
    spread: np.ndarray
    inputs: np.ndarray
    weight: np.ndarray
    slope: np.ndarray
    variance: float
    length: float
    mean: float
    scale: float
    low: float
    high: float

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Values of units: [num_units, dim] -> [num_units]."""
        scaled = (features - self.centre) / self.spread
        held = np.clip(scaled, self.inputs.min(axis=0), self.inputs.max(axis=0))
        around = self.scale * (kernel(held, self.inputs, self.variance, self.length) @ self.weight)
        return np.clip(self.mean + scaled @ self.slope + around, self.low, self.high)


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
    """Fits the line, then the process of a chosen variance, length and noise to what the line leaves over: [num_units, dim], [num_units]."""
    variance, length, noise = shape
    centre, spread = moments(features)
    inputs = (features - centre) / spread
    mean, slope = fit_line(inputs, values)
    rest = values - mean - inputs @ slope
    scale = max(rest.std(), SMALLEST_STD)
    weight = cho_solve(cho_factor(kernel(inputs, inputs, variance, length) + noise * np.eye(len(inputs))), standardised(rest))
    edges = float(values.min()), float(values.max())
    return Process(centre, spread, inputs, weight, slope, variance, length, float(mean + rest.mean()), float(scale), *edges)


def choose_shape(features: np.ndarray, values: np.ndarray) -> tuple[float, float, float]:
    """Variance, length and noise of the process that suits what the line leaves over: [num_units, dim], [num_units]."""
    centre, spread = moments(features)
    inputs = (features - centre) / spread
    mean, slope = fit_line(inputs, values)
    return choose_kernel(inputs, standardised(values - mean - inputs @ slope))


def fit_line(inputs: np.ndarray, values: np.ndarray) -> tuple[float, np.ndarray]:
    """Ridge regression, its penalty chosen by leaving out each unit in turn: standardised [num_units, dim], [num_units] -> mean, slope [dim]."""
    if len(values) < FEWEST_UNITS_OF_A_LINE:
        return float(values.mean()), np.zeros(inputs.shape[1])
    line = RidgeCV(PENALTIES).fit(inputs, values)
    return float(line.intercept_), line.coef_


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
        shape = choose_shape(features[tuning], total[tuning])
        for fold in np.array_split(units, min(FOLDS, len(units))):
            others = np.setdiff1d(units, fold, assume_unique=True)
            if len(others):
                fitted = random.permutation(others)[:MOST_UNITS]
                crossed[fold, side] = fit_process(features[fitted], total[fitted], shape).predict(features[fold])
        processes.append(fit_process(features[units[:MOST_UNITS]], total[units[:MOST_UNITS]], shape))
    return Potentials((processes[0], processes[1]), crossed)


def standardised(values: np.ndarray) -> np.ndarray:
    """Values of zero mean and, unless they are constant, unit deviation: [num_units]."""
    return (values - values.mean()) / max(values.std(), SMALLEST_STD)


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of features [num_units, dim]: [dim] each; the deviation of a constant one is 1."""
    spread = features.std(axis=0)
    return features.mean(axis=0), np.where(spread > SMALLEST_STD, spread, 1.0)
