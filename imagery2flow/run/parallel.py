"""Independent chunks of work: in this process, in several processes of this machine, or on the machines of a dask cluster.

The work must give the same result, and write the same files, however often a chunk is begun: one whose process was killed begins again.
Each chunk's result is yielded once, in order of completion.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import platform
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from imagery2flow.run.errors import InputError

if TYPE_CHECKING:
    from distributed import Client

    from imagery2flow.run.stage import Ledger

RESTARTS = 3  # of the chunks that a killed process leaves undone
SCHEDULER_TIMEOUT_S = 10

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")


def available_cores() -> int:
    """Cores that this process may use: a batch system often gives fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each_chunk(
    function: Callable[[Chunk], Result],
    chunks: Sequence[Chunk],
    workers: int,
    dask: str | None,
    ledger: Ledger,
    start_method: str | None = None,
) -> Iterator[Result]:
    """Calls ``function`` with every chunk and yields the results in order of completion.

    Args:
        function: A function of a module, or a ``functools.partial`` of one: other processes must be able to import it.
        chunks: What it is called with.
        workers: Processes of this machine; 0 takes one per core, 1 works in this process. A cluster has its own number.
        dask: Address of a dask scheduler, or None.
        ledger: Takes the number of workers of a cluster, and killed processes.
        start_method: How processes begin (``multiprocessing.get_context``); None is the platform's default.

    Raises:
        InputError: Processes were killed again and again, the cluster cannot be used, or the work raised it.
    """
    if dask is not None:
        return on_cluster(function, chunks, dask, ledger)
    workers = min(workers or available_cores(), len(chunks))
    if workers <= 1:
        return map(function, chunks)
    return in_processes(function, chunks, workers, ledger, start_method)


def in_processes(
    function: Callable[[Chunk], Result], chunks: Sequence[Chunk], workers: int, ledger: Ledger, start_method: str | None
) -> Iterator[Result]:
    """Works in a pool of processes; the chunks that a killed process leaves undone begin again in a new pool."""
    waiting = dict(enumerate(chunks))
    for restart in range(RESTARTS + 1):
        if restart:
            ledger.note(f"a worker process was killed; {len(waiting):,} chunks of work begin again (restart {restart} of {RESTARTS})")
        others = set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(min(workers, len(waiting)), multiprocessing.get_context(start_method), initializer=end_with_parent)
        try:
            numbers = {pool.submit(function, chunk): number for number, chunk in waiting.items()}
            for future in as_completed(numbers):
                if isinstance(future.exception(), BrokenProcessPool):
                    continue  # results that came before the kill still follow
                del waiting[numbers.pop(future)]
                yield future.result()
        except BrokenProcessPool:  # killed before all chunks were handed over
            pass
        except BaseException:  # Ctrl-C, SIGTERM, a full disk: chunks that are begun are not waited for
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        if not waiting:
            return
    raise InputError(
        f"worker processes were killed {RESTARTS + 1} times, most likely because the memory ran out; use fewer of them than --workers {workers}"
    )


def end_with_parent() -> None:
    """Prepares a worker: it ends when the process that started it does, however that ends, and leaves Ctrl-C and SIGTERM to that one."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=watch, daemon=True).start()


def on_cluster(function: Callable[[Chunk], Result], chunks: Sequence[Chunk], address: str, ledger: Ledger) -> Iterator[Result]:
    """Works on a dask cluster; the scheduler itself gives the chunks of a lost worker to others."""
    try:
        from distributed import CancelledError, KilledWorker
        from distributed import as_completed as completed_on_cluster
    except ImportError as error:
        raise InputError(f'--dask {address} needs the package distributed; install it with: pip install "imagery2flow[cluster]"') from error
    with connect(address) as client:
        ledger.note(f"work runs on {len(client.nthreads()):,} workers of the dask scheduler at {address}")
        # Chunks go one by one: many in one message make dask warn of its size. Retries are for errors of a shared disk, not for lost workers.
        futures = client.map(partial(with_input_error, function), chunks, pure=False, retries=RESTARTS, batch_size=1)
        for future in completed_on_cluster(futures, loop=client.loop):
            try:
                result = future.result()
            except CancelledError as error:
                raise InputError(f"the dask scheduler at {address} was lost; start it and its workers, and run this again") from error
            except KilledWorker as error:
                raise InputError(
                    f"workers of the dask scheduler at {address} were killed again and again, most likely because their memory ran out; "
                    "start fewer of them on each machine"
                ) from error
            future.release()  # the cluster need not keep what is here
            if isinstance(result, InputError):
                raise result
            yield result


def connect(address: str) -> Client:
    """A client of a dask scheduler that has workers.

    Raises:
        InputError: The scheduler does not answer, or has no worker.
    """
    from distributed import Client

    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # a lost scheduler is told in one sentence of ours
    try:
        client = Client(address, timeout=SCHEDULER_TIMEOUT_S, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(
            f"no dask scheduler answers at {address} within {SCHEDULER_TIMEOUT_S} s; check --dask, or start one with: dask scheduler"
        ) from error
    try:
        client.wait_for_workers(1, timeout=SCHEDULER_TIMEOUT_S)
    except TimeoutError as error:
        client.close()
        raise InputError(f"the dask scheduler at {address} has no worker; start some with: dask worker {address}") from error
    return client


def with_input_error(function: Callable[[Chunk], Result], chunk: Chunk) -> Result | InputError:
    """The result, or the user's error as a value: raised on a worker, dask would try again what cannot succeed."""
    try:
        return function(chunk)
    except InputError as error:
        return error


def check_shared_folder(folder: Path, what: str) -> None:
    """Refuses to work where a folder that all processes read or write cannot be seen.

    Raises:
        InputError: It is not there.
    """
    if not folder.is_dir():
        raise InputError(
            f"a worker on {platform.node()} does not see the {what} {folder}; with --dask all machines must share one file system, with the same paths"
        )
