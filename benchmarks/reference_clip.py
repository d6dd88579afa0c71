#!/usr/bin/env python
"""The plain ways to cut patches, each as a process of its own that imports no more than it needs.

python benchmarks/reference_clip.py loop scene.tif units.gpkg folder
python benchmarks/reference_clip.py bare scene.tif windows.npy folder num_processes
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import rasterio


def clip_by_loop(scene: str, units: str, folder: str) -> None:
    """``rasterio.mask`` unit by unit, with the scene opened again for each."""
    import geopandas as gpd
    import rasterio.mask

    with rasterio.open(scene) as source:
        shapes = gpd.read_file(units).to_crs(source.crs)
    for number, geometry in enumerate(shapes.geometry):
        with rasterio.open(scene) as source:
            values, transform = rasterio.mask.mask(source, [geometry], crop=True)
            profile = {"driver": "GTiff", "count": source.count, "dtype": values.dtype, "crs": source.crs, "nodata": source.nodata}
        with rasterio.open(
            Path(folder) / f"{number}.tif", "w", height=values.shape[1], width=values.shape[2], transform=transform, **profile
        ) as target:
            target.write(values)


def bare(scene: str, windows: str, folder: str, num_processes: str) -> None:
    """Reads every block that a window touches once, and writes a patch of the size of each window: the least that any clipping must do."""
    table, count = np.load(windows, allow_pickle=False), int(num_processes)
    with rasterio.open(scene) as source:
        rows, columns = source.block_shapes[0]
    blocks = sorted(
        {
            (row, column)
            for left, top, width, height in table.tolist()
            for row in range(max(top, 0) // rows, (top + height - 1) // rows + 1)
            for column in range(max(left, 0) // columns, (left + width - 1) // columns + 1)
        }
    )
    parts = [(scene, folder, number, part, table[number::count]) for number, part in enumerate(np.array_split(np.array(blocks), count))]
    with ProcessPoolExecutor(count) as pool:
        list(pool.map(read_and_write, parts))


def read_and_write(part: tuple[str, str, int, np.ndarray, np.ndarray]) -> None:
    """One process's share of the blocks [num_blocks, 2] and windows [num_windows, 4]."""
    scene, folder, number, blocks, windows = part
    with rasterio.open(scene) as source:
        height, width, count, dtype, crs = source.height, source.width, source.count, source.dtypes[0], source.crs
        rows, columns = source.block_shapes[0]
        for row, column in blocks:
            if row * rows < height and column * columns < width:
                source.read(window=source.block_window(1, row, column))
    for place, (_, _, patch_width, patch_height) in enumerate(windows.tolist()):
        values = np.ones((count, patch_height, patch_width), dtype)
        size = {"width": patch_width, "height": patch_height, "count": count}
        with rasterio.open(f"{folder}/{number}_{place}.tif", "w", driver="GTiff", dtype=dtype, crs=crs, nodata=0, **size) as target:
            target.write(values)


if __name__ == "__main__":
    {"loop": clip_by_loop, "bare": bare}[sys.argv[1]](*sys.argv[2:])
