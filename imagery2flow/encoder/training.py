"""Stage 2: trains an encoder on patches, without labels or with them (``encoder.trainer`` holds the loop).

Writes ``<model_path>/<log>_img_<total_epoch>.pth`` after every epoch and on SIGTERM, and beside it ``_previous.pth``, ``_best.pth``, ``_metrics.csv`` and
``_run.json``. A run of the same settings that is there is continued; one of others is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from imagery2flow.encoder.labelled import make_objective
from imagery2flow.encoder.labels import Labels, read_labels, training_patches
from imagery2flow.encoder.pretrained import imagenet_normalisation, read_weights
from imagery2flow.encoder.trainer import Trainer, count_batches
from imagery2flow.imagery.patch_files import PatchFiles, find_patches, note_patches, read_patches
from imagery2flow.imagery.patchset import PatchSet
from imagery2flow.imagery.views import choose_view_size
from imagery2flow.run.config import EncoderConfig
from imagery2flow.run.device import choose_device, make_fabric
from imagery2flow.run.errors import BandError, InputError
from imagery2flow.run.files import check_output_folder
from imagery2flow.run.inspection import Inspection
from imagery2flow.run.lock import only_run
from imagery2flow.run.memory import allocator
from imagery2flow.run.stage import Ledger, TerminationFlag


@dataclass(frozen=True)
class Inputs:
    """What a run learns from; nothing is read of it yet but names, labels and weights.

    Attributes:
        train: Patches to learn from.
        validation: Patches that judge, or None.
        labels: What is known of them; None for an objective without labels.
        weights: Those that the backbone begins with; None for random ones.
    """

    train: PatchFiles
    validation: PatchFiles | None
    labels: Labels | None
    weights: dict[str, Tensor] | None


def train_encoder(config: EncoderConfig, ledger: Ledger) -> Path:
    """Runs stage 2 and returns the path of its ``run.json``.

    Raises:
        InputError: The patches, labels or weights cannot be used, or the checkpoint to resume is of another run.
    """
    inputs = find_inputs(config, ledger)
    patches, validation = read_inputs(inputs, config, ledger)
    check_patches(len(patches), inputs.train.names, config)
    view_size = config.view_size or choose_view_size(patches)
    fabric, choice = make_fabric(config.device, config.precision)
    check_processes(len(patches), config.batch_size, fabric.world_size, config.accumulate)
    ledger.note(choice)
    names = ", ".join(patches.normalisation.band_names)
    start = {"scratch": "from scratch", "imagenet": "from ImageNet's weights"}.get(config.init, f"from {config.init}")
    ledger.note(
        f"{config.resnet} {start} on {len(patches):,} patches of {names}, views of {view_size} px, batches of up to {config.batch_size}"
    )
    with only_run(Path(config.checkpoint)):
        objective = None if inputs.labels is None else make_objective(config, inputs.labels, patches, validation, fabric)
        trainer = Trainer(config, patches, view_size, fabric, ledger, objective, validation, inputs.weights)
        if config.resume:
            trainer.resume()
        with TerminationFlag() as termination:
            trainer.run(termination)
    ledger.went_out["epochs"] = len(trainer.history)
    return trainer.path.with_name(trainer.path.stem + "_run.json")


def find_inputs(config: EncoderConfig, ledger: Ledger) -> Inputs:
    """Patches, labels and weights; all that can be known to be wrong before pixels are read is one error.

    Raises:
        InputError: The patches, labels, weights, the device or the output folder cannot be used.
    """
    inspection = Inspection(ledger)
    inspection.look("--model_path", check_output_folder, config.model_path, "--model_path")
    inspection.look("--device", choose_device, config.device)
    files = inspection.look(config.data_path, find_patches, config.data_path, config.bands, ledger, scene_dir=config.scene_dir)
    labels, weights, train = None, None, None
    if files is not None:
        geocodes, data_path = list(files.paths), config.data_path
        if config.normalisation == "imagenet":
            inspection.look("--normalisation", imagenet_normalisation, files.names, files.dtype)
        if not (config.resume and Path(config.checkpoint).is_file()):  # a run that goes on has weights of its own
            weights = inspection.look("--init", read_weights, config.init, config.resnet, files.names)
        if config.objective == "simclr":
            train = inspection.look(data_path, training_patches, data_path, geocodes, ledger)
        else:
            labels = inspection.look(data_path, read_labels, config, data_path, geocodes, config.seed, config.target_scale, ledger)
            train = None if labels is None else labels.ids("train")
        inspection.look(data_path, check_patches, len(geocodes if train is None else train), files.names, config)
    inspection.raise_if_any()
    assert files is not None
    assert train is not None
    validation = files.select(labels.ids("validation")) if labels is not None and labels.ids("validation") else None
    return Inputs(files.select(train), validation, labels, weights)


def read_inputs(inputs: Inputs, config: EncoderConfig, ledger: Ledger) -> tuple[PatchSet, PatchSet | None]:
    """The patches to learn from, by whose statistics the bands are scaled, and those that judge; None where these have no valid pixel."""
    allocate = allocator(config.patches_on, Path(config.model_path))
    fixed = imagenet_normalisation(inputs.train.names, inputs.train.dtype) if config.normalisation == "imagenet" else None
    patches = read_patches(inputs.train, allocate, fixed)
    note_patches(inputs.train, patches.geocodes, ledger)
    if inputs.validation is None:
        if inputs.labels is not None:
            ledger.note("no patch is of the split validation: the best checkpoint is that of the lowest training loss")
        return patches, None
    validation = read_patches(inputs.validation, allocate, patches.normalisation)
    ledger.take_in("validation patches", len(inputs.validation.paths))
    ledger.leave_out("validation patches without a valid pixel", sorted(set(inputs.validation.paths) - set(validation.geocodes)))
    return patches, validation if len(validation) else None


def check_patches(num_patches: int, band_names: Sequence[str], config: EncoderConfig) -> None:
    """Refuses patches that cannot be learned from with these settings.

    Raises:
        InputError: There are fewer than two patches.
        BandError: RGB jitter is asked for other than three bands.
    """
    if num_patches < 2:
        raise InputError(
            f"--data_path {config.data_path} holds {num_patches} patch{' of the split train' * (config.objective != 'simclr')}; "
            f"{'contrastive learning' if config.objective == 'simclr' else 'learning'} needs at least 2, and hundreds to be of use"
        )
    rgb = config.views.rgb_jitter > 0 or config.views.grey_probability > 0
    if rgb and len(band_names) != 3:
        raise BandError(
            f"--views.rgb_jitter and --views.grey_probability need the three bands red, green, blue but {len(band_names)} are used; set both to 0"
        )


def check_processes(num_patches: int, batch_size: int, world_size: int, accumulate: int = 1) -> None:
    """Refuses more processes, or parts of a batch, than a batch has patches: each takes a share of every batch.

    Raises:
        InputError: There are too many.
    """
    smallest = num_patches // count_batches(num_patches, batch_size)
    if smallest < world_size * accumulate:
        batches = f"batches of {smallest} patches ({num_patches:,} patches, --batch_size {batch_size})"
        if smallest < world_size:
            raise InputError(
                f"{world_size} processes cannot share {batches}; start at most {smallest} processes, or raise --batch_size as far as there are patches"
            )
        raise InputError(
            f"--accumulate {accumulate} cannot divide {batches} on {world_size} process(es) into parts of a patch or more; "
            f"lower it to at most {smallest // world_size}"
        )
