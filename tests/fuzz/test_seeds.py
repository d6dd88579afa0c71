"""What fuzzing found, tried again; and that the fuzzer finds what is wrong."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagery2flow.run.errors import InputError
from imagery2flow.run.tables import read_table

from .inputs import spoiled
from .readers import Reader, all_readers, attempt, check_sentence
from .run import LONGEST_S, SEEDS, fault_of

READERS = {reader.name: reader for reader in all_readers()}
pytestmark = pytest.mark.filterwarnings("ignore")  # libraries warn of damaged files as they like


@pytest.mark.parametrize("seed", sorted(path.name for path in SEEDS.iterdir() if not path.name.startswith(".")))
def test_what_fuzzing_found_is_read_or_refused_in_one_sentence(seed, tmp_path):
    name, suffix = re.fullmatch(r"(\w+)-[0-9a-f]+(\..+)", seed).groups()
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes((SEEDS / seed).read_bytes())
    assert attempt(READERS[name], path) in ("read", "refused")


@pytest.mark.parametrize("name", READERS)
def test_the_valid_files_of_a_reader_are_read(name, tmp_path):
    outcomes = []
    for suffix, content in READERS[name].valid:
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(content)
        outcomes.append(attempt(READERS[name], path))
    assert set(outcomes) == {"read"}


@pytest.mark.parametrize("name", READERS)
def test_some_spoiled_files_are_read_or_refused_in_one_sentence(name, tmp_path):
    @settings(max_examples=15, suppress_health_check=list(HealthCheck))
    @given(spoiled(READERS[name].valid))
    def search(drawn):
        path = tmp_path / f"{name}{drawn[0]}"
        path.write_bytes(drawn[1])
        assert fault_of(READERS[name], path, Counter()) is None

    search()


def refuse(sentence: str):
    def read(path: Path) -> None:
        raise InputError(sentence)

    return read


def crash(path: Path) -> None:
    raise KeyError("a defect")


def fill(path: Path) -> None:
    bytearray(b"x") * (128 << 20)


@pytest.mark.parametrize(
    ("read", "place"),
    [
        (crash, "KeyError"),
        (refuse("one sentence is here. Another follows"), "AssertionError"),
        (refuse("short"), "AssertionError"),
        (refuse("a sentence " + "without an end " * 999), "AssertionError"),
        (fill, "memory"),
    ],
)
def test_a_defect_is_found(read, place, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.fuzz.run.LARGEST_BYTES", 64 << 20)
    path = tmp_path / "a.csv"
    path.touch()
    found = fault_of(Reader("broken", (), read), path, Counter())
    assert found is not None and found[0].startswith(f"broken: {place}")


def test_slowness_is_found(tmp_path, monkeypatch):
    clock = iter([0.0, LONGEST_S + 1, LONGEST_S + 1, LONGEST_S + 1])
    monkeypatch.setattr("tests.fuzz.run.time.monotonic", lambda: next(clock))
    assert fault_of(Reader("sleeper", (), lambda path: None), tmp_path, Counter()) == ("sleeper: slow", "11.0 s")


@given(st.text(max_size=30))
def test_no_value_of_a_table_breaks_the_line_of_a_message(value):
    check_sentence(str(InputError(f"the table holds {value.replace('. ', ' ')!s} where a number should be; mend it")))


def test_a_column_of_ids_of_another_kind_is_refused_by_its_name(tmp_path):
    pd.DataFrame({"geocode": pd.to_datetime(["2020-01-01"]), "a": [1]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(
        InputError, match=r"a.parquet holds values of the kind datetime64 in the column geocode \(2020-01-01 00:00:00\); store ids as text"
    ):
        read_table(tmp_path / "a.parquet", "vectors", ["geocode"])
