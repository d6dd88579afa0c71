"""Residents of census tracts, as the decennial census counted them: one table of the centers of population per state."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from imagery2flow.run.acquire_config import AcquireConfig
from imagery2flow.run.errors import InputError
from imagery2flow.run.stage import Ledger
from imagery2flow.sources.download import Downloader, Remote

DIGITS = {"STATEFP": 2, "COUNTYFP": 3, "TRACTCE": 6}  # columns whose values make an id


def population_files(states: Sequence[str], config: AcquireConfig, addresses: dict[str, str]) -> list[Remote]:
    """One table per state."""
    address = addresses[f"population_{config.census}"]
    return [Remote(f"the population of state {state} ({config.census})", address.format(state_fips=state)) for state in states]


def fetch_population(
    tracts: Sequence[str], config: AcquireConfig, addresses: dict[str, str], downloader: Downloader, ledger: Ledger
) -> pd.DataFrame:
    """Residents of a region's tracts: geocode, population; sorted.

    Raises:
        InputError: A table cannot be fetched or read, or the census has none of the tracts.
    """
    counties = {tract[:5] for tract in tracts}
    residents: dict[str, int] = {}
    for remote in population_files(sorted({county[:2] for county in counties}), config, addresses):
        try:
            counted = read_population(downloader.fetch(remote), remote)
        except InputError:
            downloader.forget(remote)
            raise
        residents |= {tract: people for tract, people in counted.items() if tract[:5] in counties}
    known = [tract for tract in tracts if tract in residents]
    if not known:
        raise InputError(
            f"the census of {config.census} has none of the {len(tracts):,} units ({tracts[0]}, ...); give the --vintage of the units"
        )
    ledger.take_in("counted tracts of the counties", len(residents))
    ledger.leave_out("units that the census does not list", sorted(set(tracts) - set(residents)))
    ledger.leave_out("counted tracts that are no unit", sorted(set(residents) - set(tracts)))
    return pd.DataFrame({"geocode": known, "population": [residents[tract] for tract in known]})


def read_population(path: Path, remote: Remote) -> dict[str, int]:
    """Residents by tract.

    Raises:
        InputError: The table has other columns, or values that are no numbers.
    """
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
        if any(None in row.values() for row in rows):
            raise ValueError("a row is cut short")
        residents = {"".join(row[name].zfill(digits) for name, digits in DIGITS.items()): int(row["POPULATION"]) for row in rows}
        if not residents:
            raise ValueError("no row")
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{remote.what} from {remote.address} is no table of {', '.join(DIGITS)}, POPULATION; run the same command again, or name another "
            "address with --addresses"
        ) from error
    return residents
