"""The benchmarks run, at toy sizes, and say something of every stage; how fast anything is depends on the machine and is no test."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "benchmarks" / "bench.py"
NUM_COLUMNS, NUM_GROWTH_COLUMNS = 6, 5
NUMBER = r"[\d,.]+"


def bench(*flags):
    """What the command prints."""
    command = [sys.executable, str(BENCH), *map(str, flags)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Cells of the rows of both tables, without the headers."""
    done = bench("--quick", "--scratch", tmp_path_factory.mktemp("scratch"))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\d{4}-\d\d-\d\d, commit \w+.*, \d+ cores .*, torch .*, device ", done.stdout, re.MULTILINE)
    first, second = ([line for line in part.splitlines() if line.startswith("|")] for part in done.stdout.split("Growth"))
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]] for lines in (first, second)]


def test_every_stage_has_its_rows_with_a_number_and_a_target(tables):
    rows = tables[0]
    assert all(len(row) == NUM_COLUMNS for row in rows)
    stages = [row[0] for row in rows]
    for number, count in {"1 clip": 4, "2 step with views": 1, "2 SimCLR step": 2, "2 NT-Xent": 2, "3 vectors": 1, "4 epoch": 1}.items():
        assert sum(stage.startswith(number) for stage in stages) == count
    assert sum("balanced MSE" in stage for stage in stages) == 1
    assert sum("all pairs" in stage for stage in stages) == 2
    assert sum("--help" in stage for stage in stages) == 5
    for _, ours, _, ratio, target, met in rows:
        assert re.match(NUMBER, ours)
        value, unit = re.fullmatch(rf"({NUMBER}) (\S+)", ratio).groups()
        sign, bound, of = re.fullmatch(rf"(>=|<=) ({NUMBER}) (\S+)", target).groups()
        assert unit == of
        value, bound = (float(text.replace(",", "")) for text in (value, bound))
        if value != bound:  # both are rounded
            assert (met == "yes") == (value > bound if sign == ">=" else value < bound)


def test_growth_is_shown_of_units_pixels_bands_and_pairs(tables):
    rows = tables[1]
    assert all(len(row) == NUM_GROWTH_COLUMNS for row in rows)
    for size in ("units", "pixels", "bands", "pairs"):
        assert any(size in row[1] for row in rows)
    for _, _, sizes, seconds, factors in rows:
        first, second, third = (int(size.replace(",", "")) for size in sizes.split(", "))
        assert (second, third) == (2 * first, 4 * first)
        assert len(seconds.split(", ")) == 3
        assert all(float(factor) > 0 for factor in factors.split(", "))


def test_parts_are_chosen_by_name_and_real_data_asked_for(tmp_path):
    only = bench("--quick", "--only", "start_up")
    assert only.stdout.count("--help") == 5
    assert "Growth" not in only.stdout
    refused = bench("--data", tmp_path)
    assert refused.returncode != 0
    assert "nyc" in refused.stderr


WITHOUT_RASTER_AND_VECTOR = """
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"rasterio", "geopandas", "shapely", "pyogrio", "pyproj", "lightgbm", "jsonargparse", "docstring_parser", "distributed"}:
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
sys.argv = ["gpu.py", *sys.argv[2:]]
sys.path.insert(0, PATH)
runpy.run_path(PATH + "/gpu.py", run_name="__main__")
"""


def test_the_gpu_benchmark_runs_on_a_cpu_at_toy_size_without_raster_and_vector_libraries():
    code = WITHOUT_RASTER_AND_VECTOR.replace("PATH", repr(str(BENCH.parent)))
    command = [sys.executable, "-c", code, "gpu.py", "--size", "toy", "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert re.search(r"bf16 product of 256 x 256: [\d.]+ TFLOP/s", done.stdout)
    assert re.search(r"flow model, 60 units, 300 pairs, width 16, 3 layers, .*: [\d.]+ s an epoch, [\d,]+ pairs/s", done.stdout)
    last = done.stdout.strip().splitlines()[-1]
    share = r"[\d.]+%"
    assert re.fullmatch(rf"\| resnet18, 32 px \| 8 \| [\d,]+ \| {share} \| {share} \| {share} \| [\d.]+ min \| [\d,]+ \| {share} \|", last)


def test_the_gpu_benchmark_at_full_size_asks_for_a_gpu():
    done = subprocess.run([sys.executable, str(BENCH.parent / "gpu.py"), "--device", "cpu"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "needs an NVIDIA GPU" in done.stderr
