"""``runs/reproduce.sh`` on two generated areas whose data are there, with a recipe that takes seconds; and every command that it would give for the real ones."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

from imagery2flow.run.acquire_config import AcquireConfig
from imagery2flow.run.cli import parse_config
from imagery2flow.run.config import EmbeddingConfig, EncoderConfig, PreprocessingConfig
from imagery2flow.run.flow_config import FlowTestConfig, FlowTrainingConfig, FoldsConfig
from imagery2flow.sources.places import read_metropolitan_areas

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {
    "img_preprocessing.py": PreprocessingConfig,
    "train_img_encoder.py": EncoderConfig,
    "get_img_embedding.py": EmbeddingConfig,
    "train_ODPrediction.py": FlowTrainingConfig,
    "test_ODPrediction.py": FlowTestConfig,
    "acquire": AcquireConfig,
    "folds": FoldsConfig,
}
SMALL = {
    "train_img_encoder": "total_epoch: 1\nbatch_size: 32\nview_size: 32\nprojection_dim: 16\n",
    "get_img_embedding": "untrained_control: false\n",
    "train_ODPrediction": "max_epochs: 2\nembedding_size: 8\ncontrols: false\ntrees:\n  num_trees: 5\n  transfer_trees: 5\n",
    "M1": "region: M1\n",
    "M2": "region: M2\n",
}


def reproduce(msa: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the script with this interpreter; a failure shows what it said."""
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    result = subprocess.run(
        ["bash", str(ROOT / "runs/reproduce.sh"), msa],
        capture_output=True,
        text=True,
        env=os.environ | path | environment,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result


def commands_of(printed: str) -> list[list[str]]:
    """The commands that the script printed, as words without ``python``."""
    return [shlex.split(line.removeprefix("$ python ")) for line in printed.splitlines() if line.startswith("$ python ")]


@pytest.mark.parametrize("msa", ["M1", "M6", "M10"])
def test_every_command_of_the_published_recipe_is_accepted(msa, tmp_path, monkeypatch):
    printed = reproduce(msa, DRY_RUN="1", DATA=str(tmp_path)).stdout
    monkeypatch.chdir(ROOT)
    found = commands_of(printed)
    configs = []
    for words in found:
        name, flags = (words[2], words[3:]) if words[0] == "-m" else (words[0], words[1:])
        configs.append(parse_config(name, CONFIGS[name], flags))
    tested = [
        (config.region[0], config.year) for config in configs if isinstance(config, FlowTestConfig) and config.log == f"{msa}_l8_2020"
    ]
    others = [(f"M{number}", 2020) for number in range(1, 11) if f"M{number}" != msa]
    past = {"M10": [2010, 2004], "M6": [2010]}.get(msa, [2010, 2002])
    assert tested == others + [(msa, year) for year in past]
    acquired = {(config.region, *config.what, config.sensor, config.year) for config in configs if isinstance(config, AcquireConfig)}
    assert {(f"M{number}", "imagery", sensor, 2020) for number in range(1, 11) for sensor in ("s2", "l8")} <= acquired
    folds = [config.fold for config in configs if isinstance(config, FlowTrainingConfig)]
    assert folds == [0, 1, 2, 3, 4] * 2
    assert int(re.search(r"0 steps are done, (\d+) are left", printed)[1]) == len(found)


def test_the_recipe_of_each_area_names_it_and_three_bands():
    for area in read_metropolitan_areas():
        path = ROOT / "configs/paper" / f"{area.msa}.yaml"
        assert path.read_text().startswith(f"# {area.name}: {len(area.counties)} counties")
        config = parse_config("acquire", AcquireConfig, ["--config", str(path)])
        assert (config.region, config.year, config.imagery_bands) == (area.msa, 2020, ("red", "green", "blue"))


@pytest.mark.parametrize("name", ["M0", "M11", "NYC", ""])
def test_an_area_that_there_is_not_is_refused(name):
    result = subprocess.run(["bash", str(ROOT / "runs/reproduce.sh"), name], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert result.stderr == "usage: runs/reproduce.sh M1   (M1 to M10)\n"


def num_pictures(model: Path, folder: Path) -> int:
    """Runs figs.ipynb on a model and returns how many pictures it shows; each is also written to a folder."""
    notebook = nbformat.read(ROOT / "figs.ipynb", as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert first.source.count('"demo/outputs/M1_l8_2020"') == first.source.count("FIGURES = None") == 1, "these are what a user changes"
    first.source = first.source.replace("demo/outputs/M1_l8_2020", str(model)).replace("FIGURES = None", f"FIGURES = {str(folder)!r}")
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    assert len(list(folder.glob("*.pdf"))) == len(shown)
    return len(shown)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> dict[str, str]:
    """Two generated areas under the names that acquire gives its files, and a small recipe, as the script's environment."""
    folder = tmp_path_factory.mktemp("reproduce")
    for seed, region in enumerate(("M1", "M2"), start=1):
        flags = f"synthetic --output_dir {folder / 'data'} --region {region} --seed {seed} --num_units 60 --size_px 170"
        subprocess.run(
            [sys.executable, "-m", "imagery2flow", *flags.split()],
            check=True,
            capture_output=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        home = folder / "data" / region
        for image in ("l8_2020", "l5_2010"):
            shutil.copy(home / "scene.tif", home / f"{image}.tif")
        (home / "land_cover.csv").write_text("geocode,class_50,nodata_m2\n")  # fetched
        for year in (2010, 2020):
            shutil.copy(home / "flows.csv", home / f"flows_{year}.csv")
    (folder / "configs").mkdir()
    for name, text in SMALL.items():
        (folder / "configs" / f"{name}.yaml").write_text(text)
    paths = {name.upper(): str(folder / name) for name in ("data", "configs", "ckpt", "outputs")}
    return paths | {"REGIONS": "M1 M2", "SENSORS": "l8", "FOLDS": "1", "PAST": "2010"}


def test_all_steps_run_once_and_end_in_tables_and_figures(place, tmp_path):
    outputs = Path(place["OUTPUTS"])
    assert "12 steps were done before, 12 now" in reproduce("M1", **place).stdout
    table = pd.read_csv(outputs / "M1_l8_2020/results.csv")
    places = set(zip(table.region, table.year, table["tested on"], strict=True))
    assert places == {("M1", 2020, "held out by origin"), ("M2", 2020, "another city"), ("M1", 2010, "held out by origin")}
    assert set(pd.read_csv(outputs / "M1_l8_2020_folds/folds.csv").fold) == {0, 1}
    matrix = pd.read_csv(outputs / "transfer_l8_2020_lightgbm_gt10_cpc.csv", index_col="target")
    assert matrix["M1"].notna().all()
    assert matrix["M2"].isna().all()
    # Once more: only what is gone is done again.
    (outputs / "M1_l8_2020/M2_2020/run.json").unlink()
    again = reproduce("M1", **place).stdout
    assert "23 steps were done before, 1 now" in again
    assert [words[0] for words in commands_of(again)] == ["test_ODPrediction.py"]
    assert num_pictures(outputs / "M1_l8_2020", tmp_path / "figures") >= 20


def test_a_step_that_fails_ends_the_run(place, tmp_path):
    environment = os.environ | place | {"OUTPUTS": str(tmp_path / "o"), "CKPT": str(tmp_path / "c"), "PYTHONPATH": str(ROOT)}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "CONFIGS": str(tmp_path)}
    for name, text in (SMALL | {"train_img_encoder": "total_epoch: 1\nlearning: 1\n"}).items():
        (tmp_path / f"{name}.yaml").write_text(text)
    result = subprocess.run(
        ["bash", str(ROOT / "runs/reproduce.sh"), "M1"], capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert result.returncode == 2
    assert "learning" in result.stderr
    assert not (tmp_path / "o").exists()
