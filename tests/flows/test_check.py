import json
import re
import shutil
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
from affine import Affine

from imagery2flow.__main__ import main
from imagery2flow.encoder.backbones import build_backbone
from imagery2flow.encoder.checkpoint import FORMAT
from imagery2flow.flows.check import size_text
from imagery2flow.flows.training import train_flows
from imagery2flow.imagery.patches import cut_patches
from imagery2flow.run.config import PreprocessingConfig
from imagery2flow.run.errors import InputError
from imagery2flow.run.files import save_tensors
from imagery2flow.run.stage import Ledger
from tests.spoiling import later

from .conftest import GEOCODES, rename_ids, train, training_config, write_region

TOWN = "--region town --node_feats_path town.csv --device cpu"
UNITS, FLOWS, FEATURES, POPULATION = "data/town/units.gpkg", "data/town/flows.csv", "town.csv", "data/town/population.csv"
SCENE, DISTANCES, SPLIT = "data/town/scene.tif", "data/town/distances.csv", "split.csv"
ID = GEOCODES[0]


def write_scene(path, **changes):
    """A scene of 50 m that covers the town."""
    values = np.random.default_rng(0).integers(1, 900, (2, 100, 120)).astype("uint16")
    profile = {"driver": "GTiff", "width": 120, "height": 100, "count": 2, "dtype": "uint16", "crs": "EPSG:32618", "nodata": 0}
    with rasterio.open(path, "w", **{**profile, "transform": Affine(50, 0, 500_000, 0, -50, 4_505_000), **changes}) as scene:
        scene.descriptions = ("red", "nir")
        scene.write(values)


@pytest.fixture
def town(tmp_path, monkeypatch):
    """A region with all that can be looked at, as the current folder."""
    write_region(tmp_path)
    monkeypatch.chdir(tmp_path)
    write_scene(SCENE)
    pd.DataFrame({"h_geocode": ID, "w_geocode": GEOCODES[1:4], "distance_m": [900.0, 2100.0, 3000.0]}).to_csv(DISTANCES, index=False)
    pd.DataFrame({"geocode": GEOCODES, "split": [("train", "valid", "test")[n % 3] for n in range(30)]}).to_csv(SPLIT, index=False)
    return tmp_path


@pytest.fixture
def check(town, capfd):
    """Calls the command; returns its status, the findings as {subject: [(level, sentence)]}, and what it printed last."""

    def call(flags=TOWN):
        capfd.readouterr()
        status = main(["check", *flags.split()])
        out, err = capfd.readouterr()
        found, subject = {}, None
        for line in out.splitlines():
            finding = re.fullmatch(r"  (ok|warning|fault) +(.+)", line)
            if finding:
                found[subject].append(finding.groups())
            elif line and not line.startswith("no fault"):
                subject = line
                found.setdefault(line, [])
        return status, found, (err or out).splitlines()[-1]

    return call


def of_level(found, level):
    return {
        subject: [text for kind, text in lines if kind == level]
        for subject, lines in found.items()
        if any(kind == level for kind, _ in lines)
    }


def edit(path, column, row, value):
    table = pd.read_csv(path, dtype="str")
    table.loc[row, column] = value
    table.to_csv(path, index=False)


def edit_units(change):
    units = gpd.read_file(UNITS)
    shutil.move(UNITS, "old.gpkg")
    change(units).to_file(UNITS)


def state_of(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in folder.rglob("*")}


def test_a_good_region_passes_and_no_file_changes(check, town):
    before = state_of(town)
    status, found, last = check(f"{TOWN} --split_path {SPLIT}")
    assert status == 0, last
    assert of_level(found, "fault") == {}
    for path in (UNITS, SCENE, FEATURES, FLOWS, DISTANCES, POPULATION, SPLIT):
        assert found[path][0][0] == "ok"
    assert found[UNITS] == [("ok", f"30 units (Polygon) in EPSG:32618, ids {', '.join(GEOCODES[:5])} and 25 more")]
    assert ("ok", "30 units lie wholly on it, 0 partly, 0 not at all") in found[SCENE]
    assert ("ok", "30 units, 3 numbered and 0 named columns") in found[FEATURES]
    flows = pd.read_csv(FLOWS)
    assert found[FLOWS][0][1].startswith(
        f"{len(flows):,} flows, {len(flows):,} above 0, {(flows['count'] > 10).sum():,} above 10, {flows['count'].sum():,} commuters"
    )
    assert found[DISTANCES][0] == ("ok", "distances of 3 pairs of units; a run takes them with --distance_path")
    assert found[POPULATION] == [("ok", "population of 30 of 30 units")]
    assert found[SPLIT] == [("ok", "labels of 30 of 30 units")]
    assert re.fullmatch(r"no fault, \d+ warnings", last)
    assert state_of(town) == before


lose, write_text = later(lambda path: shutil.move(path, "old")), later(lambda path: Path(path).write_text("hello"))
put, change_units, put_scene = later(edit), later(edit_units), later(write_scene)
FAULTS = {  # what spoils a file, what is at fault, what is said of it
    "no units": (lose(UNITS), "region town", "has no units.gpkg"),
    "ids that repeat": (change_units(lambda u: u.assign(GEOID20=[GEOCODES[1], *u.GEOID20[1:]])), UNITS, "1 ids occur more than once"),
    "no CRS": (change_units(lambda u: u.set_crs(None, allow_override=True)), UNITS, "state no CRS"),
    "points": (change_units(lambda u: u.set_geometry(u.centroid)), UNITS, "needs polygons but"),
    "a negative count": (put(FLOWS, "count", 2, "-3"), FLOWS, "1 counts are negative (line 4: -3)"),
    "an unknown unit": (
        put(FLOWS, "h_geocode", 2, "9"),
        FLOWS,
        "1 ids of h_geocode are not among the 30 units (9); use units of the same place",
    ),
    "a feature of nothing": (put(FEATURES, "1", 2, ""), FEATURES, "columns 1 hold missing"),
    "no features": (lose(FEATURES), FEATURES, "does not exist"),
    "a distance below 0": (put(DISTANCES, "distance_m", 0, "-1"), DISTANCES, "1 values are negative"),
    "a population of words": (put(POPULATION, "population", 0, "many"), POPULATION, "1 values of population are no numbers (many)"),
    "an unknown label": (put(SPLIT, "split", 0, "held"), SPLIT, "1 values are not among train, valid, test (held)"),
    "a scene of no place": (put_scene(SCENE, crs=None), SCENE, "states no CRS"),
    "a scene elsewhere": (put_scene(SCENE, crs="EPSG:32619"), SCENE, "lies on a scene"),
    "a text as scene": (write_text(SCENE), SCENE, "cannot be opened as a raster"),
}
OF_STAGE_1 = {"a scene of no place", "a scene elsewhere", "a text as scene"}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found_and_its_stage_refuses_it_too(check, name):
    spoil, subject, sentence = FAULTS[name]
    spoil()
    status, found, last = check(f"{TOWN} --split_path {SPLIT}")
    assert status == 2
    faults = of_level(found, "fault")
    assert list(faults) == [subject] and len(faults[subject]) == 1, faults
    assert sentence in faults[subject][0]
    assert last.startswith("check: error: 1 faults and ")
    with pytest.raises(InputError, match=re.escape(sentence)):
        if name in OF_STAGE_1:
            cut_patches(PreprocessingConfig(input_tif_path=[SCENE], shp_path=UNITS), Ledger("test", quiet=True))
        else:
            files = {"population_path": [POPULATION]} if "population" in name else {"split_path": SPLIT}
            train_flows(training_config(distance_path=[DISTANCES], **files), Ledger("test", quiet=True))


def test_all_faults_are_listed_at_once_in_the_same_order_every_time(check):
    together = [
        name for name in FAULTS if name not in ("no units", "no CRS", "points", "no features", "a scene elsewhere", "a text as scene")
    ]
    for name in together:
        FAULTS[name][0]()
    flags = f"{TOWN} --split_path {SPLIT} --device abacus --ckpt none.pth --output_dir town.csv"
    status, found, last = check(flags)
    assert status == 2
    faults = of_level(found, "fault")
    assert set(faults) == {
        "--output_dir town.csv",
        "--device",
        "--ckpt none.pth",
        UNITS,
        FEATURES,
        DISTANCES,
        FLOWS,
        SCENE,
        POPULATION,
        SPLIT,
    }
    # That the unit 9 is unknown cannot be said while it is not known which units there are.
    assert {subject: len(sentences) for subject, sentences in faults.items() if len(sentences) > 1} == {}
    assert last.startswith("check: error: 10 faults and ")
    assert check(flags) == (status, found, last)


def test_what_may_surprise_is_a_warning_and_passes(check):
    edit_units(lambda u: u.set_geometry([None, u.geometry[1].union(u.geometry[2]), *u.geometry[2:]]))
    table = pd.read_csv(FEATURES, dtype={"geocode": "str"})
    table[2:].assign(flat=1.0).to_csv(FEATURES, index=False)
    edit(POPULATION, "population", 5, "")
    write_scene(SCENE, transform=Affine(50, 0, 502_500, 0, -50, 4_505_000))
    shutil.move(DISTANCES, "old.csv")  # all of its pairs are of a unit that is gone
    status, found, _ = check(f"{TOWN} --drop_unknown_units")
    assert status == 0, of_level(found, "fault")
    warnings = of_level(found, "warning")
    for subject, sentence in (
        (UNITS, f"1 left out: without geometry in the units file ({ID})"),
        (UNITS, f"1 pairs of units overlap by more than 1% ({GEOCODES[1]}+{GEOCODES[2]})"),
        (FEATURES, f"1 left out: units without an embedding ({GEOCODES[1]})"),
        (FEATURES, "1 of 4 columns have one value in all units (flat)"),
        (POPULATION, f"1 units have no known population ({GEOCODES[5]})"),
        (SCENE, "units lie partly on it"),
        (SCENE, "units get no patch"),
        (FLOWS, "left out: flows of units that are not in the units file"),
    ):
        assert any(sentence in text for text in warnings[subject]), (sentence, warnings)


def test_too_few_flows_are_a_fault_only_where_a_model_is_to_be_trained(check):
    flows = pd.read_csv(FLOWS, dtype={"h_geocode": "str", "w_geocode": "str"})
    flows[flows.h_geocode.isin(GEOCODES[:4])].to_csv(FLOWS, index=False)
    status, found, _ = check()
    assert status == 2
    assert list(of_level(found, "fault")) == ["training on town"]
    assert "town has 4 units with flows" in of_level(found, "fault")["training on town"][0]
    assert check(f"{TOWN} --predict_only")[0] == 0


def test_without_features_flows_or_scenes_the_rest_is_looked_at(check):
    for path in (FLOWS, SCENE, POPULATION, DISTANCES):
        shutil.move(path, "old")
    status, found, _ = check("--region town")
    assert status == 0
    assert list(of_level(found, "ok")) == ["--data_root data", "--model_path ckpt", "--output_dir outputs", UNITS, "estimates for stage 5"]
    assert of_level(found, "warning") == {"region town": ["no flows in data/town: predictions only, no scores"]}


def test_regions_that_cannot_stand_in_one_model_are_refused(check, town):
    write_region(town, "village", seed=1)
    status, found, _ = check("--region town village --node_feats_path town.csv village.csv")
    assert status == 2
    assert of_level(found, "fault") == {
        "regions town village": [
            f"the regions town village share 30 ids of units ({', '.join(GEOCODES[:5])} and 25 more); give each unit an id of its own"
        ]
    }
    edit(FEATURES, "1", 2, "inf")
    edit("village.csv", "2", 2, "inf")
    status, found, _ = check("--region town village --node_feats_path town.csv village.csv")
    assert list(of_level(found, "fault")) == ["town.csv", "village.csv"]


def test_tables_of_the_population_complete_each_other(check):
    table = pd.read_csv(POPULATION, dtype="str")
    table[:20].to_csv("north.csv", index=False)
    table[15:29].to_csv("south.csv", index=False)
    status, found, _ = check(f"{TOWN} --population_path north.csv south.csv")
    assert status == 0
    assert found["north.csv"] == [("ok", "population of 20 of 30 units")]
    assert found["south.csv"][0] == ("ok", "population of 14 of 30 units")
    assert found["south.csv"][1][1].startswith(f"1 units have no known population ({GEOCODES[29]})")


def test_a_split_of_several_regions_is_held_against_the_units_of_all(check, town):
    write_region(town, "village", seed=1, west=540_000.0)
    rename_ids(town, "village", "3400")
    table = pd.read_csv(SPLIT, dtype="str")
    pd.concat([table, table.assign(geocode=table.geocode.str.replace("0600", "3400"))]).to_csv(SPLIT, index=False)
    shutil.move(SCENE, "old.tif")
    status, found, _ = check(f"--region town village --node_feats_path town.csv village.csv --split_path {SPLIT}")
    assert status == 0, of_level(found, "fault")
    assert found[SPLIT] == [("ok", "labels of 60 of 60 units")]


def test_a_flow_model_and_a_region_that_do_not_fit_are_named_with_all_that_differs(check, town, monkeypatch):
    train(town, monkeypatch)
    assert check(f"{TOWN} --log default")[0] == 0
    pd.read_csv(FEATURES, dtype={"geocode": "str"}).rename(columns={"2": "red_mean"}).to_csv(FEATURES, index=False)
    status, found, _ = check(f"{TOWN} --log default --distance_path {DISTANCES}")
    assert status == 2
    columns, distances = of_level(found, "fault")["model outputs/default"]
    assert "missing: 2; unknown: red_mean" in columns
    assert check("--region town --log default")[0] == 0
    assert "region town has distances of a table but the model outputs/default was trained on great-circle distances" in distances


def write_encoder(path, names, dtype):
    """A checkpoint of an encoder that nothing has trained."""
    backbone, _ = build_backbone("resnet18", len(names), 32, seed=0)
    normalisation = {
        "band_names": list(names),
        "mean": [0.0] * len(names),
        "std": [1.0] * len(names),
        "highest": [1.0] * len(names),
        "dtype": dtype,
    }
    content = {
        "format": FORMAT,
        "config": {"resnet": "resnet18", "total_epoch": 9},
        "normalisation": normalisation,
        "view_size": 32,
        "epoch": 3,
    }
    save_tensors(path, {**content, "model": {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}})


def test_an_encoder_is_held_against_scene_patches_and_features(check, town):
    cut_patches(PreprocessingConfig(input_tif_path=[SCENE], shp_path=UNITS, region="town", workers=1), Ledger("test", quiet=True))
    (town / "data/town/l8_M1.csv").write_text((town / FEATURES).read_text())
    run_file = json.dumps({"stage": "get_img_embedding", "inputs_sha256": {"ckpt/other.pth": "0" * 64}}, indent=2)
    (town / "data/town/l8_M1.csv.run.json").write_text(run_file)
    write_encoder(town / "ckpt/e.pth", ("red", "nir"), "uint16")
    status, found, _ = check("--region town --ckpt e.pth")
    assert status == 0
    assert found["ckpt/e.pth"][0] == ("ok", "resnet18 of red, nir (uint16), views of 32 px, epoch 3 of 9")
    assert found["data/town/l8_2020"][0] == ("ok", "30 patches of red, nir (uint16), 12,000 pixels")
    warnings = of_level(found, "warning")
    assert warnings["ckpt/e.pth"] == ["encoder ckpt/e.pth is unfinished: epoch 3 of 9"]
    assert "it comes from the encoder ckpt/other.pth (sha256 00000000), not from ckpt/e.pth" in warnings["data/town/l8_M1.csv"][0]
    write_encoder(town / "ckpt/e.pth", ("red", "blue"), "uint8")
    status, found, _ = check("--region town --ckpt e.pth")
    assert status == 2
    faults = of_level(found, "fault")
    assert "has no blue; its bands are 1 red, 2 nir" in faults[SCENE][0]
    assert "has no blue; its bands are 1 red, 2 nir" in faults["data/town/l8_2020"][0]
    assert any("holds uint16 but the encoder ckpt/e.pth was trained on uint8" in text for text in of_level(found, "warning")[SCENE])


def test_labels_of_patches_are_looked_at_where_they_are_named(check, town):
    cut_patches(PreprocessingConfig(input_tif_path=[SCENE], shp_path=UNITS, region="town", workers=1), Ledger("test", quiet=True))
    folder = "data/town/l8_2020"
    manifest = pd.read_csv(f"{folder}/manifest.csv", dtype=str)
    manifest.assign(split="train", city="A").to_csv(f"{folder}/manifest.csv", index=False)
    (town / "indexes.csv").write_text("city,overall,planet\nA,high,inf\n")
    flags = "--region town --labels_path indexes.csv --labels_key city --target_column"
    status, found, _ = check(f"{flags} overall planet")
    assert status == 2
    faults = of_level(found, "fault")[folder]
    assert len(faults) == 2 and "no numbers (high)" in faults[0] and "infinite values, of 30 patches" in faults[1]
    (town / "indexes.csv").write_text("city,overall\nA,3\n")
    status, found, _ = check(f"{flags} overall")
    assert status == 0
    assert "1 targets (overall); labelled patches: 30 train, 0 validation, 0 test" in of_level(found, "warning")[folder][-1]


def test_the_list_is_written_as_json_where_it_is_asked_for(check, town):
    edit(FLOWS, "count", 2, "-3")
    assert check(f"{TOWN} --output_path found.json")[0] == 2
    found = json.loads((town / "found.json").read_text())["findings"]
    assert {
        "subject": FLOWS,
        "level": "fault",
        "sentence": "1 counts are negative (line 4: -3); a count is a whole number of commuters, 0 or more",
    } in found


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0.0 MB"), (420_000, "0.4 MB"), (12_345_678, "12 MB"), (1_250_000_000, "1.2 GB"), (98_765_432_100, "99 GB")]
)
def test_sizes_are_for_people(num_bytes, text):
    assert size_text(num_bytes) == text
