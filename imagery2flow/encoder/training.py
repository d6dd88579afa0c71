"""Stage 2: the one training loop of encoders.

Every random number is drawn from (seed, epoch, step), and the learning rate is a function of the epoch, so that a run that was stopped and
resumed equals one that was not. Batches and views are drawn as for one process and then divided among the processes: their number changes
neither, and a run may be resumed with another number.

Writes ``<model_path>/<log>_img_<total_epoch>.pth`` after every epoch and on SIGTERM, and beside it ``_metrics.csv`` and ``_run.json``.
"""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from imagery2flow.encoder.backbones import build_backbone
from imagery2flow.encoder.checkpoint import load_checkpoint, plain, save_checkpoint
from imagery2flow.encoder.objectives import SimCLR, chance_level, feature_spread, nt_xent
from imagery2flow.imagery.patchset import PatchSet, load_patches
from imagery2flow.imagery.views import Pyramid, build_pyramid, choose_view_size, random_views
from imagery2flow.run.config import EncoderConfig
from imagery2flow.run.device import generator, make_fabric
from imagery2flow.run.errors import BandError, InputError
from imagery2flow.run.files import check_output_folder, write_table
from imagery2flow.run.stage import Ledger, Terminated, TerminationFlag

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Purposes of random numbers, as keys of ``run.device.generator``.
ORDER, VIEWS = 0, 1
MAY_CHANGE_ON_RESUME = {"resume", "device", "precision", "data_path", "model_path", "log"}
LOGGED_EPOCHS = 20
SUMS = ("loss", "chance", "spread", "retrieval")


def train_encoder(config: EncoderConfig, ledger: Ledger) -> Path:
    """Runs stage 2 and returns the path of its ``run.json``.

    Raises:
        InputError: The patches cannot be used, or the checkpoint to resume is of another run.
    """
    check_output_folder(config.model_path, "--model_path")
    patches = load_patches(config.data_path, config.bands, ledger)
    check_patches(patches, config)
    view_size = config.view_size or choose_view_size(patches)
    fabric, choice = make_fabric(config.device, config.precision)
    check_processes(len(patches), config.batch_size, fabric.world_size)
    ledger.note(choice)
    names = ", ".join(patches.normalisation.band_names)
    ledger.note(
        f"{config.resnet} from scratch on {len(patches):,} patches of {names}, views of {view_size} px, batches of up to {config.batch_size}"
    )
    trainer = Trainer(config, patches, view_size, fabric, ledger)
    if config.resume:
        trainer.resume()
    with TerminationFlag() as termination:
        trainer.run(termination)
    ledger.went_out["epochs"] = len(trainer.history)
    return trainer.path.with_name(trainer.path.stem + "_run.json")


def check_patches(patches: PatchSet, config: EncoderConfig) -> None:
    """Refuses patches that SimCLR cannot learn from with these settings.

    Raises:
        InputError: There are fewer than two patches.
        BandError: RGB jitter is asked for other than three bands.
    """
    if len(patches) < 2:
        raise InputError(
            f"--data_path {config.data_path} holds {len(patches)} patch; contrastive learning needs at least 2, and hundreds to be of use"
        )
    rgb = config.views.rgb_jitter > 0 or config.views.grey_probability > 0
    num_bands = len(patches.normalisation.band_names)
    if rgb and num_bands != 3:
        raise BandError(
            f"--views.rgb_jitter and --views.grey_probability need the three bands red, green, blue but {num_bands} are used; set both to 0"
        )


def check_processes(num_patches: int, batch_size: int, world_size: int) -> None:
    """Refuses more processes than a batch has patches: each takes a share of every batch.

    Raises:
        InputError: There are too many.
    """
    smallest = num_patches // count_batches(num_patches, batch_size)
    if smallest < world_size:
        raise InputError(
            f"{world_size} processes cannot share batches of {smallest} patches ({num_patches:,} patches, --batch_size {batch_size}); "
            f"start at most {smallest} processes, or raise --batch_size as far as there are patches"
        )


def count_batches(num_patches: int, batch_size: int) -> int:
    """Batches of an epoch: no more than ``batch_size`` asks for, and none of a single patch, which has no negatives."""
    return min(math.ceil(num_patches / batch_size), num_patches // 2)


class Trainer:
    """One run of stage 2: model, optimiser, position and history."""

    def __init__(self, config: EncoderConfig, patches: PatchSet, view_size: int, fabric: Fabric, ledger: Ledger) -> None:
        self.config, self.view_size, self.fabric, self.ledger = config, view_size, fabric, ledger
        self.path = Path(config.checkpoint)
        self.normalisation = patches.normalisation
        self.num_patches = len(patches)
        self.pyramid: Pyramid = build_pyramid(patches, patches.normalisation, view_size).to(fabric.device)
        backbone, dim = build_backbone(config.resnet, len(self.normalisation.band_names), view_size, config.seed)
        model: nn.Module = SimCLR(backbone, dim, config.projection_dim, config.seed + 1)
        if fabric.world_size > 1 and fabric.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        if config.resnet != "vit_l_16":
            model = model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.model, self.optimizer = fabric.setup(model, optimizer)
        self.epoch, self.step = 0, 0
        self.sums = dict.fromkeys(SUMS, 0.0)
        self.history: list[dict[str, float]] = []

    def resume(self) -> None:
        """Continues from the run's checkpoint, if there is one.

        Raises:
            InputError: The checkpoint was made with other settings.
        """
        if not self.path.is_file():
            self.ledger.note(f"nothing to resume: {self.path} does not exist, the run starts anew")
            return
        content = load_checkpoint(self.path)
        settings = {**dataclasses.asdict(self.config), "normalisation": plain(self.normalisation)}
        stored = {**content["config"], "normalisation": content["normalisation"]}
        changed = [name for name in settings if name not in MAY_CHANGE_ON_RESUME and stored.get(name) != settings[name]]
        if changed:
            listing = "; ".join(f"{name} {stored.get(name)} there, {settings[name]} now" for name in changed)
            raise InputError(f"--resume: {self.path} was made with other settings ({listing}); repeat them, or choose another --log")
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.epoch, self.step, self.sums, self.history = content["epoch"], content["step"], content["sums"], content["history"]
        self.ledger.note(f"resumed {self.path} at epoch {self.epoch}, step {self.step}")

    def run(self, termination: TerminationFlag) -> None:
        """Trains to the last epoch.

        Raises:
            Terminated: SIGTERM arrived; the checkpoint is saved.
        """
        self.model.train()
        total = self.config.total_epoch
        with tqdm(
            total=total, initial=self.epoch, desc="train encoder", unit="epoch", disable=None if self.fabric.is_global_zero else True
        ) as bar:
            while self.epoch < total:
                started = time.perf_counter()
                self.run_epoch(termination)
                self.save()
                self.report(time.perf_counter() - started)
                bar.update()

    def run_epoch(self, termination: TerminationFlag) -> None:
        """One pass over the patches, from ``self.step``; appends a row to the history."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.epoch)
        batches = self.batches()
        while self.step < len(batches):
            self.train_step(batches[self.step])
            self.step += 1
            if self.any_process(termination.raised):
                self.save()
                raise Terminated(f"{self.path} holds epoch {self.epoch}, step {self.step}; continue with --resume")
        mean = {name: value / len(batches) for name, value in self.sums.items()}
        row = {"epoch": self.epoch + 1, "lr": learning_rate(self.config, self.epoch), **mean}
        self.history.append(row)
        self.epoch, self.step, self.sums = self.epoch + 1, 0, dict.fromkeys(SUMS, 0.0)

    def any_process(self, raised: bool) -> bool:
        """Whether SIGTERM reached any process: all must stop at the same step."""
        if self.fabric.world_size == 1:
            return raised
        return bool(self.all_reduce(torch.tensor(float(raised), device=self.fabric.device), "sum") > 0)

    def batches(self) -> list[Tensor]:
        """This epoch's batches of patch numbers, in random order: each patch once, the sizes equal but for one patch.

        A batch holds at most ``batch_size`` patches; with an odd number of patches and a ``batch_size`` of 2, one batch holds three.
        """
        order = torch.randperm(self.num_patches, generator=generator(self.config.seed, ORDER, self.epoch))
        return list(torch.tensor_split(order, count_batches(self.num_patches, self.config.batch_size)))

    def train_step(self, batch: Tensor) -> None:
        """One step on two random views of each patch of the batch, of which this process takes its share."""
        random = generator(self.config.seed, VIEWS, self.epoch, self.step)
        rank = self.fabric.global_rank
        shares = [len(part) for part in torch.tensor_split(batch, self.fabric.world_size)]
        n, first = shares[rank], sum(shares[:rank])
        mine = slice(first, first + n)
        both = torch.cat([random_views(self.pyramid, batch, self.config.views, self.view_size, random)[mine] for _ in range(2)])
        if self.config.resnet != "vit_l_16":
            both = both.contiguous(memory_format=torch.channels_last)
        features, projected = self.model(both)  # [2n, dim], [2n, projection_dim]
        gather = self.gather if self.fabric.world_size > 1 else None
        loss, retrieval = nt_xent(projected[:n], projected[n:], self.config.temperature, gather, rank, shares)
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        self.optimizer.step()
        measured = torch.stack([loss.detach(), feature_spread(features), retrieval])
        if self.fabric.world_size > 1:
            measured = self.all_reduce(measured, "mean")
        loss_value, spread, share = measured.tolist()
        for name, value in zip(SUMS, (loss_value, chance_level(len(batch)), spread, share), strict=True):
            self.sums[name] += value

    def gather(self, local: Tensor) -> Tensor:
        """All processes' tensors, with gradients: [...] -> [world_size, ...]."""
        return cast("Tensor", self.fabric.all_gather(local, sync_grads=True))

    def all_reduce(self, local: Tensor, operation: str) -> Tensor:
        """Sum or mean of all processes' tensors."""
        return cast("Tensor", self.fabric.all_reduce(local, reduce_op=operation))

    def save(self) -> None:
        """Writes the checkpoint and the metrics (first process only)."""
        if not self.fabric.is_global_zero:
            return
        model = self.model.module
        position: dict[str, Any] = {
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums,
            "history": self.history,
            "view_size": self.view_size,
        }
        save_checkpoint(self.path, model, self.optimizer, self.config, position, self.normalisation)
        if not self.history:
            return
        write_table(metrics_path(self.config), pd.DataFrame(self.history))

    def report(self, seconds: float) -> None:
        """Prints the epoch that just ended, about twenty times a run."""
        every = max(1, self.config.total_epoch // LOGGED_EPOCHS)
        if self.epoch % every and self.epoch not in (1, self.config.total_epoch):
            return
        row = self.history[-1]
        self.ledger.say(
            f"epoch {self.epoch}/{self.config.total_epoch}: loss {row['loss']:.3f} (chance {row['chance']:.3f}), partner found {row['retrieval']:.0%}, "
            f"feature spread {row['spread']:.2f} (0 is collapsed), {self.num_patches / seconds:.0f} patches/s"
        )


def metrics_path(config: EncoderConfig) -> Path:
    """Table of the run's epochs: epoch, lr, loss, chance, spread, retrieval."""
    checkpoint = Path(config.checkpoint)
    return checkpoint.with_name(checkpoint.stem + "_metrics.csv")


def learning_rate(config: EncoderConfig, epoch: int) -> float:
    """Learning rate of an epoch (0-based): half a cosine, or a tenth at each epoch of the schedule, as published (1-based there)."""
    if config.cos:
        return config.lr * 0.5 * (1 + math.cos(math.pi * epoch / config.total_epoch))
    return config.lr * 0.1 ** sum(epoch + 1 >= milestone for milestone in config.schedule)
