"""What a model says of whole patches that it does not learn from, between two epochs of training."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from imagery2flow.encoder.features import embed
from imagery2flow.imagery.pyramid import Pyramid

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from imagery2flow.encoder.supervised import Supervised


class Validation:
    """Whole upright patches without any augmentation, shared out among the processes.

    Args:
        pyramid: The patches.
        view_size: Side of a view in pixels.
        batch_size: Patches per forward pass.
        fabric: Device, precision and processes.
    """

    def __init__(self, pyramid: Pyramid, view_size: int, batch_size: int, fabric: Fabric) -> None:
        self.pyramid, self.view_size, self.batch_size, self.fabric = pyramid, view_size, batch_size, fabric

    def outputs(self, model: Supervised) -> Tensor:
        """Logits or scaled scores of all patches [num_patches, num_outputs], the same on every process; leaves the model as it was, in training mode."""
        patches = torch.arange(len(self.pyramid.frames))
        mine = torch.tensor_split(patches, self.fabric.world_size)[self.fabric.global_rank]
        found = torch.zeros(len(patches), model.head.out_features)
        model.eval()  # batch norm takes its running means, and leaves them
        if len(mine):
            with self.fabric.autocast():
                # Not the compiled encoder: the last batch would have it compiled once more.
                found[mine] = torch.from_numpy(
                    embed(
                        lambda views: model.head(model.backbone(views.to(self.fabric.device))),
                        self.pyramid,
                        self.view_size,
                        self.batch_size,
                        mine,
                    )
                )
        model.train()
        if self.fabric.world_size == 1:
            return found
        return cast("Tensor", self.fabric.all_reduce(found.to(self.fabric.device), reduce_op="sum")).cpu()
