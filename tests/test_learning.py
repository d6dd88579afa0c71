"""Does the whole pipeline learn what there is to learn? On a generated metro the best reachable score is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from imagery2flow.flows.results import reachable_scores
from tests.test_end_to_end import run_here

TARGET = 0.9  # of the reachable CPC


@pytest.fixture(scope="module")
def metro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A metro of 800 tracts with the vectors of an encoder that was trained on it for 20 epochs, and those vectors shuffled between the units."""
    folder = tmp_path_factory.mktemp("metro")
    run_here(folder, "imagery2flow", "synthetic --output_dir data --region M1 --num_units 800 --size_px 940 --seed 3")
    run_here(folder, "img_preprocessing.py", "--input_tif_path data/M1/scene.tif --shp_path data/M1/units.gpkg --region M1")
    run_here(
        folder, "train_img_encoder.py", "--data_path data/M1/l8_2020 --bands 3 --total_epoch 20 --cos --view_size 32 --log M1 --device cpu"
    )
    run_here(folder, "get_img_embedding.py", "--data_path data/M1/l8_2020 --log M1 --output_path true.csv --device cpu")
    table = pd.read_csv(folder / "true.csv", dtype={"geocode": str})
    table.assign(geocode=np.random.default_rng(0).permutation(table.geocode)).to_csv(folder / "shuffled.csv", index=False)
    return folder


def share_of_reachable(metro: Path, vectors: str, universe: str, split: str, more: str = "") -> dict[str, float]:
    """CPC on held-out pairs, as a share of the CPC that the law itself reaches there, by predictor."""
    log = f"{vectors}_{universe}_{split}"
    flags = f"--log {log} --node_feats_path {vectors}.csv --region M1 --universe {universe} --split {split} --controls false --device cpu"
    run_here(metro, "train_ODPrediction.py", f"{flags} --population_path data/M1/population.csv {more}")
    folder = metro / "outputs" / log
    scores = json.loads((folder / "metrics.json").read_text())
    reachable = reachable_scores(metro / "data/M1/law.csv", folder)[universe]["cpc"]
    return {name: by_universe[universe]["cpc"] / reachable for name, by_universe in scores.items()}


@pytest.mark.parametrize("universe", ["gt10", pytest.param("positive", marks=pytest.mark.slow)])
def test_the_pipeline_recovers_nine_tenths_of_the_reachable_score_and_with_shuffled_images_it_does_not(metro, universe):
    learned, shuffled = (share_of_reachable(metro, vectors, universe, "origin") for vectors in ("true", "shuffled"))
    print(f"share of the reachable CPC, {universe}: {learned}, shuffled {shuffled}")
    for decoder in ("bilinear", "lightgbm"):
        assert learned[decoder] > learned["constant"] + 0.1
        # Not as low as the constant: destinations are known from other origins, whatever the image that stands for them.
        assert shuffled[decoder] < min(TARGET, learned[decoder] - 0.08)
    assert max(learned["bilinear"], learned["lightgbm"]) >= TARGET


def test_in_new_places_too_the_images_are_what_tells(metro):
    """Both ends held out, trees only: besides its image, a place is known by its area and by how densely tracts lie there."""
    learned, shuffled = (share_of_reachable(metro, vectors, "gt10", "unit", "--max_epochs 1") for vectors in ("true", "shuffled"))
    print(f"share of the reachable CPC, both ends held out: {learned}, shuffled {shuffled}")
    assert learned["lightgbm"] >= TARGET
    assert shuffled["lightgbm"] < learned["lightgbm"] - 0.1
