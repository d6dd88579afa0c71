import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from distributed import LocalCluster

from imagery2flow.run import parallel
from imagery2flow.run.errors import BandError, InputError
from imagery2flow.run.files import is_running
from imagery2flow.run.parallel import available_cores, each_chunk
from imagery2flow.run.stage import Ledger

CHUNKS = list(range(8))


def square(chunk: int) -> int:
    return chunk * chunk


def square_slowly_first(chunk: int) -> int:
    time.sleep(0.3 if chunk == 0 else 0)
    return chunk * chunk


def process_of(chunk: int) -> int:
    time.sleep(0.05)
    return os.getpid()


def refuse_three(chunk: int) -> int:
    if chunk == 3:
        raise BandError("chunk 3 has no red; name it")
    return chunk


def fail(chunk: int) -> int:
    raise ZeroDivisionError("a defect of ours")


def killed_at(chunk: int, folder: Path, times: int) -> int:
    """Chunk 5 kills its process the first times; every chunk notes that it was begun."""
    begun = len(list(folder.glob(f"{chunk}_*")))
    (folder / f"{chunk}_{begun}").touch()
    if chunk == 5 and begun < times:
        os.kill(os.getpid(), signal.SIGKILL)
    return chunk * chunk


@pytest.fixture
def ledger() -> Ledger:
    return Ledger("test", quiet=True)


@pytest.fixture(params=["here", "processes", "spawned", "cluster"])
def settings(request) -> dict:
    """Arguments of ``each_chunk`` for each way of working."""
    if request.param == "cluster":
        return {"workers": 0, "dask": request.getfixturevalue("cluster").scheduler_address}
    return {
        "workers": 1 if request.param == "here" else 2,
        "dask": None,
        "start_method": "spawn" if request.param == "spawned" else None,
    }


def test_every_chunk_is_answered_once_by_every_way_of_working(settings, ledger):
    assert sorted(each_chunk(square, CHUNKS, **settings, ledger=ledger)) == [square(chunk) for chunk in CHUNKS]


def test_the_users_errors_arrive_as_they_were_raised(settings, ledger):
    with pytest.raises(BandError, match=r"^chunk 3 has no red; name it$"):
        list(each_chunk(refuse_three, CHUNKS, **settings, ledger=ledger))


def test_defects_keep_their_kind(settings, ledger):
    with pytest.raises(ZeroDivisionError, match="a defect of ours"):
        list(each_chunk(fail, CHUNKS[:2], **settings, ledger=ledger))


def test_one_worker_works_in_this_process_and_two_in_others(ledger):
    assert set(each_chunk(process_of, CHUNKS, 1, None, ledger)) == {os.getpid()}
    assert set(each_chunk(process_of, CHUNKS[:1], 4, None, ledger)) == {os.getpid()}  # nothing to share
    assert os.getpid() not in set(each_chunk(process_of, CHUNKS, 2, None, ledger))
    assert list(each_chunk(process_of, [], 2, None, ledger)) == []


def test_results_come_in_order_of_completion(ledger):
    results = list(each_chunk(square_slowly_first, CHUNKS, 2, None, ledger))
    assert results[-1] == 0
    assert sorted(results) == [square(chunk) for chunk in CHUNKS]


def test_as_many_processes_as_cores_by_default(monkeypatch, ledger):
    monkeypatch.setattr(parallel, "available_cores", lambda: 1)
    assert set(each_chunk(process_of, CHUNKS, 0, None, ledger)) == {os.getpid()}
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


def test_the_chunks_of_a_killed_process_begin_again_and_no_other(tmp_path, ledger):
    work = partial(killed_at, folder=tmp_path, times=1)
    results = list(each_chunk(work, CHUNKS, 2, None, ledger))
    assert sorted(results) == [square(chunk) for chunk in CHUNKS]
    begun = [len(list(tmp_path.glob(f"{chunk}_*"))) for chunk in CHUNKS]
    assert begun[5] == 2
    assert sum(begun) <= len(CHUNKS) + 2  # besides the killed chunk at most the one that the other process was at
    assert len(ledger.notes) == 1
    assert ledger.notes[0].startswith("a worker process was killed; ") and ledger.notes[0].endswith("begin again (restart 1 of 3)")


def test_a_chunk_that_kills_every_process_is_refused_in_one_sentence(tmp_path, ledger):
    results = []
    with pytest.raises(InputError, match=r"worker processes were killed 4 times, .*; use fewer of them than --workers 2$"):
        results.extend(each_chunk(partial(killed_at, folder=tmp_path, times=99), CHUNKS, 2, None, ledger))
    assert len(list(tmp_path.glob("5_*"))) == 4
    assert len(ledger.notes) == 3


def test_the_chunks_of_a_killed_worker_of_a_cluster_begin_again(tmp_path, ledger, cluster):
    work = partial(killed_at, folder=tmp_path, times=1)
    results = list(each_chunk(work, CHUNKS, 0, cluster.scheduler_address, ledger))
    assert sorted(results) == [square(chunk) for chunk in CHUNKS]
    assert len(list(tmp_path.glob("5_*"))) == 2
    assert len(ledger.notes) == 1 and ledger.notes[0].endswith(f"workers of the dask scheduler at {cluster.scheduler_address}")


def test_a_chunk_that_kills_every_worker_of_a_cluster_is_refused_in_one_sentence(tmp_path, ledger, cluster):
    address = cluster.scheduler_address
    with pytest.raises(InputError, match=f"workers of the dask scheduler at {address} were killed again and again, .* start fewer of them"):
        list(each_chunk(partial(killed_at, folder=tmp_path, times=99), [5], 0, address, ledger))
    assert len(list(tmp_path.glob("5_*"))) == 4


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "no address", "http://127.0.0.1:1"])
def test_a_scheduler_that_does_not_answer_is_refused_in_one_sentence(ledger, monkeypatch, address):
    monkeypatch.setattr(parallel, "SCHEDULER_TIMEOUT_S", 0.5)
    started = time.perf_counter()
    with pytest.raises(
        InputError, match=rf"no dask scheduler answers at {address} within 0.5 s; check --dask, or start one with: dask scheduler"
    ):
        list(each_chunk(square, CHUNKS, 0, address, ledger))
    assert time.perf_counter() - started < 5


def test_a_scheduler_without_workers_is_refused_in_one_sentence(ledger, monkeypatch):
    monkeypatch.setattr(parallel, "SCHEDULER_TIMEOUT_S", 1)
    with (
        LocalCluster(n_workers=0, dashboard_address=None, processes=False) as empty,
        pytest.raises(InputError, match=f"the dask scheduler at {empty.scheduler_address} has no worker; start some with: dask worker"),
    ):
        list(each_chunk(square, CHUNKS, 0, empty.scheduler_address, ledger))


def test_a_scheduler_that_is_lost_half_way_is_told_in_one_sentence(ledger, monkeypatch):
    monkeypatch.setattr(parallel, "SCHEDULER_TIMEOUT_S", 1)
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0") as short_lived:
        results = each_chunk(process_of, list(range(100)), 0, short_lived.scheduler_address, ledger)
        next(results)
    with pytest.raises(InputError, match=r"the dask scheduler at \S+ was lost; start it and its workers, and run this again"):
        list(results)


def test_without_the_package_its_extra_is_named(ledger, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r'--dask tcp://a:1 needs .*: pip install "imagery2flow\[cluster\]"'):
        list(each_chunk(square, CHUNKS, 0, "tcp://a:1", ledger))


def test_the_package_is_loaded_only_when_it_is_asked_for():
    code = "import sys; from imagery2flow.run import parallel; assert not {'dask', 'distributed', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


WORK = """
import os, sys, time
from pathlib import Path
from imagery2flow.run.parallel import each_chunk
from imagery2flow.run.stage import Ledger, run_stage

def work(chunk):
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(60)

status = run_stage("cut", None, lambda *_: list(each_chunk(work, [1, 2, 3], 2, None, Ledger("test", quiet=True), "fork")))
sys.exit(status)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent_and_begun_chunks_are_not_waited_for(tmp_path, number):
    with subprocess.Popen([sys.executable, "-c", WORK, str(tmp_path)], stderr=subprocess.PIPE, text=True) as parent:
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
        parent.send_signal(number)
        said = parent.communicate(timeout=30)[1]
    assert parent.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number], said
    assert "Traceback" not in said
    wait_until(lambda: not any(is_running(int(path.name)) for path in tmp_path.iterdir()))


def wait_until(is_so, limit_s=30):
    """Waits for something that must come."""
    ends = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < ends
        time.sleep(0.05)
