"""Names of cities that join tables."""

import pytest

from imagery2flow.run.keys import code_of, key_columns, match_keys


@pytest.mark.parametrize(
    ("name", "code"),
    [("Almaty (ALA)", "ALA"), ("Washington (DC) (IAD) ", "IAD"), ("York (UK), north", ""), ("A", ""), ("A ()", ""), ("(B)", "B")],
)
def test_a_code_stands_in_the_last_parentheses_at_the_end(name, code):
    assert code_of(name) == code


def test_names_agree_where_they_are_equal_or_one_is_the_code_of_the_other():
    names = ["Almaty (ALA)", "BOG", "Cairo", "Portland (US)", "Paris (x) (PAR)", "Riga"]
    keys = ["ALA", "Bogota (BOG)", "Cairo", "Springfield (US)", "PAR"]
    found, several = match_keys(names, keys, "city")
    assert found == {"Almaty (ALA)": "ALA", "BOG": "Bogota (BOG)", "Cairo": "Cairo", "Paris (x) (PAR)": "PAR"}
    assert several == {}


def test_an_equal_name_comes_before_a_code_and_two_codes_are_told():
    keys = ["Georgetown (GEO)", "Georgia (GEO)"]
    assert match_keys(["Georgia (GEO)"], keys, "city") == ({"Georgia (GEO)": "Georgia (GEO)"}, {})
    assert match_keys(["GEO"], keys, "city") == ({}, {"GEO": keys})


def test_ids_of_patches_have_no_codes():
    assert match_keys(["tile (1)", "2"], ["1", "2"], "geocode") == ({"2": "2"}, {})


def test_the_column_of_keys_is_found_with_what_stands_behind_it():
    assert key_columns(["city(IATA)", "overall"], "city") == ["city(IATA)"]
    assert key_columns(["city (IATA)", "city"], "city") == ["city"]
    assert key_columns(["city (a)", "city (b)", "cities"], "city") == ["city (a)", "city (b)"]
