"""Stage 3: one vector per patch, the feature r_i of the paper, taken before the projector.

Writes a table with index ``geocode`` (text) and columns ``0..D-1``. Bands, view size and normalisation come from the checkpoint. The last
columns are each band's mean and standard deviation over the unit, in the same normalised units, unless they are switched off: a contrastive
encoder is free to forget the absolute brightness that tells a business district from a suburb.

Beside it stands the same table of an encoder with random weights, ``<name>_untrained``: a model that scores no better with the trained encoder than with
that one owes nothing to the training.

A model that was trained with labels can write what it says of each patch instead (``--predict``, ``encoder.predictions``).

Patches are read and embedded in chunks: memory is bounded by a chunk, and chunks may go to several processes or machines. Each finished chunk is kept in a
file until the table is written: a run that was killed goes on with the others.
"""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from imagery2flow.encoder.backbones import build_backbone
from imagery2flow.encoder.checkpoint import EncoderRecord, check_scale, find_checkpoint, load_encoder
from imagery2flow.encoder.features import embed
from imagery2flow.encoder.predictions import load_predictor, write_predictions
from imagery2flow.encoder.supervised import load_supervised
from imagery2flow.imagery.patch_files import PatchFiles, find_patches, note_patches, read_patches
from imagery2flow.imagery.patchset import BandMoments, Normalisation, as_normalisation, merge_moments, moments_of, unit_statistics
from imagery2flow.imagery.pyramid import build_pyramid
from imagery2flow.run.config import EmbeddingConfig, log_name
from imagery2flow.run.device import choose_device, make_fabric
from imagery2flow.run.errors import InputError, shown
from imagery2flow.run.files import content_hash, replacing, sha256
from imagery2flow.run.inspection import Inspection
from imagery2flow.run.lock import only_run
from imagery2flow.run.parallel import available_cores, check_shared_folder, each_chunk
from imagery2flow.run.stage import Ledger, installed_version
from imagery2flow.run.tables import check_table_suffix, untrained_path, write_table
from imagery2flow.run.unfinished import kept_parts

UNTRAINED_SEED = 0
PIXELS_PER_CHUNK, PATCHES_PER_CHUNK = 1 << 26, 1024  # the work of a chunk is what a killed run can lose
CHUNKS_PER_WORKER = 4  # so that none waits long for the last


@dataclass(frozen=True)
class EmbeddingJob:
    """What is the same for every chunk of a run.

    Attributes:
        config: Settings of the stage.
        checkpoint: Path of the encoder.
        normalisation: What scales the bands.
        num_threads: CPU threads of torch in this process; None leaves them as they are.
    """

    config: EmbeddingConfig
    checkpoint: Path
    normalisation: Normalisation
    num_threads: int | None


@dataclass(frozen=True)
class ChunkVectors:
    """What became of a chunk, a row per patch with a valid pixel.

    Attributes:
        geocodes: Ids of the rows.
        vectors: Features [num_patches, dim], or predictions [num_patches, num_outputs].
        untrained: Features of the encoder with random weights, or None.
        statistics: Mean and deviation of each band over the unit [num_patches, 2 * num_bands].
    """

    geocodes: tuple[str, ...]
    vectors: np.ndarray
    untrained: np.ndarray | None
    statistics: np.ndarray


def make_embeddings(config: EmbeddingConfig, ledger: Ledger) -> Path:
    """Runs stage 3 and returns the path of its ``run.json``.

    Raises:
        InputError: The checkpoint or the patches cannot be used, or do not fit each other.
    """
    path, record, files = read_inputs(config, ledger)
    names = record.normalisation.band_names
    chunks = make_chunks(files, config)
    normalisation = record.normalisation
    if config.normalisation == "patches":
        ledger.note("bands are scaled by these patches' own statistics, not by the encoder's")
        moments = list(each_chunk(measure_chunk, chunks, config.workers, config.dask, ledger, "spawn"))
        normalisation = as_normalisation(merge_moments(moments), names, np.dtype(files.dtype))
    if not config.dask:
        ledger.note(make_fabric(config.device, config.precision)[1])
    job = EmbeddingJob(config, path.absolute(), normalisation, threads_of_each(config, len(chunks)))
    output = Path(config.output_path)
    with only_run(output), kept_parts(output, what_vectors_follow_from(job)) as folder:
        found = embed_all(job, chunks, folder, ledger)
        note_patches(files, [geocode for part in found for geocode in part.geocodes], ledger)
        found.sort(key=lambda part: part.geocodes)
        if config.predict:
            geocodes = [geocode for part in found for geocode in part.geocodes]
            write_predictions(Path(config.output_path), path, geocodes, np.concatenate([part.vectors for part in found]), ledger)
        else:
            write_vectors(config, names, found, ledger)
    return Path(config.output_path + ".run.json")


def read_inputs(config: EmbeddingConfig, ledger: Ledger) -> tuple[Path, EncoderRecord, PatchFiles]:
    """Path and description of the encoder, and the patches; all that can be known to be wrong before pixels are read is one error.

    Raises:
        InputError: The encoder, the patches, the device or the output table cannot be used, or encoder and patches do not fit each other.
    """
    inspection = Inspection(ledger)
    inspection.look("--output_path", check_table_suffix, config.output_path, "--output_path")
    if not config.dask:  # the devices are those of other machines
        inspection.look("--device", choose_device, config.device)
    path = inspection.look("--ckpt", find_checkpoint, config.ckpt, config.model_path, log_name(config.log))
    record = None if path is None else inspection.look(path, read_record, path, config.predict)
    if path is not None and record is not None:
        note_encoder(path, record, ledger)
    files = look_at_patches(config.data_path, path, record, config.normalisation == "checkpoint", inspection, config.scene_dir)
    inspection.raise_if_any()
    assert path is not None
    assert record is not None
    assert files is not None
    return path, record, files


def read_record(path: Path, predict: bool) -> EncoderRecord:
    """What a checkpoint says of its encoder, which has to have a head if it is to predict.

    Raises:
        InputError: It cannot be read, or has no head.
    """
    return load_supervised(path)[1] if predict else load_encoder(path)[1]


def note_encoder(path: Path, record: EncoderRecord, ledger: Ledger) -> None:
    """Takes an encoder into the ledger, and says whether its training came to its end."""
    ledger.reads(path)
    if record.epoch < record.total_epoch:
        ledger.note(f"encoder {path} is unfinished: epoch {record.epoch} of {record.total_epoch}")


def look_at_patches(
    data_path: str,
    checkpoint: Path | None,
    record: EncoderRecord | None,
    of_one_scale: bool,
    inspection: Inspection,
    scene_dir: str | None = None,
) -> PatchFiles | None:
    """The patches that an encoder is to embed; by themselves where it is not known.

    Args:
        data_path: Folder of the patches.
        checkpoint: Path of the encoder, or None.
        record: What it says of itself, or None.
        of_one_scale: Whether the patches must have the encoder's type.
        inspection: Takes the faults.
        scene_dir: Folder of the scenes, for patches that are windows of them.
    """
    if record is None:
        return inspection.look(data_path, find_patches, data_path, (), inspection.ledger, scene_dir=scene_dir)
    names = record.normalisation.band_names
    remedy = f"the encoder {checkpoint} reads {', '.join(names)}: embed patches with those bands, or train an encoder on the common ones"
    files = inspection.look(data_path, find_patches, data_path, names, inspection.ledger, remedy, scene_dir)
    if files is not None and of_one_scale:
        inspection.look(data_path, check_scale, record, files.dtype, data_path)
    return files


def what_vectors_follow_from(job: EmbeddingJob) -> list[Any]:
    """Encoder and settings, for their hash; the patches are in that of each chunk."""
    settings = {
        name: value
        for name, value in dataclasses.asdict(job.config).items()
        if name not in ("output_path", "ckpt", "model_path", "log", "dask")
    }
    return [settings, sha256(job.checkpoint), dataclasses.asdict(job.normalisation), job.num_threads, installed_version("imagery2flow")]


def embed_all(job: EmbeddingJob, chunks: Sequence[PatchFiles], folder: Path, ledger: Ledger) -> list[ChunkVectors]:
    """Embeds the chunks that are not in the folder of finished ones, and returns all that have a patch with a valid pixel."""
    paths = [folder / f"{content_hash(state_of(chunk))}.npz" for chunk in chunks]
    kept = {path: part for path in paths if (part := load_part(path)) is not None}
    if kept:
        ledger.note(f"{len(kept):,} of {len(chunks):,} chunks of patches were done by a run that did not come to its end")
    found = list(kept.values())
    waiting = [(chunk, path.absolute()) for chunk, path in zip(chunks, paths, strict=True) if path not in kept]
    with tqdm(total=sum(len(chunk.paths) for chunk in chunks), desc="embed", unit="patch", disable=None) as bar:
        bar.update(sum(len(part.geocodes) for part in found))
        for part in each_chunk(partial(embed_and_keep, job), waiting, job.config.workers, job.config.dask, ledger, "spawn"):
            found.append(part)
            bar.update(len(part.geocodes))
    return [part for part in found if part.geocodes]


def state_of(chunk: PatchFiles) -> list[Any]:
    """Which patches a chunk holds, with the size and the time of change of their files, and what of them is a patch."""
    states = [
        (geocode, state.st_size, state.st_mtime_ns, *chunk.windows.get(geocode, ()))
        for geocode, path in chunk.paths.items()
        if (state := path.stat())
    ]
    return [str(chunk.folder), states, chunk.bands]


def embed_and_keep(job: EmbeddingJob, chunk_and_path: tuple[PatchFiles, Path]) -> ChunkVectors:
    """Embeds a chunk and keeps the result in a file; without a patch in it where none has a valid pixel."""
    chunk, path = chunk_and_path
    part = embed_chunk(job, chunk) or ChunkVectors((), *(np.zeros((0, 0), dtype=np.float32) for _ in range(3)))
    check_vectors(part, job.checkpoint)
    arrays = {name: value for name, value in vars(part).items() if value is not None}
    with replacing(path, sync=False) as temporary:
        np.savez(temporary, **{**arrays, "geocodes": np.array(part.geocodes, dtype=np.str_)})
    return part


def load_part(path: Path) -> ChunkVectors | None:
    """The vectors of a finished chunk; None if there is no such file, or it is not what was written, which its own checksums tell."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        return ChunkVectors(tuple(arrays["geocodes"].tolist()), arrays["vectors"], arrays.get("untrained"), arrays["statistics"])
    except (OSError, EOFError, ValueError, LookupError, zipfile.BadZipFile, zlib.error):
        return None


def check_vectors(part: ChunkVectors, checkpoint: Path) -> None:
    """Refuses vectors that are no numbers.

    Raises:
        InputError: One is infinite or NaN; the message names its patch.
    """
    everything = [part.vectors, part.statistics, *([] if part.untrained is None else [part.untrained])]
    finite = np.logical_and.reduce([np.isfinite(values).all(axis=1) for values in everything])
    if not finite.all():
        bad = [geocode for geocode, good in zip(part.geocodes, finite, strict=True) if not good]
        raise InputError(
            f"the vectors of {len(bad):,} patches are no numbers ({shown(bad)}); look at their pixels, at the encoder {checkpoint}, or compute with --precision fp32"
        )


def make_chunks(files: PatchFiles, config: EmbeddingConfig) -> list[PatchFiles]:
    """The patches in chunks, in order: each of bounded size, and several for each worker."""
    # A small patch costs as much as one of so many pixels, by what is done for each.
    sizes = np.array([max(files.num_pixels[geocode], PIXELS_PER_CHUNK // PATCHES_PER_CHUNK) for geocode in files.paths])
    workers = config.workers or available_cores()
    for_workers = CHUNKS_PER_WORKER * workers if config.workers != 1 or config.dask else 1
    num_chunks = max(-(-int(sizes.sum()) // PIXELS_PER_CHUNK), min(for_workers, len(sizes)))
    number = (np.cumsum(sizes) - sizes) * num_chunks // sizes.sum()
    geocodes, everything = np.array(list(files.paths), dtype=object), files.absolute()
    return [everything.select(geocodes[number == chunk].tolist()) for chunk in np.unique(number)]


def threads_of_each(config: EmbeddingConfig, num_chunks: int) -> int | None:
    """CPU threads of each process of this machine: several that take every core wait for each other most of the time."""
    workers = min(config.workers or available_cores(), num_chunks)
    return None if config.dask or workers == 1 else max(1, available_cores() // workers)


def measure_chunk(chunk: PatchFiles) -> BandMoments:
    """Moments of the bands over some patches."""
    patches = read_patches(chunk)
    return moments_of(patches.values, patches.valid)


def embed_chunk(job: EmbeddingJob, chunk: PatchFiles) -> ChunkVectors | None:
    """Reads and embeds some patches, in this process; None where none has a valid pixel."""
    check_shared_folder(chunk.folder, "patches in")
    check_shared_folder(job.checkpoint.parent, "encoder in")
    if job.num_threads is not None:
        torch.set_num_threads(job.num_threads)
    patches = read_patches(chunk, normalisation=job.normalisation)
    if not len(patches):
        return None
    encoder, untrained, view_size = encoders_of(job.checkpoint, job.checkpoint.stat().st_mtime_ns, job.config.predict)
    fabric, _ = make_fabric(job.config.device, job.config.precision)
    pyramid = build_pyramid(patches, job.normalisation, view_size).to(fabric.device)
    with fabric.autocast():
        vectors = embed(encoder.to(fabric.device), pyramid, view_size, job.config.batch_size)
        is_controlled = job.config.untrained_control and not job.config.predict
        control = embed(untrained.to(fabric.device), pyramid, view_size, job.config.batch_size) if is_controlled else None
    return ChunkVectors(patches.geocodes, vectors, control, unit_statistics(patches, job.normalisation).astype(np.float32))


@lru_cache(maxsize=1)
def encoders_of(checkpoint: Path, changed_ns: int, predict: bool) -> tuple[nn.Module, nn.Module, int]:
    """The encoder of a checkpoint, the same with random weights, and the size of their views; read once for all chunks of a process.

    Args:
        checkpoint: Path.
        changed_ns: When the file was written: another file under the same name is read again.
        predict: Whether the encoder's head is to say what it predicts.
    """
    encoder, record = load_predictor(checkpoint) if predict else load_encoder(checkpoint)
    untrained, _ = build_backbone(record.resnet, len(record.normalisation.band_names), record.view_size, seed=UNTRAINED_SEED)
    return encoder, untrained.eval(), record.view_size


def write_vectors(config: EmbeddingConfig, names: Sequence[str], parts: Sequence[ChunkVectors], ledger: Ledger) -> None:
    """Writes the tables: index ``geocode``, columns ``0..D-1``, then those of the bands."""
    geocodes = pd.Index([geocode for part in parts for geocode in part.geocodes], name="geocode")
    table = as_table(np.concatenate([part.vectors for part in parts]), geocodes)
    dim = table.shape[1]
    if config.band_statistics:
        columns = [f"{band}_{kind}" for kind in ("mean", "std") for band in names]
        table[columns] = np.concatenate([part.statistics for part in parts])
        ledger.note(f"columns 0..{dim - 1} are the encoder's, {', '.join(columns)} the bands' statistics per unit")
    write_table(Path(config.output_path), table, index=True)
    if config.untrained_control:
        untrained = np.concatenate([part.untrained for part in parts if part.untrained is not None])
        write_table(untrained_path(config.output_path), as_table(untrained, geocodes), index=True)
        ledger.note(
            f"{untrained_path(config.output_path)} holds what the same encoder with random weights makes of the patches, for the control"
        )
    ledger.went_out["embeddings"] = len(table)


def as_table(vectors: np.ndarray, geocodes: pd.Index) -> pd.DataFrame:
    """The published format: index ``geocode``, columns ``0..D-1``."""
    return pd.DataFrame(vectors, index=geocodes, columns=[str(number) for number in range(vectors.shape[1])])
