"""What a run has finished, kept until its output is written: a run that was killed goes on from there with the same command."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imagery2flow.run.errors import InputError
from imagery2flow.run.files import content_hash, sync_file, sync_files

SUFFIX = ".unfinished"
HASH_LENGTH = 16


@contextmanager
def kept_parts(output: Path, follows_from: Any) -> Iterator[Path]:
    """Yields a hidden folder beside an output for the parts of a run that are finished.

    It stays where the process is killed or stopped, or the disk is full, and goes where the run ends, or its input is refused. Its name holds a hash of
    everything that the parts follow from, so that a run of other settings or inputs never meets them: it removes them.

    Args:
        output: File or folder that the run writes, and no other run at the same time (``run.lock``).
        follows_from: Settings and inputs, or hashes of them: what ``content_hash`` takes.
    """
    folder = output.with_name(f".{output.name}.{content_hash(follows_from)[:HASH_LENGTH]}{SUFFIX}")
    for other in unfinished_folders(output):
        if other != folder:
            abandon(other)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except InputError:
        abandon(folder)
        raise
    abandon(folder)


def unfinished_folders(output: Path) -> list[Path]:
    """Folders of finished parts of an output, of runs that did not come to their end."""
    return list(output.parent.glob(f".{glob_escape(output.name)}.*{SUFFIX}")) if output.parent.is_dir() else []


def glob_escape(name: str) -> str:
    """A name that stands for nothing but itself in a pattern."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def abandon(folder: Path) -> None:
    """Removes a folder of parts, if it is there.

    Renamed before it is emptied: a worker of another machine that is cut off may still write, and could fill it again meanwhile.
    """
    if folder.exists():
        abandoned = folder.with_name(f"{folder.name}.abandoned")
        shutil.rmtree(abandoned, ignore_errors=True)
        folder.replace(abandoned)
        shutil.rmtree(abandoned, ignore_errors=True)


def publish(parts: Path, folder: Path, last: str) -> None:
    """Turns a folder of parts into the output ``folder``, or moves its files into the one that is there.

    The file ``last``, which tells what the folder holds, moves last, and that of an earlier run goes first: it never speaks of files that are not there.
    """
    for hidden in parts.glob(".*"):  # half files of killed processes, journals
        shutil.rmtree(hidden) if hidden.is_dir() else hidden.unlink()
    paths = sorted(parts.iterdir(), key=lambda path: path.name == last)
    sync_files(paths)  # before the file that names them has its place
    if not folder.exists():
        parts.replace(folder)
        sync_file(folder.parent)
        return
    (folder / last).unlink(missing_ok=True)
    for path in paths:
        if path.name == last:
            sync_file(folder)
        path.replace(folder / path.name)
    sync_file(folder)
