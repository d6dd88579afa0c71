"""The map of a scene: rasters that lie where the windows lie, for every kind of checkpoint, and means over districts."""

import json

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import torch

from imagery2flow.__main__ import main
from imagery2flow.encoder.backbones import build_backbone
from imagery2flow.encoder.checkpoint import save_checkpoint
from imagery2flow.encoder.objectives import SimCLR
from imagery2flow.encoder.supervised import Outputs, Supervised
from imagery2flow.imagery.patchset import Normalisation
from imagery2flow.run.config import EncoderConfig
from tests.imagery.helpers import GSD_M, LEFT, TOP, noise, rectangle

VIEW = 16
NORMALISATION = Normalisation(("band1", "band2"), (100.0, 100.0), (50.0, 50.0), (255.0, 255.0), "uint8")


def save_model(path, outputs: Outputs | None, weight: float = 1.0, bias: float = 0.0) -> None:
    """A checkpoint with random weights; the head's are multiplied, and its bias is set for the first output."""
    backbone, dim = build_backbone("resnet18", 2, VIEW, seed=1)
    model = SimCLR(backbone, dim, 8, seed=2) if outputs is None else Supervised(backbone, dim, len(outputs.names), seed=2)
    if isinstance(model, Supervised):
        with torch.no_grad():
            model.head.weight *= weight
            model.head.bias.zero_()[0] = bias
    content = {"epoch": 1, "step": 0, "sums": {}, "history": [], "view_size": VIEW}
    content |= {} if outputs is None else {"outputs": outputs.as_plain()}
    config = EncoderConfig(data_path="patches", total_epoch=1)
    save_checkpoint(path, model, torch.optim.Adam(model.parameters()), config, content, NORMALISATION)


def run_map(tmp_path, scene: str, **flags) -> int:
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    fixed = [
        "--size",
        "8",
        "--stride",
        "4",
        "--device",
        "cpu",
        "--ckpt",
        str(tmp_path / "model.pth"),
        "--output_path",
        str(tmp_path / "map.tif"),
    ]
    return main(["map", "--scene_path", scene, *fixed, *words])


def test_a_constant_score_gives_a_constant_map_aligned_to_the_pixel(tmp_path, write_scene):
    save_model(tmp_path / "model.pth", Outputs("targets", ("overall",), (40.0,), (10.0,)), weight=0.0, bias=0.5)
    assert run_map(tmp_path, write_scene(noise(2, 32, 40, "uint8"))) == 0
    with rasterio.open(tmp_path / "map.tif") as found:
        assert np.allclose(found.read(), 45.0)
        assert found.descriptions == ("predicted_overall",)
        assert (found.count, found.height, found.width) == (1, 7, 9)
        assert found.xy(0, 0) == (LEFT + 4 * GSD_M, TOP - 4 * GSD_M)  # the centre of the first window
        assert found.xy(6, 8) == (LEFT + 36 * GSD_M, TOP - 28 * GSD_M)
        assert found.crs.to_epsg() == 32618
    assert (tmp_path / "map.png").stat().st_size > 0
    assert json.loads((tmp_path / "map.tif.run.json").read_text())["ledger"]["out"] == {"windows with a value": 63, "cells": 63}


def test_classes_are_mapped_with_their_probabilities_and_names(tmp_path, write_scene):
    save_model(tmp_path / "model.pth", Outputs("classes", ("Almaty (ALA)", "Bonn"), column="city"), weight=0.0, bias=1.0)
    values = noise(2, 32, 40, "uint8")
    values[:, :, :12] = 0
    assert run_map(tmp_path, write_scene(values, nodata=0), geometry="blend") == 0
    with rasterio.open(tmp_path / "map.tif") as found, rasterio.open(tmp_path / "map_class.tif") as classes:
        layers = found.read()
        assert found.descriptions == ("probability_Almaty (ALA)", "probability_Bonn")
        assert np.isnan(layers[:, :, :3]).all()
        assert np.allclose(layers[0, :, 3:], 1 / (1 + np.exp(-1)), atol=1e-6)
        assert np.allclose(layers[:, :, 3:].sum(axis=0), 1, atol=1e-6)
        assert classes.nodata == 65535
        assert set(classes.read(1)[:, 3:].ravel()) == {0}
        assert set(classes.read(1)[:, :3].ravel()) == {65535}
        assert classes.tags()["class_1"] == "Bonn"
        assert found.transform == classes.transform


def test_an_encoder_without_labels_is_mapped_by_its_components(tmp_path, write_scene):
    save_model(tmp_path / "model.pth", None)
    assert run_map(tmp_path, write_scene(noise(2, 32, 40, "uint8"))) == 0
    with rasterio.open(tmp_path / "map.tif") as found:
        assert found.descriptions == ("component_1", "component_2", "component_3")
        layers = found.read()
    assert (layers.min(axis=(1, 2)).tolist(), layers.max(axis=(1, 2)).tolist()) == ([0, 0, 0], [1, 1, 1])


def test_the_map_follows_what_the_scene_shows_to_the_cell(tmp_path, write_scene):
    save_model(tmp_path / "model.pth", Outputs("targets", ("index",), (0.0,), (1.0,)))
    values = np.full((2, 64, 64), 60, "uint8")
    values[:, 16:32, 40:56] = 200
    assert run_map(tmp_path, write_scene(values)) == 0
    with rasterio.open(tmp_path / "map.tif") as found:
        layer = found.read(1)
    changed = np.abs(layer - layer[0, 0]) > 1e-4 * np.abs(layer - layer[0, 0]).max()
    rows, columns = np.nonzero(changed)
    # Windows of 8 px every 4 px that touch rows 16 to 32 and columns 40 to 56.
    assert (set(rows), set(columns), len(rows)) == (set(range(3, 8)), set(range(9, 14)), 25)


def test_means_over_districts_weigh_cells_by_the_share_inside(tmp_path, write_scene):
    save_model(tmp_path / "model.pth", Outputs("targets", ("a", "b"), (0.0, 0.0), (1.0, 1.0)))
    outlines = {"007": rectangle(4, 4, 6, 4), "outside": rectangle(100, 100, 4, 4)}
    units = gpd.GeoDataFrame({"GEOID20": list(outlines)}, geometry=list(outlines.values()), crs=32618).to_crs(4326)
    units.to_file(tmp_path / "districts.gpkg")
    assert run_map(tmp_path, write_scene(noise(2, 32, 40, "uint8")), geometry="blend", districts_path=tmp_path / "districts.gpkg") == 0
    table = pd.read_csv(tmp_path / "map_districts.csv", dtype={"geocode": str}).set_index("geocode")
    with rasterio.open(tmp_path / "map.tif") as found:
        layers = found.read().astype(float)
    # Columns 4 to 10 and rows 4 to 8 are one whole cell and half of the one beside it.
    expected = (layers[:, 1, 1] + 0.5 * layers[:, 1, 2]) / 1.5
    assert table.loc["007", ["predicted_a", "predicted_b"]].to_numpy(float) == pytest.approx(expected, rel=1e-4)
    assert table.cells.to_dict() == pytest.approx({"007": 1.5, "outside": 0.0}, rel=1e-4)
    assert table.loc["outside", ["predicted_a", "predicted_b"]].isna().all()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"ckpt": "none.pth"}, "encoder checkpoint none.pth is neither here nor in --model_path ckpt"),
        ({"size": 99}, "--size 99 is larger than scene"),
        ({"districts_path": "none.gpkg"}, "none.gpkg"),
        ({"stride": 9}, "--stride 9 must be above 0 and at most --size"),
        ({"output_path": "map.jpg"}, "--output_path map.jpg must be a file name that ends in .tif"),
    ],
)
def test_what_cannot_be_mapped_is_refused_in_a_sentence(tmp_path, write_scene, capsys, flags, sentence):
    save_model(tmp_path / "model.pth", None)
    try:
        status = run_map(tmp_path, write_scene(noise(2, 32, 40, "uint8")), **flags)
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    assert sentence in capsys.readouterr().err


def test_a_scene_of_other_bands_or_type_is_refused(tmp_path, write_scene, capsys):
    save_model(tmp_path / "model.pth", None)
    assert run_map(tmp_path, write_scene(noise(2, 32, 40, "uint16"))) == 2
    assert "hold uint16 but the encoder was trained on uint8" in capsys.readouterr().err
    assert run_map(tmp_path, write_scene(noise(1, 32, 40, "uint8"))) == 2
    assert "has no band2" in capsys.readouterr().err


def test_an_image_without_a_crs_is_mapped_in_its_own_pixels(tmp_path, write_scene):
    save_model(tmp_path / "model.pth", None)
    assert run_map(tmp_path, write_scene(noise(2, 32, 40, "uint8"), crs=None)) == 0
    with rasterio.open(tmp_path / "map.tif") as found:
        assert found.crs is None
