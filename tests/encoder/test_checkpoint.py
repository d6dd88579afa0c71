import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from imagery2flow.encoder.checkpoint import check_scale, find_checkpoint, load_checkpoint, load_encoder
from imagery2flow.encoder.embeddings import make_embeddings
from imagery2flow.imagery.patch_files import load_patches
from imagery2flow.run.config import EmbeddingConfig
from imagery2flow.run.errors import BandError, InputError, MissingInputError
from imagery2flow.run.files import save_tensors

from .conftest import BANDS, draw_images, write_patches


class Bomb:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def embedding_config(trained, data_path, **changes):
    return EmbeddingConfig(data_path=str(data_path), output_path=f"{data_path}.csv", ckpt=trained.checkpoint, device="cpu", **changes)


def test_a_checkpoint_loads_without_running_code_and_holds_what_a_run_needs(trained):
    content = torch.load(trained.checkpoint, weights_only=True)
    assert content["format"] == "imagery2flow-encoder-1"
    assert content["config"]["resnet"] == "resnet18"
    assert content["config"]["views"]["crop_min_share"] == 0.2
    assert content["normalisation"]["band_names"] == list(BANDS)
    assert content["normalisation"]["dtype"] == "uint16"
    assert (content["epoch"], content["step"], content["view_size"]) == (1, 0, 16)
    assert {"model", "optimizer", "history", "sums"} < set(content)


def test_the_encoder_comes_back_with_its_weights_and_normalisation(trained, ledger):
    encoder, record = load_encoder(Path(trained.checkpoint))
    stored = torch.load(trained.checkpoint, weights_only=True)
    assert not encoder.training
    assert set(encoder.state_dict()) == {name.removeprefix("backbone.") for name in stored["model"] if not name.startswith("projector")}
    assert all(torch.equal(tensor, stored["model"][f"backbone.{name}"]) for name, tensor in encoder.state_dict().items())
    patches = load_patches(trained.data_path, [], ledger)
    assert record.normalisation == patches.normalisation
    assert (record.resnet, record.view_size, record.epoch, record.total_epoch) == ("resnet18", 16, 1, 1)


def wrong_file(kind, path, trained):
    """Makes a file that is no encoder checkpoint."""
    whole = Path(trained.checkpoint).read_bytes()
    contents = {
        "empty": b"",
        "text": b"geocode,0,1\n00001,0.5,0.6\n",
        "one full stop": b".",
        "noise": bytes(range(256)),
        "pickled list": pickle.dumps([1, 2], protocol=2),
        "truncated": whole[: len(whole) // 2],
        "first bytes": whole[:100],
    }
    if kind in contents:
        path.write_bytes(contents[kind])
    elif kind == "other zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "a")
    elif kind == "list of tensors":
        torch.save([torch.zeros(1)], path)
    elif kind == "state dict alone":
        torch.save({"conv1.weight": torch.zeros(1)}, path)
    elif kind == "whole module":
        torch.save(torch.nn.Linear(2, 2), path)
    elif kind == "OD model":
        save_tensors(path, {"format": "imagery2flow-od-1"})


KINDS = ["empty", "text", "one full stop", "noise", "pickled list", "truncated", "first bytes", "other zip"]


@pytest.mark.parametrize("kind", [*KINDS, "list of tensors", "state dict alone", "whole module", "OD model"])
def test_a_file_of_another_kind_is_refused_in_one_sentence(trained, tmp_path, kind):
    path = tmp_path / "wrong.pth"
    wrong_file(kind, path, trained)
    with pytest.raises(InputError) as error:
        load_checkpoint(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_pickle_in_the_guise_of_a_checkpoint_is_refused_without_being_run(tmp_path):
    torch.save({"format": "imagery2flow-encoder-1", "bomb": Bomb(tmp_path / "exploded")}, tmp_path / "bomb.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded"), protocol=2))
    for name in ("bomb.pth", "bare.pth"):
        with pytest.raises(InputError):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(MissingInputError, match=r"gone.pth does not exist"):
        load_checkpoint(tmp_path / "gone.pth")


def test_the_published_flags_find_the_checkpoint(tmp_path):
    for age, name in enumerate(("M1_img_120.pth", "M1_img_60.pth", "M10_img_120.pth")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (age, age))
    assert find_checkpoint(None, str(tmp_path), "M1") == tmp_path / "M1_img_60.pth"  # the latest of this run
    assert find_checkpoint("M1_img_120.pth", str(tmp_path), "M10") == tmp_path / "M1_img_120.pth"
    assert find_checkpoint(str(tmp_path / "M1_img_120.pth"), "elsewhere", "M10") == tmp_path / "M1_img_120.pth"
    with pytest.raises(MissingInputError, match=r"other_img_\*.pth; train it with train_img_encoder.py --log other"):
        find_checkpoint(None, str(tmp_path), "other")
    with pytest.raises(MissingInputError, match=r"encoder checkpoint gone.pth"):
        find_checkpoint("gone.pth", str(tmp_path), "M1")


def test_patches_without_a_band_of_the_encoder_are_refused_by_its_name(trained, tmp_path, ledger):
    folder = write_patches(tmp_path / "patches", draw_images(3, num_bands=2), ("red", "nir"))
    with pytest.raises(BandError, match="has no thermal; its bands are 1 red, 2 nir"):
        make_embeddings(embedding_config(trained, folder), ledger)
    assert not Path(f"{folder}.csv").exists()


def test_bands_are_joined_by_name_whatever_their_order(trained, tmp_path, ledger):
    images = draw_images(3)
    turned = {geocode: image[[2, 0, 1]] for geocode, image in images.items()}
    folders = [
        write_patches(tmp_path / "straight", images),
        write_patches(tmp_path / "turned", turned, ("thermal", "red", "nir")),
    ]
    for folder in folders:
        make_embeddings(embedding_config(trained, folder), ledger)
    assert Path(f"{folders[0]}.csv").read_bytes() == Path(f"{folders[1]}.csv").read_bytes()


def test_patches_of_another_scale_are_refused_unless_their_own_statistics_are_asked_for(trained, tmp_path, ledger):
    folder = write_patches(tmp_path / "patches", draw_images(3, dtype="uint8"))
    with pytest.raises(BandError, match=r"hold uint8 but the encoder was trained on uint16.*--normalisation patches"):
        make_embeddings(embedding_config(trained, folder), ledger)
    assert not Path(f"{folder}.csv").exists()
    make_embeddings(embedding_config(trained, folder, normalisation="patches"), ledger)
    assert Path(f"{folder}.csv").is_file()
    assert "bands are scaled by these patches' own statistics, not by the encoder's" in ledger.notes


def test_patches_of_the_encoders_own_scale_pass(trained, ledger):
    _, record = load_encoder(Path(trained.checkpoint))
    check_scale(record, load_patches(trained.data_path, [], ledger).values.dtype.name, trained.data_path)
