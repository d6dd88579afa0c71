"""Bad input, as the user meets it: one sentence with what, where, the value and the remedy; status 2; nothing half written."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
from affine import Affine

from imagery2flow.run.config import SyntheticConfig
from imagery2flow.run.stage import Ledger
from imagery2flow.sources.synthetic import generate_metro

ROOT = Path(__file__).resolve().parents[1]
SCENE, UNITS, PATCHES, MANIFEST = "data/M1/scene.tif", "data/M1/units.gpkg", "data/M1/l8_2020", "data/M1/l8_2020/manifest.csv"
FLOWS, FEATURES, POPULATION, CKPT = "data/M1/flows.csv", "data/M1/features.csv", "data/M1/population.csv", "ckpt/M1_img_1.pth"
FIRST, SECOND = "01001000100", "01001000200"  # ids of the first two units
WITHOUT_ZERO = FIRST.removeprefix("0")

# Flags with which every stage succeeds in the folder that ``good_folder`` makes; a case appends its own, which override them.
GOOD = {
    "img_preprocessing": f"--input_tif_path {SCENE} --shp_path {UNITS} --output_tif_dir new --region M1 --workers 1",
    "train_img_encoder": f"--data_path {PATCHES} --model_path ckpt --log new --total_epoch 1 --view_size 16 --device cpu",
    "get_img_embedding": f"--data_path {PATCHES} --ckpt {CKPT} --output_path new.csv --device cpu",
    "train_ODPrediction": f"--region M1 --node_feats_path {FEATURES} --log M1 --max_epochs 1 --embedding_size 8 --device cpu",
    "test_ODPrediction": f"--region M1 --node_feats_path {FEATURES} --log M1 --device cpu",
}


class Case(NamedTuple):
    """A fault, how it comes about, and what the sentence must say: fragments in order, ``...`` between them."""

    fault: str
    flags: str
    says: str
    spoil: Callable[[], object] = lambda: None


def stage_main(stage: str) -> Callable[[list[str]], int]:
    """The ``main`` of a script at the root of the repository."""
    specification = importlib.util.spec_from_file_location(f"script_{stage}", ROOT / f"{stage}.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.main


def put(path: str, column: str, *values: str) -> None:
    """Overwrites the first cells of a column of a CSV table."""
    table = pd.read_csv(path, dtype="str")
    table.loc[: len(values) - 1, column] = values
    table.to_csv(path, index=False)


def edit(path: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Changes a CSV table, all of it text."""
    change(pd.read_csv(path, dtype="str")).to_csv(path, index=False)


def drop_zeros(path: str, column: str) -> None:
    """Takes the leading zeros from a column of ids, as a spreadsheet does."""
    edit(path, lambda table: table.assign(**{column: table[column].str.lstrip("0")}))


def numbers_as_parquet(path: str, column: str) -> None:
    """Writes a CSV table as numbers.parquet, one column of ids turned to numbers."""
    pd.read_csv(path, dtype={column: "int64"}).to_parquet("numbers.parquet")


def edit_units(change: Callable[[gpd.GeoDataFrame], gpd.GeoDataFrame]) -> None:
    """Changes the file of units."""
    units = gpd.read_file(UNITS)
    Path(UNITS).unlink()
    change(units).to_file(UNITS)


def rewrite(source: str | Path, target: str | Path, keep: int = 3, blank: int | None = None, **profile: object) -> None:
    """Writes a raster again: its first bands only, one value everywhere, or another profile."""
    with rasterio.open(source) as raster:
        values, names = raster.read(list(range(1, keep + 1))), raster.descriptions[:keep]
        profile = {**raster.profile, "count": keep, **profile}
    if blank is not None:
        values[:] = blank
    with rasterio.open(target, "w", **profile) as raster:
        raster.write(values.astype(str(profile["dtype"])))
        raster.descriptions = names


def rewrite_patches(chosen: slice = slice(None), **changes: object) -> None:
    """Writes patches again with other bands or another type."""
    for path in sorted(Path(PATCHES).glob("*.tif"))[chosen]:
        rewrite(path, path, **changes)


def cut_short(source: str, target: str, share: float = 0.5) -> None:
    """Copies the first part of a file, as a broken download leaves it."""
    content = Path(source).read_bytes()
    Path(target).write_bytes(content[: int(len(content) * share)])


def write(path: str, text: str) -> None:
    Path(path).write_text(text, encoding="utf-8")


def write_split(*names: str) -> None:
    """Writes split.csv: the units take the names in turn."""
    ids = pd.read_csv(FEATURES, dtype="str").geocode
    pd.DataFrame({"geocode": ids, "split": [names[i % len(names)] for i in range(len(ids))]}).to_csv("split.csv", index=False)


def write_distances(*rows: str) -> None:
    write("distance.csv", "\n".join(["h_geocode,w_geocode,distance_m", f"{FIRST},{SECOND},700", *rows]) + "\n")


# fmt: off
SETTINGS = [  # for every stage
    Case("an unknown flag", "--colour red", "--colour red ... --help"),
    Case("an unknown key in the YAML", "--config settings.yaml", "colour ... --help", lambda: write("settings.yaml", "colour: red\n")),
    Case("a YAML that is absent", "--config absent.yaml", "absent.yaml ... --help"),
    Case("a YAML that is none", "--config settings.yaml", "settings.yaml ... --help", lambda: write("settings.yaml", "colour: [red\n")),
]
PREPROCESSING = [
    Case("an absent scene", "--input_tif_path absent.tif", "scene absent.tif does not exist ... --input_tif_path"),
    Case("an absent second scene", f"--input_tif_path {SCENE} absent.tif", "scene absent.tif does not exist ... --input_tif_path"),
    Case("absent units", "--shp_path absent.gpkg", "units absent.gpkg do not exist ... check the path"),
    Case("zones without units", "--shp_path null", "--shp_path ... --mode zones"),
    Case("a share out of range", "--min_valid 2", "--min_valid 2 ... between 0 and 1"),
    Case("a size that is no number", "--size big", "--size ... big ... --help"),
    Case("an unknown mode", "--mode circle", "--mode ... circle ... --help"),
    Case("tiles larger than the scene", "--mode grid --size 500", "--size 500 ... 100 pixels ... smaller --size"),
    Case("polygons instead of points", "--mode points", "--mode points ... Polygon ... --mode zones"),
    Case("units without a CRS", "", f"units {UNITS} state no CRS ... set_crs", lambda: edit_units(lambda u: u.set_crs(None, allow_override=True))),
    Case("metres with a CRS of degrees", "", f"{UNITS} ... CRS", lambda: edit_units(lambda u: u.set_crs(4326, allow_override=True))),
    Case("units in another zone", "", f"no unit of {UNITS} lies on a scene ... -70. ... scene.tif -76. ... mend the CRS", lambda: edit_units(lambda u: u.set_crs(32619, allow_override=True))),
    Case("a scene without a CRS", "", f"scene {SCENE} states no CRS ... rio edit-info", lambda: rewrite(SCENE, SCENE, crs=None)),
    Case("a scene elsewhere", "", f"no unit of {UNITS} lies on a scene ... scene.tif -7 ... name a scene of that place", lambda: rewrite(SCENE, SCENE, transform=Affine(30, 0, 500_000, 0, -30, 4_000_000))),
    Case("no id column", "", f"units {UNITS} have no id column GEOID20 ... name ... --id_column", lambda: edit_units(lambda u: u.rename(columns={"GEOID20": "name"}))),
    Case("an id column that is not there", "--id_column tract", f"units {UNITS} have no id column tract ... GEOID20 ... --id_column"),
    Case("duplicate ids", "", f"units {UNITS}, column GEOID20 ... 1 ids occur more than once ({SECOND}) ... dissolve or rename", lambda: edit_units(lambda u: u.assign(GEOID20=[SECOND, *u.GEOID20[1:]]))),
    Case("ids that are numbers", "", f"units {UNITS}, column GEOID20 ... numbers ({WITHOUT_ZERO}) ... leading zeros ... store them as text", lambda: edit_units(lambda u: u.assign(GEOID20=u.GEOID20.astype("int64")))),
    Case("empty ids", "", f"units {UNITS}, column GEOID20 ... 2 ids are empty ... give every unit an id", lambda: edit_units(lambda u: u.assign(GEOID20=[None, " ", *u.GEOID20[2:]]))),
    Case("several faults of ids", "", "2 faults ... numbers ... more than once", lambda: edit_units(lambda u: u.assign(GEOID20=[1001000200, *u.GEOID20[1:].astype("int64")]))),
    Case("ids that are no file names", "", f"units {UNITS}, column GEOID20 ... (a/b) ... use letters", lambda: edit_units(lambda u: u.assign(GEOID20=["a/b", *u.GEOID20[1:]]))),
    Case("a text file as units", "--shp_path note.gpkg", "units note.gpkg cannot be read ... name a GeoPackage", lambda: write("note.gpkg", "hello")),
    Case("a table as units", f"--shp_path {POPULATION}", f"units {POPULATION} ... without geometries ... polygons or points"),
    Case("a text file as scene", "--input_tif_path note.tif", "scene note.tif cannot be opened as a raster ... --input_tif_path", lambda: write("note.tif", "hello")),
    Case("a folder as scene", "--input_tif_path data", "scene data cannot be opened as a raster ... --input_tif_path"),
    Case("a truncated scene", "", f"scene {SCENE} cannot be read ... truncated: copy it again", lambda: (rewrite(SCENE, SCENE, tiled=False, blockysize=10), cut_short(SCENE, SCENE))),
    Case("a band that is not there", "--bands red blue", f"scene {SCENE} has no blue; its bands are 1 red, 2 nir, 3 swir1 ... --bands"),
    Case("too few names of bands", "--band_names red nir", f"--band_names names 2 bands (red, nir) but scene {SCENE} has 3"),
    Case("scenes of different bands", f"--input_tif_path {SCENE} two.tif", f"scene two.tif has the bands red, nir but {SCENE} has red, nir, swir1 ... --bands", lambda: rewrite(SCENE, "two.tif", keep=2)),
    Case("scenes of different types", f"--input_tif_path {SCENE} two.tif", f"scene two.tif holds float32 but {SCENE} holds uint16; bring them to one type", lambda: rewrite(SCENE, "two.tif", dtype="float32")),
    Case("a scene without a valid pixel", "", f"24 units ... {SCENE} ... nodata value 7 ... --min_valid", lambda: rewrite(SCENE, SCENE, blank=7, nodata=7)),
    Case("a file as output folder", f"--output_tif_dir {FLOWS}", f"--output_tif_dir {FLOWS}"),
]
ENCODER = [
    Case("an absent folder", "--data_path absent", "--data_path absent is no folder; name the one that img_preprocessing.py wrote"),
    Case("a folder without patches", "--data_path ckpt", "--data_path ckpt holds no patch; make them with img_preprocessing.py"),
    Case("an absent patch", "", f"1 patches of {MANIFEST} are gone ({PATCHES}/l8_2020_{FIRST}.tif) ... img_preprocessing.py", lambda: Path(PATCHES, f"l8_2020_{FIRST}.tif").unlink()),
    Case("a manifest without a column", "", f"{MANIFEST} has no column path; make", lambda: edit(MANIFEST, lambda t: t.drop(columns="path"))),
    Case("duplicate ids", "", f"{MANIFEST} ... {SECOND} ... more than once", lambda: put(MANIFEST, "geocode", SECOND)),
    Case("a truncated patch", "", f"patch {PATCHES}/l8_2020_{FIRST}.tif cannot be read ... truncated ... img_preprocessing.py", lambda: cut_short(f"{PATCHES}/l8_2020_{FIRST}.tif", f"{PATCHES}/l8_2020_{FIRST}.tif", 0.8)),
    Case("a text file as patch", "", f"patch {PATCHES}/l8_2020_{FIRST}.tif cannot be opened ... img_preprocessing.py", lambda: write(f"{PATCHES}/l8_2020_{FIRST}.tif", "hello")),
    Case("another count of bands", "--bands 4", f"--bands 4 but the patches of {PATCHES} have 3 bands (red, nir, swir1); name"),
    Case("an unknown band", "--bands red blue", f"patches {PATCHES} has no blue; its bands are 1 red, 2 nir, 3 swir1 ... --bands"),
    Case("one patch of other bands", "", f"patch {PATCHES}/l8_2020_{SECOND}.tif has the bands red, nir, swir1 where the others have red, nir ... equal bands", lambda: rewrite_patches(slice(1), keep=2)),
    Case("one patch of fewer bands", "", f"patch {PATCHES}/l8_2020_{FIRST}.tif has ... red, nir ... where the others have red, nir, swir1 ... equal bands", lambda: rewrite_patches(slice(1, 2), keep=2)),
    Case("one patch of another type", "", f"patch {PATCHES}/l8_2020_{SECOND}.tif holds uint16 but the patches before it float32; bring", lambda: rewrite_patches(slice(1), dtype="float32")),
    Case("jitter of two bands", "--bands red nir --views.rgb_jitter 0.5", "--views.rgb_jitter ... 2 are used; set both to 0"),
    Case("a batch of one", "--batch_size 1", "--batch_size 1 must be 2 or more"),
    Case("a learning rate of zero", "--lr 0", "--lr 0 ... above 0"),
    Case("an unknown backbone", "--resnet resnet99", "--resnet ... resnet99 ... --help"),
    Case("an absent device", "--device cuda:99", "--device cuda:99 is not on this machine ... --device auto"),
    Case("an unknown device", "--device abacus", "--device abacus is no device; use auto"),
    Case("an unknown key in the views", "--config settings.yaml", "colour ... --help", lambda: write("settings.yaml", "views:\n  colour: red\n")),
    Case("views that are a number", "--config settings.yaml", "views ... 3", lambda: write("settings.yaml", "views: 3\n")),
    Case("a share of views out of range", "--views.crop_min_share 0", "--views.crop_min_share 0 ... above 0"),
    Case("other settings on resume", "--resume --log M1 --lr 0.5", f"--resume: {CKPT} was made with other settings (lr 0.001 there, 0.5 now ... choose another --log"),
    Case("a truncated checkpoint on resume", "--resume", "ckpt/new_img_1.pth cannot be read", lambda: cut_short(CKPT, "ckpt/new_img_1.pth")),
    Case("a file as output folder", f"--model_path {FLOWS}", f"--model_path {FLOWS}"),
]
EMBEDDING = [
    Case("an absent folder", "--data_path absent", "--data_path absent is no folder; name the one that img_preprocessing.py wrote"),
    Case("an absent checkpoint", "--ckpt absent.pth", "encoder checkpoint absent.pth is neither here nor in --model_path ckpt; name the file that train_img_encoder.py wrote"),
    Case("no checkpoint of that run", "--ckpt null --log other", "--model_path ckpt has no encoder other_img_*.pth ... --ckpt"),
    Case("a truncated checkpoint", "--ckpt cut.pth", "encoder checkpoint cut.pth cannot be read ... name one", lambda: cut_short(CKPT, "cut.pth")),
    Case("a text file as checkpoint", f"--ckpt {FLOWS}", f"encoder checkpoint {FLOWS} cannot be read ... name one"),
    Case("a flow model as checkpoint", "--ckpt outputs/M1/od_model.pt", "encoder checkpoint outputs/M1/od_model.pt is not one that train_img_encoder.py wrote (its format is imagery2flow-od ... --ckpt"),
    Case("patches without a band of the encoder", "", f"patches {PATCHES} has no swir1; its bands are 1 red, 2 nir ... --", lambda: rewrite_patches(keep=2)),
    Case("patches of another type", "", f"patches {PATCHES} hold float32 but the encoder was trained on uint16 ... --normalisation patches", lambda: rewrite_patches(dtype="float32")),
    Case("a truncated patch", "", f"patch {PATCHES}/l8_2020_{FIRST}.tif cannot be read ... truncated ... img_preprocessing.py", lambda: cut_short(f"{PATCHES}/l8_2020_{FIRST}.tif", f"{PATCHES}/l8_2020_{FIRST}.tif", 0.8)),
    Case("an unknown kind of table", "--output_path new.xlsx", "--output_path new.xlsx must end in .csv"),
    Case("a batch of none", "--batch_size 0", "--batch_size 0 must be above 0"),
    Case("an unknown precision", "--precision fp8", "--precision ... fp8 ... --help"),
    Case("a folder as output table", "--output_path folder.csv", "--output_path folder.csv", lambda: Path("folder.csv").mkdir()),
]
REGION = [  # for stages 4 and 5
    Case("an absent region", "--region M9", "region M9 has no units.gpkg in data/M9 ... --units_path"),
    Case("absent units", "--units_path absent.gpkg", "units absent.gpkg do not exist ... check the path"),
    Case("absent features", "--node_feats_path absent.csv", "features absent.csv does not exist ... check the path"),
    Case("absent flows", "--flows_path absent.csv", "flows absent.csv does not exist ... check the path"),
    Case("absent distances", "--distance_path absent.csv", "distances absent.csv does not exist ... check the path"),
    Case("units without a CRS", "", f"units {UNITS} state no CRS ... set_crs", lambda: edit_units(lambda u: u.set_crs(None, allow_override=True))),
    Case("metres with a CRS of degrees", "", f"{UNITS} ... CRS", lambda: edit_units(lambda u: u.set_crs(4326, allow_override=True))),
    Case("points as units", "", f"{UNITS} ... Point", lambda: edit_units(lambda u: u.set_geometry(u.centroid))),
    Case("units with ids that are numbers", "", f"units {UNITS}, column GEOID20 ... numbers ({WITHOUT_ZERO}) ... store them as text", lambda: edit_units(lambda u: u.assign(GEOID20=u.GEOID20.astype("int64")))),
    Case("units of duplicate ids", "", f"units {UNITS}, column GEOID20 ... more than once ({SECOND}) ... dissolve or rename", lambda: edit_units(lambda u: u.assign(GEOID20=[SECOND, *u.GEOID20[1:]]))),
    Case("units without an id column", "--id_column tract", f"units {UNITS} have no id column tract ... GEOID20 ... --id_column"),
    Case("flows of unknown units", "", f"flows {FLOWS}: 1 ids of h_geocode are not among the 24 units (99999999999) ... --drop_unknown_units", lambda: put(FLOWS, "h_geocode", "99999999999")),
    Case("negative counts", "", f"flows {FLOWS}: 1 counts are negative (line 2: -3); a count is a whole number", lambda: put(FLOWS, "count", "-3")),
    Case("fractional counts", "", f"flows {FLOWS}: 2 counts are fractions (line 2: 2.5, line 3: 0.1); a count is a whole number", lambda: put(FLOWS, "count", "2.5", "0.1")),
    Case("missing counts", "", f"flows {FLOWS}: 1 counts are missing (line 2: ... a count is a whole number", lambda: put(FLOWS, "count", "")),
    Case("counts that are text", "", f"flows {FLOWS}: 1 counts are no numbers (line 2: many); a count is a whole number", lambda: put(FLOWS, "count", "many")),
    Case("infinite counts", "", f"flows {FLOWS}: 1 counts are infinite (line 2: inf); a count is a whole number", lambda: put(FLOWS, "count", "inf")),
    Case("duplicate pairs", "", f"flows {FLOWS}: 1 pairs occur more than once ({FIRST}>{FIRST}); add up", lambda: edit(FLOWS, lambda t: pd.concat([t, t[:1]]))),
    Case("flows without a column", "", f"flows {FLOWS}: columns count are missing among h_geocode, w_geocode, people; rename", lambda: edit(FLOWS, lambda t: t.rename(columns={"count": "people"}))),
    Case("flows without an id", "", f"flows {FLOWS}: 1 values of w_geocode are empty; give", lambda: put(FLOWS, "w_geocode", "")),
    Case("flows of lost zeros", "", f"flows {FLOWS}: ... 24 ids of w_geocode have lost their leading zeros ({WITHOUT_ZERO}, ... 11 characters", lambda: drop_zeros(FLOWS, "w_geocode")),
    Case("flows with ids that are numbers", "--flows_path numbers.parquet", f"flows numbers.parquet: h_geocode holds numbers ({WITHOUT_ZERO}) ... leading zeros ... store ids as text", lambda: numbers_as_parquet(FLOWS, "h_geocode")),
    Case("several faults of the flows", "", f"flows {FLOWS}: 6 faults: ... missing (line 4 ... no numbers (line 5: many) ... negative (line 2: -3) ... fractions (line 3: 0.5) ... h_geocode ... (99999999999) ... w_geocode have lost their leading zeros", lambda: (put(FLOWS, "count", "-3", "0.5", "", "many"), put(FLOWS, "h_geocode", "99999999999"), drop_zeros(FLOWS, "w_geocode"))),
    Case("an empty table of flows", "--flows_path empty.csv", "flows empty.csv cannot be parsed ... check that it is a CSV", lambda: write("empty.csv", "")),
    Case("a raster as flows", f"--flows_path {SCENE}", f"flows {SCENE} has an unknown suffix; name a file that ends in .csv"),
    Case("features that are missing", "", f"features {FEATURES}: columns 1 hold missing or infinite values ... {FIRST} ... fill", lambda: put(FEATURES, "1", "")),
    Case("features that are infinite", "", f"features {FEATURES}: columns 1 hold missing or infinite values ... {FIRST} ... fill", lambda: put(FEATURES, "1", "inf")),
    Case("features that are text", "", f"features {FEATURES}: columns 1 are not numbers ... high ... remove", lambda: put(FEATURES, "1", "high")),
    Case("features of duplicate ids", "", f"features {FEATURES}: 1 ids occur more than once ({SECOND}); keep one row each", lambda: put(FEATURES, "geocode", SECOND)),
    Case("features of lost zeros", "", f"features {FEATURES}: 24 ids of geocode have lost their leading zeros ({WITHOUT_ZERO}, ... 11 characters", lambda: drop_zeros(FEATURES, "geocode")),
    Case("features with ids that are numbers", "--node_feats_path numbers.parquet", f"features numbers.parquet: geocode holds numbers ({WITHOUT_ZERO}) ... store ids as text", lambda: numbers_as_parquet(FEATURES, "geocode")),
    Case("features of another region", "", f"features {FEATURES}: none of its 24 ids (x{FIRST}, ... is among the 24 units ({FIRST}, ... use the features of this region", lambda: edit(FEATURES, lambda t: t.assign(geocode="x" + t.geocode))),
    Case("features without ids", "", f"features {FEATURES} have no column geocode, but id, 0, 1", lambda: edit(FEATURES, lambda t: t.rename(columns={"geocode": "id"}))),
    Case("an empty table of features", "", f"features {FEATURES}: ... 0 rows ... get_img_embedding.py", lambda: edit(FEATURES, lambda t: t[:0])),
    Case("several faults of the features", "", f"features {FEATURES}: 4 faults: ... more than once ({SECOND}) ... columns 0 ... not numbers ... columns 1 ... missing or infinite ... lost their leading zeros ({WITHOUT_ZERO})", lambda: (put(FEATURES, "geocode", SECOND, SECOND, WITHOUT_ZERO), put(FEATURES, "0", "high"), put(FEATURES, "1", "inf"))),
    Case("negative distances", "--distance_path distance.csv", "distances distance.csv ... 1 negative values ... -5 ... give metres", lambda: write_distances(f"{SECOND},{FIRST},-5")),
    Case("distances that are text", "--distance_path distance.csv", "distances distance.csv ... 1 values ... (far); give metres", lambda: write_distances(f"{SECOND},{FIRST},far")),
    Case("distances of lost zeros", "--distance_path distance.csv", "distances distance.csv ... leading zeros ... text", lambda: (write_distances(), drop_zeros("distance.csv", "h_geocode"))),
    Case("duplicate distances", "--distance_path distance.csv", f"distances distance.csv ... {FIRST}>{SECOND} ... keep one row each", lambda: write_distances(f"{FIRST},{SECOND},700")),
    Case("distances without a column", "--distance_path distance.csv", "distances distance.csv ... columns ... distance_m ... rename", lambda: write("distance.csv", "h_geocode,w_geocode,metres\n1,2,3\n")),
    Case("several faults of the distances", "--distance_path distance.csv", "distances distance.csv ... far ... -5", lambda: write_distances(f"{SECOND},{FIRST},far", f"{SECOND},{SECOND},-5")),
    Case("a file as output folder", f"--output_dir {FLOWS}", f"{FLOWS}"),
]
TRAINING = [
    Case("no flows", "", "region M1 has neither flows_2020.csv nor flows.csv in data/M1 ... --flows_path", lambda: Path(FLOWS).unlink()),
    Case("an unknown universe", "--universe all", "--universe ... all ... --help"),
    Case("a dropout of one", "--dropout 1", "--dropout 1 ... below 1"),
    Case("epochs that are no number", "--max_epochs many", "--max_epochs ... many ... --help"),
    Case("trees of one leaf", "--trees.num_leaves 1", "--trees.num_leaves 1 ... 2 or more"),
    Case("a number of trees below zero", "--trees.num_trees -5", "--trees.num_trees -5 ... above 0"),
    Case("too few origins", "", "only 4 units have flows ... --split_path", lambda: edit(FLOWS, lambda t: t[t.h_geocode.isin(t.h_geocode.unique()[:4])])),
    Case("flows that are all small", "--universe gt10", "the train split has no flow of the universe gt10 (of 0 such flows in all) ... --universe positive", lambda: edit(FLOWS, lambda t: t.assign(count="10"))),
    Case("flows that are all zero", "--universe positive", "the train split has no flow of the universe positive (of 0 such flows in all) ... use", lambda: edit(FLOWS, lambda t: t.assign(count="0"))),
    Case("a split without test", "--split_path split.csv", "the test split has no flow ... --split_path", lambda: write_split("train", "valid")),
    Case("an absent split", "--split_path absent.csv", "split absent.csv does not exist ... check the path"),
    Case("a split of unknown names", "--split_path split.csv", "split split.csv: 8 values are not among train, valid, test (held, held", lambda: write_split("train", "valid", "held")),
    Case("a split without a column", f"--split_path {POPULATION}", f"split {POPULATION} needs the columns geocode and split, but has geocode, population; rename"),
    Case("a split of duplicate ids", "--split_path split.csv", f"split split.csv: 1 ids occur more than once ({SECOND}); keep one row each", lambda: (write_split("train", "valid", "test"), put("split.csv", "geocode", SECOND))),
    Case("a split of lost zeros", "--split_path split.csv", f"split split.csv: ... leading zeros ({WITHOUT_ZERO}, ... text", lambda: (write_split("train", "valid", "test"), drop_zeros("split.csv", "geocode"))),
    Case("a split with ids that are numbers", "--split_path numbers.parquet", f"split numbers.parquet: geocode holds numbers ({WITHOUT_ZERO}) ... store ids as text", lambda: (write_split("train", "valid", "test"), numbers_as_parquet("split.csv", "geocode"))),
    Case("several faults of the split", "--split_path split.csv", f"split split.csv: 2 faults: ... (held ... ({SECOND})", lambda: (write_split("train", "valid", "held"), put("split.csv", "geocode", SECOND))),
    Case("an absent population", "--population_path absent.csv", "population absent.csv does not exist ... check the path"),
    Case("a population without its column", f"--population_path {POPULATION} --population_column people", f"population {POPULATION} needs the columns geocode and people, but has geocode, population ... --population_column"),
    Case("a population of duplicate ids", f"--population_path {POPULATION}", f"population {POPULATION} ... ({SECOND}) ... keep one row each", lambda: put(POPULATION, "geocode", SECOND)),
    Case("a population of lost zeros", f"--population_path {POPULATION}", f"population {POPULATION} ... leading zeros ({WITHOUT_ZERO}, ... text", lambda: drop_zeros(POPULATION, "geocode")),
    Case("a population with ids that are numbers", "--population_path numbers.parquet", f"population numbers.parquet: geocode holds numbers ({WITHOUT_ZERO}) ... store ids as text", lambda: numbers_as_parquet(POPULATION, "geocode")),
    Case("a population that is text", f"--population_path {POPULATION}", f"population {POPULATION} ... many", lambda: put(POPULATION, "population", "many")),
    Case("several faults of the population", "--population_path numbers.parquet", f"population numbers.parquet: 2 faults: ... numbers ... ({WITHOUT_ZERO}", lambda: (put(POPULATION, "geocode", FIRST, FIRST), numbers_as_parquet(POPULATION, "geocode"))),
]
TESTING = [
    Case("an absent model", "--log absent", "OD model outputs/absent/od_model.pt does not exist"),
    Case("a model without trees", "", "LightGBM decoder outputs/M1/lightgbm.txt does not exist", lambda: Path("outputs/M1/lightgbm.txt").unlink()),
    Case("a truncated model", "", "OD model outputs/M1/od_model.pt cannot be read", lambda: cut_short("outputs/M1/od_model.pt", "outputs/M1/od_model.pt")),
    Case("an encoder as model", "", "OD model outputs/M1/od_model.pt is not one that this version's train_ODPrediction.py wrote ... --log", lambda: shutil.copy(CKPT, "outputs/M1/od_model.pt")),
    Case("truncated trees", "", "LightGBM decoder outputs/M1/lightgbm.txt is not in LightGBM's text format; train", lambda: cut_short("outputs/M1/lightgbm.txt", "outputs/M1/lightgbm.txt")),
    Case("features of other columns", "", "the features of M1 have 4 columns but the model was trained on 4 (missing: 3; unknown: red_mean); embed", lambda: edit(FEATURES, lambda t: t.rename(columns={"3": "red_mean"}))),
    Case("features of more columns", "", "the features of M1 have 5 columns but the model was trained on 4 (missing: none; unknown: 4); embed", lambda: edit(FEATURES, lambda t: t.assign(**{"4": "1"}))),
    Case("another width", "--embedding_size 64", "--embedding_size 64 but the model outputs/M1 has 8; leave the flag out ... --log"),
    Case("another depth", "--num_hidden_layers 9", "--num_hidden_layers 9 but the model outputs/M1 has 2; leave the flag out ... --log"),
    Case("an unknown format", "--table_format xlsx", "--table_format ... xlsx ... --help"),
]
TABLES = {
    "img_preprocessing": SETTINGS + PREPROCESSING,
    "train_img_encoder": SETTINGS + ENCODER,
    "get_img_embedding": SETTINGS + EMBEDDING,
    "train_ODPrediction": SETTINGS + REGION + TRAINING,
    "test_ODPrediction": SETTINGS + REGION + TESTING,
}
# fmt: on
CASES = [pytest.param(stage, case, id=f"{stage}-{case.fault}") for stage, cases in TABLES.items() for case in cases]


@pytest.fixture(scope="module")
def good_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A city of 24 units with its scene, patches, flows, random features, an encoder and a flow model: all that the stages read."""
    folder = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        generate_metro(SyntheticConfig(output_dir="data", region="M1", num_units=24, size_px=100), Ledger("test", quiet=True))
        ids = pd.read_csv(POPULATION, dtype="str").geocode
        features = pd.DataFrame(np.random.default_rng(0).normal(size=(len(ids), 4)), index=ids, columns=list("0123"))
        features.to_csv(FEATURES)
        for stage, flags in [
            ("img_preprocessing", "--output_tif_dir data"),
            ("train_img_encoder", "--log M1"),
            ("get_img_embedding", ""),
            ("train_ODPrediction", ""),
            ("test_ODPrediction", ""),
        ]:
            assert stage_main(stage)(f"{GOOD[stage]} {flags}".split()) == 0
        shutil.rmtree("outputs/M1/M1_2020")
    return folder


@pytest.fixture
def workplace(good_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the good folder to spoil, as the current folder; the large checkpoint is not copied."""
    for name in ("data", "outputs"):
        shutil.copytree(good_folder / name, tmp_path / name)
    (tmp_path / "ckpt").mkdir()
    (tmp_path / CKPT).symlink_to(good_folder / CKPT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files_in(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file, and every folder."""
    found = {path: path.stat() for path in folder.rglob("*")}
    return {str(path): (state.st_size, state.st_mtime_ns) if path.is_file() else (0, 0) for path, state in found.items()}


def check_sentence(stderr: str, stage: str, says: str) -> None:
    """One line that names the stage and says the fragments in their order; before it nothing but progress."""
    *progress, sentence = stderr.splitlines()
    assert all(line.startswith(f"[{stage}] ") for line in progress), stderr
    assert re.match(rf"{stage}(\.py)?: error: ", sentence), stderr
    pattern = ".*".join(re.escape(fragment) for fragment in says.split(" ... "))
    assert re.search(pattern, sentence), f"expected: {says}\n    said: {sentence}"


@pytest.mark.parametrize(("stage", "case"), CASES)
def test_bad_input_gives_one_sentence_and_status_2_and_writes_nothing(stage, case, workplace, capfd):
    case.spoil()
    before = files_in(workplace)
    capfd.readouterr()
    try:
        status = stage_main(stage)([*GOOD[stage].split(), *case.flags.split()])
    except SystemExit as end:  # of the flags' parser
        status = end.code
    stderr = capfd.readouterr().err
    print("SAID", stage, "|", case.fault, "|", stderr.splitlines()[-1:])
    assert status == 2, stderr
    check_sentence(stderr, stage, case.says)
    assert files_in(workplace) == before
