"""Every kind of fetch of a region under every fault that servers, networks and disks have, through the command as the user calls it."""

import errno
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
from tests.sources.conftest import FLOWS, LAND, RESIDENTS, Fault

COUNTIES = "--state_county 13285 01017"
# One address of every kind of fetch.
TRACTS, FLOW_TABLE, CHECKSUMS, PEOPLE = "/2020/01.zip", "/LODES8/al/od/al_od_main_JT00_2020.csv.gz", "/LODES8/al/lodes_al.sha256sum", "/people/01.txt"
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


def asked_path(server, path):
    """The path as it is asked for: a search has a query."""
    acquire("--dry_run --what imagery" if path == SEARCH else "--dry_run")
    return next(asked for _, asked, _ in server.asked if asked.startswith(path))


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
    return json.loads(Path("data/pair/acquire_run.json").read_text())["ledger"]["notes"]


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
    monkeypatch.setattr("imagery2flow.sources.download.ask", lambda session, method, url, **options: hosts.add(url) or real(session, method, url, **options))
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
    path = next((asked for asked in [path] if asked != SEARCH), None) or search_path(everything)
    everything.faults[path] = faults
    assert acquire() == 0
    assert everything.faults[path] == []
    check_whole()


def search_path(server):
    """The whole address of the search: found out by a search of the same units."""
    assert acquire("--what units") == 0
    assert acquire("--what imagery --dry_run") == 0
    path = next(path for path in server.paths() if path.startswith(SEARCH))
    return path
