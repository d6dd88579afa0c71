"""Stage 2: trains an encoder on the patches of one region (``encoder.trainer`` holds the loop).

Writes ``<model_path>/<log>_img_<total_epoch>.pth`` after every epoch and on SIGTERM, and beside it ``_previous.pth``, ``_best.pth``, ``_metrics.csv`` and
``_run.json``. A run of the same settings that is there is continued; one of others is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imagery2flow.encoder.trainer import Trainer, count_batches
from imagery2flow.imagery.patch_files import PatchFiles, find_patches, note_patches, read_patches
from imagery2flow.imagery.views import choose_view_size
from imagery2flow.run.config import EncoderConfig
from imagery2flow.run.device import choose_device, make_fabric
from imagery2flow.run.errors import BandError, InputError
from imagery2flow.run.files import check_output_folder
from imagery2flow.run.inspection import Inspection
from imagery2flow.run.lock import only_run
from imagery2flow.run.memory import allocator
from imagery2flow.run.stage import Ledger, TerminationFlag


def train_encoder(config: EncoderConfig, ledger: Ledger) -> Path:
    """Runs stage 2 and returns the path of its ``run.json``.

    Raises:
        InputError: The patches cannot be used, or the checkpoint to resume is of another run.
    """
    files = find_inputs(config, ledger)
    patches = read_patches(files, allocator(config.patches_on, Path(config.model_path)))
    note_patches(files, patches.geocodes, ledger)
    check_patches(len(patches), files.names, config)
    view_size = config.view_size or choose_view_size(patches)
    fabric, choice = make_fabric(config.device, config.precision)
    check_processes(len(patches), config.batch_size, fabric.world_size, config.accumulate)
    ledger.note(choice)
    names = ", ".join(patches.normalisation.band_names)
    ledger.note(
        f"{config.resnet} from scratch on {len(patches):,} patches of {names}, views of {view_size} px, batches of up to {config.batch_size}"
    )
    with only_run(Path(config.checkpoint)):
        trainer = Trainer(config, patches, view_size, fabric, ledger)
        if config.resume:
            trainer.resume()
        with TerminationFlag() as termination:
            trainer.run(termination)
    ledger.went_out["epochs"] = len(trainer.history)
    return trainer.path.with_name(trainer.path.stem + "_run.json")


def find_inputs(config: EncoderConfig, ledger: Ledger) -> PatchFiles:
    """The patches; all that can be known to be wrong before their pixels are read is one error.

    Raises:
        InputError: The patches, the device or the output folder cannot be used.
    """
    inspection = Inspection(ledger)
    inspection.look("--model_path", check_output_folder, config.model_path, "--model_path")
    inspection.look("--device", choose_device, config.device)
    files = inspection.look(config.data_path, find_patches, config.data_path, config.bands, ledger)
    if files is not None:
        inspection.look(config.data_path, check_patches, len(files.paths), files.names, config)
    inspection.raise_if_any()
    assert files is not None
    return files


def check_patches(num_patches: int, band_names: Sequence[str], config: EncoderConfig) -> None:
    """Refuses patches that SimCLR cannot learn from with these settings.

    Raises:
        InputError: There are fewer than two patches.
        BandError: RGB jitter is asked for other than three bands.
    """
    if num_patches < 2:
        raise InputError(
            f"--data_path {config.data_path} holds {num_patches} patch; contrastive learning needs at least 2, and hundreds to be of use"
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
