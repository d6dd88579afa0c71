"""The encoder's checkpoint: weights, optimiser, position in the run, settings, bands and their normalisation; plain tensors and values.

It loads with ``weights_only=True``, and holds a hash of its content. The state of the random numbers is the seed with (epoch, step), from which every draw
is made. Beside the newest, ``<log>_img_<total_epoch>.pth``, stand the one of the epoch before, ``..._previous.pth``, and that of the epoch with the lowest loss,
``..._best.pth``.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from imagery2flow.encoder.backbones import build_backbone
from imagery2flow.imagery.patchset import Normalisation
from imagery2flow.run.errors import BandError, InputError, MissingInputError, first_sentence
from imagery2flow.run.files import content_hash, give_second_name, load_tensors, save_tensors, unshared
from imagery2flow.run.stage import Ledger, is_first_process

FORMAT = "imagery2flow-encoder-1"


@dataclass(frozen=True)
class EncoderRecord:
    """What a checkpoint says of an encoder, apart from its weights.

    Attributes:
        resnet: Backbone.
        view_size: Side of its views in pixels.
        normalisation: Bands and their statistics.
        epoch: Epochs completed.
        total_epoch: Epochs planned.
    """

    resnet: str
    view_size: int
    normalisation: Normalisation
    epoch: int
    total_epoch: int


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, config: Any, content: dict[str, Any], normalisation: Normalisation
) -> None:
    """Writes a checkpoint.

    Args:
        path: File.
        model: ``SimCLR``.
        optimizer: Its optimiser.
        config: ``EncoderConfig``.
        content: epoch, step, the sums of the running epoch, history, view_size.
        normalisation: Bands and statistics of the training patches.
    """
    settings = {"format": FORMAT, "config": dataclasses.asdict(config), "normalisation": plain(normalisation)}
    whole = unshared({**settings, **content, "model": model.state_dict(), "optimizer": optimizer.state_dict()})
    save_tensors(path, whole | {"sha256": content_hash(whole)})


def previous_path(path: Path) -> Path:
    """The checkpoint of the epoch before."""
    return path.with_name(f"{path.stem}_previous{path.suffix}")


def best_path(path: Path) -> Path:
    """The checkpoint of the epoch with the lowest loss."""
    return path.with_name(f"{path.stem}_best{path.suffix}")


def plain(normalisation: Normalisation) -> dict[str, Any]:
    """Normalisation as lists, which load without running code."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(normalisation).items()}


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint.

    Raises:
        MissingInputError: There is no such file.
        InputError: The file is no checkpoint of an encoder, or its content is not what was written.
    """
    content = load_tensors(path, "encoder checkpoint")
    if content.get("format") != FORMAT:
        raise InputError(
            f"encoder checkpoint {path} is not one that train_img_encoder.py wrote (its format is {content.get('format')}, not {FORMAT}); name another with --ckpt"
        )
    written = content.pop("sha256", None)  # those of earlier versions have none
    if written is not None and written != content_hash(content):
        raise InputError(f"encoder checkpoint {path} is damaged: its content is not what its checksum says; name another with --ckpt")
    return content


def load_newest(path: Path, ledger: Ledger) -> dict[str, Any] | None:
    """Reads a run's newest checkpoint, or with a warning the one before it, which then takes its place, where that is damaged; None where there is none.

    Raises:
        InputError: None of them can be used.
    """
    if not path.is_file():
        return None
    try:
        return load_checkpoint(path)
    except InputError as error:
        if not previous_path(path).is_file():
            raise InputError(f"{error}; or train anew with --resume false") from error
        ledger.note(f"warning: {error}; going on from {previous_path(path)}")
        content = load_checkpoint(previous_path(path))
        if is_first_process():
            give_second_name(previous_path(path), path)
        return content


def find_checkpoint(ckpt: str | None, model_path: str, name: str) -> Path:
    """Path of a checkpoint from the published flags: ``--ckpt`` as a path or within ``--model_path``, or else the run's latest.

    Raises:
        MissingInputError: There is none.
    """
    if ckpt is not None:
        for candidate in (Path(ckpt), Path(model_path) / ckpt):
            if candidate.is_file():
                return candidate
        raise MissingInputError(
            f"encoder checkpoint {ckpt} is neither here nor in --model_path {model_path}; name the file that train_img_encoder.py wrote"
        )
    newest = re.compile(rf"{re.escape(name)}_img_\d+\.pth")  # not those of the epoch before and of the lowest loss
    paths = [path for path in Path(model_path).glob("*.pth") if newest.fullmatch(path.name)]
    found = sorted(paths, key=lambda path: path.stat().st_mtime)
    if not found:
        raise MissingInputError(
            f"--model_path {model_path} has no encoder {name}_img_*.pth; train it with train_img_encoder.py --log {name}, or name it with --ckpt"
        )
    return found[-1]


def load_encoder(path: Path) -> tuple[nn.Module, EncoderRecord]:
    """Rebuilds the encoder of a checkpoint, without its projector, in evaluation mode.

    Raises:
        MissingInputError: There is no such file.
        InputError: The file is no checkpoint of an encoder.
    """
    content = load_checkpoint(path)
    try:
        record = record_of(content)
        backbone, _ = build_backbone(record.resnet, len(record.normalisation.band_names), record.view_size, seed=0)
        backbone.load_state_dict(
            {name.removeprefix("backbone."): tensor for name, tensor in content["model"].items() if name.startswith("backbone.")}
        )
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:  # whichever part is not what the format says
        raise InputError(
            f"encoder checkpoint {path} is damaged: its parts do not fit each other ({first_sentence(error)[:100]}); train it again"
        ) from error
    return backbone.eval(), record


def record_of(content: dict[str, Any]) -> EncoderRecord:
    """What a checkpoint's content says of its encoder; ``KeyError`` or ``TypeError`` where a part is missing."""
    stored: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in content["normalisation"].items()}
    config = content["config"]
    return EncoderRecord(config["resnet"], content["view_size"], Normalisation(**stored), content["epoch"], config["total_epoch"])


def check_scale(record: EncoderRecord, dtype: str, data_path: str) -> None:
    """Refuses patches whose NumPy type tells that their numbers are on another scale than the encoder's.

    Raises:
        BandError: The types differ.
    """
    trained = record.normalisation.dtype
    if trained != dtype:
        raise BandError(
            f"patches {data_path} hold {dtype} but the encoder was trained on {trained}, another scale of the same bands; "
            "bring the scene to the encoder's units, or scale each band by these patches' own mean and deviation with --normalisation patches"
        )
