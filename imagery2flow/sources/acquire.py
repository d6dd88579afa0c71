"""``python -m imagery2flow acquire``: a region's units, flows, population, imagery and land cover from public sources into the places where the stages look."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import geopandas as gpd

from imagery2flow.run.acquire_config import OF_ANY_UNITS, AcquireConfig
from imagery2flow.run.errors import InputError, shown
from imagery2flow.run.files import check_output_folder, replacing_by_gdal
from imagery2flow.run.stage import Ledger, stopping_at_sigterm
from imagery2flow.run.tables import write_table
from imagery2flow.sources.addresses import read_addresses
from imagery2flow.sources.composite import check_imagery, fetch_imagery, print_imagery_plan
from imagery2flow.sources.download import Downloader, NoAnswerError, Remote
from imagery2flow.sources.lodes import TRACT_DIGITS, fetch_flows, flow_files
from imagery2flow.sources.places import STATES, find_counties
from imagery2flow.sources.population import fetch_population, population_files
from imagery2flow.sources.tiger import county_file, fetch_counties, fetch_tracts, tract_files
from imagery2flow.sources.worldcover import LandCoverCounter, fetch_land_cover, land_cover_files

UnitReader = Callable[[str | Path, str | None, Ledger], gpd.GeoDataFrame]


@stopping_at_sigterm("what has come stays, and the same command continues")
def acquire(config: AcquireConfig, ledger: Ledger, read_units: UnitReader, count_land_cover: LandCoverCounter) -> Path | None:
    """Fetches what is not there yet and writes units.gpkg, flows_<year>.csv, population.csv, imagery and land_cover.csv; returns the path of the run file, None of a dry run.

    Args:
        config: Settings.
        ledger: Takes what was fetched, written and left out.
        read_units: How units are read: ``imagery.units.read_units``, which stands above this folder.
        count_land_cover: How classes are counted: ``imagery.land_cover.count_land_cover``, which stands there too.

    Raises:
        InputError: The place is unknown, or something cannot be fetched, read or written.
    """
    check_output_folder(config.folder, "--data_root")
    addresses, counties = read_addresses(config.addresses), find_counties(config)
    downloader = Downloader(config.cache_folder, ledger)
    if config.cbsa and not counties:
        if config.dry_run and not downloader.is_fetched(county_file(addresses)):
            print_plan([(f"the counties of --cbsa {config.cbsa}, from which the rest follows", [county_file(addresses)])], downloader)
            return None
        counties = fetch_counties(config.cbsa, addresses, downloader)
    units = present_units(config, counties, ledger, read_units)
    check_parts(config, units, counties)
    if config.dry_run:
        print_plans(config, units, counties, addresses, downloader, ledger)
        return None
    if units is None:
        units = fetch_tracts(counties, config, addresses, downloader, ledger)
        units = units.set_index(config.id_column, drop=False).rename_axis("geocode")
    if "units" in config.what:
        write_units(units, config, ledger)
    write_tables(units, config, addresses, downloader, ledger)
    if "imagery" in config.what:
        fetch_imagery(units, config, addresses, ledger)
    if "land_cover" in config.what:
        table = fetch_land_cover(units, config, addresses, downloader, ledger, count_land_cover)
        write_table(config.folder / "land_cover.csv", table)
    return config.run_file


def check_parts(config: AcquireConfig, units: gpd.GeoDataFrame | None, counties: Sequence[str]) -> None:
    """Refuses what cannot be had, before anything is fetched: units of nowhere, parts that need units, imagery in the place of other imagery.

    Raises:
        InputError: The place is unknown, units are lacking, or the imagery cannot be made.
    """
    if units is None and not counties:
        raise InputError(
            f"--region {config.region} is none of M1 to M10 and has no units.gpkg in {config.folder}; name its place with --state_county, --cbsa or --units"
        )
    if units is None and "units" not in config.what:
        raise InputError(f"region {config.region} has no units.gpkg in {config.folder}; add units to --what, or give --units")
    if "imagery" in config.what:
        check_imagery(units, config)


def print_plans(
    config: AcquireConfig,
    units: gpd.GeoDataFrame | None,
    counties: Sequence[str],
    addresses: dict[str, str],
    downloader: Downloader,
    ledger: Ledger,
) -> None:
    """Prints what --dry_run tells of each part: files with their sizes, images, and what follows from others.

    Raises:
        InputError: Files are not there, or a server or catalogue does not answer.
    """
    if set(config.what) != {"imagery"}:
        print_plan(plan(config, units, counties, addresses), downloader)
    if "land_cover" in config.what and units is None:
        print("land_cover.csv: follows from units.gpkg, which is not there yet")
    if "imagery" in config.what:
        print_imagery_plan(units, config, addresses, ledger)


def write_tables(units: gpd.GeoDataFrame, config: AcquireConfig, addresses: dict[str, str], downloader: Downloader, ledger: Ledger) -> None:
    """Writes the flows and the population that are asked for.

    Raises:
        InputError: Something cannot be fetched, read or written.
    """
    tracts = list(units.index)
    if "flows" in config.what:
        flows = fetch_flows(tracts, config, addresses, downloader, ledger)
        write_table(config.folder / f"flows_{config.year}.csv", flows)
        ledger.went_out.update({"flows": len(flows), "jobs": int(flows["count"].sum())})
    if "population" in config.what:
        population = fetch_population(tracts, config, addresses, downloader, ledger)
        write_table(config.folder / "population.csv", population)
        ledger.went_out.update({"units with population": len(population), "residents": int(population["population"].sum())})


def present_units(config: AcquireConfig, counties: Sequence[str], ledger: Ledger, read_units: UnitReader) -> gpd.GeoDataFrame | None:
    """Units that need not be fetched: the region's, or those of --units; None where there are neither.

    Raises:
        InputError: They are no tracts, or others than the settings say.
    """
    target = config.folder / "units.gpkg"
    there = read_units(target, None, ledger) if target.exists() else None
    given = read_units(config.units, None, ledger) if config.units and not same_file(config.units, target) else None
    units = given if there is None else there
    if units is None:
        return None
    path = config.units if there is None else target
    if not set(config.what) <= OF_ANY_UNITS:
        check_tracts(units, f"units {path}", config)
    if there is None:
        return units
    other = given is not None and set(given.index) != set(there.index)
    asked = set(counties) if config.state_county or config.cbsa else set()  # M1 may be the name of one's own region
    if other or (asked and set(there.index.str[:5]) != asked):
        named = f"--units {config.units} holds" if other else f"counties {shown(counties)} are"
        raise InputError(
            f"{target} is there with {len(there):,} units of counties {shown(sorted(set(there.index.str[:5])))}, but {named} another place; "
            "remove that file or name another --region"
        )
    ledger.note(f"{target} is there with {len(there):,} units: read, not fetched")
    return there


def same_file(path: str, target: Path) -> bool:
    """Whether both paths lead to one file."""
    return Path(path).exists() and target.exists() and Path(path).samefile(target)


def check_tracts(units: gpd.GeoDataFrame, where: str, config: AcquireConfig) -> None:
    """Refuses units that public tables cannot be joined to.

    Raises:
        InputError: Ids are no tracts', or of another census than --vintage.
    """
    wrong = units.index[~units.index.str.fullmatch(rf"\d{{{TRACT_DIGITS}}}") | ~units.index.str[:2].isin(list(STATES))]
    if len(wrong):
        raise InputError(
            f"{where}: {len(wrong):,} ids are no census tracts ({shown(wrong)}); give tracts, whose ids are {TRACT_DIGITS} digits"
        )
    others = {"GEOID10", "GEOID20"} - {config.id_column}
    if config.id_column not in units and others & set(units.columns):
        raise InputError(
            f"{where} hold {others.pop()} but --vintage {config.vintage} means tracts of the {config.census} census ({config.id_column}); give the --vintage of the units"
        )


def write_units(units: gpd.GeoDataFrame, config: AcquireConfig, ledger: Ledger) -> None:
    """Writes units.gpkg, unless it is there."""
    target = config.folder / "units.gpkg"
    ledger.went_out["units"] = len(units)
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing_by_gdal(target) as temporary:
        units.reset_index(drop=True).to_file(temporary, driver="GPKG", layer="tracts")


def plan(
    config: AcquireConfig, units: gpd.GeoDataFrame | None, counties: Sequence[str], addresses: dict[str, str]
) -> list[tuple[str, list[Remote]]]:
    """What would be fetched for each file that would be written."""
    if units is not None:
        counties = sorted(set(units.index.str[:5]))
    states = sorted({county[:2] for county in counties})
    files = {
        "units.gpkg": [] if "units" not in config.what or units is not None else tract_files(counties, config, addresses),
        f"flows_{config.year}.csv": flow_files(states, config, addresses) if "flows" in config.what else [],
        "population.csv": population_files(states, config, addresses) if "population" in config.what else [],
        "land_cover.csv": land_cover_files(units, config, addresses) if "land_cover" in config.what and units is not None else [],
    }
    return [(name, remotes) for name, remotes in files.items() if remotes]


def print_plan(parts: Sequence[tuple[str, list[Remote]]], downloader: Downloader) -> None:
    """Prints every file with its size, its address and whether the cache holds it.

    Raises:
        NoAnswerError: A server does not answer.
        InputError: Files are not there; they are in the table.
    """
    problems, total, unknown = [], 0, 0
    for name, remotes in parts:
        print(f"{name}:")
        absent = []
        for remote in remotes:
            state, size = "fetch", None
            if downloader.is_fetched(remote):
                state, size = "cached", downloader.path_of(remote).stat().st_size
            else:
                try:
                    size = downloader.size_bytes(remote)
                    total, unknown = total + (size or 0), unknown + (size is None)
                except NoAnswerError:
                    raise  # the next file would be asked for as often and as long
                except InputError as error:
                    state = "absent"
                    absent.append((remote, str(error)))
            print(f"  {state:6} {'size unknown' if size is None else f'{size / 1e6:9.1f} MB':>12}  {remote.what}  {remote.address}")
        problems += [error for remote, error in absent if not remote.may_be_absent or len(absent) == len(remotes)]
    print(f"to fetch: {total / 1e6:.1f} MB" + (f" and {unknown} files of unknown size" if unknown else ""))
    if problems:
        raise InputError(f"{len(problems)} files cannot be had; the first: {problems[0]}")
