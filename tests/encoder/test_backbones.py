import pytest
import torch
import torchvision

from imagery2flow.encoder.backbones import build_backbone


@pytest.mark.parametrize("num_bands", [1, 3, 6])
def test_resnet18_gives_512_features_of_any_number_of_bands(num_bands):
    backbone, dim = build_backbone("resnet18", num_bands, 16, seed=0)
    assert dim == 512
    assert backbone(torch.zeros(2, num_bands, 16, 16)).shape == (2, 512)


def test_resnet50_gives_2048_features():
    backbone, dim = build_backbone("resnet50", 2, 32, seed=0)
    assert dim == 2048
    assert backbone.eval()(torch.zeros(1, 2, 32, 32)).shape == (1, 2048)


def test_resnet_of_three_bands_is_torchvisions_but_for_the_head():
    ours, _ = build_backbone("resnet18", 3, 32, seed=0)
    theirs = torchvision.models.resnet18(weights=None)
    theirs.fc = torch.nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    image = torch.rand(2, 3, 32, 32)
    assert torch.equal(ours.eval()(image), theirs.eval()(image))


def test_the_first_layer_is_scaled_as_torchvision_scales_it():
    backbone, _ = build_backbone("resnet18", 4, 32, seed=0)
    # He initialisation, fan_out = 64 filters x 7 x 7: sd = sqrt(2 / 3136), for any number of bands.
    assert backbone.conv1.weight.std().item() == pytest.approx((2 / 3136) ** 0.5, rel=0.05)


def test_the_seed_decides_the_weights_and_nothing_else_moves():
    before = torch.random.get_rng_state()
    first, again, other = (build_backbone("resnet18", 3, 16, seed)[0].state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["layer1.0.conv1.weight"], other["layer1.0.conv1.weight"])
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_vit_takes_any_number_of_bands_and_returns_its_class_token(monkeypatch):
    def small_vit(weights, image_size):
        return torchvision.models.VisionTransformer(image_size, 16, num_layers=1, num_heads=2, hidden_dim=24, mlp_dim=32)

    monkeypatch.setattr(torchvision.models, "vit_l_16", small_vit)
    backbone, dim = build_backbone("vit_l_16", 6, 32, seed=0)
    assert dim == 24
    assert backbone(torch.rand(2, 6, 32, 32)).shape == (2, 24)
    assert backbone.conv_proj.weight.std().item() == pytest.approx((6 * 16 * 16) ** -0.5, rel=0.2)


@pytest.mark.slow
def test_the_published_vit_has_1024_features():
    backbone, dim = build_backbone("vit_l_16", 2, 32, seed=0)
    assert dim == 1024
    assert len(backbone.encoder.layers) == 24
    with torch.inference_mode():
        assert backbone.eval()(torch.zeros(1, 2, 32, 32)).shape == (1, 1024)
