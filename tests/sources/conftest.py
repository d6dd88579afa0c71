"""A server of files that fails as it is told, and public data of two small counties."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import io
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import geopandas as gpd
import pytest
import shapely
from rasterio.warp import transform_bounds

from imagery2flow.sources import http, stac
from tests.sources.catalogue import UNITS_M, Catalogue, sentinel2


@dataclasses.dataclass
class Fault:
    """What happens to one request.

    Attributes:
        status: Answered instead of the file.
        sends: Bytes of the body after which the connection closes.
        silent_s: Seconds before anything is answered.
        location: Address to which the request is sent on.
        headers: Sent besides.
        content: Sent instead of the file.
        ignores_range: The whole file comes, whatever part was asked for.
        ignores_edition: The part comes, whatever edition it is of.
        part_bytes: Only so many bytes come, called a part of the file.
        hides_length: The size is not stated; the body ends where the connection does.
        at_once: Bytes that are sent at a time, with ``silent_s`` between.
    """

    status: int | None = None
    sends: int | None = None
    silent_s: float = 0.0
    location: str | None = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    content: bytes | None = None
    ignores_range: bool = False
    ignores_edition: bool = False
    part_bytes: int | None = None
    hides_length: bool = False
    at_once: int | None = None


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
        faults = server.faults.get(self.path) or server.faults.get(self.path.partition("?")[0], [])
        fault = faults.pop(0) if faults else Fault()
        time.sleep(fault.silent_s)
        path = self.path if self.path in server.files else self.path.partition("?")[0]
        if fault.location or fault.status or path not in server.files:
            self.send_response(302 if fault.location else fault.status or 404)
            if fault.location:
                self.send_header("Location", fault.location)
            for name, value in fault.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_file(server.files[path] if fault.content is None else fault.content, fault, body)

    def send_file(self, content: bytes, fault: Fault, body: bool) -> None:
        edition = f'"{hashlib.md5(content).hexdigest()}"'
        is_ours = fault.ignores_edition or self.headers.get("If-Range", edition) == edition
        wanted = self.headers.get("Range", "") if is_ours and not fault.ignores_range else ""
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        begin, end = int(first or 0), min(int(last or len(content)) + 1, len(content))
        if fault.part_bytes:
            wanted, end = wanted or "bytes=0-", begin + fault.part_bytes
        if begin >= len(content) > 0:
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        if self.files_of.has_editions:
            self.send_header("ETag", edition)
        if not fault.hides_length:
            self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        if body:
            sent = content[begin:end][: fault.sends]
            step = fault.at_once or max(len(sent), 1)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the other side may have left
                for first_byte in range(0, len(sent), step):
                    self.wfile.write(sent[first_byte : first_byte + step])
                    time.sleep(fault.silent_s if fault.at_once else 0)


@pytest.fixture
def server(monkeypatch) -> Iterator[FileServer]:
    """A server of this machine; attempts follow each other without pause."""
    monkeypatch.setattr(http, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = FileServer()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


# Two counties of neighbouring states; a county beside them; a tract of water; a tract (the last) that is nobody's home or work.
LAND, WATER, BESIDE = ("01017000100", "01017000200", "13285000100", "13285000200"), "01017990000", "01081000100"
RESIDENTS = dict(zip(LAND, (4000, 3000, 2500, 12), strict=True))
# Rows of LODES by file: home block, work block, jobs.
ROWS = {
    "al_od_main": [
        (LAND[0] + "1000", LAND[1] + "1001", 3),
        (LAND[0] + "2044", LAND[1] + "1002", 4),  # the same pair of tracts
        (LAND[0] + "1000", LAND[0] + "1000", 5),
        (BESIDE + "1000", LAND[1] + "1001", 100),  # home outside
        (LAND[1] + "1000", BESIDE + "1001", 200),  # work outside
        (BESIDE + "1000", BESIDE + "1001", 400),
    ],
    "al_od_aux": [(LAND[2] + "3000", LAND[0] + "1000", 7), ("120010002001000", LAND[0] + "1000", 50)],
    "ga_od_main": [(LAND[2] + "3000", LAND[2] + "3000", 11)],
    "ga_od_aux": [(LAND[1] + "1000", LAND[2] + "3001", 13)],
}
FLOWS = {
    (LAND[0], LAND[0]): 5,
    (LAND[0], LAND[1]): 7,
    (LAND[1], LAND[2]): 13,
    (LAND[2], LAND[0]): 7,
    (LAND[2], LAND[2]): 11,
}


def lodes_csv(rows: list[tuple[str, str, int]]) -> bytes:
    """A gzipped file in the format of LODES OD."""
    lines = [f"{work},{home},{jobs}" + f",{jobs}" * 9 + ",20230321" for home, work, jobs in rows]
    header = "w_geocode,h_geocode,S000,SA01,SA02,SA03,SE01,SE02,SE03,SI01,SI02,SI03,createdate"
    return gzip.compress("\n".join([header, *lines, ""]).encode(), mtime=0)


def tract_zip(tracts: Sequence[str], vintage: int = 2020, side: float = 0.1, **changes: object) -> bytes:
    """An archive in the format of TIGER: squares side by side (degrees), in the reverse order of their ids."""
    suffix = "10" if vintage == 2010 else ""
    ids = sorted(tracts, reverse=True)
    columns = {f"GEOID{suffix}": ids, f"ALAND{suffix}": [0 if tract == WATER else 10_000 for tract in ids]}
    squares = [shapely.box(-85 + side * number, 32, -85 + side * (number + 1), 32 + side) for number in range(len(ids))]
    table = gpd.GeoDataFrame(columns, geometry=squares, crs=4269).assign(**changes)
    content = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(content, "w") as archive:
        table.to_file(f"{folder}/tl_{vintage}_tract{suffix}.shp")
        for path in sorted(Path(folder).iterdir()):
            archive.write(path, path.name)
    return content.getvalue()


def population_csv(residents: dict[str, int]) -> bytes:
    """A table in the format of the centers of population."""
    rows = [f"{tract[:2]},{tract[2:5]},{tract[5:]},{people},+32.500000,-085.300000" for tract, people in residents.items()]
    return "\r\n".join(["\ufeffSTATEFP,COUNTYFP,TRACTCE,POPULATION,LATITUDE,LONGITUDE", *rows, ""]).encode()


def publish_flows(server: FileServer, rows: dict[str, list[tuple[str, str, int]]], version: int = 8, year: int = 2020) -> None:
    """Puts files of flows, and the lists of their checksums, onto the server."""
    sums: dict[str, list[str]] = {}
    for name, content in rows.items():
        packed, file_name = lodes_csv(content), f"{name}_JT00_{year}.csv.gz"
        server.files[f"/LODES{version}/{name[:2]}/od/{file_name}"] = packed
        sums.setdefault(name[:2], []).append(f"{hashlib.sha256(gzip.decompress(packed)).hexdigest()}  {file_name.removesuffix('.gz')}")
    for state, lines in sums.items():
        server.files[f"/LODES{version}/{state}/lodes_{state}.sha256sum"] = "\n".join(lines).encode()


@pytest.fixture
def public(server, tmp_path, monkeypatch) -> FileServer:
    """The server with all data of the two counties, and mirror.yaml that names it, in the working folder."""
    monkeypatch.chdir(tmp_path)
    publish_flows(server, ROWS)
    for state in ("01", "13"):
        tracts = [tract for tract in (*LAND, WATER, BESIDE) if tract.startswith(state)]
        server.files[f"/2020/{state}.zip"] = tract_zip(tracts)
        everybody = {**RESIDENTS, WATER: 0, BESIDE: 900}
        server.files[f"/people/{state}.txt"] = population_csv(
            {tract: people for tract, people in everybody.items() if tract.startswith(state)}
        )
        server.files[f"/2010/{state}.zip"] = tract_zip(tracts, vintage=2010)
    addresses = {
        "lodes_od": "/LODES{version}/{state}/od/{state}_od_{part}_{job_type}_{year}.csv.gz",
        "lodes_sha256": "/LODES{version}/{state}/lodes_{state}.sha256sum",
        "tiger_tracts": "/{vintage}/{state_fips}.zip",
        "tiger_tracts_2010": "/2010/{state_fips}.zip",
        "tiger_counties": "/counties.zip",
        "population_2020": "/people/{state_fips}.txt",
        "population_2010": "/people/{state_fips}.txt",
    }
    Path("mirror.yaml").write_text("".join(f'{name}: "{server.url}{path}"\n' for name, path in addresses.items()))
    return server


@pytest.fixture
def catalogue(server, tmp_path, monkeypatch) -> Catalogue:
    """The catalogue, mirror.yaml that names it, and units of the region."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stac, "RETRY_PAUSE_S", 0.01)
    Path("mirror.yaml").write_text(f"earth_search: {server.url}/stac\n")
    Path("data/here").mkdir(parents=True)
    gpd.GeoDataFrame({"geocode": ["a"]}, geometry=[shapely.box(*UNITS_M)], crs=32616).to_file("data/here/units.gpkg")
    return Catalogue(server)


@pytest.fixture
def everything(public, monkeypatch) -> FileServer:
    """The server with all data of the two counties, whose tracts are small, and a catalogue with an image of them."""
    monkeypatch.setattr(stac, "RETRY_PAUSE_S", 0.01)
    for state in ("01", "13"):
        public.files[f"/2020/{state}.zip"] = tract_zip([tract for tract in (*LAND, WATER, BESIDE) if tract.startswith(state)], side=0.005)
    left, _, _, top = transform_bounds("EPSG:4326", "EPSG:32616", -85, 32, -84.98, 32.005)
    Catalogue(public).add("image", sentinel2(3000), left=left // 10 * 10 - 200, top=top // 10 * 10 + 200)
    with Path("mirror.yaml").open("a") as stream:
        stream.write(f"earth_search: {public.url}/stac\n")
    return public
