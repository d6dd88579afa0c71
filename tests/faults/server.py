"""Runs stages in forked processes, and kills them where it is asked to: what they import is imported once, so that a moment falls into their work.

Reads a line of JSON per run from standard input and answers with one on standard output.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"}
SMALL = {"imagery2flow.encoder.embeddings": {"PIXELS_PER_CHUNK": 4096, "PATCHES_PER_CHUNK": 8}}  # several chunks
SMALL |= {"imagery2flow.flows.fitting": {"CHECKPOINT_EVERY_S": 0.0}, "imagery2flow.imagery.cutting": {"SMALLEST_CHUNK": 4}}
MODULES = [
    "img_preprocessing",
    "train_img_encoder",
    "get_img_embedding",
    "train_ODPrediction",
    "test_ODPrediction",
    "imagery2flow.__main__",
]
WORK = [
    "encoder.training",
    "flows.training",
    "flows.prediction",
    "imagery.patches",
    "figures.results",
    "sources.synthetic",
    "encoder.embeddings",
]


def count_changes(counter: mmap.mmap, kill_at: int | None, how: signal.Signals) -> None:
    """Counts what this process changes in its folder, and kills it before change number ``kill_at``, in the middle of a file where it is one."""
    place, process = str(Path.cwd()), os.getpid()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        is_change = event in CHANGES or (event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & WRITING))
        if not is_change or os.getpid() != process or not isinstance(arguments[0], str | os.PathLike):
            return
        if not os.path.abspath(arguments[0]).startswith(place):  # noqa: PTH100
            return
        number = int.from_bytes(counter[:8], "little") + 1
        counter[:8] = number.to_bytes(8, "little")
        if number == kill_at:
            source = Path(arguments[0])
            if (
                how == signal.SIGKILL
                and event == "os.rename"
                and source.is_file()
                and source.name.startswith(".")
                and source.stat().st_nlink == 1
            ):
                with source.open("r+b") as half:  # as it is while it is being written
                    half.truncate(source.stat().st_size // 2)
            os.kill(process, how)

    sys.addaudithook(hook)


def work(request: dict[str, Any], counter: mmap.mmap, said: int) -> int:
    """The forked process: one stage."""
    os.chdir(request["folder"])
    os.dup2(said, 1)
    os.dup2(said, 2)
    count_changes(counter, request.get("kill_at"), signal.Signals[request.get("signal", "SIGKILL")])
    if "file_limit" in request:  # standard output has its own file, which would be full too
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"], resource.RLIM_INFINITY))
    return sys.modules[request["module"]].main(request["flags"])


def write_down(listen: int, log: Path) -> None:
    """Adds to a file what a process says, until it ends."""
    with os.fdopen(listen, "rb") as stream, log.open("ab") as file:
        shutil.copyfileobj(stream, file)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Runs and perhaps kills a stage."""
    counter, started = mmap.mmap(-1, 8), time.monotonic()
    listen, said = os.pipe()  # no file: a full disk would silence it
    process = os.fork()
    if process == 0:
        status = 70
        try:
            status = work(request, counter, said)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(said)
    listener = threading.Thread(target=write_down, args=(listen, Path(request["log"])))
    listener.start()
    if request.get("kill_after_s") is not None:
        time.sleep(request["kill_after_s"])
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    seconds = time.monotonic() - started
    listener.join()
    return {"status": os.waitstatus_to_exitcode(status), "seconds": seconds, "changes": int.from_bytes(counter[:8], "little")}


if __name__ == "__main__":
    for name in (*MODULES, *(f"imagery2flow.{name}" for name in WORK)):
        importlib.import_module(name)
    for name, values in SMALL.items():
        vars(sys.modules[name]).update(values)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
