"""Stage 1 beside a loop over the units, and beside bare reading and writing."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from generated import write_scene, write_units
from timing import Row, Settings, Target, alternate, command_of, peak_tree_mb, run

FASTER_THAN_THE_LOOP_ON_A_CITY = Target(4, "x", at_least=True)
FASTER_THAN_THE_LOOP = Target(10, "x", at_least=True)
SLOWER_THAN_BARE = Target(1.5, "x")
MOST_MEMORY = Target(1000, "MB")


def clip_city(settings: Settings) -> list[Row]:
    """New York's tracts, whole processes."""
    if settings.data is None:
        scene, units = write_scene(settings.scratch / "small.tif", 700), write_units(settings.scratch / "small.gpkg", 700, 40)
    else:
        city = settings.data / "nyc"
        scene, units = next((city / "imagery").glob("*median*.tif")), city / "units.gpkg"
    with Clip(settings, scene, units, "city") as clip:
        ours, loop = alternate([clip.ours, clip.loop], settings.repeats)
        stage = f"1 clip {len(clip.windows()):,} tracts, whole process"
    return [Row(stage, f"{ours:.2f} s", f"loop of rasterio.mask {loop:.2f} s", loop / ours, FASTER_THAN_THE_LOOP_ON_A_CITY)]


def clip_large(settings: Settings) -> list[Row]:
    """A large generated scene, whole processes."""
    side_px, num_units = settings.size(20_000, 1_100), settings.size(5_000, 50)
    scene = write_scene(settings.scratch / f"scene_{side_px}.tif", side_px)
    units = write_units(settings.scratch / f"units_{side_px}_{num_units}.gpkg", side_px, num_units)
    stage = f"1 clip {side_px:,} x {side_px:,} px, {num_units:,} units"
    with Clip(settings, scene, units, "large") as clip:
        peak = peak_tree_mb(clip.command())
        ours, bare = alternate([clip.ours, clip.bare], settings.repeats)
        # The loop takes a minute: it runs once, beside another run of ours.
        ours_beside, loop = alternate([clip.ours, clip.loop], 1, warm_up=False)
    return [
        Row(stage, f"{ours_beside:.1f} s", f"loop of rasterio.mask {loop:.1f} s", loop / ours_beside, FASTER_THAN_THE_LOOP),
        Row(stage, f"{ours:.1f} s", f"read touched blocks once, write patches {bare:.1f} s", ours / bare, SLOWER_THAN_BARE),
        Row(f"{stage}, peak memory of all processes", f"{peak:,.0f} MB", "", peak, MOST_MEMORY),
    ]


class Clip:
    """The ways to clip one scene."""

    def __init__(self, settings: Settings, scene: Path, units: Path, name: str) -> None:
        self.scene, self.units, self.name = scene, units, name
        # Nothing is deleted before the end: a file system may be slow to make files where others have just been deleted (ext4: 20 times).
        self.folder = Path(tempfile.mkdtemp(prefix=f"{name}_", dir=settings.scratch))
        self.patches = self.folder

    def __enter__(self) -> Clip:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder)

    def new_folder(self, name: str) -> Path:
        """A folder without files."""
        return Path(tempfile.mkdtemp(prefix=name, dir=self.folder))

    def command(self) -> list[str]:
        """Stage 1."""
        self.patches = self.new_folder("patches")
        flags = ["--input_tif_path", self.scene, "--shp_path", self.units, "--output_tif_dir", self.patches]
        return command_of("img_preprocessing.py", *flags, "--region", self.name, "--tag", "l5", "--year", 2010)

    def ours(self) -> None:
        """Stage 1, whole process."""
        run(self.command())

    def loop(self) -> None:
        """The scene opened again for each unit."""
        run(command_of("benchmarks/reference_clip.py", "loop", self.scene, self.units, self.new_folder("loop")))

    def bare(self) -> None:
        """Blocks read once and patches written, by as many processes as stage 1 uses."""
        windows = self.folder / "windows.npy"
        if not windows.is_file():
            np.save(windows, self.windows())
        run(command_of("benchmarks/reference_clip.py", "bare", self.scene, windows, self.new_folder("bare"), os.cpu_count() or 1))

    def windows(self) -> np.ndarray:
        """Column, row, width and height of the patches that stage 1 has cut [num_units, 4]."""
        manifest = pd.read_csv(next(self.patches.glob("*/*/manifest.csv")), dtype={"geocode": str})
        columns = ["column_offset", "row_offset", "width", "height"]
        return manifest[manifest.status == "written"][columns].to_numpy(np.int64)
