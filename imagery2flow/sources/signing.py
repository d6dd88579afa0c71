"""Signing the addresses of the Planetary Computer's images: a container's token, good for an hour or less, goes behind them.

See planetarycomputer.microsoft.com/docs/concepts/sas.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from imagery2flow.sources import http

STORAGE = ".blob.core.windows.net"  # what else a catalogue names needs no token
SHORTEST = timedelta(minutes=1)  # that a token must still hold


class Signer:
    """Adds to addresses what makes them readable; asks for every container's token once, and again when it has run out.

    Args:
        address: Where tokens are given.
    """

    def __init__(self, address: str) -> None:
        self.address, self.session = address, http.open_session("acquiring imagery", "acquire")
        self.tokens: dict[str, tuple[str, datetime]] = {}  # with the time when they run out, by account and container

    def sign(self, address: str) -> str:
        """The address with its container's token; one that is signed, or lies elsewhere, as it is.

        Raises:
            OSError: No token is given.
        """
        parts = urlsplit(address)
        if not parts.netloc.endswith(STORAGE) or parts.query:
            return address
        name = f"{parts.netloc.split('.')[0]}/{parts.path.split('/')[1]}"
        if name not in self.tokens or self.tokens[name][1] - datetime.now(UTC) < SHORTEST:
            self.tokens[name] = self.ask(name)
        return f"{address}?{self.tokens[name][0]}"

    def ask(self, name: str) -> tuple[str, datetime]:
        """A new token for an account and container, and the time when it runs out.

        Raises:
            OSError: None is given.
        """
        unsigned = "its address cannot be signed"
        try:
            response = http.ask(self.session, "GET", f"{self.address}/{name}")
            body = http.read_body(response)
        except (http.PassingError, http.AddressError) as error:
            raise OSError(f"{unsigned}: {error}") from None
        if not response.ok:
            raise OSError(f"{unsigned}: HTTP response code: {response.status_code}")
        try:
            content = json.loads(body)
            return str(content["token"]), datetime.fromisoformat(content["msft:expiry"]).astimezone(UTC)
        except (ValueError, KeyError, TypeError):
            raise OSError(f"{unsigned}: what {self.address} answers is no token") from None
