"""What became of each unit in stage 1, and the journal of it: a run that was killed goes on with the units that are not in it.

Each process writes a line per unit as soon as its patch has its place. Lines and patches need not be on the disk: after a loss of power, a line that is cut
off is no line, and a patch that is not what its line says is cut again.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from imagery2flow.run.files import sha256

JOURNAL = ".journal"  # a folder beside the patches: processes of several machines each have a file of their own


@dataclass(frozen=True)
class BandSums:
    """Per band over valid pixels: [num_bands] each."""

    count: int
    total: np.ndarray
    squares: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray


@dataclass(frozen=True)
class CutResult:
    """What became of a unit: a row of the manifest, the sums from which the statistics of the bands are made, and the sha256 of its patch."""

    row: dict[str, Any]
    sums: BandSums | None
    sha256: str | None = None


def open_journal(folder: Path) -> TextIO:
    """A new file for the lines of this process."""
    (folder / JOURNAL).mkdir(exist_ok=True)
    return (folder / JOURNAL / secrets.token_hex(8)).open("x", encoding="utf-8")


def note_in_journal(journal: TextIO, result: CutResult) -> None:
    """Writes a line."""
    sums = None if result.sums is None else dataclasses.asdict(result.sums)
    journal.write(json.dumps({"row": result.row, "sums": sums, "sha256": result.sha256}, default=lambda value: value.tolist()) + "\n")
    journal.flush()


def read_journal(folder: Path) -> list[CutResult]:
    """The units that are done, each once; those whose patch is not what was written are left out."""
    found = {}
    for path in sorted((folder / JOURNAL).glob("*")):
        for line in path.read_bytes().splitlines():
            result = read_line(line)
            if result is not None and is_whole(folder, result):
                found[result.row["geocode"]] = result
    return list(found.values())


def read_line(line: bytes) -> CutResult | None:
    """What a line says; None if it is not whole."""
    try:
        content: dict[str, Any] = json.loads(line)
        sums = content["sums"] and BandSums(
            content["sums"]["count"], *(np.array(content["sums"][name]) for name in ("total", "squares", "minimum", "maximum"))
        )
        return CutResult(content["row"], sums, content["sha256"])
    except (ValueError, LookupError, TypeError):
        return None


def is_whole(folder: Path, result: CutResult) -> bool:
    """Whether the patch of a unit, where it has one, is what was written."""
    if result.sha256 is None:
        return True
    path = folder / result.row["path"]
    return path.is_file() and sha256(path) == result.sha256
