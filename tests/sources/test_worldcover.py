"""Tiles of ESA WorldCover from a server of this machine: names, editions, tiles that are not there, content that is none."""

import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from rasterio.io import MemoryFile
from rasterio.transform import from_origin

from imagery2flow.__main__ import main
from imagery2flow.run.acquire_config import AcquireConfig
from imagery2flow.sources.addresses import ADDRESSES
from imagery2flow.sources.worldcover import edition_of, land_cover_files, tile_names

from .conftest import Fault

TILE_PIXELS = 30  # instead of 36,000
SIDE = 3 / TILE_PIXELS
EAST_CODE, WEST_CODE = 50, 80
PATHS = {tile: f"/v200/2021/{tile}_Map.tif" for tile in ("N30W087", "N30W084")}


def tile(west, north, code):
    """A tile of one class, whose upper row is nodata."""
    codes = np.full((1, TILE_PIXELS, TILE_PIXELS), code, "uint8")
    codes[:, 0] = 0
    profile = {"count": 1, "height": TILE_PIXELS, "width": TILE_PIXELS, "dtype": "uint8", "crs": "EPSG:4326"}
    with MemoryFile() as file:
        with file.open(driver="GTiff", transform=from_origin(west, north, SIDE, SIDE), **profile) as raster:
            raster.write(codes)
        return file.read()


def units_of(**boxes):
    return gpd.GeoDataFrame({"geocode": list(boxes)}, geometry=[shapely.box(*box) for box in boxes.values()], crs=4326)


@pytest.fixture
def coast(server, tmp_path, monkeypatch):
    """Two tiles, units on one, on both and on one and open sea, mirror.yaml."""
    monkeypatch.chdir(tmp_path)
    server.files[PATHS["N30W087"]], server.files[PATHS["N30W084"]] = tile(-87, 33, WEST_CODE), tile(-84, 33, EAST_CODE)
    Path("mirror.yaml").write_text(f'worldcover: "{server.url}/{{version}}/{{year}}/{{tile}}_Map.tif"\n')
    units_of(**{"01": (-85, 31, -84.5, 31.5), "02": (-84.2, 31, -83.8, 31.5), "03": (-84.5, 32.5, -84, 33.5)}).to_file("zones.gpkg")
    return server


def acquire(*flags):
    return main(["acquire", "--region", "coast", "--what", "land_cover", "--units", "zones.gpkg", "--addresses", "mirror.yaml", *flags])


def written():
    return pd.read_csv("data/coast/land_cover.csv", dtype={"geocode": str}).set_index("geocode")


def notes():
    return json.loads(max(Path("data/coast").glob("acquire*_run.json"), key=lambda path: path.stat().st_mtime_ns).read_text())["ledger"][
        "notes"
    ]


def area_m2(west, south, east, north):
    """True area of a rectangle of parallels and meridians."""
    return gpd.GeoSeries([shapely.box(west, south, east, north)], crs=4326).to_crs("EPSG:6933").area.iloc[0]


@pytest.mark.parametrize(
    ("box", "names"),
    [
        ((-77.1, 38.8, -77, 38.9), ["N36W078"]),  # Washington
        ((-78, 39, -75, 42), ["N39W078"]),  # a whole tile, and nothing of its neighbours
        ((-78.1, 38.9, -77.9, 39.1), ["N36W081", "N36W078", "N39W081", "N39W078"]),
        ((13.3, 52.4, 13.4, 52.5), ["N51E012"]),
        ((-58.5, -34.7, -58.3, -34.5), ["S36W060"]),
        ((-0.1, -0.1, 0.1, 0.1), ["S03W003", "S03E000", "N00W003", "N00E000"]),
        ((177.1, 67, 180, 68), ["N66E177"]),
    ],
)
def test_tiles_are_named_by_their_lower_left_corner(box, names):
    assert tile_names(units_of(a=box)) == names


def test_only_tiles_that_a_unit_lies_on_are_named():
    """The rectangle around a bent unit has a corner tile that it does not reach; that around one on both sides of the date line, all of a row."""
    bent = shapely.LineString([(1, 1), (5, 1), (5, 5)]).buffer(0.1)
    apart = shapely.MultiPolygon([shapely.box(-179.9, 1, -179, 2), shapely.box(179, 1, 179.9, 2)])
    units = gpd.GeoDataFrame({"geocode": ["a", "b"]}, geometry=[bent, apart], crs=4326)
    assert tile_names(units) == ["N00W180", "N00E000", "N00E003", "N00E177", "N03E003"]


def test_the_year_decides_the_edition():
    assert [edition_of(year) for year in (2010, 2020, 2021, 2023)] == [2021, 2020, 2021, 2021]
    units = units_of(a=(-77.1, 38.8, -77, 38.9))
    (old,) = land_cover_files(units, AcquireConfig(region="M6", year=2020), ADDRESSES)
    (new,) = land_cover_files(units, AcquireConfig(region="M6", year=2019), ADDRESSES)
    bucket = "https://esa-worldcover.s3.eu-central-1.amazonaws.com"
    assert old.url == f"{bucket}/v100/2020/map/ESA_WorldCover_10m_2020_v100_N36W078_Map.tif"
    assert new.url == f"{bucket}/v200/2021/map/ESA_WorldCover_10m_2021_v200_N36W078_Map.tif"


def test_units_on_two_tiles_and_on_open_sea(coast):
    assert acquire("--year", "2021") == 0
    table = written()
    assert list(table) == [f"class_{EAST_CODE}", f"class_{WEST_CODE}", "nodata_m2"]
    expected = [
        [0, area_m2(-85, 31, -84.5, 31.5), 0],
        [area_m2(-84, 31, -83.8, 31.5), area_m2(-84.2, 31, -84, 31.5), 0],
        [0, area_m2(-84.5, 32.5, -84, 32.9), area_m2(-84.5, 32.9, -84, 33.5)],
    ]
    np.testing.assert_allclose(table, expected, rtol=1e-6)
    assert coast.paths() == ["/v200/2021/N30W087_Map.tif", "/v200/2021/N30W084_Map.tif", "/v200/2021/N33W087_Map.tif"]
    assert any("1 tiles are not there, as of open sea, and count as nodata: http" in note for note in notes())
    assert not any("land cover is that of" in note for note in notes())
    assert not Path("data/coast/units.gpkg").exists()  # which was not asked for


def test_a_year_without_an_edition_is_said(coast):
    assert acquire("--year", "2015") == 0
    assert "land cover is that of 2021: WorldCover has 2020 and 2021, none of 2015" in notes()


def test_tiles_stay_in_the_cache(coast):
    assert acquire("--year", "2021") == 0
    first = Path("data/coast/land_cover.csv").read_bytes()
    coast.asked.clear()
    assert acquire("--year", "2021") == 0
    assert coast.paths() == ["/v200/2021/N33W087_Map.tif"]  # which is not there, and may come to be
    assert Path("data/coast/land_cover.csv").read_bytes() == first


def test_a_dry_run_fetches_nothing(coast, capsys):
    assert acquire("--year", "2021", "--dry_run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "land_cover.csv:" and [line.split()[0] for line in lines[1:4]] == ["fetch", "fetch", "absent"]
    assert lines[1].endswith(f"WorldCover 2021 N30W087  {coast.url}/v200/2021/N30W087_Map.tif")
    assert coast.paths() == [] and not Path("data").exists()


@pytest.mark.parametrize("flags", [[], ["--dry_run"]])
def test_no_tile_at_all_is_refused(coast, capsys, flags):
    coast.files.clear()
    assert acquire("--year", "2021", *flags) == 2
    assert "WorldCover 2021 N" in (said := capsys.readouterr().err.splitlines()[-1]) and "(status 404)" in said
    assert not Path("data/coast").exists()


@pytest.mark.parametrize("status", [403, 503])
def test_a_tile_that_may_be_there_is_not_taken_for_open_sea(coast, capsys, status):
    coast.faults["/v200/2021/N33W087_Map.tif"] = [Fault(status=status)] * 9
    assert acquire("--year", "2021") == 2
    assert f"status {status}" in capsys.readouterr().err.splitlines()[-1]
    assert not Path("data/coast/land_cover.csv").exists()


def test_content_that_is_no_raster_is_not_kept(coast, capsys):
    good = coast.files[PATHS["N30W084"]]
    coast.files[PATHS["N30W084"]] = b"II*\x00 and no more"
    assert acquire("--year", "2021") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "WorldCover 2021 N30W084 from http" in said and "cannot be read as a raster" in said
    coast.files[PATHS["N30W084"]] = good
    assert acquire("--year", "2021") == 0


def test_a_plan_waits_for_units(coast, capsys):
    Path("mirror.yaml").write_text(f'tiger_tracts: "{coast.url}/{{state_fips}}.zip"\n')
    coast.files["/01.zip"] = b"PK"
    flags = ["--region", "other", "--state_county", "01017", "--what", "units", "land_cover", "--addresses", "mirror.yaml", "--dry_run"]
    assert main(["acquire", *flags]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "land_cover.csv: follows from units.gpkg, which is not there yet"
