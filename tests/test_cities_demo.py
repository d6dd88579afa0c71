"""runs/cities.sh, smaller: every command of docs/cities.md on generated cities, through the shell as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """A copy of the tree's entry points where the demonstration may write, run with two folds."""
    folder = tmp_path_factory.mktemp("cities")
    for name in ("imagery2flow", "img_preprocessing.py", "train_img_encoder.py", "get_img_embedding.py"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "runs").mkdir()
    script = (ROOT / "runs/cities.sh").read_text(encoding="utf-8")
    small = script.replace("--num_cities 20 --size_px 256", "--num_cities 6 --size_px 192").replace("--total_epoch 15", "--total_epoch 8")
    assert small.count("--num_cities 6") == small.count("--total_epoch 8") == 1
    (folder / "runs/cities.sh").write_text(small.replace("city_img_15", "city_img_8"), encoding="utf-8")
    environment = os.environ | {"FOLDS": "2", "PYTHONPATH": str(folder), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "runs/cities.sh"], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "demo_cities"


@pytest.mark.slow
def test_planted_cities_are_recognised(demo):
    assert json.loads((demo / "scores/metrics.json").read_text())["cities"]["accuracy"] > 0.95


@pytest.mark.slow
def test_every_file_that_the_script_promises_is_there(demo):
    for name in ("scores/confusion.png", "scores/dendrogram.png", "scores/city_map.png", "greenness.tif", "greenness.png"):
        assert (demo / name).stat().st_size > 0
    assert len(list((demo / "explanations").glob("contact_*.png"))) == 6


@pytest.mark.slow
def test_indexes_of_cities_never_seen_stand_beside_the_mean(demo):
    scores = pd.read_csv(demo / "index_scores/index_scores.csv")
    assert set(scores.predictor) == {"model", "training mean"}
    assert set(scores.target) == {"greenness", "random"}
    random = scores[(scores.target == "random") & (scores.over == "cities") & (scores.predictor == "model")]
    assert random.r2.item() < 0.5  # nothing in an image tells it
