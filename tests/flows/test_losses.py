import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imagery2flow.flows.fitting import NetworkFitting
from imagery2flow.flows.graph import RegionGraph
from imagery2flow.flows.model import multinomial_loss, poisson_loss
from imagery2flow.flows.region import Region
from imagery2flow.flows.sampling import PairSample
from imagery2flow.flows.scaling import fit_scaling
from imagery2flow.flows.table import FlowTable
from imagery2flow.run.device import CPU, generator
from imagery2flow.run.flow_config import FlowTrainingConfig

# A pair: log2 of the prediction, count, how many it stands for, origin.
pair_lists = st.lists(
    st.tuples(st.floats(-6, 9), st.integers(0, 300) | st.just(0), st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=20
)


def columns(pairs):
    """Tensors of a list of pairs, in double precision."""
    predicted, count, weight, origin = zip(*pairs, strict=True)
    return *(torch.tensor(values, dtype=torch.float64) for values in (predicted, count, weight)), torch.tensor(origin)


def repeated(pairs):
    """Each pair as often as it stands for, with weight 1."""
    return [(x, y, 1, o) for x, y, w, o in pairs for _ in range(w)]


def naive_multinomial(pairs):
    """The docstring's equation, origin by origin."""
    shares = totals = 0.0
    for origin in {o for *_, o in pairs}:
        own = [(x, y, w) for x, y, w, o in pairs if o == origin]
        total = sum(w * 2**x for x, _, w in own)
        shares -= sum(w * y * math.log(w * 2**x / total) for x, y, w in own)
        totals += total - sum(w * y for _, y, w in own) * math.log(total)
    return (shares + totals) / max(sum(w * y for _, y, w, _ in pairs), 1)


@given(pair_lists)
def test_poisson_is_the_loop(pairs):
    predicted, count, weight, _ = columns(pairs)
    naive = sum(w * (2**x - y * x * math.log(2)) for x, y, w, _ in pairs) / sum(w for *_, w, _ in pairs)
    assert poisson_loss(predicted, count, weight).item() == pytest.approx(naive, rel=1e-9, abs=1e-9)


def test_poisson_by_hand():
    """Two predictions of 4 and 1 for counts 3 and 0, the second of which stands for three: (4 - 3 * 2 ln 2 + 3 * 1) / 4."""
    found = poisson_loss(torch.tensor([2.0, 0.0]), torch.tensor([3.0, 0.0]), torch.tensor([1.0, 3.0]))
    assert found.item() == pytest.approx((7 - 6 * math.log(2)) / 4)


@given(pair_lists)
def test_a_weight_in_poisson_is_the_pair_repeated(pairs):
    weighted, plain = columns(pairs), columns(repeated(pairs))
    assert poisson_loss(*weighted[:3]).item() == pytest.approx(poisson_loss(*plain[:3]).item(), rel=1e-9, abs=1e-9)


@given(pair_lists)
def test_poisson_is_smallest_at_the_counts(pairs):
    predicted, count, weight, _ = columns(pairs)
    count = count + 1
    best = poisson_loss(count.log2(), count, weight)
    assert poisson_loss(predicted, count, weight) >= best - 1e-9
    at_best = count.log2().requires_grad_()
    assert torch.autograd.grad(poisson_loss(at_best, count, weight), at_best)[0].abs().max() < 1e-9


@given(pair_lists)
def test_multinomial_is_the_loop(pairs):
    found = multinomial_loss(*columns(pairs)).item()
    assert found == pytest.approx(naive_multinomial(pairs), rel=1e-9, abs=1e-9)


def test_multinomial_by_hand():
    """One origin, predictions 1 and 3 for counts 2 and 2: shares .25 and .75, total 4, outflow 4."""
    predicted, count = torch.tensor([0.0, math.log2(3)]), torch.tensor([2.0, 2.0])
    found = multinomial_loss(predicted, count, torch.ones(2), torch.zeros(2, dtype=torch.int64))
    expected = (-2 * math.log(0.25) - 2 * math.log(0.75) + 4 - 4 * math.log(4)) / 4
    assert found.item() == pytest.approx(expected)


@given(pair_lists)
def test_multinomial_is_smallest_where_shares_are_the_observed_and_totals_the_outflows(pairs):
    predicted, count, weight, origin = columns(pairs)
    count = count + 1
    best = count.log2().requires_grad_()
    loss = multinomial_loss(best, count, weight, origin)
    assert torch.autograd.grad(loss, best)[0].abs().max() < 1e-9
    assert multinomial_loss(predicted, count, weight, origin) >= loss.detach() - 1e-9


@given(pair_lists, st.randoms(use_true_random=False))
def test_multinomial_knows_origins_by_name_and_pairs_in_any_order(pairs, random):
    predicted, count, weight, origin = columns(pairs)
    order = torch.tensor(random.sample(range(len(pairs)), len(pairs)))
    other = multinomial_loss(predicted[order], count[order], weight[order], 100 - 7 * origin[order])
    assert other.item() == pytest.approx(multinomial_loss(predicted, count, weight, origin).item(), rel=1e-9, abs=1e-9)


@given(pair_lists)
def test_a_weight_in_multinomial_pulls_like_the_pair_repeated(pairs):
    """The value differs by w y log w, which no prediction changes; of a zero it does not differ."""
    weighted, plain = columns(pairs), columns(repeated(pairs))
    for tensors in (weighted, plain):
        tensors[0].requires_grad_()
    slopes, parts = (torch.autograd.grad(multinomial_loss(*tensors), tensors[0])[0] for tensors in (weighted, plain))
    groups = torch.repeat_interleave(torch.arange(len(pairs)), weighted[2].long())
    torch.testing.assert_close(slopes, torch.zeros_like(slopes).index_add(0, groups, parts), rtol=1e-9, atol=1e-9)


def test_multinomial_survives_predictions_far_out_and_origins_without_commuters():
    pairs = [(-400.0, 5, 1, 0), (-399.0, 5, 1, 0), (-3.0, 0, 2, 1)]
    single = [tensor.float() if tensor.is_floating_point() else tensor for tensor in columns(pairs)]
    assert torch.isfinite(multinomial_loss(*single))
    assert multinomial_loss(*columns([(-3.0, 0, 2, 1)])).item() == pytest.approx(0.25)  # T alone, over at least one commuter


def fitting(loss, batch_size, num_units=12, seed=0):
    """A training run on random pairs, not yet begun."""
    random = np.random.default_rng(seed)
    ids = tuple(f"{number:02d}" for number in range(num_units))
    origin, destination = np.nonzero(random.random((num_units, num_units)) < 0.6)
    pairs = FlowTable(ids, origin, destination, random.integers(1, 50, len(origin)).astype(float))
    ring = np.stack([np.arange(num_units), (np.arange(num_units) + 1) % num_units])
    graph = RegionGraph(ids, random.uniform(0, 0.1, num_units), random.uniform(0, 0.1, num_units), np.ones(num_units), ring)
    region = Region(("town",), graph, np.zeros(num_units, np.int64), ("0", "1"), random.normal(size=(num_units, 2)), pairs)
    config = FlowTrainingConfig(region=["town"], node_feats_path=["x"], loss=loss, batch_size=batch_size, embedding_size=8)
    sample = PairSample(pairs, random.uniform(1, 3, len(pairs)))
    return NetworkFitting(config, region, fit_scaling(region, True, 0), sample, sample, CPU)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["poisson", "multinomial"]), st.integers(1, 200), st.integers(0, 50))
def test_an_epoch_sees_every_pair_once(loss, batch_size, epoch):
    run = fitting(loss, batch_size)
    batches = list(run.batches(generator(1, epoch)))
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(len(run.train)))
    assert min(map(len, batches)) > 0


@pytest.mark.parametrize("batch_size", [1, 10, 25, 83, 10_000])
def test_multinomial_batches_hold_whole_origins(batch_size):
    run = fitting("multinomial", batch_size)
    batches = list(run.batches(generator(1, 0)))
    origins = [set(run.train.origin[batch].tolist()) for batch in batches]
    assert sum(map(len, origins)) == len(set.union(*origins)) == 12  # no origin in two batches
    largest = torch.bincount(run.train.origin).max()
    assert all(len(batch) < batch_size + largest for batch in batches)
    assert len(batches) == 1 if batch_size >= len(run.train) else len(batches) > 1


def test_batches_differ_between_epochs_and_not_between_runs():
    for loss in ("poisson", "multinomial"):
        run = fitting(loss, 20)
        first, again, other = (torch.cat(list(run.batches(generator(1, epoch)))).tolist() for epoch in (0, 0, 1))
        assert first == again != other


@pytest.mark.parametrize("loss", ["poisson", "multinomial"])
def test_weights_reach_the_loss_of_a_batch(loss):
    run = fitting(loss, 20)
    batch = run.train.select(next(iter(run.batches(generator(1, 0)))))
    predicted = torch.zeros(len(batch))
    expected = {
        "poisson": lambda: poisson_loss(predicted, batch.count, batch.weight),
        "multinomial": lambda: multinomial_loss(predicted, batch.count, batch.weight, batch.origin),
    }
    assert torch.equal(run.loss(predicted, batch), expected[loss]())
