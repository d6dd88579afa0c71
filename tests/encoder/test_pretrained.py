from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from torchvision.models._api import WeightsEnum

from imagery2flow.encoder.backbones import build_backbone
from imagery2flow.encoder.pretrained import for_bands, imagenet_normalisation, load_weights, read_weights
from imagery2flow.encoder.training import find_inputs, train_encoder
from imagery2flow.imagery.views import normalise
from imagery2flow.run.errors import BandError, InputError, MissingInputError

from .conftest import BANDS, draw_images, small_config, write_patches

RGB = ("red", "green", "blue")


@pytest.fixture(scope="module")
def theirs():
    """Torchvision's ResNet-18 with other weights than ours."""
    torch.manual_seed(1)
    return torchvision.models.resnet18(weights=None).eval()


@pytest.fixture
def file(theirs, tmp_path):
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    return str(tmp_path / "resnet18.pth")


def with_weights(weights, num_bands, name="resnet18"):
    backbone, _ = build_backbone(name, num_bands, 32, seed=0)
    load_weights(backbone, weights, "w.pth")
    return backbone.eval()


def test_a_state_dict_of_torchvision_gives_its_features(theirs, file):
    image = torch.rand(2, 3, 32, 32)
    features = with_weights(read_weights(file, "resnet18", RGB), 3)(image)
    assert torch.equal(theirs.fc(features), theirs(image))


@pytest.mark.parametrize("num_bands", [1, 2, 6])
def test_bands_that_are_alike_give_what_a_grey_image_gives(theirs, file, num_bands):
    grey = torch.rand(2, 1, 32, 32)
    features = with_weights(read_weights(file, "resnet18", [f"b{n}" for n in range(num_bands)]), num_bands)(grey.repeat(1, num_bands, 1, 1))
    torch.testing.assert_close(theirs.fc(features), theirs(grey.repeat(1, 3, 1, 1)), atol=1e-4, rtol=1e-4)


def test_the_first_layer_is_the_mean_of_the_channels_times_3_over_the_bands():
    weights = {"conv1.weight": torch.arange(12.0).reshape(2, 3, 1, 2), "bn1.weight": torch.ones(2)}
    changed = for_bands(weights, 4)
    assert changed["conv1.weight"].shape == (2, 4, 1, 2)
    for out in range(2):
        for band in range(4):
            for column in range(2):
                mean = sum(weights["conv1.weight"][out, channel, 0, column].item() for channel in range(3)) / 3
                assert changed["conv1.weight"][out, band, 0, column].item() == pytest.approx(mean * 3 / 4)
    assert for_bands(weights, 3) is weights


def test_scratch_is_no_weights():
    assert read_weights("scratch", "resnet18", RGB) is None


def test_imagenets_weights_are_torchvisions_without_the_head(theirs, monkeypatch):
    asked = {}

    def get_state_dict(self, **settings):
        asked.update(settings, name=self.name)
        return theirs.state_dict()

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get_state_dict)
    weights = read_weights("imagenet", "resnet18", RGB)
    assert set(weights) == {name for name in theirs.state_dict() if not name.startswith("fc.")}
    assert asked["weights_only"] is True and asked["check_hash"] is True and asked["name"] == "IMAGENET1K_V1"


@pytest.mark.parametrize("error", [URLError("no network"), RuntimeError("invalid hash value"), OSError(28, "No space left on device")])
def test_a_failed_download_says_to_name_a_file(monkeypatch, error):
    def get_state_dict(self, **settings):
        raise error

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get_state_dict)
    with pytest.raises(InputError, match=r"cannot download https://.*resnet50.*\.pth .*name the file with --init") as raised:
        read_weights("imagenet", "resnet50", RGB)
    assert "\n" not in str(raised.value)


def test_a_checkpoint_of_ours_gives_its_backbone(trained):
    weights = read_weights(trained.checkpoint, "resnet18", BANDS)
    stored = torch.load(trained.checkpoint, weights_only=True)["model"]
    backbone = with_weights(weights, 3)
    assert all(torch.equal(tensor, stored[f"backbone.{name}"]) for name, tensor in backbone.state_dict().items())


def test_weights_of_another_backbone_or_of_other_bands_are_refused(trained, file, tmp_path):
    with pytest.raises(InputError, match=r"is a resnet18, not a resnet50; train with --resnet resnet18"):
        read_weights(trained.checkpoint, "resnet50", BANDS)
    with pytest.raises(BandError, match="reads the bands red, nir, thermal but the patches have red, green, blue"):
        read_weights(trained.checkpoint, "resnet18", RGB)
    with pytest.raises(InputError, match=r"--init w.pth does not fit the backbone: .*lacks \d+ .*same --resnet"):
        with_weights(read_weights(file, "resnet34", RGB), 3, "resnet34")
    with pytest.raises(MissingInputError, match=r"--init .*gone.pth does not exist"):
        read_weights(str(tmp_path / "gone.pth"), "resnet18", RGB)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(InputError, match="cannot be read as a file of weights"):
        read_weights(str(tmp_path / "module.pth"), "resnet18", RGB)
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "nested.pth")
    with pytest.raises(InputError, match="holds more than named tensors; store the state dict alone"):
        read_weights(str(tmp_path / "nested.pth"), "resnet18", RGB)


def test_imagenets_statistics_are_those_of_torchvisions_transform():
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 5, 5)).astype("float32"))
    expected = torchvision.transforms.functional.normalize(pixels / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    found = normalise(pixels, torch.ones(1, 1, 5, 5, dtype=torch.bool), imagenet_normalisation(RGB, "uint8"))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert imagenet_normalisation(("band1", "band2", "band3"), "uint8").band_names == ("band1", "band2", "band3")


@pytest.mark.parametrize(
    ("names", "dtype"), [(("blue", "green", "red"), "uint8"), (RGB, "uint16"), (("red", "green"), "uint8"), (BANDS, "uint8")]
)
def test_other_bands_or_values_are_not_scaled_as_imagenets(names, dtype):
    with pytest.raises(BandError, match=r"--normalisation imagenet needs red, green, blue .*--normalisation patches"):
        imagenet_normalisation(names, dtype)


def test_a_run_begins_with_the_weights_and_scales_that_are_asked_for(tmp_path, theirs, file, ledger):
    write_patches(tmp_path / "patches", draw_images(4, dtype="uint8"), RGB)
    settings = {"data_path": str(tmp_path / "patches"), "model_path": str(tmp_path / "ckpt"), "total_epoch": 1, "lr": 1e-9}
    config = small_config(init=file, normalisation="imagenet", **settings)
    train_encoder(config, ledger)
    content = torch.load(config.checkpoint, weights_only=True)
    assert content["normalisation"]["mean"] == pytest.approx([123.675, 116.28, 103.53])
    torch.testing.assert_close(content["model"]["backbone.conv1.weight"], theirs.conv1.weight.detach(), atol=1e-6, rtol=0)
    Path(file).unlink()
    assert find_inputs(config, ledger).weights is None  # a run that goes on needs them no more
    with pytest.raises(MissingInputError, match="--init"):
        find_inputs(small_config(init=file, log="other", **settings), ledger)
