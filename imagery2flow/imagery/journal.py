"""What became of each unit in stage 1, and the journal of it: a run that was killed goes on with the units that are not in it.

Each process writes a line per unit as soon as its patch has its place. Lines and patches need not be on the disk: after a loss of power, a line that is cut
off is no line, and a patch that is not what its line says is cut again.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from imagery2flow.run.files import sha256

JOURNAL = ".journal"  # a folder beside the patches: processes of several machines each have a file of their own


class ManifestRow(NamedTuple):
    """One row of ``manifest.csv``; the fields of a unit without a scene stay empty. A tuple, because the rows of all units are held."""

    geocode: str
    status: str
    path: str | None
    scene: str | None
    column_offset: int | None
    row_offset: int | None
    width: int | None
    height: int | None
    valid_fraction: float


@dataclass(frozen=True, slots=True)
class CutResult:
    """What became of a unit: a row of the manifest, the sums from which the statistics of the bands are made, and the sha256 of its patch."""

    row: ManifestRow
    sums: BandSums | None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class BandSums:
    """Number of valid pixels and, per band over them, total, total of squares, minimum and maximum: [4, num_bands], one array for all."""

    count: int
    values: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """[num_bands]."""
        return self.values[0]

    @property
    def squares(self) -> np.ndarray:
        """[num_bands]."""
        return self.values[1]

    @property
    def minimum(self) -> np.ndarray:
        """[num_bands]."""
        return self.values[2]

    @property
    def maximum(self) -> np.ndarray:
        """[num_bands]."""
        return self.values[3]


def open_journal(folder: Path) -> TextIO:
    """A new file for the lines of this process."""
    (folder / JOURNAL).mkdir(exist_ok=True)
    return (folder / JOURNAL / secrets.token_hex(8)).open("x", encoding="utf-8")


def note_in_journal(journal: TextIO, result: CutResult) -> None:
    """Writes a line."""
    sums = None if result.sums is None else [result.sums.count, result.sums.values.tolist()]
    journal.write(json.dumps([result.row, sums, result.sha256], default=lambda value: value.item()) + "\n")
    journal.flush()


def read_journal(folder: Path) -> list[CutResult]:
    """The units that are done, each once; those whose patch is not what was written are left out."""
    found = {}
    for path in sorted((folder / JOURNAL).glob("*")):
        for line in path.read_bytes().splitlines():
            result = read_line(line)
            if result is not None and is_whole(folder, result):
                found[result.row.geocode] = result
    return list(found.values())


def read_line(line: bytes) -> CutResult | None:
    """What a line says; None if it is not whole."""
    try:
        row, sums, digest = json.loads(line)
        return CutResult(ManifestRow(*row), sums and BandSums(sums[0], np.array(sums[1])), digest)
    except (ValueError, LookupError, TypeError):
        return None


def is_whole(folder: Path, result: CutResult) -> bool:
    """Whether the patch of a unit, where it has one, is what was written."""
    if result.sha256 is None:
        return True
    path = folder / str(result.row.path)
    return path.is_file() and sha256(path) == result.sha256
