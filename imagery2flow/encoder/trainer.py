"""The one training loop of encoders.

Every random number is drawn from (seed, epoch, step), and the learning rate is a function of the epoch, so that a run that was stopped and
resumed equals one that was not. Batches and views are drawn as for one process and then divided among the processes: their number changes
neither, and a run may be resumed with another number.

What is learned, and from how many views of a patch, is the objective's (``encoder.objectives``, ``encoder.labelled``). A batch that is too large for a device
goes through the encoder in parts (``--accumulate``). Where its loss is a sum over patches each part passes its gradient back. That of SimCLR keeps all negatives:
the projections of all parts are made without gradients, the loss is taken over all of them, and each part then goes through once more to pass its share of the
gradient back (Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup"). Batch norm sees the parts.

Writes ``<model_path>/<log>_img_<total_epoch>.pth`` after every epoch and on SIGTERM, and beside it ``_previous.pth``, ``_best.pth``, ``_metrics.csv`` and
``_run.json``. A loss or weights that are no numbers end the run before they reach a checkpoint.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from imagery2flow.encoder.backbones import build_backbone
from imagery2flow.encoder.checkpoint import best_path, load_newest, plain, previous_path, save_checkpoint
from imagery2flow.encoder.compiling import compile_if_faster, is_worth_a_trial
from imagery2flow.encoder.loading import StepJob, ViewLoader, ViewPart
from imagery2flow.encoder.objectives import Contrastive, Objective
from imagery2flow.encoder.pretrained import load_weights
from imagery2flow.encoder.validation import Validation
from imagery2flow.imagery.patchset import PatchSet
from imagery2flow.imagery.pyramid import Pyramid, build_pyramid
from imagery2flow.run.config import EncoderConfig
from imagery2flow.run.device import generator, has_fused_adam
from imagery2flow.run.errors import InputError, is_out_of_memory, shown
from imagery2flow.run.files import give_second_name
from imagery2flow.run.memory import allocator, fits_device
from imagery2flow.run.stage import Ledger, Terminated, TerminationFlag
from imagery2flow.run.tables import write_table

if TYPE_CHECKING:
    from lightning_fabric import Fabric

VIEWS = 1  # purpose of random numbers, as ``objectives.ORDER``
# Of labels the content must agree, which is told by its hash.
MAY_CHANGE_ON_RESUME = {
    "resume",
    "device",
    "precision",
    "data_path",
    "model_path",
    "log",
    "patches_on",
    "compile",
    "labels_path",
    "scene_dir",
}
LOGGED_EPOCHS = 20
# All processes ask each other whether one of them is to stop: a GPU would have to be waited for at every step.
STEPS_BETWEEN_QUESTIONS = 8


def count_batches(num_patches: int, batch_size: int) -> int:
    """Batches of an epoch: no more than ``batch_size`` asks for, and none of a single patch, which has no negatives, and no variance for batch norm."""
    return min(math.ceil(num_patches / batch_size), num_patches // 2)


class Trainer:
    """One run of stage 2: model, optimiser, position and history.

    Args:
        config: Settings of the stage.
        patches: What is learned from.
        view_size: Side of a view in pixels.
        fabric: Device, precision and processes.
        ledger: Takes what was decided.
        objective: What is learned; default SimCLR.
        validation: Patches that judge an objective with labels after each epoch, or None.
        weights: Those that the backbone begins with; default random ones.
    """

    def __init__(
        self,
        config: EncoderConfig,
        patches: PatchSet,
        view_size: int,
        fabric: Fabric,
        ledger: Ledger,
        objective: Objective | None = None,
        validation: PatchSet | None = None,
        weights: dict[str, Tensor] | None = None,
    ) -> None:
        self.config, self.view_size, self.fabric, self.ledger = config, view_size, fabric, ledger
        self.objective = objective or Contrastive(config, len(patches), fabric)
        self.path = Path(config.checkpoint)
        self.normalisation = patches.normalisation
        self.num_patches, self.geocodes = len(patches), patches.geocodes
        pyramid = self.place_pixels(patches)
        self.loader = ViewLoader(pyramid, config.views, view_size, fabric.device, self.objective.views_per_patch)
        if self.loader.streams:
            ledger.note(f"pixels ({pyramid.num_bytes / 1e9:.1f} GB) stay off the device: each step's crops are sent to it")
        backbone, dim = build_backbone(config.resnet, len(self.normalisation.band_names), view_size, config.seed)
        if weights is not None:
            load_weights(backbone, weights, config.init)
        model = self.objective.build_model(backbone, dim)
        if fabric.world_size > 1 and fabric.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        if config.resnet != "vit_l_16":
            model = model.to(memory_format=torch.channels_last)
        fused = has_fused_adam(fabric.device)
        optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=fused)
        self.model, self.optimizer = fabric.setup(model, optimizer)
        self.epoch, self.step = 0, 0
        self.validation = (
            None
            if validation is None
            else Validation(self.place_pixels(validation), view_size, config.batch_size // config.accumulate, fabric)
        )
        self.sums = torch.zeros(len(self.objective.measures), device=fabric.device)  # read once an epoch: reading waits for the device
        # Steps of the epoch before the first whose loss is no number, counted on the device.
        self.is_finite, self.num_finite = torch.ones((), device=fabric.device), torch.zeros((), device=fabric.device)
        self.first_step = 0  # of the epoch in this process
        self.is_between_epochs = False  # whether the newest checkpoint is that of a whole epoch
        self.history: list[dict[str, float]] = []

    def place_pixels(self, patches: PatchSet) -> Pyramid:
        """The patches with those of coarser resolutions, on the device where they fit."""
        config = self.config
        pyramid = build_pyramid(patches, self.normalisation, self.view_size, allocator(config.patches_on, self.path.parent))
        return pyramid.to(self.fabric.device) if fits_device(pyramid.num_bytes, config.patches_on, self.fabric.device) else pyramid

    def resume(self) -> None:
        """Continues from the run's newest checkpoint that is whole, if there is one.

        Raises:
            InputError: The checkpoint was made with other settings, or cannot be read.
        """
        content = load_newest(self.path, self.ledger)
        if content is None:
            return
        settings = {**dataclasses.asdict(self.config), "normalisation": plain(self.normalisation), **labels_hash(self.objective.content)}
        stored = {**content["config"], "normalisation": content["normalisation"], **labels_hash(content)}
        changed = [name for name in settings if name in stored and name not in MAY_CHANGE_ON_RESUME and stored[name] != settings[name]]
        if changed:
            listing = "; ".join(f"{name} {stored[name]} there, {settings[name]} now" for name in changed)
            raise InputError(
                f"{self.path} was made with other settings ({listing}); repeat them, choose another --log, or train anew with --resume false"
            )
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.epoch, self.step, self.history = content["epoch"], content["step"], content["history"]
        self.sums = torch.tensor([content["sums"][name] for name in self.objective.measures], device=self.fabric.device)
        self.is_between_epochs = self.step == 0
        self.keep_best()
        self.write_metrics()  # a run that was killed may have been so just before it
        if self.epoch == self.config.total_epoch:
            self.ledger.note(f"{self.path} is trained to its end with these settings; --resume false trains it anew")
        else:
            self.ledger.note(f"resumed {self.path} at epoch {self.epoch}, step {self.step}")

    def run(self, termination: TerminationFlag) -> None:
        """Trains to the last epoch.

        Raises:
            Terminated: SIGTERM arrived; the checkpoint is saved.
            InputError: The device has too little memory, or the loss is no number any more.
        """
        try:
            self.run_epochs(termination)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            parts = self.config.accumulate
            raise InputError(
                f"the memory of {self.fabric.device} is full in epoch {self.epoch + 1}, with batches of {self.config.batch_size} patches in {parts} part(s); "
                f"use --accumulate {2 * parts}, which keeps the negatives, a lower --batch_size, or a smaller --view_size than {self.view_size}"
            ) from error

    def run_epochs(self, termination: TerminationFlag) -> None:
        """Trains to the last epoch, without a word for those who lack memory."""
        total = self.config.total_epoch
        self.prepare()
        with tqdm(
            total=total, initial=self.epoch, desc="train encoder", unit="epoch", disable=None if self.fabric.is_global_zero else True
        ) as bar:
            while self.epoch < total:
                started = time.perf_counter()
                self.run_epoch(termination)
                self.save()
                self.report(time.perf_counter() - started)
                bar.update()

    def prepare(self) -> None:
        """Sets the model to training, compiled where that pays."""
        self.model.train()
        num_steps = (self.config.total_epoch - self.epoch) * count_batches(self.num_patches, self.config.batch_size) - self.step
        if is_worth_a_trial(self.config.compile, num_steps, self.fabric.device):
            views = self.loader.views(self.loader.parts(next(self.jobs(self.batches(), first=0)))[0])
            compile_if_faster(self.model.module, lambda: self.trial_pass(views), self.config.compile == "on", self.fabric, self.ledger)

    def run_epoch(self, termination: TerminationFlag) -> None:
        """One pass over the patches, from ``self.step``; appends a row to the history."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.epoch)
        batches = self.batches()
        self.first_step, self.is_finite, self.num_finite = self.step, torch.ones_like(self.is_finite), torch.zeros_like(self.num_finite)
        for parts in self.loader.steps(self.jobs(batches, self.step)):
            self.train_step(parts)
            self.step += 1
            if self.any_process(termination.raised):
                self.check_finite()
                self.save()
                raise Terminated(f"{self.path} holds epoch {self.epoch}, step {self.step}; the same command goes on")
        self.check_finite()
        means = self.sums / sum(self.objective.weight(batch) for batch in batches)
        row = {"epoch": self.epoch + 1, "lr": learning_rate(self.config, self.epoch)}
        row |= dict(zip(self.objective.measures, means.tolist(), strict=True))
        if self.validation is not None:
            row |= self.objective.judge(self.validation.outputs(self.model.module))
        self.history.append(row)
        self.epoch, self.step, self.sums = self.epoch + 1, 0, torch.zeros_like(self.sums)

    def any_process(self, raised: bool) -> bool:
        """Whether SIGTERM reached any process: all must stop at the same step."""
        if self.fabric.world_size == 1:
            return raised
        if self.step % STEPS_BETWEEN_QUESTIONS and self.step < count_batches(self.num_patches, self.config.batch_size):
            return False
        return bool(self.all_reduce(torch.tensor(float(raised), device=self.fabric.device), "sum") > 0)

    def batches(self) -> list[Tensor]:
        """This epoch's batches of patch numbers, in random order, the sizes equal but for one patch.

        A batch holds at most ``batch_size`` patches; with an odd number of patches and a ``batch_size`` of 2, one batch holds three.
        """
        return list(torch.tensor_split(self.objective.order(self.epoch), count_batches(self.num_patches, self.config.batch_size)))

    def jobs(self, batches: list[Tensor], first: int) -> Iterator[StepJob]:
        """What the epoch's steps from the ``first`` are made from; this process takes its share of each batch, in parts."""
        for step in range(first, len(batches)):
            places = torch.arange(len(batches[step]))
            mine = torch.tensor_split(places, self.fabric.world_size)[self.fabric.global_rank]
            random = generator(self.config.seed, VIEWS, self.epoch, step)
            yield StepJob(batches[step], list(torch.tensor_split(mine, self.config.accumulate)), random)

    def train_step(self, parts: list[ViewPart]) -> None:
        """One step on random views of a batch of patches, of which this process has its share, in parts."""
        self.optimizer.zero_grad()
        measured = self.step_by_part(parts) if self.objective.is_sum or len(parts) == 1 else self.step_over_parts(parts)
        self.optimizer.step()
        if self.fabric.world_size > 1:
            measured = self.all_reduce(measured, "mean")
        self.sums += measured * self.objective.weight(parts[0].batch)
        self.is_finite = self.is_finite * measured.isfinite().all()
        self.num_finite = self.num_finite + self.is_finite

    def step_by_part(self, parts: list[ViewPart]) -> Tensor:
        """Passes the gradient of each part back; returns what was measured, the loss first [num_measures]."""
        measured = torch.zeros_like(self.sums)
        for number, part in enumerate(parts, start=1):
            with self.fabric.no_backward_sync(self.model, enabled=number < len(parts)):
                features, outputs = self.model(self.loader.views(part))  # [views_per_patch * n, dim], [views_per_patch * n, num_outputs]
                loss, others = self.objective.loss(features, outputs, part.patches, part.batch)
                self.fabric.backward(loss)
            measured += torch.cat([loss.detach()[None], others])
        return measured

    def step_over_parts(self, parts: list[ViewPart]) -> Tensor:
        """Passes the gradient of a loss over all parts back part by part; returns what was measured, the loss first [num_measures]."""
        views = self.objective.views_per_patch
        with torch.no_grad(), kept_buffers(self.model):
            features, outputs = zip(*(self.model(self.loader.views(part)) for part in parts), strict=True)
        by_view = zip(*(part.chunk(views) for part in outputs), strict=True)
        together = torch.cat([torch.cat(view) for view in by_view]).requires_grad_()  # [views_per_patch * n, num_outputs], as of one part
        patches = torch.cat([part.patches for part in parts])
        loss, others = self.objective.loss(torch.cat(features), together, patches, parts[0].batch)
        self.fabric.backward(loss)
        assert together.grad is not None
        sizes = [len(part.patches) for part in parts]
        gradients = zip(*(view.split(sizes) for view in together.grad.chunk(views)), strict=True)
        for number, (part, gradient) in enumerate(zip(parts, gradients, strict=True), start=1):
            with self.fabric.no_backward_sync(self.model, enabled=number < len(parts)):
                self.fabric.backward(self.model(self.loader.views(part))[1], gradient=torch.cat(gradient))
        return torch.cat([loss.detach()[None], others])

    def trial_pass(self, views: Tensor) -> None:
        """Runs the model forward and backward, and leaves no trace."""
        with kept_buffers(self.model):
            self.fabric.backward(self.model(views)[1].square().mean())
        self.optimizer.zero_grad()

    def all_reduce(self, local: Tensor, operation: str) -> Tensor:
        """Sum or mean of all processes' tensors."""
        return cast("Tensor", self.fabric.all_reduce(local, reduce_op=operation))

    def check_finite(self) -> None:
        """Refuses to go on with a loss or weights that are no numbers. Waits for the device.

        Raises:
            InputError: One is infinite or NaN; the message names the first batch and its patches.
        """
        remedy = f"lower --lr {self.config.lr:g}, or look at these patches; {self.path if self.path.is_file() else 'no checkpoint'} holds what was good"
        step = self.first_step + int(self.num_finite)
        if step < self.step:
            batch = [self.geocodes[number] for number in self.batches()[step].tolist()]
            raise InputError(f"the loss is no number from epoch {self.epoch + 1}, batch {step + 1} on (patches {shown(batch)}); {remedy}")
        floats = [tensor for tensor in self.model.state_dict().values() if tensor.is_floating_point()]
        if not bool(torch.stack([tensor.isfinite().all() for tensor in floats]).all()):
            batch = [self.geocodes[number] for number in self.batches()[self.step - 1].tolist()]
            raise InputError(f"weights are no numbers after epoch {self.epoch + 1}, batch {self.step} (patches {shown(batch)}); {remedy}")

    def save(self) -> None:
        """Writes the checkpoint and the metrics (first process only); that of the last whole epoch stays beside it."""
        if not self.fabric.is_global_zero:
            return
        model = self.model.module
        if self.is_between_epochs:
            give_second_name(self.path, previous_path(self.path))
        position: dict[str, Any] = {
            "epoch": self.epoch,
            "step": self.step,
            "sums": dict(zip(self.objective.measures, self.sums.tolist(), strict=True)),
            "history": self.history,
            "view_size": self.view_size,
            **self.objective.content,
        }
        save_checkpoint(self.path, model, self.optimizer, self.config, position, self.normalisation)
        self.is_between_epochs = self.step == 0
        self.keep_best()
        self.write_metrics()

    def write_metrics(self) -> None:
        """Writes the history of the epochs (first process only)."""
        if self.history and self.fabric.is_global_zero:
            write_table(metrics_path(self.config), pd.DataFrame(self.history))

    def keep_best(self) -> None:
        """Keeps the newest checkpoint as that of the lowest validation loss, or training loss where there is no other, if it is (first process only)."""
        losses = [row.get("validation_loss", row["loss"]) for row in self.history]
        if (
            self.fabric.is_global_zero
            and self.is_between_epochs
            and losses
            and min(losses) == losses[-1] < min(losses[:-1], default=math.inf)
        ):
            give_second_name(self.path, best_path(self.path))

    def report(self, seconds: float) -> None:
        """Prints the epoch that just ended, about twenty times a run."""
        every = max(1, self.config.total_epoch // LOGGED_EPOCHS)
        if self.epoch % every and self.epoch not in (1, self.config.total_epoch):
            return
        described = self.objective.describe(self.history[-1])
        self.ledger.say(f"epoch {self.epoch}/{self.config.total_epoch}: {described}, {self.num_patches / seconds:.0f} patches/s")


@contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Gives the running means of batch norm back as they were: a pass that is made twice counts once."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])


def metrics_path(config: EncoderConfig) -> Path:
    """Table of the run's epochs: epoch, lr, and what the objective measures."""
    checkpoint = Path(config.checkpoint)
    return checkpoint.with_name(checkpoint.stem + "_metrics.csv")


def labels_hash(content: dict[str, Any]) -> dict[str, str]:
    """What tells labels from others, of a checkpoint's content, as a setting."""
    return {"labels": content.get("labels_sha256", "none")[:12]}


def learning_rate(config: EncoderConfig, epoch: int) -> float:
    """Learning rate of an epoch (0-based): half a cosine, or a tenth at each epoch of the schedule, as published (1-based there)."""
    if config.cos:
        return config.lr * 0.5 * (1 + math.cos(math.pi * epoch / config.total_epoch))
    return config.lr * 0.1 ** sum(epoch + 1 >= milestone for milestone in config.schedule)
