"""A server of files that fails as it is told."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from imagery2flow.sources import download


@dataclasses.dataclass
class Fault:
    """What happens to one request.

    Attributes:
        status: Answered instead of the file.
        sends: Bytes of the body after which the connection closes.
        silent_s: Seconds before anything is answered.
        location: Address to which the request is sent on.
    """

    status: int | None = None
    sends: int | None = None
    silent_s: float = 0.0
    location: str | None = None


class FileServer:
    """Serves bytes by path, and keeps what was asked: (method, path with query, headers)."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.has_editions = True
        handler = type("Handler", (Handler,), {"files_of": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def paths(self, method: str = "GET") -> list[str]:
        return [path for asked, path, _ in self.asked if asked == method]


class Handler(BaseHTTPRequestHandler):
    files_of: FileServer

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        server = self.files_of
        server.asked.append((self.command, self.path, dict(self.headers)))
        faults = server.faults.get(self.path, [])
        fault = faults.pop(0) if faults else Fault()
        time.sleep(fault.silent_s)
        if fault.location or fault.status or self.path not in server.files:
            self.send_response(302 if fault.location else fault.status or 404)
            if fault.location:
                self.send_header("Location", fault.location)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_file(server.files[self.path], fault, body)

    def send_file(self, content: bytes, fault: Fault, body: bool) -> None:
        edition = f'"{hashlib.md5(content).hexdigest()}"'
        wanted = self.headers.get("Range", "")
        begin = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.headers["If-Range"] == edition else 0
        if begin >= len(content) > 0:
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        if self.files_of.has_editions:
            self.send_header("ETag", edition)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        if body:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the other side may have left
                self.wfile.write(content[begin:][: fault.sends])


@pytest.fixture
def server(monkeypatch) -> Iterator[FileServer]:
    """A server of this machine; attempts follow each other without pause."""
    monkeypatch.setattr(download, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = FileServer()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()
