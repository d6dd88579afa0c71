import json

import pytest
import torch

from imagery2flow.encoder import training
from imagery2flow.encoder.training import train_encoder
from imagery2flow.run.config import ViewConfig
from imagery2flow.run.errors import BandError, InputError
from imagery2flow.run.inspection import SeveralFaults

from .cities import write_cities
from .conftest import draw_images, small_config, write_patches


def test_resuming_without_a_checkpoint_starts_anew(tmp_path, tiny_backbone, ledger):
    write_patches(tmp_path / "patches", draw_images(4))
    config = small_config(data_path=str(tmp_path / "patches"), model_path=str(tmp_path), total_epoch=1, resume=True)
    assert train_encoder(config, ledger) == tmp_path / "small_img_1_run.json"
    assert not any("resumed" in note for note in ledger.notes)
    assert ledger.came_in == {"patches": 4}
    assert ledger.went_out == {"epochs": 1}


def test_fewer_than_two_patches_are_refused(tmp_path, ledger):
    write_patches(tmp_path / "patches", draw_images(1))
    with pytest.raises(InputError, match="holds 1 patch; contrastive learning needs at least 2"):
        train_encoder(small_config(data_path=str(tmp_path / "patches")), ledger)


@pytest.mark.parametrize("views", [{"rgb_jitter": 0.4}, {"grey_probability": 0.2}])
def test_rgb_jitter_of_other_than_three_bands_is_refused(tmp_path, ledger, views):
    write_patches(tmp_path / "patches", draw_images(3, num_bands=2), ("red", "nir"))
    with pytest.raises(BandError, match=r"rgb_jitter.* need the three bands .* but 2 are used"):
        train_encoder(small_config(data_path=str(tmp_path / "patches"), views=ViewConfig(**views)), ledger)


def test_too_many_parts_are_refused():
    with pytest.raises(
        InputError, match=r"--accumulate 3 cannot divide batches of 5 patches .* on 2 process\(es\) .*; lower it to at most 2"
    ):
        training.check_processes(10, 5, 2, 3)
    training.check_processes(10, 5, 2, 2)


def test_simclr_learns_from_the_training_patches_of_a_manifest_with_a_split(tmp_path, tiny_backbone, ledger):
    """The run is that of a folder that holds no others."""
    for name, splits in (("all", {"train": 2, "validation": 1, "test": 1}), ("train", {"train": 2})):
        write_cities(tmp_path / name, splits, draw=lambda city, random: draw_images(1, seed=len(city), dtype="uint8")["00000"])
        train_encoder(small_config(data_path=str(tmp_path / name), model_path=str(tmp_path / f"{name}_ckpt")), ledger)
    assert ledger.notes[0].startswith(
        "manifest.csv has a column split: the encoder learns from the 8 patches of train, not from the other 8"
    )
    first, second = (torch.load(tmp_path / f"{name}_ckpt/small_img_2.pth", weights_only=True) for name in ("all", "train"))
    assert first["normalisation"] == second["normalisation"]
    assert all(torch.equal(first["model"][name], second["model"][name]) for name in first["model"])


def test_faults_of_labels_weights_and_scales_are_one_error(tmp_path, ledger):
    write_cities(tmp_path / "tiles", {"test": 2})
    settings = {"objective": "classify", "label_column": "town", "init": str(tmp_path / "gone.pth"), "normalisation": "imagenet"}
    config = small_config(data_path=str(tmp_path / "tiles"), model_path=str(tmp_path), bands=["blue", "green", "red"], **settings)
    with pytest.raises(SeveralFaults) as error:
        train_encoder(config, ledger)
    assert len(error.value.errors) == 3
    assert all(text in str(error.value) for text in ("no column town", "gone.pth does not exist", "--normalisation imagenet needs red"))


def test_statistics_of_the_bands_are_those_of_the_training_patches(tmp_path, tiny_backbone, ledger):
    brightness = iter([50, 50, 200, 100, 100, 200, 150, 150, 200, 200, 200, 200])  # two for training and one for validation of each city
    draw = lambda city, random: torch.full((3, 12, 12), next(brightness)).numpy().astype("uint8")  # noqa: E731
    write_cities(tmp_path / "tiles", {"train": 2, "validation": 1}, draw=draw)
    config = small_config(data_path=str(tmp_path / "tiles"), model_path=str(tmp_path), objective="classify", label_column="city")
    run_file = train_encoder(config, ledger)
    assert torch.load(config.checkpoint, weights_only=True)["normalisation"]["mean"] == pytest.approx([125.0] * 3)
    assert run_file.name == "small_img_2_run.json"
    assert json.dumps(ledger.came_in) == '{"patches": 8, "validation patches": 4}'
