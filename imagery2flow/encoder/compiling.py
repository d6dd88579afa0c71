"""``torch.compile`` where it pays: a trial of both decides, and what cannot be compiled runs as it is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch

from imagery2flow.encoder.objectives import SimCLR
from imagery2flow.encoder.supervised import Supervised
from imagery2flow.run.errors import first_sentence
from imagery2flow.run.stage import Ledger

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Compiling takes about a minute, which a shorter run does not win back.
LONG_RUN_STEPS = 2000
TRIAL_PASSES = 5


def is_worth_a_trial(wanted: Literal["auto", "on", "off"], num_steps: int, device: torch.device) -> bool:
    """Whether to try a compiled encoder: for ``auto`` in long runs on a GPU, for ``on`` always while a step is left."""
    if wanted == "auto":
        return device.type == "cuda" and num_steps >= LONG_RUN_STEPS
    return wanted == "on" and num_steps > 0


def compile_if_faster(
    model: SimCLR | Supervised, one_pass: Callable[[], None], even_if_slower: bool, fabric: Fabric, ledger: Ledger
) -> None:
    """Compiles the encoder, unless it is slower so or cannot be compiled; says which in the ledger.

    Args:
        model: Its ``encode`` is replaced.
        one_pass: Runs the model forward and backward on views of the run's shape, and leaves no trace.
        even_if_slower: Whether it was asked for.
        fabric: Of the run; all its processes decide alike.
        ledger: Takes what was decided.
    """
    plain = model.encode
    plain_s = seconds(one_pass, fabric.device)
    model.encode = torch.compile(plain, dynamic=False)
    problem = ""
    try:
        one_pass()  # compiles
        compiled_s = seconds(one_pass, fabric.device)
    except Exception as error:  # the compiler raises whatever its parts do; a run does not end for want of a C++ compiler
        compiled_s, problem = math.inf, first_sentence(error)
    times = fabric.all_reduce(torch.tensor([plain_s, compiled_s], device=fabric.device))  # all processes decide alike
    assert isinstance(times, torch.Tensor)
    plain_s, compiled_s = times.tolist()
    is_compiled = compiled_s < (math.inf if even_if_slower else plain_s)
    if not is_compiled:
        model.encode = plain
    if math.isinf(compiled_s):
        ledger.note(f"the encoder runs as it is: it could not be compiled ({problem or 'in another process'})")
    else:
        outcome = "compiled" if is_compiled else "as it is"
        ledger.note(f"the encoder runs {outcome}: {1000 * compiled_s:.1f} ms a pass compiled, {1000 * plain_s:.1f} ms as it is")


def seconds(work: Callable[[], object], device: torch.device, repeats: int = TRIAL_PASSES, warm_up: int = 1) -> float:
    """Wall time of some work, the mean of several calls after some to warm up."""
    for _ in range(warm_up):
        work()
    wait(device)
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(device)
    return (time.perf_counter() - started) / repeats


def wait(device: torch.device) -> None:
    """Waits until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
