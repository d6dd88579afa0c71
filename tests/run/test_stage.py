import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from imagery2flow.run import stage
from imagery2flow.run.errors import InputError
from imagery2flow.run.files import replacing
from imagery2flow.run.stage import Ledger, Terminated, TerminationFlag, run_stage, source_commit, stopping_at_sigterm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    folder: str
    numbers: tuple[int, ...] = (1, 2)


def test_a_stage_that_is_done_returns_0_and_writes_run_json(tmp_path, capsys):
    (tmp_path / "input.csv").write_bytes(b"abc")

    def work(config: Settings, ledger: Ledger) -> Path:
        ledger.reads(tmp_path / "input.csv")
        ledger.reads(tmp_path / "not_there.csv")
        ledger.came_in["units"] = 3
        ledger.went_out["patches"] = 2
        ledger.leave_out("all nodata", ["07"])
        ledger.note("one scene")
        ledger.say("epoch 1")
        return Path(config.folder) / "run.json"

    assert run_stage("cut", Settings(folder=str(tmp_path / "new")), work) == 0
    content = json.loads((tmp_path / "new" / "run.json").read_text())
    assert content["stage"] == "cut"
    assert content["config"] == {"folder": str(tmp_path / "new"), "numbers": [1, 2]}
    assert content["inputs_sha256"] == {str(tmp_path / "input.csv"): "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    assert content["ledger"] == {"in": {"units": 3}, "out": {"patches": 2}, "left_out": {"all nodata": ["07"]}, "notes": ["one scene"]}
    assert content["versions"].keys() >= {"torch", "rasterio", "numpy"}
    assert content["command"] == sys.argv
    assert content["python"] == ".".join(str(part) for part in sys.version_info[:3])
    assert 0 <= content["wall_time_s"] < 60
    assert 10 < content["peak_memory_mb"] < 100_000
    assert 0 <= content["largest_child_peak_memory_mb"] < 100_000
    printed = capsys.readouterr().err.splitlines()
    assert printed == [
        "[cut] one scene",
        "[cut] epoch 1",
        "[cut] in: 3 units; out: 2 patches; left out: 1 all nodata (07)",
        f"[cut] settings, versions and input hashes: {tmp_path}/new/run.json",
    ]


def test_work_that_only_looked_writes_nothing(tmp_path):
    assert run_stage("plan", Settings(folder=str(tmp_path)), lambda config, ledger: None) == 0
    assert list(tmp_path.iterdir()) == []


def test_the_users_error_is_one_line_and_status_2(tmp_path, capsys):
    def work(config: Settings, ledger: Ledger) -> Path:
        raise InputError("scene a.tif does not exist; check the path")

    assert run_stage("cut", Settings(folder=str(tmp_path)), work) == 2
    assert capsys.readouterr().err == "cut: error: scene a.tif does not exist; check the path\n"
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_ours_keeps_its_traceback(tmp_path):
    def work(config: Settings, ledger: Ledger) -> Path:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_stage("cut", Settings(folder=str(tmp_path)), work)


@pytest.mark.parametrize("where", ["in the work", "in run.json"])
def test_a_full_disk_is_one_sentence(tmp_path, capsys, monkeypatch, where):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "in run.json":
        monkeypatch.setattr(stage, "write_json", full)
    assert run_stage("cut", Settings(folder="x"), full if where == "in the work" else lambda *_: tmp_path / "run.json") == 2
    told = "cut: error: a disk is full ([Errno 28] No space left on device); make room, or name another folder, and run the same command again\n"
    assert capsys.readouterr().err == told


def test_other_errors_of_the_system_keep_their_traceback():
    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        run_stage("cut", Settings(folder="x"), refuse)


def test_ctrl_c_returns_130_without_a_traceback(capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    assert run_stage("cut", Settings(folder="x"), interrupted) == 130
    assert capsys.readouterr().err == "[cut] stopped by Ctrl-C\n"


def test_work_that_keeps_what_is_finished_ends_where_it_stands_on_sigterm(tmp_path, capsys):
    before = signal.getsignal(signal.SIGTERM)

    @stopping_at_sigterm("two blocks stay")
    def work(*_):
        with replacing(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGTERM)

    assert run_stage("cut", Settings(folder="x"), work) == 143
    assert capsys.readouterr().err == "[cut] stopped by SIGTERM: two blocks stay\n"
    assert not list(tmp_path.iterdir()) and signal.getsignal(signal.SIGTERM) is before


def test_a_stage_stopped_by_sigterm_returns_143(tmp_path, capsys):
    def work(config: Settings, ledger: Ledger) -> Path:
        raise Terminated("a.pth holds epoch 3; the same command goes on")

    assert run_stage("train", Settings(folder=str(tmp_path)), work) == 143
    assert capsys.readouterr().err == "[train] stopped by SIGTERM: a.pth holds epoch 3; the same command goes on\n"


def test_only_the_first_process_writes_and_speaks(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")

    def work(config: Settings, ledger: Ledger) -> Path:
        ledger.note("one scene")
        return tmp_path / "run.json"

    assert run_stage("train", Settings(folder=str(tmp_path)), work) == 0
    assert capsys.readouterr().err == ""
    assert list(tmp_path.iterdir()) == []


def test_the_summary_counts_everything_that_is_left_out():
    ledger = Ledger("cut", quiet=True)
    assert ledger.summary() == "in: nothing; out: nothing; left out: nothing"
    ledger.came_in |= {"units": 4700, "scenes": 2}
    ledger.went_out["patches"] = 4693
    ledger.leave_out("outside every scene", range(6))
    ledger.leave_out("all nodata", [])
    ledger.leave_out("below --min_valid", ["a"])
    assert ledger.summary() == (
        "in: 4,700 units, 2 scenes; out: 4,693 patches; left out: 6 outside every scene (0, 1, 2, 3, 4 and 1 more); 1 below --min_valid (a)"
    )
    ledger.leave_out("below --min_valid", ["b"])
    assert ledger.left_out["below --min_valid"] == ["a", "b"]


def test_the_commit_is_that_of_the_source_tree():
    root = Path(__file__).parents[2]
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert (source_commit() or "").removesuffix("-dirty") == head


def test_a_commit_is_dirty_where_the_code_differs_from_it_and_only_there(tmp_path):
    def git(*arguments):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert source_commit(tmp_path) is None
    git("init")
    (tmp_path / "imagery2flow").mkdir()
    for name in ("imagery2flow/a.py", "stage.py", "README.md"):
        (tmp_path / name).write_text("1\n")
    git("add", ".")
    git("commit", "-m", "first")
    head = git("rev-parse", "HEAD")
    (tmp_path / "README.md").write_text("2\n")
    (tmp_path / "notes.txt").write_text("2\n")
    assert source_commit(tmp_path) == head
    for name in ("imagery2flow/a.py", "stage.py", "imagery2flow/new.py"):
        (tmp_path / name).write_text("2\n")
        assert source_commit(tmp_path) == f"{head}-dirty"
        git("add", ".")
        git("commit", "-m", "next")
        head = git("rev-parse", "HEAD")
        assert source_commit(tmp_path) == head


def test_sigterm_raises_a_flag_and_the_handler_is_restored():
    before = signal.getsignal(signal.SIGTERM)
    with TerminationFlag() as termination:
        assert not termination.raised
        os.kill(os.getpid(), signal.SIGTERM)
        assert termination.raised
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(ValueError), TerminationFlag():
        raise ValueError
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "a.csv"),
            "the system cannot use a path ([Errno 13] Permission denied: 'a.csv')",
        ),
        (OSError(errno.EROFS, "Read-only file system"), "the system cannot use a path ([Errno 30] Read-only file system)"),
        (MemoryError("Unable to allocate 3 TiB"), "memory does not suffice (Unable to allocate 3 TiB)"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried"), "the memory of the device is full (CUDA out of memory)"),
    ],
)
def test_what_can_be_mended_outside_the_program_is_one_sentence(capsys, error, sentence):
    def refuse(*_):
        raise error

    assert run_stage("cut", Settings(folder="x"), refuse) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"cut: error: {sentence}; ") and told.count("\n") == 1


def test_any_stage_ends_with_143_on_sigterm(capsys):
    assert run_stage("cut", Settings(folder="x"), lambda *_: os.kill(os.getpid(), signal.SIGTERM)) == 143
    assert capsys.readouterr().err == "[cut] stopped by SIGTERM: what is finished is kept, and the same command goes on\n"
