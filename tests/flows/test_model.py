import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imagery2flow.flows import model as model_module
from imagery2flow.flows.attention import GraphTensors
from imagery2flow.flows.model import BalancedMSE, FlowModel, distance_features, multinomial_loss, poisson_loss

EDGES = [(0, 1), (2, 1), (1, 0), (3, 1), (1, 3), (0, 3)]  # (neighbour, unit); unit 2 has none, unit 4 neither sends nor receives


def draw_graph(num_units=5, dim=3, edges=EDGES, seed=0):
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(num_units, dim, generator=random, dtype=torch.float64)
    return GraphTensors(features, torch.tensor(edges).T, torch.rand(len(edges), 1, generator=random, dtype=torch.float64))


def make_model(in_dim=3, width=4, layers=0, dropout=0.0, unit_terms=False, pair_distance=False, dual_encoder=False, seed=0):
    """The published network, unless told otherwise."""
    torch.manual_seed(seed)
    return FlowModel(in_dim, width, layers, dropout, unit_terms, pair_distance, dual_encoder).double()


def naive_layer(layer, graph, hidden):
    """The equations of reference/imagery2flow.md, 1.4, unit by unit and neighbour by neighbour."""
    w, u = layer.lin.weight, layer.res.weight
    # torch_geometric keeps a in three parts, and lets an edge feature pass a 1 x dim matrix before its part: V is their product.
    a = torch.cat([layer.att_src.reshape(-1), layer.att_dst.reshape(-1), torch.ones(1)])
    v = (layer.lin_edge.weight.reshape(-1) * layer.att_edge.reshape(-1)).sum()
    result = []
    for i in range(len(hidden)):
        neighbours = [(j, d) for (j, unit), d in zip(graph.edge.T.tolist(), graph.edge_weight[:, 0], strict=True) if unit == i]
        score = [torch.dot(a, torch.cat([w @ hidden[j], w @ hidden[i], (v * d)[None]])) for j, d in neighbours]
        score = [s if s > 0 else 0.01 * s for s in score]
        total = sum(torch.exp(s) for s in score)
        message = sum((torch.exp(s) / total * (w @ hidden[j]) for s, (j, _) in zip(score, neighbours, strict=True)), torch.zeros(len(w)))
        result.append(torch.clamp(message + u @ hidden[i], min=0))
    return torch.stack(result)


@pytest.mark.parametrize("num_hidden_layers", [0, 1, 2])
def test_the_network_equals_the_published_equations(num_hidden_layers):
    model, graph = make_model(layers=num_hidden_layers), draw_graph()
    assert len(model.layers) == num_hidden_layers + 1
    hidden = graph.features
    for layer in model.layers:
        hidden = naive_layer(layer, graph, hidden)
    torch.testing.assert_close(model.embed(graph), hidden, atol=1e-10, rtol=1e-8)
    torch.testing.assert_close(
        model.float().embed(GraphTensors(graph.features.float(), graph.edge, graph.edge_weight.float())), hidden.float()
    )
    assert all("bias" not in name for name, _ in model.layers.named_parameters())


def set_weights(layer, w, u, source, target, edge):
    """Fills a layer of width 1."""
    with torch.no_grad():
        for parameter, value in zip(
            (layer.lin.weight, layer.res.weight, layer.att_src, layer.att_dst), (w, u, source, target), strict=True
        ):
            parameter.fill_(value)
        layer.lin_edge.weight.fill_(1.0)
        layer.att_edge.fill_(edge)


def test_two_units_by_hand():
    model = make_model(in_dim=1, width=1)
    set_weights(model.layers[0], w=2.0, u=3.0, source=0.3, target=0.4, edge=0.5)
    features = torch.tensor([[1.0], [-0.5]], dtype=torch.float64)
    graph = GraphTensors(features, torch.tensor([[0, 1], [1, 0]]), torch.ones(2, 1, dtype=torch.float64))
    # One neighbour each, so alpha = 1: 2 x -.5 + 3 x 1 = 2 and ReLU(2 x 1 + 3 x -.5) = .5
    assert model.embed(graph).tolist() == [[2.0], [0.5]]


def test_attention_by_hand():
    model = make_model(in_dim=1, width=1)
    set_weights(model.layers[0], w=1.0, u=1.0, source=1.0, target=0.0, edge=2.0)
    features = torch.tensor([[1.0], [2.0], [10.0]], dtype=torch.float64)
    weights = torch.tensor([[0.5], [math.log(3) / 2]], dtype=torch.float64)
    graph = GraphTensors(features, torch.tensor([[0, 1], [2, 2]]), weights)
    # e = 1 + 2 x .5 and 2 + ln 3, so alpha = 1/4 and 3/4: 10 + 1/4 x 1 + 3/4 x 2
    assert model.embed(graph)[2].item() == pytest.approx(11.75)


def test_negative_scores_are_leaky():
    model = make_model(in_dim=1, width=1)
    set_weights(model.layers[0], w=1.0, u=0.0, source=0.0, target=0.0, edge=-1.0)
    features = torch.tensor([[4.0], [8.0], [0.0]], dtype=torch.float64)
    weights = torch.tensor([[100 * math.log(3)], [0.0]], dtype=torch.float64)
    graph = GraphTensors(features, torch.tensor([[0, 1], [2, 2]]), weights)
    # e = .01 x -100 ln 3 and 0: alpha = 1/4 and 3/4
    assert model.embed(graph)[2].item() == pytest.approx(7)


def test_a_unit_without_neighbours_keeps_its_own_part():
    model, graph = make_model(), draw_graph()
    expected = torch.relu(graph.features @ model.layers[0].res.weight.T)
    hidden = model.embed(graph)
    for unit in (2, 4):
        torch.testing.assert_close(hidden[unit], expected[unit])
    assert expected[[2, 4]].sum() > 0


@given(st.permutations(range(5)), st.permutations(range(len(EDGES))))
@settings(max_examples=20)
def test_renaming_units_renames_the_embeddings(units, edges):
    model, graph = make_model(layers=1), draw_graph()
    units, edges = torch.tensor(units), torch.tensor(edges)
    new_place = torch.argsort(units)
    renamed = GraphTensors(graph.features[units], new_place[graph.edge[:, edges]], graph.edge_weight[edges])
    torch.testing.assert_close(model.embed(renamed), model.embed(graph)[units])


@pytest.mark.parametrize("unit_terms", [False, True])
@pytest.mark.parametrize("pair_distance", [False, True])
def test_the_bilinear_decoder_equals_its_equation(unit_terms, pair_distance):
    model = make_model(unit_terms=unit_terms, pair_distance=pair_distance)
    hidden = torch.rand(5, 4, dtype=torch.float64)
    origin, destination = torch.tensor([0, 3, 3, 2]), torch.tensor([1, 3, 0, 4])
    distance = torch.tensor([0.5, 0.0, 1.2, 1e-9], dtype=torch.float64)
    with torch.no_grad():
        model.offset.fill_(0.7)
    found = model.decode(hidden, origin, destination, distance)
    for pair in range(4):
        expected = 0.7
        for row in range(4):
            for column in range(4):
                expected += hidden[origin[pair], row] * model.interaction[row, column] * hidden[destination[pair], column]
        if unit_terms:
            as_origin, as_destination = (term.weight[0] for term in model.unit_terms)
            expected += torch.dot(as_origin, hidden[origin[pair]]) + torch.dot(as_destination, hidden[destination[pair]])
        if pair_distance:
            same = distance[pair] == 0
            known = [0.0 if same else math.log(max(distance[pair], 1e-4)), distance[pair], float(same)]
            for weights, bias, out in zip(
                model.distance_term[0].weight, model.distance_term[0].bias, model.distance_term[2].weight[0], strict=True
            ):
                expected += out * max(sum(w * value for w, value in zip(weights, known, strict=True)) + bias, torch.zeros(()))
        assert found[pair].item() == pytest.approx(expected.item())


@pytest.mark.parametrize("dual_encoder", [False, True])
@pytest.mark.parametrize("unit_terms", [False, True])
@pytest.mark.parametrize("pair_distance", [False, True])
def test_rows_of_the_matrix_are_the_pairs_one_by_one(unit_terms, pair_distance, dual_encoder):
    model = make_model(unit_terms=unit_terms, pair_distance=pair_distance, dual_encoder=dual_encoder)
    hidden, origin = torch.rand(5, 8 if dual_encoder else 4, dtype=torch.float64), torch.tensor([3, 0])
    distance = torch.rand(2, 5, dtype=torch.float64)
    found = model.decode_rows(hidden, origin, distance)
    expected = model.decode(hidden, origin.repeat_interleave(5), torch.arange(5).repeat(2), distance.flatten())
    torch.testing.assert_close(found, expected.view(2, 5))


def test_the_published_decoder_never_sees_the_distance():
    model = make_model()
    hidden, place = torch.rand(2, 4, dtype=torch.float64), torch.tensor([0, 1])
    near, far = (model.decode(hidden, place, place.flip(0), torch.full((2,), value, dtype=torch.float64)) for value in (0.0, 0.9))
    assert torch.equal(near, far)
    assert near[0] != near[1]  # a flow and the flow back differ


def test_distance_features_by_hand():
    found = distance_features(torch.tensor([0.0, 1.0, math.e]))
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, math.e, 0.0]]))


def test_dropout_hides_features_in_training_only():
    model, graph = make_model(dropout=0.5), draw_graph()
    torch.testing.assert_close(model.eval().embed(graph), make_model().embed(graph))
    model.train()
    assert not torch.equal(model.embed(graph), model.embed(graph))


def test_a_dual_encoder_is_two_networks_one_for_each_end():
    model, graph = make_model(layers=1, unit_terms=True, dual_encoder=True), draw_graph()
    hidden = model.embed(graph)
    assert hidden.shape == (5, 2 * 4)
    sides = []
    for layers in (model.layers, model.destination_layers):
        side = graph.features
        for layer in layers:
            side = naive_layer(layer, graph, side)
        sides.append(side)
    torch.testing.assert_close(hidden, torch.cat(sides, dim=1), atol=1e-10, rtol=1e-8)
    assert not torch.allclose(*sides)
    origin, destination = torch.tensor([0, 3, 2]), torch.tensor([1, 3, 4])
    found = model.decode(hidden, origin, destination, torch.zeros(3, dtype=torch.float64))
    as_origin, as_destination = (term.weight[0] for term in model.unit_terms)
    for pair, (i, j) in enumerate(zip(origin, destination, strict=True)):
        h_o, h_d = sides[0][i], sides[1][j]
        expected = h_o @ model.interaction @ h_d + as_origin @ h_o + as_destination @ h_d
        assert found[pair].item() == pytest.approx(expected.item())


counted = st.lists(st.tuples(st.integers(0, 500), st.floats(-2, 9), st.integers(1, 4), st.integers(0, 2)), min_size=1, max_size=8)


def columns_of(pairs):
    """Counts, log2 of the means and weights as numbers, origins as positions."""
    counts, log2_means, weights, origins = zip(*pairs, strict=True)
    return *(torch.tensor(column, dtype=torch.float64) for column in (counts, log2_means, weights)), torch.tensor(origins)


@given(counted)
def test_the_poisson_loss_is_the_likelihood_but_for_what_does_not_depend_on_the_prediction(pairs):
    counts, log2_means, _, _ = columns_of(pairs)
    mean = 2**log2_means
    likelihood = [-(count * torch.log(m) - m - torch.lgamma(count + 1)) for count, m in zip(counts, mean, strict=True)]
    without = torch.stack(likelihood).mean() - torch.lgamma(counts + 1).mean()
    torch.testing.assert_close(poisson_loss(log2_means, counts, torch.ones(len(pairs), dtype=torch.float64)), without)


def test_the_poisson_loss_by_hand():
    # Mean 2, count 4: 2 - 4 ln 2. Its slope in log2 of the mean, (2 - 4) ln 2, is 0 where both are equal.
    predicted, one = torch.tensor([1.0, 2.0], requires_grad=True), torch.ones(1)
    loss = poisson_loss(predicted[:1], torch.tensor([4.0]), one)
    assert loss.item() == pytest.approx(2 - 4 * math.log(2))
    (gradient,) = torch.autograd.grad(poisson_loss(predicted, torch.tensor([4.0, 4.0]), torch.ones(2)), predicted)
    assert gradient.tolist() == pytest.approx([-math.log(2), 0.0])
    assert poisson_loss(torch.tensor([3.0]), torch.tensor([0.0]), one).item() == pytest.approx(8)  # nobody: the mean itself


@given(counted)
def test_a_weighted_pair_counts_as_so_many(pairs):
    counts, log2_means, weights, _ = columns_of(pairs)
    times = weights.long()
    repeated = poisson_loss(log2_means.repeat_interleave(times), counts.repeat_interleave(times), torch.ones(int(times.sum())))
    torch.testing.assert_close(poisson_loss(log2_means, counts, weights), repeated.double())


def naive_multinomial(log2_means, counts, weights, origins):
    """The two likelihoods of the docstring, origin by origin and pair by pair, a commuter."""
    loss, commuters = 0.0, 0.0
    for origin in sorted(set(origins.tolist())):
        rows = [row for row in range(len(origins)) if origins[row] == origin]
        total = sum(weights[row] * 2 ** log2_means[row] for row in rows)
        outflow = sum(weights[row] * counts[row] for row in rows)
        for row in rows:
            loss -= weights[row] * counts[row] * torch.log(weights[row] * 2 ** log2_means[row] / total)
        loss += total - outflow * torch.log(total)
        commuters += outflow
    return loss / max(commuters, 1.0)


@given(counted)
def test_the_multinomial_loss_equals_its_equation(pairs):
    counts, log2_means, weights, origins = columns_of(pairs)
    found = multinomial_loss(log2_means, counts, weights, origins)
    torch.testing.assert_close(found, naive_multinomial(log2_means, counts, weights, origins))


def test_the_multinomial_loss_by_hand():
    # One origin, predictions 1 and 3, commuters 2 and 2: shares 1/4 and 3/4, total 4 and outflow 4.
    predicted = torch.log2(torch.tensor([1.0, 3.0], dtype=torch.float64))
    two, place = torch.full((2,), 2.0, dtype=torch.float64), torch.zeros(2, dtype=torch.long)
    expected = (-2 * math.log(1 / 4) - 2 * math.log(3 / 4) + 4 - 4 * math.log(4)) / 4
    assert multinomial_loss(predicted, two, two / 2, place).item() == pytest.approx(expected)


def test_the_multinomial_loss_is_smallest_at_the_counts_themselves():
    counts = torch.tensor([3.0, 5.0, 8.0, 1.0], dtype=torch.float64)
    predicted, origins = torch.log2(counts).requires_grad_(), torch.tensor([1, 1, 4, 4])
    loss = multinomial_loss(predicted, counts, torch.ones(4, dtype=torch.float64), origins)
    (gradient,) = torch.autograd.grad(loss, predicted)
    torch.testing.assert_close(gradient, torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)
    for shift in torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64):
        assert multinomial_loss(predicted + 0.1 * shift, counts, torch.ones(4, dtype=torch.float64), origins) > loss


def test_the_multinomial_loss_of_large_scores_stays_finite():
    predicted = torch.tensor([60.0, -60.0, 90.0], requires_grad=True)
    loss = multinomial_loss(predicted, torch.tensor([0.0, 9.0, 0.0]), torch.ones(3), torch.tensor([0, 0, 7]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(predicted.grad).all()


def naive_balanced_mse(predicted, target, sigma):
    """Batch Monte Carlo with the full K x K matrix, and the published factor without gradient."""
    logits = -((predicted[:, None] - target[None, :]) ** 2) / (2 * sigma**2)  # [K, K]
    losses = [-torch.log(torch.exp(row[i]) / torch.exp(row).sum()) for i, row in enumerate(logits)]
    return torch.stack(losses).mean() * (2 * sigma**2).detach()


def loss_and_gradients(function, predicted, target, sigma):
    predicted, sigma = predicted.clone().requires_grad_(), torch.tensor(sigma, dtype=torch.float64, requires_grad=True)
    loss = function(predicted, target, sigma)
    return loss, *torch.autograd.grad(loss, (predicted, sigma))


def ours(predicted, target, sigma):
    module = BalancedMSE(1.0).double()
    del module.sigma
    module.sigma = sigma
    return module(predicted, target)


@given(st.lists(st.tuples(st.integers(1, 6), st.floats(-2, 4)), min_size=1, max_size=12), st.floats(0.5, 3))
@settings(max_examples=30)
def test_the_balanced_loss_equals_the_full_matrix_with_repeated_targets(pairs, sigma):
    target = torch.log2(torch.tensor([float(count) for count, _ in pairs], dtype=torch.float64))
    predicted = torch.tensor([value for _, value in pairs], dtype=torch.float64)
    for found, wanted in zip(
        loss_and_gradients(ours, predicted, target, sigma), loss_and_gradients(naive_balanced_mse, predicted, target, sigma), strict=True
    ):
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-7)


def test_the_balanced_loss_of_two_pairs_by_hand():
    # sigma^2 = 1/2, targets 0 and 1, predictions 0 and 0: losses log(1 + e^-1) and 1 + log(1 + e^-1), times 2 sigma^2 = 1.
    loss = BalancedMSE(math.sqrt(0.5))(torch.zeros(2), torch.tensor([0.0, 1.0]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)) + 0.5)
    # Equal targets: each pair is as likely as the other, log 2, whatever the prediction.
    assert BalancedMSE(math.sqrt(0.5))(torch.tensor([0.0, 5.0]), torch.ones(2)).item() == pytest.approx(math.log(2))


def test_blocks_of_pairs_give_the_loss_and_gradients_of_one_block(monkeypatch):
    random = np.random.default_rng(0)
    target = torch.tensor(np.log2(random.integers(11, 40, 50)))
    predicted = torch.tensor(random.normal(4, 1, 50))
    whole = loss_and_gradients(ours, predicted, target, 0.8)
    monkeypatch.setattr(model_module, "PAIRS_PER_BLOCK", 7)
    for found, wanted in zip(loss_and_gradients(ours, predicted, target, 0.8), whole, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("sigma", [1e-3, 1e-2, 30.0])
def test_loss_and_gradients_stay_finite_at_extreme_sigma(sigma):
    loss_function = BalancedMSE(sigma)
    predicted = torch.linspace(-5, 15, 40).requires_grad_()
    target = torch.log2(torch.arange(11.0, 51.0))
    loss = loss_function(predicted, target)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(predicted.grad).all()
    assert torch.isfinite(loss_function.sigma.grad)


def test_an_exact_prediction_of_one_value_scores_log_of_the_batch_size():
    loss = BalancedMSE(1.0)(torch.full((8,), 3.0), torch.full((8,), 3.0))
    assert loss.item() == pytest.approx(2 * math.log(8))
