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
OF_CITIES = {
    "city_scores",
    "explanations",
    "scene_maps",
}  # modules of the commands that write their pictures themselves; see docs/cities.md


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


def figures_of(path: Path) -> set[str]:
    """Functions of a module that draw a figure, as they are called."""
    functions = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
    draws = [node.name for node in functions if node.returns is not None and ast.unparse(node.returns) == "Figure"]
    return {f"{path.stem}.{name}" for name in draws if name not in ELSEWHERE}


def calls_of(source: str) -> set[str]:
    """What a cell calls; lines for IPython are none of Python's."""
    lines = [line for line in source.splitlines() if not line.startswith("%")]
    return {ast.unparse(node.func) for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, ast.Call)}


def test_it_shows_every_figure(cells):
    called = set().union(*(calls_of("".join(cell["source"])) for cell in cells))
    modules = [path for path in (ROOT / "imagery2flow/figures").glob("*.py") if path.stem not in OF_CITIES]
    drawn = set().union(*(figures_of(path) for path in modules))
    assert len(drawn) >= 15
    assert drawn - called == set()


def test_what_is_only_named_is_not_called():
    assert calls_of("%matplotlib inline\n# maps.one()\nsave('maps.two()', maps.three(4))") == {"save", "maps.three"}


def test_each_cell_is_thin(cells):
    for cell in cells:
        assert len("".join(cell["source"]).splitlines()) <= 30
