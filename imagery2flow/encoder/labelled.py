"""Objectives with labels, for the training loop: telling classes apart, and predicting numbers. One random view of a patch a step.

Classes: cross-entropy of the patch's class. Numbers: squared error of the scaled targets, averaged over all numbers that are known; one that is missing counts for
nothing. With balanced sampling an epoch draws as many patches as there are, with replacement, each with probability proportional to 1 / (patches of its group).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from imagery2flow.encoder.labels import Labels
from imagery2flow.encoder.objectives import ORDER, Objective
from imagery2flow.encoder.supervised import Supervised
from imagery2flow.imagery.patchset import PatchSet
from imagery2flow.run.config import EncoderConfig
from imagery2flow.run.device import generator, send

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def make_objective(config: EncoderConfig, labels: Labels, patches: PatchSet, validation: PatchSet | None, fabric: Fabric) -> Labelled:
    """The objective of a run with labels."""
    kind = Classification if config.objective == "classify" else Regression
    return kind(config, labels, patches.geocodes, () if validation is None else validation.geocodes, fabric)


class Labelled(Objective):
    """What classifying and predicting share.

    Args:
        config: Settings of the stage.
        labels: Of all patches.
        train: Ids of the patches that are learned from.
        validation: Ids of the patches that judge.
        fabric: Device and processes.
    """

    views_per_patch = 1
    is_sum = True

    def __init__(self, config: EncoderConfig, labels: Labels, train: tuple[str, ...], validation: tuple[str, ...], fabric: Fabric) -> None:
        self.config, self.labels, self.fabric, self.num_patches = config, labels, fabric, len(train)
        self.truth, self.validation_truth = self.as_tensor(train), self.as_tensor(validation)
        groups = None if labels.groups is None or not config.balanced else labels.groups.loc[list(train)]
        self.chances = (
            None if groups is None else torch.from_numpy(1 / groups.map(groups.value_counts()).to_numpy(np.float64))
        )  # [num_patches]

    def as_tensor(self, geocodes: tuple[str, ...]) -> Tensor:
        """What the head is to say of patches."""
        raise NotImplementedError

    def build_model(self, backbone: nn.Module, dim: int) -> nn.Module:
        """Encoder and linear head."""
        return Supervised(backbone, dim, len(self.labels.outputs.names), self.config.seed + 1)

    def order(self, epoch: int) -> Tensor:
        """Each patch once, or each group as often as the others."""
        random = generator(self.config.seed, ORDER, epoch)
        if self.chances is None:
            return torch.randperm(self.num_patches, generator=random)
        return torch.multinomial(self.chances, self.num_patches, replacement=True, generator=random)

    @property
    def content(self) -> dict[str, Any]:
        """What the head says, which patches the model saw, and the hash of their labels."""
        return {"outputs": self.labels.outputs.as_plain(), "splits": self.labels.splits, "labels_sha256": self.labels.sha256}


class Classification(Labelled):
    """Cross-entropy, and the share of patches whose class is the most probable one."""

    measures = ("loss", "accuracy")

    def as_tensor(self, geocodes: tuple[str, ...]) -> Tensor:
        """Numbers of the classes [num_patches]."""
        return torch.from_numpy(self.labels.codes(geocodes).astype(np.int64))

    def loss(self, features: Tensor, outputs: Tensor, patches: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy; accuracy."""
        truth, share = send(self.truth[patches], outputs.device), self.fabric.world_size / len(batch)
        hits = (outputs.argmax(dim=1) == truth).sum()
        return nn.functional.cross_entropy(outputs.float(), truth, reduction="sum") * share, hits[None] * share

    def weight(self, batch: Tensor) -> float:
        """Its patches."""
        return float(len(batch))

    def judge(self, outputs: Tensor) -> dict[str, float]:
        """Loss and accuracy of the validation patches."""
        loss = nn.functional.cross_entropy(outputs.double(), self.validation_truth)
        accuracy = (outputs.argmax(dim=1) == self.validation_truth).double().mean()
        return {"validation_loss": loss.item(), "validation_accuracy": accuracy.item()}

    def describe(self, row: dict[str, float]) -> str:
        """Loss and accuracy, by chance alone log(classes) and 1 / classes."""
        text = f"loss {row['loss']:.3f} (chance {math.log(len(self.labels.outputs.names)):.3f}), accuracy {row['accuracy']:.1%}"
        if "validation_loss" not in row:
            return text
        return f"{text}, in validation {row['validation_loss']:.3f} and {row['validation_accuracy']:.1%}"


class Regression(Labelled):
    """Squared error of scaled targets; the head begins with the mean predictor."""

    measures = ("loss",)

    def as_tensor(self, geocodes: tuple[str, ...]) -> Tensor:
        """Scaled targets [num_patches, num_targets], NaN where missing."""
        return torch.from_numpy(self.labels.scaled_targets(geocodes).astype(np.float32))

    def build_model(self, backbone: nn.Module, dim: int) -> nn.Module:
        """Encoder and a head that says the training mean of every target: a target that is constant stays so exactly."""
        model = super().build_model(backbone, dim)
        assert isinstance(model, Supervised)
        outputs = self.labels.outputs
        start = (np.array(outputs.mean) - outputs.offset) / np.array(outputs.scale)
        with torch.no_grad():
            model.head.weight.zero_()
            model.head.bias.copy_(torch.from_numpy(start))
        return model

    def loss(self, features: Tensor, outputs: Tensor, patches: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared error over the known targets of the batch."""
        truth = send(self.truth[patches], outputs.device)
        error = torch.where(truth.isnan(), 0.0, outputs.float() - truth)
        return error.square().sum() * (self.fabric.world_size / max(self.weight(batch), 1.0)), outputs.new_zeros(0, dtype=torch.float32)

    def weight(self, batch: Tensor) -> float:
        """Its known targets."""
        return float((~self.truth[batch].isnan()).sum())

    def judge(self, outputs: Tensor) -> dict[str, float]:
        """Mean squared error of the scaled targets, and R2 averaged over the targets that vary among the validation patches."""
        truth, error = self.validation_truth.double(), outputs.double() - self.validation_truth.double()
        known = ~truth.isnan()
        scores = [r_squared(truth[known[:, target], target], error[known[:, target], target]) for target in range(truth.shape[1])]
        finite = [score for score in scores if math.isfinite(score)]
        return {"validation_loss": error[known].square().mean().item(), "validation_r2": sum(finite) / len(finite) if finite else math.nan}

    def describe(self, row: dict[str, float]) -> str:
        """Loss, that of the mean predictor being about 1 for standardised targets, and R2."""
        text = f"loss {row['loss']:.4f}"
        return (
            text if "validation_loss" not in row else f"{text}, in validation {row['validation_loss']:.4f}, R2 {row['validation_r2']:.3f}"
        )


def r_squared(truth: Tensor, error: Tensor) -> float:
    """Share of the variance of a target [num_patches] that is explained; NaN where there is none."""
    total = (truth - truth.mean()).square().sum() if len(truth) > 1 else torch.zeros(())
    return 1 - (error.square().sum() / total).item() if total > 0 else math.nan
