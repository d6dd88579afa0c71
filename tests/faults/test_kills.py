"""Every stage, killed at random moments and begun again with the same command, ends as if nothing had happened: equal bytes, nothing lost, nothing double."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
GOES_ON = ("did not come to its end", "resumed ", "is trained to its end")
KILLED = -9
STAGES = {
    "1": (
        "img_preprocessing",
        "--input_tif_path {given}/city/scene.tif --shp_path {given}/city/units.gpkg --output_tif_dir out --workers {workers}",
    ),
    "2": (
        "train_img_encoder",
        "--data_path {given}/1/out/M1/l8_2020 --model_path out --log M1 --total_epoch 4 --batch_size 14 --view_size 16 --projection_dim 8 --device cpu "
        "--precision fp32",
    ),
    "3": (
        "get_img_embedding",
        "--data_path {given}/1/out/M1/l8_2020 --model_path {given}/2/out --log M1 --output_path out/M1.csv --device cpu",
    ),
    "4": (
        "train_ODPrediction",
        "--node_feats_path {given}/3/out/M1.csv --units_path {given}/city/units.gpkg --flows_path {given}/city/flows.csv --region city --log M1 "
        "--output_dir out --max_epochs 6 --embedding_size 8 --device cpu --controls false --trees.num_trees 20 --trees.transfer_trees 20",
    ),
    "5": (
        "test_ODPrediction",
        "--node_feats_path {given}/3/out/M1.csv --units_path {given}/city/units.gpkg --flows_path {given}/city/flows.csv --region city --log M1 "
        "--output_dir out --all_pairs --device cpu",
    ),
}


class Server:
    """A process that runs stages in forks of itself; see ``server``."""

    def __init__(self, given: Path) -> None:
        self.given = given
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, "-m", "tests.faults.server"]
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, folder: Path, module: str, flags: str, **kill: Any) -> dict[str, Any]:
        """Runs one stage in a folder; what it says goes into ``said.txt`` beside the folder."""
        request = {"folder": str(folder), "module": module, "flags": flags.split(), "log": str(folder.with_suffix(".txt")), **kill}
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def run_stage(self, folder: Path, stage: str, workers: int = 1, **kill: Any) -> dict[str, Any]:
        """Runs one of the five stages."""
        module, flags = STAGES[stage]
        return self.run(folder, module, flags.format(given=self.given, workers=workers), **kill)


@dataclass
class Reference:
    """An uninterrupted run: its files, how long it took, and how often it changed something on the disk."""

    files: dict[str, bytes]
    seconds: float
    changes: int


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("given"))
    done = found.run(found.given, "imagery2flow.__main__", "synthetic --output_dir . --region city --num_units 40 --size_px 100 --seed 1")
    assert done["status"] == 0
    yield found
    assert found.process.stdin is not None
    found.process.stdin.close()
    found.process.wait(timeout=60)


def make_folder(server: Server, folder: Path, stage: str) -> Path:
    """An empty folder for a run; for stage 5 with the model of stage 4."""
    folder.mkdir()
    if stage == "5":
        shutil.copytree(server.given / "4/out", folder / "out")
    return folder


def reference(server: Server, stage: str) -> Reference:
    """An uninterrupted run of a stage, made once, after those that it reads."""
    folder = server.given / stage
    if not folder.exists():
        if stage > "1":
            reference(server, str(int(stage) - 1))
        done = server.run_stage(make_folder(server, folder, stage), stage)
        assert done["status"] == 0, folder.with_suffix(".txt").read_text()
        (folder.with_suffix(".json")).write_text(json.dumps(done))
    done = json.loads(folder.with_suffix(".json").read_text())
    return Reference(contents(folder), done["seconds"], done["changes"])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file, hidden ones too; of run files, which tell the time, only what came in, went out and was left out."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found[str(path.relative_to(folder))] = path.read_bytes()
        if path.name.endswith("run.json"):
            ledger = json.loads(path.read_text())["ledger"]
            found[str(path.relative_to(folder))] = json.dumps([ledger["in"], ledger["out"], ledger["left_out"]]).encode()
    return found


def kill_and_compare(server: Server, stage: str, folder: Path, num_trials: int, workers: int = 1) -> dict[str, int]:
    """Kills a stage at random moments, by the clock and by the changes on the disk in turn, every fourth time twice; compares what it ends with."""
    whole = reference(server, stage)
    random = np.random.default_rng(int(stage))
    told = {"trials": num_trials, "kills": 0, "continued": 0}
    for trial in range(num_trials):
        place = make_folder(server, folder / f"{stage}_{trial}", stage)
        for number in range(2 if trial % 4 == 3 else 1):
            by_clock = (trial + number) % 2 == 1
            kill = (
                {"kill_after_s": random.uniform(0, whole.seconds)} if by_clock else {"kill_at": int(random.integers(1, whole.changes + 1))}
            )
            done = server.run_stage(place, stage, workers, **kill)
            assert done["status"] in (KILLED, 0), place.with_suffix(".txt").read_text()
            told["kills"] += done["status"] == KILLED
        said = place.with_suffix(".txt")
        before = said.stat().st_size
        done = server.run_stage(place, stage, workers)
        assert done["status"] == 0, said.read_text()
        told["continued"] += any(word in said.read_text()[before:] for word in GOES_ON)
        found = contents(place)
        assert sorted(found) == sorted(whole.files), kill
        assert [name for name in found if found[name] != whole.files[name]] == [], kill
        shutil.rmtree(place)
        print(f"stage {stage}, {workers} worker(s), trial {trial}: {kill}, {told}", flush=True)
    return told


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_stage_ends_as_if_nothing_had_happened(server, tmp_path, stage):
    told = kill_and_compare(server, stage, tmp_path, num_trials=2)
    assert told["kills"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "workers"), [*((stage, 1) for stage in STAGES), ("1", 2)])
def test_a_stage_killed_at_twenty_moments_ends_as_if_nothing_had_happened(server, tmp_path, stage, workers):
    told = kill_and_compare(server, stage, tmp_path, 20, workers)
    assert told["kills"] >= 15
    assert stage == "5" or told["continued"] >= 5
