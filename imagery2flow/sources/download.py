"""Fetches files over HTTP: once, whole and checked.

A file lies in the cache under its name, beside it ``<name>.json`` with its address, size and sha256; it is used again if its content still has that hash.
Half a file stays as ``<name>.part`` and is continued, if the server still has the same (``If-Range``). What may pass (a busy or silent server, a broken connection)
is tried again with growing pauses (``sources.http``); what will not (an address that does not exist, a wrong checksum, a full disk) ends in one sentence.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tqdm import tqdm

from imagery2flow.run.errors import FULL_DISK, InputError, first_sentence
from imagery2flow.run.files import check_output_folder, sha256, write_json
from imagery2flow.run.stage import Ledger
from imagery2flow.sources.http import ATTEMPTS, AddressError, Answer, NoAnswerError, PassingError, ask, blocks_of, keep_trying, open_session

if TYPE_CHECKING:
    import requests

STATUS_PARTIAL, STATUS_RANGE_REFUSED = 206, 416
STATUS_NO_HEAD = {405, 501}
ABSENT_STATUS = {404, 410}
WEB_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html)", re.IGNORECASE)


@dataclass(frozen=True)
class Remote:
    """A file on a server.

    Attributes:
        what: What it holds, for messages and the plan.
        url: Address.
        sha256: What its content must hash to; None where nobody publishes it.
        is_hash_unpacked: The published hash is of what the file (gzip) unpacks to.
        name: Name in the cache; default the last part of the address.
        may_be_absent: Nothing is wrong where the server has no such file.
    """

    what: str
    url: str
    sha256: str | None = None
    is_hash_unpacked: bool = False
    name: str | None = None
    may_be_absent: bool = False

    @property
    def file_name(self) -> str:
        """Name in the cache: that of the file, and a hash of the address, since servers give one name to many files."""
        name = self.name or urlsplit(self.url).path.rsplit("/", 1)[-1] or "index"
        return f"{hashlib.sha256(self.url.encode()).hexdigest()[:8]}_{name}"

    @property
    def address(self) -> str:
        """The address as it may be printed and kept: without keys and signatures."""
        return re.sub(r"([?&](?:key|sig|token)=)[^&]+", r"\1...", self.url)


class AbsentError(InputError):
    """A server answered that it has no such file."""


class Downloader:
    """Fetches into one cache folder.

    Args:
        cache: Folder; made when the first file comes.
        ledger: Takes every file as an input, and what had to be tried again.
    """

    def __init__(self, cache: Path, ledger: Ledger) -> None:
        self.cache, self.ledger, self.session = cache, ledger, open_session("acquiring data", "acquire")

    def path_of(self, remote: Remote) -> Path:
        """Where the file lies once it is fetched."""
        return self.cache / remote.file_name

    def is_fetched(self, remote: Remote) -> bool:
        """Whether the cache holds the file, unharmed."""
        path, record = self.path_of(remote), self.path_of(remote).with_name(remote.file_name + ".json")
        if not path.is_file() or not record.is_file():
            return False
        try:
            stored = json.loads(record.read_text(encoding="utf-8"))
            if remote.sha256 is not None and stored["published_sha256"] != remote.sha256:
                return False  # another edition
            return sha256(path) == stored["sha256"]
        except (ValueError, TypeError, KeyError):
            return False  # a damaged record

    def forget(self, remote: Remote) -> None:
        """Removes a file from the cache, so that it is fetched again: an edition that may have changed, or content that is no data."""
        self.path_of(remote).unlink(missing_ok=True)

    def size_bytes(self, remote: Remote) -> int | None:
        """Size that the server states, without fetching; None where it does not.

        Raises:
            InputError: The server has no such file, or does not answer.
        """

        def ask() -> int | None:
            with self.request("HEAD", remote, {}) as response:
                length = response.headers.get("Content-Length")
                return int(length) if length and response.status_code not in STATUS_NO_HEAD else None

        return self.insist(remote, ask)

    def fetch(self, remote: Remote) -> Path:
        """Returns the path of the file, fetched unless the cache holds it.

        Raises:
            InputError: The server has no such file or keeps failing, the content is not what it should be, or the disk is full.
        """
        path, is_cached = self.path_of(remote), self.is_fetched(remote)
        if not is_cached:
            self.make_cache()
            with self.alone():
                is_cached = self.is_fetched(remote)  # by the process that was waited for
                if not is_cached:
                    self.insist(remote, lambda: self.fetch_rest(remote))
                    self.accept(remote)
        self.ledger.reads(path)
        self.ledger.note(
            f"{remote.what}: {path.stat().st_size:,} bytes {'in the cache' if is_cached else 'fetched'}, from {remote.address}"
        )
        return path

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Waits while another process fetches into the same cache: two would append to one half of a file."""
        with (self.cache / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def make_cache(self) -> None:
        """Makes the cache folder.

        Raises:
            InputError: It cannot be made.
        """
        check_output_folder(self.cache, "--cache")
        self.cache.mkdir(parents=True, exist_ok=True)

    def accept(self, remote: Remote) -> None:
        """Takes a whole file into the cache, if it is what it should be.

        Raises:
            InputError: It is a web page, or its hash is not the published one; the file is removed.
        """
        path, part = self.path_of(remote), self.part_of(remote)
        self.edition_of(remote).unlink(missing_ok=True)
        if is_web_page(part):
            part.unlink()
            raise InputError(
                f"{remote.what} from {remote.address} came as a web page, as networks answer that want a login first; open the address in a browser, "
                "then run the same command again, or name another address with --addresses"
            )
        if remote.sha256 is not None:
            found = sha256_unpacked(part) if remote.is_hash_unpacked else sha256(part)
            if found != remote.sha256:
                part.unlink()
                raise InputError(
                    f"{remote.what} from {remote.address} has the sha256 {found[:12]}... where {remote.sha256[:12]}... is published; try again later, "
                    "or name a mirror with --addresses"
                )
        content = {"url": remote.address, "sha256": sha256(part), "published_sha256": remote.sha256}
        record = path.with_name(path.name + ".json")
        record.unlink(missing_ok=True)  # a file without a record is not trusted, so that a process may be killed between the two
        part.replace(path)
        write_json(record, {**content, "bytes": path.stat().st_size, "what": remote.what})

    def part_of(self, remote: Remote) -> Path:
        """Half a file."""
        return self.cache / f"{remote.file_name}.part"

    def edition_of(self, remote: Remote) -> Path:
        """What the server called the edition that half a file is of."""
        return self.cache / f"{remote.file_name}.edition"

    def fetch_rest(self, remote: Remote) -> None:
        """Appends to half a file what is missing, or begins anew.

        Raises:
            PassingError: The connection broke or the body was shorter than stated.
            InputError: The server has no such file, or the disk is full.
        """
        part, edition = self.part_of(remote), self.edition_of(remote)
        begun = part.stat().st_size if part.is_file() and edition.is_file() else 0
        headers = {}
        if begun:
            headers = {"Range": f"bytes={begun}-", "If-Range": edition.read_text(encoding="utf-8")}
        with self.request("GET", remote, headers) as response:
            is_partial = response.status_code == STATUS_PARTIAL
            if response.status_code == STATUS_RANGE_REFUSED or (is_partial and not self.continues(remote, response, begun)):
                part.unlink(missing_ok=True)
                raise PassingError("the server no longer has the rest of the file")
            try:
                if not is_partial:
                    begun = 0
                    part.unlink(missing_ok=True)  # before the edition is named: it is not half of this one
                    self.note_edition(remote, response)
                write_body(remote, response, part, begun)
            except OSError as error:
                raise self.explain_write(remote, error) from error

    def continues(self, remote: Remote, response: requests.Response, begun: int) -> bool:
        """Whether a part of a file begins where ours ends, and is of the same edition: some servers do not heed ``If-Range``."""
        edition = validator_of(response)
        is_same = begun > 0 and (edition is None or edition == self.edition_of(remote).read_text(encoding="utf-8"))
        return is_same and response.headers.get("Content-Range", "").startswith(f"bytes {begun}-")

    def note_edition(self, remote: Remote, response: requests.Response) -> None:
        """Keeps what the server calls the content, if it promises that equal names mean equal bytes."""
        validator = validator_of(response)
        if validator:
            self.edition_of(remote).write_text(validator, encoding="utf-8")
        else:
            self.edition_of(remote).unlink(missing_ok=True)

    def explain_write(self, remote: Remote, error: OSError) -> InputError:
        """The sentence for a cache folder that takes no more."""
        if error.errno in FULL_DISK:
            return InputError(
                f"the disk of --cache {self.cache} is full while {remote.what} is fetched; make room and run the same command, which continues"
            )
        return InputError(f"--cache {self.cache} cannot be written to ({first_sentence(error)}); name another folder")

    def request(self, method: str, remote: Remote, headers: dict[str, str]) -> requests.Response:
        """Asks once.

        Raises:
            PassingError: No answer, or one that may change.
            InputError: An answer that will not change.
        """
        try:
            response = ask(self.session, method, remote.url, headers=headers, allow_redirects=True)
        except AddressError as error:
            raise InputError(f"{remote.what} has the address {remote.address}, which is none ({error}); mend --addresses") from error
        status = response.status_code
        if status < 400 or status == STATUS_RANGE_REFUSED or (method == "HEAD" and status in STATUS_NO_HEAD):
            return response
        response.close()
        kind = AbsentError if status in ABSENT_STATUS else InputError
        raise kind(
            f"{remote.what} is not at {remote.address} (status {status}); check year and place, or name another address with --addresses"
        )

    def insist(self, remote: Remote, work: Callable[[], Answer]) -> Answer:
        """Tries again, with pauses, while what goes wrong may pass.

        Raises:
            NoAnswerError: It did not pass.
        """
        try:
            return keep_trying(work, remote.what, self.ledger)
        except PassingError as error:
            raise NoAnswerError(
                f"{remote.what} cannot be fetched from {remote.address} ({error}, {ATTEMPTS} times); run the same command later, which continues what has come"
            ) from error


def validator_of(response: requests.Response) -> str | None:
    """What the server calls the content, if it promises that equal names mean equal bytes."""
    validator: str | None = response.headers.get("ETag") or response.headers.get("Last-Modified")
    return None if validator is None or validator.startswith("W/") else validator


def is_web_page(path: Path) -> bool:
    """Whether a file begins as HTML, which no data of ours are."""
    with path.open("rb") as stream:
        return WEB_PAGE.match(stream.read(200)) is not None


def sha256_unpacked(path: Path) -> str:
    """Hash of what a gzip file unpacks to; of nothing where it is damaged, which no file has."""
    try:
        with gzip.open(path) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, EOFError, zlib.error):
        return hashlib.sha256().hexdigest()


def write_body(remote: Remote, response: requests.Response, part: Path, begun: int) -> None:
    """Writes a body behind the ``begun`` bytes that are there already.

    Raises:
        PassingError: The connection broke, or the body was shorter than stated.
        OSError: The disk takes no more.
    """
    length, stated = response.headers.get("Content-Length"), response.headers.get("Content-Range", "").rpartition("/")[2]
    total = int(stated) if stated.isdecimal() else begun + int(length) if length else None
    with (
        part.open("ab" if begun else "wb") as stream,
        tqdm(desc=remote.what, total=total, initial=begun, unit="B", unit_scale=True, disable=None) as bar,
    ):
        for block in blocks_of(response):
            stream.write(block)
            bar.update(len(block))
    if total is not None and part.stat().st_size != total:
        raise PassingError(f"{part.stat().st_size:,} of {total:,} bytes came")
