"""What can be said of units and scenes before patches are cut: overlaps, pixels of a few blocks, how far the one covers the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely
from rasterio.windows import Window

from imagery2flow.imagery.cutting import CutTask
from imagery2flow.imagery.patches import footprint, scene_text, units_on_scenes, warn_of_scene
from imagery2flow.imagery.scene import Scene, SceneReader
from imagery2flow.imagery.units import crs_name
from imagery2flow.run.errors import shown
from imagery2flow.run.inspection import Inspection
from imagery2flow.run.stage import Ledger

OVERLAP_SHARE = 0.01  # of the smaller unit's area; below, borders were digitised twice
SAMPLE_SIDE = 512  # pixels
SAMPLES_PER_SIDE = 3


@dataclass(frozen=True)
class Sample:
    """What a few windows of a scene hold.

    Attributes:
        num_pixels: Pixels that were read.
        valid: Share of them that is valid.
        zero: Share of them that is valid and 0 in every band.
        constant: Names of the bands that have one value in all valid pixels.
    """

    num_pixels: int
    valid: float
    zero: float
    constant: tuple[str, ...]


def look_at_units(units: gpd.GeoDataFrame, path: Path, inspection: Inspection) -> None:
    """Says what the units are, and warns of those that overlap."""
    kinds = ", ".join(sorted(set(units.geom_type)))
    inspection.add(path, "ok", f"{len(units):,} units ({kinds}) in {crs_name(units.crs)}, ids {shown(units.index)}")
    if pairs := overlaps(units):
        remedy = "each counts pixels and area of the other; mend their borders if they should not"
        inspection.add(
            path, "warning", f"{len(pairs):,} pairs of units overlap by more than {OVERLAP_SHARE:.0%} ({shown(pairs)}); {remedy}"
        )


def overlaps(units: gpd.GeoDataFrame) -> list[str]:
    """Pairs of units that share more than a hundredth of the smaller one's area, as ``a+b``, sorted."""
    shapes = units.to_crs(units.estimate_utm_crs()).geometry.to_numpy()
    left, right = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    left, right = left[left < right], right[left < right]
    shared = shapely.area(shapely.intersection(shapes[left], shapes[right]))
    smaller = np.minimum(shapely.area(shapes[left]), shapely.area(shapes[right]))
    found = shared > OVERLAP_SHARE * smaller
    ids = units.index.to_numpy()
    return sorted(f"{first}+{second}" for first, second in zip(ids[left[found]], ids[right[found]], strict=True))


def look_at_scene(scene: Scene, inspection: Inspection) -> None:
    """Says what a scene is, reads a few windows of it, and warns of what they hold."""
    inspection.look(scene.path, warn_of_scene, scene, inspection.ledger)
    sample = inspection.look(scene.path, sample_scene, scene)
    if sample is None:
        return
    inspection.add(scene.path, "ok", f"{scene_text(scene)}; {sample.valid:.0%} of {sample.num_pixels:,} pixels that were read are valid")
    if sample.valid == 0:
        inspection.add(scene.path, "warning", "no pixel that was read is valid; check its nodata value, or --nodata")
    elif sample.constant:
        inspection.add(
            scene.path, "warning", f"bands {shown(sample.constant)} have one value in all pixels that were read; see that the file is whole"
        )
    elif sample.zero > 0 and not scene.nodata and not scene.has_mask:
        text = f"{sample.zero:.0%} of the pixels that were read are 0 in every band, and the scene declares no nodata"
        inspection.add(scene.path, "warning", f"{text}; if 0 means missing, say so with --nodata 0")


def sample_scene(scene: Scene) -> Sample:
    """Reads windows on a regular grid over a scene, its last rows and columns among them, which a broken download lacks.

    Raises:
        InputError: A window cannot be read.
    """
    reader = SceneReader([scene])
    try:
        parts = [reader.read(0, window) for window in sample_windows(scene)]
    finally:
        reader.close()
    values = np.concatenate([part.reshape(len(scene.bands), -1) for part, _ in parts], axis=1)  # [num_bands, num_pixels]
    valid = np.concatenate([part.reshape(-1) for _, part in parts])
    seen = values[:, valid]
    constant = tuple(name for name, band in zip(scene.band_names, seen, strict=True) if len(band) > 1 and (band == band[0]).all())
    return Sample(len(valid), float(valid.mean()), float((seen == 0).all(axis=0).sum() / len(valid)), constant)


def sample_windows(scene: Scene) -> list[Window]:
    """Windows of at most one block each, three by three from the first row and column to the last."""
    width, height = min(scene.block_width, scene.width, SAMPLE_SIDE), min(scene.block_height, scene.height, SAMPLE_SIDE)
    columns = np.unique(np.linspace(0, scene.width - width, SAMPLES_PER_SIDE).astype(int))
    rows = np.unique(np.linspace(0, scene.height - height, SAMPLES_PER_SIDE).astype(int))
    return [Window(int(column), int(row), width, height) for row in rows for column in columns]


def look_at_coverage(
    units: gpd.GeoDataFrame, scenes: Sequence[Scene], units_path: object, context_m: float | None, inspection: Inspection
) -> int:
    """Says how many units lie on the scenes wholly, partly and not at all; returns the pixels of all patches, 0 where none can be cut."""
    names = " ".join(str(scene.path) for scene in scenes)
    quiet = Ledger("check", quiet=True)
    tasks = inspection.look(names, units_on_scenes, units, scenes, quiet, str(units_path), None, context_m)
    if tasks is None:
        return 0
    wholly, partly, outside = sort_by_coverage(tasks, scenes)
    inspection.add(names, "ok", f"{len(wholly):,} units lie wholly on it, {len(partly):,} partly, {len(outside):,} not at all")
    if outside:
        inspection.add(
            names, "warning", f"{len(outside):,} units get no patch ({shown(outside)}); add a scene of their place if they matter"
        )
    if partly:
        remedy = "a unit takes one scene: where it lies on two beside each other, merge them first, with: rio merge"
        inspection.add(names, "warning", f"{len(partly):,} units lie partly on it ({shown(partly)}); {remedy}")
    return sum(task.candidates[0].window.width * task.candidates[0].window.height for task in tasks if task.candidates)


def sort_by_coverage(tasks: Sequence[CutTask], scenes: Sequence[Scene]) -> tuple[list[str], list[str], list[str]]:
    """Ids of the units that one scene holds wholly, of those that lie partly on scenes, and of those on none."""
    outlines = [footprint(scene) for scene in scenes]
    wholly: list[str] = []
    partly: list[str] = []
    outside: list[str] = []
    for task in tasks:
        if any(outlines[candidate.scene_number].covers(candidate.outline) for candidate in task.candidates):
            wholly.append(task.geocode)
        else:
            (partly if task.candidates else outside).append(task.geocode)
    return wholly, partly, outside
