"""Run by torchrun in two processes: writes what test_two_processes.py compares with one process.

PYTHONPATH=tests torchrun --nproc_per_node 2 -m encoder.ddp_worker OUTPUT_FOLDER
"""

import shutil
import sys
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from imagery2flow.encoder import trainer as trainer_module
from imagery2flow.encoder.labelled import make_objective
from imagery2flow.encoder.labels import Labels
from imagery2flow.encoder.objectives import nt_xent
from imagery2flow.encoder.supervised import Outputs
from imagery2flow.run.device import make_fabric
from imagery2flow.run.stage import Ledger, Terminated, TerminationFlag

from .conftest import as_patch_set, draw_images, small_config

NUM_PATCHES, DIM, TEMPERATURE = 7, 5, 0.3
STOPPED = "stopped.pth"
SHARES = (4, 3)  # of the two processes


def linear_encoder() -> nn.Module:
    """The encoder whose gradients are compared."""
    torch.manual_seed(0)
    return nn.Linear(DIM, 4)


def both_views() -> torch.Tensor:
    """Inputs of the encoder: [2, NUM_PATCHES, DIM]."""
    return torch.randn(2, NUM_PATCHES, DIM, generator=torch.Generator().manual_seed(1))


def build_linear_backbone(name: str, num_bands: int, view_size: int, seed: int) -> tuple[nn.Module, int]:
    """An encoder without batch norm, whose statistics would be those of one process."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * num_bands, 8)), 8


class SecondProcessStops:
    """SIGTERM that only the second process has seen, after its first step."""

    def __init__(self, fabric) -> None:
        self.raised = fabric.global_rank == 1


def make_linear_trainer(folder: Path, fabric, **changes) -> trainer_module.Trainer:
    """A run of the linear encoder on ten patches in batches of 4, 3, 3: two processes take unequal shares of the last two."""
    trainer_module.build_backbone = build_linear_backbone
    config = small_config(model_path=str(folder), total_epoch=2, **{"batch_size": 4, **changes})
    return trainer_module.Trainer(config, as_patch_set(draw_images(10)), 16, fabric, Ledger("test", quiet=True))


def train_linear(folder: Path, fabric, **changes) -> Path:
    """Trains the linear encoder and returns the path of its checkpoint."""
    trainer = make_linear_trainer(folder, fabric, **changes)
    trainer.run(TerminationFlag())
    return trainer.path


def train_labelled(folder: Path, fabric, **changes) -> dict[str, Path]:
    """Trains the linear encoder to tell classes apart and to predict numbers, some of them missing; returns the paths of the checkpoints."""
    trainer_module.build_backbone = build_linear_backbone
    ids = [f"{number:05d}" for number in range(13)]
    split = pd.Series(["train"] * 10 + ["validation"] * 3, index=ids)
    city = pd.Series(list("ABBABBBABBABB"), index=ids)
    numbers = pd.DataFrame({"overall": [float(number) if number % 3 else None for number in range(13)], "planet": range(13)}, index=ids)
    images, paths = draw_images(13), {}
    patches, validation = (as_patch_set({name: images[name] for name in ids[part]}) for part in (slice(10), slice(10, None)))
    for kind, labels in {
        "classify": Labels(Outputs("classes", ("A", "B")), split, city.to_frame(), city),
        "regress": Labels(Outputs("targets", ("overall", "planet"), (6.0, 5.0), (3.0, 4.0)), split, numbers, None),
    }.items():
        columns = {"label_column": "city"} if kind == "classify" else {"target_column": ["overall", "planet"]}
        config = small_config(model_path=str(folder / kind), objective=kind, **columns, **changes)
        objective = make_objective(config, labels, patches, validation, fabric)
        trainer = trainer_module.Trainer(config, patches, 16, fabric, Ledger("test", quiet=True), objective, validation)
        trainer.run(TerminationFlag())
        paths[kind] = trainer.path
    return paths


def compare(folder: Path, fabric) -> None:
    """One step on NT-Xent, and whole runs."""
    encoder = linear_encoder()
    model, _ = fabric.setup(encoder, torch.optim.SGD(encoder.parameters(), lr=0.1))
    rank = fabric.global_rank
    n, start = SHARES[rank], sum(SHARES[:rank])
    first, second = both_views()[:, start : start + n]
    projected = model(torch.cat([first, second]))
    loss, retrieval = nt_xent(
        projected[:n], projected[n:], TEMPERATURE, lambda local: fabric.all_gather(local, sync_grads=True), rank, SHARES
    )
    fabric.backward(loss)
    means = fabric.all_reduce(torch.stack([loss.detach(), retrieval]), reduce_op="mean")
    gradients = {name: parameter.grad for name, parameter in encoder.named_parameters()}
    torch.save({"means": means, **gradients}, folder / f"gradients_{fabric.global_rank}.pt")
    train_linear(folder, fabric)
    train_linear(folder / "parts", fabric, batch_size=10, accumulate=3)
    train_labelled(folder, fabric)


def stop(folder: Path, fabric) -> None:
    """A run that stops; says at which epoch and step, and resumes to the end."""
    trainer = make_linear_trainer(folder, fabric)
    try:
        trainer.run(SecondProcessStops(fabric))
    except Terminated:
        (folder / f"stopped_{fabric.global_rank}").write_text(f"{trainer.epoch} {trainer.step}")
    if fabric.is_global_zero:
        shutil.copy(trainer.path, folder / STOPPED)
    fabric.barrier()
    resumed = make_linear_trainer(folder, fabric)
    resumed.resume()
    resumed.run(TerminationFlag())


if __name__ == "__main__":
    {"compare": compare, "stop": stop}[sys.argv[1]](Path(sys.argv[2]), make_fabric("cpu", "fp32")[0])
    # Gloo's threads abort a process that ends while they run; Fabric takes down NCCL only.
    torch.distributed.destroy_process_group()
