"""What only a GPU can show: the stages run on it and give what the CPU gives. Run by ``make test-gpu``."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from tests.test_end_to_end import IDS, STAGE_1, STAGE_2, STAGES_4_AND_5, run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine")]


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    """A generated city with patches and an encoder trained on the GPU."""
    folder = tmp_path_factory.mktemp("gpu")
    run(folder, "imagery2flow", "synthetic --output_dir data --region M1 --num_units 70 --size_px 190 --seed 1")
    run(folder, "img_preprocessing.py", STAGE_1.format(city="M1"))
    said = run(folder, "train_img_encoder.py", f"{STAGE_2} --device cuda").stderr
    assert "device cuda:0" in said
    return folder


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_falls_in_either_precision(city, precision):
    run(city, "train_img_encoder.py", f"{STAGE_2} --device cuda --precision {precision} --total_epoch 10 --log {precision}")
    history = pd.read_csv(city / f"ckpt/{precision}_img_10_metrics.csv")
    assert np.isfinite(history.loss).all()
    assert history.loss.iloc[-1] < history.loss.iloc[0]
    assert history.spread.iloc[-1] > 0.1


def test_vectors_of_one_checkpoint_are_those_of_the_cpu(city):
    tables = {}
    for device in ("cpu", "cuda"):
        flags = f"--data_path data/M1/l8_2020 --model_path ckpt --log M1_l8 --output_path {device}.csv --device {device} --precision fp32"
        run(city, "get_img_embedding.py", flags)
        tables[device] = pd.read_csv(city / f"{device}.csv", dtype=IDS).set_index("geocode")
    scale = tables["cpu"].to_numpy().std()
    assert np.abs(tables["cuda"] - tables["cpu"]).to_numpy().max() < 0.02 * scale  # TF32 keeps ten bits


def test_a_model_trained_on_the_gpu_predicts_the_same_on_the_cpu(city):
    run(city, "get_img_embedding.py", "--data_path data/M1/l8_2020 --model_path ckpt --log M1_l8 --output_path data/M1/l8_M1.csv")
    flags = STAGES_4_AND_5.format(city="M1").replace("--device cpu", "--device {device}")
    run(city, "train_ODPrediction.py", flags.format(device="cuda") + " --controls false")
    found = {}
    for device in ("cuda", "cpu"):
        run(city, "test_ODPrediction.py", flags.format(device=device) + " --all_pairs")
        found[device] = pd.read_csv(city / "outputs/M1_l8_2020/M1_2020/predictions_bilinear.csv", dtype=IDS).prediction
    np.testing.assert_allclose(found["cuda"], found["cpu"], rtol=0.02)
