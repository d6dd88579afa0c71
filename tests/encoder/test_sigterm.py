"""Stage 2 as a process: SIGTERM ends it with status 143 and a checkpoint from which --resume goes on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import torch

import imagery2flow
from imagery2flow.encoder.training import train_encoder
from imagery2flow.run.cli import parse_config
from imagery2flow.run.config import EncoderConfig

from .conftest import draw_images, write_patches

SCRIPT = Path(imagery2flow.__file__).parents[1] / "train_img_encoder.py"
TOTAL_EPOCH = 5


def test_sigterm_saves_ends_with_143_and_resume_goes_on(tmp_path, ledger):
    write_patches(tmp_path / "patches", draw_images(12))
    settings = f"--view_size 16 --batch_size 4 --total_epoch {TOTAL_EPOCH} --log run --device cpu --precision fp32 --projection_dim 8"
    flags = ["--data_path", str(tmp_path / "patches"), "--model_path", str(tmp_path), *settings.split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), *flags], stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
    ) as process:
        said = ""
        for line in process.stderr:
            said += line
            if f"epoch 1/{TOTAL_EPOCH}" in line:
                process.send_signal(signal.SIGTERM)
    assert process.returncode == 143, said
    assert "stopped by SIGTERM" in said
    assert "the same command goes on" in said
    checkpoint = torch.load(tmp_path / f"run_img_{TOTAL_EPOCH}.pth", weights_only=True)
    assert 1 <= checkpoint["epoch"] < TOTAL_EPOCH
    assert not (tmp_path / f"run_img_{TOTAL_EPOCH}_run.json").exists()

    train_encoder(parse_config("train_img_encoder.py", EncoderConfig, [*flags, "--resume"]), ledger)
    assert any(note.endswith(f"at epoch {checkpoint['epoch']}, step {checkpoint['step']}") for note in ledger.notes)
    history = pd.read_csv(tmp_path / f"run_img_{TOTAL_EPOCH}_metrics.csv")
    assert history.epoch.tolist() == list(range(1, TOTAL_EPOCH + 1))
    assert history.loss[: checkpoint["epoch"]].tolist() == [row["loss"] for row in checkpoint["history"]]
