"""Satellite images in public STAC catalogues: which there are over a place in a season, and one on a grid, as reflectance with its mask.

Every image becomes surface reflectance x 10,000 in uint16, 0 where nothing is known; a reflectance of 0 and below is 1.
So all sensors and years have one scale.

Sentinel-2 Level-2A: reflectance = (DN + offset) / 10,000, the offset -1000 from processing baseline 04.00 on, unless the catalogue has
removed it already; 0 is no data (sentiwiki.copernicus.eu/web/s2-products). Earth Search says so in ``earthsearch:boa_offset_applied``,
which is wrong for some images of 2022 to 2025 (github.com/Element84/earth-search, issues 66 and 71); nothing else tells them apart.
Of the scene classification the classes 4 vegetation, 5 not vegetated, 6 water, 7 unclassified and 11 snow or ice are kept; 0 no data,
1 saturated or defective, 2 dark, 3 cloud shadow, 8 and 9 cloud, 10 thin cirrus are not (sentiwiki.copernicus.eu/web/s2-processing).

Landsat Collection 2 Level 2: reflectance = DN x 0.0000275 - 0.2, 0 is fill; of QA_PIXEL bit 0 is fill, 1 dilated cloud, 2 cirrus,
3 cloud, 4 cloud shadow (usgs.gov/landsat-missions: Landsat Collection 2 Surface Reflectance, and Quality Assessment Bands; the same in
the example Landsat8SurfaceReflectance.js of google/earthengine-api). The corners that Landsat's metadata name, multiples of 30 m, are
centres of pixels (github.com/stac-utils/stactools, pull request 23).
"""

from __future__ import annotations

import functools
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import shapely
from rasterio.warp import transform_bounds

from imagery2flow.run.acquire_config import AcquireConfig
from imagery2flow.run.errors import InputError, first_sentence
from imagery2flow.run.stage import Ledger
from imagery2flow.sources import http
from imagery2flow.sources.addresses import read_addresses
from imagery2flow.sources.signing import Signer

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox
    from pystac import Item
    from pystac_client.stac_api_io import StacApiIO

DEGREES = "EPSG:4326"
RETRY_PAUSE_S = 1.0
CLEAR_CLASSES = (4, 5, 6, 7, 11)
QA_PIXEL_UNCLEAR = 0b11111
BASELINE_OF_OFFSET, SENTINEL2_OFFSET = 4.0, -1000
LANDSAT_SCALE, LANDSAT_OFFSET = 0.275, -2000  # those of the product, x 10,000
LARGEST = np.iinfo(np.uint16).max
FINAL_ANSWER = re.compile(r"HTTP response code: 4(?!08|25|29)\d\d")  # GDAL's words for what trying again does not change
MOST_IMAGES = 10_000  # of one search; a season of a large metropolitan area has some hundreds
READERS = 4  # threads: the bands of an image come side by side


@dataclass(frozen=True)
class Sensor:
    """What the catalogues call a sensor's images.

    Attributes:
        collection: Name of the collection.
        platforms: Satellites, in small letters.
        gsd_m: Side of a pixel.
        origin_m: Where the edges of pixels lie: multiples of ``gsd_m`` plus this. Of Landsat the centres lie on multiples.
        assets: Names that a band's file has in one catalogue or another, by band; ``mask`` is the scene classification or QA_PIXEL.
    """

    collection: str
    platforms: tuple[str, ...]
    gsd_m: int
    origin_m: int
    assets: dict[str, tuple[str, ...]]

    @property
    def is_landsat(self) -> bool:
        """Whether the images are Landsat's."""
        return self.collection.startswith("landsat")


SENTINEL2_ASSETS: dict[str, tuple[str, ...]] = {
    "blue": ("blue", "B02"),
    "green": ("green", "B03"),
    "red": ("red", "B04"),
    "nir": ("nir", "B08"),
    "mask": ("scl", "SCL"),
}
LANDSAT_ASSETS: dict[str, tuple[str, ...]] = {
    "blue": ("blue",),
    "green": ("green",),
    "red": ("red",),
    "nir": ("nir08",),
    "swir1": ("swir16",),
    "swir2": ("swir22",),
    "mask": ("qa_pixel",),
}
SENSORS = {
    "s2": Sensor("sentinel-2-l2a", ("sentinel-2a", "sentinel-2b", "sentinel-2c"), 10, 0, SENTINEL2_ASSETS),
    "l8": Sensor("landsat-c2-l2", ("landsat-8", "landsat-9"), 30, 15, LANDSAT_ASSETS),
    "l7": Sensor("landsat-c2-l2", ("landsat-7",), 30, 15, LANDSAT_ASSETS),
    "l5": Sensor("landsat-c2-l2", ("landsat-5",), 30, 15, LANDSAT_ASSETS),
}


def gdal_over_http() -> dict[str, Any]:
    """How GDAL reads files over HTTP: it asks for nothing but the file, and tries again where a server is busy.

    A connection that breaks it takes for a damaged file: that is tried again in ``read_item``.
    """
    return {
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
        "GDAL_HTTP_MAX_RETRY": http.ATTEMPTS - 1,
        "GDAL_HTTP_RETRY_DELAY": RETRY_PAUSE_S,
        "GDAL_HTTP_CONNECTTIMEOUT": http.CONNECT_TIMEOUT_S,
        "GDAL_HTTP_TIMEOUT": http.SILENCE_TIMEOUT_S,
        "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": True,
        "VSI_CACHE": True,
    }


def find_items(footprint: shapely.Geometry, config: AcquireConfig, address: str, ledger: Ledger) -> list[Item]:
    """Images of the sensor, place and season that are clear enough, by time and id.

    Args:
        footprint: The place, in degrees (EPSG:4326).
        config: Settings.
        address: Address of the catalogue.
        ledger: Takes how many were found and which are left out.

    Raises:
        InputError: The catalogue does not answer, a package is missing, or no image is left.
    """
    check_packages(config)
    found = {item.id: item for item in search(footprint, config, address, ledger)}
    ledger.take_in("images found", len(found))
    chosen, left_out = [], 0
    for item in sorted(found.values(), key=lambda item: (str(item.datetime), item.id)):
        problem = why_not(item, footprint, config)
        if problem is None:
            chosen.append(item)
        else:
            ledger.leave_out(problem, [item.id])
            left_out += 1
    if not chosen:
        raise InputError(
            f"{config.catalogue} has no image of --sensor {config.sensor} over region {config.region} in {config.season} of {config.year} that may be used "
            f"({left_out} found and left out, --max_cloud {config.max_cloud:g}); widen --season or --max_cloud, name another --year or --sensor, or leave imagery out of --what"
        )
    return chosen


def check_packages(config: AcquireConfig) -> None:
    """Refuses to begin without the packages.

    Raises:
        InputError: One is missing.
    """
    try:
        import odc.stac  # noqa: F401
        import pystac_client  # noqa: F401
    except ImportError as error:
        raise InputError(
            'acquiring imagery needs the packages pystac-client and odc-stac; install them with: pip install "imagery2flow[acquire]", '
            "or leave imagery out of --what"
        ) from error


def signer(config: AcquireConfig) -> Callable[[str], str] | None:
    """What makes an address readable: the Planetary Computer's need a token, others nothing."""
    if config.catalogue != "planetary_computer":
        return None
    return signer_at(read_addresses(config.addresses)["planetary_computer_token"]).sign


@functools.cache  # tokens are good for all images
def signer_at(address: str) -> Signer:
    """The one signer whose tokens come from an address."""
    return Signer(address)


def search(footprint: shapely.Geometry, config: AcquireConfig, address: str, ledger: Ledger) -> list[Item]:
    """Everything that the catalogue has of the collection, the place's bounds and the season: what is left out is seen.

    Raises:
        InputError: The catalogue does not answer, or with something else, or without end.
    """
    import pystac_client

    assert config.season_days is not None
    try:
        client = pystac_client.Client.open(address, stac_io=stac_reader(config, ledger))
        found = client.search(
            method="GET",
            collections=[SENSORS[config.sensor].collection],
            bbox=list(footprint.bounds),
            datetime="/".join(f"{day}T{time}Z" for day, time in zip(config.season_days, ("00:00:00", "23:59:59"), strict=True)),
            limit=100,
            max_items=MOST_IMAGES,
        )
        items = list(found.items())
    except Exception as error:  # a catalogue that is none raises a dozen classes, depending on what it answers
        raise InputError(
            f"--catalogue {config.catalogue} at {address} cannot be searched ({http.reason(error)}); try again later, or name a mirror with --addresses"
        ) from error
    if len(items) == MOST_IMAGES:
        raise InputError(
            f"--catalogue {config.catalogue} at {address} names {MOST_IMAGES:,} images or more; give a shorter --season or a smaller region"
        )
    return items


def stac_reader(config: AcquireConfig, ledger: Ledger) -> StacApiIO:
    """What pystac_client reads a catalogue's answers with: as patient with a server as everything else here."""
    from pystac_client.stac_api_io import StacApiIO

    class PatientReader(StacApiIO):
        """Reads as ``sources.http`` does."""

        def request(
            self, href: str, method: str | None = None, headers: dict[str, str] | None = None, parameters: dict[str, Any] | None = None
        ) -> str:
            """Text of one answer."""
            method = (method or "GET").upper()
            body = {"params" if method == "GET" else "json": parameters}

            def once() -> str:
                response = http.ask(session, method, href, headers=headers, **body)
                text = http.read_body(response).decode("utf-8")
                if response.status_code != requests.codes.ok:
                    raise ValueError(f"status {response.status_code}")
                return text

            return http.keep_trying(once, f"the catalogue {config.catalogue}", ledger)

    import requests

    session = http.open_session("acquiring imagery", "acquire")
    return PatientReader()


def why_not(item: Item, footprint: shapely.Geometry, config: AcquireConfig) -> str | None:
    """Why an image is not used; None where it is."""
    sensor, properties = SENSORS[config.sensor], item.properties
    if item.id in config.without:
        return "images named by --without"
    if str(properties.get("platform", "")).lower() not in sensor.platforms:
        return "images of another satellite"
    if properties.get("landsat:collection_category", "T1") != "T1":
        return "images of tier 2, whose position is less exact"
    if item.geometry is not None and not shapely.geometry.shape(item.geometry).intersects(footprint):
        return "images beside the units"
    if cloud_cover_percent(item) > config.max_cloud:
        return f"images with more than {config.max_cloud:g} percent of cloud"
    absent = [band for band in (*config.imagery_bands, "mask") if asset_name(item, sensor, band) is None]
    return f"images without {', '.join(absent)}" if absent else None


def cloud_cover_percent(item: Item) -> float:
    """Cloud cover as the catalogue states it; NaN where it does not."""
    cover = item.properties.get("eo:cloud_cover")
    return np.nan if cover is None else float(cover)


def asset_name(item: Item, sensor: Sensor, band: str) -> str | None:
    """What the catalogue calls the file of a band; None where it has none."""
    return next((name for name in sensor.assets[band] if name in item.assets), None)


def offset_to_remove(item: Item) -> int:
    """What is still to be added to the digital numbers of a Sentinel-2 image: -1000 or 0."""
    if item.properties.get("earthsearch:boa_offset_applied"):
        return 0
    return SENTINEL2_OFFSET if float(item.properties.get("s2:processing_baseline") or 0) >= BASELINE_OF_OFFSET else 0


def read_item(item: Item, grid: GeoBox, config: AcquireConfig) -> tuple[np.ndarray, np.ndarray]:
    """One image on a grid; the nearest pixel where its own grid is another.

    Returns:
        Reflectance x 10,000 [num_bands, height, width] in uint16, and valid [height, width]: clear, and known in every band.

    Raises:
        InputError: A file cannot be read.
    """
    sensor = SENSORS[config.sensor]
    names = [str(asset_name(item, sensor, band)) for band in (*config.imagery_bands, "mask")]
    options = gdal_over_http()
    for attempt in range(http.ATTEMPTS):
        try:
            numbers = load(item, names, grid, options, config)  # [num_bands + 1, height, width]
            break
        except (rasterio.errors.RasterioError, OSError) as error:
            if attempt == http.ATTEMPTS - 1 or FINAL_ANSWER.search(f"{error} {error.__cause__}"):
                raise InputError(unreadable(item, config, error)) from error
            time.sleep(RETRY_PAUSE_S * 2**attempt)
            options["CPL_VSIL_CURL_NON_CACHED"] = "/vsicurl/"  # GDAL keeps half an answer for a whole one
    numbers, mask = numbers[:-1], numbers[-1]
    valid = (numbers > 0).all(axis=0) & is_clear(mask, sensor)
    return reflectance(numbers, item, sensor), valid


def load(item: Item, names: Sequence[str], grid: GeoBox, options: dict[str, Any], config: AcquireConfig) -> np.ndarray:
    """Digital numbers of an image's files on a grid [num_names, height, width], 0 beyond the image.

    Raises:
        RasterioError: A file cannot be read.
    """
    import odc.stac

    logging.getLogger("odc.loader").setLevel(logging.CRITICAL)  # what it would say is in our sentence
    with rasterio.Env(**options):
        loaded = odc.stac.load(
            [bare_item(item, names, grid)],
            bands=names,
            geobox=grid,
            resampling="nearest",
            dtype="uint16",
            nodata=0,
            pool=READERS,
            patch_url=signer(config),
        )
    return np.stack([loaded[name].to_numpy()[0] for name in names])


def bare_item(item: Item, names: Sequence[str], grid: GeoBox) -> Item:
    """The image with nothing but the files that are read: what catalogues say of them, and of others, has faults that the files have not."""
    from pystac import Asset, Item, MediaType

    bounds = transform_bounds(str(grid.crs), DEGREES, *grid.boundingbox.bbox)
    assets = {name: Asset(item.assets[name].get_absolute_href() or item.assets[name].href, media_type=MediaType.GEOTIFF) for name in names}
    return Item(item.id, shapely.geometry.mapping(shapely.box(*bounds)), list(bounds), item.datetime, {}, assets=assets)


def unreadable(item: Item, config: AcquireConfig, error: Exception) -> str:
    """The sentence for an image that cannot be read."""
    remedy = "run the same command later, or leave the image out with --without"
    if SENSORS[config.sensor].is_landsat and config.catalogue == "earth_search":
        remedy += (
            "; Landsat lies there in a bucket whose readers need an account and pay, --catalogue planetary_computer has it for nothing"
        )
    return f"image {item.id} of {config.catalogue} cannot be read ({first_sentence(error.__cause__ or error)}); {remedy}"


def is_clear(mask: np.ndarray, sensor: Sensor) -> np.ndarray:
    """Which pixels show the ground: neither cloud nor its shadow."""
    return (mask & QA_PIXEL_UNCLEAR) == 0 if sensor.is_landsat else np.isin(mask, CLEAR_CLASSES)


def reflectance(numbers: np.ndarray, item: Item, sensor: Sensor) -> np.ndarray:
    """Reflectance x 10,000 from digital numbers, 1 to 65,535; the shape stays."""
    if sensor.is_landsat:
        values = np.rint(numbers * np.float32(LANDSAT_SCALE) + LANDSAT_OFFSET)
    else:
        values = numbers.astype(np.int32) + offset_to_remove(item)
    return np.clip(values, 1, LARGEST).astype(np.uint16)
