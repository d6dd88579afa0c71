import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from imagery2flow.flows import fitting
from imagery2flow.flows.epochs import learning_rate
from imagery2flow.flows.fitting import NetworkFitting
from imagery2flow.flows.sampling import PairSample, every_pair
from imagery2flow.flows.scaling import fit_scaling
from imagery2flow.run.errors import InputError

from .conftest import MODEL, make_region, read, train, training_config


def test_the_kept_epoch_is_the_best_of_the_validation_scores(town, monkeypatch):
    seen = []
    original = NetworkFitting.evaluate

    def record(fitting):
        scores = original(fitting)
        seen.append((scores["mae"], {name: tensor.clone() for name, tensor in fitting.model.state_dict().items()}))
        return scores

    monkeypatch.setattr(NetworkFitting, "evaluate", record)
    train(town, monkeypatch, select_by="mae", lr=0.05, max_epochs=8, patience=8)
    history = read(town / MODEL / "training.csv")
    assert history.epoch.tolist() == list(range(1, 9))
    assert history.valid_mae.tolist() == [mae for mae, _ in seen]
    best = min(seen, key=lambda pair: pair[0])[1]
    kept = torch.load(town / MODEL / "od_model.pt", weights_only=True)["model"]
    assert all(torch.equal(kept[name], best[name]) for name in best)


def test_training_stops_when_patience_is_spent(town, monkeypatch):
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.2, 0.1])
    monkeypatch.setattr(NetworkFitting, "evaluate", lambda _: {"cpc": next(scores), "rmse": 1.0, "mae": 1.0})
    train(town, monkeypatch, max_epochs=100, patience=3)
    assert read(town / MODEL / "training.csv").epoch.tolist() == [1, 2, 3, 4, 5]  # the best is the second


def test_the_last_epoch_is_looked_at_even_between_two_evaluations(town, monkeypatch):
    train(town, monkeypatch, max_epochs=3, evaluate_every=2)
    assert read(town / MODEL / "training.csv").epoch.tolist() == [2, 3]
    train(town, monkeypatch, max_epochs=1, evaluate_every=5)
    assert read(town / MODEL / "training.csv").epoch.tolist() == [1]


def test_a_training_that_diverges_is_refused_and_leaves_no_model(town, monkeypatch):
    with pytest.raises(InputError, match="--lr"):
        train(town, monkeypatch, lr=1e25, warmup_epochs=0)
    assert not (town / MODEL / "od_model.pt").exists()


@pytest.mark.parametrize("loss", ["poisson", "multinomial", "balanced_mse"])
def test_training_lowers_the_loss_and_beats_the_constant(town, monkeypatch, loss):
    train(town, monkeypatch, loss=loss, universe="positive", max_epochs=60, lr=0.02, embedding_size=16, patience=60)
    history = read(town / MODEL / "training.csv")
    assert history.valid_cpc.max() > history.valid_cpc[0]
    scores = json.loads((town / MODEL / "metrics.json").read_text())
    for decoder in ("bilinear", "lightgbm"):
        assert scores[decoder]["positive"]["cpc"] > scores["constant"]["positive"]["cpc"] + 0.05


def test_sigma_learns_at_its_own_rate(town, monkeypatch):
    train(town, monkeypatch, loss="balanced_mse", lr=1e-6, sigma_lr=0.05, max_epochs=2)
    fast = read(town / MODEL / "training.csv").sigma
    train(town, monkeypatch, loss="balanced_mse", lr=1e-6, sigma_lr=1e-6, max_epochs=2)
    slow = read(town / MODEL / "training.csv").sigma
    flows, split = (
        read(town / name).set_index(key) for name, key in (("data/town/flows.csv", "h_geocode"), (MODEL / "split.csv", "geocode"))
    )
    counts = flows["count"][(split.split[flows.index] == "train").to_numpy() & (flows["count"] > 10).to_numpy()]
    assert slow.iloc[-1] == pytest.approx(np.log2(counts).std(ddof=0), rel=1e-4)  # it begins at the deviation of the log2 flows
    assert abs(fast.iloc[-1] - slow.iloc[-1]) > 0.05


def test_learning_rate_by_hand():
    config = training_config(lr=1.0, warmup_epochs=5, decay_epochs=40)
    expected = {0: 0.1, 1: 0.28, 4: 0.82, 5: 1.0, 39: 1.0, 40: 0.1, 79: 0.1, 80: 0.01}
    assert {epoch: learning_rate(config, epoch) for epoch in expected} == pytest.approx(expected)
    assert learning_rate(training_config(lr=1.0, warmup_epochs=0), 1000) == 1.0


def test_sums_over_neighbours_are_deterministic_while_it_trains_and_only_then(town, monkeypatch):
    seen = []
    original = NetworkFitting.run_epoch
    monkeypatch.setattr(
        NetworkFitting, "run_epoch", lambda *all_: (seen.append(torch.are_deterministic_algorithms_enabled()), original(*all_))[1]
    )
    train(town, monkeypatch, max_epochs=1)
    assert seen == [True]
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_published_network_has_no_dropout_and_no_term_beside_the_bilinear(town, monkeypatch):
    ours = {"dropout": 0.0, "unit_terms": False, "pair_distance": False, "area_feature": False, "num_components": 0, "context_m": []}
    train(town, monkeypatch, loss="balanced_mse", **ours)
    weights = torch.load(town / MODEL / "od_model.pt", weights_only=True)["model"]
    assert {name.split(".")[0] for name in weights} == {"layers", "interaction", "offset"}


def test_gradients_are_clipped(town, monkeypatch):
    def weights(**changes):
        train(town, monkeypatch, max_epochs=1, weight_decay=0.0, **changes)
        return torch.load(town / MODEL / "od_model.pt", weights_only=True)["model"]["interaction"]

    at_rest, clipped, free = weights(lr=1e-12), weights(grad_norm=1e-12), weights()
    torch.testing.assert_close(clipped, at_rest, atol=1e-5, rtol=0)  # below Adam's epsilon of 1e-8 nothing moves
    assert (free - at_rest).abs().max() > 1e-3


def fitting_of(loss, batch_size=64):
    """A run that has not begun."""
    region, config = make_region(), training_config(loss=loss, batch_size=batch_size)
    sample = every_pair(region.flows)
    return NetworkFitting(config, region, fit_scaling(region, True, 0), sample, sample, torch.device("cpu"))


@pytest.mark.parametrize("loss", ["poisson", "multinomial"])
@pytest.mark.parametrize("batch_size", [7, 64, 10_000])
def test_each_pair_is_in_one_batch_of_an_epoch(loss, batch_size):
    fitting = fitting_of(loss, batch_size)
    batches = list(fitting.batches(torch.Generator().manual_seed(0)))
    assert sorted(torch.cat(batches).tolist()) == list(range(len(fitting.train)))
    assert min(map(len, batches)) > 0
    if loss == "poisson":
        assert max(map(len, batches)) <= batch_size


@pytest.mark.parametrize("batch_size", [7, 64, 200])
def test_the_multinomial_loss_sees_whole_origins(batch_size):
    fitting = fitting_of("multinomial", batch_size)
    orders = []
    for seed in (0, 1):
        batches = list(fitting.batches(torch.Generator().manual_seed(seed)))
        origins = [set(fitting.train.origin[batch].tolist()) for batch in batches]
        assert sum(map(len, origins)) == len(set.union(*origins))  # none is in two batches
        largest = int(torch.bincount(fitting.train.origin).max())
        assert max(map(len, batches)) < batch_size + largest
        assert len(batches) > 1
        orders.append(origins)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("loss", ["poisson", "multinomial"])
def test_a_weighted_pair_trains_as_so_many(loss):
    fitting = fitting_of(loss)
    batch = fitting.train.select(torch.arange(40))
    predicted = torch.linspace(1, 6, 40)
    heavier = dataclasses.replace(batch, weight=3 * batch.weight)
    found = fitting.loss(predicted, heavier)
    if loss == "poisson":  # a mean: only the ratio of weights matters
        assert found == pytest.approx(fitting.loss(predicted, batch))
    heavier = dataclasses.replace(batch, weight=torch.where(torch.arange(40) == 0, 50.0, 1.0))
    assert fitting.loss(predicted, heavier) != pytest.approx(fitting.loss(predicted, batch))


def test_the_network_begins_at_the_level_of_the_flows():
    fitting = fitting_of("poisson")
    assert fitting.model.offset.item() == pytest.approx(float(fitting.train.count.log2().mean()))
    region, config = make_region(), training_config()
    flows = dataclasses.replace(region.flows, count=np.where(np.arange(len(region.flows)) % 2, region.flows.count, 0.0))
    weight = np.where(flows.count == 0, 4.0, 1.0)
    zeros = PairSample(flows, weight)
    fitting = NetworkFitting(config, region, fit_scaling(region, True, 0), zeros, every_pair(flows), torch.device("cpu"))
    assert 2 ** fitting.model.offset.item() == pytest.approx((weight * flows.count).sum() / weight.sum(), rel=1e-4)


class KilledAt:
    """Ends a training when it has run so many epochs, as a kill would."""

    def __init__(self, monkeypatch, epochs):
        inner, self.ran = NetworkFitting.run_epoch, []

        def run_epoch(fitting, epoch):
            if len(self.ran) == epochs:
                raise KeyboardInterrupt
            self.ran.append(epoch)
            return inner(fitting, epoch)

        monkeypatch.setattr(NetworkFitting, "run_epoch", run_epoch)


@pytest.mark.parametrize("changes", [{}, {"loss": "balanced_mse", "dropout": 0.3}, {"patience": 3, "lr": 0.05}])
def test_a_killed_training_goes_on_at_its_checkpoint_and_ends_with_the_same_bytes(town, monkeypatch, changes):
    monkeypatch.setattr(fitting, "CHECKPOINT_EVERY_S", 0.0)
    whole = train(town, monkeypatch, max_epochs=6, **changes)
    shutil.rmtree(town / MODEL)
    with monkeypatch.context() as first, pytest.raises(KeyboardInterrupt):
        KilledAt(first, 2)
        train(town, first, max_epochs=6, **changes)
    (unfinished,) = (town / "outputs").glob(".default.*.unfinished")
    with monkeypatch.context() as second:
        ran = KilledAt(second, None).ran
        assert train(town, second, max_epochs=6, **changes) == whole
    assert ran[0] == 2
    assert not unfinished.exists()


def test_other_data_and_damaged_checkpoints_begin_anew(town, monkeypatch):
    monkeypatch.setattr(fitting, "CHECKPOINT_EVERY_S", 0.0)

    def stop_and_go_on(between):
        with monkeypatch.context() as first, pytest.raises(KeyboardInterrupt):
            KilledAt(first, 2)
            train(town, first)
        (checkpoint,) = (town / "outputs").glob(".default.*.unfinished/network_*.pt")
        between(checkpoint)
        with monkeypatch.context() as second:
            ran = KilledAt(second, None).ran
            train(town, second)
        return ran[0]

    def change_features(_):
        table = town / "town.csv"
        features = read(table)
        features["0"] += np.arange(len(features))
        features.to_csv(table, index=False)

    def damage(checkpoint):
        content = torch.load(checkpoint, weights_only=True)
        content["epoch"] = 1
        torch.save(content, checkpoint)

    assert stop_and_go_on(lambda _: None) == 2
    assert stop_and_go_on(damage) == 0
    assert stop_and_go_on(lambda checkpoint: checkpoint.write_bytes(checkpoint.read_bytes()[:100])) == 0
    assert stop_and_go_on(change_features) == 0


def test_a_loss_that_is_no_number_names_epoch_batch_and_origins(town, monkeypatch):
    inner, seen = NetworkFitting.loss, []

    def spoiled(run, predicted, batch):
        seen.append(sorted({run.geocodes[unit] for unit in batch.origin.tolist()}))
        return inner(run, predicted, batch) * (np.nan if len(seen) == 2 else 1.0)

    monkeypatch.setattr(NetworkFitting, "loss", spoiled)
    with pytest.raises(InputError, match="training diverged: the loss is no number from epoch 1, batch 2 ") as found:
        train(town, monkeypatch)
    assert f"(origins {', '.join(seen[1][:5])} and " in str(found.value)


def test_too_little_memory_ends_with_advice(town, monkeypatch):
    def full(*_):
        raise torch.cuda.OutOfMemoryError("no room")

    monkeypatch.setattr(NetworkFitting, "loss", full)
    with pytest.raises(InputError, match="memory of cpu is full in epoch 1, with batches of 64 pairs; use a lower --batch_size"):
        train(town, monkeypatch)
