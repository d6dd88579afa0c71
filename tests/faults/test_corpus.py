"""The corpus of bad inputs, each through the stage itself: a clear sentence and nothing written, or a right result; never a program that runs, nor a request."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator

import pytest

from tests.faults import corpus_rasters, corpus_tables, corpus_units, reliability
from tests.faults.making import MORE_FLAGS, PORT, Fault
from tests.spoiling import Case, call, check_message, state_of

FAULTS = corpus_rasters.FAULTS + corpus_units.FAULTS + corpus_tables.FAULTS
LONGEST_CPU_S, LONGEST_S, MOST_MEMORY_KB = 10.0, 60.0, 1 << 20  # machines that do other work take longer, but no more processor time


@pytest.fixture(scope="module")
def nobody_asks() -> Iterator[socket.socket]:
    """A server that nobody may ask; it takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.MonkeyPatch.context() as patch:
        server.setblocking(False)
        patch.setenv(PORT, str(server.getsockname()[1]))
        patch.setenv("GDAL_HTTP_TIMEOUT", "1")  # so that a stage that asks fails here, and does not wait
        patch.setenv("GDAL_HTTP_MAX_RETRY", "0")
        yield server


def was_asked(server: socket.socket) -> bool:
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def identify(fault: Fault) -> str:
    return f"{fault.stage}-{fault.name}"


@pytest.mark.parametrize("fault", FAULTS, ids=identify)
def test_a_bad_input_is_refused_or_read_rightly(fault, nobody_asks, workplace, capfd):
    for spoil in fault.spoils:
        spoil()
    before, memory_before_kb = state_of(workplace), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    capfd.readouterr()
    started_cpu_s, started_s = time.process_time(), time.perf_counter()
    status = call(fault.stage, f"{MORE_FLAGS[fault.stage]} {fault.flags}")
    cpu_s, elapsed_s = time.process_time() - started_cpu_s, time.perf_counter() - started_s
    stderr = capfd.readouterr().err
    assert not was_asked(nobody_asks)
    assert not (workplace / "ran").exists()
    assert cpu_s < LONGEST_CPU_S
    assert elapsed_s < LONGEST_S
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_before_kb < MOST_MEMORY_KB
    if fault.check is not None:
        assert status == 0, stderr
        fault.check()
        return
    assert status == 2, stderr
    assert state_of(workplace) == before
    says = fault.outcome.replace("HERE", str(workplace))
    check_message(stderr, fault.stage, Case(fault.name, fault.flags, says, ()))


def test_every_fault_has_a_name_of_its_own():
    names = [identify(fault) for fault in FAULTS]
    assert len(names) == len(set(names)) >= 60


def test_the_list_in_the_documentation_is_that_of_the_corpus():
    assert reliability.PAGE.read_text(encoding="utf-8") == reliability.written(), "make reliability writes it"
