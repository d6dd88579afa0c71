"""Bad scenes, rasters and patches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from tests.faults.checking import num_patches, same_statistics, statistics, values_are
from tests.faults.making import (
    OUTSIDE,
    Fault,
    constant_scene,
    flip_bits,
    folder_for,
    huge_scene,
    put_bytes,
    put_text,
    refused,
    right,
    ring,
    scene,
    turned_scene,
    vrt,
)
from tests.spoiling import MANIFEST, PATCH, PATCHES, SCENE, copy_file, put, remove, rewrite

CUT, TRAIN, EMBED, LAND, MAP = "img_preprocessing", "train_img_encoder", "get_img_embedding", "land_cover", "flow_map"
NOT_HERE, TRUST = "which does not lie in its folder", "--allow_remote"
VRT = "--input_tif_path data/M1/mosaic.vrt"
MOSAIC = "data/M1/mosaic.vrt"
WMS = (
    '<GDAL_WMS><Service name="TMS"><ServerUrl>ADDRESS${z}/${x}/${y}.png</ServerUrl></Service><DataWindow><UpperLeftX>0</UpperLeftX><UpperLeftY>0</UpperLeftY>'
    "<LowerRightX>9</LowerRightX><LowerRightY>-9</LowerRightY><SizeX>100</SizeX><SizeY>100</SizeY></DataWindow><BandsCount>3</BandsCount></GDAL_WMS>"
)
OVERVIEW = '<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{}</MDI></Metadata></PAMDataset>'
PROGRAM = "<PixelFunctionType>f</PixelFunctionType><PixelFunctionLanguage>Python</PixelFunctionLanguage><PixelFunctionCode>open('ran', 'w')</PixelFunctionCode>"


def half_nan(values: np.ndarray) -> np.ndarray:
    """5 in every other column, NaN between."""
    columns = np.arange(values.shape[2]) % 2 == 0
    return np.broadcast_to(np.where(columns, 5.0, np.nan), values.shape).astype("float32")


def one_pixel() -> None:
    num_patches(1, rows=24)()
    assert statistics()["num_valid_pixels"] == 1


def only_fives() -> None:
    new, good = statistics(), statistics(PATCHES)
    assert all(band["mean"] == 5 for band in new["bands"])
    assert 0.3 < new["num_valid_pixels"] / good["num_valid_pixels"] < 0.7


def every_patch_has_a_vector() -> None:
    table = pd.read_csv("new.csv", dtype={"geocode": str})
    assert sorted(table.geocode) == sorted(path.stem.rsplit("_", 1)[1] for path in Path(PATCHES).glob("*.tif"))


# fmt: off
SCENES = [
    refused("flipped bits in pixels of LZW", CUT, "", f"scene {SCENE} cannot be read ... copy it again", scene(compress="lzw"), flip_bits(SCENE)),
    refused("a file of no bytes", CUT, "", f"scene {SCENE} cannot be opened as a raster (it is empty)", put_bytes(SCENE, b"")),
    refused("complex pixels", CUT, "", f"scene {SCENE} has complex pixels (complex64)", scene(change=lambda v: v.astype("complex64"))),
    right("a scene of one pixel", CUT, "", "one patch of that pixel; the other units are named as outside", one_pixel, scene(change=lambda v: v[:, :1, :1])),
    refused("100,000 x 100,000 declared, no pixel stored, nodata 0", CUT, "", "all 24 units have too few valid pixels", huge_scene(0)),
    right("100,000 x 100,000 declared, no pixel stored, no nodata value", CUT, "", "zeros, in the memory of the patches", values_are(0), huge_scene(None)),
    right("a grid turned by a quarter", CUT, "", "the pixels of the scene that is not turned", same_statistics, turned_scene()),
    right("a scene in degrees", CUT, "", "its one value in every patch", values_are(7),
          constant_scene("degrees.tif", "EPSG:4326", None), copy_file("degrees.tif", SCENE)),
    right("scenes in two CRSs", CUT, f"--input_tif_path {SCENE} far.tif", "every unit from the scene that it lies on", same_statistics,
          constant_scene("far.tif", "EPSG:32619", (300_000, 4_300_000, 312_000, 4_312_000))),
    right("pixels that are NaN", CUT, "", "they count as missing", only_fives, scene(change=half_nan)),
    right("a GeoTIFF that is called .jpg", CUT, "--input_tif_path scene.jpg", "read by its content", same_statistics, copy_file(SCENE, "scene.jpg")),
    refused("an image without a place", CUT, "--input_tif_path scene.png", "scene scene.png states no CRS",
            scene("scene.png", driver="PNG", crs=None, transform=None, compress=None, tiled=None, blockxsize=None, blockysize=None)),
    refused("a folder in place of a scene", CUT, "", f"scene {SCENE} is a folder; check the path", folder_for(SCENE)),
    refused("a ring of links in place of a scene", CUT, "", f"scene {SCENE} does not exist", ring(SCENE)),
    refused("a name of 300 letters", CUT, f"--input_tif_path {'a' * 300}.tif", "does not exist"),
    refused("a patch of 60,000 x 60,000 pixels", CUT, "--mode grid --size 60000", "unit r0000c0000 takes 60,000 x 60,000 pixels ... smaller units", huge_scene(None)),
]
REFERENCES = [
    right("a VRT of a file beside it", CUT, VRT, "the pixels of that file", same_statistics, vrt(MOSAIC, "scene.tif", relative=1)),
    refused("a VRT of a file in another folder", CUT, VRT, f"scene {MOSAIC} refers to {OUTSIDE}, {NOT_HERE} ... {TRUST}", vrt(MOSAIC, OUTSIDE, relative=1)),
    right("that VRT with --allow_remote", CUT, f"{VRT} --allow_remote", "the pixels of that file", same_statistics,
          copy_file(SCENE, "data/outside.tif"), vrt(MOSAIC, OUTSIDE, relative=1)),
    refused("a VRT of an absolute path elsewhere", CUT, VRT, f"refers to /etc/passwd, {NOT_HERE}", vrt(MOSAIC, "/etc/passwd")),
    refused("a VRT of an address", CUT, VRT, f"refers to /vsicurl/http:// ... {NOT_HERE}", vrt(MOSAIC, "/vsicurl/ADDRESSx.tif")),
    refused("a VRT of an object store", CUT, VRT, f"refers to /vsis3/bucket/x.tif, {NOT_HERE}", vrt(MOSAIC, "/vsis3/bucket/x.tif")),
    refused("a VRT of a VRT that leaves the folder", CUT, VRT, f"scene {MOSAIC} refers to {OUTSIDE}, {NOT_HERE}",
            vrt(MOSAIC, "inner.vrt", relative=1), vrt("data/M1/inner.vrt", OUTSIDE, relative=1)),
    refused("a VRT of itself", CUT, VRT, "refers to itself by way of mosaic.vrt", vrt(MOSAIC, "mosaic.vrt", relative=1)),
    refused("a VRT with a program in Python", CUT, VRT, "holds a program, which is never run",
            vrt(MOSAIC, "scene.tif", relative=1, extra=PROGRAM, kind=' subClass="VRTDerivedRasterBand"')),
    refused("a program in Python with --allow_remote", CUT, f"{VRT} --allow_remote", f"scene {MOSAIC} cannot be",
            vrt(MOSAIC, "scene.tif", relative=1, extra=PROGRAM, kind=' subClass="VRTDerivedRasterBand"')),
    refused("a VRT that is no XML", CUT, VRT, "is no XML", put_text(MOSAIC, "<VRTDataset rasterXSize='9'")),
    refused("a VRT whose source is gone", CUT, VRT, f"scene {MOSAIC} cannot be read", vrt(MOSAIC, "gone.tif", relative=1)),
    refused("a VRT of a map server's description beside it", CUT, VRT, "refers to wms.xml, but it is no GeoTIFF",
            vrt(MOSAIC, "wms.xml", relative=1), put_text("data/M1/wms.xml", WMS)),
    refused("a map server's description", CUT, "", f"scene {SCENE} cannot be opened ... {TRUST} only", put_text(SCENE, WMS)),
    refused("overviews on a server", CUT, "", f"scene {SCENE} refers to /vsicurl/http:// ... {NOT_HERE}",
            put_text(f"{SCENE}.aux.xml", OVERVIEW.format("/vsicurl/ADDRESSx.ovr"))),
    refused("overviews in another folder", CUT, "", f"scene {SCENE} refers to HERE/outside.tif, {NOT_HERE}",
            copy_file(SCENE, "outside.tif"), put_text(f"{SCENE}.aux.xml", OVERVIEW.format("HERE/outside.tif"))),
    refused("a file on a server, named", CUT, "--input_tif_path /vsicurl/http://127.0.0.1:9/x.tif", f"is no file of this machine ... {TRUST}"),
    refused("an address, named", CUT, "--input_tif_path http://127.0.0.1:9/x.tif", f"is no file of this machine ... {TRUST}"),
    refused("a raw part of a file, named", CUT, f"--input_tif_path GTIFF_RAW:{SCENE}", f"is no file of this machine ... {TRUST}"),
    refused("a file in an archive, named", CUT, "--input_tif_path /vsizip/a.zip/x.tif", f"is no file of this machine ... {TRUST}"),
    refused("a VRT of a file in another folder", LAND, f"--raster_path {MOSAIC}", f"refers to {OUTSIDE}, {NOT_HERE}", vrt(MOSAIC, OUTSIDE, relative=1)),
    refused("an address, named", LAND, "--raster_path http://127.0.0.1:9/x.tif", f"is no file of this machine ... {TRUST}"),
    refused("classes that are fractions", LAND, "", "holds float32 but class codes are whole numbers", scene("data/M1/land_use.tif", change=lambda v: v[:1].astype("float32"))),
    refused("a VRT of an address", MAP, f"--scene_path {MOSAIC}", f"refers to /vsicurl/http:// ... {NOT_HERE}", vrt(MOSAIC, "/vsicurl/ADDRESSx.tif")),
    refused("a map server's description", MAP, "", f"scene {SCENE} cannot be opened ... {TRUST} only", put_text(SCENE, WMS)),
]
PATCH_FAULTS = [
    refused("a manifest that leaves the folder", TRAIN, "", f"{MANIFEST} names the file '../../scene.tif', which does not lie in {PATCHES}",
            put(MANIFEST, "path", "../../scene.tif")),
    refused("a manifest with an absolute path", EMBED, "", f"{MANIFEST} names the file '/etc/passwd'", put(MANIFEST, "path", "/etc/passwd")),
    refused("a manifest without a path", EMBED, "", f"{MANIFEST} has written patches without a unit or a path", put(MANIFEST, "path", "")),
    refused("a manifest of other sizes", TRAIN, "", "pixels but manifest.csv says", put(MANIFEST, "width", "3")),
    right("a manifest of absurd sizes", EMBED, "", "the sizes that the patches have", every_patch_has_a_vector, put(MANIFEST, "width", "1000000000000")),
    refused("a VRT of an address among patches", TRAIN, "", f"refers to /vsicurl/http:// ... {NOT_HERE}", remove(Path(MANIFEST)),
            vrt(f"{PATCHES}/a_000.vrt", "/vsicurl/ADDRESSx.tif")),
    refused("a ring of links in place of a patch", TRAIN, "", f"1 patches of {MANIFEST} are gone", ring(PATCH)),
    refused("a patch of no bytes", EMBED, "", f"patch {PATCH} cannot be opened (it is empty)", put_bytes(PATCH, b"")),
    refused("flipped bits in a patch", EMBED, "", f"{PATCH} cannot be read", rewrite(PATCH, compress="lzw"), flip_bits(PATCH)),
]
# fmt: on
FAULTS: list[Fault] = SCENES + REFERENCES + PATCH_FAULTS
