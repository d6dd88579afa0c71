"""``python -m imagery2flow check``: everything that can be known to be wrong with the inputs of a run, before it starts.

Files are read by the readers of the stages (``flows.region.read_parts``, ``imagery.patches.open_scenes``, ...), so that what passes here passes there; beside their faults
stand what was found and what may surprise. Nothing is written but, if it is asked for, the list as JSON.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from imagery2flow.encoder.checkpoint import EncoderRecord, find_checkpoint, load_encoder
from imagery2flow.encoder.embeddings import look_at_patches, note_encoder
from imagery2flow.encoder.labels import read_labels
from imagery2flow.flows.graph import read_distances
from imagery2flow.flows.prediction import look_at_fit
from imagery2flow.flows.record import FlowRecord, load_record
from imagery2flow.flows.region import PlaceParts, Region, find_encoder, join_regions, keep_units, read_embeddings, read_parts
from imagery2flow.flows.splits import check_split, draw_split, read_population, read_split
from imagery2flow.flows.table import FlowTable
from imagery2flow.imagery.checks import look_at_coverage, look_at_scene, look_at_units
from imagery2flow.imagery.patches import open_scenes
from imagery2flow.imagery.scene import Scene, choose_bands, open_scene
from imagery2flow.run.check_config import CheckConfig
from imagery2flow.run.device import CPU, choose_device
from imagery2flow.run.errors import InputError, shown
from imagery2flow.run.files import check_output_folder, deepest_existing, sha256, write_json
from imagery2flow.run.flow_config import Place
from imagery2flow.run.inspection import Inspection
from imagery2flow.run.memory import HOST_SHARE, free_memory
from imagery2flow.run.stage import Ledger

PREDICTION_ROW_BYTES = 55  # as text: two ids of 11 characters, a count of 5, a prediction of 18, a flag of 5, and what separates them


@dataclasses.dataclass(frozen=True)
class Encoder:
    """An encoder that is to embed a region: its file, and what it says of itself."""

    path: Path
    record: EncoderRecord


def check(config: CheckConfig, ledger: Ledger) -> None:
    """Looks at everything and prints what it found, by file.

    Raises:
        InputError: There is at least one fault.
    """
    if config.output_path is not None:
        check_output_folder(Path(config.output_path).parent, "--output_path")
    inspection = Inspection(Ledger(ledger.stage, quiet=True))
    look_at_folders(config, inspection)
    inspection.look("--device", choose_device, config.device)
    encoder = look_at_encoder(config, inspection)
    record = None if not config.log else inspection.look(f"model {config.model_dir}", load_record, Path(config.model_dir), CPU)
    regions = [look_at_place(config, place, encoder, inspection) for place in config.places()]
    whole = [region for region in regions if region is not None]
    is_whole = len(whole) == len(config.region)
    if config.split_path is not None:
        look_at_split(config, sorted(geocode for region in whole for geocode in region.graph.geocodes) if is_whole else (), inspection)
    if is_whole:
        look_at_regions(config, whole, record, inspection)
    print(inspection.as_text())
    if config.output_path is not None:
        write_json(Path(config.output_path), {"findings": [dataclasses.asdict(finding) for finding in inspection.findings]})
    counts = {level: sum(finding.level == level for finding in inspection.findings) for level in ("fault", "warning")}
    if counts["fault"]:
        raise InputError(
            f"{counts['fault']:,} faults and {counts['warning']:,} warnings, listed above; mend the faults and run the same command again"
        )
    print(f"\nno fault, {counts['warning']:,} warnings")


def look_at_folders(config: CheckConfig, inspection: Inspection) -> None:
    """Looks whether the stages can write where they would, and how much room there is."""
    for flag in ("data_root", "model_path", "output_dir"):
        folder = getattr(config, flag)
        faults = len(inspection.errors)
        inspection.look(f"--{flag} {folder}", check_output_folder, folder, f"--{flag}")
        if len(inspection.errors) == faults:
            inspection.add(f"--{flag} {folder}", "ok", f"can be written to; {size_text(free_disk(folder))} are free")


def free_disk(folder: str | Path) -> int:
    """Bytes that are free where a folder is, or would be."""
    return shutil.disk_usage(deepest_existing(Path(folder))).free


def look_at_encoder(config: CheckConfig, inspection: Inspection) -> Encoder | None:
    """The encoder that is to embed the region; None where none is named, or it has faults."""
    if config.ckpt is None:
        return None
    path = inspection.look(f"--ckpt {config.ckpt}", find_checkpoint, config.ckpt, config.model_path, "")
    loaded = None if path is None else inspection.look(path, load_encoder, path)
    if path is None or loaded is None:
        return None
    record = loaded[1]
    normalisation = record.normalisation
    bands = f"{', '.join(normalisation.band_names)} ({normalisation.dtype})"
    inspection.add(path, "ok", f"{record.resnet} of {bands}, views of {record.view_size} px, epoch {record.epoch} of {record.total_epoch}")
    inspection.look(path, note_encoder, path, record, inspection.ledger)
    return Encoder(path, record)


def look_at_place(config: CheckConfig, place: Place, encoder: Encoder | None, inspection: Inspection) -> Region | None:
    """Looks at every file of a region; returns the region where its units, and its features and flows if there are any, have no fault."""
    faults = len(inspection.errors)
    parts = read_parts(config, place, inspection, flows_required=False)
    sound = len(inspection.errors) == faults
    geocodes = () if parts.units is None else tuple(parts.units.index)
    if parts.units is not None and parts.units_path is not None:
        look_at_units(parts.units, parts.units_path, inspection)
    look_at_imagery(config, place, parts, encoder, inspection)
    look_at_features(config, place, parts, encoder, inspection)
    if parts.flows is not None:
        look_at_counts(parts.flows, parts.flows_path, inspection)
    if place.distance_path is not None and parts.graph is not None and parts.graph.table_m is not None:
        inspection.add(place.distance_path, "ok", distances_text(parts.graph.table_m))
    for path in config.distance_paths(place.region):
        table_m = inspection.look(path, read_distances, path, geocodes, inspection.ledger)
        if table_m is not None and geocodes:
            inspection.add(path, "ok", f"{distances_text(table_m)}; a run takes them with --distance_path")
    look_at_population(config.population_paths(place.region), config.population_column, geocodes, inspection)
    if geocodes:
        estimate_matrix(config, place.region, len(geocodes), inspection)
    return as_region(place, parts) if sound else None


def look_at_imagery(config: CheckConfig, place: Place, parts: PlaceParts, encoder: Encoder | None, inspection: Inspection) -> None:
    """Looks at scenes, at how they cover the units, and at patches."""
    paths = config.scene_paths(place.region)
    together = [paths] if config.input_tif_path else [[path] for path in paths]  # those that are found need not be of one sensor
    opened = partial(open_scene, bands=config.bands, names=config.band_names, nodata=config.nodata, allow_remote=config.allow_remote)
    for group in together:
        scenes = open_scenes(group, opened, True, inspection)
        for scene in scenes:
            look_at_scene(scene, inspection)
            if encoder is not None:
                look_at_bands(scene, encoder, inspection)
        if parts.units is not None and len(scenes) == len(group) and all(scene.lies_on_earth for scene in scenes):
            num_pixels = look_at_coverage(parts.units, scenes, parts.units_path, config.context_m, inspection)
            estimate_patches(config, scenes, num_pixels, inspection)
    for folder in config.patch_folders(place.region):
        path, record = (None, None) if encoder is None else (encoder.path, encoder.record)
        files = look_at_patches(folder, path, record, True, inspection, config.scene_dir)
        if files is None:
            continue
        inspection.add(
            folder,
            "ok",
            f"{len(files.paths):,} patches of {', '.join(files.names)} ({files.dtype}), {sum(files.num_pixels.values()):,} pixels",
        )
        if config.label_column or config.target_column:  # the fold that is held out is another with another seed, which no fault depends on
            inspection.look(folder, read_labels, config, folder, list(files.paths), 0, None, inspection.ledger)
        foreign = [] if parts.units is None else sorted(set(files.paths) - set(parts.units.index))
        if foreign:
            inspection.add(
                folder,
                "warning",
                f"{len(foreign):,} patches are of no unit ({shown(foreign)}); cut them from these units if these have changed",
            )


def look_at_bands(scene: Scene, encoder: Encoder, inspection: Inspection) -> None:
    """Looks whether a scene has the bands of the encoder, and their type."""
    trained = encoder.record.normalisation
    remedy = f"the encoder {encoder.path} reads {', '.join(trained.band_names)}: name the scene's bands with --band_names, or train an encoder on the common ones"
    inspection.look(scene.path, choose_bands, trained.band_names, dict(enumerate(scene.band_names, start=1)), f"scene {scene.path}", remedy)
    if scene.dtype != trained.dtype:
        inspection.add(
            scene.path,
            "warning",
            f"it holds {scene.dtype} but the encoder {encoder.path} was trained on {trained.dtype}; bring it to the encoder's units, "
            "or let stage 3 scale it by its own statistics with --normalisation patches",
        )


def look_at_features(config: CheckConfig, place: Place, parts: PlaceParts, encoder: Encoder | None, inspection: Inspection) -> None:
    """Says what tables of features hold, and looks at those that lie in the region's folder."""
    tables = {} if parts.features is None or place.node_feats_path is None else {place.node_feats_path: parts.features}
    units = pd.Index([]) if parts.units is None else parts.units.index
    for path in config.feature_paths(place.region):
        table = inspection.look(path, read_embeddings, path, units, inspection.ledger)
        if table is not None:
            tables[path] = table
            inspection.look(path, find_encoder, path, inspection.ledger)
    for path, table in tables.items():
        numbered = sum(name.isdigit() for name in table.columns)
        inspection.add(path, "ok", f"{len(table):,} units, {numbered:,} numbered and {table.shape[1] - numbered:,} named columns")
        constant = table.columns[(table == table.iloc[0]).all()]
        if len(constant) and len(table) > 1:
            text = f"{len(constant):,} of {table.shape[1]:,} columns have one value in all units ({shown(constant)})"
            inspection.add(path, "warning", f"{text}; they tell nothing, see where they come from")
        source = find_encoder(path, Ledger("check", quiet=True))
        if encoder is not None and source is not None and source.sha256 != sha256(encoder.path):
            inspection.add(
                path, "warning", f"it comes from the encoder {source}, not from {encoder.path}; embed the region again if it should"
            )


def look_at_counts(flows: FlowTable, path: object, inspection: Inspection) -> None:
    """Says how many flows there are, in all and of the published selection."""
    sizes = {name: len(flows.universe(name)) for name in ("gt10", "positive")}
    complete = 0 if flows.block is None else int((flows.block >= 0).sum())
    inspection.add(
        path,
        "ok",
        f"{len(flows):,} flows, {sizes['positive']:,} above 0, {sizes['gt10']:,} above 10, {flows.count.sum():,.0f} commuters; "
        f"absent pairs are {f'zeros between {complete:,} of {len(flows.geocodes):,} units' if complete else 'unknown, not zeros'}",
    )


def look_at_population(paths: Sequence[str], column: str, geocodes: Sequence[str], inspection: Inspection) -> None:
    """Looks at tables of the population, and names the units that none of them knows."""
    known = np.zeros(len(geocodes), dtype=bool)
    tables = [inspection.look(path, read_population, path, column, geocodes, inspection.ledger) for path in paths]
    for path, population in zip(paths, tables, strict=True):
        if population is None or not len(geocodes):
            return
        known |= ~np.isnan(population)
        inspection.add(path, "ok", f"population of {int(np.isfinite(population).sum()):,} of {len(geocodes):,} units")
    unknown = np.array(geocodes, dtype=object)[~known]
    if paths and len(unknown):
        text = f"{len(unknown):,} units have no known population ({shown(unknown)}) and are ranked at random in the split"
        inspection.add(paths[-1], "warning", text)


def look_at_split(config: CheckConfig, geocodes: Sequence[str], inspection: Inspection) -> None:
    """Looks at the split of the units of all regions; at the table itself where they are not known."""
    assert config.split_path is not None
    split = inspection.look(config.split_path, read_split, config.split_path, config.split, geocodes, inspection.ledger)
    if split is not None and len(geocodes):
        inspection.add(config.split_path, "ok", f"labels of {int((split.label != '').sum()):,} of {len(geocodes):,} units")


def distances_text(table_m: np.ndarray) -> str:
    """How many distances a table has [num_units, num_units]."""
    return f"distances of {int(np.isfinite(table_m).sum()):,} pairs of units"


def as_region(place: Place, parts: PlaceParts) -> Region | None:
    """The region as stages 4 and 5 see it; without features one of no columns."""
    if parts.graph is None:
        return None
    geocodes, quiet = parts.graph.geocodes, Ledger("check", quiet=True)
    features = pd.DataFrame(index=pd.Index(geocodes)) if parts.features is None else parts.features
    flows = None if parts.flows is None else keep_units(parts.flows, geocodes, quiet)
    values = features.to_numpy(np.float32)
    part = np.zeros(len(geocodes), dtype=np.int64)
    return Region((place.region,), parts.graph, part, tuple(features.columns), values, flows, parts.untrained, parts.encoder)


def look_at_regions(config: CheckConfig, regions: Sequence[Region], record: FlowRecord | None, inspection: Inspection) -> None:
    """Looks whether regions fit each other, the flow model, and the split of stage 4."""
    joined = inspection.look(f"regions {' '.join(config.region)}", join_regions, regions)
    if joined is None:
        return
    if record is not None and not joined.columns:
        inspection.add(
            f"model {config.model_dir}",
            "warning",
            "without --node_feats_path it is not known whether it can predict the region; name the features",
        )
    elif record is not None:
        look_at_fit(config, record, joined, inspection)
    elif config.trains and joined.flows is not None:
        inspection.look(f"training on {config.name}", look_at_training, config, joined)


def look_at_training(config: CheckConfig, region: Region) -> None:
    """Looks whether the flows suffice for the split of stage 4.

    Raises:
        InputError: They do not.
    """
    pairs = region.observed().universe(config.universe)
    if config.split_path is not None:
        split = read_split(config.split_path, config.split, region.graph.geocodes, Ledger("check", quiet=True))
    else:
        split = draw_split(config.split, region, None, seed=0)
    try:
        check_split(split, pairs, config.universe)
    except InputError as error:
        raise InputError(f"{error}; a region that is only predicted passes with --predict_only") from error


def estimate_patches(config: CheckConfig, scenes: Sequence[Scene], num_pixels: int, inspection: Inspection) -> None:
    """Estimates what patches take on the disk, uncompressed as they are, and their pixels in memory, by the sizes of the windows."""
    scene = scenes[0]
    pixel = len(scene.bands) * np.dtype(scene.dtype).itemsize
    subject = f"estimates for stages 1 and 2 with {scene.path.name}"
    estimate_disk(subject, f"patches take {size_text(num_pixels * pixel)}", num_pixels * pixel, config.data_root, inspection)
    # Values, whether they are valid and where the valid ones are; a third more for the levels of lower resolution, with shares in single precision.
    in_memory = num_pixels * (pixel + 1 + 4) + num_pixels * (pixel + 4) // 3
    room = size_text(int(HOST_SHARE * free_memory(CPU)))
    inspection.add(
        subject,
        "ok",
        f"estimate: pixels take {size_text(in_memory)} of memory in stage 2, which gives them {room} and keeps the rest in a file",
    )


def estimate_matrix(config: CheckConfig, region: str, num_units: int, inspection: Inspection) -> None:
    """Estimates the size of a table of every pair of units."""
    size = num_units**2 * PREDICTION_ROW_BYTES
    text = f"the {num_units**2:,} pairs of {region} take {size_text(size)} for each decoder as CSV, where all are asked for"
    estimate_disk("estimates for stage 5", text, size, config.output_dir, inspection)


def estimate_disk(subject: str, text: str, needed: int, folder: str, inspection: Inspection) -> None:
    """Notes an estimate, as a warning where the disk has no room for so much."""
    free = free_disk(folder)
    if needed <= free:
        inspection.add(subject, "ok", f"estimate: {text}")
    else:
        inspection.add(
            subject, "warning", f"estimate: {text}, but the disk of {folder} has {size_text(free)}; make room, or name another folder"
        )


def size_text(num_bytes: int) -> str:
    """A size for people: ``0.4 MB``, ``12 GB``."""
    unit, name = (1e9, "GB") if num_bytes >= 1e9 else (1e6, "MB")
    return f"{num_bytes / unit:,.{0 if num_bytes >= 10 * unit else 1}f} {name}"
