"""Tokens of the Planetary Computer, from a server of this machine."""

from datetime import UTC, datetime, timedelta

import pytest

from imagery2flow.sources import http
from imagery2flow.sources.signing import Signer
from tests.sources.conftest import Fault

IMAGE = "https://account.blob.core.windows.net/container/folder/red.tif"


def give(server, name, token, minutes):
    """Lets the server give a token that is good for so long."""
    until = datetime.now(UTC) + timedelta(minutes=minutes)
    server.files[f"/token/{name}"] = f'{{"token": "{token}", "msft:expiry": "{until:%Y-%m-%dT%H:%M:%SZ}"}}'.encode()


@pytest.fixture
def signer(server):
    give(server, "account/container", "st=1&sig=a", 30)
    return Signer(f"{server.url}/token")


def test_a_container_has_one_token_for_all_its_files(server, signer):
    give(server, "account/other", "sig=b", 30)
    assert signer.sign(IMAGE) == f"{IMAGE}?st=1&sig=a"
    assert signer.sign(IMAGE.replace("red", "nir")) == f"{IMAGE.replace('red', 'nir')}?st=1&sig=a"
    assert signer.sign(IMAGE.replace("container", "other")).endswith("/other/folder/red.tif?sig=b")
    assert server.paths() == ["/token/account/container", "/token/account/other"]


def test_a_token_that_runs_out_is_asked_for_again(server, signer):
    give(server, "account/container", "sig=old", 0.9)
    assert signer.sign(IMAGE).endswith("?sig=old")
    give(server, "account/container", "sig=new", 30)
    assert signer.sign(IMAGE).endswith("?sig=new")


@pytest.mark.parametrize("address", [f"{IMAGE}?sig=own", "https://elsewhere.org/container/red.tif", "/data/red.tif"])
def test_what_needs_no_token_stays(server, signer, address):
    assert signer.sign(address) == address
    assert server.paths() == []


def test_a_server_that_is_silent_is_not_waited_for_without_end(server, signer, monkeypatch):
    monkeypatch.setattr(http, "SILENCE_TIMEOUT_S", 0.1)
    server.faults["/token/account/container"] = [Fault(silent_s=1.0)]
    with pytest.raises(OSError, match=r"its address cannot be signed: .*timed out"):
        signer.sign(IMAGE)
    assert signer.sign(IMAGE).endswith("sig=a")


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault(status=404), "HTTP response code: 404"),
        (Fault(status=503), "status 503"),
        (Fault(content=b"<html>"), "is no token"),
        (Fault(content=b'{"token": "sig=a"}'), "is no token"),
        (Fault(content=b'{"token": "sig=a", "msft:expiry": "soon"}'), "is no token"),
    ],
)
def test_what_is_no_token_is_said(server, signer, fault, says):
    server.faults["/token/account/container"] = [fault]
    with pytest.raises(OSError, match=says):
        signer.sign(IMAGE)
