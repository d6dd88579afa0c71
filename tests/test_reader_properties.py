"""Whatever a reader is given in its own format comes out as it went in, by id: CSV as Python's csv module writes it, and Parquet."""

import csv
import gzip
import tempfile
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from imagery2flow.flows.region import read_embeddings
from imagery2flow.flows.table import read_flows
from imagery2flow.imagery.patch_files import find_paths, patch_sizes
from imagery2flow.imagery.units import read_units
from imagery2flow.run.errors import InputError, TableError
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import read_table

SUFFIXES = (".csv", ".csv.gz", ".parquet")
# Text of any script with separators, quotes and line ends; a cell of nothing is a missing one, and a file does not hold NUL or halves of characters.
texts = st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs"]), min_size=1, max_size=8)
ids = st.text("0123456789ABé-.", min_size=1, max_size=6) | st.sampled_from(["NA", "nan", "null", "0001", "1e5", "1.0", "True"])
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**6), 10**6)


def quiet() -> Ledger:
    return Ledger("test", quiet=True)


def written(folder: str, suffix: str, header: list[str], rows: list[list], index: str | None = None) -> Path:
    """Writes a table without pandas where it is CSV."""
    path = Path(folder) / f"table{suffix}"
    if suffix == ".parquet":
        table = pd.DataFrame(rows, columns=header)
        (table.set_index(index) if index else table).to_parquet(path)
        return path
    plain = path.with_suffix("") if suffix == ".csv.gz" else path
    with plain.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, quoting=csv.QUOTE_ALL).writerows([header, *rows])
    if suffix == ".csv.gz":
        path.write_bytes(gzip.compress(plain.read_bytes()))
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(rows=st.lists(st.tuples(texts, numbers), max_size=8))
def test_ids_and_numbers_of_a_table_come_out_as_they_went_in(suffix, rows):
    with tempfile.TemporaryDirectory() as folder:
        table = read_table(written(folder, suffix, ["geocode", "value"], [list(row) for row in rows]), "table", ["geocode"])
    assert table.geocode.tolist() == [geocode for geocode, _ in rows]
    assert table.value.tolist() == pytest.approx([float(value) for _, value in rows], rel=1e-15)


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(
    units=st.lists(ids, min_size=1, max_size=5, unique=True),
    rows=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 10**6)), max_size=12),
)
def test_flows_equal_a_loop_over_the_rows(suffix, units, rows):
    geocodes = sorted(units)
    # Positions behind the units are ids that no unit has, and that no lost zeros make one of.
    names = [*geocodes, *(f"foreign {number}" for number in range(7))]
    told = [[names[i], names[j], count] for i, j, count in rows]
    repeated = len({(home, work) for home, work, _ in told}) < len(told)
    ledger = quiet()
    with tempfile.TemporaryDirectory() as folder:
        path = written(folder, suffix, ["h_geocode", "w_geocode", "count"], told)
        if repeated:
            with pytest.raises(TableError, match="pairs occur more than once"):
                read_flows(path, geocodes, True, ledger)
            return
        flows = read_flows(path, geocodes, True, ledger)
    expected = sorted(
        (geocodes.index(home), geocodes.index(work), count) for home, work, count in told if home in geocodes and work in geocodes
    )
    assert list(zip(flows.origin.tolist(), flows.destination.tolist(), flows.count.tolist(), strict=True)) == expected
    assert ledger.came_in["flows"] == len(told)
    assert sum(map(len, ledger.left_out.values())) == len(told) - len(expected)


@pytest.mark.parametrize("index", [None, "geocode"])
@pytest.mark.parametrize("suffix", SUFFIXES)
@given(values=st.dictionaries(ids, st.lists(st.floats(-1e30, 1e30), min_size=3, max_size=3), min_size=1, max_size=6))
@settings(max_examples=50)
def test_vectors_come_out_by_id_and_only_those_of_units(suffix, index, values):
    known = sorted(values)[::2]
    ledger = quiet()
    rows = [[geocode, *vector] for geocode, vector in values.items()]
    with tempfile.TemporaryDirectory() as folder:
        path = written(folder, suffix, ["geocode", "0", "1", "red_mean"], rows, index)
        try:
            table = read_embeddings(str(path), pd.Index(known), ledger)
        except TableError as error:
            assert "leading zeros" in str(error)  # an id that with zeros before it is another's, as 1 and 001
            width = pd.Series(known).str.len().mode().iloc[0]
            assert any(geocode.removesuffix(".0").zfill(width) in known for geocode in set(values) - set(known))
            return
    assert table.index.tolist() == known
    for geocode in known:
        assert table.loc[geocode].tolist() == pytest.approx(values[geocode], rel=1e-15)
    assert sum(map(len, ledger.left_out.values())) == len(values) - len(known)


@pytest.mark.parametrize("suffix", [".geojson", ".fgb"])
@given(places=st.dictionaries(ids, st.tuples(st.integers(-179, 178), st.integers(-89, 88)), min_size=1, max_size=6))
@settings(max_examples=25)
def test_units_come_out_by_id_with_their_own_geometry(suffix, places):
    assume(not any(geocode.startswith(".") for geocode in places))  # no name of a file
    shapes = [shapely.box(x, y, x + 1, y + 0.5) for x, y in places.values()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"units{suffix}"
        gpd.GeoDataFrame({"GEOID": list(places)}, geometry=shapes, crs=4326).to_file(path)
        try:
            units = read_units(path, None, quiet())
        except TableError as error:  # GeoJSON has no types: digits alone stay text, as they are quoted
            raise AssertionError(str(error)) from error
    assert units.index.tolist() == sorted(places)
    for geocode, (x, y) in places.items():
        assert units.geometry[geocode].equals(shapely.box(x, y, x + 1, y + 0.5))


@given(
    rows=st.dictionaries(ids, st.tuples(st.booleans(), st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=5),
    shuffled=st.randoms(use_true_random=False),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_the_manifest_names_the_patches_of_the_units_that_were_written(rows, shuffled):
    with tempfile.TemporaryDirectory() as name:
        folder, order = Path(name), list(rows)
        shuffled.shuffle(order)
        lines = []
        for geocode in order:
            is_written, width, height = rows[geocode]
            file = f"x_{geocode}.tif" if is_written else ""
            lines.append(
                [geocode, "written" if is_written else "all nodata", file, width if is_written else "", height if is_written else ""]
            )
            if is_written:
                (folder / file).touch()
        written(name, ".csv", ["geocode", "status", "path", "width", "height"], lines).rename(folder / "manifest.csv")
        expected = {geocode: width * height for geocode, (is_written, width, height) in sorted(rows.items()) if is_written}
        ledger = quiet()
        if not expected:
            with pytest.raises(InputError, match="holds no patch"):
                find_paths(folder, ledger)
            return
        paths = find_paths(folder, ledger)
        assert {geocode: path.name for geocode, path in paths.items()} == {geocode: f"x_{geocode}.tif" for geocode in expected}
        assert list(paths) == list(expected)
        assert patch_sizes(folder, paths) == expected
        assert sorted(geocode for left_out in ledger.left_out.values() for geocode in left_out) == sorted(set(rows) - set(expected))
        assert np.all([isinstance(size, int) for size in patch_sizes(folder, paths).values()])
