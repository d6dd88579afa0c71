"""Image encoders: torchvision's ResNets and ViT-L/16, from scratch, for any number of bands.

The head is removed: the output is the feature vector r_i of the paper (eq. 1), taken before the projector.
"""

from __future__ import annotations

import torchvision
from torch import nn

from imagery2flow.run.device import seeded


def build_backbone(name: str, num_bands: int, view_size: int, seed: int) -> tuple[nn.Module, int]:
    """Makes an encoder with random weights.

    Args:
        name: ``resnet18``, ``resnet34``, ``resnet50``, ``resnet101`` or ``vit_l_16``.
        num_bands: Bands of the views.
        view_size: Side of the views in pixels; fixes the position embedding of the ViT.
        seed: Seed of the weights.

    Returns:
        The module, [batch, num_bands, view_size, view_size] -> [batch, dim], and ``dim``.
    """
    with seeded(seed):
        if name == "vit_l_16":
            return build_vit(num_bands, view_size)
        model = getattr(torchvision.models, name)(weights=None)
        first = model.conv1
        model.conv1 = nn.Conv2d(num_bands, first.out_channels, first.kernel_size, first.stride, first.padding, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision initialises it
        dim = model.fc.in_features
        model.fc = nn.Identity()
        return model, dim


def build_vit(num_bands: int, view_size: int) -> tuple[nn.Module, int]:
    """ViT-L/16 (paper, supplementary table 5) whose first layer takes ``num_bands``."""
    model = torchvision.models.vit_l_16(weights=None, image_size=view_size)
    first = model.conv_proj
    model.conv_proj = nn.Conv2d(num_bands, first.out_channels, first.kernel_size, first.stride)
    nn.init.trunc_normal_(model.conv_proj.weight, std=(num_bands * first.kernel_size[0] * first.kernel_size[1]) ** -0.5)
    nn.init.zeros_(model.conv_proj.bias)
    model.heads = nn.Identity()
    return model, model.hidden_dim
