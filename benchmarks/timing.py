"""Measuring two ways to do the same thing beside each other, because a machine is never equally fast for long."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SECONDS_BETWEEN_LOOKS = 0.05
ROW_HEADERS = ("stage", "ours", "reference", "ratio", "target", "met?")

# What a subprocess whose memory is measured runs: {0} is prepared before, {1} is measured.
MEASURED_CODE = """
def peak_mb():
    # Of this process alone: ru_maxrss begins at the peak of the process that started it.
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
{0}
before = peak_mb()
{1}
print(before, peak_mb())
"""


@dataclass(frozen=True)
class Target:
    """What is asked of a measured value, in a unit: ``x`` for a ratio, ``%``, ``MB``, ``s``."""

    bound: float
    unit: str
    at_least: bool = False

    def met(self, value: float) -> bool:
        """Whether a value reaches it."""
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.shown(self.bound)}"

    def shown(self, value: float) -> str:
        """A value in the target's unit."""
        return f"{value:,.0f} {self.unit}" if self.unit in ("%", "MB") else f"{value:,.2f} {self.unit}"


@dataclass(frozen=True)
class Row:
    """A line of the table; without a target the value is only reported."""

    stage: str
    ours: str
    reference: str
    value: float
    target: Target

    def cells(self) -> tuple[str, ...]:
        """As text, in the order of the headers."""
        met = "yes" if self.target.met(self.value) else "NO"
        return self.stage, self.ours, self.reference, self.target.shown(self.value), str(self.target), met


@dataclass(frozen=True)
class Settings:
    """What every benchmark is told.

    Attributes:
        data: Folder of the real sample; None where everything is generated.
        scratch: Folder for what is generated.
        repeats: Runs of each way.
        quick: Toy sizes, to see that everything runs.
    """

    data: Path | None
    scratch: Path
    repeats: int
    quick: bool

    def size(self, full: int, toy: int) -> int:
        """A size, by whether the run is quick."""
        return toy if self.quick else full


def alternate(ways: Sequence[Callable[[], object]], repeats: int, warm_up: bool = True) -> list[float]:
    """Median seconds of each way, which take turns; what the one before wrote is on the disk before the next begins."""
    seconds: list[list[float]] = [[] for _ in ways]
    for round_number in range(-1 if warm_up else 0, repeats):
        for way, taken in zip(ways, seconds, strict=True):
            if hasattr(os, "sync"):
                os.sync()
            started = time.perf_counter()
            way()
            if round_number >= 0:
                taken.append(time.perf_counter() - started)
    return [statistics.median(taken) for taken in seconds]


def command_of(script: str, *flags: object) -> list[str]:
    """A script of the project under this interpreter."""
    return [sys.executable, "-W", "ignore", str(ROOT / script), *map(str, flags)]


def environment() -> dict[str, str]:
    """This tree's library for processes that are started, installed or not."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}


def run(command: Sequence[str]) -> None:
    """Runs a command to its end.

    Raises:
        RuntimeError: It failed.
    """
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}: {done.stderr[-2000:]}")


def peak_tree_mb(command: Sequence[str]) -> float:
    """Most memory that a command and all processes that it starts hold at once, pages that they share counted once; NaN without /proc."""
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0.0 if Path("/proc/self/smaps_rollup").exists() else float("nan")
    while process.poll() is None:
        peak = max(peak, sum(proportional_mb(number) for number in tree(process.pid)))
        time.sleep(SECONDS_BETWEEN_LOOKS)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")
    return peak


def tree(process: int) -> list[int]:
    """A process and those that it started, directly or not."""
    children: list[int] = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children += map(int, path.read_text().split())
        except OSError:  # it has just ended
            continue
    return [process, *(below for child in children for below in tree(child))]


def proportional_mb(process: int) -> float:
    """Memory of a process, a page of n processes counted as 1/n of it; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


def peak_mb(prepare: str, work: str) -> tuple[float, float]:
    """Peak memory of a new process before and after some code: (before, after); NaN on systems without /proc."""
    if not Path("/proc/self/status").exists():
        return float("nan"), float("nan")
    command = [sys.executable, "-W", "ignore", "-c", MEASURED_CODE.format(prepare, work)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measured code failed: {done.stderr[-2000:]}")
    before, after = map(float, done.stdout.split()[-2:])
    return before, after


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Markdown."""
    print("| " + " | ".join(headers) + " |\n" + "| --- " * len(headers) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


def machine() -> str:
    """Cores, processor, torch and device."""
    import torch

    from imagery2flow.run.device import choose_device, choose_precision

    names = [line.split(":")[1].strip() for line in cpu_lines() if line.startswith("model name")]
    device = choose_device("auto")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return (
        f"{os.cpu_count()} cores ({names[0] if names else platform.processor() or platform.machine()}), {platform.system()}, "
        f"torch {torch.__version__} with {torch.get_num_threads()} threads, device {name}, {choose_precision('auto', device)[0]}"
    )


def cpu_lines() -> list[str]:
    """What Linux says of its processors."""
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
