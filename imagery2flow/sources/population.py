"""Residents of census tracts, as the decennial census counted them, from the Census API."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from imagery2flow.run.acquire_config import AcquireConfig
from imagery2flow.run.errors import InputError
from imagery2flow.run.stage import Ledger
from imagery2flow.sources.download import Downloader, Remote

VARIABLES = {2010: "P001001", 2020: "P1_001N"}  # total population


def population_files(counties: Sequence[str], config: AcquireConfig, addresses: dict[str, str]) -> list[Remote]:
    """One answer of the API per county."""
    address = addresses[f"population_{config.census}"]
    return [
        Remote(
            f"the population of county {county} ({config.census})",
            address.format(state_fips=county[:2], county_fips=county[2:]),
            name=f"population_{config.census}_{county}.json",
        )
        for county in counties
    ]


def fetch_population(
    tracts: Sequence[str], config: AcquireConfig, addresses: dict[str, str], downloader: Downloader, ledger: Ledger
) -> pd.DataFrame:
    """Residents of a region's tracts: geocode, population; sorted.

    Raises:
        InputError: An answer cannot be had or read, or the census has none of the tracts.
    """
    residents: dict[str, int] = {}
    for remote in population_files(sorted({tract[:5] for tract in tracts}), config, addresses):
        try:
            residents |= read_population(downloader.fetch(remote), remote, VARIABLES[config.census])
        except InputError:
            downloader.forget(remote)
            raise
    known = [tract for tract in tracts if tract in residents]
    if not known:
        raise InputError(
            f"the census of {config.census} has none of the {len(tracts):,} units ({tracts[0]}, ...); give the --vintage of the units"
        )
    ledger.leave_out("units that the census does not count", sorted(set(tracts) - set(residents)))
    ledger.leave_out("counted tracts that are no unit", sorted(set(residents) - set(tracts)))
    return pd.DataFrame({"geocode": known, "population": [residents[tract] for tract in known]})


def read_population(path: Path, remote: Remote, variable: str) -> dict[str, int]:
    """Residents by tract out of an answer: a list of rows, the first of which names the columns.

    Raises:
        InputError: It is none; without a key the API answers with a page about keys.
    """
    try:
        header, *rows = json.loads(path.read_text(encoding="utf-8"))
        count, *parts = (header.index(name) for name in (variable, "state", "county", "tract"))
        return {"".join(row[part] for part in parts): int(row[count]) for row in rows}
    except (ValueError, TypeError, IndexError) as error:
        raise InputError(
            f"{remote.what} from {remote.address} is no table with {variable}, state, county and tract; check that the county is one of that census, and whether "
            "the API wants a key, which an address in --addresses can carry (...&key=...)"
        ) from error
