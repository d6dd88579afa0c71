import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from imagery2flow.run.errors import InputError
from imagery2flow.run.lock import only_run

HOLD = """
import os, sys
from pathlib import Path
from imagery2flow.run.lock import only_run
with only_run(Path(sys.argv[1])):
    if sys.argv[2] == "with a child" and os.fork() == 0:
        os.close(0), os.close(1), os.close(2)  # outlives its parent by far
        import time
        time.sleep(20)
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(output: Path, how: str = "alone", **environment: str) -> subprocess.Popen:
    """Another process that holds the lock of an output until its standard input ends."""
    command = [sys.executable, "-c", HOLD, str(output), how]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_run_is_refused_with_the_name_of_the_first_and_may_begin_after_it(tmp_path):
    output = tmp_path / "deep" / "out"
    with hold(output) as first:
        named = rf"out is being written by another run \(process {first.pid} on {platform.node()}, since 20..-..-.. ..:..:.. UTC\); wait"
        with pytest.raises(InputError, match=named), only_run(output):
            pass
        with only_run(tmp_path / "deep" / "other"):  # another output beside it
            pass
        first.stdin.close()
    assert first.returncode == 0
    assert not list(tmp_path.iterdir())  # neither the lock nor the folder that was made for it
    with only_run(output):
        output.mkdir()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


@pytest.mark.parametrize("how", ["alone", "with a child"])
def test_the_lock_of_a_killed_process_is_free(tmp_path, how):
    output = tmp_path / "out"
    with hold(output, how) as first:
        first.send_signal(signal.SIGKILL)
    assert (tmp_path / ".out.lock").exists()
    with only_run(output):
        pass
    assert not list(tmp_path.iterdir())


def test_processes_of_one_run_do_not_wait_for_each_other(tmp_path, monkeypatch):
    with hold(tmp_path / "out", RANK="0") as first:
        monkeypatch.setenv("RANK", "1")
        with only_run(tmp_path / "out"):
            pass
        first.stdin.close()
    assert first.returncode == 0


def test_half_files_of_killed_processes_go_and_those_of_others_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stay = [f".a.csv.{platform.node()}.1.csv", f".a.csv.elsewhere.{dead.pid}.csv", f"a.{platform.node()}.{dead.pid}.csv", ".hidden"]
    for name in (*stay, f".a.csv.{platform.node()}.{dead.pid}.csv", f".split.{platform.node()}.{dead.pid}"):
        (tmp_path / name).touch()
    with only_run(tmp_path / "out"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stay)
