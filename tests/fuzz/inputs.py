"""Spoiled files: valid ones with bits turned, parts gone or doubled, other encodings and odd values, and tables of any type."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import sqlite3
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from hypothesis import strategies as st

LARGEST = 1 << 20  # bytes of an input
MOST_CHANGES = 6
ENCODINGS = ("utf-16", "utf-16-be", "utf-32", "utf-8-sig", "latin-1", "cp037")
ODD_TEXTS = (
    "", " ", "nan", "NA", "inf", "-inf", "-1", "0", "1e309", "-0.0", "1e-320", "9" * 30, "0x10", "1_000", "1,200", "1;2", "٣", "é", "\u2028", "\x00",
    "\ufeff", "\ud800", "'", '"', '""', "\n", "\r", "\r\n", "\t", "\\", "a" * 5_000, "../../etc/passwd", "/etc/passwd", "true", "null", "[", "{}", "2020-01-01",
    "0001", "0002", "1", "1.0", "train", "written", "geocode", "count", "NaT", "<NA>", "&a [*a]", "!!python/object:os.system", "1:30", "~", "CON",
)  # fmt: skip
ODD_VALUES = (
    None,
    True,
    False,
    -1,
    0,
    2**63,
    2**70,
    1e308,
    0.5,
    [],
    {},
    [[]],
    "0001",
    "",
    "x" * 3_000,
    "\x00",
    "a\nb",
    "\ud800",
    float("nan"),
    float("inf"),
)
IDS = ("0001", "0002", "0003", "NA", "1", "9999", "", None)

Change = Callable[[bytes], bytes]


@st.composite
def byte_change(draw: st.DrawFn) -> Change:
    """One change of any file's bytes; places are drawn as shares, so that they mean something for every length."""
    kind = draw(st.sampled_from(["bit", "byte", "cut", "remove", "double", "insert", "zero", "swap"]))
    at, length = draw(st.floats(0, 1)), draw(st.integers(1, 64))
    bit, blob = draw(st.integers(0, 7)), draw(st.binary(min_size=1, max_size=8))

    def change(content: bytes) -> bytes:
        if not content:
            return blob
        i = min(int(at * len(content)), len(content) - 1)
        part = content[i : i + length]
        return {
            "bit": lambda: content[:i] + bytes([content[i] ^ (1 << bit)]) + content[i + 1 :],
            "byte": lambda: content[:i] + blob[:1] + content[i + 1 :],
            "cut": lambda: content[:i],
            "remove": lambda: content[:i] + content[i + length :],
            "double": lambda: content[:i] + part + content[i:],
            "insert": lambda: content[:i] + blob + content[i:],
            "zero": lambda: content[:i] + bytes(len(part)) + content[i + length :],
            "swap": lambda: part + content[:i] + content[i + length :],
        }[kind]()

    return change


@st.composite
def text_change(draw: st.DrawFn) -> Change:
    """One change of a text file: lines, cells, encodings."""
    kind = draw(
        st.sampled_from(["double", "remove", "move", "cell", "cell", "cell", "word", "encode", "column", "many", "no_end", "semicolon"])
    )
    line, cell, word = draw(st.integers(0, 9)), draw(st.integers(0, 9)), draw(st.sampled_from(ODD_TEXTS))
    encoding, times = draw(st.sampled_from(ENCODINGS)), draw(st.sampled_from([2, 50, 3_000]))

    def change(content: bytes) -> bytes:
        lines = content.decode("utf-8", "surrogateescape").split("\n")
        at = line % len(lines)
        cells = lines[at].split(",")
        if kind == "cell":
            cells[cell % len(cells)] = word
            lines[at] = ",".join(cells)
        elif kind == "word":
            lines[at] = lines[at][:cell] + word + lines[at][cell:]
        elif kind == "double":
            lines.insert(at, lines[at])
        elif kind == "remove":
            del lines[at]
        elif kind == "move":
            lines.append(lines.pop(at))
        elif kind == "column":
            lines = [f"{text},{text.split(',')[cell % (text.count(',') + 1)]}" for text in lines]
        elif kind == "many":
            lines[at:at] = [lines[at]] * times
        elif kind == "no_end":
            lines = [*lines[:at], "".join(lines[at:])]
        elif kind == "semicolon":
            lines = [text.replace(",", ";") for text in lines]
        text = "\n".join(lines)
        if kind == "encode":
            return text.encode(encoding, "replace")
        return text.encode("utf-8", "surrogatepass" if "\ud800" in text else "surrogateescape")

    return change


def places_of(tree: Any) -> list[tuple[Any, Any]]:
    """Every container of a JSON tree with each of its keys."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else []
    return [(tree, key) for key in keys] + [place for key in keys for place in places_of(tree[key])]


@st.composite
def json_change(draw: st.DrawFn) -> Change:
    """Puts another value in the place of one of a JSON file, or takes it out."""
    at, value = (
        draw(st.integers(0, 999)),
        draw(st.sampled_from(ODD_VALUES) | st.floats() | st.text(max_size=5) | st.lists(st.floats(-200, 200), max_size=5)),
    )
    removes, depth = draw(st.booleans()), draw(st.sampled_from([0, 0, 0, 3, 100_000]))

    def change(content: bytes) -> bytes:
        try:
            tree = json.loads(content)
            places = places_of(tree)
        except (ValueError, RecursionError):
            return content
        if not places:
            return content
        if depth == 100_000:
            return b"[" * depth + content + b"]" * depth
        container, key = places[at % len(places)]
        if removes:
            del container[key]
        else:
            container[key] = value
        return json.dumps(tree).encode()

    return change


@st.composite
def database_change(draw: st.DrawFn) -> Change:
    """Puts another value into a cell of a GeoPackage."""
    at, row = draw(st.integers(0, 99)), draw(st.integers(0, 9))
    value = draw(
        st.sampled_from(["", "x", "\x00", "4326", 0, -1, 99999, 2**40, None, 1.5, float("inf"), b"\xff" * 9, "POINT", "x" * 3_000, "é\n"])
    )
    spoil = draw(st.none() | byte_change())

    def change(content: bytes) -> bytes:
        try:
            with contextlib.closing(sqlite3.connect(":memory:")) as database:
                database.deserialize(content)
                names = [
                    name
                    for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
                    if not name.startswith("sqlite")
                ]
                columns = [(name, column[1]) for name in names for column in database.execute(f'PRAGMA table_info("{name}")')]
                table, column = columns[at % len(columns)]
                rows = database.execute(f'SELECT rowid, "{column}" FROM "{table}"').fetchall()
                number, before = rows[row % len(rows)]
                new = spoil(before) if spoil and isinstance(before, bytes) else value
                database.execute(f'UPDATE "{table}" SET "{column}" = ? WHERE rowid = ?', (new, number))
                database.commit()
                return database.serialize()
        except (sqlite3.Error, ZeroDivisionError, UnicodeError, OverflowError, MemoryError):
            return content

    return change


COLUMN_TYPES = {
    "text": (pa.string(), st.sampled_from(IDS)),
    "large text": (pa.large_string(), st.sampled_from(IDS)),
    "category": (pa.dictionary(pa.int8(), pa.string()), st.sampled_from(IDS)),
    "integer": (pa.int64(), st.sampled_from([None, 0, 1, 2, 11, -1, 2**62])),
    "unsigned": (pa.uint64(), st.sampled_from([0, 1, 2**64 - 1])),
    "small": (pa.int8(), st.integers(-3, 100)),
    "real": (pa.float64(), st.floats() | st.sampled_from([None, 1.0, 12.0])),
    "half": (pa.float16(), st.sampled_from([1.0, 2.5, float("inf")])),
    "boolean": (pa.bool_(), st.sampled_from([True, False, None])),
    "bytes": (pa.binary(), st.sampled_from([b"0001", b"\xff", b"", None])),
    "day": (pa.date32(), st.sampled_from([date(2020, 1, 1), None])),
    "time": (pa.timestamp("us", "UTC"), st.sampled_from([datetime(2020, 1, 1, tzinfo=UTC), None])),
    "span": (pa.duration("s"), st.sampled_from([timedelta(seconds=5), None])),
    "decimal": (pa.decimal128(20, 2), st.sampled_from([Decimal("1.00"), Decimal("2.50"), None])),
    "list": (pa.list_(pa.int64()), st.sampled_from([[], [1], None])),
    "record": (pa.struct([("a", pa.int64())]), st.sampled_from([{"a": 1}, None])),
    "nothing": (pa.null(), st.none()),
}  # fmt: skip


@st.composite
def parquet_tables(draw: st.DrawFn, columns: tuple[str, ...]) -> bytes:
    """A Parquet table of the reader's columns in any type, with any of the ids."""
    rows = draw(st.integers(0, 4))
    names = [name if draw(st.integers(0, 9)) else draw(st.sampled_from(["other", "", "0", "x" * 9, columns[0]])) for name in columns]
    arrays = []
    for name in names:
        usual = "text" if name in ("geocode", "h_geocode", "w_geocode", "split") else "integer"
        kind, values = COLUMN_TYPES[draw(st.sampled_from([usual, usual, *COLUMN_TYPES]))]
        drawn = [draw(values) for _ in range(rows)]
        arrays.append(pa.array(drawn, pa.string()).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(drawn, kind))
    content = io.BytesIO()
    table = pa.table(arrays, names=names)
    if draw(st.booleans()) and len(set(names)) == len(names):
        with contextlib.suppress(Exception):  # a type that pandas does not hold
            table = pa.Table.from_pandas(table.to_pandas().set_index(names[0]))
    pyarrow.parquet.write_table(table, content)
    return content.getvalue()


def changes_of(suffix: str) -> st.SearchStrategy[Change]:
    """Changes that fit a kind of file."""
    if suffix == ".gpkg":
        return database_change() | byte_change()
    if suffix == ".parquet":
        return byte_change()
    return byte_change() | text_change() | (json_change() if suffix in (".json", ".geojson") else text_change())


@st.composite
def spoiled(draw: st.DrawFn, valid: tuple[tuple[str, bytes], ...]) -> tuple[str, bytes]:
    """A suffix and a content: a valid file after one to six changes, a table of any type, or any bytes."""
    suffix, content = draw(st.sampled_from(valid))
    whole = draw(st.sampled_from(["changed"] * 8 + ["bytes", "typed", "typed"]))
    if whole == "bytes":
        return suffix, draw(st.binary(max_size=200))
    if whole == "typed" and suffix == ".parquet":
        names = pyarrow.parquet.read_schema(io.BytesIO(content)).names
        return suffix, draw(parquet_tables(tuple(name for name in names if not name.startswith("__"))))
    for change in draw(st.lists(changes_of(suffix), min_size=1, max_size=MOST_CHANGES)):
        content = change(content)
    if suffix == ".csv" and draw(st.integers(0, 15)) == 0:
        suffix, content = ".csv.gz", gzip.compress(content, mtime=0)
        if draw(st.booleans()):
            content = draw(byte_change())(content)
    return suffix, content[:LARGEST]
