"""Errors that the user can mend: one sentence with what, where, the value and the remedy.

A stage prints such an error without a traceback and ends with status 2 (``run.stage.run_stage``). Everything else is a defect of
ours and keeps its traceback.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

EXAMPLES_SHOWN = 5
FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # what the system says where no more can be written
NOT_PERMITTED = {errno.EACCES, errno.EPERM, errno.EROFS}


class InputError(ValueError):
    """Something in the user's input or settings is wrong; the message says how to mend it."""


class MissingInputError(InputError):
    """A file or folder that was named does not exist or cannot be read."""


class CRSError(InputError):
    """A coordinate reference system is missing or unusable."""


class BandError(InputError):
    """Bands, their number, or their scale differ from what is needed."""


class TableError(InputError):
    """A table has faults; all of them are named."""


def shown(values: Iterable[object]) -> str:
    """Lists the first values of a collection and how many more there are: ``a, b, c and 7 more``."""
    texts = [str(value) for value in values]
    head = ", ".join(texts[:EXAMPLES_SHOWN])
    rest = len(texts) - EXAMPLES_SHOWN
    return f"{head} and {rest:,} more" if rest > 0 else head


def first_sentence(error: BaseException) -> str:
    """What a library says of an error, up to its first full stop: a message of ours is one sentence."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split(". ")[0].rstrip(".")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device had no room: torch's error, by its name, because torch is not imported here."""
    return any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)


class Faults:
    """Collects every fault of one table, so that the user mends them in one go."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.sentences: list[str] = []

    def add(self, sentence: str) -> None:
        """Notes one fault: what, the values, the remedy."""
        self.sentences.append(sentence)

    def raise_if_any(self) -> None:
        """Raises one ``TableError`` that names all faults noted so far.

        Raises:
            TableError: At least one fault was noted.
        """
        if not self.sentences:
            return
        count = f"{len(self.sentences)} faults: " if len(self.sentences) > 1 else ""
        raise TableError(f"{self.where}: {count}" + "; ".join(self.sentences))
