import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from imagery2flow.encoder import compiling
from imagery2flow.encoder import trainer as trainer_module
from imagery2flow.encoder.checkpoint import best_path, find_checkpoint, load_checkpoint, previous_path
from imagery2flow.encoder.loading import ViewLoader
from imagery2flow.encoder.trainer import Trainer, kept_buffers, learning_rate
from imagery2flow.imagery.views import embedding_views
from imagery2flow.run.config import ViewConfig
from imagery2flow.run.device import make_fabric
from imagery2flow.run.errors import InputError
from imagery2flow.run.stage import Ledger, Terminated

from .conftest import as_patch_set, draw_images, small_config


class StopAfter:
    """A termination flag that is raised after some steps."""

    def __init__(self, steps=math.inf):
        self.steps = steps

    @property
    def raised(self):
        self.steps -= 1
        return self.steps <= 0


def make_trainer(folder, images, **changes):
    config = small_config(model_path=str(folder), **changes)
    fabric, _ = make_fabric("cpu", "fp32")
    return Trainer(config, as_patch_set(images), 16, fabric, Ledger("test", quiet=True))


def train(folder, images, **changes):
    trainer = make_trainer(folder, images, **changes)
    trainer.run(StopAfter())
    return trainer


def assert_equal_runs(one: Path, other: Path):
    first, second = (torch.load(path, weights_only=True) for path in (one, other))
    for name in ("epoch", "step", "sums", "history"):
        assert first[name] == second[name]
    assert all(torch.equal(first["model"][name], second["model"][name]) for name in first["model"])
    for number, state in first["optimizer"]["state"].items():
        assert all(torch.equal(state[name], second["optimizer"]["state"][number][name]) for name in state)


@pytest.mark.parametrize("steps", [1, 3, 5, 6])  # in the first epoch, at its end, in the second, at its end
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(tmp_path, tiny_backbone, steps):
    images = draw_images(10)  # batches of 4, 3, 3
    whole = train(tmp_path / "whole", images)
    stopped = make_trainer(tmp_path / "stopped", images)
    with pytest.raises(Terminated, match=r"small_img_2.pth holds epoch ., step .; the same command goes on"):
        stopped.run(StopAfter(steps))
    position = torch.load(stopped.path, weights_only=True)
    assert (position["epoch"], position["step"]) == ((steps - 1) // 3, (steps - 1) % 3 + 1)
    resumed = make_trainer(tmp_path / "stopped", images, resume=True)
    resumed.resume()
    resumed.run(StopAfter())
    assert_equal_runs(whole.path, resumed.path)


def test_a_stopped_and_resumed_resnet_equals_an_uninterrupted_one(tmp_path):
    images = draw_images(8)
    whole = train(tmp_path / "whole", images)
    with pytest.raises(Terminated):
        make_trainer(tmp_path / "stopped", images).run(StopAfter(1))
    resumed = make_trainer(tmp_path / "stopped", images)
    resumed.resume()
    resumed.run(StopAfter())
    assert_equal_runs(whole.path, resumed.path)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path, tiny_backbone, two_threads, monkeypatch):
    written = []
    for folder, seed in (("one", 1), ("again", 1), ("other", 2)):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)  # the settings, with their paths, are in the checkpoint
        written.append((train("ckpt", draw_images(9), seed=seed).path).read_bytes())
    assert written[0] == written[1]
    assert written[0] != written[2]


def test_weights_order_and_views_depend_on_the_seed(tmp_path, tiny_backbone):
    one, other = (make_trainer(tmp_path, draw_images(9), seed=seed) for seed in (1, 2))
    assert not torch.equal(one.model.projector[0].weight, other.model.projector[0].weight)
    assert not torch.equal(torch.cat(one.batches()), torch.cat(other.batches()))


@pytest.mark.parametrize(("num_patches", "sizes"), [(10, [4, 3, 3]), (8, [4, 4]), (9, [3, 3, 3]), (3, [3]), (5, [3, 2])])
def test_every_patch_is_seen_once_an_epoch_in_batches_of_nearly_equal_size(tmp_path, tiny_backbone, num_patches, sizes):
    trainer = make_trainer(tmp_path, draw_images(num_patches))
    batches = trainer.batches()
    assert [len(batch) for batch in batches] == sizes
    assert sorted(torch.cat(batches).tolist()) == list(range(num_patches))
    trainer.epoch = 1
    assert not torch.equal(torch.cat(trainer.batches()), torch.cat(batches)) or num_patches == 3


@pytest.mark.parametrize(
    ("num_patches", "batch_size", "sizes"), [(3, 2, [3]), (9, 2, [3, 2, 2, 2]), (2, 2, [2]), (5, 4, [3, 2]), (130, 64, [44, 43, 43])]
)
def test_no_batch_holds_a_single_patch_whatever_the_number_of_processes(tmp_path, tiny_backbone, num_patches, batch_size, sizes):
    trainer = make_trainer(tmp_path, draw_images(num_patches), batch_size=batch_size)
    alone = trainer.batches()
    assert [len(batch) for batch in alone] == sizes
    trainer.fabric = SimpleNamespace(world_size=2)
    assert all(torch.equal(one, two) for one, two in zip(alone, trainer.batches(), strict=True))


def record_steps(monkeypatch):
    """Lists, step by step, the patches, the seed and the views of a run."""
    steps = []
    original = ViewLoader.parts

    def parts(loader, job):
        steps.append((job.batch.tolist(), job.random.initial_seed()))
        made = original(loader, job)
        steps[-1] += (loader.views(made[0]).chunk(2),)
        return made

    monkeypatch.setattr(ViewLoader, "parts", parts)
    return steps


def test_each_step_draws_two_different_views_of_the_same_patches(tmp_path, tiny_backbone, monkeypatch):
    steps = record_steps(monkeypatch)
    trainer = train(tmp_path, draw_images(8))
    assert len(steps) == 2 * 2  # epochs, steps
    for patches, _, (first, second) in steps:
        assert len(first) == len(second) == len(patches)
        assert not torch.equal(first, second)
        whole = embedding_views(trainer.loader.pyramid, torch.tensor(patches), 16)
        for views in (first, second):  # of the same patches, row by row: nearer in colour to their own than to the others
            distance = torch.cdist(views.mean(dim=(2, 3)), whole.mean(dim=(2, 3)))
            assert (distance.argmin(dim=1) == torch.arange(len(patches))).float().mean() > 0.7
    assert sorted(steps[0][0] + steps[1][0]) == list(range(8))
    assert not torch.equal(steps[0][2][0], steps[2][2][0])


def test_every_step_of_every_epoch_draws_numbers_of_its_own(tmp_path, tiny_backbone, monkeypatch):
    steps = record_steps(monkeypatch)
    for seed in (1, 2):
        train(tmp_path / str(seed), draw_images(8), seed=seed)
    assert len({seed for _, seed, _ in steps}) == len(steps) == 2 * 2 * 2  # seeds, epochs, steps


def test_the_history_tells_loss_chance_and_learning_rate_of_every_epoch(tmp_path, tiny_backbone):
    history = train(tmp_path, draw_images(10), lr=0.01, schedule=[2]).history
    assert [row["epoch"] for row in history] == [1, 2]
    assert [row["lr"] for row in history] == pytest.approx([0.01, 0.001])
    # Batches of 4, 3, 3 patches: chance levels log 7, log 5, log 5.
    assert history[0]["chance"] == pytest.approx((math.log(7) + 2 * math.log(5)) / 3)
    assert set(history[0]) == {"epoch", "lr", "loss", "chance", "spread", "retrieval"}


def test_learning_rate_by_hand():
    steps = small_config(lr=1.0, total_epoch=120, schedule=[90, 110])
    assert [learning_rate(steps, epoch) for epoch in (0, 88, 89, 108, 109, 119)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    cosine = small_config(lr=2.0, total_epoch=4, cos=True)
    assert [learning_rate(cosine, epoch) for epoch in range(4)] == pytest.approx([2, 1 + math.sqrt(0.5), 1, 1 - math.sqrt(0.5)])


def test_the_optimiser_takes_the_learning_rate_of_the_epoch(tmp_path, tiny_backbone):
    trainer = make_trainer(tmp_path, draw_images(4), lr=0.5, total_epoch=3, cos=True)
    seen = []
    original = trainer.train_step
    trainer.train_step = lambda *step: (seen.append(trainer.optimizer.param_groups[0]["lr"]), original(*step))
    trainer.run(StopAfter())
    assert seen == pytest.approx([0.5, 0.5 * 0.75, 0.5 * 0.25])


def test_the_loss_falls_below_chance_on_patches_of_different_colour(tmp_path, tiny_backbone):
    random = np.random.default_rng(1)
    images = {str(n): np.broadcast_to(random.integers(20, 230, (3, 1, 1)), (3, 9, 9)).astype("uint8") for n in range(12)}
    weak = ViewConfig(shift=0.0, gain=0.0)
    history = train(tmp_path, images, lr=0.05, total_epoch=8, batch_size=12, views=weak).history
    assert history[-1]["loss"] < history[-1]["chance"] - 0.5
    assert history[-1]["loss"] < history[0]["loss"]


def test_resuming_with_other_settings_names_what_changed(tmp_path, tiny_backbone):
    train(tmp_path, draw_images(6), lr=0.01)
    with pytest.raises(InputError, match=r"small_img_2.pth .*\(lr 0.01 there, 0.02 now; batch_size 4 there, 6 now\)"):
        make_trainer(tmp_path, draw_images(6), lr=0.02, batch_size=6).resume()
    with pytest.raises(InputError, match="views"):
        make_trainer(tmp_path, draw_images(6), lr=0.01, views=ViewConfig(gain=0.2)).resume()
    with pytest.raises(InputError, match="normalisation"):
        make_trainer(tmp_path, draw_images(6, seed=5), lr=0.01).resume()


def test_a_finished_run_that_is_resumed_stays_as_it_is(tmp_path, tiny_backbone):
    finished = train(tmp_path, draw_images(6))
    resumed = make_trainer(tmp_path, draw_images(6), device="auto")
    resumed.resume()
    resumed.run(StopAfter())
    assert resumed.history == finished.history


def linear_backbone(name, num_bands, view_size, seed):
    """An encoder without batch norm: its gradient does not depend on the parts of a batch."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(16 * num_bands, 8)), 8


@pytest.mark.parametrize("parts", [2, 3])
def test_a_batch_in_parts_keeps_its_negatives_loss_and_gradient(tmp_path, monkeypatch, parts):
    monkeypatch.setattr(trainer_module, "build_backbone", linear_backbone)
    images = draw_images(11)
    gradients = []
    for accumulate in (1, parts):
        trainer = make_trainer(tmp_path / str(accumulate), images, batch_size=11, total_epoch=1, accumulate=accumulate)
        monkeypatch.setattr(trainer.optimizer, "step", lambda: None)
        trainer.run(StopAfter())
        gradients.append([parameter.grad.clone() for parameter in trainer.model.parameters()])
        gradients[-1].append(torch.tensor([trainer.history[0][name] for name in ("loss", "spread", "retrieval")]))
    for whole, divided in zip(*gradients, strict=True):
        torch.testing.assert_close(divided, whole, rtol=1e-4, atol=1e-6)


def test_batch_norm_counts_a_batch_in_parts_once(tmp_path, tiny_backbone):
    counts = {}
    for accumulate in (1, 2):
        trainer = train(tmp_path / str(accumulate), draw_images(8), batch_size=8, total_epoch=1, accumulate=accumulate)
        counts[accumulate] = next(buffer for name, buffer in trainer.model.named_buffers() if "num_batches" in name).item()
    assert counts == {1: 1, 2: 2}  # one forward pass with gradients per part


def test_kept_buffers_are_as_they_were():
    norm = torch.nn.BatchNorm1d(3)
    with kept_buffers(norm):
        norm(torch.randn(5, 3))
        assert norm.num_batches_tracked == 1
    assert norm.num_batches_tracked == 0 and (norm.running_mean == 0).all()


def test_pixels_that_are_streamed_give_the_run_of_pixels_on_the_device(tmp_path, tiny_backbone, monkeypatch):
    images = draw_images(10)
    train(tmp_path / "device", images)
    monkeypatch.setattr(ViewLoader, "streams", True)
    train(tmp_path / "disk", images, patches_on="disk")
    assert_equal_runs(*(tmp_path / place / "small_img_2.pth" for place in ("device", "disk")))
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == sorted(path.name for path in (tmp_path / "device").iterdir())


def notes_of(trainer):
    trainer.run(StopAfter())
    return [note for note in trainer.ledger.notes if note.startswith("the encoder runs")]


def test_a_trial_leaves_no_trace_and_the_faster_of_both_runs(tmp_path, tiny_backbone, monkeypatch):
    images = draw_images(8)
    train(tmp_path / "plain", images)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)  # the trial, without the minute that a compiler takes
    trainer = make_trainer(tmp_path / "trial", images, compile="on")
    assert len(notes_of(trainer)) == 1 and "ms a pass compiled" in trainer.ledger.notes[-1]
    assert_equal_runs(*(tmp_path / place / "small_img_2.pth" for place in ("plain", "trial")))


class FailsBackwards(torch.autograd.Function):
    @staticmethod
    def forward(context, views):
        return views.clone()

    @staticmethod
    def backward(context, gradient):
        raise RuntimeError("no C++ compiler found. Install one")


def fails_backwards(function, dynamic):
    """A compiled function that runs forwards: backward passes are compiled when they are first needed."""
    return lambda views: FailsBackwards.apply(function(views))


def test_an_encoder_that_cannot_be_compiled_runs_as_it_is(tmp_path, tiny_backbone, monkeypatch):
    images = draw_images(8)
    train(tmp_path / "plain", images)
    monkeypatch.setattr(torch, "compile", fails_backwards)
    assert notes_of(make_trainer(tmp_path / "fails", images, compile="on")) == [
        "the encoder runs as it is: it could not be compiled (no C++ compiler found)"
    ]
    assert_equal_runs(*(tmp_path / place / "small_img_2.pth" for place in ("plain", "fails")))


@pytest.mark.parametrize(("stopped_after", "notes"), [(3, 1), (6, 0)])
def test_a_run_that_was_stopped_at_the_end_of_an_epoch_resumes_with_a_trial(tmp_path, tiny_backbone, monkeypatch, stopped_after, notes):
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    images = draw_images(10)
    with pytest.raises(Terminated):
        make_trainer(tmp_path, images).run(StopAfter(stopped_after))
    resumed = make_trainer(tmp_path, images, compile="on")
    resumed.resume()
    assert len(notes_of(resumed)) == notes  # none where no step is left
    assert [row["epoch"] for row in resumed.history] == [1, 2]


def test_short_runs_and_runs_on_a_cpu_are_not_compiled_unasked(tmp_path, tiny_backbone, monkeypatch):
    monkeypatch.setattr(torch, "compile", None)
    assert notes_of(make_trainer(tmp_path, draw_images(8))) == []
    monkeypatch.setattr(compiling, "LONG_RUN_STEPS", 1)
    assert notes_of(make_trainer(tmp_path / "long", draw_images(8))) == []


def damage(path: Path):
    """Changes a weight of a checkpoint, and nothing that torch could see."""
    content = torch.load(path, weights_only=True)
    next(tensor for tensor in content["model"].values() if tensor.is_floating_point())[0] += 1
    torch.save(content, path)


def test_the_last_two_and_the_best_checkpoint_stay_and_load(tmp_path, tiny_backbone):
    trainer = train(tmp_path, draw_images(6), total_epoch=4, lr=0.02)
    losses = [row["loss"] for row in trainer.history]
    kept = {
        name: load_checkpoint(path)
        for name, path in (("last", trainer.path), ("previous", previous_path(trainer.path)), ("best", best_path(trainer.path)))
    }
    assert (kept["last"]["epoch"], kept["previous"]["epoch"]) == (4, 3)
    assert kept["best"]["epoch"] == int(np.argmin(losses)) + 1
    assert all(content["step"] == 0 for content in kept.values())
    assert find_checkpoint(None, str(tmp_path), "small") == trainer.path


def test_a_damaged_checkpoint_is_told_by_its_checksum_and_the_one_before_is_taken(tmp_path, tiny_backbone):
    images = draw_images(6)
    whole = train(tmp_path / "whole", images, total_epoch=3)
    train(tmp_path / "other", images, total_epoch=3)
    resumed = make_trainer(tmp_path / "other", images, total_epoch=3)
    damage(resumed.path)
    resumed.resume()
    assert resumed.epoch == 2
    assert any(
        note.startswith("warning: ") and "is damaged" in note and "small_img_3_previous.pth" in note for note in resumed.ledger.notes
    )
    resumed.run(StopAfter())
    for path in (whole.path, previous_path(whole.path), best_path(whole.path)):
        assert_equal_runs(path, tmp_path / "other" / path.name)
    damage(resumed.path)
    previous_path(resumed.path).unlink()
    with pytest.raises(InputError, match=r"is damaged: .*--resume false"):
        make_trainer(tmp_path / "other", images, total_epoch=3).resume()


@pytest.mark.parametrize("steps", [2, 4])
def test_a_loss_that_is_no_number_ends_the_run_with_batch_and_patches_and_keeps_the_last_good_checkpoint(
    tmp_path, tiny_backbone, monkeypatch, steps
):
    trainer, seen = make_trainer(tmp_path, draw_images(10), total_epoch=3), []  # batches of 4, 3, 3
    contrast = trainer.objective.loss

    def spoiled(*arguments):
        seen.append(None)
        loss, others = contrast(*arguments)
        return loss * (math.nan if len(seen) == steps else 1.0), others

    monkeypatch.setattr(trainer.objective, "loss", spoiled)
    epoch, batch = divmod(steps - 1, 3)
    trainer.epoch = epoch
    ids = [trainer.geocodes[number] for number in trainer.batches()[batch].tolist()]
    trainer.epoch = 0
    with pytest.raises(
        InputError, match=rf"no number from epoch {epoch + 1}, batch {batch + 1} on \(patches {', '.join(ids)}\); lower --lr"
    ):
        trainer.run(StopAfter())
    assert trainer.path.exists() == (epoch > 0)
    if epoch:
        assert load_checkpoint(trainer.path)["epoch"] == epoch


def test_weights_that_are_no_numbers_do_not_reach_a_checkpoint(tmp_path, tiny_backbone, monkeypatch):
    trainer = make_trainer(tmp_path, draw_images(4), total_epoch=1)
    step = trainer.optimizer.step

    def spoiled():
        step()
        with torch.no_grad():
            next(trainer.model.parameters())[0] = math.inf

    monkeypatch.setattr(trainer.optimizer, "step", spoiled)
    with pytest.raises(InputError, match=r"weights are no numbers after epoch 1, batch 1 \(patches"):
        trainer.run(StopAfter())
    assert not trainer.path.exists()


def test_too_little_memory_ends_with_the_advice_that_fits(tmp_path, tiny_backbone, monkeypatch):
    trainer = make_trainer(tmp_path, draw_images(6), accumulate=2)

    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(trainer, "train_step", full)
    with pytest.raises(InputError, match=r"memory of cpu is full in epoch 1, .* use --accumulate 4, .*lower --batch_size"):
        trainer.run(StopAfter())
