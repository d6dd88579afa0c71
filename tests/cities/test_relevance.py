"""Relevance and class maps against another implementation, naive loops, a closed form and what must hold of any head."""

import copy

import numpy as np
import pytest
import torch
from captum.attr import LRP
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, conv1x1

from imagery2flow.cities.relevance import (
    STAGES,
    grad_cam,
    positive_convolution,
    redistribute,
    relevance_cam,
    relevance_of_block,
    relevances,
    stage_outputs,
    start_relevance,
)
from imagery2flow.encoder.backbones import build_backbone
from imagery2flow.encoder.supervised import Supervised
from imagery2flow.run.errors import InputError


def randomise_norms(module: nn.Module, seed: int = 0) -> None:
    """Statistics and weights of batch norm as after a training; some of its weights are negative, which turns folded weights round."""
    generator = torch.Generator().manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            shape = norm.running_mean.shape
            norm.running_mean.copy_(0.3 * torch.randn(shape, generator=generator))
            norm.running_var.copy_(0.5 + torch.rand(shape, generator=generator))
            norm.weight.data.copy_(0.4 + torch.randn(shape, generator=generator))
            norm.bias.data.copy_(0.2 * torch.randn(shape, generator=generator))


def make_model(resnet: str = "resnet18", num_outputs: int = 4, seed: int = 0) -> Supervised:
    backbone, dim = build_backbone(resnet, 2, 64, seed)
    model = Supervised(backbone, dim, num_outputs, seed + 1).double().eval()
    randomise_norms(model, seed)
    return model


def with_head(model: Supervised, weight: torch.Tensor) -> Supervised:
    other = copy.deepcopy(model)
    other.head.weight.data.copy_(weight)
    return other


def views(seed: int = 0, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 2, 64, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1])


def test_a_sequential_network_agrees_with_captum():
    torch.manual_seed(0)
    first, second, linear = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, stride=2, padding=1), nn.Linear(6, 5)
    network = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear).double().eval()
    inputs, chosen = torch.rand(2, 3, 12, 10, dtype=torch.float64), torch.tensor([3, 1])
    activations = [inputs]
    for layer in network:
        activations.append(layer(activations[-1]).detach())
    # Captum starts from the output's value, we from 1.
    relevance = nn.functional.one_hot(chosen, 5) * activations[-1]
    relevance = redistribute(relevance, activations[6], lambda x: nn.functional.linear(x, linear.weight.clamp(min=0)))
    relevance = redistribute(relevance, activations[4], lambda x: x.mean(dim=(2, 3)))
    relevance = redistribute(relevance, activations[2], positive_convolution(second))
    relevance = redistribute(relevance, inputs, positive_convolution(first))
    for layer in network:
        layer.rule = Alpha1_Beta0_Rule(set_bias_to_zero=True)
    theirs = LRP(network).attribute(inputs.requires_grad_(), target=chosen).detach()
    assert relevance.abs().sum() > 0.1
    torch.testing.assert_close(relevance, theirs, rtol=1e-5, atol=1e-8)


def naive_convolution(values, weight, stride, padding):
    """[channels, height, width] and [out, in, side, side] -> every product as (output, input, product)."""
    height, width = values.shape[1:]
    side = weight.shape[2]
    out_height, out_width = (height + 2 * padding - side) // stride + 1, (width + 2 * padding - side) // stride + 1
    for k in range(len(weight)):
        for row in range(out_height):
            for column in range(out_width):
                for c in range(values.shape[0]):
                    for i in range(side):
                        for j in range(side):
                            y, x = row * stride + i - padding, column * stride + j - padding
                            if 0 <= y < height and 0 <= x < width:
                                yield (k, row, column), (c, y, x), values[c, y, x] * weight[k, c, i, j]


def naive_layer(values, convolution, norm):
    """Output of a convolution with its batch norm, and its products."""
    scale = norm.weight.detach().numpy() / np.sqrt(norm.running_var.numpy() + norm.eps)
    weight = convolution.weight.detach().numpy() * scale[:, None, None, None]
    stride, padding, side = convolution.stride[0], convolution.padding[0], weight.shape[2]
    size = [(length + 2 * padding - side) // stride + 1 for length in values.shape[1:]]
    products = list(naive_convolution(values, weight, stride, padding))
    output = np.zeros((len(weight), *size)) + (norm.bias.detach().numpy() - norm.running_mean.numpy() * scale)[:, None, None]
    for place, _, product in products:
        output[place] += product
    return output, products


def naive_share(relevance, products, shape):
    """The z+ rule, product by product."""
    total, received = {}, np.zeros(shape)
    for place, _, product in products:
        total[place] = total.get(place, 0.0) + max(product, 0.0)
    for place, source, product in products:
        if product > 0:
            received[source] += relevance[place] * product / total[place]
    return received


def naive_block(block, values, relevance):
    """z+ through a residual block of one image, float64."""
    numbers = (1, 2, 3) if isinstance(block, Bottleneck) else (1, 2)
    activations, layers = [values], []
    for number in numbers:
        output, products = naive_layer(activations[-1], getattr(block, f"conv{number}"), getattr(block, f"bn{number}"))
        layers.append(products)
        activations.append(np.maximum(output, 0))
    residual, identity, products = activations[-1], values, []
    if block.downsample is not None:
        identity, products = naive_layer(values, *block.downsample)
        identity = np.maximum(identity, 0)
    both = residual + identity
    main, beside = np.zeros_like(both), np.zeros_like(both)
    for place in np.ndindex(both.shape):
        if both[place] > 0:
            main[place] = relevance[place] * residual[place] / both[place]
            beside[place] = relevance[place] * identity[place] / both[place]
    for products_of_layer, activation in zip(reversed(layers), reversed(activations[:-1]), strict=True):
        main = naive_share(main, products_of_layer, activation.shape)
    return main + (naive_share(beside, products, values.shape) if block.downsample is not None else beside)


@pytest.mark.parametrize(
    ("kind", "inputs", "planes", "stride"), [(BasicBlock, 2, 3, 2), (BasicBlock, 3, 3, 1), (Bottleneck, 2, 1, 2), (Bottleneck, 4, 1, 1)]
)
def test_a_residual_block_agrees_with_naive_loops(kind, inputs, planes, stride):
    torch.manual_seed(inputs)
    outputs = planes * kind.expansion
    downsample = nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs)) if stride != 1 or inputs != outputs else None
    block = kind(inputs, planes, stride, downsample).double().eval()
    randomise_norms(block, seed=stride)
    values = torch.relu(torch.randn(1, inputs, 5, 6, dtype=torch.float64))
    output = block(values).detach()
    relevance = torch.where(output > 0, torch.randn_like(output), 0)  # nothing arrives where the ReLU gave 0
    with torch.no_grad():
        found = relevance_of_block(block, values, relevance)[0].numpy()
    expected = naive_block(block, values[0].numpy(), relevance[0].numpy())
    assert np.abs(expected).sum() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("resnet", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_relevance_is_conserved_down_to_the_first_stage(resnet):
    backbone, dim = build_backbone(resnet, 2, 64, 3)
    model = Supervised(backbone, dim, 4, 1).double().eval()  # a new encoder has no biases: no output is without a contribution
    with torch.no_grad():
        outputs = stage_outputs(model.backbone, views())
        found = relevances(model, outputs, *start_relevance(model.head.weight, torch.tensor([1, 2]), "classes", contrast=False), STAGES)
    for stage in STAGES:
        assert found[stage].shape == outputs[stage].shape
        assert (found[stage] >= 0).all()
        torch.testing.assert_close(found[stage].sum(dim=(1, 2, 3)), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-9)


def test_relevance_ends_where_an_output_owes_its_value_to_its_bias_alone():
    inputs = torch.tensor([[1.0, 2.0]])
    weight = torch.tensor([[3.0, 0.0], [-1.0, -1.0]])  # the second output has no positive contribution
    found = redistribute(torch.tensor([[1.0, 5.0]]), inputs, lambda x: nn.functional.linear(x, weight.clamp(min=0)))
    assert found.tolist() == [[1.0, 0.0]]
    block = BasicBlock(2, 2).eval()
    for parameter in block.parameters():
        parameter.data.zero_()
    block.bn2.bias.data.fill_(1.0)
    with torch.no_grad():
        found = relevance_of_block(block, torch.full((1, 2, 3, 3), 3.0), torch.ones(1, 2, 3, 3))
    torch.testing.assert_close(found, torch.full((1, 2, 3, 3), 0.75))  # the bias has 1 of 4, which ends there


def test_the_last_stage_has_a_closed_form():
    model = make_model()
    chosen, images = torch.tensor([2, 0]), views()
    found = relevance_cam(model, images, chosen, "classes", ("layer4",))["layer4"]
    with torch.no_grad():
        last = stage_outputs(model.backbone, images)["layer4"]
        features = last.mean(dim=(2, 3))
        positive = model.head.weight.clamp(min=0)
        _, start = start_relevance(model.head.weight, chosen, "classes")
        weight = features * ((start / (features @ positive.T)) @ positive) / last[0, 0].numel()
    torch.testing.assert_close(found.values, torch.einsum("bk,bkhw->bhw", weight, last))


def test_classes_are_contrasted_with_each_other_and_scores_with_their_negation():
    chosen, weight = torch.tensor([0, 2]), torch.randn(3, 5)
    functions, start = start_relevance(weight, chosen, "classes")
    assert start.tolist() == [[1, -0.5, -0.5], [-0.5, -0.5, 1]]
    assert functions is weight
    functions, start = start_relevance(weight, chosen, "targets")
    assert start.tolist() == [[1, 0, 0, -1, 0, 0], [0, 0, 1, 0, 0, -1]]
    assert torch.equal(functions, torch.cat([weight, -weight]))
    for kind in ("classes", "targets"):
        assert start_relevance(weight, chosen, kind, contrast=False)[1].tolist() == [[1, 0, 0], [0, 0, 1]]
    assert start_relevance(weight[:1], torch.tensor([0]), "classes")[1].tolist() == [[1]]
    assert start_relevance(weight[:1], torch.tensor([0]), "targets")[1].tolist() == [[1, -1]]


def test_what_the_walk_begins_with_is_what_the_model_says():
    model = make_model("resnet50")
    features, _ = model(views())
    torch.testing.assert_close(stage_outputs(model.backbone, views())["layer4"].mean(dim=(2, 3)), features)


@pytest.mark.parametrize("kind", ["classes", "targets"])
@pytest.mark.parametrize("method", ["relevance_cam", "grad_cam"])
def test_another_head_gives_another_map(method, kind):
    model = make_model(num_outputs=3)
    weight, chosen = model.head.weight.detach(), torch.tensor([1, 1])

    def maps(head):
        other = with_head(model, head)
        found = grad_cam(other, views(), chosen, STAGES) if method == "grad_cam" else relevance_cam(other, views(), chosen, kind, STAGES)
        return [found[stage].values for stage in STAGES]

    for first, negated, other in zip(maps(weight), maps(-weight), maps(torch.randn_like(weight)), strict=True):
        assert correlation(first, negated) < 0.9
        assert correlation(first, other) < 0.99
        if (method, kind) != ("relevance_cam", "classes"):  # what raises a score lowers its negation
            torch.testing.assert_close(negated, -first)


def test_without_a_contrast_the_head_is_all_but_forgotten_below_the_last_stage():
    """Why there is one: the relevance of a single output does not tell a head from its negation."""
    model, chosen = make_model(num_outputs=3), torch.tensor([1, 1])
    first, negated = (
        relevance_cam(with_head(model, sign * model.head.weight.detach()), views(), chosen, "targets", ("layer2",), contrast=False)
        for sign in (1, -1)
    )
    assert correlation(first["layer2"].values, negated["layer2"].values) > 0.999


def test_a_contrast_of_two_classes_turns_round_with_the_head():
    model = make_model(num_outputs=2)
    weight, chosen = model.head.weight.detach(), torch.tensor([0, 1])
    first = relevance_cam(model, views(), chosen, "classes", ("layer3",))["layer3"]
    other_class = relevance_cam(model, views(), 1 - chosen, "classes", ("layer3",))["layer3"]
    swapped = relevance_cam(with_head(model, weight.flip(0)), views(), chosen, "classes", ("layer3",))["layer3"]
    torch.testing.assert_close(other_class.values, -first.values)
    torch.testing.assert_close(swapped.values, -first.values)


def test_grad_cam_of_the_last_stage_is_the_head_on_each_pixel():
    model = make_model()
    chosen, images = torch.tensor([3, 0]), views()
    found = grad_cam(model, images, chosen, ("layer4", "layer2"))
    with torch.no_grad():
        last = stage_outputs(model.backbone, images)["layer4"]
        expected = torch.einsum("bk,bkhw->bhw", model.head.weight[chosen], last) / last[0, 0].numel()
    torch.testing.assert_close(found["layer4"].values, expected)
    assert found["layer2"].values.shape == (2, 8, 8)
    assert found["layer2"].relevance_sum.isnan().all()


def test_stages_do_not_depend_on_which_others_are_asked_for():
    model, chosen = make_model("resnet50"), torch.tensor([0, 1])
    together = relevance_cam(model, views(), chosen, "classes", STAGES)
    assert list(together) == list(STAGES)
    for stage in ("layer1", "layer3"):
        alone = relevance_cam(model, views(), chosen, "classes", (stage,))[stage]
        torch.testing.assert_close(alone.values, together[stage].values)


def test_a_transformer_is_refused_with_one_sentence():
    model = Supervised(nn.Sequential(nn.Flatten(), nn.Linear(2 * 64 * 64, 3)), 3, 2, 0).double().eval()
    with pytest.raises(InputError, match="explanations need a ResNet"):
        grad_cam(model, views(), torch.tensor([0, 0]), ("layer4",))
    with pytest.raises(InputError, match="but the encoder is a Sequential"):
        relevance_cam(model, views(), torch.tensor([0, 0]), "classes", ("layer4",))
