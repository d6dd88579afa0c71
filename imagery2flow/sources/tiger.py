"""Census tracts from TIGER/Line: one archive per state and vintage, read without being unpacked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import geopandas as gpd
import pandas as pd

from imagery2flow.run.acquire_config import AcquireConfig
from imagery2flow.run.errors import InputError, first_sentence, shown
from imagery2flow.run.geofiles import zipped_name
from imagery2flow.run.stage import Ledger
from imagery2flow.sources.download import Downloader, Remote


def tract_files(counties: Sequence[str], config: AcquireConfig, addresses: dict[str, str]) -> list[Remote]:
    """The archives of the states that the counties lie in."""
    address = addresses["tiger_tracts_2010" if config.vintage == 2010 else "tiger_tracts"]
    states = sorted({county[:2] for county in counties})
    return [
        Remote(f"the tracts of state {state} ({config.vintage})", address.format(vintage=config.vintage, state_fips=state))
        for state in states
    ]


def county_file(addresses: dict[str, str]) -> Remote:
    """The archive of all counties, which says to which area each belongs (delineation of March 2020)."""
    return Remote("the counties of the United States", addresses["tiger_counties"])


def fetch_counties(cbsa: str, addresses: dict[str, str], downloader: Downloader) -> tuple[str, ...]:
    """Numbers of the counties of a metropolitan or micropolitan area, sorted.

    Raises:
        InputError: The archive cannot be fetched or read, or there is no such area.
    """
    remote = county_file(addresses)
    try:
        table = read_archive(downloader.fetch(remote), remote)
        check_columns(table, ("GEOID", "CBSAFP"), remote)
    except InputError:
        downloader.forget(remote)
        raise
    found = tuple(sorted(table.GEOID[cbsa == table.CBSAFP].astype(str)))
    if not found:
        areas = table.CBSAFP.dropna().unique()
        raise InputError(
            f"--cbsa {cbsa} is none of the {len(areas):,} areas in {remote.what}; look its number up, or name its counties with --state_county"
        )
    return found


def fetch_tracts(
    counties: Sequence[str], config: AcquireConfig, addresses: dict[str, str], downloader: Downloader, ledger: Ledger
) -> gpd.GeoDataFrame:
    """Tracts of counties; ``config.id_column``, geometry; sorted by id.

    Raises:
        InputError: An archive cannot be fetched or read, or a county has no tract.
    """
    parts = []
    for remote in tract_files(counties, config, addresses):
        try:
            parts.append(read_tracts(downloader.fetch(remote), remote, config))
        except InputError:
            downloader.forget(remote)
            raise
    tracts = pd.concat(parts, ignore_index=True)
    tracts = tracts[tracts[config.id_column].str[:5].isin(counties)].sort_values(config.id_column, ignore_index=True)
    absent = sorted(set(counties) - set(tracts[config.id_column].str[:5]))
    if absent:
        hint = (
            "; Connecticut has planning regions instead of counties from 2022 on"
            if any(county.startswith("09") for county in absent)
            else ""
        )
        raise InputError(f"the tracts of {config.vintage} have none in the counties {shown(absent)}; check the numbers and --vintage{hint}")
    ledger.take_in("tracts of the counties", len(tracts))
    water = tracts["land_m2"] == 0
    ledger.leave_out("tracts of water only", tracts.loc[water, config.id_column])
    return tracts.loc[~water, [config.id_column, "geometry"]].reset_index(drop=True)


def read_tracts(path: Path, remote: Remote, config: AcquireConfig) -> gpd.GeoDataFrame:
    """Tracts of one archive: ``config.id_column``, land_m2, geometry.

    Raises:
        InputError: The archive cannot be read, or lacks a column or a CRS.
    """
    table = read_archive(path, remote)
    suffix = "10" if "GEOID10" in table else ""
    needed = (f"GEOID{suffix}", f"ALAND{suffix}")
    check_columns(table, needed, remote)
    table = table.rename(columns={needed[0]: config.id_column, needed[1]: "land_m2"})
    return table[[config.id_column, "land_m2", "geometry"]].astype({config.id_column: "str"})


def read_archive(path: Path, remote: Remote) -> gpd.GeoDataFrame:
    """The shapefile of an archive.

    Raises:
        InputError: The archive is damaged, unpacks to far more than it should, or holds not one shapefile.
    """
    try:
        return gpd.read_file(zipped_name(path))
    except Exception as error:  # zipfile, pyogrio and GDAL raise a dozen classes, depending on which byte is wrong
        raise InputError(
            f"{remote.what} from {remote.address} cannot be read as an archive of a shapefile ({first_sentence(error)}); run the same command again, "
            "or name another address with --addresses"
        ) from error


def check_columns(table: gpd.GeoDataFrame, needed: Sequence[str], remote: Remote) -> None:
    """Refuses a table that is not what was asked for.

    Raises:
        InputError: It lacks a column or a CRS.
    """
    absent = [name for name in needed if name not in table]
    if absent or table.crs is None:
        raise InputError(f"{remote.what} from {remote.address} lack {', '.join(absent) or 'a CRS'}; name another address with --addresses")
