"""How alike cities are: by how often a model confuses them, by the direction of their mean features, and by the distance of their features' distributions.

Names of dimensions: num_cities, num_tiles, dim (of the features), k (components kept). Each similarity or distance is a symmetric table of cities; a city of which it
says nothing has NaN.

symmetrised confusion = (R_ab + R_ba) / 2, R_ab = share of a's tiles called b    0..1; on the diagonal the recall; distance = 1 - it, 0 on the diagonal
cosine = cos of the angle between the mean features of two cities                -1..1; distance = sqrt(2 - 2 cosine), the straight line between
                                                                                 the means at length 1
Frechet distance = sqrt(|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^1/2))         0 or more, in the unit of the features, of two Gaussians [1]; its
                                                                                 square is the FID of [2]

Mean m and covariance C of a city are those of its tiles on the first k = min(64, dim, num_tiles - 1) principal components of all tiles, not standardised: with few
dimensions a rotation, which changes no distance. A covariance from fewer tiles than dimensions is noise, and noise makes equal cities look different; so each is
drawn towards the mean covariance within cities, P, which counts as k tiles more: C = ((n - 1) S + k P) / (n - 1 + k). A city with one tile has P itself, one with thousands its own S.

[1] Dowson and Landau 1982, doi 10.1016/0047-259X(82)90077-X
[2] Heusel et al. 2017, arXiv 1706.08500
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from imagery2flow.cities.scores import share_of_row

MOST_COMPONENTS = 64


@dataclass(frozen=True)
class Gaussians:
    """A normal distribution of features per city.

    Attributes:
        means: [num_cities, k].
        roots: Symmetric square roots of the covariances: [num_cities, k, k].
        variance_kept: Share of the variance of all tiles that the k components hold, 0..1.
    """

    means: np.ndarray
    roots: np.ndarray
    variance_kept: float


@dataclass(frozen=True)
class PlanarMap:
    """Cities as points of a plane.

    Attributes:
        places: [num_cities, 2], in the unit of the distances.
        variance_shown: Share of the sum of the eigenvalues' sizes that the two dimensions hold, 0..1; 1 where the distances are those of a plane.
        stress: sqrt(sum (d - shown)^2 / sum d^2) over the pairs: 0 where the map shows every distance as it is (Kruskal 1964, stress-1).
    """

    places: np.ndarray
    variance_shown: float
    stress: float


def symmetrised_confusion(confusion: np.ndarray) -> np.ndarray:
    """Mean of both directions of confusion: counts [num_cities, num_cities], rows true -> shares of the same shape, NaN for cities without tiles."""
    share = share_of_row(confusion)
    return (share + share.T) / 2


def confusion_distance(similarity: np.ndarray) -> np.ndarray:
    """1 - symmetrised confusion, 0 on the diagonal; NaN stays."""
    on_diagonal = np.eye(len(similarity), dtype=bool)
    return np.where(on_diagonal & np.isfinite(similarity), 0.0, 1 - similarity)


def city_means(vectors: np.ndarray, city: np.ndarray, num_cities: int) -> np.ndarray:
    """Mean feature of each city: vectors [num_tiles, dim], positions of cities [num_tiles] -> [num_cities, dim]; every city has a tile."""
    total = np.zeros((num_cities, vectors.shape[1]))
    np.add.at(total, city, vectors)
    return total / np.bincount(city, minlength=num_cities)[:, None]


def cosine_similarity(means: np.ndarray) -> np.ndarray:
    """Cosine between every two means [num_cities, dim]: [num_cities, num_cities]; NaN for one that is 0 and has no direction."""
    length = np.linalg.norm(means, axis=1)
    unit = np.divide(means, length[:, None], out=np.full(means.shape, np.nan), where=length[:, None] > 0)
    similarity = np.clip(unit @ unit.T, -1.0, 1.0)
    np.fill_diagonal(similarity, np.where(length > 0, 1.0, np.nan))
    return similarity


def cosine_distance(similarity: np.ndarray) -> np.ndarray:
    """Straight line between two means at length 1: sqrt(2 - 2 cosine), 0..2."""
    return np.sqrt(2 - 2 * similarity)


def fit_gaussians(vectors: np.ndarray, city: np.ndarray, num_cities: int, most_components: int = MOST_COMPONENTS) -> Gaussians:
    """Mean and covariance of each city by the rule at the top of the module.

    Args:
        vectors: Features: [num_tiles, dim].
        city: Position of the city of each tile; every city has one at least: [num_tiles] of int.
        num_cities: Number of cities.
        most_components: Limit of k.
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    k = max(1, min(most_components, vectors.shape[1], len(vectors) - 1))
    variance, directions = np.linalg.eigh(centred.T @ centred)  # ascending: [dim], [dim, dim]
    points = centred @ directions[:, ::-1][:, :k]  # [num_tiles, k]
    means = city_means(points, city, num_cities)
    scatters = np.stack([scatter(points[city == number]) for number in range(num_cities)])  # [num_cities, k, k], (n - 1) S each
    pooled = scatters.sum(axis=0) / max(1, len(points) - num_cities)
    degrees = np.bincount(city, minlength=num_cities)[:, None, None] - 1
    roots = np.stack([square_root(one) for one in (scatters + k * pooled) / (degrees + k)])
    total = variance.sum()
    return Gaussians(means, roots, float(np.clip(variance[::-1][:k].sum() / total, 0, 1)) if total > 0 else 1.0)


def scatter(points: np.ndarray) -> np.ndarray:
    """Sum of the products of deviations from the mean: [num_tiles, k] -> [k, k]."""
    deviation = points - points.mean(axis=0)
    return deviation.T @ deviation


def square_root(covariance: np.ndarray) -> np.ndarray:
    """Symmetric square root of a covariance [k, k]."""
    size, directions = np.linalg.eigh(covariance)
    rounding = np.abs(size).max() * len(size) * np.finfo(size.dtype).eps  # an eigenvalue of 0 comes out as 1e-16, whose root would be 1e-8
    return (directions * np.sqrt(np.where(size > rounding, size, 0.0))) @ directions.T


def frechet_distance(mean_a: np.ndarray, root_a: np.ndarray, mean_b: np.ndarray, root_b: np.ndarray) -> float:
    """Distance of two Gaussians from their means [k] and the symmetric roots of their covariances [k, k].

    The trace is the least |root_a - root_b Q|^2 over rotations Q: as a sum of squares it loses no digits where the two are nearly equal, which the
    difference of traces does.
    """
    left, _, right = np.linalg.svd(root_a @ root_b)
    apart = root_a - root_b @ right.T @ left.T
    return float(np.sqrt(((mean_a - mean_b) ** 2).sum() + (apart**2).sum()))


def frechet_distances(gaussians: Gaussians) -> np.ndarray:
    """The distance of every two cities: [num_cities, num_cities]."""
    means, roots = gaussians.means, gaussians.roots
    distance = np.zeros((len(means), len(means)))
    for a, b in zip(*np.triu_indices(len(means), k=1), strict=True):
        distance[a, b] = distance[b, a] = frechet_distance(means[a], roots[a], means[b], roots[b])
    return distance


def planar_map(distance: np.ndarray) -> PlanarMap:
    """Classical multidimensional scaling (Torgerson 1952) of distances [num_cities, num_cities] to the plane that keeps most of them.

    Axes have no meaning and their signs are arbitrary: here the city farthest out along an axis is on its positive side.
    """
    num_cities = len(distance)
    centring = np.eye(num_cities) - 1 / num_cities
    size, directions = np.linalg.eigh(-centring @ distance**2 @ centring / 2)  # ascending
    places = np.zeros((num_cities, 2))
    found = min(2, num_cities)
    places[:, :found] = (directions * np.sqrt(np.maximum(size, 0.0)))[:, ::-1][:, :found]
    places *= np.where(places[np.abs(places).argmax(axis=0), [0, 1]] < 0, -1.0, 1.0)
    shown = np.linalg.norm(places[:, None] - places[None], axis=-1)
    total, squares = np.abs(size).sum(), (distance**2).sum()
    return PlanarMap(
        places,
        float(np.maximum(size[::-1][:found], 0.0).sum() / total) if total > 0 else 1.0,
        float(np.sqrt(((distance - shown) ** 2).sum() / squares)) if squares > 0 else 0.0,
    )


def average_linkage(distance: np.ndarray) -> np.ndarray:
    """Tree of two or more cities, joined by the mean distance of their members (UPGMA), as scipy's linkage: [num_cities - 1, 4]."""
    return linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
