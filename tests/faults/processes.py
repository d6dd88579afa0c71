"""Stages as processes that can be killed: what each is called with, and what it leaves when nothing interrupts it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
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


def make_folder(server: Server, folder: Path, stage: str) -> Path:
    """An empty folder for a run; for stage 5 with the model of stage 4."""
    folder.mkdir()
    if stage == "5":
        shutil.copytree(server.given / "4/out", folder / "out")
    return folder


def reference(server: Server, stage: str, workers: int = 1) -> Reference:
    """An uninterrupted run of a stage, made once, after those that it reads; the number of workers changes no file."""
    folder = server.given / (stage if workers == 1 else f"{stage}_of_{workers}_workers")
    if not folder.exists():
        if stage > "1":
            reference(server, str(int(stage) - 1))
        done = server.run_stage(make_folder(server, folder, stage), stage, workers)
        assert done["status"] == 0, folder.with_suffix(".txt").read_text()
        (folder.with_suffix(".json")).write_text(json.dumps(done))
    done = json.loads(folder.with_suffix(".json").read_text())
    files = contents(folder)
    assert workers == 1 or files == reference(server, stage).files
    return Reference(files, done["seconds"], done["changes"])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file, hidden ones too; of run files, which tell the time, only what came in, went out and was left out."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found[str(path.relative_to(folder))] = path.read_bytes()
        if path.name.endswith("run.json"):
            ledger = json.loads(path.read_text())["ledger"]
            found[str(path.relative_to(folder))] = json.dumps([ledger["in"], ledger["out"], ledger["left_out"]]).encode()
    return found
