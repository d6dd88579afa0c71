"""The whole path of an epoch against loops in double precision, and the balanced loss of many pairs in little memory."""

import dataclasses
import math
import subprocess
import sys

import pytest
import torch

from imagery2flow.flows.epochs import ORDER
from imagery2flow.flows.fitting import NetworkFitting
from imagery2flow.flows.model import BalancedMSE
from imagery2flow.flows.sampling import every_pair
from imagery2flow.flows.scaling import fit_scaling
from imagery2flow.run.device import CPU, generator

from .conftest import make_region, training_config
from .test_losses import naive_multinomial
from .test_model import naive_balanced_mse, naive_layer

NO_STEP = 1e-30  # a learning rate that leaves all weights where they are
MANY_PAIRS = 20_000
# A K x K matrix of single precision would take 1.6 GB, each of its copies as much.
MOST_MB = 500

MANY_PAIRS_IN_LITTLE_MEMORY = f"""
import torch
from imagery2flow.flows.model import BalancedMSE
random = torch.Generator().manual_seed(0)
target = torch.randint(11, 300, ({MANY_PAIRS},), generator=random).float().log2()
predicted = (target + torch.randn({MANY_PAIRS}, generator=random)).requires_grad_()
def peak_kb():  # of this process alone: ru_maxrss begins at the peak of the process that started it
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak_kb()
BalancedMSE(1.0)(predicted, target).backward()
print((peak_kb() - before) / 1024)
"""


def fitting_in_double_precision(loss, batch_size):
    """A run that has not begun and learns nothing."""
    region = make_region()
    config = training_config(
        loss=loss, batch_size=batch_size, lr=NO_STEP, sigma_lr=NO_STEP, warmup_epochs=0, num_hidden_layers=2, dropout=0.0
    )
    sample = every_pair(region.flows)
    sample = dataclasses.replace(sample, weight=1.0 + sample.pairs.count % 3)
    fitting = NetworkFitting(config, region, fit_scaling(region, True, 0), sample, sample, CPU)
    fitting.model.double()
    if fitting.balanced is not None:
        fitting.balanced.double()
    fitting.train, fitting.graph = (
        type(part)(*(tensor.double() if tensor.is_floating_point() else tensor for tensor in vars(part).values()))
        for part in (fitting.train, fitting.graph)
    )
    return fitting


def naive_predictions(fitting):
    """log2 of the flow of every pair, neighbour by neighbour and pair by pair [num_pairs]."""
    model, pairs = fitting.model, fitting.train
    hidden = fitting.graph.features
    for layer in model.layers:
        hidden = naive_layer(layer, fitting.graph, hidden)
    leaving, arriving = ([torch.dot(term.weight[0], row) for row in hidden] for term in model.unit_terms)
    first, _, second = model.distance_term
    predicted = []
    for o, d, distance in zip(pairs.origin.tolist(), pairs.destination.tolist(), pairs.distance, strict=True):
        seen = torch.tensor([0.0 if distance == 0 else math.log(max(distance, 1e-4)), distance, float(distance == 0)], dtype=torch.float64)
        deterrence = torch.dot(second.weight[0], torch.relu(first.weight @ seen + first.bias))
        predicted.append(torch.dot(hidden[o], model.interaction @ hidden[d]) + model.offset + leaving[o] + arriving[d] + deterrence)
    return torch.stack(predicted)


def naive_loss(fitting, predicted, chosen):
    """Mean loss of some pairs, pair by pair."""
    pairs = fitting.train.select(chosen)
    if fitting.config.loss == "balanced_mse":
        return naive_balanced_mse(predicted[chosen], pairs.count.log2(), fitting.balanced.sigma)
    rows = list(zip(predicted[chosen].tolist(), pairs.count.tolist(), pairs.weight.tolist(), pairs.origin.tolist(), strict=True))
    if fitting.config.loss == "multinomial":
        return naive_multinomial(rows)
    return sum(w * (2**x - y * x * math.log(2)) for x, y, w, _ in rows) / sum(w for *_, w, _ in rows)


@pytest.mark.parametrize("batch_size", [300, 10_000])
@pytest.mark.parametrize("loss", ["poisson", "multinomial", "balanced_mse"])
@torch.no_grad()
def test_the_loss_of_an_epoch_is_that_of_a_loop_over_pairs(loss, batch_size):
    fitting = fitting_in_double_precision(loss, batch_size)
    predicted = naive_predictions(fitting)
    batches = list(fitting.batches(generator(fitting.config.seed, ORDER, 3)))
    assert (len(batches) == 1) == (batch_size == 10_000)
    expected = sum(float(naive_loss(fitting, predicted, batch)) * len(batch) for batch in batches) / len(fitting.train)
    with torch.enable_grad():
        found = fitting.run_epoch(3)
    assert found == pytest.approx(expected, rel=1e-6)


def test_the_balanced_loss_of_thousands_of_pairs_of_few_values_is_that_of_the_full_matrix():
    random = torch.Generator().manual_seed(0)
    target = torch.randint(11, 40, (3000,), generator=random).double().log2()
    predicted = target + torch.randn(3000, generator=random, dtype=torch.float64)
    distance = (predicted[:, None] - target).square() / (2 * 0.7**2)  # [num_pairs, num_pairs]
    expected = (distance.diagonal() + torch.logsumexp(-distance, dim=1)).mean() * 2 * 0.7**2
    found = BalancedMSE(0.7).double()(predicted, target)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_balanced_loss_never_holds_the_matrix_of_all_pairs():
    output = subprocess.run([sys.executable, "-W", "ignore", "-c", MANY_PAIRS_IN_LITTLE_MEMORY], capture_output=True, text=True, check=True)
    assert float(output.stdout) < MOST_MB
