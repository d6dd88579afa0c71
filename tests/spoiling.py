"""How files are spoiled, how a stage is called on them, and what its answer must look like: for the everyday faults and the corpus of ``tests/faults``."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio

from imagery2flow.run import config, flow_config
from imagery2flow.run.land_cover_config import LandCoverConfig

ROOT = Path(__file__).resolve().parents[1]
SCENE, UNITS, FLOWS, FEATURES = "data/M1/scene.tif", "data/M1/units.gpkg", "data/M1/flows.csv", "data/M1/features.csv"
POPULATION, PATCHES, MANIFEST = "data/M1/population.csv", "data/M1/l8_2020", "data/M1/l8_2020/manifest.csv"
CKPT, MODEL, TREES = "ckpt/M1_img_1.pth", "outputs/M1/od_model.pt", "outputs/M1/lightgbm.txt"
PREDICTIONS = "outputs/M1/M1_2020/predictions_bilinear.csv"
ID, NEXT_ID, BARE_ID = "01001000100", "01001000200", "1001000100"  # of the first two units; the first without its zero
PATCH, NEXT_PATCH = f"{PATCHES}/l8_2020_{ID}.tif", f"{PATCHES}/l8_2020_{NEXT_ID}.tif"
DISTANCES, SPLIT, PARQUET = "--distance_path distance.csv", "--split_path split.csv", "numbers.parquet"

# Flags with which every stage succeeds in ``good_folder``; a case appends its own, which override them.
FLAGS = {
    "img_preprocessing": f"--input_tif_path {SCENE} --shp_path {UNITS} --output_tif_dir new --region M1 --workers 1",
    "train_img_encoder": f"--data_path {PATCHES} --log new --total_epoch 1 --view_size 16 --device cpu --precision fp32",
    "get_img_embedding": f"--data_path {PATCHES} --ckpt {CKPT} --output_path new.csv --device cpu",
    "train_ODPrediction": f"--region M1 --node_feats_path {FEATURES} --log M1 --max_epochs 1 --embedding_size 8 --num_hidden_layers 1 "
    "--trees.num_trees 5 --controls false --device cpu",
    "test_ODPrediction": f"--region M1 --node_feats_path {FEATURES} --log M1 --device cpu",
    "flow_map": f"--predictions_path {PREDICTIONS} --units_path {UNITS} --scene_path {SCENE} --output_path new.png",
}
SETTINGS = {
    "img_preprocessing": config.PreprocessingConfig,
    "train_img_encoder": config.EncoderConfig,
    "get_img_embedding": config.EmbeddingConfig,
    "train_ODPrediction": flow_config.FlowTrainingConfig,
    "test_ODPrediction": flow_config.FlowTestConfig,
    "flow_map": config.FlowMapConfig,
    "land_cover": LandCoverConfig,
    "import_published": flow_config.ImportConfig,
    "results": flow_config.ResultsConfig,
}
P = ParamSpec("P")


@dataclasses.dataclass(frozen=True)
class Case:
    """A fault, how it comes about, and what the sentence must say: fragments in any order, ``...`` between them."""

    fault: str
    flags: str
    says: str
    spoils: tuple[Callable[[], object], ...]


def case(fault: str, flags: str, says: str, *spoils: Callable[[], object]) -> Case:
    return Case(fault, flags, says, spoils)


def later(action: Callable[P, object]) -> Callable[P, Callable[[], object]]:
    """Turns a function into one that waits: the tables of cases say what to spoil, the test spoils it."""
    return lambda *args, **kwargs: functools.partial(action, *args, **kwargs)


@later
def edit(path: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Changes a CSV table, all of it text."""
    change(pd.read_csv(path, dtype="str")).to_csv(path, index=False)


def put(path: str, column: str, *values: str) -> Callable[[], object]:
    """Overwrites the first cells of a column of a CSV table."""
    return edit(path, lambda table: table.assign(**{column: [*values, *table[column][len(values) :]]}))


def drop_zeros(path: str, column: str) -> Callable[[], object]:
    """Takes the leading zeros from a column of ids, as a spreadsheet does."""
    return edit(path, lambda table: table.assign(**{column: table[column].str.lstrip("0")}))


@later
def write_numbers(path: str, column: str) -> None:
    """Writes a CSV table as numbers.parquet, one column of ids turned to numbers."""
    text = dict.fromkeys(("geocode", "h_geocode", "w_geocode"), "str")
    pd.read_csv(path, dtype=text).astype({column: "int64"}).to_parquet(PARQUET)


@later
def edit_units(change: Callable[[gpd.GeoDataFrame], gpd.GeoDataFrame]) -> None:
    """Changes the file of units."""
    units = gpd.read_file(UNITS)
    Path(UNITS).unlink()
    change(units).to_file(UNITS)


def put_ids(*values: object, dtype: str = "str") -> Callable[[], object]:
    """Overwrites the first ids of the units."""
    return edit_units(lambda units: units.assign(GEOID20=[*values, *units.GEOID20[len(values) :].astype(dtype)]))


def label_units(crs: int | str | None) -> Callable[[], object]:
    """Writes another CRS, or none, into the file of units; the coordinates stay."""
    return edit_units(lambda units: units.set_crs(crs, allow_override=True))


@later
def rewrite(source: str, target: str | None = None, keep: int = 3, fill: int | None = None, **profile: object) -> None:
    """Writes a raster again: its first bands only, one value everywhere, or another profile."""
    with rasterio.open(source) as raster:
        values, names = raster.read(list(range(1, keep + 1))), raster.descriptions[:keep]
        profile = {**raster.profile, "count": keep, **profile}
    with rasterio.open(target or source, "w", **profile) as raster:
        raster.descriptions = names  # first, so that the directory stands before the pixels
        raster.write((values if fill is None else np.full_like(values, fill)).astype(str(profile["dtype"])))


@later
def rewrite_patches(**changes: object) -> None:
    for path in Path(PATCHES).glob("*.tif"):
        rewrite(str(path), **changes)()


@later
def cut_short(source: str, target: str | None = None, share: float = 0.5) -> None:
    """Keeps or copies the first part of a file, as a broken download leaves it."""
    content = Path(source).read_bytes()
    Path(target or source).write_bytes(content[: int(len(content) * share)])


@later
def write(path: str, *lines: str) -> None:
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


@later
def write_split(*names: str) -> None:
    """Writes split.csv: the units take the names in turn."""
    ids = pd.read_csv(FEATURES, dtype="str").geocode
    pd.DataFrame({"geocode": ids, "split": [names[i % len(names)] for i in range(len(ids))]}).to_csv("split.csv", index=False)


def write_distances(*rows: str, column: str = "distance_m") -> Callable[[], object]:
    return write("distance.csv", f"h_geocode,w_geocode,{column}", f"{ID},{NEXT_ID},700", *rows)


LOCAL = 'LOCAL_CS["site grid",UNIT["metre",1],AXIS["Easting",EAST],AXIS["Northing",NORTH]]'
remove, make_folder, copy_file = later(Path.unlink), later(Path.mkdir), later(shutil.copyfile)


def call(stage: str, flags: str) -> int | str | None:
    """Exit status of a script at the root of the repository, or of another command, called in this process."""
    path, command = (f"{stage}.py", []) if (ROOT / f"{stage}.py").is_file() else ("imagery2flow/__main__.py", [stage])
    specification = importlib.util.spec_from_file_location(f"script_{stage}", ROOT / path)
    assert specification is not None and specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    try:
        return script.main([*command, *flags.split()])
    except SystemExit as end:  # of the parser of flags
        return end.code


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and time of change, and every folder."""
    found = ((path, path.lstat()) for path in folder.rglob("*"))
    return {str(path): (stat.st_size, stat.st_mtime_ns) if path.is_file() else (0, 0) for path, stat in found}


def check_message(stderr: str, stage: str, item: Case) -> None:
    """One line that names the stage, below it one for each fault where there are several, and in these all fragments; before it nothing but progress."""
    said = [text for text in stderr.splitlines() if not text.startswith(f"[{stage}] ")]
    line, several = "\n".join(said), len(said) > 1
    assert re.match(rf"(python -m imagery2flow )?{stage}(\.py)?: error: ", line) and stderr.endswith(line + "\n"), stderr
    assert not several or re.match(rf".*: error: {len(said) - 1} faults were found; mend all", line), stderr
    assert all(text.startswith("  - ") for text in said[1:]), stderr
    absent = [fragment for fragment in item.says.split(" ... ") if fragment not in line]
    assert not absent, f"\nmissing: {absent}\n   said: {line}"
    assert not re.search(r"\. [A-Z]", line), f"more than one sentence: {line}"
    known = {field.name for field in dataclasses.fields(SETTINGS[stage])} | {"help", "crs"}  # crs is a flag of rio
    named = set(re.findall(r"--(\w+)", line)) - set(re.findall(r"--(\w+)", item.flags))
    assert named <= known, f"flags {named - known} do not exist in {stage}: {line}"
