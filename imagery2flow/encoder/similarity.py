"""What vectors of units say of each other: which are alike, and the directions in which they differ most."""

from __future__ import annotations

import numpy as np


def nearest_by_cosine(vectors: np.ndarray, chosen: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k vectors most alike to each chosen one, itself left out, the most alike first.

    Args:
        vectors: One per unit, none of them 0: [num_units, dim].
        chosen: Positions of the units that are asked for: [num_chosen] of int.
        k: 1 to num_units - 1.

    Returns:
        Positions [num_chosen, k], and their cosine similarity, -1..1 [num_chosen, k]; of equal ones the first comes first.

    Raises:
        ValueError: There are not k other vectors, or a vector is 0 or not finite.
    """
    if not 1 <= k < len(vectors):
        raise ValueError(f"k is {k} but {len(vectors)} units have {len(vectors) - 1} others; give 1 to that")
    length = np.linalg.norm(vectors, axis=1)
    if not (np.isfinite(length) & (length > 0)).all():
        raise ValueError("a vector is 0 or not finite and has no direction; leave its unit out")
    unit = vectors / length[:, None]
    similarity = np.clip(unit[chosen] @ unit.T, -1.0, 1.0)  # [num_chosen, num_units]
    similarity[np.arange(len(chosen)), chosen] = -np.inf
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return nearest, np.take_along_axis(similarity, nearest, axis=1)


def principal_components(vectors: np.ndarray, num_components: int) -> tuple[np.ndarray, np.ndarray]:
    """First principal components of standardised columns; a constant column counts for nothing.

    The sign of a component is arbitrary: here its largest loading is above 0, so that equal vectors give equal components.

    Args:
        vectors: One per unit: [num_units, dim].
        num_components: Components that the vectors do not have are 0.

    Returns:
        Components [num_units, num_components], and the share of the variance of each [num_components].
    """
    scaled = vectors - vectors.mean(axis=0)
    std = scaled.std(axis=0)
    scaled = np.divide(scaled, std, out=np.zeros_like(scaled), where=std > 1e-12)
    left, size, loading = np.linalg.svd(scaled, full_matrices=False)  # [num_units, r], [r], [r, dim]
    sign = np.where(loading[np.arange(len(loading)), np.abs(loading).argmax(axis=1)] < 0, -1.0, 1.0)
    components, share = np.zeros((len(vectors), num_components)), np.zeros(num_components)
    found = min(num_components, len(size))
    components[:, :found] = (left * size * sign)[:, :found]
    if size.any():
        share[:found] = (size**2 / (size**2).sum())[:found]
    return components, share
