"""Which counties a region is: the ten published metropolitan areas, or counties by their numbers.

``msa_counties.csv`` holds the delineation of March 2020 (OMB Bulletin 20-01), written down from memory; ``make acquire-check`` compares it with the Census Bureau's
own table.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from imagery2flow.run.acquire_config import AcquireConfig
from imagery2flow.run.errors import InputError, shown

MSA_TABLE = Path(__file__).with_name("msa_counties.csv")
# LODES names states by their letters, everything else by their numbers (FIPS 5-2).
STATES = dict(
    re.findall(
        r"(\d\d) (\w\w)",
        "01 al 02 ak 04 az 05 ar 06 ca 08 co 09 ct 10 de 11 dc 12 fl 13 ga 15 hi 16 id 17 il 18 in 19 ia 20 ks 21 ky 22 la 23 me 24 md 25 ma 26 mi 27 mn "
        "28 ms 29 mo 30 mt 31 ne 32 nv 33 nh 34 nj 35 nm 36 ny 37 nc 38 nd 39 oh 40 ok 41 or 42 pa 44 ri 45 sc 46 sd 47 tn 48 tx 49 ut 50 vt 51 va 53 wa "
        "54 wv 55 wi 56 wy",
    )
)


@dataclass(frozen=True)
class MetropolitanArea:
    """A published metropolitan statistical area.

    Attributes:
        msa: Published name: M1 to M10.
        cbsa: Number of the core based statistical area, five digits.
        name: Title.
        counties: Numbers of the counties, five digits each, sorted.
    """

    msa: str
    cbsa: str
    name: str
    counties: tuple[str, ...]


def read_metropolitan_areas() -> list[MetropolitanArea]:
    """The ten published areas, M1 first."""
    with MSA_TABLE.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(line for line in stream if not line.startswith("#")))
    keys = dict.fromkeys((row["msa"], row["cbsa"], row["name"]) for row in rows)
    return [MetropolitanArea(*key, tuple(sorted(row["county_fips"] for row in rows if row["msa"] == key[0]))) for key in keys]


def find_counties(config: AcquireConfig) -> tuple[str, ...]:
    """Counties that the settings name, sorted; none where they name a file of units, nothing, or a CBSA that is none of the ten.

    Raises:
        InputError: A number is no county's.
    """
    if config.units:
        return ()
    if config.state_county:
        return check_counties(config.state_county)
    areas = read_metropolitan_areas()
    if config.cbsa:
        return next((area.counties for area in areas if area.cbsa == config.cbsa), ())
    return next((area.counties for area in areas if area.msa == config.region), ())


def check_counties(numbers: list[str]) -> tuple[str, ...]:
    """Counties by their numbers, sorted, each once.

    Raises:
        InputError: One has not five digits, or begins with no state's.
    """
    wrong = [number for number in numbers if len(number) != 5 or not number.isdecimal() or number[:2] not in STATES]
    if wrong:
        raise InputError(
            f"--state_county {shown(wrong)} must be five digits, two of the state and three of the county: 06037 for Los Angeles"
        )
    return tuple(sorted(set(numbers)))
