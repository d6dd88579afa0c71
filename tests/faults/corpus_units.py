"""Bad units: outlines, ids and files of vectors."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely
from shapely import affinity

from tests.faults.checking import manifest, num_patches, pixels, pixels_by_centre, same_statistics, values_are
from tests.faults.making import (
    Fault,
    constant_scene,
    folder_for,
    outline,
    put_bytes,
    put_text,
    refused,
    right,
    ring,
    second_layer,
    units,
    zip_bomb,
    zipped,
)
from tests.spoiling import ID, NEXT_ID, UNITS, copy_file, edit_units, put_ids, remove, write

CUT, MODEL = "img_preprocessing", "train_ODPrediction"
SHP = "--shp_path units.shp"
COLUMN = f"units {UNITS}, column GEOID20: 1 ids"
OTHER_FORMAT = f"units {UNITS} cannot be read as a vector file (its content is none of these formats)"
OGR_VRT = (
    '<OGRVRTDataSource><OGRVRTLayer name="u"><SrcDataSource>/vsicurl/ADDRESSu.geojson</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>'
)
GML = (
    '<wfs:FeatureCollection xmlns:wfs="http://www.opengis.net/wfs" xmlns:gml="http://www.opengis.net/gml" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
    'xsi:schemaLocation="http://a ADDRESSwfs?SERVICE=WFS&amp;REQUEST=DescribeFeatureType&amp;TYPENAME=x"><gml:featureMember><x><a>1</a></x></gml:featureMember></wfs:FeatureCollection>'
)
GDAL_COMMAND = '{"type": "gdal_streamed_alg", "command_line": "gdal vector pipeline ! read /vsicurl/ADDRESSu.geojson"}'
LONG_ID = "a" * 300


def bow_tie(shape: shapely.Polygon) -> shapely.Polygon:
    west, south, east, north = shape.bounds
    return shapely.Polygon([(west, south), (east, north), (east, south), (west, north)])


def with_hole(shape: shapely.Polygon) -> shapely.Polygon:
    west, south, east, north = shape.bounds
    box = shapely.box(west, south, east, north)
    return box - shapely.box(west + 300, south + 300, east - 300, north - 300)


def two_parts(shape: shapely.Polygon) -> shapely.MultiPolygon:
    west, south, east, north = shape.bounds
    return shapely.MultiPolygon([shapely.box(west, south, west + 200, north), shapely.box(east - 200, south, east, north)])


def sliver(shape: shapely.Polygon) -> shapely.Polygon:
    x, y = shape.centroid.coords[0]
    return shapely.box(x, y, x + 0.5, y + 0.01)


def mark_antimeridian(table: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Two units at one place east of the antimeridian, one of them by longitudes beyond 180 degrees."""
    boxes = [shapely.box(-179.9, 10.0, -179.8, 10.1), shapely.box(180.1, 10.0, 180.2, 10.1)]
    return gpd.GeoDataFrame({"GEOID20": list(table.GEOID20[:2])}, geometry=boxes, crs=4326)


def both_ways_alike() -> None:
    values_are(7, num_units=2)()
    table = manifest()
    assert len(pixels(ID)) == len(pixels(NEXT_ID)) > 0
    assert table.column_offset.nunique() == table.row_offset.nunique() == 1


def both_overlapping_units_whole() -> None:
    np.testing.assert_array_equal(pixels(ID), pixels(NEXT_ID))
    pixels_by_centre(ID)


def id_is_kept(geocode: str) -> object:
    def check() -> None:
        assert geocode in manifest().index
        assert len(pixels(geocode))

    return check


def sliver_has_its_pixel() -> None:
    assert len(pixels(ID)) in (1, 2)


# fmt: off
OUTLINES = [
    right("an outline that crosses itself", CUT, "", "mended, and said; both triangles are cut", pixels_by_centre, outline(bow_tie)),
    right("an empty outline", CUT, "", "left out, and said; the other 23 are cut", num_patches(23), outline(lambda _: shapely.Polygon())),
    right("a hole", CUT, "", "no pixel of the hole", pixels_by_centre, outline(with_hole)),
    right("two parts", CUT, "", "the pixels of both parts", pixels_by_centre, outline(two_parts)),
    right("heights in the coordinates", CUT, "", "the pixels of the outlines without", same_statistics,
          edit_units(lambda u: u.set_geometry(shapely.force_3d(u.geometry, 12.5)))),
    right("a sliver without the centre of a pixel", CUT, "", "the pixel that it touches", sliver_has_its_pixel, outline(sliver)),
    right("two units at one place", CUT, "", "all pixels for both", both_overlapping_units_whole,
          edit_units(lambda u: u.set_geometry([u.geometry[0], u.geometry[0], *u.geometry[2:]]))),
    right("one unit", CUT, "", "one patch", num_patches(1), edit_units(lambda u: u[:1])),
    right("both notations of longitudes beyond the antimeridian", CUT, "--input_tif_path far.tif", "the same pixels", both_ways_alike,
          constant_scene("far.tif", "EPSG:32601", (160_000, 1_080_000, 220_000, 1_140_000)), edit_units(mark_antimeridian)),
    refused("units 9,000 km away", CUT, "", "no unit ... lies on a scene",
            edit_units(lambda u: u.set_geometry(u.geometry.translate(9_000_000, 0)))),
    refused("a unit 3,000 times too large", CUT, "", "takes ... pixels of scene ... smaller units",
            outline(lambda s: affinity.scale(s, 3_000, 3_000))),
    refused("no unit at all", CUT, "", f"units {UNITS} hold no geometry", edit_units(lambda u: u[:0])),
    refused("lines", MODEL, "", "LineString ... give the tracts", edit_units(lambda u: u.set_geometry(u.boundary))),
    refused("one unit", MODEL, "--drop_unknown_units", "region M1 has 1 units with flows ... fewer than 2", edit_units(lambda u: u[:1])),
]
IDS = [
    refused("ids that are fractions", CUT, "", "the ids are numbers (0.5)", put_ids(dtype="str"), edit_units(lambda u: u.assign(GEOID20=np.arange(len(u)) + 0.5))),
    refused("an id that is a path", CUT, "", f"{COLUMN} cannot be part of a file name (../up)", put_ids("../up")),
    refused("an id with a slash", MODEL, "", f"{COLUMN} cannot be part of a file name (36/061)", put_ids("36/061")),
    refused("an id with a line break", CUT, "", f"{COLUMN} cannot be part of a file name (a\\nb)", put_ids("a\nb")),
    refused("an id that moves the cursor", CUT, "", f"{COLUMN} cannot be part of a file name (\\x1b[2Ja)", put_ids("\x1b[2Ja")),
    refused("an id of 300 letters", CUT, "", "1 ids are longer than 160 bytes (aaaaaaaaaaaaaaaaaaaa...)", put_ids(LONG_ID)),
    right("an id with blanks and letters of other alphabets", CUT, "", "kept as it is", id_is_kept("Łódź 第1区"), put_ids("Łódź 第1区")),
    right("an id that a spreadsheet would run", CUT, "", "kept as it is", id_is_kept("=1+cmd|A0"), put_ids("=1+cmd|A0")),
    right("the id NA", CUT, "", "kept as it is", num_patches(24), put_ids("NA")),
]
FILES = [
    refused("several layers", CUT, "", f"units {UNITS} hold 2 layers (tracts, other); keep one", second_layer()),
    right("a Shapefile", CUT, SHP, "the pixels of the GeoPackage", same_statistics, units(lambda u: u, "units.shp")),
    refused("a Shapefile without .prj", CUT, SHP, "units units.shp state no CRS", units(lambda u: u, "units.shp"), remove(Path("units.prj"))),
    refused("a Shapefile without .dbf", CUT, SHP, "units units.shp have no id column", units(lambda u: u, "units.shp"), remove(Path("units.dbf"))),
    refused("a Shapefile without .shx", CUT, SHP, "units units.shp cannot be read as a vector file", units(lambda u: u, "units.shp"), remove(Path("units.shx"))),
    right("a GeoPackage that is called .shp", CUT, SHP, "read by its content", same_statistics, copy_file(UNITS, "units.shp")),
    right("a Shapefile in an archive", CUT, "--shp_path units.zip", "the pixels of the GeoPackage", same_statistics, units(lambda u: u, "units.shp"),
          zipped("units.zip", {f"in/units.{end}": f"@units.{end}" for end in ("shp", "shx", "dbf", "prj", "cpg")})),
    refused("an archive whose names leave the folder", CUT, "--shp_path units.zip", "units units.zip cannot be read as a vector file ... does not exist", units(lambda u: u, "units.shp"),
            zipped("units.zip", {"../../units.shp": "@units.shp"})),
    refused("an archive that unpacks to gigabytes", CUT, "--shp_path units.zip", "it unpacks to 1,2 ... unpack it", units(lambda u: u, "units.shp"), zip_bomb("units.zip")),
    refused("an archive of a VRT called .shp", CUT, "--shp_path units.zip", "none of the formats that are read", zipped("units.zip", {"a.shp": OGR_VRT})),
    refused("an archive of nothing", CUT, "--shp_path units.zip", "it holds 0 shapefiles", zipped("units.zip", {"a.txt": "hello"})),
    refused("a vector VRT of an address", CUT, "--shp_path units.vrt", "units units.vrt cannot be read as a vector file", put_text("units.vrt", OGR_VRT)),
    refused("the same by the name of a GeoPackage", CUT, "", OTHER_FORMAT, put_text(UNITS, OGR_VRT)),
    refused("a feature server's description", CUT, "", OTHER_FORMAT, put_text(UNITS, "<OGRWFSDataSource><URL>ADDRESSwfs</URL></OGRWFSDataSource>")),
    refused("GML whose schema lies on a server", CUT, "", OTHER_FORMAT, put_text(UNITS, GML)),
    refused("JSON that tells GDAL what to fetch", CUT, "", OTHER_FORMAT, put_text(UNITS, GDAL_COMMAND)),
    refused("an address of units, named", CUT, "--shp_path http://127.0.0.1:9/u.geojson", "do not exist; check the path"),
    refused("a folder in place of units", CUT, "", f"units {UNITS} are a folder; check the path", folder_for(UNITS)),
    refused("a ring of links in place of units", CUT, "", f"units {UNITS} do not exist; check the path", ring(UNITS)),
    refused("units of no bytes", CUT, "", f"units {UNITS} cannot be read as a vector file (it is empty)", put_bytes(UNITS, b"")),
    refused("GeoJSON that ends early", CUT, "", f"units {UNITS} cannot be read as a vector file",
            put_text(UNITS, '{"type": "FeatureCollection", "features": [{"type": "Feature", ')),
    refused("settings that run a program", CUT, "--config set.yaml", "--config set.yaml: ... could not determine a constructor for the tag ... --help", write("set.yaml", "region: !!python/object/apply:os.mkdir [ran]")),
]
# fmt: on
FAULTS: list[Fault] = OUTLINES + IDS + FILES
