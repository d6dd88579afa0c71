"""What the sources never call: ways to run what a file holds, or to open a raster or vector file past ``run.geofiles``."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    [*ROOT.glob("*.py"), *(ROOT / "imagery2flow").rglob("*.py"), *(ROOT / "runs").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
)
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "tarfile"}
CALLS = {
    "eval",
    "exec",
    "__import__",
    "os.system",
    "os.popen",
    "pd.read_pickle",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "np.fromregex",
    "torch.jit.load",
}
METHODS = {"extractall", "extract", "read_pickle", "allow_unsafe"}  # of archives and tables, whatever they are called
GEOFILES = "imagery2flow/run/geofiles.py"
READS_ITS_OWN = {"imagery2flow/sources/composite.py"}  # what acquire wrote a moment before, and its finished blocks
SETS = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}


def name_of(call: ast.Call) -> str:
    """``np.load`` of ``np.load(path)``."""
    return ast.unparse(call.func)


def faults(tree: ast.AST, path: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"{path}:{node.lineno} imports {name}" for name in names if name.split(".")[0] in MODULES)
        if not isinstance(node, ast.Call):
            continue
        name, given = name_of(node), {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name in CALLS or name.split(".")[-1] in METHODS - ({"extract"} if name.startswith("re") else set()):
            yield f"{path}:{node.lineno} calls {name}"
        if given.get("shell") == "True" or (name in SETS and given.get(SETS[name][0]) != str(SETS[name][1])):
            yield f"{path}:{node.lineno} calls {name} unsafely"
        reads = name in ("rasterio.open", "gpd.read_file", "geopandas.read_file") and not any(
            isinstance(argument, ast.Constant) and argument.value in ("w", "r+") for argument in node.args[1:]
        )
        if (
            reads
            and path.startswith("imagery2flow")
            and path != GEOFILES
            and path not in READS_ITS_OWN
            and "zipped_name" not in ast.unparse(node)
        ):
            yield f"{path}:{node.lineno} opens a file past {GEOFILES}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_what_a_file_holds(path):
    assert list(faults(ast.parse(path.read_text(encoding="utf-8")), path.relative_to(ROOT).as_posix())) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "archive.extractall(folder)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
        "rasterio.open(path)",
        "gpd.read_file(path)",
    ],
)
def test_what_is_forbidden_is_found(code):
    assert len(list(faults(ast.parse(code), "imagery2flow/any.py"))) == 1


def test_what_is_allowed_is_not_found():
    code = "torch.load(path, weights_only=True)\nnp.load(path, allow_pickle=False)\nrasterio.open(path, 'w', **profile)\nyaml.safe_load(text)\nmodel.eval()"
    assert list(faults(ast.parse(code), "imagery2flow/any.py")) == []
