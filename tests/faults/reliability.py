"""Writes the list of bad inputs in docs/reliability.md: ``python -m tests.faults.reliability`` (make reliability).

What stands outside the two marks is written by hand and kept.
"""

from __future__ import annotations

from pathlib import Path

from tests.everyday_faults import CASES
from tests.faults import corpus_rasters, corpus_tables, corpus_units

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- written by make reliability: begin -->\n", "<!-- written by make reliability: end -->\n"
GROUPS = {
    "Scenes and rasters": corpus_rasters.SCENES,
    "What rasters refer to": corpus_rasters.REFERENCES,
    "Patches": corpus_rasters.PATCH_FAULTS,
    "Outlines of units": corpus_units.OUTLINES,
    "Ids of units": corpus_units.IDS,
    "Files of units, and settings": corpus_units.FILES,
    "Flows": corpus_tables.FLOW_TABLES,
    "Features": corpus_tables.FEATURE_TABLES,
    "Models, runs and results": corpus_tables.MODELS,
}


def cell(text: str) -> str:
    """A text as it stands in a cell of a table."""
    return " ".join(text.replace("HERE/", "/").replace("|", "\\|").replace("<", "&lt;").replace(" ... ", " … ").split())


def rows(items: list[tuple[str, str, str]]) -> str:
    lines = [f"| {cell(name)} | {stage} | {cell(outcome)} |" for name, stage, outcome in items]
    return "\n".join(["| what is wrong | stage | outcome |", "| --- | --- | --- |", *lines])


def listing() -> str:
    """The list of all bad inputs with their outcomes."""
    number = sum(map(len, GROUPS.values()))
    right = sum(fault.check is not None for group in GROUPS.values() for fault in group)
    parts = [
        f"{number} bad inputs of the corpus (`tests/faults`): {number - right} are refused, {right} are read rightly, which a value shows. "
        f"{len(CASES)} more are refused by `tests/test_bad_input.py`. … stands for what differs from case to case.\n"
    ]
    for title, group in GROUPS.items():
        items = [
            (fault.name, fault.stage, f"refused: {fault.outcome}".rstrip(": ") if fault.check is None else f"right: {fault.outcome}")
            for fault in group
        ]
        parts.append(f"### {title}\n\n{rows(items)}\n")
    by_stage = [(item.fault, stage, f"refused: {item.says}") for stage, item in CASES.values()]
    parts.append(f"### Faults of everyday\n\n{rows(by_stage)}\n")
    return "\n".join(parts)


def written() -> str:
    """The page with the list as the corpus has it now."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    return f"{before}{BEGIN}\n{listing()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(written(), encoding="utf-8")
