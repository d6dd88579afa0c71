"""``python -m imagery2flow explain``: planted squares are found, maps lie on their tiles' pixels, and everything asked for is written."""

import re

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from matplotlib.image import imread

from imagery2flow.__main__ import main
from imagery2flow.cities.relevance import STAGES, grad_cam, relevance_cam, stage_outputs
from imagery2flow.cities.tile_maps import encode_map, kept_pixels, mass_in_upper_tenth, on_tile
from imagery2flow.encoder.backbones import build_backbone
from imagery2flow.encoder.supervised import as_predictions, load_supervised
from imagery2flow.run.cli import parse_config
from imagery2flow.run.explain_config import LAYERS, ExplainConfig
from tests.cities.planted import (
    CLASSES,
    GSD_M,
    LEFT,
    TARGETS,
    TOP,
    VIEW_SIZE,
    make_tile,
    make_tiles,
    trained,
    views_of,
    write_checkpoint,
    write_folder,
)

CITIES = ["A/B", "A/B", "A/B", "A B", "A B", "C"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("ckpt") / "cities_img_1.pth")


@pytest.fixture
def folder(tmp_path):
    """Six tiles of 96 x 48 pixels of three cities, the first without a square; the last has a missing corner, and one is of the training split."""
    rng = np.random.default_rng(3)
    tiles = {f"t{number}": make_tile(96, 48, number > 0, rng) for number in range(6)}
    missing = np.zeros((96, 48), bool)
    missing[:20, :10] = True
    return write_folder(tmp_path / "patches", tiles, {"city": CITIES, "split": ["test"] * 4 + ["train", "test"]}, missing)


def run(folder, checkpoint, *flags):
    output = folder.parent / "out"
    status = main(
        ["explain", "--data_path", str(folder), "--ckpt", str(checkpoint), "--output_dir", str(output), "--device", "cpu", *flags]
    )
    return status, output


def shares(maps, squares):
    """Mean share of the maps' positive part that lies in the squares."""
    positive = [np.clip(values, 0, None) for values in maps]
    return np.mean([values[square].sum() / values.sum() for values, square in zip(positive, squares, strict=True)])


@pytest.mark.parametrize("shape", [(64, 64), (96, 48)])
@pytest.mark.parametrize(("layer", "times"), [("layer1", 4.0), ("layer2", 2.5)])
@pytest.mark.parametrize("method", ["relevance_cam", "grad_cam"])
def test_the_mass_of_a_map_lies_in_the_planted_square(shape, method, layer, times):
    model, patches = trained()
    tiles = [tile for tile in make_tiles(24, *shape, seed=9) if tile.is_square]
    views = views_of(tiles, patches.normalisation)
    assert (model(views)[1].argmax(dim=1) == 1).all()
    chosen, squares = torch.ones(len(tiles)).long(), [tile.square for tile in tiles]
    if method == "grad_cam":
        found = grad_cam(model, views, chosen, (layer,))[layer]
    else:
        found = relevance_cam(model, views, chosen, "classes", (layer,))[layer]
    maps = [on_tile(values.detach().numpy(), layer, VIEW_SIZE, shape) for values in found.values]
    area = squares[0].mean()
    assert shares(maps, squares) > times * area
    assert shares(maps, squares) > 2 * shares(maps, squares[1:] + squares[:1])  # of another tile


def test_a_cell_lies_where_it_looks():
    """The pixels that the middle cell of each stage depends on lie around i * stride, over several encoders."""
    view_size = 256
    places = {stage: [] for stage in STAGES}
    for seed in range(4):
        backbone, _ = build_backbone("resnet18", 1, view_size, seed)
        views = torch.randn(1, 1, view_size, view_size, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        outputs = stage_outputs(backbone.eval(), views)
        for stage, values in outputs.items():
            middle = values.shape[2] // 2
            (gradient,) = torch.autograd.grad(values[0, :, middle, middle].sum(), views, retain_graph=True)
            weight = gradient[0, 0] ** 2 / (gradient**2).sum()
            places[stage] += [float(weight.sum(dim=axis) @ torch.arange(256.0)) for axis in (0, 1)]
    for layer, found in places.items():
        stride = 4 << LAYERS.index(layer)
        cells = view_size // stride
        row = np.zeros((cells, cells))
        row[:, cells // 2] = 1.0
        peak = on_tile(row, layer, view_size, (view_size, view_size))[0].argmax()
        assert peak == view_size // 2
        assert abs(np.mean(found) - peak) < 0.15 * stride, layer  # as cells of equal size it would be half a stride


def test_a_map_is_stretched_to_the_tile_as_the_tile_was_to_the_view():
    values = np.arange(4.0)[:, None] + 10 * np.arange(4.0)  # [4, 4] of a view of 16 pixels
    expected = np.zeros((32, 8))
    for row in range(32):
        for column in range(8):
            y, x = ((row + 0.5) / 32 * 16 - 0.5) / 4, ((column + 0.5) / 8 * 16 - 0.5) / 4
            expected[row, column] = np.clip(y, 0, 3) + 10 * np.clip(x, 0, 3)
    np.testing.assert_allclose(on_tile(values, "layer1", 16, (32, 8)), expected)
    np.testing.assert_array_equal(on_tile(np.array([[3.0]]), "layer4", 16, (2, 3)), np.full((2, 3), 3.0))


def test_rules_of_masks_and_mass():
    values = np.array([[0.0, 1.0, 2.0, 9.0, np.nan]])
    assert kept_pixels(values, "mean_plus_std").tolist() == [[False, False, False, True, False]]  # 3 + 3.54
    assert kept_pixels(values - 5, "half").tolist() == [[False, False, False, True, False]]
    assert not kept_pixels(np.full((2, 2), 0.1, np.float32), "mean_plus_std").any()
    assert mass_in_upper_tenth(np.concatenate([[10.0, np.nan, -5], np.ones(18)])) == pytest.approx(11 / 28)  # 2 of 20 pixels
    assert mass_in_upper_tenth(np.ones(20)) == pytest.approx(0.1)
    assert np.isnan(mass_in_upper_tenth(np.array([-1.0, -2.0, np.nan])))


@pytest.mark.parametrize("method", ["relevance_cam", "grad_cam"])
def test_everything_is_written(folder, checkpoint, method, capsys):
    status, output = run(folder, checkpoint, "--method", method, "--layers", "layer4", "layer2")
    said = capsys.readouterr().err
    assert status == 0
    table = pd.read_csv(output / "explanations.csv", dtype={"geocode": str})
    assert table.geocode.tolist() == ["t3", "t3", "t0", "t0", "t1", "t1", "t2", "t2", "t5", "t5"]  # t4 is of the training split
    assert table.layer.tolist() == ["layer4", "layer2"] * 5
    assert set(table.method) == {method}
    assert (table.output == table.predicted).all()
    assert dict(zip(table.geocode, table.predicted, strict=True)) == {
        "t0": "plain",
        "t1": "square",
        "t2": "square",
        "t3": "square",
        "t5": "square",
    }
    assert table.probability.between(0.5, 1).all()
    assert table.mass_in_upper_tenth.dropna().between(0.1, 1).all()
    assert table.kept_share.between(0, 0.5).all()
    assert table.relevance_sum.isna().all() if method == "grad_cam" else (table.relevance_sum.abs() < 1).all()
    names = {
        f"{tile}_{method}_{layer}{end}" for tile, layer in zip(table.geocode, table.layer, strict=True) for end in (".tif", "_masked.png")
    }
    sheets = {"contact_A_B.png", "contact_A_B_2.png", "contact_C.png"}
    assert {path.name for path in output.iterdir()} == names | sheets | {"explanations.csv", "run.json"}
    assert "layer4 has 2 x 2 cells for views of 64 px, too few to show a place" in said
    assert "layer2 has" not in said
    assert "3 cities have fewer than 10 tiles, and give all: A B 1, A/B 3, C 1" in said
    assert "out: 5 explained tiles, 10 maps, 3 contact sheets" in said


def test_maps_lie_on_their_tiles(folder, checkpoint):
    assert run(folder, checkpoint, "--layers", "layer1", "--geocodes", "t5", "t1")[0] == 0
    for number, geocode in ((1, "t1"), (5, "t5")):
        with (
            rasterio.open(folder / f"l8_2020_{geocode}.tif") as tile,
            rasterio.open(folder.parent / f"out/{geocode}_relevance_cam_layer1.tif") as found,
        ):
            assert (found.crs, found.transform, found.shape) == (tile.crs, tile.transform, tile.shape)
            assert found.transform.c == LEFT + 10_000 * number and found.transform.f == TOP and found.transform.a == GSD_M
            values, missing = found.read(1), tile.read_masks(1) == 0
        assert found.dtypes == ("float32",) and np.isnan(found.nodata)
        assert (np.isnan(values) == missing).all()
        assert missing.sum() == 200
        masked = imread(folder.parent / f"out/{geocode}_relevance_cam_layer1_masked.png")
        assert masked.shape[:2] == tile.shape
        assert (masked[missing] == 1).all()  # outside: white
        kept = kept_pixels(values, "mean_plus_std")
        np.testing.assert_allclose(masked[~missing & ~kept][:, :3], 0xDD / 255, atol=1e-6)


def test_the_checkpoint_says_the_same_as_the_model(checkpoint):
    loaded, record, outputs = load_supervised(checkpoint)
    model, patches = trained()
    assert outputs == CLASSES and record.view_size == VIEW_SIZE and record.normalisation == patches.normalisation
    views = views_of(make_tiles(2, 64, 64, seed=2), patches.normalisation)
    torch.testing.assert_close(loaded(views)[1], model(views)[1])


def test_scores_of_a_target_and_of_a_named_class(folder, checkpoint, tmp_path):
    scores = write_checkpoint(tmp_path / "scores.pth", TARGETS)
    assert run(folder, scores, "--geocodes", "t0", "t1")[0] == 0
    table = pd.read_csv(folder.parent / "out/explanations.csv")
    assert table.output.tolist() == ["overall", "overall"]
    assert "probability" not in table and "predicted" not in table
    assert table.score[0] < TARGETS.mean[0] < table.score[1]
    assert run(folder, checkpoint, "--geocodes", "t1", "--output_name", "plain")[0] == 0
    named = pd.read_csv(folder.parent / "out/explanations.csv").iloc[0]
    assert (named.output, named.predicted) == ("plain", "square") and named.probability < 0.5
    model, _, outputs = load_supervised(scores)
    assert as_predictions(torch.tensor([[1.0, 1.0]]), outputs).tolist() == [[35.0, 12.0]]
    assert model.head.out_features == 2


def test_draws_are_repeatable_and_of_each_city_alone(folder, checkpoint):
    flags = ("--tiles_per_city", "2", "--seed", "1")
    run(folder, checkpoint, *flags)
    first = (folder.parent / "out/explanations.csv").read_text()
    run(folder, checkpoint, *flags)
    assert (folder.parent / "out/explanations.csv").read_text() == first
    assert first.count("A/B") == 2
    manifest = pd.read_csv(folder / "manifest.csv")
    manifest[manifest.city != "C"].to_csv(folder / "manifest.csv", index=False)
    run(folder, checkpoint, *flags)
    rest = pd.read_csv(folder.parent / "out/explanations.csv").geocode
    assert rest.tolist() == [line.split(",")[0] for line in first.splitlines()[1:] if ",C," not in line]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--geocodes", "t9"), r"--geocodes: 1 are no patches of .* \(t9\)"),
        (("--output_name", "round"), "--output_name round is none of the model's classes; name one of plain, square"),
        (("--label_column", "path", "--output_name", "square", "--geocodes", "t1", "x"), r"1 are no patches of .* \(x\)"),
    ],
)
def test_what_is_wrong_is_one_sentence(folder, checkpoint, flags, says, capsys):
    status, output = run(folder, checkpoint, *flags)
    assert status == 2
    assert re.match(rf"explain: error: .*{says}", capsys.readouterr().err.splitlines()[-1])
    assert not output.exists()


def test_all_that_is_wrong_is_said_before_pixels_are_read(folder, checkpoint, tmp_path, capsys):
    content = torch.load(checkpoint, weights_only=True)
    del content["outputs"], content["sha256"]
    torch.save(content, tmp_path / "unlabelled.pth")
    with rasterio.open(folder / "l8_2020_t0.tif", "r+") as patch:
        patch.descriptions = ("red", "swir")
    assert run(folder, tmp_path / "unlabelled.pth", "--device", "abacus")[0] == 2
    said = capsys.readouterr().err
    assert "2 faults were found" in said
    assert "was trained without labels and predicts nothing" in said and "--device abacus is no device" in said
    assert run(folder, checkpoint)[0] == 2
    assert re.search(r"explain: error: .*nir", capsys.readouterr().err)


def test_patches_on_another_scale_are_refused(folder, checkpoint, capsys):
    for path in folder.glob("*.tif"):
        with rasterio.open(path) as patch:
            profile, values = patch.profile, patch.read()
        with rasterio.open(path, "w", **(profile | {"dtype": "uint16"})) as patch:
            patch.write(values.astype("uint16"))
            patch.descriptions = ("red", "nir")
    assert run(folder, checkpoint)[0] == 2
    assert "hold uint16 but the encoder was trained on uint8; bring them to its units" in capsys.readouterr().err


def test_a_tile_without_a_valid_pixel_is_left_out(folder, checkpoint, capsys):
    for geocode in ("t1", "t2"):
        with rasterio.open(folder / f"l8_2020_{geocode}.tif", "r+") as patch:
            patch.write(np.zeros((2, *patch.shape), np.uint8))
    assert run(folder, checkpoint, "--geocodes", "t0", "t1")[0] == 0
    assert "1 patches without a valid pixel (t1)" in capsys.readouterr().err
    assert run(folder, checkpoint, "--geocodes", "t2", "t1")[0] == 2
    assert "has a valid pixel; name others with --geocodes" in capsys.readouterr().err


def test_a_folder_without_cities_is_one_group(folder, checkpoint, capsys):
    manifest = pd.read_csv(folder / "manifest.csv")
    manifest.drop(columns=["city", "split"]).to_csv(folder / "manifest.csv", index=False)
    status, output = run(folder, checkpoint)
    said = capsys.readouterr().err
    assert status == 0
    assert "has no column city: all tiles are one group" in said and "has no column split" in said
    assert len(pd.read_csv(output / "explanations.csv")) == 6
    assert (output / "contact_all.png").is_file()


def test_tiles_of_another_split_only_are_refused(folder, checkpoint, capsys):
    pd.read_csv(folder / "manifest.csv").assign(split="train").to_csv(folder / "manifest.csv", index=False)
    assert run(folder, checkpoint)[0] == 2
    assert "name the tiles to explain with --geocodes" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [("--layers", "layer5"), ("--layers", "layer1", "layer1"), ("--tiles_per_city", "0"), ("--mask", "all")])
def test_bad_settings_are_refused(flags):
    with pytest.raises(SystemExit):
        parse_config("explain", ExplainConfig, ["--data_path", "p", "--output_dir", "o", *flags])


def test_a_map_without_a_place_is_written_without_one():
    from affine import Affine
    from rasterio.io import MemoryFile

    values = np.array([[1.0, np.nan]], np.float32)
    with MemoryFile(encode_map(values, None, Affine.identity())) as file, file.open() as found:
        assert found.crs is None
        np.testing.assert_array_equal(found.read(1), values)
