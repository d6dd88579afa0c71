"""The settings of ``python -m imagery2flow acquire``; see ``run.config`` for how settings work."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Literal

from imagery2flow.run.config import require

KINDS = ("units", "flows", "population", "imagery")  # by default: everything that the stages read
ON_REQUEST = "land_cover"
RGB_NIR = ("blue", "green", "red", "nir")
OF_ANY_UNITS = {"imagery", ON_REQUEST}  # not of census tracts only
SENSOR_BANDS = {"s2": RGB_NIR} | dict.fromkeys(("l8", "l7", "l5"), (*RGB_NIR, "swir1", "swir2"))
TILE_PIXELS = 256  # side of the tiles that imagery is stored in
FIRST_VINTAGE, LAST_VINTAGE = 2010, 2025
NEW_TRACTS = 2020  # the first vintage of the tracts of the 2020 census
LODES_YEARS = {7: (2002, 2019), 8: (2002, 2023)}


@dataclass(frozen=True, kw_only=True)
class AcquireConfig:
    """Fetch a region's census tracts, commuting flows (LODES), population, imagery and land cover (ESA WorldCover); files that have come are kept and used again.

    Args:
        region: Name of the region; M1 to M10 are the published metropolitan areas, any other needs --state_county, --cbsa or --units.
        year: Year of the flows (2002 to 2023, with tracts of the 2010 census to 2019) and of the imagery; land cover is of 2020, or of 2021 for every other year.
        what: Which data: units, flows, population, imagery, and, if asked for, land_cover.
        data_root: Folder under which <region>/units.gpkg, flows_<year>.csv, population.csv, <sensor>_<year>.tif and land_cover.csv are written.
        state_county: Counties by their five digits: 11001 36061.
        cbsa: A metropolitan or micropolitan area of March 2020 by its five digits: 35620. Of others than the ten published ones the counties come from the Census Bureau.
        units: File of tracts that you have, with ids of eleven digits; for imagery and land cover any areal units.
        job_type: LODES jobs: JT00 all, JT01 primary, JT02 private, JT03 private primary, JT04 federal, JT05 federal primary.
        vintage: TIGER year of the tracts; 2010 to 2019 are tracts of the 2010 census (LODES7), 2020 and later of the 2020 census (LODES8).
        addresses: YAML file that replaces addresses of data, by mirrors for example.
        cache: Folder of what was fetched; default <data_root>/downloads.
        sensor: Satellite of the imagery: s2 Sentinel-2 (10 m), l8 Landsat 8 and 9, l7 Landsat 7, l5 Landsat 5 (30 m).
        season: First and last day of the images that are combined, month-day/month-day, within the year.
        max_cloud: Largest cloud cover of an image in percent, as its catalogue states it.
        bands: Bands of the imagery, in that order: blue green red nir, of Landsat also swir1 swir2; default all of these.
        catalogue: Where imagery is searched: earth_search, or planetary_computer, which has Landsat for nothing.
        without: Ids of images that are not used, such as one whose file is damaged.
        block: Side in pixels of the parts in which imagery is combined, a multiple of 256; less takes less memory.
        dry_run: Print what would be fetched, from where and how large it is; fetch nothing.
    """

    region: str
    year: int = 2020
    what: list[str] = field(default_factory=lambda: list(KINDS))
    data_root: str = "data"
    state_county: list[str] = field(default_factory=list)
    cbsa: str | None = None
    units: str | None = None
    job_type: Literal["JT00", "JT01", "JT02", "JT03", "JT04", "JT05"] = "JT00"
    vintage: int = NEW_TRACTS
    addresses: str | None = None
    cache: str | None = None
    sensor: Literal["s2", "l8", "l7", "l5"] = "s2"
    season: str = "06-01/09-30"
    max_cloud: float = 40.0
    bands: list[str] = field(default_factory=list)
    catalogue: Literal["earth_search", "planetary_computer"] = "earth_search"
    without: list[str] = field(default_factory=list)
    block: int = 1024
    dry_run: bool = False

    def __post_init__(self) -> None:
        is_name = self.region not in ("", ".", "..") and not set(self.region) & set("/\\\0")
        require(is_name, "region", self.region, "a name without slashes")
        # Also in one word with commas, as such lists are often written.
        object.__setattr__(self, "what", [kind for word in self.what for kind in word.split(",") if kind])
        known = bool(self.what) and set(self.what) <= {*KINDS, ON_REQUEST}
        require(known, "what", " ".join(self.what) or "(none)", f"some of {', '.join(KINDS)}, {ON_REQUEST}")
        require(self.cbsa is None or bool(re.fullmatch(r"\d{5}", self.cbsa)), "cbsa", self.cbsa, "five digits, such as 35620")
        places = [name for name in ("state_county", "cbsa", "units") if getattr(self, name)]
        for name in places[1:]:
            value = getattr(self, name)
            require(
                False, name, value if isinstance(value, str) else " ".join(value), f"left out beside --{places[0]}: name the place once"
            )
        require(FIRST_VINTAGE <= self.vintage <= LAST_VINTAGE, "vintage", self.vintage, f"{FIRST_VINTAGE} to {LAST_VINTAGE}")
        first, last = LODES_YEARS[self.lodes_version]
        available = "flows" not in self.what or first <= self.year <= last
        require(
            available,
            "year",
            self.year,
            f"{first} to {last}, the years of LODES{self.lodes_version}, which has the tracts of --vintage {self.vintage}",
        )
        self.check_imagery()

    def check_imagery(self) -> None:
        """Refuses settings of the imagery that are out of range.

        Raises:
            InputError: A setting is out of range.
        """
        rule = f"a first and a later last day of {self.year}, such as 06-01/09-30"
        days = self.season_days if re.fullmatch(r"\d\d-\d\d/\d\d-\d\d", self.season) else None
        require(days is not None and days[0] <= days[1], "season", self.season, rule)
        require(0 <= self.max_cloud <= 100, "max_cloud", self.max_cloud, "0 to 100 percent")
        available = SENSOR_BANDS[self.sensor]
        is_set = set(self.bands) <= set(available) and len(set(self.bands)) == len(self.bands)
        require(is_set, "bands", " ".join(self.bands), f"some of {', '.join(available)}, each once")
        require(self.block > 0 and self.block % TILE_PIXELS == 0, "block", self.block, f"a multiple of {TILE_PIXELS}")

    @property
    def season_days(self) -> tuple[date, date] | None:
        """First and last day of the imagery; None where the calendar has no such day."""
        try:
            first, last = (date.fromisoformat(f"{self.year:04}-{day}") for day in self.season.split("/"))
        except ValueError:
            return None
        return first, last

    @property
    def imagery_bands(self) -> tuple[str, ...]:
        """Bands of the imagery, in their order."""
        return tuple(self.bands) or SENSOR_BANDS[self.sensor]

    @property
    def imagery_settings(self) -> dict[str, str | float | list[str]]:
        """What the pixels of the imagery follow from, besides the place, the sensor and the year; by the names of the flags."""
        return {
            "bands": list(self.imagery_bands),
            "season": self.season,
            "max_cloud": self.max_cloud,
            "catalogue": self.catalogue,
            "without": sorted(set(self.without)),
        }

    @property
    def run_file(self) -> Path:
        """What tells of this call: of parts of the data under a name of their own, so that a later call for others leaves it."""
        sensor = [self.sensor] if "imagery" in self.what else []
        parts = [] if self.what == list(KINDS) else [*self.what, *sensor, str(self.year)]
        return self.folder / f"{'_'.join(['acquire', *parts, 'run'])}.json"

    @property
    def imagery_path(self) -> Path:
        """The imagery."""
        return self.folder / f"{self.sensor}_{self.year}.tif"

    @property
    def lodes_version(self) -> int:
        """7 has the blocks of the 2010 census, 8 those of 2020."""
        return 8 if self.vintage >= NEW_TRACTS else 7

    @property
    def census(self) -> int:
        """Census whose tracts these are."""
        return NEW_TRACTS if self.vintage >= NEW_TRACTS else FIRST_VINTAGE

    @property
    def id_column(self) -> str:
        """Name of the column of tract ids, which says of which census they are."""
        return "GEOID20" if self.census == NEW_TRACTS else "GEOID10"

    @property
    def folder(self) -> Path:
        """Folder of the region."""
        return Path(self.data_root) / self.region

    @property
    def cache_folder(self) -> Path:
        """Folder of what was fetched."""
        return Path(self.cache) if self.cache else Path(self.data_root) / "downloads"
