import pytest

from imagery2flow.encoder import training
from imagery2flow.encoder.training import train_encoder
from imagery2flow.run.config import ViewConfig
from imagery2flow.run.errors import BandError, InputError

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
