"""What lies around a unit: averages of its neighbours' features and how densely units lie there.

A column x is averaged over the units j of the same region with the weight area_j exp(-d_ij^2 / 2 r^2), the unit itself included; the density is the
logarithm of sum_j exp(-d_ij^2 / 2 r^2). Census tracts hold about equally many people, so their density is that of the population.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from imagery2flow.flows.region import Region

UNITS_PER_BLOCK = 512
SMALLEST_AREA_KM2 = 1e-6


def surroundings(values: np.ndarray, region: Region, radii_m: Sequence[float]) -> np.ndarray:
    """Averages and densities by radius.

    Args:
        values: [num_units, dim].
        region: Where the units lie.
        radii_m: Radii r in metres.

    Returns:
        [num_units, len(radii_m) * (dim + 1)]: for each radius the averages, then the density.
    """
    around = np.zeros((len(values), len(radii_m) * (values.shape[1] + 1)))
    if not radii_m:
        return around
    for units in region.parts():
        for start in range(0, len(units), UNITS_PER_BLOCK):
            block = units[start : start + UNITS_PER_BLOCK]
            origin, destination = np.repeat(block, len(units)), np.tile(units, len(block))
            distance_m = region.graph.distance_m(origin, destination).reshape(len(block), len(units))
            parts = [average(values[units], distance_m, region.graph.area_km2[units], radius_m) for radius_m in radii_m]
            around[block] = np.concatenate(parts, axis=1)
    return around


def average(values: np.ndarray, distance_m: np.ndarray, area_km2: np.ndarray, radius_m: float) -> np.ndarray:
    """Averages of units' columns [num_units, dim] seen from some units [num_seen_from, num_units]: [num_seen_from, dim + 1], the density last."""
    nearness = np.exp(-0.5 * (distance_m / radius_m) ** 2)
    weight = nearness * np.maximum(area_km2, SMALLEST_AREA_KM2)
    return np.concatenate([weight @ values / weight.sum(axis=1, keepdims=True), np.log(nearness.sum(axis=1, keepdims=True))], axis=1)
