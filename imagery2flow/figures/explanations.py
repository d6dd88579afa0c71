"""Where in tiles a model finds what it says of them: contact sheets, and images of what remains of a tile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imsave

from imagery2flow.cities.explain import ExplainedTile
from imagery2flow.figures.patches import PICTURE_SIDE
from imagery2flow.figures.style import LABEL_SIZE, LIGHT_GREY, TICK_SIZE, new_figure
from imagery2flow.imagery.patchset import Normalisation
from imagery2flow.run.explain_config import ExplainConfig
from imagery2flow.run.files import replacing, save_figure

HEAT = "inferno"
STRONGEST = 0.85  # how much of the picture the largest value of a map covers
DEVIATIONS = 2.0  # of a band around its mean that a picture shows
PICTURES_ACROSS = 6
LETTERS_ABOVE = 19  # that fit above one picture
METHODS = {"relevance_cam": "Relevance-CAM", "grad_cam": "Grad-CAM"}
KEPT = {"mean_plus_std": "above its mean + standard deviation", "half": "above half of its range"}


def draw_explanations(tiles: Sequence[ExplainedTile], config: ExplainConfig, normalisation: Normalisation, sheet: Path) -> None:
    """Writes the masked image of each tile and layer beside the contact sheet of all."""
    for tile in tiles:
        for layer, mask in tile.masks.items():
            picture = np.rint(255 * masked_picture(picture_of(tile, normalisation), tile.valid, mask)).astype(np.uint8)
            with replacing(sheet.with_name(f"{tile.geocode}_{config.method}_{layer}_masked.png")) as temporary:
                imsave(temporary, picture, metadata={"Software": None})  # type: ignore[dict-item]  # None leaves the version out
    save_figure(sheet, contact_sheet(tiles, config, normalisation))


def contact_sheet(tiles: Sequence[ExplainedTile], config: ExplainConfig, normalisation: Normalisation) -> Figure:
    """Each tile as it is, and for each layer with its map over it and what the mask keeps of it; two tiles beside each other where they fit.

    Args:
        tiles: Of one city.
        config: Method, layers and mask.
        normalisation: Statistics of the bands; the first three are shown as red, green, blue, of fewer the first in grey.
    """
    pictures = 1 + 2 * len(config.layers)
    across = min(len(tiles), max(1, PICTURES_ACROSS // pictures))
    rows = -(-len(tiles) // across)
    figure, axes = new_figure(PICTURE_SIDE * pictures * across + 0.1, (PICTURE_SIDE + 0.45) * rows + 1.0, rows, pictures * across)
    for axis in axes[len(tiles) * pictures :]:
        axis.axis("off")
    for number, tile in enumerate(tiles):
        own = axes[number * pictures : (number + 1) * pictures]
        draw_tile(own, tile, picture_of(tile, normalisation))
        own[0].set_title("\n", fontsize=TICK_SIZE - 1)  # room for what stands above all pictures of the tile
        written = own[0].annotate(
            heading(tile, pictures * LETTERS_ABOVE), (0, 1), (0, 3), "axes fraction", "offset points", fontsize=TICK_SIZE - 1, va="bottom"
        )
        written.set_in_layout(False)
        if number + across >= len(tiles):
            for axis, name in zip(own, column_names(config), strict=True):
                axis.set_xlabel(name, fontsize=TICK_SIZE - 1)
    bar = figure.colorbar(
        ScalarMappable(cmap=HEAT), ax=axes, location="bottom", fraction=0.25 / figure.get_figheight(), aspect=50, pad=0.01, shrink=0.7
    )
    bar.set_label("map, as a share of its largest value in the tile; what is not positive is not drawn", fontsize=TICK_SIZE - 1)
    bar.ax.tick_params(labelsize=TICK_SIZE - 1)
    figure.suptitle(f"{tiles[0].city}: {METHODS[config.method]}, masked to what is {KEPT[config.mask]}", fontsize=LABEL_SIZE)
    return figure


def column_names(config: ExplainConfig) -> list[str]:
    """What stands below the pictures of a tile."""
    return ["tile", *(name for layer in config.layers for name in (layer, f"{layer}, masked"))]


def heading(tile: ExplainedTile, longest: int) -> str:
    """Id of a tile, and below it what is explained; of an id that is too long the end, which tells tiles apart."""
    geocode = tile.geocode if len(tile.geocode) <= longest else f"...{tile.geocode[3 - longest :]}"
    if not tile.predicted:
        return f"{geocode}\n{tile.output} {tile.value:.4g}"
    other = "" if tile.predicted == tile.output else f", predicted: {tile.predicted}"
    return f"{geocode}\n{tile.output}, probability {tile.value:.3f}{other}"


def draw_tile(axes: Sequence[Axes], tile: ExplainedTile, picture: np.ndarray) -> None:
    """The picture of a tile, then two for each layer, in squares as wide as its longer side."""
    shown = [picture]
    for layer, values in tile.maps.items():
        shown += [overlaid(picture, values), masked_picture(picture, tile.valid, tile.masks[layer])]
    height, width = tile.valid.shape
    side = max(height, width) / 2
    for axis, image in zip(axes, shown, strict=True):
        axis.imshow(image, interpolation="nearest")
        axis.set(xlim=(width / 2 - 0.5 - side, width / 2 - 0.5 + side), ylim=(height / 2 - 0.5 + side, height / 2 - 0.5 - side))
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)


def picture_of(tile: ExplainedTile, normalisation: Normalisation) -> np.ndarray:
    """Red, green and blue of a tile, 0 to 1, missing pixels white: [height, width, 3]; stretched by the training's statistics, so alike in every tile."""
    bands = [0, 1, 2] if tile.pixels.shape[2] >= 3 else [0, 0, 0]
    mean, std = (np.array(part)[bands] for part in (normalisation.mean, normalisation.std))
    stretched = (tile.pixels[..., bands] - mean) / (2 * DEVIATIONS * std) + 0.5
    return np.where(tile.valid[..., None], np.clip(stretched, 0, 1), 1.0)


def overlaid(picture: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The picture with a map over it, which covers it the more the larger its value: [height, width, 3]."""
    positive = np.clip(np.nan_to_num(values), 0, None)
    share = positive / max(positive.max(), np.finfo(np.float32).tiny)
    cover = STRONGEST * share[..., None]
    return (1 - cover) * picture + cover * colormaps[HEAT](share)[..., :3]


def masked_picture(picture: np.ndarray, valid: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What a mask keeps of a picture; the rest of the tile is grey: [height, width, 3]."""
    return np.where((valid & ~mask)[..., None], to_rgb(LIGHT_GREY), picture)
