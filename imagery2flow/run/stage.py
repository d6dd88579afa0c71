"""What surrounds the work of a stage: its ledger, its provenance file, its exit status and its answer to SIGTERM.

A stage's work is a function ``work(config, ledger) -> path of run.json``, or None where it only looked. ``run_stage`` calls it, turns an ``InputError`` into one
sentence and status 2, and writes ``run.json`` with the resolved configuration, the versions, the hashes of the inputs, the wall time,
the peak memory and the ledger.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from imagery2flow.run.errors import BAD_PATH, FULL_DISK, InputError, first_sentence, is_out_of_memory, shown
from imagery2flow.run.files import sha256, write_json

ROOT = Path(__file__).resolve().parents[2]
STATUS_INPUT_ERROR = 2
STATUS_INTERRUPTED = 128 + signal.SIGINT
STATUS_TERMINATED = 128 + signal.SIGTERM
VERSIONS_OF = ("imagery2flow", "torch", "torchvision", "torch-geometric", "numpy", "pandas", "geopandas", "rasterio", "lightgbm")

Config = TypeVar("Config")


class Terminated(Exception):
    """SIGTERM arrived; what was to be saved has been saved."""


class Ledger:
    """What came into a stage, what went out, what was left out and why. Nothing is dropped without a line here."""

    def __init__(self, stage: str, quiet: bool = False) -> None:
        self.stage = stage
        self.quiet = quiet
        self.notes: list[str] = []
        self.came_in: dict[str, int] = {}
        self.went_out: dict[str, int] = {}
        self.left_out: dict[str, list[str]] = {}
        self.inputs: list[Path] = []

    def note(self, sentence: str) -> None:
        """Says a sentence at once and keeps it for ``run.json``."""
        self.notes.append(sentence)
        self.say(sentence)

    def say(self, sentence: str) -> None:
        """Prints a sentence to standard error without keeping it: progress, not provenance."""
        if not self.quiet:
            print(f"[{self.stage}] {sentence}", file=sys.stderr, flush=True)

    def take_in(self, what: str, count: int) -> None:
        """Counts what came in; of several files the sum."""
        self.came_in[what] = self.came_in.get(what, 0) + count

    def leave_out(self, reason: str, ids: Iterable[object]) -> None:
        """Notes ids that do not go on, and why; an empty collection notes nothing."""
        texts = [str(value) for value in ids]
        if texts:
            self.left_out.setdefault(reason, []).extend(texts)

    def reads(self, path: str | Path) -> None:
        """Notes an input file, whose hash goes into ``run.json``."""
        self.inputs.append(Path(path))

    def summary(self) -> str:
        """One line: what came in, went out, was left out."""
        came_in = ", ".join(f"{count:,} {what}" for what, count in self.came_in.items())
        went_out = ", ".join(f"{count:,} {what}" for what, count in self.went_out.items())
        left_out = "; ".join(f"{len(ids):,} {reason} ({shown(ids)})" for reason, ids in self.left_out.items())
        return f"in: {came_in or 'nothing'}; out: {went_out or 'nothing'}; left out: {left_out or 'nothing'}"


def run_stage(stage: str, config: Config, work: Callable[[Config, Ledger], Path | None]) -> int:
    """Runs the work of a stage and returns the exit status.

    That is 0 done, 2 input error, full disk, place without permission or too little memory, 130 Ctrl-C, 143 SIGTERM; then what is finished is saved.
    """
    ledger = Ledger(stage, quiet=not is_first_process())
    started = time.perf_counter()
    try:
        with stopping_at_sigterm("what is finished is kept, and the same command goes on"):
            run_file = work(config, ledger)
            if run_file is not None and is_first_process():
                write_json(run_file, provenance(config, ledger, time.perf_counter() - started))
    except KeyboardInterrupt:
        ledger.say("stopped by Ctrl-C")
        return STATUS_INTERRUPTED
    except Terminated as stopped:
        ledger.say(f"stopped by SIGTERM: {stopped}")
        return STATUS_TERMINATED
    except Exception as error:
        sentence = sentence_for_user(error)
        if sentence is None:
            raise
        print(f"{stage}: error: {sentence}", file=sys.stderr)
        return STATUS_INPUT_ERROR
    if run_file is None:
        return 0
    ledger.say(ledger.summary())
    ledger.say(f"settings, versions and input hashes: {run_file}")
    return 0


def sentence_for_user(error: Exception) -> str | None:
    """What the user reads of an error that can be mended outside the program; None for a defect of ours."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        return f"a disk is full ({first_sentence(error)}); make room, or name another folder, and run the same command again"
    if isinstance(error, OSError) and error.errno in BAD_PATH:
        return (
            f"the system cannot use a path ({first_sentence(error)}); check its name, its links and its permissions, or name another folder"
        )
    if isinstance(error, MemoryError):
        return f"memory does not suffice ({first_sentence(error)}); check that the sizes in the input are true, use fewer --workers, or take a larger machine"
    if is_out_of_memory(error):
        return f"the memory of the device is full ({first_sentence(error)}); free it of other programs, or compute with --device cpu"
    return None


def is_first_process() -> bool:
    """Whether this process writes the files: rank 0 under torchrun, always true without it."""
    import os

    return int(os.environ.get("RANK", "0")) == 0


def provenance(config: Any, ledger: Ledger, wall_time_s: float) -> dict[str, Any]:
    """What is needed to repeat a run and to judge its cost."""
    return {
        "stage": ledger.stage,
        "command": sys.argv,
        "config": dataclasses.asdict(config),
        "commit": source_commit(),
        "python": platform.python_version(),
        "versions": {name: version for name in VERSIONS_OF if (version := installed_version(name))},
        "inputs_sha256": {str(path): sha256(path) for path in ledger.inputs if path.is_file()},
        "ledger": {"in": ledger.came_in, "out": ledger.went_out, "left_out": ledger.left_out, "notes": ledger.notes},
        "wall_time_s": round(wall_time_s, 3),
        "peak_memory_mb": peak_memory_mb(resource.RUSAGE_SELF),
        "largest_child_peak_memory_mb": peak_memory_mb(resource.RUSAGE_CHILDREN),  # of worker processes, which are not in the other
    }


def peak_memory_mb(whose: int) -> float:
    """Most memory that this process, or the largest of those that it started and that ended, held at once."""
    # Linux reports kilobytes, macOS bytes.
    return round(resource.getrusage(whose).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2), 1)


def installed_version(name: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def source_commit(root: Path = ROOT) -> str | None:
    """Commit of the source tree that runs, with ``-dirty`` where its code differs from that; None outside a checkout."""
    if not (root / ".git").exists():
        return None
    commit = git(root, "rev-parse", "HEAD")
    # The stage scripts and the package only: what lies in other folders does not run, and looking through it takes time.
    changed = git(root, "status", "--porcelain", "--", "imagery2flow", ":(glob)*.py")
    return (commit + "-dirty" * bool(changed)) or None


def git(root: Path, *arguments: str) -> str:
    """What a git command prints; nothing where it fails."""
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False).stdout.strip()


@contextmanager
def stopping_at_sigterm(what_remains: str) -> Iterator[None]:
    """Ends work where it stands on SIGTERM, so that temporary files are removed; for work that keeps what is finished as it goes.

    Args:
        what_remains: What has been saved, for the message.
    """

    def stop(number: int, frame: object) -> None:
        raise Terminated(what_remains)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class TerminationFlag:
    """Turns SIGTERM into a flag that a training loop reads between steps, so that it can save before it ends."""

    def __init__(self) -> None:
        self.raised = False
        self._before: Any = None

    def __enter__(self) -> TerminationFlag:
        self._before = signal.signal(signal.SIGTERM, self._raise)
        return self

    def _raise(self, number: int, frame: object) -> None:
        self.raised = True

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)
