"""An encoder with a head that says something of each patch: the probability of each class, or scores on scales that are known for training patches.

A class is, for instance, the city that a tile lies in; a target is an index of that city. The head is one linear layer on the feature vector.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from imagery2flow.encoder.backbones import build_backbone
from imagery2flow.encoder.checkpoint import EncoderRecord, load_checkpoint, record_of
from imagery2flow.run.device import seeded
from imagery2flow.run.errors import InputError, first_sentence


@dataclass(frozen=True)
class Outputs:
    """What the head of a model says.

    Attributes:
        kind: ``classes``: one probability per class; ``targets``: one score per target.
        names: The classes, sorted, or the targets.
        mean: Of each target over the training patches, in the target's unit, which is what a model says that looks at nothing; empty for classes.
        std: Standard deviation likewise; 1 for a constant target.
        column: Column of the labels; empty for targets.
        held_out: Groups (cities) whose patches were kept from training and validation.
        target_scale: What targets were divided by for the head, which then says o = target / target_scale; None where it says o = (target - mean) / std.
    """

    kind: Literal["classes", "targets"]
    names: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    column: str = ""
    held_out: tuple[str, ...] = ()
    target_scale: float | None = None

    @property
    def offset(self) -> tuple[float, ...]:
        """Score of each target where the head says 0, in the target's unit."""
        return self.mean if self.target_scale is None else (0.0,) * len(self.mean)

    @property
    def scale(self) -> tuple[float, ...]:
        """By how much the score of each target grows where the head says 1 more."""
        return self.std if self.target_scale is None else (self.target_scale,) * len(self.std)

    def as_plain(self) -> dict[str, Any]:
        """Lists and texts, which load without running code."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()}


class Supervised(nn.Module):
    """Encoder and linear head: h = f(x), o = W h + b."""

    def __init__(self, backbone: nn.Module, dim: int, num_outputs: int, seed: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.encode: Callable[[Tensor], Tensor] = backbone.forward  # or the same compiled, under the same names of weights
        with seeded(seed):
            self.head = nn.Linear(dim, num_outputs)

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Views [batch, num_bands, size, size] -> features [batch, dim] and logits, or scaled scores, [batch, num_outputs]."""
        features = self.encode(views)
        return features, self.head(features)


def as_predictions(raw: Tensor, outputs: Outputs) -> Tensor:
    """Probabilities of the classes, or scores in the targets' units, from what the head gives [batch, num_outputs]."""
    if outputs.kind == "classes":
        return torch.softmax(raw.float(), dim=1)
    offset, scale = (torch.tensor(part, device=raw.device) for part in (outputs.offset, outputs.scale))
    return raw.float() * scale + offset


def outputs_of(content: dict[str, Any]) -> Outputs:
    """What the head of a checkpoint says, from its content; ``KeyError`` or ``TypeError`` where a part is missing."""
    stored: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in content["outputs"].items()}
    return Outputs(**stored)


def has_head(path: Path) -> bool:
    """Whether a checkpoint is of a model that predicts something.

    Raises:
        InputError: The file is no checkpoint of an encoder.
    """
    return "outputs" in load_checkpoint(path)


def load_supervised(path: Path) -> tuple[Supervised, EncoderRecord, Outputs]:
    """Rebuilds the encoder and the head of a checkpoint, in evaluation mode.

    Raises:
        MissingInputError: There is no such file.
        InputError: The file is no checkpoint of an encoder, or one of an encoder that was trained without labels.
    """
    content = load_checkpoint(path)
    if "outputs" not in content:
        raise InputError(
            f"encoder checkpoint {path} was trained without labels and predicts nothing; train one with train_img_encoder.py --objective classify or regress"
        )
    try:
        record, outputs = record_of(content), outputs_of(content)
        backbone, dim = build_backbone(record.resnet, len(record.normalisation.band_names), record.view_size, seed=0)
        model = Supervised(backbone, dim, len(outputs.names), seed=0)
        model.load_state_dict(content["model"])
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:  # whichever part is not what the format says
        raise InputError(
            f"encoder checkpoint {path} is damaged: its parts do not fit each other ({first_sentence(error)[:100]}); train it again"
        ) from error
    return model.eval(), record, outputs
