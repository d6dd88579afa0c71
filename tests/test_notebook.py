"""figs.ipynb as it is stored: with its pictures, run from top to bottom, and showing every figure that there is. tests/test_reproduce.py runs it."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LARGEST_MB = 4.0
# Shown by the report, or parts of other figures.
ELSEWHERE = {"new_figure", "map_panels", "group_figure", "flow_training_curve"}


@pytest.fixture(scope="module")
def cells() -> list[dict]:
    return [cell for cell in json.loads((ROOT / "figs.ipynb").read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def outputs_of(cells: list[dict]) -> list[dict]:
    return [output for cell in cells for output in cell["outputs"]]


def test_it_was_run_from_top_to_bottom_without_an_error(cells):
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert {output["output_type"] for output in outputs_of(cells)} <= {"display_data", "execute_result", "stream"}
    assert not [output for output in outputs_of(cells) if output.get("name") == "stderr"]


def test_it_holds_its_pictures_and_no_path_of_a_machine(cells):
    pictures = [output for output in outputs_of(cells) if "image/png" in output.get("data", {})]
    assert len(pictures) >= 20
    text = (ROOT / "figs.ipynb").read_text(encoding="utf-8")
    assert len(text) < LARGEST_MB * 1e6
    assert not re.search(r"/(?:home|root|tmp|Users|work)/", text)


def test_it_shows_every_figure(cells):
    source = "\n".join("".join(cell["source"]) for cell in cells)
    for path in sorted((ROOT / "imagery2flow/figures").glob("*.py")):
        for function in ast.parse(path.read_text(encoding="utf-8")).body:
            draws = isinstance(function, ast.FunctionDef) and function.returns is not None and ast.unparse(function.returns) == "Figure"
            if draws and function.name not in ELSEWHERE:
                assert f"{path.stem}.{function.name}(" in source, f"figs.ipynb does not show {path.stem}.{function.name}"


def test_each_cell_is_thin(cells):
    for cell in cells:
        assert len("".join(cell["source"]).splitlines()) <= 30
