"""Training in two processes (gloo) equals training in one: NT-Xent and its gradients, and a whole run."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from imagery2flow.encoder import trainer, training
from imagery2flow.encoder.objectives import nt_xent
from imagery2flow.run.device import make_fabric
from imagery2flow.run.errors import InputError
from imagery2flow.run.stage import TerminationFlag

from . import ddp_worker


def run_two_processes(task, folder):
    """Runs a task of ddp_worker.py twice, in the environment that torchrun gives; what it writes is in the folder then."""
    module = ddp_worker.__name__
    root = Path(ddp_worker.__file__).parents[module.count(".")]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", module, task, str(folder)]
    processes = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_processes")
    run_two_processes("compare", folder)
    return folder


def test_loss_retrieval_and_gradients_equal_those_of_one_process(two_processes):
    encoder = ddp_worker.linear_encoder()
    first, second = ddp_worker.both_views()
    loss, retrieval = nt_xent(encoder(first), encoder(second), ddp_worker.TEMPERATURE)
    loss.backward()
    for rank in (0, 1):
        found = torch.load(two_processes / f"gradients_{rank}.pt")
        torch.testing.assert_close(found["means"], torch.stack([loss.detach(), retrieval]))
        torch.testing.assert_close(found["weight"], encoder.weight.grad)
        torch.testing.assert_close(found["bias"], encoder.bias.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("subfolder", "settings"), [(".", {}), ("parts", {"batch_size": 10})])
def test_a_whole_run_equals_that_of_one_process(two_processes, tmp_path: Path, monkeypatch, subfolder, settings):
    """Also where each process passes its share of a batch through the encoder in three parts."""
    monkeypatch.setattr(trainer, "build_backbone", None)  # restored after the test; the worker's function sets it
    fabric, _ = make_fabric("cpu", "fp32")
    path = ddp_worker.train_linear(tmp_path, fabric, **settings)
    one, two = (torch.load(folder / path.name, weights_only=True) for folder in (tmp_path, two_processes / subfolder))
    assert [row["loss"] for row in two["history"]] == pytest.approx([row["loss"] for row in one["history"]], rel=1e-4)
    assert [row["retrieval"] for row in two["history"]] == pytest.approx([row["retrieval"] for row in one["history"]])
    for name, tensor in one["model"].items():
        torch.testing.assert_close(two["model"][name], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["classify", "regress"])
def test_a_run_with_labels_equals_that_of_one_process(two_processes, tmp_path, monkeypatch, kind):
    """Its history too, with the measures of validation patches, of which each process takes a share."""
    monkeypatch.setattr(trainer, "build_backbone", None)
    path = ddp_worker.train_labelled(tmp_path, make_fabric("cpu", "fp32")[0])[kind]
    one, two = (torch.load(folder / kind / path.name, weights_only=True) for folder in (tmp_path, two_processes))
    for alone, shared in zip(one["history"], two["history"], strict=True):
        assert shared == pytest.approx(alone, rel=1e-4, abs=1e-6)
    assert "validation_loss" in one["history"][0]
    for name, tensor in one["model"].items():
        torch.testing.assert_close(two["model"][name], tensor, atol=1e-5, rtol=1e-4)


def test_sigterm_to_one_process_stops_both_at_the_same_step_and_the_run_resumes(two_processes, tmp_path, monkeypatch):
    run_two_processes("stop", tmp_path)
    assert [(tmp_path / f"stopped_{rank}").read_text() for rank in (0, 1)] == ["0 3", "0 3"]  # asked at the end of so short an epoch
    name = "small_img_2.pth"
    whole, resumed = (torch.load(folder / name, weights_only=True) for folder in (two_processes, tmp_path))
    assert resumed["history"] == whole["history"]
    assert all(torch.equal(resumed["model"][part], whole["model"][part]) for part in whole["model"])

    monkeypatch.setattr(trainer, "build_backbone", None)
    (tmp_path / "one").mkdir()
    shutil.copy(tmp_path / ddp_worker.STOPPED, tmp_path / "one" / name)
    alone = ddp_worker.make_linear_trainer(tmp_path / "one", make_fabric("cpu", "fp32")[0])
    alone.resume()
    assert (alone.epoch, alone.step) == (0, 3)
    alone.run(TerminationFlag())
    for part, tensor in whole["model"].items():
        torch.testing.assert_close(alone.model.module.state_dict()[part], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("num_patches", "batch_size", "world_size", "smallest"), [(2, 4, 3, 2), (9, 2, 4, 2), (10, 4, 4, 3), (130, 64, 44, 43)]
)
def test_more_processes_than_a_batch_has_patches_are_refused(num_patches, batch_size, world_size, smallest):
    with pytest.raises(
        InputError, match=rf"{world_size} processes cannot share batches of {smallest} patches .*; start at most {smallest} processes"
    ):
        training.check_processes(num_patches, batch_size, world_size)
    training.check_processes(num_patches, batch_size, smallest)
