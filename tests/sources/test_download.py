"""Files over HTTP, with everything that goes wrong on the way."""

import builtins
import errno
import gzip
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from imagery2flow.run.errors import InputError
from imagery2flow.run.stage import Ledger
from imagery2flow.sources import download, http
from imagery2flow.sources.addresses import ADDRESSES, read_addresses
from imagery2flow.sources.download import Downloader, Remote
from imagery2flow.sources.http import ATTEMPTS
from tests.sources.conftest import Fault

CONTENT = os.urandom(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def remote(server):
    server.files["/folder/a.csv.gz"] = CONTENT
    return Remote("the flows", f"{server.url}/folder/a.csv.gz")


@pytest.fixture
def downloader(tmp_path):
    return Downloader(tmp_path / "cache", Ledger("test", quiet=True))


def names(downloader):
    return {path.name.split("_", 1)[1] for path in downloader.cache.iterdir() if path.name != ".lock"}


def test_a_file_comes_once(server, remote, downloader):
    path = downloader.fetch(remote)
    assert path.read_bytes() == CONTENT and path.name.endswith("_a.csv.gz")
    assert json.loads(path.with_name(path.name + ".json").read_text())["sha256"] == SHA256
    server.http.shutdown()
    assert downloader.fetch(remote) == path and downloader.is_fetched(remote)
    assert len(server.asked) == 1
    assert names(downloader) == {"a.csv.gz", "a.csv.gz.json"}
    assert downloader.ledger.inputs == [path, path]
    assert [f"the flows: 300,000 bytes {how}, from {remote.url}" for how in ("fetched", "in the cache")] == downloader.ledger.notes


def test_a_second_process_finds_what_the_first_fetched(server, remote, downloader):
    path = downloader.fetch(remote)
    assert Downloader(downloader.cache, Ledger("test", quiet=True)).fetch(remote) == path
    assert server.paths() == ["/folder/a.csv.gz"]


def test_two_at_once_fetch_a_file_once(server, remote, downloader):
    server.faults["/folder/a.csv.gz"] = [Fault(silent_s=0.2)]
    others = [Downloader(downloader.cache, Ledger("test", quiet=True)) for _ in range(3)]
    with ThreadPoolExecutor(3) as threads:
        paths = list(threads.map(lambda other: other.fetch(remote), others))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert len(server.asked) == 1


def test_the_size_is_asked_without_fetching(server, remote, downloader):
    assert downloader.size_bytes(remote) == len(CONTENT)
    assert server.paths() == [] and not downloader.cache.exists()
    server.faults["/folder/a.csv.gz"] = [Fault(status=405)]
    assert downloader.size_bytes(remote) is None


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_what_may_pass_is_tried_again(server, remote, downloader, status):
    server.faults["/folder/a.csv.gz"] = [Fault(status=status), Fault(status=status)]
    assert downloader.fetch(remote).read_bytes() == CONTENT
    assert len(server.asked) == 3
    assert downloader.ledger.notes[:-1] == [f"the flows: status {status}; tries again ({n} of {ATTEMPTS})" for n in (2, 3)]


def test_what_does_not_pass_ends_in_one_sentence(server, remote, downloader):
    server.faults["/folder/a.csv.gz"] = [Fault(status=503)] * 99
    with pytest.raises(InputError, match=r"the flows cannot be fetched from http.*status 503, 6 times\); run the same command later"):
        downloader.fetch(remote)
    assert len(server.asked) == ATTEMPTS


def test_an_absent_file_is_asked_for_once(server, downloader):
    with pytest.raises(InputError, match=r"the tracts is not at http.*/no.zip \(status 404\); check year and place"):
        downloader.fetch(Remote("the tracts", f"{server.url}/no.zip"))
    assert len(server.asked) == 1


def test_half_a_file_is_continued(server, remote, downloader):
    server.faults["/folder/a.csv.gz"] = [Fault(sends=100_000), Fault(sends=50_000)]
    assert downloader.fetch(remote).read_bytes() == CONTENT
    assert [headers.get("Range") for _, _, headers in server.asked] == [None, "bytes=100000-", "bytes=150000-"]
    assert all("sha256" not in note for note in downloader.ledger.notes)
    assert names(downloader) == {"a.csv.gz", "a.csv.gz.json"}


def test_a_later_run_continues(server, remote, downloader):
    server.faults["/folder/a.csv.gz"] = [Fault(sends=100_000)] + [Fault(status=500)] * ATTEMPTS
    with pytest.raises(InputError, match="continues what has come"):
        downloader.fetch(remote)
    server.faults.clear()
    assert Downloader(downloader.cache, Ledger("test", quiet=True)).fetch(remote).read_bytes() == CONTENT
    assert server.asked[-1][2]["Range"] == "bytes=100000-"


def test_half_of_another_edition_is_not_continued(server, remote, downloader):
    server.faults["/folder/a.csv.gz"] = [Fault(sends=100_000)] + [Fault(status=500)] * ATTEMPTS
    with pytest.raises(InputError):
        downloader.fetch(remote)
    server.faults.clear()
    server.files["/folder/a.csv.gz"] = CONTENT[::-1] + b"more"
    assert downloader.fetch(remote).read_bytes() == CONTENT[::-1] + b"more"


def test_half_of_another_edition_is_not_continued_where_the_server_does_not_look(server, remote, downloader):
    server.faults["/folder/a.csv.gz"] = [Fault(sends=100_000)] + [Fault(status=500)] * ATTEMPTS
    with pytest.raises(InputError):
        downloader.fetch(remote)
    server.files["/folder/a.csv.gz"] = CONTENT[::-1]
    server.faults["/folder/a.csv.gz"] = [Fault(ignores_edition=True)]
    assert downloader.fetch(remote).read_bytes() == CONTENT[::-1]


def test_a_range_that_the_server_ignores_begins_anew(server, remote, downloader):
    server.faults["/folder/a.csv.gz"] = [Fault(sends=100_000), Fault(ignores_range=True)]
    assert downloader.fetch(remote).read_bytes() == CONTENT
    assert server.asked[-1][2]["Range"] == "bytes=100000-"


def test_a_part_of_the_rest_is_not_taken_for_the_rest(server, remote, downloader):
    """A server may answer with less than was asked for; its Content-Length fits that part."""
    server.faults["/folder/a.csv.gz"] = [Fault(sends=100_000), Fault(part_bytes=50_000)]
    assert downloader.fetch(remote).read_bytes() == CONTENT
    assert [headers.get("Range") for _, _, headers in server.asked] == [None, "bytes=100000-", "bytes=150000-"]


def test_a_part_that_nobody_asked_for_is_not_kept(server, remote, downloader):
    server.faults["/folder/a.csv.gz"] = [Fault(part_bytes=50_000)]
    assert downloader.fetch(remote).read_bytes() == CONTENT


def test_a_web_page_in_place_of_a_file_is_not_kept(server, remote, downloader):
    server.faults["/folder/a.csv.gz"] = [Fault(content=b"\n<HTML>log in</HTML>")]
    with pytest.raises(
        InputError, match=r"the flows from http.* came as a web page, as networks answer that want a login first; open the address"
    ):
        downloader.fetch(remote)
    assert names(downloader) == set()
    assert downloader.fetch(remote).read_bytes() == CONTENT


def test_redirects_without_end_are_one_sentence(server, downloader):
    server.faults["/round"] = [Fault(location="/round")] * 999
    with pytest.raises(InputError, match=r"cannot be fetched from http.*redirects"):
        downloader.fetch(Remote("the flows", f"{server.url}/round"))


def test_without_editions_half_a_file_begins_anew(server, remote, downloader):
    server.has_editions = False
    server.faults["/folder/a.csv.gz"] = [Fault(sends=100_000)]
    assert downloader.fetch(remote).read_bytes() == CONTENT
    assert all("Range" not in headers for _, _, headers in server.asked)


def test_a_part_that_is_already_whole_begins_anew(server, remote, downloader):
    downloader.cache.mkdir()
    downloader.part_of(remote).write_bytes(CONTENT)
    downloader.edition_of(remote).write_text(f'"{hashlib.md5(CONTENT).hexdigest()}"')
    assert downloader.fetch(remote).read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_a_wrong_checksum_leaves_nothing(server, remote, downloader):
    wrong = Remote(remote.what, remote.url, sha256="0" * 64)
    with pytest.raises(InputError, match=rf"sha256 {SHA256[:12]}\.\.\. where 000000000000\.\.\. is published"):
        downloader.fetch(wrong)
    assert names(downloader) == set()
    assert downloader.fetch(Remote(remote.what, remote.url, sha256=SHA256)).read_bytes() == CONTENT


def test_a_hash_of_what_is_unpacked(server, downloader):
    server.files["/b.csv.gz"] = gzip.compress(CONTENT)
    remote = Remote("the flows", f"{server.url}/b.csv.gz", sha256=SHA256, is_hash_unpacked=True)
    assert gzip.decompress(downloader.fetch(remote).read_bytes()) == CONTENT
    assert downloader.is_fetched(remote)
    server.files["/b.csv.gz"] = gzip.compress(CONTENT)[:-100]
    downloader.forget(remote)
    with pytest.raises(InputError, match=f"where {SHA256[:12]}"):
        downloader.fetch(remote)


def test_another_published_edition_is_fetched(server, remote, downloader):
    downloader.fetch(remote)
    server.files["/folder/a.csv.gz"] = b"new"
    renewed = Remote(remote.what, remote.url, sha256=hashlib.sha256(b"new").hexdigest())
    assert not downloader.is_fetched(renewed)
    assert downloader.fetch(renewed).read_bytes() == b"new"


@pytest.mark.parametrize("damage", ["content", "record", "no record"])
def test_a_damaged_file_of_the_cache_is_fetched_again(server, remote, downloader, damage):
    path = downloader.fetch(remote)
    record = path.with_name(path.name + ".json")
    if damage == "content":
        path.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    elif damage == "record":
        record.write_text("{}")
    else:
        record.unlink()
    assert not downloader.is_fetched(remote)
    assert downloader.fetch(remote).read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_a_silent_server_is_left(server, remote, downloader, monkeypatch):
    monkeypatch.setattr(http, "SILENCE_TIMEOUT_S", 0.1)
    server.faults["/folder/a.csv.gz"] = [Fault(silent_s=0.5)]
    assert downloader.fetch(remote).read_bytes() == CONTENT
    assert "timed out" in downloader.ledger.notes[0]


def test_a_redirect_is_followed(server, remote, downloader):
    server.faults["/old"] = [Fault(location=remote.url)]
    assert downloader.fetch(Remote("the flows", f"{server.url}/old")).read_bytes() == CONTENT


def test_nobody_at_the_address(downloader, monkeypatch):
    monkeypatch.setattr(http, "FIRST_PAUSE_S", 0.0)
    with pytest.raises(InputError, match=r"cannot be fetched from http://127.0.0.1:1/a \(.*refused, 6 times"):
        downloader.fetch(Remote("the flows", "http://127.0.0.1:1/a"))


def test_an_address_that_is_none(downloader):
    with pytest.raises(InputError, match=r"the flows has the address lodes/a, which is none .*; mend --addresses"):
        downloader.fetch(Remote("the flows", "lodes/a"))


def test_a_full_disk_is_said_and_the_rest_comes_later(server, remote, downloader, monkeypatch):
    def blocks_until_the_disk_is_full(response):
        yield response.raw.read(100_000)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(download, "blocks_of", blocks_until_the_disk_is_full)
        with pytest.raises(
            InputError, match=r"the disk of --cache .* is full while the flows is fetched; make room and run the same command"
        ):
            downloader.fetch(remote)
    assert len(server.asked) == 1
    assert downloader.fetch(remote).read_bytes() == CONTENT
    assert server.asked[-1][2]["Range"] == "bytes=100000-"


def test_a_file_as_cache(server, remote, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--cache .*file cannot be a folder"):
        Downloader(tmp_path / "file", Ledger("test", quiet=True)).fetch(remote)


def test_a_key_is_sent_and_never_shown(server, downloader):
    server.files["/people?for=tract&key=secret"] = b"[]"
    remote = Remote("the people", f"{server.url}/people?for=tract&key=secret")
    path = downloader.fetch(remote)
    absent = Remote("the people", f"{server.url}/absent?key=secret&for=tract")
    with pytest.raises(InputError) as refused:
        downloader.fetch(absent)
    shown = [str(refused.value), *downloader.ledger.notes, path.name, path.with_name(path.name + ".json").read_text()]
    assert not any("secret" in text for text in shown) and absent.address.endswith("/absent?key=...&for=tract")


def test_equal_names_of_other_addresses_do_not_meet(server, remote, downloader):
    server.files["/other/a.csv.gz"] = b"other"
    other = Remote("the flows", f"{server.url}/other/a.csv.gz")
    assert downloader.fetch(remote).read_bytes() == CONTENT
    assert downloader.fetch(other).read_bytes() == b"other"


def test_what_is_forgotten_is_fetched_again(server, remote, downloader):
    downloader.fetch(remote)
    downloader.forget(remote)
    downloader.fetch(remote)
    assert len(server.asked) == 2


def test_without_the_network_package(tmp_path, monkeypatch):
    real = builtins.__import__

    def lacking(name, *rest):
        if name == "requests":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", lacking)
    with pytest.raises(InputError, match=r'needs the package requests; install it with: pip install "imagery2flow\[acquire\]"'):
        Downloader(tmp_path, Ledger("test", quiet=True))


def test_addresses_are_replaced_one_by_one(tmp_path):
    path = tmp_path / "mirror.yaml"
    path.write_text("tiger_tracts: https://mirror.example/{vintage}/{state_fips}.zip\n")
    addresses = read_addresses(str(path))
    assert addresses.pop("tiger_tracts") == "https://mirror.example/{vintage}/{state_fips}.zip"
    assert addresses.items() < ADDRESSES.items()
    assert read_addresses(None) == ADDRESSES


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "is not YAML"),
        ("- a\n", "holds no mapping"),
        ("lodes_od: 3\n", "holds no mapping"),
        ("moon: http://x\n", "names moon; there are lodes_od, "),
        (
            "tiger_tracts: http://x/{state}.zip\n",
            r"gives tiger_tracts the address http://x/.*; what is filled in there is {state_fips}, {vintage}",
        ),
        ("tiger_tracts: http://x/{vintage\n", "what is filled in there is"),
        ("osrm: http://{x}\n", "what is filled in there is nothing"),
    ],
)
def test_a_file_of_addresses_that_is_none(tmp_path, text, says):
    path = tmp_path / "mirror.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        read_addresses(str(path))
