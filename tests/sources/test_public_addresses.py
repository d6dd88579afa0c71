"""Whether the public addresses answer and say what is expected of them: ``make acquire-check``."""

import geopandas as gpd
import pandas as pd
import pytest
import shapely

from imagery2flow.__main__ import main
from imagery2flow.imagery.scene import open_scene
from imagery2flow.run.acquire_config import AcquireConfig
from imagery2flow.run.stage import Ledger
from imagery2flow.sources.addresses import ADDRESSES
from imagery2flow.sources.download import Downloader, Remote
from imagery2flow.sources.lodes import checksum_file, flow_files, with_hashes
from imagery2flow.sources.places import read_metropolitan_areas
from imagery2flow.sources.population import population_files
from imagery2flow.sources.tiger import tract_files
from imagery2flow.sources.worldcover import land_cover_files

pytestmark = pytest.mark.network

COUNTIES_OF_CBSA = "https://www2.census.gov/geo/tiger/TIGER2020/COUNTY/tl_2020_us_county.zip"
RESIDENTS_OF_THE_DISTRICT = 689_545  # census of 2020
NEW, OLD = AcquireConfig(region="M6", year=2023), AcquireConfig(region="M6", year=2019, vintage=2010)


def every_file():
    """A file of each address, of the District of Columbia where it is of a place."""
    remotes = [Remote("a route", f"{ADDRESSES['osrm']}/nearest/v1/driving/-77.03,38.9")]
    remotes += [Remote(name, ADDRESSES[name]) for name in ("earth_search", "planetary_computer")]
    capital = gpd.GeoDataFrame(geometry=[shapely.box(-77.1, 38.8, -76.9, 39)], crs=4326)
    for year in (2020, 2021):
        remotes += land_cover_files(capital, AcquireConfig(region="M6", year=year), ADDRESSES)
    for config in (NEW, OLD, AcquireConfig(region="M6", vintage=2022)):
        remotes += [*tract_files(["11001"], config, ADDRESSES), *population_files(["11"], config, ADDRESSES)]
        remotes += [*flow_files(["11"], config, ADDRESSES), checksum_file("11", config, ADDRESSES)]
    return {remote.url: remote for remote in remotes}.values()


@pytest.mark.parametrize("remote", every_file(), ids=lambda remote: remote.url)
def test_the_address_answers(remote, tmp_path):
    Downloader(tmp_path, Ledger("test", quiet=True)).size_bytes(remote)


@pytest.mark.parametrize("config", [NEW, OLD], ids=["LODES8", "LODES7"])
def test_the_checksums_of_lodes_list_its_files(config, tmp_path):
    listing = Downloader(tmp_path, Ledger("test", quiet=True)).fetch(checksum_file("11", config, ADDRESSES))
    assert all(remote.sha256 for remote in with_hashes(flow_files(["11"], config, ADDRESSES), listing))


def test_the_counties_of_the_published_areas(tmp_path):
    path = Downloader(tmp_path, Ledger("test", quiet=True)).fetch(Remote("the counties", COUNTIES_OF_CBSA))
    counties = gpd.read_file(f"/vsizip/{{{path.absolute()}}}/tl_2020_us_county.shp", ignore_geometry=True)
    for area in read_metropolitan_areas():
        assert set(area.counties) == set(counties.GEOID[area.cbsa == counties.CBSAFP]), area.name


def test_the_district_of_columbia(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["acquire", "--region", "capital", "--state_county", "11001", "--year", "2020", "--what", "units,flows,population"]) == 0
    units = gpd.read_file("data/capital/units.gpkg")
    flows = pd.read_csv("data/capital/flows_2020.csv", dtype={"h_geocode": str, "w_geocode": str})
    assert set(flows.h_geocode) | set(flows.w_geocode) <= set(units.GEOID20)
    assert pd.read_csv("data/capital/population.csv").population.sum() == RESIDENTS_OF_THE_DISTRICT


@pytest.mark.parametrize("flags", ["--sensor s2", "--sensor l8 --catalogue planetary_computer", "--sensor l5 --year 2010"])
def test_the_catalogues_have_imagery_of_the_capital(flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gpd.GeoDataFrame({"geocode": ["a"]}, geometry=[shapely.box(-77.04, 38.89, -77.03, 38.9)], crs=4326).to_file("place.gpkg")
    what = ["--region", "capital", "--what", "imagery", "--units", "place.gpkg"]
    assert main(["acquire", *what, *flags.split(), "--dry_run"]) == 0
    if "s2" in flags:
        assert main(["acquire", *what, *flags.split()]) == 0
        assert open_scene("data/capital/s2_2020.tif").band_names == ("blue", "green", "red", "nir")
