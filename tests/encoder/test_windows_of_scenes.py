"""Tiles that stay windows of their scenes are learned from and embedded as those that are written."""

from pathlib import Path

import pandas as pd
import pytest

import get_img_embedding
import train_img_encoder
from imagery2flow.encoder.checkpoint import load_checkpoint
from tests.imagery.helpers import cut, noise

STAGES = {"train": train_img_encoder.main, "embed": get_img_embedding.main}


@pytest.fixture
def tiles(tmp_path, write_scene) -> dict[str, list[str]]:
    """Flags that name the same tiles as files and as windows."""
    scene = write_scene(noise(2, 80, 96, "uint8"))
    settings = {"mode": "grid", "size": 32, "stride": 16}
    written, _, _ = cut(tmp_path / "written", scene, **settings)
    windows, _, _ = cut(tmp_path / "windows", scene, **settings, materialize=False)
    return {"written": ["--data_path", str(written)], "windows": ["--data_path", str(windows), "--scene_dir", str(Path(scene).parent)]}


def test_the_same_is_learned_and_said_of_either(tiles, tmp_path):
    vectors = {}
    for name, data in tiles.items():
        fixed = ["--view_size", "16", "--batch_size", "10", "--total_epoch", "2", "--device", "cpu", "--precision", "fp32"]
        assert STAGES["train"]([*data, *fixed, "--model_path", str(tmp_path / name), "--log", "x"]) == 0
        # With one encoder for both: equal pixels give equal vectors.
        output = ["--ckpt", str(tmp_path / "written/x_img_2.pth"), "--output_path", str(tmp_path / f"{name}.csv"), "--device", "cpu"]
        assert STAGES["embed"]([*data, *output]) == 0
        vectors[name] = pd.read_csv(tmp_path / f"{name}.csv", index_col="geocode")
    assert len(vectors["written"]) == 20
    pd.testing.assert_frame_equal(vectors["written"], vectors["windows"], rtol=1e-5, atol=1e-6)
    # Pixels that tiles share count once in the bands' statistics of windows, and once per tile in those of files: nearly the same is learned.
    one, two = (load_checkpoint(tmp_path / name / "x_img_2.pth") for name in tiles)
    assert one["normalisation"]["mean"] == pytest.approx(two["normalisation"]["mean"], rel=0.02)
    assert one["history"][-1]["loss"] == pytest.approx(two["history"][-1]["loss"], rel=0.05)


def test_windows_without_their_scenes_are_refused_by_the_stages(tiles, tmp_path, capsys):
    data = tiles["windows"][:2]
    assert STAGES["train"]([*data, "--device", "cpu", "--model_path", str(tmp_path / "ckpt")]) == 2
    assert "name the folder of those with --scene_dir" in capsys.readouterr().err


def test_chunks_follow_from_the_windows_too(tiles, tmp_path):
    assert (
        STAGES["train"](
            [*tiles["written"], "--view_size", "16", "--total_epoch", "1", "--device", "cpu", "--model_path", str(tmp_path), "--log", "x"]
        )
        == 0
    )
    flags = ["--ckpt", str(tmp_path / "x_img_1.pth"), "--output_path", str(tmp_path / "v.csv"), "--device", "cpu"]
    assert STAGES["embed"]([*tiles["windows"], *flags]) == 0
    before = pd.read_csv(tmp_path / "v.csv", index_col="geocode")
    path = Path(tiles["windows"][1]) / "manifest.csv"
    manifest = pd.read_csv(path)
    manifest.loc[manifest.geocode == "r0000c0000", "column_offset"] = 48
    manifest.to_csv(path, index=False)
    assert STAGES["embed"]([*tiles["windows"], *flags]) == 0
    after = pd.read_csv(tmp_path / "v.csv", index_col="geocode")
    assert after.loc["r0000c0000"].to_numpy() == pytest.approx(before.loc["r0000c0003"].to_numpy(), rel=1e-4, abs=1e-5)
