"""Pictures of patches beside those whose vectors are most alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from imagery2flow.encoder.similarity import nearest_by_cosine
from imagery2flow.figures.style import COLOURS, LABEL_SIZE, TICK_SIZE, new_figure
from imagery2flow.run.earth import METRES_PER_KM

STRETCH_PERCENT = (2.0, 98.0)
PICTURE_SIDE = 1.25  # inches


def nearest_patches(
    geocodes: Sequence[str],
    patches: Sequence[np.ndarray],
    vectors: np.ndarray,
    chosen: Sequence[str],
    k: int = 5,
    gsd_m: float | None = None,
    band_names: Sequence[str] = (),
) -> Figure:
    """Chosen units, each in a row with the k units whose vectors are most alike by cosine, the most alike first.

    Args:
        geocodes: Ids of the units: [num_units].
        patches: Picture of each: [num_bands, height, width], of any size. The first three bands are red, green, blue; of fewer the first is
            shown in grey. Bands are stretched alike in all pictures. A pixel of 0 in every band, or NaN, is outside of the unit and white.
        vectors: Of the units, none 0: [num_units, dim].
        chosen: Ids to look for.
        k: Number of others.
        gsd_m: Metres per pixel, to write the width of each picture in km; None writes pixels.
        band_names: Names of the bands, to write which are shown.

    Raises:
        ValueError: A chosen id is not among the units, there are not k others, or a vector is 0.
    """
    position = {geocode: number for number, geocode in enumerate(geocodes)}
    absent = [geocode for geocode in chosen if geocode not in position]
    if absent or not chosen:
        raise ValueError(
            f"{len(absent)} of {len(chosen)} chosen ids are not among the units ({', '.join(absent)}); choose among the {len(position)} ids"
        )
    own = np.array([position[geocode] for geocode in chosen])
    nearest, similarity = nearest_by_cosine(vectors, own, k)  # [num_chosen, k]
    shown = np.concatenate([own[:, None], nearest], axis=1)
    low, high = stretch([patches[number] for number in np.unique(shown)])
    figure, axes = new_figure(PICTURE_SIDE * (k + 1), (PICTURE_SIDE + 0.45) * len(chosen) + 0.3, len(chosen), k + 1)
    for axis, number, alike in zip(axes, shown.ravel(), np.insert(similarity, 0, np.nan, axis=1).ravel(), strict=True):
        draw_patch(axis, patches[number], low, high)
        across = patches[number].shape[2]
        width = f"{across} pixels wide" if gsd_m is None else f"{across * gsd_m / METRES_PER_KM:.2f} km wide"
        axis.set_title(geocodes[number] + ("\n" if np.isnan(alike) else f"\ncosine {alike:.3f}"), fontsize=TICK_SIZE - 1)
        axis.set_xlabel(width, fontsize=TICK_SIZE - 1)
        if np.isnan(alike):
            axis.spines[:].set(visible=True, color=COLOURS[1], linewidth=1.5)
    shown_names = band_names[:3] if len(band_names) >= 3 else band_names[:1]
    told = f"; {', '.join(shown_names)} as {'red, green, blue' if len(shown_names) == 3 else 'grey'}" if shown_names else ""
    figure.suptitle(f"chosen unit (framed) and the {k} most alike of n = {len(geocodes):,} units{told}", fontsize=LABEL_SIZE)
    return figure


def shown_bands(patch: np.ndarray) -> np.ndarray:
    """Three bands of a patch, NaN outside of the unit: [3, height, width]."""
    outside = ~np.isfinite(patch).all(axis=0) | (patch == 0).all(axis=0)
    bands = patch[:3] if len(patch) >= 3 else np.repeat(patch[:1], 3, axis=0)
    return np.where(outside, np.nan, bands.astype(float))


def stretch(patches: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Percentiles of each shown band over the pixels of all patches: [3], [3]."""
    pixels = np.concatenate([shown_bands(patch).reshape(3, -1) for patch in patches], axis=1)
    pixels = pixels[:, np.isfinite(pixels[0])]
    if not pixels.size:
        return np.zeros(3), np.ones(3)
    low, high = np.percentile(pixels, STRETCH_PERCENT, axis=1)
    return low, np.where(high > low, high, low + 1)


def draw_patch(axis: Axes, patch: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """One picture, in a square as wide as its longer side, so that pictures stand level."""
    height, width = patch.shape[1:]
    side = max(height, width) / 2
    picture = (shown_bands(patch) - low[:, None, None]) / (high - low)[:, None, None]
    axis.imshow(np.nan_to_num(np.clip(picture, 0, 1), nan=1.0).transpose(1, 2, 0), interpolation="nearest")
    axis.set(
        xticks=[], yticks=[], xlim=(width / 2 - 0.5 - side, width / 2 - 0.5 + side), ylim=(height / 2 - 0.5 + side, height / 2 - 0.5 - side)
    )
    axis.spines[:].set_visible(False)
