"""Tiles of a regular grid over scenes: squares of one size, each in one part of a scene, so that none crosses from one split into another."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rasterio.windows import Window

from imagery2flow.imagery.scene import Scene
from imagery2flow.imagery.sites import Part, SceneFile, divide, whole_scenes
from imagery2flow.imagery.units import check_ids
from imagery2flow.run.config import PreprocessingConfig
from imagery2flow.run.errors import InputError
from imagery2flow.run.stage import Ledger


@dataclass(frozen=True)
class Tile:
    """A square of a regular grid.

    Attributes:
        geocode: Id: the part's prefix, then ``r<row>c<column>`` in steps of the grid.
        part: What it is a tile of.
        window: Its pixels in the scene.
        counted: Those of them that no tile above it or to its left holds, so that sums over all tiles count each pixel once.
    """

    geocode: str
    part: Part
    window: Window
    counted: Window


def grid_tiles(parts: Sequence[Part], size: int, stride: int) -> list[Tile]:
    """Tiles of parts of scenes in row-major order; a tile that would reach beyond the part is not made.

    Raises:
        InputError: No tile fits.
    """
    tiles = [tile for part in parts for tile in tiles_of(part, size, stride)]
    if not tiles:
        largest = max(min(part.width, part.height) for part in parts)
        raise InputError(f"--size {size} is larger than every scene (the largest fits {largest} pixels); use a smaller --size")
    return tiles


def tiles_of(part: Part, size: int, stride: int) -> Iterator[Tile]:
    """The tiles of one part."""
    for row_number, row in enumerate(range(0, part.height - size + 1, stride)):
        first_row = row if row == 0 else max(row, row - stride + size)
        for column_number, column in enumerate(range(0, part.width - size + 1, stride)):
            first_column = column if column == 0 else max(column, column - stride + size)
            counted = (part.column + first_column, part.row + first_row, column + size - first_column, row + size - first_row)
            window = (part.column + column, part.row + row, size, size)
            yield Tile(f"{part.prefix}r{row_number:04d}c{column_number:04d}", part, Window(*window), Window(*counted))


def make_tiles(config: PreprocessingConfig, files: Sequence[SceneFile], scenes: Sequence[Scene], ledger: Ledger) -> list[Tile]:
    """The tiles of all scenes; scenes without one, and pixels beyond the last tile, are said in the ledger.

    Raises:
        InputError: No tile fits, or ids cannot be made.
    """
    size = config.size
    parts = divide(files, scenes, config.split or "last_site", config.split_shares, config.seed) if files else whole_scenes(scenes)
    tiles = grid_tiles(parts, size, config.stride or size)
    check_ids(pd.Series([f"{part.prefix}r0000c0000" for part in parts]), "tiles, named by city, site and image")
    with_tiles = {tile.part for tile in tiles}
    ledger.leave_out(
        f"parts of scenes smaller than a tile of {size} px",
        (part.prefix or scenes[0].path.name for part in parts if part not in with_tiles),
    )
    inside = sum(tile.counted.width * tile.counted.height for tile in tiles)
    everything = sum(part.width * part.height for part in parts)
    if inside < everything:
        ledger.note(
            f"{1 - inside / everything:.1%} of the scenes' pixels lie in no tile: none reaches beyond a scene, or into another split"
        )
    return tiles


def tile_columns(tiles: Sequence[Tile]) -> pd.DataFrame:
    """City, site and split of each tile, as far as there are any."""
    table = pd.DataFrame(
        {
            "geocode": [tile.geocode for tile in tiles],
            **{name: [getattr(tile.part, name) for tile in tiles] for name in ("city", "site", "split")},
        }
    )
    return table.loc[:, (table != "").any()]


def folder_of(scenes: Sequence[Scene], root: Path | None) -> Path:
    """The folder that all scenes lie under."""
    return root.absolute() if root else Path(os.path.commonpath([scene.path.absolute().parent for scene in scenes]))
