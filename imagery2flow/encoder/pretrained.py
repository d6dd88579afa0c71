"""Weights that an encoder begins with: torchvision's for ImageNet, or those of a file.

A first layer for other than three bands takes the mean over the three input channels, for each band, times 3 / num_bands: a view whose bands are alike then gives
what a grey image gives in torchvision's model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torchvision
from torch import Tensor, nn

from imagery2flow.encoder.checkpoint import load_checkpoint
from imagery2flow.imagery.patchset import Normalisation
from imagery2flow.run.errors import BandError, InputError, first_sentence, shown
from imagery2flow.run.files import load_tensors

# Of ImageNet's images as torchvision's weights were trained on them, red, green, blue, in shares of 255.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RGB = ("red", "green", "blue")
RGB_BANDS = 3


def read_weights(init: str, resnet: str, band_names: Sequence[str]) -> dict[str, Tensor] | None:
    """Weights of a backbone by torchvision's names, the first layer's for these bands; None for random ones.

    Args:
        init: ``scratch``, ``imagenet``, or the path of a state dict of torchvision's model or of a checkpoint of stage 2.
        resnet: Backbone.
        band_names: Bands of the views.

    Raises:
        MissingInputError: There is no such file.
        InputError: The weights cannot be downloaded or read, or are of another backbone.
        BandError: A checkpoint of stage 2 reads other bands.
    """
    if init == "scratch":
        return None
    if init == "imagenet":
        return for_bands(download(resnet), len(band_names))
    content = load_tensors(Path(init), "--init", "torchvision or train_img_encoder.py")
    if "format" in content:
        return weights_of_checkpoint(Path(init), resnet, band_names)
    heads = ("fc.", "heads.")
    weights = {str(name): tensor for name, tensor in content.items() if not str(name).startswith(heads)}
    if not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise InputError(
            f"--init {init} is no state dict of torchvision's {resnet}: it holds more than named tensors; store the state dict alone"
        )
    return for_bands(weights, len(band_names))


def download(resnet: str) -> dict[str, Tensor]:
    """Torchvision's weights for ImageNet, without the head; from its cache if they are there.

    Raises:
        InputError: They cannot be downloaded.
    """
    weights = torchvision.models.get_model_weights(resnet)["IMAGENET1K_V1"]
    try:
        found = weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError) as error:  # no network, no room, another checksum
        raise InputError(
            f"--init imagenet cannot download {weights.url} ({first_sentence(error)}); download it where there is a network and name the file with --init"
        ) from error
    return {name: tensor for name, tensor in found.items() if not name.startswith(("fc.", "heads."))}


def weights_of_checkpoint(path: Path, resnet: str, band_names: Sequence[str]) -> dict[str, Tensor]:
    """The backbone of a checkpoint of stage 2, whatever it was trained for.

    Raises:
        InputError: The file is damaged, or of another backbone.
        BandError: It reads other bands.
    """
    content = load_checkpoint(path)
    theirs, names = content["config"]["resnet"], list(content["normalisation"]["band_names"])
    if theirs != resnet:
        raise InputError(f"--init {path} is a {theirs}, not a {resnet}; train with --resnet {theirs}, or begin with another file")
    if names != list(band_names):
        raise BandError(
            f"--init {path} reads the bands {', '.join(names)} but the patches have {', '.join(band_names)}; choose them with --bands, or begin with another file"
        )
    return {name.removeprefix("backbone."): tensor for name, tensor in content["model"].items() if name.startswith("backbone.")}


def for_bands(weights: dict[str, Tensor], num_bands: int) -> dict[str, Tensor]:
    """The same weights with a first layer for ``num_bands``; see the module's docstring."""
    if num_bands == RGB_BANDS:
        return weights
    firsts = [name for name in ("conv1.weight", "conv_proj.weight") if name in weights and weights[name].ndim == 4]
    return weights | {name: weights[name].mean(dim=1, keepdim=True).repeat(1, num_bands, 1, 1) * (RGB_BANDS / num_bands) for name in firsts}


def load_weights(backbone: nn.Module, weights: dict[str, Tensor], init: str) -> None:
    """Gives a backbone its weights.

    Raises:
        InputError: They are of another backbone, or of a ViT for views of another size.
    """
    own: dict[str, Any] = backbone.state_dict()
    missing, foreign = sorted(set(own) - set(weights)), sorted(set(weights) - set(own))
    other = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    if missing or foreign or other:
        kinds = {"lacks": missing, "has besides": foreign, "has in another shape": other}
        faults = "; ".join(f"{kind} {len(names)} ({shown(names)})" for kind, names in kinds.items() if names)
        raise InputError(
            f"--init {init} does not fit the backbone: of its tensors it {faults}; name weights of the same --resnet, for a ViT of views of the same --view_size"
        )
    backbone.load_state_dict(weights)


def imagenet_normalisation(band_names: Sequence[str], dtype: str) -> Normalisation:
    """What scales red, green and blue of 0 to 255 as torchvision's weights saw them.

    Raises:
        BandError: The patches have other bands, or other values.
    """
    names = tuple(band_names)
    unnamed = tuple(f"band{number}" for number in range(1, RGB_BANDS + 1))
    if names not in (RGB, unnamed) or dtype != "uint8":
        raise BandError(
            f"--normalisation imagenet needs red, green, blue of 0 to 255 (uint8), in that order, but the patches hold {', '.join(names)} ({dtype}); "
            "choose them with --bands red green blue, or scale each band by its own mean and deviation with --normalisation patches"
        )
    mean, std = (tuple(255 * value for value in part) for part in (IMAGENET_MEAN, IMAGENET_STD))
    return Normalisation(names, mean, std, (255.0,) * RGB_BANDS, dtype)
