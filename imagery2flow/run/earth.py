"""Distances on the Earth."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

EARTH_RADIUS_M = 6_371_009.0  # mean radius, IUGG


def great_circle_m(longitude_a: np.ndarray, latitude_a: np.ndarray, longitude_b: np.ndarray, latitude_b: np.ndarray) -> np.ndarray:
    """Haversine distance in metres of points in degrees."""
    import numpy as np

    lambda_a, phi_a, lambda_b, phi_b = (np.radians(angle) for angle in (longitude_a, latitude_a, longitude_b, latitude_b))
    haversine = np.sin((phi_b - phi_a) / 2) ** 2 + np.cos(phi_a) * np.cos(phi_b) * np.sin((lambda_b - lambda_a) / 2) ** 2
    return 2 * EARTH_RADIUS_M * np.arcsin(np.sqrt(np.clip(haversine, 0.0, 1.0)))
