"""One run at a time for one output.

The lock is one of the system's on a hidden file beside the output (``lockf``): it ends with its process, however that ends, so that no stale lock stays
behind, and a worker process that outlives its parent does not hold it. Machines that share a file system see each other's locks where that carries them
(NFS from version 4 does; a machine that vanishes loses its locks there when the server's lease ends). Where it carries none, two runs are not kept apart.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from imagery2flow.run.errors import InputError
from imagery2flow.run.files import remove_halves
from imagery2flow.run.stage import is_first_process

TAKEN = {errno.EACCES, errno.EAGAIN}


@contextmanager
def only_run(output: Path) -> Iterator[None]:
    """Keeps an output to this run, and clears away the temporary files of killed ones. Folders that stay empty do not stay.

    The processes of one run under torchrun are one: its first process holds the lock.

    Args:
        output: File or folder that the run writes.

    Raises:
        InputError: Another run writes there.
    """
    if not is_first_process():
        yield
        return
    made = [folder for folder in output.absolute().parents if not folder.exists()]
    output.parent.mkdir(parents=True, exist_ok=True)
    path = output.with_name(f".{output.name}.lock")
    stream = take(path, output)
    try:
        for folder in (output.parent, output):
            remove_halves(folder)
        yield
    finally:
        path.unlink(missing_ok=True)  # still locked: whoever has opened it meanwhile sees that it is gone
        stream.close()
        for folder in made:
            with suppress(OSError):  # not empty
                folder.rmdir()


def take(path: Path, output: Path) -> TextIO:
    """Opens and locks a file, which another run may remove meanwhile.

    Raises:
        InputError: It is locked.
    """
    while True:
        stream = path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            stream.seek(0)
            holder = stream.read().strip() or "a process that has just begun"
            stream.close()
            if error.errno not in TAKEN:  # a file system without locks
                return path.open("a+", encoding="utf-8")
            raise InputError(
                f"{output} is being written by another run ({holder}); wait until it has ended, or choose another output"
            ) from error
        if is_still(path, stream):
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {platform.node()}, since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n")
            stream.flush()
            return stream
        stream.close()


def is_still(path: Path, stream: TextIO) -> bool:
    """Whether an open file is the one of that name, and not one that another run has removed."""
    try:
        return os.path.samestat(path.stat(), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False
