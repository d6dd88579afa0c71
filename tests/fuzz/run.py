"""Fuzzes the readers for a time: ``python -m tests.fuzz.run --seconds 600``. What it finds stays in tests/fuzz/seeds and is tested from then on.

A process reads; this one watches it, so that a crash of a library in C, an endless loop and a full memory are found too. An input is a
fault if the reader neither gives a result that passes an independent check nor refuses it with an ``InputError`` of one sentence, if it
takes more than 10 s, or if the process comes to hold more than 1 GB. Each fault is kept once, as small as Hypothesis can make it.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky

from tests.processes import forget_peak, peak_bytes, resident_bytes

from .inputs import spoiled
from .readers import Reader, all_readers, attempt

SEEDS = Path(__file__).parent / "seeds"
LONGEST_S, LARGEST_BYTES = 10.0, 1 << 30
EXAMPLES_PER_ROUND = 150
POLL_S = 0.25


class Fault(Exception):
    """An input that no reader may answer as it did."""


def place_of(error: BaseException) -> str:
    """What tells faults apart: the class of the error, and the last line of our own code that it came through."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "imagery2flow/" in frame.filename or "fuzz/readers" in frame.filename
    ]
    last = frames[-1] if frames else None
    return f"{type(error).__name__} in {Path(last.filename).name}:{last.name}:{last.lineno}" if last else type(error).__name__


def fault_of(reader: Reader, path: Path, outcomes: Counter[str]) -> tuple[str, str] | None:
    """Reads a file; place and text of what is wrong, or None."""
    forget_peak()
    before = peak_bytes()  # of whoever reads, which may be a process of many other tests
    started = time.monotonic()
    try:
        outcomes[attempt(reader, path)] += 1
    except Exception as error:
        return f"{reader.name}: {place_of(error)}", f"{type(error).__name__}: {str(error)[:300]}"
    if time.monotonic() - started > LONGEST_S:
        return f"{reader.name}: slow", f"{time.monotonic() - started:.1f} s"
    if (grown := peak_bytes() - before) > LARGEST_BYTES:
        return f"{reader.name}: memory", f"{grown >> 20:,} MB"
    return None


def fuzz_round(reader: Reader, folder: Path, number: int, known: set[str], pipe: Connection) -> None:
    """Tries some inputs of one reader; the first new fault ends the round, made small."""
    outcomes: Counter[str] = Counter()
    found: list[tuple[str, str, str, bytes]] = []

    @seed(number)
    @settings(
        max_examples=EXAMPLES_PER_ROUND, deadline=None, database=None, derandomize=False, print_blob=False,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    @given(spoiled(reader.valid))
    def search(drawn: tuple[str, bytes]) -> None:
        suffix, content = drawn
        path = folder / f"{reader.name}{suffix}"
        path.write_bytes(content)
        pipe.send(("reads", path))
        fault = fault_of(reader, path, outcomes)
        pipe.send(("did read", None))
        if fault is not None and fault[0] not in known and (not found or found[0][0] == fault[0]):
            found.append((*fault, suffix, content))
            raise Fault(fault[0])

    try:
        search()
    except (Fault, Flaky):
        pipe.send(("found", (reader.name, *min(found[-1:] + found, key=lambda fault: len(fault[3])))))
        known.add(found[0][0])
    pipe.send(("tried", (reader.name, outcomes)))


def work(folder: Path, first: int, known: set[str], only: str | None, pipe: Connection) -> None:
    """Fuzzes reader after reader until it is killed."""
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what GDAL says of every file
    readers = [reader for reader in all_readers() if only in (None, reader.name)]
    number = first
    try:
        while True:
            for reader in readers:
                fuzz_round(reader, folder, number, known, pipe)
                number += 1
    except BaseException:  # ours: standard error is closed
        pipe.send(("broke", traceback.format_exc(limit=-3)[:2_000]))
        raise


def keep(reader: str, suffix: str, content: bytes) -> Path:
    """Puts an input among the seeds."""
    path = SEEDS / f"{reader}-{hashlib.sha256(content).hexdigest()[:10]}{suffix}"
    path.write_bytes(content)
    return path


def main() -> int:
    """Runs for the time asked for and prints what was tried and found; status 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--only", help="name of one reader")
    arguments = parser.parse_args()
    tried: Counter[str] = Counter()
    faults: dict[str, str] = {}
    context, first, end = multiprocessing.get_context("spawn"), arguments.seed, time.monotonic() + arguments.seconds
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            here, there = context.Pipe(duplex=False)
            worker = context.Process(target=work, args=(Path(folder), first, set(faults), arguments.only, there), daemon=True)
            worker.start()
            there.close()
            watch(worker, here, end, tried, faults)
            worker.kill()
            worker.join()
            first += 1_000_003  # other inputs than those of the process that was killed
    total = tried.pop("inputs")
    print(f"seed {arguments.seed}: {total:,} inputs in {arguments.seconds:.0f} s, {len(faults)} faults")
    for name in sorted(tried):
        print(f"  {name}: {tried[name]:,}")
    return int(bool(faults))


def watch(worker: multiprocessing.process.BaseProcess, pipe: Connection, end: float, tried: Counter[str], faults: dict[str, str]) -> None:
    """Takes what the reading process says until the time is over or that process must be replaced."""
    path: Path | None = None
    since = time.monotonic()

    def report(place: str, text: str, kept: Path) -> None:
        faults[place] = text
        print(f"{place}\n    {text}\n    kept as {kept.relative_to(SEEDS.parents[2])}", flush=True)

    while time.monotonic() < end:
        problem = None
        try:
            if pipe.poll(POLL_S):
                kind, value = pipe.recv()
                if kind == "reads":
                    path, since = value, time.monotonic()
                    tried["inputs"] += 1
                elif kind == "did read":
                    path = None
                elif kind == "tried":
                    tried.update({f"{value[0]} {outcome}": count for outcome, count in value[1].items()})
                elif kind == "broke":
                    raise SystemExit(value)
                elif kind == "found":
                    report(value[1], value[2], keep(value[0], value[3], value[4]))
                continue
            if path is not None and time.monotonic() - since > 2 * LONGEST_S:
                problem = "hangs"
            elif path is not None and resident_bytes(worker.pid) > LARGEST_BYTES:
                problem = "memory"
        except EOFError:
            worker.join()
            problem = f"ended with {worker.exitcode}"
        if problem is not None:
            if path is None:
                raise SystemExit(f"the reading process {problem} between two inputs")
            name, dot, suffix = path.name.partition(".")
            if f"{name}: {problem}" not in faults:
                report(f"{name}: {problem}", f"{path.stat().st_size:,} bytes", keep(name, dot + suffix, path.read_bytes()))
            return


if __name__ == "__main__":
    sys.exit(main())
