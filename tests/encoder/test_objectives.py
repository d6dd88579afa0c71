import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imagery2flow.encoder import objectives
from imagery2flow.encoder.objectives import SimCLR, chance_level, feature_spread, nt_xent

TEMPERATURE = 0.5


def draw_views(num_patches, dim=7, seed=0, dtype=torch.float32):
    return torch.randn(2, num_patches, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def naive_nt_xent(first, second, temperature):
    """The paper's equation 3, view by view."""
    views = torch.cat([first, second])
    num_patches = len(first)
    total = 0.0
    for i in range(2 * num_patches):
        partner = (i + num_patches) % (2 * num_patches)
        similarity = [torch.dot(views[i], z) / (views[i].norm() * z.norm()) for z in views]
        denominator = sum(torch.exp(similarity[k] / temperature) for k in range(2 * num_patches) if k != i)
        total = total - torch.log(torch.exp(similarity[partner] / temperature) / denominator)
    return total / (2 * num_patches)


@given(num_patches=st.integers(1, 6), seed=st.integers(0, 999), temperature=st.floats(0.1, 2.0))
@settings(max_examples=25)
def test_nt_xent_equals_the_equation_and_so_does_its_gradient(num_patches, seed, temperature):
    first, second = draw_views(num_patches, seed=seed).requires_grad_()
    loss, _ = nt_xent(first, second, temperature)
    expected = naive_nt_xent(first, second, temperature)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    for found, wanted in zip(torch.autograd.grad(loss, (first, second)), torch.autograd.grad(expected, (first, second)), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_two_patches_by_hand():
    first = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    # Each view: partner at cosine 1, the two others at 0: loss = log(1 + 2 e^-2) at T = 1/2.
    loss, retrieval = nt_xent(first, first, TEMPERATURE)
    assert loss.item() == pytest.approx(math.log(1 + 2 * math.exp(-2)), abs=1e-6)
    assert retrieval.item() == 1.0
    # Partners exchanged: the partner at 0, one stranger at 1, one at 0: loss = log(2 + e^2).
    loss, retrieval = nt_xent(first, first.flip(0), TEMPERATURE)
    assert loss.item() == pytest.approx(math.log(2 + math.exp(2)), abs=1e-6)
    assert retrieval.item() == 0.0


def test_orthogonal_patches_by_hand():
    first = torch.eye(5)
    loss, _ = nt_xent(first, first, TEMPERATURE)
    assert loss.item() == pytest.approx(math.log(1 + 8 * math.exp(-2)), abs=1e-6)


@pytest.mark.parametrize("num_patches", [2, 3, 50])
def test_an_encoder_that_tells_nothing_apart_scores_the_chance_level(num_patches):
    same = torch.ones(num_patches, 4)
    loss, _ = nt_xent(same, same, TEMPERATURE)
    assert chance_level(num_patches) == math.log(2 * num_patches - 1)
    assert loss.item() == pytest.approx(chance_level(num_patches), abs=1e-5)


def test_one_patch_has_no_negatives_and_no_loss():
    first, second = draw_views(1)
    assert nt_xent(first, second, TEMPERATURE)[0].item() == 0.0


def test_views_may_change_places_patches_may_be_permuted_and_lengths_do_not_matter():
    first, second = draw_views(8)
    loss, retrieval = nt_xent(first, second, TEMPERATURE)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    lengths = torch.linspace(0.5, 9, 8)[:, None]
    for changed in ((second, first), (first[order], second[order]), (first * lengths, second)):
        found, found_retrieval = nt_xent(*changed, TEMPERATURE)
        torch.testing.assert_close(found, loss)
        assert found_retrieval == retrieval


def test_retrieval_counts_the_views_whose_nearest_neighbour_is_their_partner():
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.1]])
    second = torch.tensor([[1.0, 0.1], [0.1, 1.0], [0.9, 0.5]])  # the third pair lies apart: neither of its views finds the other
    assert nt_xent(first, second, TEMPERATURE)[1].item() == pytest.approx(4 / 6)


def test_half_precision_views_are_compared_in_full_precision():
    first, second = draw_views(16, dim=64, dtype=torch.bfloat16)
    exact, _ = nt_xent(first.float(), second.float(), 0.05)
    loss, _ = nt_xent(first, second, 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        inside_autocast, _ = nt_xent(first.float(), second.float(), 0.05)
    assert loss.dtype == inside_autocast.dtype == torch.float32
    assert loss == exact
    assert inside_autocast == exact


def test_feature_spread_is_0_when_collapsed_and_1_when_spread_over_the_sphere():
    assert feature_spread(torch.tensor([[1.0, 2.0, 3.0]]).repeat(9, 1)).item() == pytest.approx(0, abs=1e-6)
    assert feature_spread(torch.tensor([[1.0, 0.0], [3.0, 0.0], [7.0, 0.0]])).item() == 0  # one direction, three lengths
    assert feature_spread(draw_views(2000, dim=64)[0]).item() == pytest.approx(1, abs=0.02)
    # (1, 0), (-1, 0): deviations 1 and 0, mean 1/2, times sqrt(2).
    assert feature_spread(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).item() == pytest.approx(math.sqrt(2) / 2)


def test_simclr_returns_features_and_their_two_layer_projection():
    model = SimCLR(torch.nn.Flatten(), 12, 5, seed=0)
    features, projected = model(torch.rand(3, 3, 2, 2))
    first, _, second = model.projector
    assert first.weight.shape == (12, 12)
    expected = torch.stack([second.weight @ torch.clamp(first.weight @ row + first.bias, min=0) + second.bias for row in features])
    torch.testing.assert_close(projected, expected)


@pytest.mark.parametrize("rows", [1, 3, 9, 10])
def test_similarities_in_blocks_give_the_loss_and_gradient_of_all_at_once(monkeypatch, rows):
    first, second = draw_views(5, seed=3).requires_grad_()
    found = []
    for limit in (10 * rows, 1 << 24):
        monkeypatch.setattr(objectives, "SIMILARITIES_PER_BLOCK", limit)
        loss, retrieval = nt_xent(first, second, TEMPERATURE)
        found.append((loss, retrieval, *torch.autograd.grad(loss, (first, second))))
    for blocks, whole in zip(*found, strict=True):
        torch.testing.assert_close(blocks, whole, atol=1e-6, rtol=1e-6)


MEASURE_MEMORY = """
import torch
from imagery2flow.encoder.objectives import nt_xent
def peak_mb():  # of this process alone: ru_maxrss begins at the peak of the one that started it
    return next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
torch.set_num_threads(1)
first, second = (torch.randn(4096, 128, generator=torch.Generator().manual_seed(seed)).requires_grad_() for seed in (0, 1))
before = peak_mb()
nt_xent(first, second, 0.5)[0].backward()
assert torch.isfinite(first.grad).all()
print(peak_mb() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux")
def test_memory_does_not_grow_with_the_square_of_the_patches():
    done = subprocess.run([sys.executable, "-c", MEASURE_MEMORY], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 500  # MB; the similarities of 8,192 views are 256 MB, with their gradients and temporaries 1,000 or more
