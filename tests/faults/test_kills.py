"""Every stage, killed at random moments and begun again with the same command, ends as if nothing had happened: equal bytes, nothing lost, nothing double."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.faults.processes import STAGES, Server, contents, make_folder, reference

GOES_ON = ("did not come to its end", "resumed ", "is trained to its end")
KILLED = -9


def kill_and_compare(server: Server, stage: str, folder: Path, num_kills: int, workers: int = 1) -> dict[str, int]:
    """Kills a stage at random moments, by the clock and by the changes on the disk in turn, every fourth time twice; compares what it ends with.

    A run that ends before its moment by the clock has not been killed: it is followed by another, until there were so many kills.
    """
    whole = reference(server, stage, workers)
    random = np.random.default_rng(int(stage))
    told = {"trials": 0, "kills": 0, "continued": 0}
    while told["kills"] < num_kills:
        trial = told["trials"]
        assert trial < 2 * num_kills, f"too few runs were killed: {told}"
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
        told["trials"] += 1
        told["continued"] += any(word in said.read_text()[before:] for word in GOES_ON)
        found = contents(place)
        assert sorted(found) == sorted(whole.files), kill
        assert [name for name in found if found[name] != whole.files[name]] == [], kill
        shutil.rmtree(place)
        print(f"stage {stage}, {workers} worker(s), trial {trial}: {kill}, {told}", flush=True)
    return told


@pytest.mark.parametrize(("stage", "num_kills"), [("1", 4), ("2", 1), ("3", 2), ("4", 1), ("5", 1)])
def test_a_killed_stage_ends_as_if_nothing_had_happened(server, tmp_path, stage, num_kills):
    kill_and_compare(server, stage, tmp_path, num_kills)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "workers"), [*((stage, 1) for stage in STAGES), ("1", 2)])
def test_a_stage_killed_at_twenty_moments_ends_as_if_nothing_had_happened(server, tmp_path, stage, workers):
    told = kill_and_compare(server, stage, tmp_path, 20, workers)
    assert stage == "5" or told["continued"] >= 5
