"""What only a GPU can show: the stages run on it and give what the CPU gives. Run by ``make test-gpu``."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from imagery2flow.encoder.loading import StepJob, ViewLoader
from imagery2flow.encoder.trainer import Trainer
from imagery2flow.imagery.patch_files import load_patches
from imagery2flow.imagery.pyramid import build_pyramid
from imagery2flow.run.config import EncoderConfig, ViewConfig
from imagery2flow.run.device import make_fabric
from imagery2flow.run.stage import Ledger
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


@pytest.mark.parametrize("patches_on", ["device", "host"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_step_waits_for_the_gpu(city, tmp_path, patches_on, accumulate):
    """Reading a number from the GPU, or sending one to it the plain way, leaves it idle while the next step is prepared."""
    ledger, (fabric, _) = Ledger("test", quiet=True), make_fabric("cuda", "auto")
    patches = load_patches(str(city / "data/M1/l8_2020"), [], ledger)
    config = EncoderConfig(data_path="unused", batch_size=16, model_path=str(tmp_path), patches_on=patches_on, accumulate=accumulate)
    trainer = Trainer(config, patches, 64, fabric, ledger)
    trainer.model.train()
    batches = trainer.batches()
    for number, parts in enumerate(trainer.loader.steps(trainer.jobs(batches, first=0))):
        torch.cuda.set_sync_debug_mode("error" if number > 1 else "default")  # the first steps set the optimiser up
        try:
            trainer.train_step(parts)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert number > 2
    assert np.isfinite(trainer.sums.tolist()).all()


def test_pixels_that_are_sent_give_the_views_of_pixels_on_the_gpu(city):
    patches = load_patches(str(city / "data/M1/l8_2020"), [], Ledger("test", quiet=True))
    pyramid, device = build_pyramid(patches, patches.normalisation, 64), torch.device("cuda")
    views = {}
    for place in (torch.device("cpu"), device):
        loader = ViewLoader(pyramid.to(place), ViewConfig(), 64, device)
        jobs = [StepJob(torch.arange(20), [torch.arange(20)], torch.Generator().manual_seed(seed)) for seed in range(3)]
        views[place.type] = torch.cat([loader.views(parts[0]) for parts in loader.steps(jobs)])
    torch.testing.assert_close(views["cuda"], views["cpu"], atol=1e-4, rtol=1e-4)
