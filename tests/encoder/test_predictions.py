from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from imagery2flow.encoder import embeddings
from imagery2flow.encoder.embeddings import make_embeddings
from imagery2flow.encoder.predictions import prediction_table
from imagery2flow.encoder.supervised import Outputs, as_predictions, load_supervised
from imagery2flow.encoder.training import train_encoder
from imagery2flow.imagery.patch_files import load_patches
from imagery2flow.imagery.pyramid import build_pyramid
from imagery2flow.imagery.views import embedding_views
from imagery2flow.run.check_config import CheckConfig
from imagery2flow.run.config import EmbeddingConfig
from imagery2flow.run.errors import InputError
from imagery2flow.run.stage import Ledger, run_stage

from .cities import CITIES, RGB, write_cities
from .conftest import draw_images, small_config, write_patches


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A classifier and a regressor of four cities' tiles after one epoch: their settings."""
    folder = tmp_path_factory.mktemp("models")
    write_cities(folder / "tiles", {"train": 2, "validation": 1, "test": 1})
    pd.DataFrame({"city": ["ALA", "BOG", "DUB"], "overall": [1, 9, 5], "planet": [2.5, None, 4]}).to_csv(folder / "i.csv", index=False)
    paths = {"data_path": str(folder / "tiles"), "model_path": str(folder), "total_epoch": 1, "batch_size": 8}
    targets = {"target_column": ["overall", "planet"], "labels_path": str(folder / "i.csv"), "labels_key": "city"}
    found = {
        "classify": small_config(objective="classify", label_column="city", log="classify", **paths),
        "regress": small_config(objective="regress", log="regress", **targets, **paths),
        "held out": small_config(objective="regress", log="held", held_out_column="city", folds=3, fold=2, **targets, **paths),
    }
    for config in found.values():
        train_encoder(config, Ledger("test", quiet=True))
    return found


def predictions_of(model, output, ledger, data_path=None, **changes):
    paths = {"data_path": str(data_path or model.data_path), "output_path": str(output), "ckpt": model.checkpoint}
    config = EmbeddingConfig(**{**paths, "predict": True, "device": "cpu", **changes})
    make_embeddings(config, ledger)
    return pd.read_csv(output, dtype={"geocode": str}, index_col="geocode") if str(output).endswith(".csv") else pd.read_parquet(output)


@pytest.mark.parametrize("kind", ["classify", "regress"])
def test_each_prediction_is_the_models_for_the_whole_patch_alone(models, kind, tmp_path, ledger):
    table = predictions_of(models[kind], tmp_path / "out.csv", ledger)
    model, record, outputs = load_supervised(Path(models[kind].checkpoint))
    patches = load_patches(models[kind].data_path, [], ledger)
    pyramid = build_pyramid(patches, record.normalisation, record.view_size)
    columns = [f"{'probability' if kind == 'classify' else 'predicted'}_{name}" for name in outputs.names]
    assert table.index.tolist() == sorted(patches.geocodes)
    for position, geocode in enumerate(patches.geocodes):
        with torch.inference_mode():
            expected = as_predictions(model(embedding_views(pyramid, torch.tensor([position]), record.view_size))[1], outputs)[0]
        np.testing.assert_allclose(table.loc[geocode, columns].to_numpy(float), expected.numpy(), atol=1e-4)
    assert ledger.went_out == {"predictions": 16}
    assert not (tmp_path / "out_untrained.csv").exists()


def test_probabilities_have_a_column_per_class_and_sum_to_1(models, tmp_path, ledger):
    table = predictions_of(models["classify"], tmp_path / "out.parquet", ledger)
    assert table.columns.tolist() == ["split", *(f"probability_{city}" for city in CITIES)]
    np.testing.assert_allclose(table.drop(columns="split").sum(axis=1), 1, atol=1e-6)
    assert table.split.tolist() == [geocode.rsplit("-", 2)[1] for geocode in table.index]


def test_targets_stand_beside_the_training_mean_and_unlabelled_tiles_are_unknown(models, tmp_path, ledger):
    table = predictions_of(models["regress"], tmp_path / "out.csv", ledger)
    assert table.columns.tolist() == ["split", "predicted_overall", "predicted_planet", "mean_overall", "mean_planet"]
    assert table.mean_overall.unique() == pytest.approx([5.0]) and table.mean_planet.unique() == pytest.approx([3.25])
    assert set(table.split[table.index.str.startswith("Cairo")]) == {"unknown"}
    assert set(table.split) == {"train", "validation", "test", "unknown"}


def test_all_tiles_of_held_out_cities_are_test_and_no_others(models, tmp_path, ledger):
    table = predictions_of(models["held out"], tmp_path / "out.csv", ledger)
    _, _, outputs = load_supervised(Path(models["held out"].checkpoint))
    city = pd.Series(table.index.str.rsplit("-", n=2).str[0], index=table.index)
    assert len(outputs.held_out) == 1
    assert ((table.split == "test") == city.isin(outputs.held_out)).all()


def test_tiles_that_the_model_never_met_are_unknown(models, tmp_path, ledger):
    folder = write_patches(tmp_path / "other", draw_images(3, dtype="uint8"), RGB)
    assert predictions_of(models["classify"], tmp_path / "out.csv", ledger, folder).split.tolist() == ["unknown"] * 3


def test_a_model_without_labels_is_refused(trained, tmp_path, ledger):
    with pytest.raises(InputError, match=r"trained without labels and predicts nothing; .*--objective classify or regress"):
        predictions_of(trained, tmp_path / "out.csv", ledger)


def test_vectors_of_a_model_with_labels_are_its_backbones(models, tmp_path, ledger):
    table = predictions_of(models["classify"], tmp_path / "out.csv", ledger, predict=False)
    assert table.shape == (16, 512 + 6)
    model, _, _ = load_supervised(Path(models["classify"].checkpoint))
    predictions = predictions_of(models["classify"], tmp_path / "predictions.csv", ledger).drop(columns="split")
    with torch.inference_mode():
        expected = torch.softmax(model.head(torch.from_numpy(table.iloc[:, :512].to_numpy(np.float32))), dim=1)
    np.testing.assert_allclose(predictions, expected, atol=1e-4)


def test_a_killed_run_goes_on_with_the_other_chunks_and_workers_change_nothing(models, tmp_path, ledger, monkeypatch):
    whole = predictions_of(models["regress"], tmp_path / "whole.csv", ledger)
    monkeypatch.setattr(embeddings, "PIXELS_PER_CHUNK", 5 * 24 * 24)
    monkeypatch.setattr(embeddings, "PATCHES_PER_CHUNK", 5)
    embed_and_keep, done = embeddings.embed_and_keep, []

    def killed(job, chunk):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(chunk)
        return embed_and_keep(job, chunk)

    monkeypatch.setattr(embeddings, "embed_and_keep", killed)
    with pytest.raises(KeyboardInterrupt):
        predictions_of(models["regress"], tmp_path / "again.csv", ledger)
    monkeypatch.setattr(embeddings, "embed_and_keep", embed_and_keep)
    again = predictions_of(models["regress"], tmp_path / "again.csv", ledger)
    assert any("2 of 4 chunks of patches were done" in note for note in ledger.notes)
    pd.testing.assert_frame_equal(again, whole, atol=1e-5)
    pd.testing.assert_frame_equal(predictions_of(models["regress"], tmp_path / "two.csv", ledger, workers=2), whole, atol=1e-5)


def test_columns_by_hand():
    outputs = Outputs("targets", ("split", "x"), (1.0, 2.0), (3.0, 4.0))
    table = prediction_table(["a", "b"], np.array([[5.0, 6.0], [7.0, 8.0]]), outputs, {"train": ["b"], "test": []})
    assert table.to_dict("list") == {
        "split": ["unknown", "train"],
        "predicted_split": [5.0, 7.0],
        "predicted_x": [6.0, 8.0],
        "mean_split": [1.0, 1.0],
        "mean_x": [2.0, 2.0],
    }


def test_predictions_are_not_taken_for_features_of_a_region(models, tmp_path):
    (tmp_path / "M1").mkdir()
    config = EmbeddingConfig(
        data_path=models["classify"].data_path, output_path=str(tmp_path / "M1/a.csv"), ckpt=models["classify"].checkpoint, device="cpu"
    )
    for settings in (config, replace(config, output_path=str(tmp_path / "M1/b.csv"), predict=True)):
        assert run_stage("get_img_embedding", settings, make_embeddings) == 0
    assert CheckConfig(node_feats_path=[], region=["M1"], data_root=str(tmp_path)).feature_paths("M1") == [str(tmp_path / "M1/a.csv")]
