"""Every stage on a full disk, and stopped by SIGTERM and Ctrl-C: a sentence, the right status, no traceback, and the same command ends well."""

from __future__ import annotations

import pytest

from tests.faults.processes import STAGES, contents, make_folder, reference


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_one_sentence_and_status_2_and_the_same_command_goes_on(server, tmp_path, stage):
    whole, place = reference(server, stage), make_folder(server, tmp_path / stage, stage)
    said = place.with_suffix(".txt")
    done = server.run_stage(place, stage, file_limit=300)  # bytes: the system writes no more into any file
    assert done["status"] == 2, said.read_text()
    assert said.read_text().splitlines()[-1].startswith(f"{STAGES[stage][0]}: error: a disk is full (")
    assert "Traceback" not in said.read_text()
    assert server.run_stage(place, stage)["status"] == 0, said.read_text()
    assert contents(place) == whole.files


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("signal_name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_stopped_stage_says_so_and_the_same_command_goes_on(server, tmp_path, stage, signal_name, status):
    whole, place = reference(server, stage), make_folder(server, tmp_path / stage, stage)
    said = place.with_suffix(".txt")
    done = server.run_stage(place, stage, kill_at=max(whole.changes // 2, 1), signal=signal_name)
    assert done["status"] == status, said.read_text()
    assert "Traceback" not in said.read_text()
    assert "stopped by" in said.read_text()
    assert server.run_stage(place, stage)["status"] == 0, said.read_text()
    assert contents(place) == whole.files
