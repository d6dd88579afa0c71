"""Jobs between blocks, summed to tracts."""

import gzip
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagery2flow.run.errors import InputError
from imagery2flow.sources import lodes
from imagery2flow.sources.download import Remote
from imagery2flow.sources.lodes import TractSums, read_blocks, sum_by_key, with_hashes
from tests.sources.conftest import lodes_csv

TRACTS = ("01017000100", "01017000200", "06037980000")
OTHER = ("01017000101", "00000000000", "99999999999")
REMOTE = Remote("LODES8 al main", "http://mirror.example/al_od_main_JT00_2020.csv.gz")

tract = st.sampled_from(TRACTS + OTHER)
row = st.tuples(tract, tract, st.integers(1, 10**6))


def as_arrays(rows):
    """Home and work block and jobs of rows of tracts; the blocks differ."""
    home = np.array([int(home) * 10_000 + i % 10_000 for i, (home, _, _) in enumerate(rows)], dtype=np.int64)
    work = np.array([int(work) * 10_000 + 9_999 - i % 10_000 for i, (_, work, _) in enumerate(rows)], dtype=np.int64)
    return home, work, np.array([jobs for _, _, jobs in rows], dtype=np.int64)


def by_loop(rows):
    total = Counter()
    for home, work, jobs in rows:
        if home in TRACTS and work in TRACTS:
            total[home, work] += jobs
    return dict(total)


def as_dict(flows):
    return dict(zip(zip(flows.h_geocode, flows.w_geocode, strict=True), flows["count"], strict=True))


@settings(deadline=None)
@given(st.lists(st.lists(row, max_size=30), max_size=6), st.sampled_from([1, 4, 10**6]))
def test_sums_equal_a_loop_over_rows(batches, merged_at):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lodes, "MERGED_AT", merged_at)
        sums = TractSums(TRACTS)
        for rows in batches:
            sums.add(*as_arrays(rows))
    rows = [row for batch in batches for row in batch]
    flows = sums.flows()
    assert as_dict(flows) == by_loop(rows)
    assert list(zip(flows.h_geocode, flows.w_geocode, strict=True)) == sorted(by_loop(rows))
    assert sums.num_rows == len(rows)
    assert sums.jobs_by_side.sum() == sum(jobs for _, _, jobs in rows)
    assert list(sums.occurs) == [any(tract in row[:2] for row in rows) for tract in TRACTS]


def test_what_waits_is_merged_before_it_grows(monkeypatch):
    monkeypatch.setattr(lodes, "MERGED_AT", 3)
    sums = TractSums(TRACTS)
    for _ in range(50):
        sums.add(*as_arrays([(home, work, 1) for home in TRACTS for work in TRACTS]))
        assert sum(len(pairs) for pairs, _ in sums.waiting) <= 9 and len(sums.pairs) <= 9
    assert set(sums.flows()["count"]) == {50}


def test_sums_by_key():
    keys, values = sum_by_key(np.array([7, 2, 7, 7]), np.array([1, 10, 100, 1000]))
    assert keys.tolist() == [2, 7] and values.tolist() == [10, 1101]
    assert sum_by_key(np.empty(0, np.int64), np.empty(0, np.int64))[0].tolist() == []


def test_blocks_keep_all_their_digits(tmp_path, monkeypatch):
    monkeypatch.setattr(lodes, "READ_BYTES", 2_000)
    path = tmp_path / "a.csv.gz"
    rows = [("010170001001000", "560459513005999", i + 1) for i in range(300)]
    path.write_bytes(lodes_csv(rows))
    batches = list(read_blocks(path, REMOTE))
    home, work, jobs = (np.concatenate(side) for side in zip(*batches, strict=True))
    assert len(batches) > 1
    assert set(home) == {10170001001000} and set(work) == {560459513005999} and jobs.tolist() == list(range(1, 301))


@pytest.mark.parametrize(
    "content",
    [
        lodes_csv([("010170001001000", "010170001001000", i) for i in range(2000)])[:-400],
        gzip.compress(b"w_geocode,h_geocode,jobs\n010170001001000,010170001001000,3\n"),
        gzip.compress(b"w_geocode,h_geocode,S000\n010170001001000,,3\n"),
        gzip.compress(b"w_geocode,h_geocode,S000\n010170001001000,010170001001000,many\n"),
        gzip.compress(b"w_geocode,h_geocode,S000\n010170001001000,010170001001000,-3\n"),
        gzip.compress(b"w_geocode,h_geocode,S000\n010170001001000,010170001001000\n"),
        b"<html>",
        b"",
    ],
    ids=["cut short", "no jobs", "an empty cell", "text", "less than nobody", "a short row", "no archive", "nothing"],
)
def test_a_file_that_is_none_is_refused(tmp_path, content):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"LODES8 al main from http.* cannot be read as a table with h_geocode, w_geocode, S000"):
        list(read_blocks(path, REMOTE))


@pytest.mark.parametrize("missing", [1, 8, 9, 20, 400])
def test_a_file_that_ends_too_soon_is_refused_wherever_that_is(tmp_path, missing):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(lodes_csv([("010170001001000", "010170001001000", i) for i in range(2000)])[:-missing])
    with pytest.raises(InputError, match="cannot be read as a table"):
        list(read_blocks(path, REMOTE))


@pytest.mark.parametrize(
    "text",
    [
        "w_geocode,h_geocode,S000\r\n010170001002001,130010001001000,3\r\n",
        '"w_geocode","h_geocode","S000"\n"010170001002001","130010001001000","3"\n',
        "\ufeffw_geocode,h_geocode,S000\n010170001002001,130010001001000,3",
        'new,S000,h_geocode,w_geocode\n"a, b",3,130010001001000,010170001002001\n',
    ],
    ids=["CRLF", "quotes", "a mark and no last line end", "unknown columns in another order"],
)
def test_tables_in_other_clothes_say_the_same(tmp_path, text):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    ((home, work, jobs),) = read_blocks(path, REMOTE)
    assert (home.tolist(), work.tolist(), jobs.tolist()) == ([130010001001000], [10170001002001], [3])


@pytest.mark.parametrize("line", ["{}  al_od_main_JT00_2020.csv", "{} *al_od_main_JT00_2020.csv", "{}  ./al/od/al_od_main_JT00_2020.csv "])
def test_published_hashes_are_found_by_name(tmp_path, line):
    listing = tmp_path / "list"
    listing.write_text(f"{'0' * 64}  al_od_aux_JT00_2020.csv\n{line.format('AB' * 32)}\nno hash\n")
    assert with_hashes([REMOTE], listing)[0].sha256 == "ab" * 32
    assert with_hashes([Remote("x", "http://mirror.example/other.csv.gz")], listing)[0].sha256 is None
