"""Features of whole patches that are in memory: the forward pass of stage 3."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from imagery2flow.imagery.pyramid import Pyramid
from imagery2flow.imagery.views import embedding_views
from imagery2flow.run.errors import is_out_of_memory


@torch.inference_mode()
def embed(
    encoder: Callable[[Tensor], Tensor], pyramid: Pyramid, view_size: int, batch_size: int, patches: Tensor | None = None
) -> np.ndarray:
    """Features of whole patches, all or those of some numbers: [num_patches, dim]. On a full GPU the batch is halved until it fits, with a message."""
    patches = torch.arange(len(pyramid.frames)) if patches is None else patches
    parts: list[Tensor] = []
    start = 0
    while start < len(patches):
        chosen = patches[start : start + batch_size]
        try:
            parts.append(encoder(embedding_views(pyramid, chosen, view_size)).float())
        except RuntimeError as error:
            if batch_size == 1 or not is_out_of_memory(error):
                raise
            batch_size //= 2
            tqdm.write(f"the memory of {pyramid.device} is full: going on with {batch_size} patches per pass", file=sys.stderr)
            continue
        start += len(chosen)
    return torch.cat(parts).cpu().numpy()  # all at the end: fetching each batch would make the GPU wait
