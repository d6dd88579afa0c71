"""Regions by name and number."""

import re

import pytest

from imagery2flow.run.acquire_config import AcquireConfig
from imagery2flow.run.errors import InputError
from imagery2flow.sources.places import STATES, find_counties, read_metropolitan_areas

# How many counties OMB Bulletin 20-01 names.
NUM_COUNTIES = {"M1": 23, "M2": 2, "M3": 14, "M4": 11, "M5": 9, "M6": 25, "M7": 11, "M8": 3, "M9": 29, "M10": 2}


def test_the_published_areas():
    areas = read_metropolitan_areas()
    assert {area.msa: len(area.counties) for area in areas} == NUM_COUNTIES
    assert [area.msa for area in areas] == [f"M{i}" for i in range(1, 11)]
    assert areas[0].cbsa == "35620" and areas[1].counties == ("06037", "06059") and areas[9].counties == ("04013", "04021")
    every = [county for area in areas for county in area.counties]
    assert len(set(every)) == len(every) == 129
    assert all(re.fullmatch(r"\d{5}", county) for county in every)


@pytest.mark.parametrize("area", read_metropolitan_areas(), ids=lambda area: area.msa)
def test_counties_lie_in_the_states_of_the_title(area):
    letters = set(area.name.rsplit(", ", 1)[1].lower().split("-"))
    assert {STATES[county[:2]] for county in area.counties} == letters


def test_states_are_the_fifty_and_the_district():
    assert len(STATES) == len(set(STATES.values())) == 51
    assert (STATES["01"], STATES["06"], STATES["11"], STATES["36"], STATES["56"]) == ("al", "ca", "dc", "ny", "wy")


def test_a_place_by_region_by_cbsa_by_counties():
    los_angeles = ("06037", "06059")
    assert find_counties(AcquireConfig(region="M2")) == los_angeles
    assert find_counties(AcquireConfig(region="coast", cbsa="31080")) == los_angeles
    assert find_counties(AcquireConfig(region="M1", state_county=["06059", "06037", "06059"])) == los_angeles
    assert find_counties(AcquireConfig(region="M2", units="my.gpkg")) == find_counties(AcquireConfig(region="coast")) == ()


@pytest.mark.parametrize("number", ["1017", "010170", "O1017", "03001", "²1017"])
def test_numbers_that_are_no_county(number):
    with pytest.raises(InputError, match="must be five digits"):
        find_counties(AcquireConfig(region="x", state_county=["01017", number]))
