import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imagery2flow.flows import networks
from imagery2flow.flows.attention import GraphTensors
from imagery2flow.flows.metrics import cpc
from imagery2flow.flows.networks import (
    DeepGravityConfig,
    DeepGravityNetwork,
    GmelConfig,
    GmelNetwork,
    batches_of_origins,
    fit_deep_gravity,
    fit_gmel,
    log_softmax,
    share_loss,
    to_tensors,
)
from imagery2flow.run.device import CPU
from imagery2flow.run.errors import InputError

NUM_UNITS = 36
DEEP = DeepGravityConfig(widths=(32, 16), lr=3e-4, origins_per_batch=4, max_epochs=40, patience=40)
GMEL = GmelConfig(embedding_size=16, lr=1e-2, pairs_per_batch=256, max_epochs=20)


class City:
    """A grid of units; the mass of each drives the flows, and its logarithm is the first of three features."""

    def __init__(self, seed=0):
        random = np.random.default_rng(seed)
        place = np.stack(np.divmod(np.arange(NUM_UNITS), 6), axis=1)
        distance = np.linalg.norm(place[:, None] - place, axis=2) / 7.1
        self.features = random.normal(size=(NUM_UNITS, 3))
        mass = np.exp(self.features[:, 0])
        self.edge = np.stack(np.nonzero((distance > 0) & (distance < 0.15)))
        self.edge_weight = distance[tuple(self.edge)][:, None]
        self.origin, self.destination = (position.ravel() for position in np.indices(distance.shape))
        self.distance = distance.ravel()
        mean = 30 * mass[self.origin] ** 0.5 * mass[self.destination] * np.exp(-4 * self.distance)
        self.count = random.poisson(mean).astype(float)
        self.outflow = np.bincount(self.origin, self.count)
        self.inflow = np.bincount(self.destination, self.count)

    def pairs(self, chosen=slice(None)):
        return tuple(values[chosen] for values in (self.origin, self.destination, self.distance, self.count))

    @property
    def graph(self):
        return self.features, self.edge, self.edge_weight

    def renamed(self, place):
        """The same city, with unit i at position place[i]."""
        other, back = City(), np.argsort(place)
        other.features, other.outflow, other.inflow = self.features[back], self.outflow[back], self.inflow[back]
        other.edge, other.edge_weight = place[self.edge], self.edge_weight
        other.origin, other.destination, other.distance, other.count = (
            place[self.origin],
            place[self.destination],
            self.distance,
            self.count,
        )
        return other


def fit_deep(city, chosen=slice(None), valid=None, seed=0, config=DEEP):
    return fit_deep_gravity(city.features, city.pairs(chosen), valid, seed, CPU, config)


def predict_deep(model, city, chosen=slice(None)):
    return model.predict(city.features, *city.pairs(chosen)[:3], city.outflow)


def fit_graph(city, chosen=slice(None), valid=None, seed=0, config=GMEL):
    origin, destination, _, count = city.pairs(chosen)
    inflow, outflow = np.bincount(destination, count, NUM_UNITS), np.bincount(origin, count, NUM_UNITS)
    return fit_gmel(*city.graph, city.pairs(chosen), inflow, outflow, valid, seed, CPU, config)


def predict_graph(model, city, chosen=slice(None)):
    return model.predict(*city.graph, *city.pairs(chosen)[:3])


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-50, 50), st.integers(0, 9)), min_size=1, max_size=20))
@settings(max_examples=40)
def test_shares_and_their_loss_equal_a_loop_over_origins(pairs):
    groups, scores, counts = zip(*pairs, strict=True)
    group, score = torch.tensor(groups), torch.tensor(scores, dtype=torch.float64)
    count = torch.tensor(counts, dtype=torch.float64)
    losses, logs = [], [math.nan] * len(pairs)
    for origin in set(groups):
        mine = [k for k in range(len(pairs)) if groups[k] == origin]
        highest = max(scores[k] for k in mine)
        total = sum(math.exp(scores[k] - highest) for k in mine)
        for k in mine:
            logs[k] = scores[k] - highest - math.log(total)
        outflow = sum(counts[k] for k in mine)
        if outflow:
            losses.append(-sum(counts[k] / outflow * logs[k] for k in mine))
    assert log_softmax(score, group).tolist() == pytest.approx(logs, abs=1e-9)
    assert share_loss(score, group, count).item() == pytest.approx(sum(losses) / max(len(losses), 1), abs=1e-9)


def test_the_share_loss_by_hand():
    # Origin 0: p = 1/4 and 3/4 of flows 1 and 1; origin 2: p = 1. The mean of (log 4 + log 4/3) / 2 and 0.
    score = torch.tensor([0.0, math.log(3), 7.0])
    loss = share_loss(score, torch.tensor([0, 0, 2]), torch.tensor([1.0, 1.0, 5.0]))
    assert loss.item() == pytest.approx((math.log(4) + math.log(4 / 3)) / 4)


def test_the_share_loss_is_finite_where_a_share_is_not_a_number_above_0():
    score = torch.tensor([0.0, 300.0], requires_grad=True)
    loss = share_loss(score, torch.tensor([0, 0]), torch.tensor([1.0, 0.0]))
    loss.backward()
    assert loss.item() == 300
    assert score.grad.tolist() == [-1, 1]


def test_deep_gravity_sends_out_each_outflow_by_the_softmax_of_its_scores(monkeypatch):
    monkeypatch.setattr(networks, "PAIRS_PER_BLOCK", 100)
    city = City()
    model = fit_deep(city, config=DeepGravityConfig(widths=(4,), max_epochs=1))
    flow = predict_deep(model, city)
    np.testing.assert_allclose(np.bincount(city.origin, flow), city.outflow, rtol=1e-6)
    (first, _, _, last) = model.network.layers
    w, b, v, c = (values.detach().double().numpy() for values in (first.weight, first.bias, last.weight, last.bias))
    score = np.zeros(NUM_UNITS)
    for j in range(NUM_UNITS):
        hidden = w @ np.concatenate([city.features[2], city.features[j], city.distance[(city.origin == 2) & (city.destination == j)]]) + b
        score[j] = (v @ np.where(hidden > 0, hidden, 0.01 * hidden) + c)[0]
    expected = city.outflow[2] * np.exp(score) / np.exp(score).sum()
    np.testing.assert_allclose(flow[city.origin == 2], expected, rtol=1e-5)


def test_the_published_deep_gravity_can_be_built():
    network = DeepGravityNetwork(19, DeepGravityConfig(widths=(256,) * 6 + (128,) * 9, dropout=0.35))
    linear = [layer for layer in network.layers if isinstance(layer, torch.nn.Linear)]
    assert [layer.out_features for layer in linear] == [256] * 6 + [128] * 9 + [1]
    assert linear[0].in_features == 39


def test_batches_have_whole_origins_and_every_pair_once():
    city = City()
    chosen = np.random.default_rng(0).permutation(len(city.origin))[:300]
    pairs = to_tensors(city.pairs(chosen), CPU)
    batches = list(batches_of_origins(pairs, 5, torch.Generator().manual_seed(0)))
    seen = torch.cat([batch.origin * NUM_UNITS + batch.destination for batch in batches])
    assert sorted(seen.tolist()) == sorted((city.origin * NUM_UNITS + city.destination)[chosen].tolist())
    origins = [set(batch.origin.tolist()) for batch in batches]
    assert sum(map(len, origins)) == len(set.union(*origins))
    assert max(map(len, origins)) == 5


def test_the_multi_task_loss_equals_a_loop_over_pairs_and_units():
    city = City()
    network = GmelNetwork(3, GmelConfig(embedding_size=4)).double()
    features, edge, weight = torch.tensor(city.features), torch.tensor(city.edge), torch.tensor(city.edge_weight)
    h, g = embedded = network.embed(GraphTensors(features, edge, weight))
    chosen = np.array([3, 40, 41, 700, 5, 1_000])
    tensors = to_tensors(city.pairs(chosen), CPU)
    with torch.no_grad():
        network.offset.fill_(0.3)
    found = network.loss(embedded, tensors, torch.tensor(city.inflow), torch.tensor(city.outflow), (0.5, 0.25, 0.25))
    flows, inflows, outflows = [], {}, {}
    for k in chosen:
        o, d = city.origin[k], city.destination[k]
        flows.append((h[o] @ network.interaction @ g[d] + 0.3 - math.sqrt(city.count[k])) ** 2)
        inflows[d] = (network.inflow.weight[0] @ g[d] + network.inflow.bias[0] - math.sqrt(city.inflow[d])) ** 2
        outflows[o] = (network.outflow.weight[0] @ h[o] + network.outflow.bias[0] - math.sqrt(city.outflow[o])) ** 2
    mean = [sum(errors) / len(errors) for errors in (flows, list(inflows.values()), list(outflows.values()))]
    assert found.item() == pytest.approx((0.5 * mean[0] + 0.25 * mean[1] + 0.25 * mean[2]).item(), rel=1e-6)


def test_the_multi_task_loss_by_hand():
    network = GmelNetwork(1, GmelConfig(embedding_size=1))
    with torch.no_grad():
        for values, filling in ((network.interaction, 1.0), (network.offset, 1.0)):
            values.fill_(filling)
        for layer, bias in ((network.inflow, 0.0), (network.outflow, -1.0)):
            layer.weight.fill_(2.0)
            layer.bias.fill_(bias)
    tensors = to_tensors((np.array([0]), np.array([1]), np.zeros(1), np.array([16.0])), CPU)
    embedded = torch.tensor([[2.0], [9.0]]), torch.tensor([[9.0], [3.0]])
    # Flow 2 x 3 + 1 against 4, inflow of 1: 2 x 3 against 5, outflow of 0: 2 x 2 - 1 against 1: errors 9, 1, 4.
    loss = network.loss(embedded, tensors, torch.tensor([0.0, 25.0]), torch.tensor([1.0, 0.0]), (0.5, 0.25, 0.25))
    assert loss.item() == pytest.approx(4.5 + 0.25 + 1)


def test_gmel_embeds_a_unit_as_origin_by_one_network_and_as_destination_by_the_other():
    city = City()
    network = GmelNetwork(3, GMEL)
    graph = GraphTensors(torch.tensor(city.features).float(), torch.tensor(city.edge), torch.tensor(city.edge_weight).float())
    h, g = network.embed(graph)
    with torch.no_grad():
        for values in network.as_destination.parameters():
            values.zero_()
    moved, zero = network.embed(graph)
    assert torch.equal(h, moved)
    assert (zero == 0).all() and (g > 0).any()


@pytest.mark.parametrize(("fit", "predict"), [(fit_deep, predict_deep), (fit_graph, predict_graph)])
def test_a_planted_law_is_learned_for_origins_never_seen(fit, predict):
    city = City()
    test, valid = city.origin % 6 == 0, city.origin % 6 == 1
    model = fit(city, ~test & ~valid, city.pairs(valid))
    flow = predict(model, city, test)
    constant = np.full(test.sum(), city.count[~test].mean())
    assert cpc(city.count[test], flow) > cpc(city.count[test], constant) + 0.15


@pytest.mark.parametrize(("fit", "predict"), [(fit_deep, predict_deep), (fit_graph, predict_graph)])
def test_equal_seeds_give_equal_flows_whatever_the_order_of_pairs(fit, predict):
    city = City()
    flow = predict(fit(city), city)
    assert (predict(fit(city), city) == flow).all()
    assert (predict(fit(city, np.random.default_rng(1).permutation(len(flow))), city) == flow).all()
    assert not np.allclose(predict(fit(city, seed=1), city), flow, rtol=1e-3)


def test_a_permutation_of_units_changes_deep_gravity_by_rounding_only():
    """In one batch and without dropout, because both draw per position."""
    city, config = City(), DeepGravityConfig(widths=(16,), dropout=0.0, origins_per_batch=NUM_UNITS, max_epochs=15)
    other = city.renamed(np.random.default_rng(3).permutation(NUM_UNITS))
    flow = predict_deep(fit_deep(city, config=config), city)
    np.testing.assert_allclose(predict_deep(fit_deep(other, config=config), other), flow, rtol=1e-3)


def test_a_permutation_of_units_changes_gmel_by_rounding_only():
    """In one batch; a rounding of embeddings can move a few pairs across a split of the trees."""
    city, config = City(), GmelConfig(embedding_size=8, max_epochs=10, pairs_per_batch=NUM_UNITS**2)
    other = city.renamed(np.random.default_rng(3).permutation(NUM_UNITS))
    flow = predict_graph(fit_graph(city, config=config), city)
    moved = predict_graph(fit_graph(other, config=config), other)
    assert np.abs(moved - flow).mean() < 0.02 * flow.mean()


@pytest.mark.parametrize("fit", [fit_deep, fit_graph])
def test_the_validation_pairs_choose_the_epoch(fit, monkeypatch):
    """Worse and worse losses: the first epoch is kept."""
    city, validated = City(), []
    keep_best = networks.keep_best

    def worse(model, run_epoch, validate, max_epochs, patience):
        def loss():
            validated.append([values.clone() for values in model.parameters()])
            return validate() * 0 + len(validated)

        keep_best(model, run_epoch, loss, 50, 3)

    monkeypatch.setattr(networks, "keep_best", worse)
    model = fit(city, valid=city.pairs())
    assert len(validated) == 4
    assert all(torch.equal(a, b) for a, b in zip(model.network.parameters(), validated[0], strict=True))


@pytest.mark.parametrize("with_valid", [False, True])
@pytest.mark.parametrize("fit", [fit_deep, fit_graph])
def test_a_training_that_diverged_is_told(fit, with_valid):
    city = City()
    city.features[0, 0] = math.inf
    with pytest.raises(InputError, match="diverged: no loss is a number"):
        fit(city, valid=city.pairs() if with_valid else None)
