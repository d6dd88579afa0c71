"""Imports run downwards only, heavy libraries wait until the flags are parsed, devices are chosen in one place."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "imagery2flow"
# What a folder may import besides itself; figures may import everything.
BELOW = {
    "run": set(),
    "sources": {"run"},
    "imagery": {"run", "sources"},
    "encoder": {"run", "sources", "imagery"},
    "flows": {"run", "sources", "imagery", "encoder"},
    "cities": {"run", "sources", "imagery", "encoder"},
}
BELOW["figures"] = set(BELOW)
MODULES = sorted(path for path in (ROOT / PACKAGE).rglob("*.py") if path.parent != ROOT / PACKAGE)
SCRIPTS = ["img_preprocessing", "train_img_encoder", "get_img_embedding", "train_ODPrediction", "test_ODPrediction"]
HEAVY = ["torch", "torchvision", "torch_geometric", "rasterio", "geopandas", "pandas", "numpy", "lightgbm", "matplotlib", "scipy"]


def imported_folders(source: str, folder: str) -> Iterator[str]:
    """Folders of the package that a module of ``folder`` imports anywhere, also inside functions; the package itself is ''."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(([PACKAGE, folder][: 3 - node.level] if node.level else []) + ([node.module] if node.module else []))
            names = [f"{base}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == PACKAGE:
                yield parts[1] if len(parts) > 1 else ""


def forbidden(source: str, folder: str) -> set[str]:
    return set(imported_folders(source, folder)) - BELOW[folder] - {folder}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path):
    folder = path.relative_to(ROOT / PACKAGE).parts[0]
    assert folder in BELOW
    assert forbidden(path.read_text(encoding="utf-8"), folder) == set()


@pytest.mark.parametrize(
    ("source", "folder", "found"),
    [
        ("import imagery2flow.flows.model", "encoder", {"flows"}),
        ("from imagery2flow.flows import model", "cities", {"flows"}),
        ("from imagery2flow import figures, run", "flows", {"figures"}),
        ("def f():\n    from ..imagery.views import render", "run", {"imagery"}),
        ("from .graph import x\nfrom ..run import files\nimport torch", "flows", set()),
        ("from imagery2flow.flows.table import read", "figures", set()),
    ],
)
def test_this_test_sees_upward_imports(source, folder, found):
    assert forbidden(source, folder) == found


HELP = """
import contextlib, importlib, io, json, sys
sys.path.insert(0, sys.argv[1])
loaded = {}
for script in json.loads(sys.argv[2]):
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        importlib.import_module(script).main(["--help"])
    loaded[script] = [name for name in json.loads(sys.argv[3]) if name in sys.modules] + ([] if "--config" in text.getvalue() else ["no help"])
print(json.dumps(loaded))
"""


def test_help_of_every_script_loads_no_heavy_library():
    command = [sys.executable, "-c", HELP, str(ROOT), json.dumps(SCRIPTS), json.dumps(HEAVY)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == {script: [] for script in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_stage_script_is_a_thin_header(script):
    lines = (ROOT / f"{script}.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60


def test_devices_are_chosen_in_one_module():
    paths = [path for path in (ROOT / PACKAGE).rglob("*.py") if path != ROOT / PACKAGE / "run" / "device.py"]
    paths += [ROOT / f"{script}.py" for script in SCRIPTS]
    named = [str(path) for path in paths if any(word in path.read_text(encoding="utf-8") for word in (".cuda(", "cuda:0"))]
    assert named == []
