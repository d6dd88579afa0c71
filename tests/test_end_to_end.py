"""Every stage as a user runs it: a process of its own, the published flags, two generated cities; what is compared with that runs in this process."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import pandas as pd
import pytest

from tests.spoiling import ROOT, call

IDS = {"geocode": str, "h_geocode": str, "w_geocode": str}
CITIES = {"M1": ("1", "18", "70", "190"), "M2": ("2", "17", "40", "140")}  # seed, UTM zone, units, pixels

STAGE_1 = (
    "--input_tif_path data/{city}/scene.tif --output_tif_dir data --region {city} --shp_path data/{city}/units.gpkg --year 2020 --tag l8"
)
STAGE_2 = (
    "--data_path data/M1/l8_2020 --bands 3 --lr 0.001 --batch_size 32 --projection_dim 64 --resnet resnet18 --temperature 0.5 --total_epoch 2 "
    "--model_path ckpt --schedule 90 110 --cos --log M1_l8 --view_size 32"
)
STAGE_3 = "--data_path data/{city}/l8_2020 --output_path data/{city}/l8_M1.csv --ckpt M1_l8_img_2.pth --model_path ckpt --log M1_l8"
STAGES_4_AND_5 = (
    "--log M1_l8_2020 --node_feats_path data/{city}/l8_M1.csv --region {city} --year 2020 --max_epochs 4 --lr 0.001 --embedding_size 16 "
    "--num_hidden_layers 1 --device cpu"
)


def run(folder: Path, script: str, flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a script in a folder; a failure shows what it said."""
    command = [sys.executable, "-W", "ignore", *(["-m", script] if script == "imagery2flow" else [str(ROOT / script)]), *flags.split()]
    place = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # this copy of the package, wherever another may be installed
    result = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=os.environ | place | environment, timeout=600, check=False
    )
    assert result.returncode == 0, f"{script} {flags}\n{result.stderr}"
    return result


def run_here(folder: Path, script: str, flags: str) -> subprocess.CompletedProcess[str]:
    """The same without a process of its own, whose start takes longer than most stages take for a small city."""
    stage, flags = flags.split(maxsplit=1) if script == "imagery2flow" else (script.removesuffix(".py"), flags)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = call(stage, flags)
    assert status == 0, f"{script} {flags}\n{err.getvalue()}"
    return subprocess.CompletedProcess([script, flags], 0, out.getvalue(), err.getvalue())


def shuffle_table(path: Path, seed: int) -> None:
    """Permutes the rows of a table of ids."""
    pd.read_csv(path, dtype="str", keep_default_na=False).sample(frac=1, random_state=seed).to_csv(path, index=False)


def run_all(folder: Path, run: Callable[[Path, str, str], subprocess.CompletedProcess[str]], shuffle: bool = False) -> dict[str, str]:
    """All five stages; with ``shuffle``, the rows of units, flows, manifests and vectors are permuted before anything reads them."""
    said = {}
    for city, (seed, zone, units, pixels) in CITIES.items():
        flags = f"synthetic --output_dir data --region {city} --seed {seed} --utm_zone {zone} --num_units {units} --size_px {pixels}"
        run(folder, "imagery2flow", flags)
        home = folder / "data" / city
        if shuffle:
            gpd.read_file(home / "units.gpkg").sample(frac=1, random_state=1).to_file(home / "units.gpkg", layer="tracts")
            shuffle_table(home / "flows.csv", 2)
        said[f"1 {city}"] = run(folder, "img_preprocessing.py", STAGE_1.format(city=city)).stderr
        if shuffle:
            shuffle_table(home / "l8_2020/manifest.csv", 3)
    said["2"] = run(folder, "train_img_encoder.py", STAGE_2).stderr
    for city in CITIES:
        said[f"3 {city}"] = run(folder, "get_img_embedding.py", STAGE_3.format(city=city)).stderr
        if shuffle:
            shuffle_table(folder / f"data/{city}/l8_M1.csv", 4)
            shuffle_table(folder / f"data/{city}/l8_M1_untrained.csv", 5)
    said["4"] = run(folder, "train_ODPrediction.py", STAGES_4_AND_5.format(city="M1")).stdout
    said["5"] = run(folder, "test_ODPrediction.py", STAGES_4_AND_5.format(city="M2")).stdout
    said["results"] = run(folder, "imagery2flow", "results --log M1_l8_2020").stdout
    return said


def content(folder: Path) -> dict[str, bytes]:
    """Every file but the run files, which tell the time."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("run.json"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder in which all stages ran, and what they said."""
    folder = tmp_path_factory.mktemp("one")
    return folder, run_all(folder, run)


def test_every_artefact_is_where_the_next_stage_and_the_user_look_for_it(pipeline):
    folder, _ = pipeline
    for city, (_, _, units, _) in CITIES.items():
        patches = folder / "data" / city / "l8_2020"
        assert len(list(patches.glob("l8_2020_*.tif"))) == int(units)
        assert {path.name for path in patches.iterdir() if path.suffix != ".tif"} == {"manifest.csv", "stats.json", "run.json"}
        table = pd.read_csv(folder / f"data/{city}/l8_M1.csv", dtype=IDS)
        assert table.columns[:513].tolist() == ["geocode", *map(str, range(512))]
        assert sorted(table.geocode) == sorted(gpd.read_file(folder / f"data/{city}/units.gpkg").GEOID20)
        assert pd.read_csv(folder / f"data/{city}/l8_M1_untrained.csv", dtype=IDS).geocode.tolist() == table.geocode.tolist()
    names = {path.name for path in (folder / "ckpt").iterdir()}
    assert names == {f"M1_l8_img_2{ending}" for ending in (".pth", "_previous.pth", "_best.pth", "_loss.png", "_metrics.csv", "_run.json")}
    trees = {f"lightgbm{kind}.txt" for kind in ("", "_law", "_transfer", "_transfer_law")}
    model = {"od_model.pt", *trees, "split.csv", "training.csv", "metrics.json", "run.json", "results.csv", "results_run.json"}
    tables = {"predictions_bilinear.csv", "predictions_lightgbm.csv"}
    assert {path.name for path in (folder / "outputs/M1_l8_2020").iterdir()} == model | tables | {"M2_2020", "controls"}
    controls = {"distance_only", "band_statistics", "shuffled_images", "untrained_encoder"}
    assert {path.name for path in (folder / "outputs/M1_l8_2020/controls").iterdir()} == controls
    assert {path.name for path in (folder / "outputs/M1_l8_2020/M2_2020").iterdir()} == tables | {"metrics.json", "run.json"}


def test_every_stage_says_what_came_in_and_what_went_out(pipeline):
    _, said = pipeline
    assert "in: 70 units; out: 70 patches; left out: nothing" in said["1 M1"]
    assert "in: 70 patches; out: 2 epochs" in said["2"]
    assert "out: 40 embeddings" in said["3 M2"]
    assert "M1: held out by origin, trained on gt10" in said["4"]
    assert "M2: predicted by the model of M1" in said["5"]
    controls = ["distance only", "band statistics"]
    controls += [f"{decoder}, {name}" for decoder in ("bilinear", "lightgbm") for name in ("shuffled images", "untrained encoder")]
    for predictor in ("bilinear", "lightgbm", "constant", "best reachable", *controls):
        assert said["results"].count(f"| {predictor} ") == 4  # two cities, two universes


def test_several_processes_train_one_encoder_by_the_documented_command(pipeline, tmp_path):
    folder, _ = pipeline
    flags = STAGE_2.replace("--log M1_l8", "--log two").replace("--model_path ckpt", f"--model_path {tmp_path}")
    torchrun = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--"]
    command = [*torchrun, str(ROOT / "train_img_encoder.py"), *flags.split(), "--device", "cpu"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    assert "2 process(es)" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        f"two_img_2{ending}" for ending in (".pth", "_previous.pth", "_best.pth", "_loss.png", "_metrics.csv", "_run.json")
    }


def test_no_temporary_file_is_left_behind(pipeline):
    folder, _ = pipeline
    assert not [path for path in folder.rglob(".*") if path.is_file()]


def test_the_same_commands_with_the_same_seed_give_the_same_bytes(pipeline, tmp_path):
    folder, _ = pipeline
    run_all(tmp_path, run_here)
    first, second = content(folder), content(tmp_path)
    assert set(first) == set(second)
    # A GeoPackage states when it was made.
    assert [name for name in first if first[name] != second[name] and not name.endswith(".gpkg")] == []


def test_the_order_of_rows_of_units_patches_vectors_and_flows_changes_no_result(pipeline, tmp_path):
    folder, _ = pipeline
    run_all(tmp_path, run_here, shuffle=True)
    first, second = content(folder), content(tmp_path)
    permuted = ("units.gpkg", "flows.csv", "manifest.csv", "l8_M1.csv", "l8_M1_untrained.csv")
    assert all(
        first[f"data/M1/{name}"] != second[f"data/M1/{name}"] for name in ("units.gpkg", "flows.csv", "l8_M1.csv", "l8_M1_untrained.csv")
    )
    assert [name for name in first if first[name] != second[name] and not name.endswith(permuted)] == []
