"""A region's inputs from public sources, as the user asks for them."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import geopandas as gpd
import pandas as pd
import pytest

from imagery2flow.__main__ import main
from imagery2flow.flows.table import read_flows
from imagery2flow.imagery.units import read_units
from imagery2flow.run import geofiles
from imagery2flow.run.stage import Ledger
from tests.sources.conftest import BESIDE, FLOWS, LAND, RESIDENTS, ROWS, WATER, Fault, lodes_csv, population_csv, publish_flows, tract_zip

COUNTIES = "--state_county 13285 01017"
TABLES = f"{COUNTIES} --what units flows population"
IDS = {"h_geocode": str, "w_geocode": str, "geocode": str}


def acquire(flags):
    return main(["acquire", "--region", "pair", "--addresses", "mirror.yaml", *flags.split()])


def refused(capsys, flags):
    """The sentence with which the command ends."""
    assert acquire(flags) == 2
    return capsys.readouterr().err.splitlines()[-1]


def run_file():
    return json.loads(max(Path("data/pair").glob("acquire*_run.json"), key=lambda path: path.stat().st_mtime_ns).read_text())


def test_everything_of_two_counties(public):
    assert acquire(TABLES) == 0
    units = gpd.read_file("data/pair/units.gpkg")
    assert list(units.GEOID20) == list(LAND) and units.crs.to_epsg() == 4269
    flows = pd.read_csv("data/pair/flows_2020.csv", dtype=IDS)
    assert list(flows.columns) == ["h_geocode", "w_geocode", "count", "complete_block"]
    assert dict(zip(zip(flows.h_geocode, flows.w_geocode, strict=True), flows["count"], strict=True)) == FLOWS
    assert list(zip(flows.h_geocode, flows.w_geocode, strict=True)) == sorted(FLOWS)
    population = pd.read_csv("data/pair/population.csv", dtype=IDS)
    assert dict(zip(population.geocode, population.population, strict=True)) == RESIDENTS


def test_the_counties_of_any_cbsa_come_from_the_census_bureau(public, capsys):
    # The rows are those of 13285, 01081 and 01017; the second belongs to no area.
    public.files["/counties.zip"] = tract_zip(["13285", "01081", "01017"], CBSAFP=["17980", None, "17980"])
    flags = "--cbsa 17980 --what units"
    assert acquire(f"{flags} --dry_run") == 0
    assert "counties of --cbsa 17980, from which the rest follows" in capsys.readouterr().out
    assert "/counties.zip" not in public.paths("GET"), "a plan fetches nothing"
    assert "--cbsa 99999 is none of the 1 areas in the counties of the United States" in refused(capsys, "--cbsa 99999 --what units")
    assert acquire(flags) == 0
    assert list(gpd.read_file("data/pair/units.gpkg").GEOID20) == list(LAND)


def test_a_list_of_counties_without_areas_is_refused(public, capsys):
    public.files["/counties.zip"] = tract_zip(["13285"])
    assert "the counties of the United States from" in (told := refused(capsys, "--cbsa 17980 --what units")) and "lack CBSAFP" in told


def test_the_ledger_says_what_was_left_out(public):
    assert acquire(TABLES) == 0
    ledger = run_file()["ledger"]
    assert ledger["left_out"] == {"tracts of water only": [WATER], "counted tracts that are no unit": [WATER]}
    assert ledger["in"] == {"tracts of the counties": 5, "rows of LODES": 10, "counted tracts of the counties": 5}
    assert ledger["out"] == {"units": 4, "flows": 5, "jobs": 43, "units with population": 4, "residents": 9512}
    told = " ".join(ledger["notes"])
    assert "43 jobs have home and work in the region; left out are 150 whose home, 200 whose work and 400 of which neither" in told
    assert "1 of 4 tracts are nobody's home or work" in told
    assert len(run_file()["inputs_sha256"]) == 2 + 2 + 4 + 2  # archives, lists of checksums, flows, answers


def test_what_is_written_is_what_the_stages_read(public):
    assert acquire(TABLES) == 0
    ledger = Ledger("test", quiet=True)
    units = read_units("data/pair/units.gpkg", None, ledger)
    flows = read_flows("data/pair/flows_2020.csv", list(units.index), False, ledger)
    # The tracts that somebody lives or works in are one complete block: every pair of those three is known.
    assert list(flows.block) == [flows.block[0]] * 3 + [-1]
    assert len(flows.with_zeros()) == 9


def test_a_second_call_asks_for_nothing_and_writes_the_same(public):
    assert acquire(TABLES) == 0
    written = {path: path.read_bytes() for path in Path("data/pair").glob("*.[cg][sp]*")}
    asked = len(public.asked)
    assert acquire(TABLES) == 0
    assert len(written) == 3 and {path: path.read_bytes() for path in written} == written
    assert len(public.asked) == asked
    assert any("units.gpkg is there with 4 units: read, not fetched" in note for note in run_file()["ledger"]["notes"])


def test_a_dry_run_fetches_nothing(public, capsys):
    assert acquire(f"{TABLES} --dry_run") == 0
    plan = capsys.readouterr().out.splitlines()
    assert [line for line in plan if line.endswith(":")] == ["units.gpkg:", "flows_2020.csv:", "population.csv:"]
    assert sum(line.startswith("  fetch ") for line in plan) == 2 + 4 + 2
    assert f"LODES8 ga aux 2020  {public.url}/LODES8/ga/od/ga_od_aux_JT00_2020.csv.gz" in "\n".join(plan)
    assert public.paths() == [] and not Path("data").exists()


def test_a_dry_run_of_imagery_waits_for_units(public, capsys):
    assert acquire(f"{COUNTIES} --what units imagery --dry_run") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "s2_2020.tif: follows from units.gpkg, which is not there yet"


def test_a_dry_run_knows_what_is_there_and_what_is_not(public, capsys):
    assert acquire(TABLES) == 0
    capsys.readouterr()
    del public.files["/LODES8/ga/od/ga_od_aux_JT00_2020.csv.gz"]
    Path("data/downloads").joinpath(next(path.name for path in Path("data/downloads").glob("*ga_od_aux*.gz"))).unlink()
    assert acquire(f"{TABLES} --dry_run") == 2
    answer = capsys.readouterr()
    lines = answer.out.splitlines()
    assert sum(line.startswith("  cached ") for line in lines) == 5 and sum(line.startswith("  absent ") for line in lines) == 1
    assert answer.err.splitlines()[-1].startswith("acquire: error: 1 files cannot be had; the first: LODES8 ga aux 2020 is not at http")


def test_a_dry_run_ends_with_the_first_server_that_does_not_answer(public, capsys):
    public.faults["/2020/01.zip"] = [Fault(status=503)] * 99
    assert "the tracts of state 01 (2020) cannot be fetched from http" in refused(capsys, f"{TABLES} --dry_run")
    assert set(public.paths("HEAD")) == {"/2020/01.zip"}


def test_flows_of_tracts_that_are_there(public):
    tracts = gpd.GeoDataFrame(geometry=gpd.points_from_xy([0, 1], [0, 1]).buffer(0.1), crs=4326).assign(GEOID20=LAND[:2])
    tracts.to_file("my.gpkg")
    assert acquire("--units my.gpkg --what units flows") == 0
    flows = pd.read_csv("data/pair/flows_2020.csv", dtype=IDS)
    assert list(zip(flows.h_geocode, flows.w_geocode, flows["count"], strict=True)) == [(LAND[0], LAND[0], 5), (LAND[0], LAND[1], 7)]
    assert list(gpd.read_file("data/pair/units.gpkg").GEOID20) == list(LAND[:2])
    assert not Path("data/pair/population.csv").exists() and not any("ga_od" in path for path in public.paths())


def test_tracts_of_the_2010_census(public):
    publish_flows(public, ROWS, version=7, year=2012)
    assert acquire(f"{TABLES} --vintage 2010 --year 2012") == 0
    assert list(gpd.read_file("data/pair/units.gpkg").GEOID10) == list(LAND)
    assert pd.read_csv("data/pair/flows_2012.csv")["count"].sum() == 43
    assert pd.read_csv("data/pair/population.csv").population.sum() == sum(RESIDENTS.values())


def test_a_published_checksum_is_held_to(public, capsys):
    public.files["/LODES8/al/od/al_od_main_JT00_2020.csv.gz"] = lodes_csv(ROWS["al_od_main"][1:])
    assert "LODES8 al main 2020 from" in (sentence := refused(capsys, TABLES)) and "is published" in sentence
    assert not Path("data/pair/flows_2020.csv").exists()


def test_a_new_edition_of_lodes_brings_new_checksums(public):
    assert acquire(f"{COUNTIES} --what units flows") == 0
    rows = {**ROWS, "al_od_main": [(LAND[0] + "1000", LAND[1] + "1001", 1)]}
    publish_flows(public, rows)
    next(Path("data/downloads").glob("*al_od_main*.gz")).unlink()
    assert acquire(f"{COUNTIES} --what flows") == 0
    assert pd.read_csv("data/pair/flows_2020.csv")["count"].sum() == 43 - 12 + 1


def test_without_published_checksums_the_ledger_says_so(public):
    del public.files["/LODES8/al/lodes_al.sha256sum"]
    public.files["/LODES8/ga/lodes_ga.sha256sum"] = b"nothing\n"
    assert acquire(TABLES) == 0
    told = " ".join(run_file()["ledger"]["notes"])
    assert "no checksums, the files are only checked for their size: the checksums of LODES8 al is not at" in told
    assert "the checksums of LODES8 ga do not list LODES8 ga main 2020" in told


def test_a_table_that_is_none_is_not_kept_where_nobody_publishes_its_hash(public, capsys):
    path = "/LODES8/al/od/al_od_main_JT00_2020.csv.gz"
    good = public.files[path]
    del public.files["/LODES8/al/lodes_al.sha256sum"]
    public.files[path] = good[:-20]
    assert "LODES8 al main 2020 from http" in (sentence := refused(capsys, TABLES)) and "cannot be read as a table" in sentence
    public.files[path] = good
    assert acquire(TABLES) == 0


def test_a_busy_server_changes_nothing(public):
    public.faults["/2020/01.zip"] = [Fault(status=503), Fault(sends=500)]
    public.faults["/LODES8/al/od/al_od_main_JT00_2020.csv.gz"] = [Fault(sends=60)]
    assert acquire(TABLES) == 0
    assert sum("tries again" in note for note in run_file()["ledger"]["notes"]) == 3
    assert pd.read_csv("data/pair/flows_2020.csv")["count"].sum() == 43


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            "",
            "--region pair is none of M1 to M10 and has no units.gpkg in data/pair; name its place with --state_county, --cbsa or --units",
        ),
        ("--state_county 1017", "--state_county 1017 must be five digits"),
        ("--state_county 99017", "--state_county 99017 must be five digits"),
        ("--state_county 01999", "the tracts of 2020 have none in the counties 01999; check the numbers and --vintage"),
        (f"{COUNTIES} --what flows", "region pair has no units.gpkg in data/pair; add units to --what, or give --units"),
        (f"{COUNTIES} --what units flows --year 2019", "LODES8 al main 2019 is not at http"),
        (f"{TABLES} --vintage 2021", "the tracts of state 01 (2021) is not at http"),
        (f"{TABLES} --addresses absent.yaml", "--addresses absent.yaml does not exist"),
        (f"{COUNTIES} --data_root mirror.yaml", "--data_root mirror.yaml/pair cannot be a folder, because "),
        ("--units absent.gpkg", "units absent.gpkg do not exist"),
    ],
)
def test_bad_input_is_one_sentence(public, capsys, flags, says):
    assert says in refused(capsys, flags)
    assert not Path("data/pair/flows_2020.csv").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--state_county 13285", "units.gpkg is there with 4 units of counties 01017, 13285, but counties 13285 are another place"),
        ("--units beside.gpkg", "units.gpkg is there with 4 units of counties 01017, 13285, but --units beside.gpkg holds another place"),
        ("--vintage 2010 --year 2010", "hold GEOID20 but --vintage 2010 means tracts of the 2010 census (GEOID10)"),
    ],
)
def test_units_that_are_there_are_not_replaced(public, capsys, flags, says):
    assert acquire(TABLES) == 0
    gpd.read_file("data/pair/units.gpkg").assign(GEOID20=[BESIDE, *LAND[1:]]).to_file("beside.gpkg")
    before = Path("data/pair/units.gpkg").read_bytes()
    assert says in refused(capsys, flags)
    assert Path("data/pair/units.gpkg").read_bytes() == before


def test_units_that_are_no_tracts(public, capsys):
    gpd.GeoDataFrame(geometry=gpd.points_from_xy([0], [0]).buffer(1), crs=4326).assign(GEOID20=["10013"]).to_file("zip.gpkg")
    assert "units zip.gpkg: 1 ids are no census tracts (10013); give tracts" in refused(capsys, "--units zip.gpkg")


def test_tracts_of_another_census_are_named(public, capsys):
    public.files["/2020/13.zip"] = tract_zip(["13285000300", "13285000400", "13285000100"])
    sentence = refused(capsys, TABLES)
    assert (
        "2 of 3 units of state 13 (ga) are nobody's home or work in LODES8 2020 JT00; LODES8 has the tracts of the 2020 census" in sentence
    )


def test_planning_regions_of_connecticut_are_explained(public, capsys):
    publish_flows(public, {"ct_od_main": [("090010001001000",) * 2 + (3,)], "ct_od_aux": []})
    public.files["/2022/09.zip"] = tract_zip(["09110000100", "09110000200"])
    assert "use --vintage 2020 or 2021" in refused(capsys, "--state_county 09110 --vintage 2022")


@pytest.mark.parametrize(
    ("path", "content", "says"),
    [
        ("/2020/01.zip", b"PK hello", "the tracts of state 01 (2020) from http"),
        ("/2020/01.zip", tract_zip(LAND, GEOID="1")[:900], "cannot be read as an archive of a shapefile"),
        ("/people/01.txt", b"<html>Not here</html>", "the population of state 01 (2020) from http"),
        ("/people/01.txt", b"", "is no table of STATEFP, COUNTYFP, TRACTCE, POPULATION; run the same command"),
        ("/people/01.txt", population_csv({LAND[0]: "many"}), "is no table of STATEFP, COUNTYFP, TRACTCE, POPULATION; run"),
        ("/people/01.txt", population_csv(RESIDENTS)[:-35], "is no table of STATEFP"),
    ],
)
def test_content_that_is_none_is_not_kept(public, capsys, path, content, says):
    good = public.files[path]
    public.files[path] = content
    assert says in refused(capsys, f"{COUNTIES} --what units population")
    public.files[path] = good
    assert acquire(f"{COUNTIES} --what units population") == 0


def test_a_unit_that_the_census_does_not_list(public):
    public.files["/people/13.txt"] = population_csv({LAND[2]: 5})
    assert acquire(f"{COUNTIES} --what units population") == 0
    assert run_file()["ledger"]["left_out"]["units that the census does not list"] == [LAND[3]]
    assert list(pd.read_csv("data/pair/population.csv", dtype=IDS).geocode) == list(LAND[:3])


def test_people_of_another_census(public, capsys):
    for state in ("01", "13"):
        public.files[f"/people/{state}.txt"] = population_csv({f"{state}001000100": 5})
    assert "the census of 2020 has none of the 4 units (01017000100, ...)" in refused(capsys, f"{COUNTIES} --what units population")


def test_paths_of_an_archive_do_not_escape(public, tmp_path):
    content = io.BytesIO(public.files["/2020/01.zip"])
    with zipfile.ZipFile(content, "a") as archive:
        archive.writestr("../../escaped.txt", "hello")
    public.files["/2020/01.zip"] = content.getvalue()
    assert acquire(f"{COUNTIES} --what units") == 0
    assert not list(tmp_path.parent.rglob("escaped.txt"))


def test_an_archive_that_unpacks_to_far_more_than_tracts_is_not_read(public, capsys, monkeypatch):
    monkeypatch.setattr(geofiles, "LARGEST_UNPACKED_BYTES", 1_000_000)
    good = public.files["/2020/01.zip"]
    content = io.BytesIO(good)
    with zipfile.ZipFile(content, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tl_2020_tract.dbx", bytes(2_000_000))
    public.files["/2020/01.zip"] = content.getvalue()
    assert "cannot be read as an archive of a shapefile (it unpacks to 2,00" in refused(capsys, TABLES)
    public.files["/2020/01.zip"] = good
    assert acquire(TABLES) == 0


def test_a_pickle_among_public_files_is_not_run(public, capsys):
    class Harm:
        def __reduce__(self):
            return Path.touch, (Path("harmed"),)

    for path in ("/2020/01.zip", "/LODES8/al/od/al_od_main_JT00_2020.csv.gz", "/people/01.txt"):
        good, public.files[path] = public.files[path], pickle.dumps(Harm())
        assert "--addresses" in refused(capsys, TABLES)
        public.files[path] = good
    assert not Path("harmed").exists()
