"""The one place that decides device, precision and processes, and the one place that makes random numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils import deterministic

from imagery2flow.run.errors import InputError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CPU = torch.device("cpu")
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}


def choose_device(device: str) -> torch.device:
    """Turns ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps`` into a device that exists on this machine.

    Raises:
        InputError: The device is unknown or absent.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"--device {device} is no device; use auto, cpu, cuda, cuda:N or mps") from error
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present.get(chosen.type, False):
        raise InputError(f"--device {device} is not on this machine; use --device auto")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {device} is not on this machine, which has {torch.cuda.device_count()} GPUs; use --device auto")
    return chosen


def choose_precision(precision: str, device: torch.device) -> tuple[str, str]:
    """Decides between fp32 and bf16.

    Returns:
        The precision and the reason for it.
    """
    if precision != "auto":
        return precision, "asked for"
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "this GPU computes in bf16") if native else ("fp32", "this GPU has no bf16 units")
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return "bf16", "this CPU has bf16 instructions"
    return "fp32", f"no bf16 instructions known for {device.type}"


def make_fabric(device: str, precision: str) -> tuple[Fabric, str]:
    """Sets up device, precision and, under torchrun, the processes.

    Returns:
        The launched fabric and a sentence that says what was chosen and why.
    """
    from lightning_fabric import Fabric

    chosen = choose_device(device)
    precision, reason = choose_precision(precision, chosen)
    torch.set_float32_matmul_precision("high")  # TF32 for what stays in fp32 on a GPU; no effect on a CPU
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    one_device: list[int] | int = [chosen.index or 0] if chosen.type == "cuda" else 1
    fabric = Fabric(
        accelerator=chosen.type,
        devices=local_world_size if world_size > 1 else one_device,
        num_nodes=world_size // local_world_size,
        strategy="ddp" if world_size > 1 else "auto",
        precision=PRECISIONS[precision],  # type: ignore[arg-type]
    )
    fabric.launch()
    rest = ", TF32 for products that stay in single precision" if chosen.type == "cuda" else ""
    return fabric, f"device {fabric.device}, {world_size} process(es), {precision} ({reason}){rest}, {torch.get_num_threads()} CPU threads"


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on another device; a GPU is not waited for, which would leave it idle while the next work is prepared."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def has_fused_adam(device: torch.device) -> bool:
    """Whether Adam can update all weights in one pass over them."""
    return device.type in ("cpu", "cuda")


def generator(seed: int, *keys: int) -> torch.Generator:
    """An explicit generator for one purpose: the same ``seed`` and ``keys`` give the same numbers on every machine.

    Keys name the purpose, for example (epoch, step), so that a resumed run draws what an uninterrupted one would have drawn.
    """
    state = np.random.SeedSequence(seed, spawn_key=keys).generate_state(1, dtype=np.uint64)[0]
    return torch.Generator().manual_seed(int(state & np.uint64(0x7FFF_FFFF_FFFF_FFFF)))


def random_numbers(seed: int, *keys: int) -> np.random.Generator:
    """The same for numpy."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=keys))


@contextmanager
def seeded(seed: int, *keys: int, device: torch.device = CPU) -> Iterator[None]:
    """Seeds torch's global generators, because initialisers and dropout know no other, and restores them after; keys as in ``generator``."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(generator(seed, *keys).initial_seed())
        yield


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products of single-precision numbers in single precision, within autocast and where TF32 is allowed too."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def deterministic_on_cpu(device: torch.device) -> Iterator[None]:
    """On a CPU, makes sums over indices independent of the threads, so that equal runs are equal to the bit; elsewhere changes nothing."""
    before = torch.are_deterministic_algorithms_enabled()
    fill = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # a property of the module
    torch.use_deterministic_algorithms(before or device.type == "cpu")
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
