"""Distances from a server that answers like OSRM, and fails as it is told."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from imagery2flow.run.errors import InputError
from imagery2flow.run.stage import Ledger
from imagery2flow.sources import http
from imagery2flow.sources.osrm import PLACES_PER_REQUEST, batches, osrm_distances
from tests.sources.conftest import Fault

SNAP_M = 1_000.0


def length_m(source, target):
    """What this server calls the way between two (longitude, latitude): not the same there and back."""
    return 1_000 * (abs(source[0] - target[0]) + 2 * abs(source[1] - target[1])) + 10 * source[0]


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server.told
        server["asked"].append(self.path)
        status, body = server["answers"].pop(0) if server["answers"] else (200, None)
        content = json.dumps(self.table() if body is None else body).encode() if not isinstance(body, bytes) else body
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def table(self):
        address = urlsplit(self.path)
        places = [tuple(map(float, place.split(","))) for place in address.path.rsplit("/", 1)[1].split(";")]
        query = parse_qs(address.query.replace(";", "%3B"))
        sources, targets = ([places[int(n)] for n in query[side][0].split(";")] for side in ("sources", "destinations"))
        null = self.server.told["null"]
        table = [[None if (a, b) in null else length_m(a, b) for b in targets] for a in sources]
        off_m = self.server.told["off_m"]
        sides = {
            name: [{"distance": off_m.get(place, 5.0)} for place in side]
            for name, side in (("sources", sources), ("destinations", targets))
        }
        return {"code": "Ok", "distances": table, **sides}


@pytest.fixture
def osrm(monkeypatch):
    """The server, as the dictionary by which it is told what to do."""
    monkeypatch.setattr(http, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    running.told = {"asked": [], "answers": [], "null": set(), "off_m": {}, "url": f"http://127.0.0.1:{running.server_port}"}
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running.told
    running.shutdown()
    running.server_close()
    thread.join()


def places(count):
    number = np.arange(count)
    return (number % 20) / 10, (number // 20) / 10


def chain(count):
    """Every place with the next, both ways."""
    forward = np.stack([np.arange(count - 1), np.arange(1, count)])
    return np.concatenate([forward, forward[::-1]], axis=1)


def measured(osrm, longitude, latitude, pairs):
    ledger = Ledger("test", quiet=True)
    return osrm_distances(osrm["url"], longitude, latitude, pairs, ledger, SNAP_M), ledger


def test_every_pair_gets_the_distance_of_its_own_direction(osrm):
    longitude, latitude = places(250)
    pairs = chain(250)[:, np.random.default_rng(0).permutation(498)]
    found, _ = measured(osrm, longitude, latitude, pairs)
    expected = [length_m((longitude[a], latitude[a]), (longitude[b], latitude[b])) for a, b in pairs.T]
    np.testing.assert_allclose(found, expected)
    for path in osrm["asked"]:
        assert path.startswith("/table/v1/driving/") and path.endswith("&annotations=distance")
        assert len(urlsplit(path).path.split(";")) <= PLACES_PER_REQUEST
    assert len(osrm["asked"]) == 3  # 250 places in a chain, 100 in each request at most


def test_batches_hold_every_pair_once_and_no_more_places_than_allowed():
    star = np.stack([np.zeros(250, dtype=np.int64), np.arange(1, 251)])  # one place with more neighbours than a request takes
    parts = list(batches(star))
    assert sorted(np.concatenate(parts)) == list(range(250))
    assert [len(part) for part in parts] == [99, 99, 52]


def test_a_pair_without_a_way_and_a_place_far_from_roads_have_no_distance(osrm):
    osrm["null"] = {((0.1, 0.0), (0.2, 0.0))}
    osrm["off_m"] = {(0.4, 0.0): SNAP_M + 1}
    found, _ = measured(osrm, *places(5), chain(5))
    assert np.isnan(found).tolist() == [False, True, False, True, False, False, False, True]


def test_a_busy_server_is_asked_again(osrm):
    osrm["answers"] = [(500, {}), (429, {})]
    found, ledger = measured(osrm, *places(3), chain(3))
    assert not np.isnan(found).any() and len(osrm["asked"]) == 3
    assert [note.split(";")[0] for note in ledger.notes[:2]] == ["distances by road: status 500", "distances by road: status 429"]


THREE = "0.000000,0.000000;0.100000,0.000000;0.200000,0.000000"
PATH = f"/table/v1/driving/{THREE}"
TABLE = {
    "code": "Ok",
    "distances": [[0, 1, 2], [1, 0, 2], [2, 1, 0]],
    "sources": [{"distance": 0}] * 3,
    "destinations": [{"distance": 0}] * 3,
}


@pytest.fixture
def faulty(server):
    """The server of files with one table."""
    server.files[PATH] = json.dumps(TABLE).encode()
    return server


@pytest.mark.parametrize(
    "faults",
    [[Fault(status=500), Fault(status=503)], [Fault(sends=0), Fault(sends=40)], [Fault(hides_length=True)], [Fault(location="/moved")]],
    ids=["500 and 503", "a body that is cut short", "no Content-Length", "a redirect"],
)
def test_what_passes_changes_nothing(faulty, faults):
    faulty.files["/moved"] = faulty.files[PATH]
    faulty.faults[PATH] = faults
    found, _ = measured({"url": faulty.url}, *places(3), chain(3))
    assert found.tolist() == [1, 2, 1, 1] and faulty.faults[PATH] == []


@pytest.mark.parametrize("wanted", ["7", "86400"])
def test_a_server_that_asks_for_a_pause_gets_it_within_limits(faulty, monkeypatch, wanted):
    pauses = []
    monkeypatch.setattr(http, "time", SimpleNamespace(sleep=pauses.append, monotonic=time.monotonic))
    faulty.faults[PATH] = [Fault(status=429, headers={"Retry-After": wanted})]
    measured({"url": faulty.url}, *places(3), chain(3))
    assert pauses == [min(float(wanted), 120.0)]


@pytest.mark.parametrize("fault", [Fault(silent_s=0.4), Fault(silent_s=0.05, at_once=2)], ids=["silent", "a few bytes now and then"])
def test_a_slow_server_is_not_waited_for_without_limit(faulty, monkeypatch, fault):
    monkeypatch.setattr(http, "SILENCE_TIMEOUT_S", 0.2)
    faulty.faults[PATH] = [fault] * 99
    with pytest.raises(InputError, match=r"does not answer \((.*timed out|only .* bytes came in 0 s), 6 times\); see that it runs"):
        measured({"url": faulty.url}, *places(3), chain(3))


@pytest.mark.parametrize("url", ["http://", "http://[", "http://no such host:x"])
def test_an_address_that_is_none_is_one_sentence(url, monkeypatch):
    monkeypatch.setattr(http, "FIRST_PAUSE_S", 0.0)
    with pytest.raises(InputError, match="--osrm_url"):
        measured({"url": url}, *places(3), chain(3))


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ([(503, {})] * http.ATTEMPTS, "does not answer (status 503, 6 times)"),
        ([(400, {"code": "NoSegment", "message": "Could not find"})], "refuses a table of 3 places (NoSegment: Could not find)"),
        ([(200, {"code": "Ok", "durations": [[1]]})], "answers without a table of 3 x 3 distances"),
        ([(200, {"code": "Ok", "distances": [[1, 2]], "sources": [], "destinations": []})], "answers without a table"),
        ([(200, b"<html>")], "is no OSRM server (status 200"),
        ([(404, {"code": "Ok"})], "is no OSRM server (status 404)"),
    ],
)
def test_what_no_table_is_ends_in_a_sentence(osrm, answers, says):
    osrm["answers"] = answers
    with pytest.raises(InputError) as error:
        measured(osrm, *places(3), chain(3))
    assert says in str(error.value)
