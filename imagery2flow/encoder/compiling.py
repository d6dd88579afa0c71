"""``torch.compile`` where it pays: a trial of both decides, and what cannot be compiled runs as it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch

from imagery2flow.encoder.objectives import SimCLR
from imagery2flow.run.errors import first_sentence
from imagery2flow.run.stage import Ledger

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Compiling takes about a minute, which a shorter run does not win back.
LONG_RUN_STEPS = 2000
TRIAL_PASSES = 5


def compile_if_faster(
    model: SimCLR, one_pass: Callable[[], None], wanted: Literal["auto", "on", "off"], num_steps: int, fabric: Fabric, ledger: Ledger
) -> None:
    """Compiles the encoder, unless it is slower so or cannot be compiled; says which in the ledger.

    Args:
        model: Its ``encode`` is replaced.
        one_pass: Runs the model forward and backward on views of the run's shape, and leaves no trace.
        wanted: ``auto`` compiles in long runs on a GPU where a trial is faster; ``on`` wherever it can be compiled.
        num_steps: Steps of the run.
        fabric: Of the run; all its processes decide alike.
        ledger: Takes what was decided.
    """
    if wanted == "off" or (wanted == "auto" and (fabric.device.type != "cuda" or num_steps < LONG_RUN_STEPS)):
        return
    plain = model.encode
    plain_s = seconds(one_pass, fabric.device)
    model.encode = torch.compile(plain, dynamic=False)
    try:
        one_pass()  # compiles
        compiled_s = seconds(one_pass, fabric.device)
    except Exception as error:  # the compiler raises whatever its parts do; a run does not end for want of a C++ compiler
        model.encode = plain
        ledger.note(f"the encoder runs as it is: it could not be compiled ({first_sentence(error)})")
        return
    times = fabric.all_reduce(torch.tensor([plain_s, compiled_s], device=fabric.device))
    assert isinstance(times, torch.Tensor)
    is_faster = bool(times[1] < times[0])
    if wanted == "auto" and not is_faster:
        model.encode = plain
    outcome = "compiled" if wanted == "on" or is_faster else "as it is"
    ledger.note(f"the encoder runs {outcome}: {1000 * times[1]:.1f} ms a pass compiled, {1000 * times[0]:.1f} ms as it is")


def seconds(one_pass: Callable[[], None], device: torch.device) -> float:
    """Wall time of one pass, the mean of several after one to warm up."""
    one_pass()
    wait(device)
    started = time.perf_counter()
    for _ in range(TRIAL_PASSES):
        one_pass()
    wait(device)
    return (time.perf_counter() - started) / TRIAL_PASSES


def wait(device: torch.device) -> None:
    """Waits until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
