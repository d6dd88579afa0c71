"""Bad input, as the user meets it: one sentence with what, where, the value and the remedy; status 2; nothing half written."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
from affine import Affine

from imagery2flow.run import config, flow_config
from imagery2flow.run.land_cover_config import LandCoverConfig
from imagery2flow.run.stage import Ledger
from imagery2flow.sources.synthetic import generate_metro

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

# fmt: off
ANY_STAGE = [
    case("an unknown flag", "--colour red", "--colour red ... --help"),
    case("an unknown key in the YAML", "--config set.yaml", "set.yaml ... colour ... --help", write("set.yaml", "colour: red")),
]
UNITS_OF_A_STAGE = [  # 1, 4 and 5
    case("units without a CRS", "", f"units {UNITS} state no CRS ... set_crs", label_units(None)),
    case("units in a local CRS", "", f"units {UNITS} state the local CRS site grid ... set_crs", label_units(LOCAL)),
    case("metres that are labelled degrees", "", f"{UNITS} ... 400000 ... CRS", label_units(4326)),
    case("no id column", "", f"units {UNITS} have no id column GEOID20 ... name ... --id_column",
         edit_units(lambda u: u.rename(columns={"GEOID20": "name"}))),
    case("an id column that is not there", "--id_column tract", f"units {UNITS} have no id column tract ... GEOID20 ... --id_column"),
    case("duplicate ids", "", f"units {UNITS}, column GEOID20 ... more than once ({NEXT_ID}) ... dissolve", put_ids(NEXT_ID)),
    case("numeric ids", "", f"units {UNITS}, column GEOID20 ... numbers ({BARE_ID}) ... zeros ... as text", put_ids(dtype="int64")),
    case("empty ids", "", f"units {UNITS}, column GEOID20 ... 2 ids are empty ... give every unit an id", put_ids(None, " ")),
    case("several faults of ids", "", "2 faults ... numbers ... more than once", put_ids(int(NEXT_ID), dtype="int64")),
    case("a text file as units", "", f"units {UNITS} cannot be read ... name a GeoPackage", write(UNITS, "hello")),
]
PREPROCESSING = [
    case("an absent YAML", "--config absent.yaml", "absent.yaml ... --help"),
    case("a YAML that is none", "--config set.yaml", "set.yaml ... line 1 ... --help", write("set.yaml", "colour: [red")),
    case("an absent scene", f"--input_tif_path {SCENE} absent.tif", "scene absent.tif does not exist ... --input_tif_path"),
    case("absent units", "--shp_path absent.gpkg", "units absent.gpkg do not exist ... check the path"),
    case("a share out of range", "--min_valid 2", "--min_valid 2 ... between 0 and 1"),
    case("a size that is no number", "--size big", "size ... big ... --help"),
    case("an unknown mode", "--mode circle", "mode ... circle ... --help"),
    case("units in another zone", "", f"no unit of {UNITS} lies on a scene ... -70. ... scene.tif -76. ... CRS", label_units(32619)),
    case("a scene without a CRS", "", f"scene {SCENE} states no CRS ... rio edit-info", rewrite(SCENE, crs=None)),
    case("a scene in a local CRS", "", f"scene {SCENE} states the local CRS site grid, so ... rio edit-info", rewrite(SCENE, crs=LOCAL)),
    case("points on a scene in a local CRS", "--mode points", f"scene {SCENE} states the local CRS site grid ... rio edit-info",
         rewrite(SCENE, crs=LOCAL)),
    case("a scene elsewhere", "", f"no unit of {UNITS} lies on a scene ... -76. ... scene.tif -75. ... name a scene of that place",
         rewrite(SCENE, transform=Affine(30, 0, 500_000, 0, -30, 4_000_000))),
    case("a text file as scene", "", f"scene {SCENE} cannot be opened ... --input_tif_path", write(SCENE, "hello")),
    case("a scene that lacks its directory", "", f"scene {SCENE} ... copy it again", cut_short(SCENE)),
    case("a scene that lacks its last rows", "", f"scene {SCENE} cannot be read ... truncated: copy it again",
         rewrite(SCENE, compress=None, interleave="pixel", tiled=False), cut_short(SCENE, share=0.9)),
    case("a band that is not there", "--bands red blue", f"scene {SCENE} has no blue; its bands are 1 red, 2 nir, 3 swir1 ... --bands"),
    case("scenes of different bands", f"--input_tif_path {SCENE} two.tif", "two.tif has the bands red, nir but ... swir1 ... --bands",
         rewrite(SCENE, "two.tif", keep=2)),
    case("a scene without a valid pixel", "", f"24 units ... {SCENE} ... nodata ... --min_valid", rewrite(SCENE, fill=0)),
    case("a file as output folder", f"--output_tif_dir {FLOWS}", f"--output_tif_dir {FLOWS}"),
    case("faults of several inputs", f"--input_tif_path {SCENE} absent.tif --output_tif_dir {FLOWS}",
         f"4 faults ... --output_tif_dir {FLOWS} cannot ... absent.tif does not exist ... {SCENE} states no CRS ... more than once",
         rewrite(SCENE, crs=None), put_ids(NEXT_ID)),
]
PATCHES_OF_A_STAGE = [  # 2 and 3
    case("an absent folder", "--data_path absent", "--data_path absent is no folder; name the one that img_preprocessing.py wrote"),
    case("a folder without patches", "--data_path ckpt", "--data_path ckpt holds no patch; make them with img_preprocessing.py"),
    case("an absent patch", "", f"1 patches of {MANIFEST} are gone ({PATCH}) ... img_preprocessing.py", remove(Path(PATCH))),
    case("a truncated patch", "", f"patch {PATCH} cannot be ... truncated ... img_preprocessing.py", cut_short(PATCH)),
    case("duplicate ids", "", f"{MANIFEST} ... {NEXT_ID} ... img_preprocessing.py", put(MANIFEST, "geocode", NEXT_ID)),
    case("an unknown device", "--device abacus", "--device abacus is no device; use auto"),
    case("faults of several inputs", "--device abacus --data_path absent", "2 faults ... --device abacus ... --data_path absent is no folder"),
]
ENCODER = [
    case("another count of bands", "--bands 4", f"--bands 4 but the patches of {PATCHES} have 3 bands (red, nir, swir1); name"),
    case("an unknown band", "--bands red blue", f"patches {PATCHES} has no blue; its bands are 1 red, 2 nir, 3 swir1 ... --bands"),
    case("a first patch of fewer bands", "", f"patch {NEXT_PATCH} has the bands red, nir, swir1 where ... have red, nir; cut",
         rewrite(PATCH, keep=2)),
    case("a later patch of fewer bands", "", f"patch {NEXT_PATCH} has the bands red, nir ... where ... have red, nir, swir1; cut",
         rewrite(NEXT_PATCH, keep=2)),
    case("patches of different types", "", f"patch {NEXT_PATCH} holds uint16 but the patches before it float32; bring",
         rewrite(PATCH, dtype="float32")),
    case("a batch of one", "--batch_size 1", "--batch_size 1 must be 2 or more"),
    case("an unknown key in the views", "--config set.yaml", "set.yaml ... colour ... --help",
         write("set.yaml", "views:", "  colour: red")),
    case("other settings on resume", "--resume --log M1 --lr 0.5", f"{CKPT} was made with other settings (lr 0.001 there, 0.5 now); repeat"),
    case("a truncated checkpoint on resume", "--resume", "ckpt/new_img_1.pth cannot be read", cut_short(CKPT, "ckpt/new_img_1.pth")),
    case("a file as output folder", f"--model_path {FLOWS}", f"--model_path {FLOWS}"),
]
EMBEDDING = [
    case("an absent checkpoint", "--ckpt absent.pth", "encoder checkpoint absent.pth is neither here nor in --model_path ckpt; name"),
    case("no checkpoint of that run", "--ckpt null --log other", "--model_path ckpt has no encoder other_img_*.pth ... --ckpt"),
    case("a truncated checkpoint", "--ckpt cut.pth", "encoder checkpoint cut.pth cannot be read ... name one", cut_short(CKPT, "cut.pth")),
    case("a text file as checkpoint", f"--ckpt {FLOWS}", f"encoder checkpoint {FLOWS} cannot be read ... name one"),
    case("a flow model as checkpoint", f"--ckpt {MODEL}",
         f"encoder checkpoint {MODEL} is not ... (its format is imagery2flow-od ... --ckpt"),
    case("patches without a band of the encoder", "", f"patches {PATCHES} has no swir1; its bands are 1 red, 2 nir",
         rewrite_patches(keep=2)),
    case("patches of another type", "", f"patches {PATCHES} hold float32 but ... trained on uint16 ... --normalisation patches",
         rewrite_patches(dtype="float32")),
    case("an unknown kind of table", "--output_path new.xlsx", "--output_path new.xlsx must end in .csv"),
    case("a folder as output table", "--output_path new.csv", "--output_path new.csv", make_folder(Path("new.csv"))),
]
REGION = [  # of stages 4 and 5
    case("an absent region", "--region M9", "region M9 has no units.gpkg in data/M9 ... --units_path"),
    case("absent units", "--units_path absent.gpkg", "units absent.gpkg do not exist ... check the path"),
    case("absent features", "--node_feats_path absent.csv", "features absent.csv does not exist ... check the path"),
    case("absent flows", "--flows_path absent.csv", "flows absent.csv does not exist ... check the path"),
    case("absent distances", "--distance_path absent.csv", "distances absent.csv does not exist ... check the path"),
    case("a region twice", "--region M1 M1", "--region M1 M1 names a region twice; name each once"),
    case("more files than regions", f"--flows_path {FLOWS} more.csv", "--flows_path names 2 files for 1 regions (M1); give one for each"),
    case("points as units", "", f"{UNITS} ... Point ... give the tracts", edit_units(lambda u: u.set_geometry(u.centroid))),
    case("unknown units", "", f"flows {FLOWS}: 1 ids of h_geocode are not among the 24 units (9) ... --drop_unknown_units",
         put(FLOWS, "h_geocode", "9")),
    case("negative counts", "", f"flows {FLOWS}: 1 counts are negative (line 2: -3); a count is", put(FLOWS, "count", "-3")),
    case("fractional counts", "", f"flows {FLOWS}: 1 counts are fractions (line 3: 0.1); a count is", put(FLOWS, "count", "2.0", "0.1")),
    case("missing counts", "", f"flows {FLOWS}: 1 counts are missing (line 2: ... a count is", put(FLOWS, "count", "")),
    case("counts that are text", "", f"flows {FLOWS}: 1 counts are no numbers (line 2: many); a count is", put(FLOWS, "count", "many")),
    case("infinite counts", "", f"flows {FLOWS}: 1 counts are infinite (line 2: inf); a count is", put(FLOWS, "count", "inf")),
    case("duplicate pairs", "", f"flows {FLOWS}: 1 pairs occur more than once ({ID}>{ID}); add up",
         edit(FLOWS, lambda t: pd.concat([t, t[:1]]))),
    case("flows without a column", "", f"flows {FLOWS}: columns count are missing among h_geocode, w_geocode, people; rename",
         edit(FLOWS, lambda t: t.rename(columns={"count": "people"}))),
    case("flows without an id", "", f"flows {FLOWS}: 1 values of w_geocode are empty; give", put(FLOWS, "w_geocode", "")),
    case("flows of lost zeros", "", f"flows {FLOWS}: 24 ids of w_geocode have lost their leading zeros ({BARE_ID}, ... 11 characters",
         drop_zeros(FLOWS, "w_geocode")),
    case("flows of numeric ids", f"--flows_path {PARQUET}", f"{PARQUET}: h_geocode holds numbers ({BARE_ID}) ... as text",
         write_numbers(FLOWS, "h_geocode")),
    case("several faults of the flows", "", f"flows {FLOWS}: 6 faults: ... missing (line 4 ... no numbers (line 5: many) ... "
         f"(line 2: -3) ... (line 3: 0.5) ... h_geocode ... (9) ... w_geocode have lost their leading zeros ({BARE_ID}",
         put(FLOWS, "count", "-3", "0.5", "", "many"), put(FLOWS, "h_geocode", "9"), drop_zeros(FLOWS, "w_geocode")),
    case("an empty table of flows", "", f"flows {FLOWS} cannot be parsed ... check", write(FLOWS)),
    case("missing features", "", f"features {FEATURES}: columns 1 hold missing ... {ID} ... fill", put(FEATURES, "1", "")),
    case("infinite features", "", f"features {FEATURES}: columns 1 hold ... infinite ... {ID} ... fill", put(FEATURES, "1", "inf")),
    case("features that are text", "", f"features {FEATURES}: columns 1 ... high ... remove", put(FEATURES, "1", "high")),
    case("features of duplicate ids", "", f"features {FEATURES}: 1 ids occur more than once ({NEXT_ID}); keep",
         put(FEATURES, "geocode", NEXT_ID)),
    case("features of lost zeros", "",
         f"features {FEATURES}: 24 ids of geocode have lost their leading zeros ({BARE_ID}, ... 11 characters",
         drop_zeros(FEATURES, "geocode")),
    case("features of numeric ids", f"--node_feats_path {PARQUET}", f"{PARQUET}: geocode holds numbers ({BARE_ID}) ... as text",
         write_numbers(FEATURES, "geocode")),
    case("features of another region", "", f"features {FEATURES}: none of its 24 ids (x{ID}, ... the 24 units ({ID}, ... use the features",
         edit(FEATURES, lambda t: t.assign(geocode="x" + t.geocode))),
    case("features without ids", "", f"features {FEATURES} have no column geocode, but id, 0, 1, 2, 3; name",
         edit(FEATURES, lambda t: t.rename(columns={"geocode": "id"}))),
    case("an empty table of features", "", f"features {FEATURES}: the table has 0 rows ... get_img_embedding.py",
         edit(FEATURES, lambda t: t[:0])),
    case("several faults of the features", "", f"features {FEATURES}: 4 faults: ... more than once ({NEXT_ID}) ... columns 0 are not "
         f"numbers ... columns 1 hold missing ... lost their leading zeros ({BARE_ID})",
         put(FEATURES, "geocode", NEXT_ID, NEXT_ID, BARE_ID), put(FEATURES, "0", "high"), put(FEATURES, "1", "inf")),
    case("negative distances", DISTANCES, "distances distance.csv ... 1 ... negative ... -5 ... give metres",
         write_distances(f"{NEXT_ID},{ID},-5")),
    case("distances that are text", DISTANCES, "distances distance.csv ... 1 ... no numbers (far); give metres",
         write_distances(f"{NEXT_ID},{ID},far")),
    case("distances of lost zeros", DISTANCES, f"distances distance.csv ... leading zeros ({BARE_ID}) ... as text",
         write_distances(), drop_zeros("distance.csv", "h_geocode")),
    case("duplicate distances", DISTANCES, f"distances distance.csv ... more than once ({ID}>{NEXT_ID}); keep",
         write_distances(f"{ID},{NEXT_ID},7")),
    case("distances without a column", DISTANCES, "distances distance.csv ... distance_m ... metres ... rename",
         write_distances(column="metres")),
    case("faults of several inputs", f"{DISTANCES} --device abacus",
         "5 faults ... --device abacus is no device ... column GEOID20: the ids are numbers ... columns 1 hold ... negative (-5) ... (line 2: -3)",
         put_ids(dtype="int64"), put(FEATURES, "1", "inf"), write_distances(f"{NEXT_ID},{ID},-5"), put(FLOWS, "count", "-3")),
    case("several faults of the distances", DISTANCES, "distances distance.csv: 2 faults: ... far ... -5",
         write_distances(f"{NEXT_ID},{ID},far", f"{NEXT_ID},{NEXT_ID},-5")),
]
TRAINING = [
    case("no flows", "", "region M1 has neither flows_2020.csv nor flows.csv in data/M1 ... --flows_path", remove(Path(FLOWS))),
    case("a dropout of one", "--dropout 1", "--dropout 1 ... below 1"),
    case("trees of one leaf", "--trees.num_leaves 1", "--trees.num_leaves 1 must be"),
    case("fewer trees than none", "--trees.num_trees -5", "--trees.num_trees -5 must be"),
    case("too few origins", "", "region M1 has 4 units with flows, of which the split origin gives ... fewer than 2; give ... --split_path",
         edit(FLOWS, lambda t: t[t.h_geocode.isin(t.h_geocode.unique()[:4])])),
    case("flows that are all small", "", "the train split has no flow of the universe gt10 (of 0 ... --universe positive",
         edit(FLOWS, lambda t: t.assign(count="10"))),
    case("regions of the same ids", f"--region M1 M2 --units_path {UNITS} {UNITS} --flows_path {FLOWS} {FLOWS}",
         f"the regions M1 M2 share 24 ids of units ({ID}, ... give each unit an id of its own"),
    case("an untrained encoder's table of other units", "", f"features data/M1/features_untrained.csv have other ids ... than {FEATURES}; make",
         copy_file(FEATURES, "data/M1/features_untrained.csv"), edit("data/M1/features_untrained.csv", lambda t: t[2:])),
    case("zeros that nobody knows", "--universe full", "the universe full needs zeros ... complete_block, or --flows_complete"),
    case("logarithms of zeros", "--universe full --flows_complete --loss balanced_mse",
         "--loss balanced_mse takes the logarithm ... full ... --loss poisson"),
    case("a radius of nothing", "--context_m 0", "--context_m [0.0] must be above 0"),
    case("a split file of pairs", f"{SPLIT} --split pair", "--split_path split.csv ... --split pair ... leave one", write_split("train", "test")),
    case("a split without test", SPLIT, "the test split has no flow ... --split_path", write_split("train", "valid")),
    case("an absent split", SPLIT, "split split.csv does not exist ... check the path"),
    case("a split without a column", f"--split_path {POPULATION}",
         f"split {POPULATION} needs the columns ... split ... population; rename"),
    case("several faults of the split", SPLIT, f"split split.csv: 2 faults: 8 values ... train, valid, test (held, ... ({NEXT_ID})",
         write_split("train", "valid", "held"), put("split.csv", "geocode", NEXT_ID)),
    case("a split of lost zeros", SPLIT, f"split split.csv: ... leading zeros ({BARE_ID}, ... text",
         write_split("train", "valid", "test"), drop_zeros("split.csv", "geocode")),
    case("a split of numeric ids", f"--split_path {PARQUET}", f"split {PARQUET}: geocode holds numbers ({BARE_ID}) ... as text",
         write_split("train", "valid", "test"), write_numbers("split.csv", "geocode")),
    case("an absent population", "--population_path absent.csv", "population absent.csv does not exist ... check the path"),
    case("a population without its column", f"--population_path {POPULATION} --population_column people",
         f"population {POPULATION} needs the columns geocode and people, but has geocode, population ... --population_column"),
    case("a population of lost zeros", f"--population_path {POPULATION}", f"population {POPULATION} ... leading zeros ({BARE_ID}, ... text",
         drop_zeros(POPULATION, "geocode")),
    case("several faults of the population", f"--population_path {PARQUET}", f"2 faults: geocode holds numbers ({BARE_ID}) ... once",
         put(POPULATION, "geocode", ID, ID), write_numbers(POPULATION, "geocode")),
    case("a file as output folder", f"--output_dir {FLOWS}", f"--output_dir {FLOWS}"),
    case("bad flows, features and population", f"--population_path {POPULATION}",
         f"3 faults ... features {FEATURES}: columns 1 hold ... flows {FLOWS}: 1 counts are negative ... population {POPULATION}: 1 ids occur",
         put(FLOWS, "count", "-3"), put(FEATURES, "1", "inf"), put(POPULATION, "geocode", NEXT_ID)),
    case("no zeros and a bad population", f"--universe full --population_path {POPULATION}", "2 faults ... complete_block ... 1 ids occur",
         put(POPULATION, "geocode", NEXT_ID)),
]
TESTING = [
    case("an absent model", "--log absent", "OD model outputs/absent/od_model.pt does not exist"),
    case("a model without trees", "", f"LightGBM decoder {TREES} does not exist", remove(Path(TREES))),
    case("a truncated model", "", f"OD model {MODEL} cannot be read", cut_short(MODEL)),
    case("truncated trees", "", f"LightGBM decoder {TREES} is damaged or of another model ... train", cut_short(TREES)),
    case("an encoder as model", "", f"OD model {MODEL} is not ... (its format is imagery2flow-encoder ... --log", copy_file(CKPT, MODEL)),
    case("features of other columns", "", "the features of M1 have 4 columns but ... trained on 4 (missing: 3; unknown: red_mean); embed",
         edit(FEATURES, lambda t: t.rename(columns={"3": "red_mean"}))),
    case("two regions to test", "--region M1 M2", "--region M1 M2 names 2 regions; test one at a time"),
    case("absent outflows", "--origin_totals_path absent.csv", "origin totals absent.csv does not exist ... check the path"),
    case("outflows without their column", f"--origin_totals_path {POPULATION}",
         f"origin totals {POPULATION} needs the columns geocode and outflow, but has geocode, population ... --origin_totals_column"),
    case("no model and no features", "--log absent --node_feats_path absent.csv --origin_totals_path absent.csv",
         "3 faults ... OD model outputs/absent ... features absent.csv ... origin totals absent.csv"),
    case("another width and other columns", "--embedding_size 64", "2 faults ... the model outputs/M1 has 8 ... (missing: 3; unknown: red_mean)",
         edit(FEATURES, lambda t: t.rename(columns={"3": "red_mean"}))),
    case("another width", "--embedding_size 64", "--embedding_size 64 but the model outputs/M1 has 8; leave the flag out ... --log"),
]
MAP = [
    case("an absent scene", "--scene_path absent.tif", "scene absent.tif does not exist ... --scene_path"),
    case("a text file as scene", "", f"scene {SCENE} cannot be opened ... --scene_path", write(SCENE, "hello")),
    case("a scene without a CRS", "", f"scene {SCENE} states no CRS ... rio edit-info", rewrite(SCENE, crs=None)),
    case("absent predictions", "--predictions_path absent.csv", "predictions absent.csv does not exist ... check the path"),
    case("flows as predictions", f"--predictions_path {FLOWS}", f"predictions {FLOWS}: columns prediction are missing among ... name"),
    case("a picture below a file", f"--output_path {FLOWS}/a.png", f"--output_path {FLOWS} cannot be a folder"),
]
# fmt: on
TABLES = {
    "img_preprocessing": UNITS_OF_A_STAGE + PREPROCESSING,
    "train_img_encoder": PATCHES_OF_A_STAGE + ENCODER,
    "get_img_embedding": PATCHES_OF_A_STAGE + EMBEDDING,
    "train_ODPrediction": UNITS_OF_A_STAGE + REGION + TRAINING,
    "test_ODPrediction": UNITS_OF_A_STAGE + REGION + TESTING,
    "flow_map": UNITS_OF_A_STAGE + MAP,
}
CASES = {f"{stage}-{item.fault}": (stage, item) for stage, table in TABLES.items() for item in ANY_STAGE + table}
IN_A_PROCESS = (
    "img_preprocessing-a scene elsewhere",
    "get_img_embedding-a truncated checkpoint",
    "train_ODPrediction-several faults of the flows",
    "train_ODPrediction-a dropout of one",
)


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


@pytest.fixture(scope="module")
def good_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A city of 24 units with its scene, patches, flows, random features, an encoder and a flow model: all that the stages read."""
    folder = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        generate_metro(config.SyntheticConfig(output_dir="data", region="M1", num_units=24, size_px=100), Ledger("test", quiet=True))
        ids = pd.read_csv(POPULATION, dtype="str").geocode
        pd.DataFrame(np.random.default_rng(0).normal(size=(len(ids), 4)), index=ids, columns=list("0123")).to_csv(FEATURES)
        for stage, flags in FLAGS.items():
            own = {"img_preprocessing": " --output_tif_dir data", "train_img_encoder": " --log M1"}.get(stage, "")
            assert call(stage, flags + own) == 0
    yield folder
    shutil.rmtree(folder)  # the checkpoint is large


@pytest.fixture
def workplace(good_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the good folder to spoil, as the current folder; only the large checkpoint is not copied."""
    for name in ("data", "outputs"):
        shutil.copytree(good_folder / name, tmp_path / name)
    (tmp_path / CKPT).parent.mkdir()
    (tmp_path / CKPT).symlink_to(good_folder / CKPT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


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


@pytest.mark.parametrize("name", CASES)
def test_bad_input_gives_one_sentence_and_status_2_and_writes_nothing(name, workplace, capfd):
    stage, item = CASES[name]
    for spoil in item.spoils:
        spoil()
    before = state_of(workplace)
    capfd.readouterr()
    status = call(stage, f"{FLAGS[stage]} {item.flags}")
    stderr = capfd.readouterr().err
    assert status == 2, stderr
    assert state_of(workplace) == before
    check_message(stderr, stage, item)


@pytest.mark.parametrize("name", IN_A_PROCESS)
def test_so_it_does_as_a_process_of_its_own(name, workplace):
    stage, item = CASES[name]
    for spoil in item.spoils:
        spoil()
    before = state_of(workplace)
    command = [sys.executable, str(ROOT / f"{stage}.py"), *FLAGS[stage].split(), *item.flags.split()]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 2, answer.stderr
    assert state_of(workplace) == before
    check_message(answer.stderr, stage, item)
