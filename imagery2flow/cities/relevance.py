"""Where in a view a ResNet with a linear head finds what it says: Relevance-CAM (Lee et al. 2021) and Grad-CAM (Selvaraju et al. 2017).

Relevance is a quantity that starts at the outputs and is handed down layer by layer to whatever contributed to them (z+ rule, also called alpha1-beta0): an
input i of a linear layer receives from each output j the share a_i max(w_ij, 0) of sum_i a_i max(w_ij, 0). All inputs here are outputs of a ReLU, so that
these are the positive contributions. Batch norm is folded into its convolution, which may turn the sign of a weight; a bias receives nothing. The sum of the
relevance stays the same from layer to layer, except for what reaches an output that owes its value to its bias alone: no input contributed to it, and its
relevance ends there.

Both methods begin at the head, so that another head gives another map. Of Relevance-CAM that is true of a contrast only, of classes with each other or of a score
with its negation: shares that are never negative are mixed in every layer, and the relevance of one output alone is, a stage or two below it, about the same for
every head.

Shapes: activations and relevances are [batch, num_channels, height, width], views [batch, num_bands, view_size, view_size].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from imagery2flow.encoder.supervised import Supervised
from imagery2flow.run.errors import InputError

STAGES = ("layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class ClassMap:
    """What one stage of a ResNet says about one output.

    Attributes:
        values: sum_k weight_k A_k, positive where the output is supported [batch, height, width].
        relevance_sum: Sum of the relevance at the stage [batch]; of Grad-CAM, which has none, NaN.
    """

    values: Tensor
    relevance_sum: Tensor


def relevance_cam(
    model: Supervised, views: Tensor, chosen: Tensor, kind: Literal["classes", "targets"], stages: Sequence[str], contrast: bool = True
) -> dict[str, ClassMap]:
    """Relevance-CAM of some stages: a channel's weight is the mean of its relevance over the pixels.

    Args:
        model: In evaluation mode.
        views: Normalised views.
        chosen: The output to explain, of each view [batch].
        kind: What the outputs are.
        stages: Among ``STAGES``.
        contrast: As of ``start_relevance``.
    """
    with torch.no_grad():
        outputs = stage_outputs(resnet_of(model), views)
        found = relevances(model, outputs, *start_relevance(model.head.weight, chosen, kind, contrast), stages)
    return {
        stage: ClassMap((relevance.mean(dim=(2, 3), keepdim=True) * outputs[stage]).sum(dim=1), relevance.sum(dim=(1, 2, 3)))
        for stage, relevance in found.items()
    }


def grad_cam(model: Supervised, views: Tensor, chosen: Tensor, stages: Sequence[str]) -> dict[str, ClassMap]:
    """Grad-CAM of some stages: a channel's weight is the mean over the pixels of the gradient of the output, a logit or a score; as ``relevance_cam``."""
    with torch.enable_grad():
        outputs = stage_outputs(resnet_of(model), views.detach().requires_grad_())
        raw = model.head(outputs["layer4"].mean(dim=(2, 3)))  # [batch, num_outputs]
        gradients = torch.autograd.grad(raw.gather(1, chosen[:, None]).sum(), [outputs[stage] for stage in stages])
    unknown = torch.full((len(views),), torch.nan)
    return {
        stage: ClassMap((gradient.mean(dim=(2, 3), keepdim=True) * outputs[stage].detach()).sum(dim=1), unknown)
        for stage, gradient in zip(stages, gradients, strict=True)
    }


def resnet_of(model: Supervised) -> ResNet:
    """The encoder of a model whose layers are known here.

    Raises:
        InputError: It is another than a ResNet.
    """
    if not isinstance(model.backbone, ResNet):
        raise InputError(
            f"explanations need a ResNet, whose channels are maps of the tile, but the encoder is a {type(model.backbone).__name__}; train one with --resnet resnet18"
        )
    assert not model.training, "batch norm is folded with the statistics of inference"
    return model.backbone


def stage_outputs(backbone: ResNet, views: Tensor) -> dict[str, Tensor]:
    """Outputs of the four stages, by name."""
    values = backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1(views))))
    found = {}
    for stage in STAGES:
        values = getattr(backbone, stage)(values)
        found[stage] = values
    return found


def start_relevance(weight: Tensor, chosen: Tensor, kind: Literal["classes", "targets"], contrast: bool = True) -> tuple[Tensor, Tensor]:
    """Where relevance starts: linear functions of the features, and how much of it is put on each.

    With the contrast it is, for classes, 1 on the chosen and -1 / (N - 1) on each other of N (the authors' code divides by N, which leaves a sum of 1 / N), for
    targets 1 on the chosen score and -1 on its negation: what speaks for all alike is not shown, and the sum is 0. Without it, 1 on the chosen output.

    Args:
        weight: Of the head [num_outputs, dim].
        chosen: The output to explain, of each view [batch].
        kind: What the outputs are.
        contrast: Whether to contrast it.

    Returns:
        Weights of the functions [num_functions, dim] and their relevance [batch, num_functions].
    """
    num_outputs = len(weight)
    one_hot = functional.one_hot(chosen, num_outputs).to(weight)
    if not contrast or (kind == "classes" and num_outputs == 1):
        return weight, one_hot
    if kind == "classes":
        return weight, one_hot - (1 - one_hot) / (num_outputs - 1)
    return torch.cat([weight, -weight]), torch.cat([one_hot, -one_hot], dim=1)


def relevances(model: Supervised, outputs: dict[str, Tensor], weight: Tensor, start: Tensor, stages: Sequence[str]) -> dict[str, Tensor]:
    """Relevance of the outputs of some stages.

    Args:
        model: Head and encoder.
        outputs: Outputs of all stages.
        weight: Of the functions at which relevance starts, as ``start_relevance`` returns them.
        start: Their relevance.
        stages: Which to return.
    """
    last = outputs["layer4"]
    features = last.mean(dim=(2, 3))  # [batch, dim]
    relevance = redistribute(start, features, partial(functional.linear, weight=weight.clamp(min=0)))
    relevance = redistribute(relevance, last, lambda values: values.mean(dim=(2, 3)))
    found = {"layer4": relevance}
    lowest = min(map(STAGES.index, stages))
    for number in range(len(STAGES) - 1, lowest, -1):
        below = STAGES[number - 1]
        found[below] = relevance_of_stage(getattr(model.backbone, STAGES[number]), outputs[below], found[STAGES[number]])
    return {stage: found[stage] for stage in stages}


def relevance_of_stage(blocks: nn.Sequential, inputs: Tensor, relevance: Tensor) -> Tensor:
    """Hands relevance from a stage's output down to its input."""
    before = [inputs]
    for block in list(blocks)[:-1]:
        before.append(block(before[-1]))
    for block, values in zip(reversed(blocks), reversed(before), strict=True):
        relevance = relevance_of_block(block, values, relevance)
    return relevance


def relevance_of_block(block: BasicBlock | Bottleneck, inputs: Tensor, relevance: Tensor) -> Tensor:
    """Hands relevance down through a residual block: each summand takes the share that its positive part has in that of both."""
    numbers = range(1, 4 if isinstance(block, Bottleneck) else 3)
    layers = [(getattr(block, f"conv{number}"), getattr(block, f"bn{number}")) for number in numbers]
    values = [inputs]
    for convolution, norm in layers[:-1]:
        values.append(functional.relu(norm(convolution(values[-1]))))
    convolution, norm = layers[-1]
    residual = norm(convolution(values[-1])).clamp(min=0)
    shortcut = inputs if block.downsample is None else block.downsample(inputs).clamp(min=0)
    quotient = divide(relevance, residual + shortcut)  # both 0 only where the ReLU above gave 0, which took no relevance
    below, beside = quotient * residual, quotient * shortcut
    for (convolution, norm), activation in zip(reversed(layers), reversed(values), strict=True):
        below = redistribute(below, activation, positive_convolution(convolution, norm))
    if block.downsample is not None:
        beside = redistribute(beside, inputs, positive_convolution(*block.downsample))
    return below + beside


def positive_convolution(convolution: nn.Conv2d, norm: nn.BatchNorm2d | None = None) -> Callable[[Tensor], Tensor]:
    """The convolution with the positive ones of its weights, after its batch norm is folded in, and without a bias."""
    weight = convolution.weight
    if norm is not None:
        assert norm.running_var is not None
        weight = weight * (norm.weight / torch.sqrt(norm.running_var + norm.eps))[:, None, None, None]
    settings = {name: getattr(convolution, name) for name in ("stride", "padding", "dilation", "groups")}
    return partial(functional.conv2d, weight=weight.clamp(min=0), **settings)


def redistribute(relevance: Tensor, inputs: Tensor, contribute: Callable[[Tensor], Tensor]) -> Tensor:
    """Hands relevance to the inputs of a layer by their shares in each output.

    Args:
        relevance: Of the layer's outputs.
        inputs: Never negative.
        contribute: The layer with the positive ones of its weights alone: linear, without a bias.
    """
    with torch.enable_grad():
        inputs = inputs.detach().requires_grad_()
        total = contribute(inputs)
    # The gradient of a linear layer carries each output's quotient back to every input by the weight between them.
    (gradient,) = torch.autograd.grad(total, inputs, divide(relevance, total.detach()))
    return inputs.detach() * gradient


def divide(relevance: Tensor, total: Tensor) -> Tensor:
    """Quotients, and 0 where there is no total, or one so small that the quotient would leave the range of numbers."""
    smallest = torch.finfo(total.dtype).tiny ** 0.5
    return torch.where(total > smallest, relevance / total.clamp(min=smallest), 0)
