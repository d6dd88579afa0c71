"""Asking servers: what may pass is tried again, with pauses, and nothing is waited for without limit.

What may pass is a busy or silent server, a broken connection, a body shorter than stated. A server that says when it will answer
(``Retry-After``) is believed, up to two minutes an attempt.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

from imagery2flow.run.errors import InputError, first_sentence
from imagery2flow.run.stage import Ledger

if TYPE_CHECKING:
    import requests

ATTEMPTS = 6
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 120.0
CONNECT_TIMEOUT_S, SILENCE_TIMEOUT_S = 10.0, 60.0
SLOWEST_BYTES_PER_S = 500  # less, for as long as a server may be silent, is a connection that hangs
BLOCK_BYTES = 1 << 20
PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}

Answer = TypeVar("Answer")


class PassingError(Exception):
    """Something went wrong that may not go wrong again.

    Args:
        message: What went wrong.
        pause_s: How long the server asks to be left alone.
    """

    def __init__(self, message: str, pause_s: float = 0.0) -> None:
        super().__init__(message)
        self.pause_s = pause_s


class AddressError(InputError):
    """An address is none."""


class NoAnswerError(InputError):
    """A server kept failing; others may answer, and this one later."""


def open_session(what: str, extra: str) -> requests.Session:
    """A session whose answers come as they lie on the server, not packed on the way: sizes are those of the files.

    Raises:
        InputError: The package is missing.
    """
    try:
        import requests
    except ImportError as error:
        raise InputError(f'{what} needs the package requests; install it with: pip install "imagery2flow[{extra}]"') from error
    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"
    return session


def ask(session: requests.Session, method: str, url: str, **options: Any) -> requests.Response:
    """Asks once; the body is not read yet.

    Raises:
        PassingError: No answer, or one that may change.
        AddressError: The address is none.
    """
    from requests import exceptions

    try:
        response = session.request(method, url, stream=True, timeout=(CONNECT_TIMEOUT_S, SILENCE_TIMEOUT_S), **options)
    except (exceptions.MissingSchema, exceptions.InvalidSchema, exceptions.InvalidURL) as error:
        raise AddressError(first_sentence(error)) from error
    except exceptions.RequestException as error:
        raise PassingError(reason(error)) from error
    if response.status_code in PASSING_STATUS:
        response.close()
        raise PassingError(f"status {response.status_code}", wanted_pause_s(response.headers.get("Retry-After", "")))
    return response


def wanted_pause_s(text: str) -> float:
    """How long a server asks to be left alone, in seconds or until a date; 0 where it does not, or not in these forms."""
    if re.fullmatch(r"\s*\d{1,9}\s*", text):
        return float(text)
    try:
        then = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max(0.0, (then.astimezone(UTC) - datetime.now(UTC)).total_seconds())


def keep_trying(work: Callable[[], Answer], what: str, ledger: Ledger) -> Answer:
    """Tries again, with growing pauses, while what goes wrong may pass.

    Raises:
        PassingError: It went wrong every time.
    """
    for attempt in range(1, ATTEMPTS):
        try:
            return work()
        except PassingError as error:
            ledger.note(f"{what}: {error}; tries again ({attempt + 1} of {ATTEMPTS})")
            pause_s = max(error.pause_s, FIRST_PAUSE_S * 2 ** (attempt - 1))
        time.sleep(min(pause_s, LONGEST_PAUSE_S))
    return work()


def read_body(response: requests.Response) -> bytes:
    """The whole body of a small answer.

    Raises:
        PassingError: The connection broke, fell silent or nearly so, or the body was shorter than stated.
    """
    is_packed = "Content-Encoding" in response.headers  # though we did not ask for that
    with response:
        body = b"".join(blocks_of(response, unpack=is_packed))
    length = response.headers.get("Content-Length")
    if length and len(body) != int(length) and not is_packed:
        raise PassingError(f"{len(body):,} of {int(length):,} bytes came")
    return body


def blocks_of(response: requests.Response, unpack: bool = False) -> Iterator[bytes]:
    """The body as it comes, and as it is sent: a file that ends in .gz stays packed, whatever the server calls it.

    Args:
        response: An answer whose body is not read yet.
        unpack: Undo the packing that the answer names.

    Raises:
        PassingError: The connection broke, fell silent or nearly so.
    """
    from urllib3.exceptions import HTTPError

    since, num_bytes = time.monotonic(), 0
    while True:
        try:
            block = response.raw.read1(BLOCK_BYTES, decode_content=unpack)
        except HTTPError as error:
            raise PassingError(reason(error)) from error
        if not block:
            return
        yield block
        num_bytes += len(block)
        elapsed_s = time.monotonic() - since
        if elapsed_s > SILENCE_TIMEOUT_S:
            if num_bytes < SLOWEST_BYTES_PER_S * elapsed_s:
                raise PassingError(f"only {num_bytes:,} bytes came in {elapsed_s:.0f} s")
            since, num_bytes = time.monotonic(), 0


def reason(error: Exception) -> str:
    """What went wrong on the way, without the objects that libraries print: the innermost message."""
    while isinstance(error.__context__, Exception):
        error = error.__context__
    return first_sentence(error)
