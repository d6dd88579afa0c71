#!/usr/bin/env python
"""How well flows of places that were held out are predicted, on real imagery and flows, beside the controls.

    make evaluate DATA=../shared/data          or          python benchmarks/evaluate_sample.py --data ../shared/data

Manhattan with three tracts in ten held out at both ends, the Bronx from Manhattan and Staten Island, and a fifth of the origins of the five boroughs;
each several times, with another split or other random numbers. Default settings throughout. Evaluations run beside each other, one thread each.
Patches and the encoder (of Manhattan's patches) that are there already are not made again.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from real_sample import MANHATTAN, NEIGHBOURS, ROOT, City, Sample

from imagery2flow.flows.evaluate import shown_table
from imagery2flow.flows.results import markdown
from imagery2flow.run.stage import source_commit

ENCODER = "manhattan_red_nir_thermal"
BRONX, STATEN_ISLAND = NEIGHBOURS
NYC = City("nyc", "imagery/nyc_landsat5_2010_2011_median_toa.tif", "l5", 2010)


@dataclass(frozen=True)
class Task:
    """One evaluation: what is held out, in which universe, and whether absent pairs of the flow tables are zeros."""

    name: str
    cities: tuple[City, ...]
    split: str
    universe: str
    test_region: str | None = None
    complete: bool = True

    @property
    def log(self) -> str:
        """Folder of its tables."""
        return f"{self.name}_{self.universe}".replace(" ", "_")


TO_THE_BRONX = ("to the Bronx", (MANHATTAN, STATEN_ISLAND, BRONX), "city")
# The longest first, so that none is left over at the end.
TASKS = (
    Task("NYC", (NYC,), "origin", "gt10", complete=False),
    Task(*TO_THE_BRONX, "full", "bronx"),
    Task(*TO_THE_BRONX, "positive", "bronx"),
    Task(*TO_THE_BRONX, "gt10", "bronx"),
    Task("Manhattan", (MANHATTAN,), "unit", "positive"),
    Task("Manhattan", (MANHATTAN,), "unit", "gt10"),
)


def evaluate(sample: Sample, task: Task, seeds: int) -> pd.DataFrame:
    """Runs one evaluation; returns its table of means and deviations.

    Raises:
        RuntimeError: It failed; its log says why.
    """
    folder = sample.out / "evaluation"
    flags: list[object] = ["--region", *(city.name for city in task.cities), "--data_root", sample.data]
    flags += ["--node_feats_path", *(sample.out / city.name / f"{ENCODER}.csv" for city in task.cities)]
    flags += ["--splits", task.split, "--universes", task.universe, "--seeds", seeds, "--seed", sample.seed]
    flags += ["--log", task.log, "--output_dir", folder, "--flows_complete", str(task.complete).lower()]
    flags += ["--test_region", task.test_region] if task.test_region else []
    command = [sys.executable, "-W", "ignore", "-m", "imagery2flow", "evaluate", *map(str, flags)]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{task.log}.log").open("w") as log:
        # More threads than cores wait for each other spinning.
        status = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log, check=False
        ).returncode
    if status:
        raise RuntimeError(f"evaluation {task.log} ended with status {status}; see {log.name}")
    print(f"{datetime.datetime.now():%H:%M:%S} {task.log} is done", flush=True)
    return pd.read_csv(folder / task.log / "evaluation.csv")


def main() -> None:
    """Makes what is missing, runs everything and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the real sample")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "real_sample")
    parser.add_argument("--epochs", type=int, default=60, help="epochs of the encoder")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=42, help="the first")
    flags = parser.parse_args()
    if not (flags.data / NYC.name).is_dir():
        sys.exit(f"--data {flags.data} has no folder {NYC.name}; name the folder of the real sample")
    sample = Sample(flags.data.absolute(), flags.out.absolute(), flags.epochs, flags.seed)

    sample.encoder(ENCODER)
    for city in (MANHATTAN, BRONX, STATEN_ISLAND, NYC):
        sample.vectors(city, ENCODER)  # seconds, and never those of an earlier encoder
    started = datetime.datetime.now()
    print(
        f"{started:%H:%M:%S} evaluates {len(TASKS)} tasks with {flags.seeds} seeds each; logs are in {sample.out / 'evaluation'}",
        flush=True,
    )
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        tables = list(pool.map(lambda task: evaluate(sample, task, flags.seeds), TASKS))
    minutes = (datetime.datetime.now() - started).total_seconds() / 60
    print(
        f"\n{datetime.date.today()}, commit {source_commit()}, python benchmarks/evaluate_sample.py {' '.join(sys.argv[1:])}; {minutes:.0f} min"
    )
    for task, table in zip(TASKS, tables, strict=True):
        print(f"\n### {task.name}, {task.split}, {task.universe}\n")
        print(markdown(shown_table(table).drop(columns=["split", "universe"])))


if __name__ == "__main__":
    main()
