"""A STAC catalogue of this machine, with images that are made."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import shapely
from affine import Affine
from rasterio.io import MemoryFile
from rasterio.warp import transform_bounds

if TYPE_CHECKING:
    from tests.sources.conftest import FileServer

LEFT_M, TOP_M = 500_000, 3_600_000  # of the imagery, in zone 16
SIDE = 300  # pixels of an image, more than a block has
UNITS_M = (LEFT_M + 203, TOP_M - 2897, LEFT_M + 2895, TOP_M - 207)  # 27 rows and columns of pixels short of the images
VEGETATION, CLOUD, SHADOW = 4, 9, 3
NAMES_ELSEWHERE = {"blue": "B02", "green": "B03", "red": "B04", "nir": "B08", "scl": "SCL"}
COMMON_NAMES = {"B02": "blue", "B03": "green", "B04": "red", "B08": "nir"}
EXTENSIONS = ("eo/v1.1.0", "raster/v1.1.0", "projection/v1.1.0")


def image(values: np.ndarray, crs: str, left: float, top: float, gsd_m: float) -> bytes:
    with MemoryFile() as memory:
        shape = {"height": values.shape[0], "width": values.shape[1], "count": 1, "dtype": values.dtype}
        transform = Affine(gsd_m, 0, left, 0, -gsd_m, top)
        with memory.open(
            driver="GTiff", crs=crs, transform=transform, nodata=0, tiled=True, blockxsize=64, blockysize=64, **shape
        ) as dataset:
            dataset.write(values, 1)
        return memory.read()


class Catalogue:
    """A STAC API with one page of items."""

    def __init__(self, server: FileServer) -> None:
        self.server, self.features = server, []
        links = [{"rel": "search", "href": f"{server.url}/stac/search", "type": "application/geo+json", "method": "GET"}]
        conforms = ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"]
        root = {"type": "Catalog", "id": "here", "stac_version": "1.0.0", "description": "-", "links": links, "conformsTo": conforms}
        server.files["/stac"] = json.dumps(root).encode()
        self.publish()

    def publish(self) -> None:
        answer = {"type": "FeatureCollection", "features": self.features, "links": []}
        self.server.files["/stac/search"] = json.dumps(answer).encode()

    def add(
        self, name, arrays, day="2020-07-01", crs="EPSG:32616", left=LEFT_M, top=TOP_M, gsd_m=10, collection="sentinel-2-l2a", **properties
    ):
        """Publishes an item whose assets are ``arrays`` by name; the mask may be coarser."""
        height, width = next(iter(arrays.values())).shape
        bounds = transform_bounds(crs, "EPSG:4326", left, top - height * gsd_m, left + width * gsd_m, top)
        assets = {}
        for key, values in arrays.items():
            path, coarser = f"/{name}/{key}.tif", width // values.shape[1]
            self.server.files[path] = image(values, crs, left, top, gsd_m * coarser)
            assets[key] = {
                "href": f"{self.server.url}{path}",
                "type": "image/tiff; application=geotiff; profile=cloud-optimized",
                "roles": ["data", "reflectance"],
                "eo:bands": [{"name": key, "common_name": COMMON_NAMES.get(key, key)}],
                "raster:bands": [
                    {"nodata": 0, "data_type": "uint16", "spatial_resolution": gsd_m * coarser, "scale": 0.0001, "offset": -0.1}
                ],
                "proj:shape": list(values.shape),
                "proj:transform": [gsd_m * coarser, 0, left, 0, -gsd_m * coarser, top],
            }
        # What real items carry besides, faults included: the same band in another format and without a name, a picture, a file that is no image.
        elsewhere = f"{self.server.url}/elsewhere"
        assets["red-jp2"] = {
            **next(iter(assets.values())),
            "href": f"{elsewhere}.jp2",
            "type": "image/jp2",
            "eo:bands": [{"common_name": "red"}],
        }
        colours = [{"name": name, "common_name": name} for name in ("red", "green", "blue")]
        assets["visual"] = {"href": f"{elsewhere}.tif", "type": "image/tiff; application=geotiff", "roles": ["visual"], "eo:bands": colours}
        assets["thumbnail"] = {"href": f"{elsewhere}.jpg", "type": "image/jpeg", "roles": ["thumbnail"]}
        assets["metadata"] = {"href": f"{elsewhere}.xml", "type": "application/xml", "roles": ["metadata"]}
        given = {
            "proj:epsg": int(crs.removeprefix("EPSG:")),
            "platform": "sentinel-2a",
            "eo:cloud_cover": 10.0,
            **{key.replace("__", ":"): value for key, value in properties.items()},
        }
        self.features.append(
            {
                "type": "Feature",
                "stac_version": "1.0.0",
                "stac_extensions": [f"https://stac-extensions.github.io/{part}/schema.json" for part in EXTENSIONS],
                "id": name,
                "collection": collection,
                "geometry": shapely.geometry.mapping(shapely.box(*bounds)),
                "bbox": bounds,
                "properties": {"datetime": f"{day}T16:00:00Z", **given},
                "assets": assets,
                "links": [],
            }
        )
        self.publish()


def sentinel2(red, mask=VEGETATION, shape=(SIDE, SIDE)):
    """Bands that differ by a thousand, and the classes at half the resolution."""
    red = np.broadcast_to(np.uint16(red), shape)
    bands = {
        name: np.where(red > 0, red + 1000 * step, 0).astype("uint16") for step, name in ((1, "blue"), (2, "green"), (0, "red"), (3, "nir"))
    }
    coarse = tuple(side // 2 for side in shape)
    return {**bands, "scl": np.array(np.broadcast_to(np.uint8(mask), coarse))}
