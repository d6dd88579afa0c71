"""The readers that are fuzzed: valid files of each, the call, and an independent check of what comes out."""

from __future__ import annotations

import contextlib
import io
import re
import sqlite3
import tempfile
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import shapely

from imagery2flow.flows.graph import read_distances
from imagery2flow.flows.region import find_encoder, read_embeddings
from imagery2flow.flows.splits import SPLITS, read_population, read_split
from imagery2flow.flows.table import read_flows
from imagery2flow.imagery.patch_files import find_patches
from imagery2flow.imagery.units import read_units
from imagery2flow.run.cli import parse_config
from imagery2flow.run.config import PreprocessingConfig
from imagery2flow.run.errors import InputError
from imagery2flow.run.flow_config import FlowTrainingConfig
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import read_table

LONGEST_SENTENCE = 4_000  # characters
GEOCODES = ("0001", "0002", "0003", "NA")
FLOWS = "h_geocode,w_geocode,count,complete_block\n0001,0002,12,1\n0002,0001,3,1\n0001,0001,0,0\nNA,0003,40,1\n"
FEATURES = "geocode,0,1,red_mean\n0001,.5,-1e3,2\n0002,1,2,3\n0003,4.25,-0,0\nNA,7,8,9\n"
SPLIT = "geocode,split\n0001,train\n0002,valid\n0003,test\nNA,train\n"
POPULATION = "geocode,population\n0001,1200\n0002,\n0003,-666666666\nNA,7.5\n"
DISTANCES = "h_geocode,w_geocode,distance_m\n0001,0002,700\n0002,0001,650.5\n0003,NA,1e4\n0002,0002,0\n"
SQUARE = ",0001,0002,0003\n0001,0,5,7\n0002,5,0,\n0003,7,,0\n"
MANIFEST = (
    "geocode,status,path,scene,column_offset,row_offset,width,height,valid_fraction\n"
    "0001,written,l8_2020_0001.tif,scene.tif,0,0,3,4,1.0\n0002,outside every scene,,,,,,,0.0\nNA,written,l8_2020_NA.tif,scene.tif,-2,5,3,4,0.5\n"
)
RUN_FILE = '{"stage": "get_img_embedding", "inputs_sha256": {"ckpt/M1_img_1.pth": "8f1c", "data/manifest.csv": "a0"}, "wall_s": 1.5}\n'
SETTINGS_1 = (
    "input_tif_path: [scene.tif]\nshp_path: units.gpkg\noutput_tif_dir: data\nregion: M1\nyear: 2020\nbands: [red, 4]\nmin_valid: .5\n"
)
SETTINGS_4 = "region: M1\nnode_feats_path: M1.csv\nlog: M1\nlr: 1e-3\nmax_epochs: 5\ntrees:\n  num_trees: 5\n  embeddings: true\n"


@dataclass(frozen=True)
class Reader:
    """A reader of a kind of file.

    Attributes:
        name: Also the first part of the names of its seeds.
        valid: Contents that it reads, each with its suffix.
        read: Reads a file and checks what came out; raises InputError, or AssertionError for what must not come out.
    """

    name: str
    valid: tuple[tuple[str, bytes], ...]
    read: Callable[[Path], None]


def quiet() -> Ledger:
    return Ledger("fuzz", quiet=True)


def attempt(reader: Reader, path: Path) -> str:
    """Reads a file: "read" or "refused"; raises what no file may cause.

    Raises:
        AssertionError: A result that cannot be, or a message that is not one sentence.
    """
    try:
        reader.read(path)
    except InputError as error:
        check_sentence(str(error))
        return "refused"
    return "read"


def check_sentence(message: str) -> None:
    """One line of readable text, of a length that can be read, and one sentence."""
    controls = [character for character in message if unicodedata.category(character) in {"Cc", "Zl", "Zp"}]
    assert not controls, f"control characters {controls[:3]} in: {message[:300]!r}"
    assert 20 < len(message) < LONGEST_SENTENCE, f"a message of {len(message):,} characters: {message[:300]!r}"
    assert not re.search(r"\. [A-Z]", message), f"more than one sentence: {message[:300]!r}"


def plain_rows(path: Path) -> list[dict[str, str]] | None:
    """The rows of a CSV as split at line ends and commas say; None where a file needs more than that, or names a column twice."""
    if path.suffix != ".csv" or (content := path.read_bytes()).translate(None, b'"\r\0\t ') != content or not content.isascii():
        return None
    header, *lines = (line.split(",") for line in content.decode().split("\n") if line)
    if len(set(header)) < len(header) or any(len(line) != len(header) for line in lines):
        return None
    return [dict(zip(header, line, strict=True)) for line in lines]


def check_table(path: Path) -> None:
    table = read_table(path, "table", ("geocode",))
    assert isinstance(table, pd.DataFrame)
    if (rows := plain_rows(path)) is not None:
        assert len(table) == len(rows)
        if rows and "geocode" in rows[0]:
            assert table.geocode.fillna("").tolist() == [row["geocode"] for row in rows]


def check_flows(path: Path) -> None:
    ledger = quiet()
    flows = read_flows(path, GEOCODES, True, ledger)
    place = flows.origin * len(GEOCODES) + flows.destination
    assert (np.diff(place) > 0).all() and np.isin(flows.origin, range(4)).all() and np.isin(flows.destination, range(4)).all()
    assert np.isfinite(flows.count).all() and (flows.count >= 0).all() and (flows.count % 1 == 0).all()
    assert ledger.came_in["flows"] == len(flows) + sum(map(len, ledger.left_out.values()))
    if (rows := plain_rows(path)) is not None:
        told = {(row["h_geocode"], row["w_geocode"]): float(row["count"]) for row in rows}
        found = {(GEOCODES[i], GEOCODES[j]): count for i, j, count in zip(flows.origin, flows.destination, flows.count, strict=True)}
        assert found == {pair: count for pair, count in told.items() if set(pair) <= set(GEOCODES)}


def check_features(path: Path) -> None:
    table = read_embeddings(str(path), pd.Index(GEOCODES), quiet())
    assert len(table) and table.index.is_monotonic_increasing and table.index.is_unique and set(table.index) <= set(GEOCODES)
    assert table.columns.is_unique and all(isinstance(name, str) for name in table.columns)
    assert np.isfinite(table.to_numpy(np.float32)).all()
    if (rows := plain_rows(path)) is not None:
        for row in rows:
            if row["geocode"] in GEOCODES:
                told = [float(value) for name, value in row.items() if name != "geocode"]
                np.testing.assert_allclose(table.loc[row["geocode"]].to_numpy(float), told, rtol=1e-12)


def check_split(path: Path) -> None:
    split = read_split(str(path), "origin", GEOCODES, quiet())
    assert split.label.shape == (4,) and set(split.label) <= {*SPLITS, ""}
    if (rows := plain_rows(path)) is not None:
        told = {row["geocode"]: row["split"] for row in rows}
        assert split.label.tolist() == [told.get(geocode, "") for geocode in GEOCODES]


def check_population(path: Path) -> None:
    values = read_population(str(path), "population", GEOCODES, quiet())
    assert values.shape == (4,) and values.dtype == np.float64 and not (values < 0).any()


def check_distances(path: Path) -> None:
    matrix = read_distances(path, pd.Index(GEOCODES), quiet())
    assert matrix.shape == (4, 4) and not (matrix < 0).any() and not np.isinf(matrix).any()
    assert not (matrix[~np.eye(4, dtype=bool)] == 0).any()


def check_units(path: Path) -> None:
    units = read_units(path, None, quiet())
    assert len(units) and units.crs is not None and units.index.is_monotonic_increasing and units.index.is_unique
    assert all(isinstance(name, str) and name.strip() == name != "" and not set(name) & set("/\\\0") for name in units.index)
    assert units.geometry.is_valid.all() and not units.geometry.is_empty.any()
    assert np.isfinite(units.total_bounds).all()


def check_manifest(path: Path) -> None:
    """The manifest in a folder of two patches, which are written where they are not there yet."""
    folder = path.parent / "patches"
    for name in ("l8_2020_0001.tif", "l8_2020_NA.tif"):
        if not (folder / name).is_file():
            folder.mkdir(exist_ok=True)
            with rasterio.open(folder / name, "w", driver="GTiff", width=3, height=4, count=1, dtype="uint8", nodata=0) as patch:
                patch.write(np.ones((1, 4, 3), "uint8"))
    path.replace(folder / "manifest.csv")
    files = find_patches(str(folder), [], quiet())
    assert list(files.paths) == sorted(files.paths) and files.paths.keys() == files.num_pixels.keys()
    assert all(isinstance(name, str) and name for name in files.paths) and all(file.is_file() for file in files.paths.values())
    assert all(isinstance(size, int) and size > 0 for size in files.num_pixels.values())


def check_run_file(path: Path) -> None:
    features = path.with_name("M1.csv")
    path.replace(features.with_name("M1.csv.run.json"))
    encoder = find_encoder(str(features), quiet())
    assert encoder is None or (isinstance(encoder.path, str) and isinstance(encoder.sha256, str))


def check_settings(stage: str, config_class: type) -> Callable[[Path], None]:
    def check(path: Path) -> None:
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                settings = parse_config(stage, config_class, ["--config", str(path)])
        except SystemExit as end:
            assert end.code == 2, end.code
            raise InputError(said.getvalue().removesuffix("\n")) from end
        assert isinstance(settings, config_class)

    return check


def as_parquet(table: str) -> bytes:
    content = io.BytesIO()
    ids = ("geocode", "h_geocode", "w_geocode", "Unnamed: 0")
    columns = pd.read_csv(io.StringIO(table), nrows=0).columns
    missing = {name: [] if name in ids else [""] for name in columns}
    pd.read_csv(io.StringIO(table), dtype=dict.fromkeys(ids, "str"), keep_default_na=False, na_values=missing).to_parquet(content)
    return content.getvalue()


def table_files(*tables: str) -> tuple[tuple[str, bytes], ...]:
    return *((".csv", table.encode()) for table in tables), *((".parquet", as_parquet(table)) for table in tables)


def unit_files() -> tuple[tuple[str, bytes], ...]:
    """Four units as GeoJSON and as a GeoPackage of small pages, so that its size is content."""
    shapes = [shapely.box(-75 + i, 40, -74.5 + i, 41) for i in range(3)] + [shapely.MultiPolygon([shapely.box(-70, 40, -69, 41)])]
    units = gpd.GeoDataFrame({"GEOID20": GEOCODES, "name": ["a", "b", None, "é"]}, geometry=shapes, crs=4326)
    with contextlib.ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "units.gpkg"
        units.to_file(path, SPATIAL_INDEX="NO")
        with contextlib.closing(sqlite3.connect(path)) as database:
            for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                database.execute(f'DROP TRIGGER "{name}"')
            database.execute("DELETE FROM gpkg_spatial_ref_sys WHERE srs_id > 4326")
            database.commit()
            database.execute("PRAGMA page_size = 512")
            database.execute("VACUUM")
        package = path.read_bytes()
    return (".geojson", units.to_json().encode()), (".gpkg", package)


def all_readers() -> tuple[Reader, ...]:
    """Every reader that takes a file of the user's."""
    return (
        Reader("table", table_files(FEATURES, FLOWS), check_table),
        Reader("flows", table_files(FLOWS), check_flows),
        Reader("features", table_files(FEATURES), check_features),
        Reader("split", table_files(SPLIT), check_split),
        Reader("population", table_files(POPULATION), check_population),
        Reader("distances", table_files(DISTANCES, SQUARE), check_distances),
        Reader("units", unit_files(), check_units),
        Reader("manifest", ((".csv", MANIFEST.encode()),), check_manifest),
        Reader("run_file", ((".json", RUN_FILE.encode()),), check_run_file),
        Reader("settings_1", ((".yaml", SETTINGS_1.encode()),), check_settings("img_preprocessing", PreprocessingConfig)),
        Reader("settings_4", ((".yaml", SETTINGS_4.encode()),), check_settings("train_ODPrediction", FlowTrainingConfig)),
    )
