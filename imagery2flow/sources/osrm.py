"""Lengths of the ways that an OSRM server finds between places: its table service (project-osrm.org, HTTP API, version 1)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from imagery2flow.run.errors import InputError, first_sentence
from imagery2flow.run.stage import Ledger
from imagery2flow.sources.http import ATTEMPTS, AddressError, NoAnswerError, PassingError, ask, keep_trying, open_session, read_body

PLACES_PER_REQUEST = 100  # what a server accepts unless it was started with another --max-table-size
STATUS_OK, STATUS_BAD_REQUEST = 200, 400  # with which OSRM explains in JSON what it cannot do
PROFILE = "driving"


def osrm_distances(url: str, longitude: np.ndarray, latitude: np.ndarray, pairs: np.ndarray, ledger: Ledger, snap_m: float) -> np.ndarray:
    """Length of the fastest way by car between places, in metres; NaN where there is none [num_pairs].

    Args:
        url: Address of the server.
        longitude: Of the places, degrees WGS 84 [num_places].
        latitude: [num_places].
        pairs: Positions of origin and destination [2, num_pairs].
        ledger: Takes what had to be tried again, and how many requests were made.
        snap_m: How far a place may lie from the road to which the server moves it.

    Raises:
        InputError: The server does not answer, or with what is no table of distances.
    """
    server = OsrmServer(url, ledger)
    distance_m = np.full(pairs.shape[1], np.nan)
    num_requests = 0
    for chosen in batches(pairs):
        places, position = np.unique(pairs[:, chosen], return_inverse=True)
        origin, destination = position.reshape(2, -1)
        sources, row = np.unique(origin, return_inverse=True)
        targets, column = np.unique(destination, return_inverse=True)
        table, off_m = server.table(longitude[places], latitude[places], sources, targets)
        far = (off_m[0][row] > snap_m) | (off_m[1][column] > snap_m)
        distance_m[chosen] = np.where(far, np.nan, table[row, column])
        num_requests += 1
    ledger.note(f"{num_requests:,} requests to the OSRM server {url}")
    return distance_m


def batches(pairs: np.ndarray) -> Iterator[np.ndarray]:
    """Positions of pairs, so many together as name at most 100 places; pairs of one origin stand together."""
    chosen: list[int] = []
    places: set[int] = set()
    for number in np.lexsort(pairs[::-1]):
        ends = {int(pairs[0, number]), int(pairs[1, number])}
        if len(places | ends) > PLACES_PER_REQUEST:
            yield np.array(chosen)
            chosen, places = [], set()
        chosen.append(int(number))
        places |= ends
    if chosen:
        yield np.array(chosen)


class OsrmServer:
    """Asks one server.

    Args:
        url: Address without ``/table``.
        ledger: Takes what had to be tried again.
    """

    def __init__(self, url: str, ledger: Ledger) -> None:
        self.url, self.ledger, self.session = url.rstrip("/"), ledger, open_session("asking OSRM", "roads")

    def table(
        self, longitude: np.ndarray, latitude: np.ndarray, sources: np.ndarray, targets: np.ndarray
    ) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """Distances [num_sources, num_targets] in metres, NaN where there is no way; and how far sources and targets lie from their road.

        Raises:
            InputError: The answer is no such table.
        """
        places = ";".join(f"{x:.6f},{y:.6f}" for x, y in zip(longitude, latitude, strict=True))
        chosen = f"sources={';'.join(map(str, sources))}&destinations={';'.join(map(str, targets))}"
        answer = self.ask(f"{self.url}/table/v1/{PROFILE}/{places}?{chosen}&annotations=distance")
        if answer.get("code") != "Ok":
            raise InputError(
                f"the OSRM server {self.url} refuses a table of {len(longitude)} places ({answer.get('code')}: {answer.get('message')}); "
                "see that its map covers the units and that it takes tables of 100 places (--max-table-size)"
            )
        try:
            distance_m = np.array(answer["distances"], dtype=np.float64)  # null becomes NaN
            off_m = tuple(np.array([place.get("distance", 0.0) for place in answer[side]]) for side in ("sources", "destinations"))
        except (KeyError, TypeError, ValueError, AttributeError):
            distance_m, off_m = np.zeros(0), ()
        if distance_m.shape != (len(sources), len(targets)) or [len(side) for side in off_m] != [len(sources), len(targets)]:
            raise InputError(
                f"the OSRM server {self.url} answers without a table of {len(sources)} x {len(targets)} distances; use OSRM 5.18 or newer"
            )
        return distance_m, (off_m[0], off_m[1])

    def ask(self, address: str) -> dict[str, Any]:
        """The JSON of an answer, also of one that refuses.

        Raises:
            NoAnswerError: The server kept failing.
            InputError: It is no OSRM server.
        """
        try:
            return keep_trying(lambda: self.ask_once(address), "distances by road", self.ledger)
        except PassingError as error:
            raise NoAnswerError(
                f"the OSRM server {self.url} does not answer ({error}, {ATTEMPTS} times); see that it runs, or name another with --osrm_url"
            ) from error

    def ask_once(self, address: str) -> dict[str, Any]:
        """One attempt.

        Raises:
            PassingError: No answer, or one that may change.
            InputError: It is no OSRM server.
        """
        try:
            response = ask(self.session, "GET", address)
        except AddressError as error:
            raise InputError(f"{self.url} is no address of a server ({error}); mend --osrm_url") from error
        status = response.status_code
        try:
            answer = json.loads(read_body(response))
        except ValueError as error:
            raise InputError(f"{self.url} is no OSRM server (status {status}, {first_sentence(error)}); mend --osrm_url") from error
        if not isinstance(answer, dict) or status not in (STATUS_OK, STATUS_BAD_REQUEST):
            raise InputError(f"{self.url} is no OSRM server (status {status}); mend --osrm_url")
        return answer
