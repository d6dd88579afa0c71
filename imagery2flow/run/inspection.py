"""What is found in the inputs of a run: every fault, not only the first, so that the user mends them in one go.

A reader raises at the first fault of its file, or with all faults of its table. ``Inspection.look`` keeps the error and goes on to the next file. The stages look at
all their inputs so and then stop with one error; ``python -m imagery2flow check`` prints the same, with what is good beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, ParamSpec, TypeVar

from imagery2flow.run.errors import InputError, TableError, shown
from imagery2flow.run.stage import Ledger

Level = Literal["ok", "warning", "fault"]
LEVELS: tuple[Level, ...] = ("ok", "warning", "fault")
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """One sentence about an input.

    Attributes:
        subject: File, folder or flag that it is about.
        level: Whether a run can go on: ``ok`` and ``warning``, or not: ``fault``.
        sentence: What was found; of a warning and a fault also the remedy.
    """

    subject: str
    level: Level
    sentence: str


class SeveralFaults(InputError):
    """Several inputs have faults; ``errors`` are those of each, with the subject that they are about."""

    def __init__(self, errors: list[tuple[str, InputError]]) -> None:
        sentences = "".join(f"\n  - {error}" for _, error in errors)
        # Past InputError, which would show these line breaks as escapes; those within a sentence are escaped already.
        ValueError.__init__(self, f"{len(errors)} faults were found; mend all of them before the next run:{sentences}")
        self.errors = errors


class Inspection:
    """Looks at inputs one after the other, whatever is wrong with those before.

    Attributes:
        ledger: The ledger that the readers write to: what they note and leave out becomes a warning about the file that they read.
        subjects: What was looked at, in that order.
        findings: What was found so far, each thing once.
        errors: The faults among it as they were raised, with their subject.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.subjects: list[str] = []
        self.findings: list[Finding] = []
        self.errors: list[tuple[str, InputError]] = []

    def add(self, subject: object, level: Level, sentence: str) -> None:
        """Notes a finding; one that was noted before, such as of a file that two regions share, is not repeated."""
        finding = Finding(str(subject), level, sentence)
        self._name(finding.subject)
        if finding not in self.findings:
            self.findings.append(finding)

    def look(self, subject: object, reader: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Calls a reader, or a check, of an input; returns what it returns, or None where it raises an ``InputError``.

        Args:
            subject: File, folder or flag that it is about.
            reader: What to call.
            *args: For the reader.
            **kwargs: For the reader.
        """
        self._name(str(subject))
        notes, left_out = len(self.ledger.notes), {reason: len(ids) for reason, ids in self.ledger.left_out.items()}
        try:
            return reader(*args, **kwargs)
        except SeveralFaults as several:
            for inner, error in several.errors:
                self._keep(inner, error)
        except InputError as error:
            self._keep(str(subject), error)
        finally:
            for sentence in self.ledger.notes[notes:]:
                self.add(subject, "warning", sentence)
            for reason, ids in self.ledger.left_out.items():
                if new := ids[left_out.get(reason, 0) :]:
                    self.add(subject, "warning", f"{len(new):,} left out: {reason} ({shown(new)})")
        return None

    def _name(self, subject: str) -> None:
        if subject not in self.subjects:
            self.subjects.append(subject)

    def _keep(self, subject: str, error: InputError) -> None:
        if str(error) in {str(kept) for _, kept in self.errors}:
            return
        self.errors.append((subject, error))
        # Of a table each fault is a finding of its own.
        for sentence in error.sentences if isinstance(error, TableError) and error.sentences else (str(error),):
            self.add(subject, "fault", sentence)

    def as_text(self) -> str:
        """What was found, a line for each file and below it one for each finding; files as they were looked at, what is good first."""
        lines = []
        for subject in self.subjects:
            found = [finding for finding in self.findings if finding.subject == subject]
            lines += [subject] if found else []
            lines += [f"  {level:<8} {finding.sentence}" for level in LEVELS for finding in found if finding.level == level]
        return "\n".join(lines)

    def raise_if_any(self) -> None:
        """Raises the fault that was found, or all of them as one error.

        Raises:
            InputError: At least one input cannot be used.
        """
        if len(self.errors) == 1:
            raise self.errors[0][1]
        if self.errors:
            raise SeveralFaults(self.errors)
