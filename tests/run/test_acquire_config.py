"""Settings of ``python -m imagery2flow acquire``: flags, types, ranges."""

from pathlib import Path

import pytest

from imagery2flow.run.acquire_config import AcquireConfig
from imagery2flow.run.cli import parse_config


def parse(flags):
    return parse_config("acquire", AcquireConfig, ["--region", "M1", *flags.split()])


def test_numbers_of_places_stay_text(tmp_path):
    config = parse("--state_county 01001 36061 --what units")
    assert config.state_county == ["01001", "36061"] and config.what == ["units"]
    assert parse("--cbsa 35620").cbsa == "35620"
    (tmp_path / "a.yaml").write_text('cbsa: "35620"\n')
    assert parse(f"--config {tmp_path}/a.yaml").cbsa == "35620"


@pytest.mark.parametrize("flags", ["--what units,flows", "--what units flows", "--what units, flows"])
def test_kinds_of_data_stand_apart_by_spaces_or_commas(flags):
    assert parse(flags).what == ["units", "flows"]


def test_by_default_everything_that_the_stages_read_comes():
    assert parse("").what == ["units", "flows", "population", "imagery"]


def test_settings_of_imagery_are_those_that_its_pixels_follow_from():
    asked = parse("--bands nir red --without b a b --season 05-01/08-31 --max_cloud 20").imagery_settings
    assert asked == {
        "bands": ["nir", "red"],
        "season": "05-01/08-31",
        "max_cloud": 20.0,
        "catalogue": "earth_search",
        "without": ["a", "b"],
    }
    assert parse("").imagery_settings == parse("--bands blue green red nir --block 256").imagery_settings


def test_the_vintage_decides_census_and_lodes():
    new, old = parse("--year 2022"), parse("--vintage 2015 --year 2019")
    assert (new.census, new.lodes_version, new.id_column) == (2020, 8, "GEOID20")
    assert (old.census, old.lodes_version, old.id_column) == (2010, 7, "GEOID10")
    assert str(new.cache_folder) == "data/downloads" and str(parse("--cache x").cache_folder) == "x"


def test_the_year_matters_to_flows_only():
    assert parse("--year 2024 --what units population").year == 2024


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--what unit", "--what unit must be some of units, flows, population"),
        ("--what", "--what (none) must be some of units"),
        ("--year 2024", "--year 2024 must be 2002 to 2023, the years of LODES8, which has the tracts of --vintage 2020"),
        ("--year 2001", "--year 2001 must be 2002 to 2023"),
        ("--year 2020 --vintage 2010", "--year 2020 must be 2002 to 2019, the years of LODES7, which has the tracts of --vintage 2010"),
        ("--vintage 2000", "--vintage 2000 must be 2010 to 2025"),
        ("--cbsa 1234", "--cbsa 1234 must be five digits, such as 35620"),
        ("--cbsa 35620 --units my.gpkg", "--units my.gpkg must be left out beside --cbsa: name the place once"),
        ("--state_county 36061 --cbsa 35620", "--cbsa 35620 must be left out beside --state_county"),
        ("--region a/b", "--region a/b must be a name without slashes"),
        ("--region ..", "--region .. must be a name"),
        ("--job_type JT09", "--job_type JT09 must be one of"),
        ("--year soon", "--year soon must be a whole number"),
    ],
)
def test_bad_settings_are_one_sentence(capsys, flags, says):
    with pytest.raises(SystemExit) as end:
        parse(flags)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "acquire_run.json"),
        ({"what": ["flows"], "year": 2010}, "acquire_flows_2010_run.json"),
        ({"what": ["units,imagery"], "sensor": "l8"}, "acquire_units_imagery_l8_2020_run.json"),
    ],
)
def test_a_call_for_parts_of_the_data_does_not_replace_what_tells_of_the_others(settings, name):
    assert AcquireConfig(region="M1", **settings).run_file == Path("data/M1") / name
