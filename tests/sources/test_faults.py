"""Every kind of fetch of a region under every fault that servers, networks and disks have, through the command as the user calls it."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace

import geopandas as gpd
import pandas as pd
import pytest
import rasterio

from imagery2flow.__main__ import main
from imagery2flow.flows.table import read_flows
from imagery2flow.imagery.scene import open_scene
from imagery2flow.imagery.units import read_units
from imagery2flow.run.stage import Ledger
from imagery2flow.sources import http
from imagery2flow.sources.addresses import ADDRESSES
from imagery2flow.sources.download import Downloader, Remote
from tests.sources.conftest import FLOWS, LAND, RESIDENTS, Fault

COUNTIES = "--state_county 13285 01017"
# One address of every kind of fetch.
TRACTS, FLOW_TABLE, CHECKSUMS, PEOPLE = (
    "/2020/01.zip",
    "/LODES8/al/od/al_od_main_JT00_2020.csv.gz",
    "/LODES8/al/lodes_al.sha256sum",
    "/people/01.txt",
)
SEARCH, IMAGE = "/stac/search", "/image/red.tif"
FILES = [TRACTS, FLOW_TABLE, CHECKSUMS, PEOPLE]
WEB_PAGE = b"<!DOCTYPE html><html><body>Log in to this network</body></html>"


def acquire(flags=""):
    return main(["acquire", "--region", "pair", "--addresses", "mirror.yaml", *COUNTIES.split(), *flags.split()])


def refused(capsys, flags=""):
    """The sentence with which the command ends."""
    assert acquire(flags) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.splitlines()[-1]


def check_whole():
    """The region is what it is without faults."""
    assert list(gpd.read_file("data/pair/units.gpkg").GEOID20) == list(LAND)
    flows = pd.read_csv("data/pair/flows_2020.csv", dtype={"h_geocode": str, "w_geocode": str})
    assert dict(zip(zip(flows.h_geocode, flows.w_geocode, strict=True), flows["count"], strict=True)) == FLOWS
    assert dict(pd.read_csv("data/pair/population.csv", dtype={"geocode": str}).itertuples(index=False)) == RESIDENTS
    with rasterio.open("data/pair/s2_2020.tif") as dataset:
        assert (dataset.read(3) == 3000).all()
    assert not [path for path in Path("data").rglob(".*") if path.name != ".lock"]


def notes():
    return json.loads(max(Path("data/pair").glob("acquire*_run.json"), key=lambda path: path.stat().st_mtime_ns).read_text())["ledger"][
        "notes"
    ]


def test_everything_that_the_stages_read_comes_by_default(everything):
    assert acquire() == 0
    check_whole()
    ledger = Ledger("test", quiet=True)
    units = read_units("data/pair/units.gpkg", None, ledger)
    assert list(units.index) == list(LAND) and all(unit.startswith("0") for unit in units.index[:2])
    assert len(read_flows("data/pair/flows_2020.csv", list(units.index), False, ledger).with_zeros()) == 9
    scene = open_scene("data/pair/s2_2020.tif")
    assert scene.band_names == ("blue", "green", "red", "nir")
    asked = len(everything.asked)
    assert acquire() == 0
    assert len(everything.asked) == asked


def test_every_address_of_the_test_is_replaced(everything, monkeypatch):
    """Nothing is asked of anybody but the server of this machine."""
    real, hosts = http.ask, set()
    monkeypatch.setattr(
        "imagery2flow.sources.download.ask", lambda session, method, url, **options: hosts.add(url) or real(session, method, url, **options)
    )
    assert acquire() == 0
    assert len(hosts) == 10 and all(url.startswith(everything.url) for url in hosts)
    public_hosts = {address.split("/")[2] for address in ADDRESSES.values()}
    assert not any(host in url for host in public_hosts for url in hosts)


@pytest.mark.parametrize("path", [*FILES, SEARCH, IMAGE])
@pytest.mark.parametrize(
    "faults",
    [
        [Fault(status=500), Fault(status=503, headers={"Retry-After": "0"})],
        [Fault(sends=40), Fault(sends=20)],
        [Fault(sends=40), Fault(ignores_range=True)],
        [Fault(hides_length=True)],
    ],
    ids=["500 and 503, then success", "a body that is cut short", "a range that is ignored", "no Content-Length"],
)
def test_what_passes_changes_nothing(everything, monkeypatch, path, faults):
    monkeypatch.setattr(http, "FIRST_PAUSE_S", 0.0)
    everything.faults[path] = faults
    assert acquire() == 0
    assert everything.faults[path] == []
    check_whole()


NAMED = {
    TRACTS: "the tracts of state 01 (2020)",
    FLOW_TABLE: "LODES8 al main 2020",
    PEOPLE: "the population of state 01 (2020)",
    SEARCH: "--catalogue earth_search at",
    IMAGE: "image image of earth_search cannot be read",
}


@pytest.mark.parametrize("path", NAMED)
@pytest.mark.parametrize("fault", ["404", "503", "web page", "half", "nothing"])
def test_what_does_not_pass_is_one_sentence_and_the_next_call_continues(everything, monkeypatch, capsys, path, fault):
    monkeypatch.setenv(
        "CPL_VSIL_CURL_NON_CACHED", "/vsicurl/"
    )  # the next call is another process, which knows nothing of this one's answers
    good = everything.files[path]
    if fault in ("404", "503"):
        everything.faults[path] = [Fault(status=int(fault))] * 200
    else:
        everything.files[path] = {"web page": WEB_PAGE, "half": good[: min(len(good) // 2, 5_000)], "nothing": b""}[
            fault
        ]  # with a Content-Length that fits
    sentence = refused(capsys)
    assert NAMED[path] in sentence and sentence.replace("...", "").count(". ") == 0
    assert any(remedy in sentence for remedy in ("run the same command", "name another address", "try again later"))
    assert fault != "web page" or path in (SEARCH, IMAGE) or "came as a web page, as networks answer that want a login first" in sentence
    assert not list(Path("data/pair").glob("acquire*"))
    everything.faults.clear()
    everything.files[path] = good
    assert acquire() == 0
    check_whole()


@pytest.mark.parametrize("fault", ["404", "503", "web page", "half"])
def test_without_the_list_of_checksums_everything_comes_and_the_ledger_says_so(everything, fault):
    good = everything.files[CHECKSUMS]
    if fault in ("404", "503"):
        everything.faults[CHECKSUMS] = [Fault(status=int(fault))] * 99
    else:
        everything.files[CHECKSUMS] = {"web page": WEB_PAGE, "half": good[:50]}[fault]
    assert acquire() == 0
    check_whole()
    assert any("only checked for its size" in note or "only checked for their size" in note for note in notes())
    everything.faults.clear()
    everything.files[CHECKSUMS] = good
    assert acquire("--what flows") == 0
    assert not any("only checked" in note for note in notes())


@pytest.mark.parametrize(
    ("path", "wanted", "pause_s"),
    [*((path, "7", 7) for path in (*FILES, SEARCH)), (TRACTS, "86400", 120), (TRACTS, "a date", 49.5), (TRACTS, "soon", 0)],
)
def test_a_server_that_asks_for_a_pause_gets_it_within_limits(everything, monkeypatch, path, wanted, pause_s):
    pauses = []
    monkeypatch.setattr(http, "time", SimpleNamespace(sleep=pauses.append, monotonic=time.monotonic))
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=50), usegmt=True)
    everything.faults[path] = [Fault(status=429, headers={"Retry-After": date if wanted == "a date" else wanted})]
    what = "imagery units" if path == SEARCH else "units flows population"
    assert acquire(f"--what {what}") == 0
    assert pauses == [pytest.approx(pause_s, abs=1.5)]


def test_gdal_does_not_wait_as_long_as_a_server_says(everything):
    everything.faults[IMAGE] = [Fault(status=429, headers={"Retry-After": "86400"})] * 2
    started = time.monotonic()
    assert acquire("--what units imagery") == 0
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("path", [TRACTS, FLOW_TABLE, PEOPLE, SEARCH, IMAGE])
@pytest.mark.parametrize("fault", [Fault(silent_s=0.4), Fault(silent_s=0.05, at_once=2)], ids=["silent", "a few bytes now and then"])
def test_a_slow_server_is_not_waited_for_without_limit(everything, monkeypatch, capsys, path, fault):
    assert acquire("--what units") == 0 if path == IMAGE else True  # the rest is at hand
    monkeypatch.setattr(http, "SILENCE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(http, "ATTEMPTS", 2)
    everything.faults[path] = [fault] * 200
    started = time.monotonic()
    sentence = refused(capsys, "--what units imagery" if path in (SEARCH, IMAGE) else "--what units flows population")
    assert NAMED[path] in sentence and time.monotonic() - started < 30
    assert path == IMAGE or "timed out" in sentence or "bytes came in" in sentence


@pytest.mark.parametrize(
    ("first", "limit_bytes", "says"),
    [
        (
            "",
            200,
            "the disk of --cache data/downloads is full while the tracts of state 01 (2020) is fetched; make room and run the same command",
        ),
        ("--what units flows population", 20_000, "data/pair/units.gpkg cannot be written"),
        (
            "--what units flows population",
            120,
            "a disk is full ([Errno 27] File too large); make room, or name another folder, and run the same",
        ),
    ],
    ids=["while a file is fetched", "while units are written", "while a table is written"],
)
def test_a_full_disk_is_one_sentence_and_the_next_call_continues(everything, capsys, first, limit_bytes, says):
    if first:
        assert acquire(first) == 0
        for path in Path("data/pair").iterdir():
            if path.name != "units.gpkg" or limit_bytes > 1000:
                path.unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))  # the system writes no more into any file, as on a full disk
    try:
        sentence = refused(capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert says in sentence
    assert not list(Path("data/pair").glob(".*")) and not Path("data/pair/flows_2020.csv").exists()
    assert acquire() == 0
    check_whole()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_download_that_is_killed_is_continued(server, tmp_path, number):
    content = os.urandom(2_000_000)
    server.files["/a.zip"] = content
    server.faults["/a.zip"] = [Fault(silent_s=0.01, at_once=20_000)]
    code = """if True:
        import sys
        from pathlib import Path
        from imagery2flow.run.stage import run_stage, stopping_at_sigterm
        from imagery2flow.sources.download import Downloader, Remote
        def work(config, ledger):
            Downloader(Path("cache"), ledger).fetch(Remote("the tracts", sys.argv[1]))
        sys.exit(run_stage("acquire", None, stopping_at_sigterm("what has come stays")(work)))
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, f"{server.url}/a.zip"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as child:
        while not any(path.stat().st_size for path in tmp_path.glob("cache/*.part")):
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(number)
        _, told = child.communicate(timeout=60)
    assert child.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number] and "Traceback" not in told
    downloader = Downloader(tmp_path / "cache", Ledger("test", quiet=True))
    assert downloader.fetch(Remote("the tracts", f"{server.url}/a.zip")).read_bytes() == content
    assert int(server.asked[-1][2]["Range"].removeprefix("bytes=").removesuffix("-")) > 0
