"""Distances and areas on the Earth."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import geopandas as gpd
    import numpy as np

EARTH_RADIUS_M = 6_371_009.0  # mean radius, IUGG
METRES_PER_KM, SQUARE_METRES_PER_KM2 = 1e3, 1e6


def great_circle_m(longitude_a: np.ndarray, latitude_a: np.ndarray, longitude_b: np.ndarray, latitude_b: np.ndarray) -> np.ndarray:
    """Haversine distance in metres of points in degrees."""
    import numpy as np

    lambda_a, phi_a, lambda_b, phi_b = (np.radians(angle) for angle in (longitude_a, latitude_a, longitude_b, latitude_b))
    haversine = np.sin((phi_b - phi_a) / 2) ** 2 + np.cos(phi_a) * np.cos(phi_b) * np.sin((lambda_b - lambda_a) / 2) ** 2
    return 2 * EARTH_RADIUS_M * np.arcsin(np.sqrt(np.clip(haversine, 0.0, 1.0)))


def pair_distance_m(longitude: np.ndarray, latitude: np.ndarray, origin: np.ndarray, destination: np.ndarray) -> np.ndarray:
    """Great-circle distance of pairs of places in metres, 0 from a place to itself.

    Args:
        longitude: Of the places, degrees [num_places].
        latitude: [num_places].
        origin: Positions of the places where the pairs begin [num_pairs].
        destination: Where they end [num_pairs].

    Returns:
        Metres [num_pairs].
    """
    return great_circle_m(longitude[origin], latitude[origin], longitude[destination], latitude[destination])


def utm_epsg(shapes: gpd.GeoDataFrame | gpd.GeoSeries) -> int:
    """EPSG code of the UTM zone (WGS 84) in which the middle of the shapes' bounds lies; beyond 84 degrees too, where there are none.

    The same as ``estimate_utm_crs`` of geopandas, which looks through PROJ's database for a fifth of a second.

    Args:
        shapes: With a CRS; at least one is not empty.
    """
    from pyproj import Transformer

    assert shapes.crs is not None
    west, south, east, north = shapes.total_bounds
    if not shapes.crs.is_geographic:
        west, south, east, north = Transformer.from_crs(shapes.crs, 4326, always_xy=True).transform_bounds(west, south, east, north)
    if west > east:  # over the antimeridian
        east += 360
    zone = int(((west + east) / 2 + 180) // 6) % 60 + 1
    return (32600 if south + north >= 0 else 32700) + zone


def graticule_areas_m2(latitude_edges: np.ndarray, width: float, semi_minor_m: float, eccentricity_squared: float) -> np.ndarray:
    """Areas in m2 between parallels on an ellipsoid, in closed form (Snyder 1987, equation 3-12).

    Args:
        latitude_edges: Degrees, in order; beyond a pole there is no area [num_rows + 1].
        width: Degrees of longitude.
        semi_minor_m: Of the ellipsoid.
        eccentricity_squared: Of the ellipsoid; 0 is a sphere.

    Returns:
        Areas between each parallel and the next [num_rows].
    """
    import numpy as np

    sine, eccentricity = np.sin(np.radians(np.clip(latitude_edges, -90, 90))), np.sqrt(eccentricity_squared)
    half_q = sine / (1 - eccentricity_squared * sine**2) / 2
    half_q += np.arctanh(eccentricity * sine) / (2 * eccentricity) if eccentricity else sine / 2
    return semi_minor_m**2 * np.radians(width) * np.abs(np.diff(half_q))
