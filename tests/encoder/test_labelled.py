import dataclasses
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from imagery2flow.encoder import checkpoint, embeddings, supervised
from imagery2flow.encoder import trainer as trainer_module
from imagery2flow.encoder.checkpoint import best_path, load_checkpoint, load_encoder, previous_path
from imagery2flow.encoder.embeddings import make_embeddings
from imagery2flow.encoder.labelled import Classification, Regression, make_objective, r_squared
from imagery2flow.encoder.labels import Labels
from imagery2flow.encoder.supervised import Outputs, load_supervised
from imagery2flow.encoder.trainer import Trainer
from imagery2flow.encoder.training import train_encoder
from imagery2flow.imagery.views import embedding_views
from imagery2flow.run.config import EmbeddingConfig, ViewConfig
from imagery2flow.run.device import make_fabric
from imagery2flow.run.errors import InputError
from imagery2flow.run.stage import Ledger, Terminated

from .cities import CITIES, write_cities
from .conftest import as_patch_set, build_tiny_backbone, draw_images, small_config
from .test_trainer import StopAfter, assert_equal_runs, linear_backbone

FABRIC, _ = make_fabric("cpu", "fp32")
PLAIN = ViewConfig(crop_min_share=1.0, flip=False, turn=False, shift=0.0, gain=0.0)
SPLIT = {"train": 8, "validation": 3}


def classes_of(names, split=None):
    """Labels of patches 00000, 00001, ... with these classes."""
    ids = [f"{number:05d}" for number in range(len(names))]
    split = pd.Series(split or ["train"] * len(names), index=ids)
    values = pd.DataFrame({"city": names}, index=ids)
    return Labels(Outputs("classes", tuple(sorted(set(names))), column="city"), split, values, values.city)


def targets_of(table, split=None, groups=None, target_scale=None):
    """Labels with these targets [num_patches, num_targets], scaled by all of them."""
    table = np.array(table, dtype=float)
    ids = [f"{number:05d}" for number in range(len(table))]
    names = tuple(f"t{number}" for number in range(table.shape[1]))
    std = np.nanstd(table, axis=0)
    statistics = (tuple(np.nanmean(table, axis=0).tolist()), tuple(np.where(std > 0, std, 1).tolist()))
    outputs = Outputs("targets", names, *statistics, target_scale=target_scale)
    groups = None if groups is None else pd.Series(groups, index=ids)
    return Labels(outputs, pd.Series(split or ["train"] * len(table), index=ids), pd.DataFrame(table, ids, names), groups)


def objective_of(labels, validation=(), **changes):
    kind = "classify" if labels.outputs.kind == "classes" else "regress"
    settings = {"label_column": "city"} if kind == "classify" else {"target_column": list(labels.outputs.names)}
    config = small_config(objective=kind, **{**settings, **changes})
    cls = Classification if kind == "classify" else Regression
    return cls(config, labels, tuple(labels.ids("train")), tuple(validation), FABRIC)


def make_trainer(folder, labels, **changes):
    """A run on 11 small patches, of which the labels say what is for training and what for validation."""
    images = draw_images(len(labels.split))
    kind = "classify" if labels.outputs.kind == "classes" else "regress"
    settings = {"label_column": "city"} if kind == "classify" else {"target_column": list(labels.outputs.names)}
    config = small_config(model_path=str(folder), objective=kind, **{**settings, **changes})
    patches = as_patch_set({name: images[name] for name in labels.ids("train")})
    validation = as_patch_set({name: images[name] for name in labels.ids("validation")}) if labels.ids("validation") else None
    objective = make_objective(config, labels, patches, validation, FABRIC)
    return Trainer(config, patches, 16, FABRIC, Ledger("test", quiet=True), objective, validation)


ELEVEN = ["train"] * 8 + ["validation"] * 3
NAMES = list("ABABBBBBABB")
NUMBERS = [[number, math.nan if number % 3 else number**2] for number in range(11)]


def labels_of(kind):
    return classes_of(NAMES, ELEVEN) if kind == "classify" else targets_of(NUMBERS, ELEVEN)


def test_cross_entropy_and_accuracy_by_hand():
    objective = objective_of(classes_of(["A", "B", "B"]))
    outputs = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    loss, others = objective.loss(outputs, outputs, torch.arange(3), torch.arange(3))
    by_hand = [-math.log(math.e / (math.e + 1)), -math.log(math.e**2 / (math.e**2 + 1)), -math.log(1 / (math.e**3 + 1))]
    assert loss.item() == pytest.approx(sum(by_hand) / 3)
    assert others.tolist() == pytest.approx([2 / 3])
    parts = [objective.loss(outputs[part], outputs[part], part, torch.arange(3)) for part in (torch.tensor([0]), torch.tensor([1, 2]))]
    assert sum(part[0] for part in parts).item() == pytest.approx(loss.item())


def test_squared_error_is_averaged_over_the_targets_that_are_known():
    labels = targets_of([[0.0, 10.0], [2.0, math.nan], [4.0, 30.0]])
    objective = objective_of(labels)
    outputs = torch.tensor([[0.5, 0.0], [0.0, 100.0], [1.0, 1.0]], requires_grad=True)
    loss, others = objective.loss(outputs, outputs, torch.arange(3), torch.arange(3))
    std = math.sqrt(8 / 3)
    errors = [0.5 - (0 - 2) / std, 0.0 - (10 - 20) / 10, 0.0 - 0.0, 1 - (4 - 2) / std, 1 - (30 - 20) / 10]
    assert loss.item() == pytest.approx(sum(error**2 for error in errors) / 5)
    assert others.shape == (0,)
    assert objective.weight(torch.arange(3)) == 5
    loss.backward()
    assert outputs.grad[1, 1] == 0 and outputs.grad.isfinite().all()


def test_balanced_sampling_draws_each_class_equally_often():
    names = ["A"] * 85 + ["B"] * 10 + ["C"] * 4 + ["D"]
    objective = objective_of(classes_of(names))
    drawn = torch.cat([objective.order(epoch) for epoch in range(200)])
    assert len(objective.order(0)) == 100
    shares = pd.Series(names)[drawn.numpy()].value_counts(normalize=True)
    assert shares.to_numpy() == pytest.approx(np.full(4, 0.25), abs=4 * math.sqrt(0.25 * 0.75 / 20000))
    within = np.bincount(drawn[drawn < 85].numpy(), minlength=85)
    assert within.std() < 2 * math.sqrt(within.mean())  # Poisson: all patches of a class alike
    assert torch.equal(objective.order(3), objective.order(3)) and not torch.equal(objective.order(3), objective.order(4))


def test_targets_are_balanced_by_the_groups_that_are_named_or_else_not_at_all():
    table, groups = np.arange(10.0)[:, None], ["A"] * 9 + ["B"]
    drawn = torch.cat([objective_of(targets_of(table, groups=groups), label_column="city").order(epoch) for epoch in range(300)])
    assert (drawn == 9).double().mean().item() == pytest.approx(0.5, abs=0.04)
    for objective in (objective_of(targets_of(table)), objective_of(targets_of(table, groups=groups), label_column="city", balanced=False)):
        assert sorted(objective.order(0).tolist()) == list(range(10))


def test_validation_measures_by_hand():
    names, ids = ["A", "B", "B"], ("00000", "00001", "00002")
    objective = objective_of(classes_of(names), ids)
    outputs = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    found = objective.judge(outputs)
    assert found == {
        "validation_loss": pytest.approx((math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2)) + math.log(1 + math.exp(3))) / 3),
        "validation_accuracy": pytest.approx(2 / 3),
    }
    labels = targets_of([[0.0, 5.0, 1.0], [2.0, 5.0, math.nan], [4.0, 5.0, 3.0]])
    objective = objective_of(labels, ids)
    std = math.sqrt(8 / 3)
    outputs = torch.tensor([[-2 / std, 0.0, 0.0], [0.0, 0.0, 9.0], [0.0, 1.0, 0.0]])
    found = objective.judge(outputs)
    # R2 of the first is 1 - 4 / 8, of the third 1 - 2 / 2; the second is constant and has none.
    assert found["validation_r2"] == pytest.approx((0.5 + 0.0) / 2)
    assert found["validation_loss"] == pytest.approx(((2 / std) ** 2 + 1 + 1 + 1) / 8)


def test_r_squared_of_the_mean_is_0_and_of_a_constant_is_none():
    truth = torch.tensor([1.0, 2.0, 6.0])
    assert r_squared(truth, truth.mean() - truth) == pytest.approx(0.0)
    assert r_squared(truth, torch.zeros(3)) == 1.0
    assert math.isnan(r_squared(torch.ones(3), torch.zeros(3))) and math.isnan(r_squared(torch.ones(1), torch.zeros(1)))


@pytest.mark.parametrize("kind", ["classify", "regress"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(tmp_path, tiny_backbone, kind, steps):
    whole = make_trainer(tmp_path / "whole", labels_of(kind))
    whole.run(StopAfter())
    with pytest.raises(Terminated):
        make_trainer(tmp_path / "stopped", labels_of(kind)).run(StopAfter(steps))
    resumed = make_trainer(tmp_path / "stopped", labels_of(kind))
    resumed.resume()
    resumed.run(StopAfter())
    assert_equal_runs(whole.path, resumed.path)
    assert_equal_runs(previous_path(whole.path), previous_path(resumed.path))


@pytest.mark.parametrize("kind", ["classify", "regress"])
@pytest.mark.parametrize("parts", [2, 3])
def test_a_batch_in_parts_has_the_loss_and_the_gradient_of_the_whole(tmp_path, monkeypatch, kind, parts):
    monkeypatch.setattr(trainer_module, "build_backbone", linear_backbone)
    found = []
    for accumulate in (1, parts):
        trainer = make_trainer(tmp_path / str(accumulate), labels_of(kind), batch_size=8, total_epoch=1, accumulate=accumulate)
        monkeypatch.setattr(trainer.optimizer, "step", lambda: None)
        if kind == "regress":  # its head of zeros passes nothing back
            nn.init.constant_(trainer.model.head.weight, 0.1)
        trainer.run(StopAfter())
        found.append([parameter.grad.clone() for parameter in trainer.model.parameters()])
        assert any(gradient.abs().max() > 1e-4 for gradient in found[-1][:1])
        found[-1].append(torch.tensor([trainer.history[0][name] for name in trainer.objective.measures]))
    for whole, divided in zip(*found, strict=True):
        torch.testing.assert_close(divided, whole, rtol=1e-4, atol=1e-6)


def test_the_loss_of_an_epoch_is_the_mean_over_its_patches(tmp_path, monkeypatch):
    """Also where batches differ in size: 3, 3, 2 of eight."""
    monkeypatch.setattr(trainer_module, "build_backbone", linear_backbone)
    trainer = make_trainer(tmp_path, labels_of("classify"), batch_size=3, total_epoch=1, balanced=False, views=PLAIN)
    monkeypatch.setattr(trainer.optimizer, "step", lambda: None)
    trainer.run(StopAfter())
    with torch.no_grad():
        outputs = trainer.model(embedding_views(trainer.loader.pyramid, torch.arange(8), 16))[1]
    expected = nn.functional.cross_entropy(outputs, trainer.objective.truth)
    assert trainer.history[0]["loss"] == pytest.approx(expected.item(), rel=1e-4)
    assert trainer.history[0]["accuracy"] == pytest.approx((outputs.argmax(dim=1) == trainer.objective.truth).float().mean().item())


def test_validation_sees_whole_upright_patches_and_leaves_the_model_as_it_was(tmp_path, tiny_backbone):
    trainer = make_trainer(tmp_path, labels_of("classify"))
    trainer.run(StopAfter())
    model = trainer.model.module
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = trainer.validation.outputs(model)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    model.eval()
    for position in range(3):
        with torch.no_grad():
            alone = model(embedding_views(trainer.validation.pyramid, torch.tensor([position]), 16))[1][0]
        torch.testing.assert_close(found[position], alone, atol=1e-5, rtol=1e-5)
    assert trainer.objective.judge(found)["validation_loss"] == trainer.history[-1]["validation_loss"]
    assert set(trainer.history[0]) == {"epoch", "lr", "loss", "accuracy", "validation_loss", "validation_accuracy"}


def test_validation_does_not_change_training(tmp_path, tiny_backbone):
    """Neither its weights nor its random numbers."""
    labels = labels_of("classify")
    alone = dataclasses.replace(labels, split=labels.split[:8], values=labels.values[:8], groups=labels.groups[:8])
    weights = []
    for name, given in (("with", labels), ("without", alone)):
        trainer = make_trainer(tmp_path / name, given)
        trainer.run(StopAfter())
        weights.append(trainer.model.module.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_best_checkpoint_is_that_of_the_lowest_validation_loss(tmp_path, tiny_backbone, monkeypatch):
    trainer = make_trainer(tmp_path, labels_of("classify"), total_epoch=4)
    losses = iter([0.9, 0.2, 0.5, 0.4])
    monkeypatch.setattr(trainer.objective, "judge", lambda outputs: {"validation_loss": next(losses), "validation_accuracy": 0.5})
    trainer.run(StopAfter())
    assert load_checkpoint(best_path(trainer.path))["epoch"] == 2


def test_a_run_with_other_labels_is_not_resumed(tmp_path, tiny_backbone):
    make_trainer(tmp_path, labels_of("classify")).run(StopAfter())
    with pytest.raises(InputError, match=r"labels \w{12} there, \w{12} now"):
        make_trainer(tmp_path, classes_of(list("BBABBBBBABB"), ELEVEN)).resume()


@pytest.mark.parametrize("target_scale", [None, 7.0])
def test_a_constant_target_is_predicted_exactly(tmp_path, tiny_backbone, target_scale):
    trainer = make_trainer(tmp_path, targets_of([[35.0]] * 11, ELEVEN, target_scale=target_scale), target_scale=target_scale)
    trainer.run(StopAfter())
    raw = trainer.validation.outputs(trainer.model.module)
    assert (raw * trainer.objective.labels.outputs.scale[0] + trainer.objective.labels.outputs.offset[0]).tolist() == [[35.0]] * 3
    assert math.isnan(trainer.history[-1]["validation_r2"])


def test_one_model_learns_several_targets_of_which_some_are_missing(tmp_path, tiny_backbone):
    trainer = make_trainer(tmp_path, labels_of("regress"), total_epoch=15, lr=0.03, batch_size=8)
    trainer.run(StopAfter())
    assert trainer.model.head.out_features == 2
    assert trainer.history[-1]["loss"] < 0.9 * trainer.history[0]["loss"]
    assert load_checkpoint(trainer.path)["outputs"]["names"] == ["t0", "t1"]


def test_planted_textures_are_told_apart_on_other_tiles(tmp_path, ledger):
    """ResNet-18, views of 32 px, 4 cities with 32 tiles each."""
    write_cities(tmp_path / "tiles", {"train": 32, "validation": 6, "test": 12})
    settings = {"objective": "classify", "label_column": "city", "total_epoch": 6, "batch_size": 16, "view_size": 32, "schedule": []}
    views = ViewConfig(crop_min_share=1.0, turn=False, shift=0.05, gain=0.05)  # a transposed stripe is another city's
    config = small_config(data_path=str(tmp_path / "tiles"), model_path=str(tmp_path), views=views, **settings)
    train_encoder(config, ledger)
    assert ledger.came_in == {"patches": 128, "validation patches": 24}
    output = tmp_path / "predictions.csv"
    best = str(best_path(Path(config.checkpoint)))
    make_embeddings(EmbeddingConfig(data_path=config.data_path, output_path=str(output), ckpt=best, predict=True, device="cpu"), ledger)
    table = pd.read_csv(output, dtype={"geocode": str}).set_index("geocode")
    test = table[table.split == "test"].drop(columns="split")
    assert len(test) == 48
    np.testing.assert_allclose(test.sum(axis=1), 1, atol=1e-5)
    truth = [f"probability_{geocode.rsplit('-', 2)[0]}" for geocode in test.index]
    assert (test.idxmax(axis=1) == truth).mean() > 0.95
    _, record, outputs = load_supervised(Path(best))
    assert outputs.names == CITIES and outputs.column == "city"
    assert load_encoder(Path(best))[1] == record  # its vectors can be had too


def test_a_number_drawn_for_each_city_is_not_read_from_cities_that_were_never_seen(tmp_path, tiny_backbone, monkeypatch, ledger):
    """Leave-cities-out: no better than the mean predictor; on other tiles of the same cities the same model is far better."""
    for module in (supervised, checkpoint, embeddings):
        monkeypatch.setattr(module, "build_backbone", build_tiny_backbone)
    random = np.random.default_rng(3)
    cities = [f"City{number:02d}" for number in range(12)]
    colours = {city: random.uniform(60, 190, (3, 1, 1)) for city in cities}
    draw = lambda city, random: np.clip(colours[city] + random.normal(0, 8, (3, 12, 12)), 1, 255).astype("uint8")  # noqa: E731
    write_cities(tmp_path / "tiles", {"train": 6, "validation": 3, "test": 3}, cities, draw)
    indexes = pd.DataFrame({"city": cities, "overall": random.permutation(12) * 1.0})
    indexes.to_csv(tmp_path / "indexes.csv", index=False)
    settings = {"objective": "regress", "target_column": ["overall"], "labels_path": str(tmp_path / "indexes.csv"), "labels_key": "city"}
    settings |= {"data_path": str(tmp_path / "tiles"), "model_path": str(tmp_path), "total_epoch": 25, "batch_size": 12, "lr": 0.03}
    settings |= {"views": PLAIN, "schedule": []}
    tables = {"within": predict(small_config(log="within", **settings), tmp_path, ledger)}
    folds = [
        predict(small_config(log=f"fold{fold}", held_out_column="city", folds=3, fold=fold, **settings), tmp_path, ledger)
        for fold in (1, 2, 3)
    ]
    tables["without"] = pd.concat([table[table.split == "test"] for table in folds])
    assert not tables["without"].index.has_duplicates and len(tables["without"]) == 12 * 12
    scores = {}
    truth = indexes.set_index("city").overall
    for name, table in tables.items():
        test = table[table.split == "test"]
        known = truth[[geocode.split("-")[0] for geocode in test.index]].to_numpy()
        errors = {kind: ((test[f"{kind}_overall"] - known) ** 2).mean() for kind in ("predicted", "mean")}
        scores[name] = 1 - errors["predicted"] / errors["mean"]
    assert scores["within"] > 0.5
    assert scores["without"] < 0.2


def predict(config, folder, ledger):
    train_encoder(config, ledger)
    output = str(folder / f"{config.log}.csv")
    make_embeddings(
        EmbeddingConfig(data_path=config.data_path, output_path=output, ckpt=config.checkpoint, predict=True, device="cpu"), ledger
    )
    return pd.read_csv(output, dtype={"geocode": str}).set_index("geocode")
