"""Every public address that data come from, in one table; ``--addresses FILE.yaml`` replaces any of them, by a mirror for example.

``{...}`` are filled in by whoever fetches. Sources: the technical documents of LODES (lehd.ces.census.gov/data) and
TIGER/Line (census.gov/geo), the page of WorldCover's bucket (registry.opendata.aws/esa-worldcover-vito), the centers of population of the decennial census (whose API answers only with a key since May 2026), and the catalogues' own pages.
"""

from __future__ import annotations

import string

from imagery2flow.run.errors import InputError
from imagery2flow.run.files import existing_file

ADDRESSES = {
    "lodes_od": "https://lehd.ces.census.gov/data/lodes/LODES{version}/{state}/od/{state}_od_{part}_{job_type}_{year}.csv.gz",
    "lodes_sha256": "https://lehd.ces.census.gov/data/lodes/LODES{version}/{state}/lodes_{state}.sha256sum",
    "tiger_tracts": "https://www2.census.gov/geo/tiger/TIGER{vintage}/TRACT/tl_{vintage}_{state_fips}_tract.zip",
    "tiger_counties": "https://www2.census.gov/geo/tiger/TIGER2020/COUNTY/tl_2020_us_county.zip",
    "tiger_tracts_2010": "https://www2.census.gov/geo/tiger/TIGER2010/TRACT/2010/tl_2010_{state_fips}_tract10.zip",
    "population_2020": "https://www2.census.gov/geo/docs/reference/cenpop2020/tract/CenPop2020_Mean_TR{state_fips}.txt",
    "population_2010": "https://www2.census.gov/geo/docs/reference/cenpop2010/tract/CenPop2010_Mean_TR{state_fips}.txt",
    "earth_search": "https://earth-search.aws.element84.com/v1",
    "planetary_computer": "https://planetarycomputer.microsoft.com/api/stac/v1",
    "planetary_computer_token": "https://planetarycomputer.microsoft.com/api/sas/v1/token",
    "worldcover": "https://esa-worldcover.s3.eu-central-1.amazonaws.com/{version}/{year}/map/ESA_WorldCover_10m_{year}_{version}_{tile}_Map.tif",
    "osrm": "https://router.project-osrm.org",
}


def read_addresses(path: str | None) -> dict[str, str]:
    """The table, with what a YAML file replaces.

    Raises:
        InputError: The file is absent, no mapping of names to addresses, or names an address or a part of one that there is not.
    """
    if path is None:
        return dict(ADDRESSES)
    import yaml

    try:
        given = yaml.safe_load(existing_file(path, "--addresses").read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"--addresses {path} is not YAML ({' '.join(str(error).split())}); write lines of name: address") from error
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise InputError(f"--addresses {path} holds no mapping; write lines of name: address")
    unknown = sorted(set(given) - set(ADDRESSES))
    if unknown:
        raise InputError(f"--addresses {path} names {', '.join(map(str, unknown))}; there are {', '.join(ADDRESSES)}")
    for name, address in given.items():
        if not places_of(address) <= places_of(ADDRESSES[name]):
            parts = ", ".join(f"{{{part}}}" for part in sorted(places_of(ADDRESSES[name]))) or "nothing"
            raise InputError(f"--addresses {path} gives {name} the address {address}; what is filled in there is {parts}")
    return ADDRESSES | given


def places_of(address: str) -> set[str]:
    """Names in braces; a brace that is never closed is a name that there is not."""
    try:
        return {name for _, name, _, _ in string.Formatter().parse(address) if name is not None}
    except ValueError:
        return {address}
