"""Stage 3: one vector per patch, the feature r_i of the paper, taken before the projector.

Writes a table with index ``geocode`` (text) and columns ``0..D-1``. Bands, view size and normalisation come from the checkpoint. The last
columns are each band's mean and standard deviation over the unit, in the same normalised units, unless they are switched off: a contrastive
encoder is free to forget the absolute brightness that tells a business district from a suburb.

Beside it stands the same table of an encoder with random weights, ``<name>_untrained``: a model that scores no better with the trained encoder than with
that one owes nothing to the training.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from imagery2flow.encoder.backbones import build_backbone
from imagery2flow.encoder.checkpoint import check_scale, find_checkpoint, load_encoder
from imagery2flow.imagery.patch_files import load_patches
from imagery2flow.imagery.patchset import PatchSet, unit_statistics
from imagery2flow.imagery.pyramid import Pyramid, build_pyramid
from imagery2flow.imagery.views import embedding_views
from imagery2flow.run.config import EmbeddingConfig, log_name
from imagery2flow.run.device import make_fabric
from imagery2flow.run.files import check_table_suffix, untrained_path, write_table
from imagery2flow.run.stage import Ledger

UNTRAINED_SEED = 0


def make_embeddings(config: EmbeddingConfig, ledger: Ledger) -> Path:
    """Runs stage 3 and returns the path of its ``run.json``.

    Raises:
        InputError: The checkpoint or the patches cannot be used, or do not fit each other.
    """
    check_table_suffix(config.output_path, "--output_path")
    path = find_checkpoint(config.ckpt, config.model_path, log_name(config.log))
    encoder, record = load_encoder(path)
    ledger.reads(path)
    if record.epoch < record.total_epoch:
        ledger.note(f"encoder {path} is unfinished: epoch {record.epoch} of {record.total_epoch}")
    names = record.normalisation.band_names
    remedy = f"the encoder {path} reads {', '.join(names)}: embed patches with those bands, or train an encoder on the common ones"
    patches = load_patches(config.data_path, names, ledger, remedy)
    if config.normalisation == "checkpoint":
        check_scale(record, patches, config.data_path)
    else:
        ledger.note("bands are scaled by these patches' own statistics, not by the encoder's")
    normalisation = record.normalisation if config.normalisation == "checkpoint" else patches.normalisation
    fabric, choice = make_fabric(config.device, config.precision)
    ledger.note(choice)
    pyramid = build_pyramid(patches, normalisation, record.view_size).to(fabric.device)
    with fabric.autocast():
        vectors = embed(encoder.to(fabric.device), pyramid, record.view_size, config.batch_size)
    table = as_table(vectors, patches)
    if config.band_statistics:
        statistics = unit_statistics(patches, normalisation).astype(np.float32)
        columns = [f"{band}_{kind}" for kind in ("mean", "std") for band in names]
        table[columns] = statistics
        ledger.note(f"columns 0..{vectors.shape[1] - 1} are the encoder's, {', '.join(columns)} the bands' statistics per unit")
    write_table(Path(config.output_path), table, index=True)
    if config.untrained_control:
        backbone, _ = build_backbone(record.resnet, len(names), record.view_size, seed=UNTRAINED_SEED)
        with fabric.autocast():
            untrained = embed(backbone.eval().to(fabric.device), pyramid, record.view_size, config.batch_size)
        write_table(untrained_path(config.output_path), as_table(untrained, patches), index=True)
        ledger.note(
            f"{untrained_path(config.output_path)} holds what the same encoder with random weights makes of the patches, for the control"
        )
    ledger.went_out["embeddings"] = len(patches)
    return Path(config.output_path + ".run.json")


@torch.inference_mode()
def embed(encoder: nn.Module, pyramid: Pyramid, view_size: int, batch_size: int) -> np.ndarray:
    """Features of whole patches: [num_patches, dim]. On a full GPU the batch is halved until it fits, with a message."""
    num_patches = len(pyramid.height)
    parts: list[np.ndarray] = []
    start = 0
    with tqdm(total=num_patches, desc="embed", unit="patch", disable=None) as bar:
        while start < num_patches:
            chosen = torch.arange(start, min(start + batch_size, num_patches))
            try:
                parts.append(encoder(embedding_views(pyramid, chosen, view_size)).float().cpu().numpy())
            except torch.cuda.OutOfMemoryError:
                if batch_size == 1:
                    raise
                batch_size //= 2
                tqdm.write(f"GPU memory is full: going on with {batch_size} patches per pass")
                continue
            start += len(chosen)
            bar.update(len(chosen))
    return np.concatenate(parts)


def as_table(vectors: np.ndarray, patches: PatchSet) -> pd.DataFrame:
    """The published format: index ``geocode``, columns ``0..D-1``."""
    columns = [str(number) for number in range(vectors.shape[1])]
    return pd.DataFrame(vectors, index=pd.Index(patches.geocodes, name="geocode"), columns=columns)
