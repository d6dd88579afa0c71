"""Errors that the user can mend: one sentence with what, where, the value and the remedy.

A stage prints such an error without a traceback and ends with status 2 (``run.stage.run_stage``). Everything else is a defect of
ours and keeps its traceback.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

EXAMPLES_SHOWN = 5
LONGEST_SHOWN = 200  # characters of one value in a message
# What the system says of a path that it cannot use: no permission, a ring of links, a name too long, a file for a folder or the other way round.
BAD_PATH = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR}
FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # what the system says where no more can be written
NOT_PERMITTED = {errno.EACCES, errno.EPERM, errno.EROFS}


class InputError(ValueError):
    """Something in the user's input or settings is wrong; the message says how to mend it."""

    def __init__(self, message: str) -> None:
        # Names and values come from the user's files: one with a line break must not end the line, and one that a terminal would obey must be seen.
        super().__init__("".join(character if character.isprintable() else repr(character)[1:-1] for character in message))


class MissingInputError(InputError):
    """A file or folder that was named does not exist or cannot be read."""


class CRSError(InputError):
    """A coordinate reference system is missing or unusable."""


class BandError(InputError):
    """Bands, their number, or their scale differ from what is needed."""


class TableError(InputError):
    """A table has faults; all of them are named.

    Attributes:
        sentences: Each fault for itself; empty where the message is the only one.
    """

    sentences: tuple[str, ...] = ()


def shown(values: Iterable[object]) -> str:
    """Lists the first values of a collection and how many more there are: ``a, b, c and 7 more``."""
    texts = [str(value) for value in values]
    head = ", ".join(shortened(text) for text in texts[:EXAMPLES_SHOWN])
    rest = len(texts) - EXAMPLES_SHOWN
    return f"{head} and {rest:,} more" if rest > 0 else head


def shortened(text: str) -> str:
    """The beginning of a text that is too long for a message."""
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def first_sentence(error: BaseException) -> str:
    """What a library says of an error, up to its first full stop: a message of ours is one sentence."""
    text = " ".join(str(error).split()).removeprefix("Error tokenizing data. ") or type(error).__name__
    return shortened(text.split(". ")[0].rstrip("."))


def as_clause(error: BaseException) -> str:
    """All that a library says of an error, as a part of one sentence."""
    return " ".join(str(error).split()).rstrip(".").replace(". ", "; ") or type(error).__name__


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
        error = TableError(f"{self.where}: {count}" + "; ".join(self.sentences))
        error.sentences = tuple(self.sentences)
        raise error
