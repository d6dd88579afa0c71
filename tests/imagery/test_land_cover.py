"""Areas of classes in units: against values by hand, a loop over pixels, areas on the ellipsoid; tiles; what is refused."""

import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin

from imagery2flow.__main__ import main
from imagery2flow.imagery import land_cover
from imagery2flow.imagery.land_cover import count_land_cover
from imagery2flow.run.errors import BandError, CRSError, InputError

from .helpers import GSD_M, LEFT, TOP, place, quiet, rectangle

PIXEL_M2 = GSD_M**2


def as_units(shapes, crs="EPSG:32618"):
    """Units as ``read_units`` gives them."""
    table = gpd.GeoDataFrame(geometry=list(shapes.values()), index=pd.Index(list(shapes), name="geocode"), crs=crs)
    return table.sort_index()


def count(shapes, *paths, crs="EPSG:32618", ledger=None, **options):
    """The table of ``count_land_cover`` by geocode."""
    return count_land_cover(as_units(shapes, crs), paths, ledger or quiet(), **options).set_index("geocode")


def classes(height, width, seed=0, dtype="uint8"):
    """Codes 0 (no class) and 11, 21, 95 at random [1, height, width]."""
    return np.random.default_rng(seed).choice(np.array([0, 11, 21, 95], dtype), (1, height, width))


def triangles(number, height, width, seed=1):
    """Polygons of every size, some of them partly or wholly beyond a raster of height x width pixels."""
    random = np.random.default_rng(seed)
    corners = random.uniform((-0.3 * width, -0.3 * height), (1.3 * width, 1.3 * height), (number, 1, 2)) + random.normal(
        0, 4, (number, 3, 2)
    )
    return {f"0{index}": shapely.Polygon([place(*corner) for corner in unit]) for index, unit in enumerate(corners)}


def counted_by_loop(shape, codes):
    """Pixels of each class whose centre a shape holds, and of none; the grid goes on beyond the raster [height, width]."""
    found = {}
    left, bottom, right, top = shape.bounds
    for row in range(int((TOP - top) // GSD_M), int((TOP - bottom) // GSD_M) + 1):
        for column in range(int((left - LEFT) // GSD_M), int((right - LEFT) // GSD_M) + 1):
            if shapely.contains_xy(shape, *place(column + 0.5, row + 0.5)):
                inside = 0 <= row < codes.shape[0] and 0 <= column < codes.shape[1]
                code = codes[row, column] if inside else 0
                name = f"class_{code}" if code else "nodata_m2"
                found[name] = found.get(name, 0) + 1
    return found


def test_four_by_four_pixels_by_hand(write_scene, write_units, tmp_path):
    codes = np.array([[[1, 1, 2, 2], [1, 9, 2, 0], [3, 3, 3, 3], [0, 0, 3, 1]]], "uint8")
    raster = write_scene(codes, nodata=0)
    # The first holds the centres of the left two columns, the second those of the upper right 2 x 2, the third none.
    shapes = {"01": rectangle(0, 0, 2, 4), "02": rectangle(2, 0, 1.6, 2.2), "003": rectangle(0.6, 0.6, 0.3, 0.3)}
    units = write_units(shapes)
    assert main(["land_cover", "--units_path", units, "--raster_path", raster, "--output_path", str(tmp_path / "t.csv")]) == 0
    assert (tmp_path / "t.csv").read_text().splitlines() == [
        "geocode,class_1,class_2,class_3,class_9,nodata_m2",
        "003,0.0,0.0,0.0,0.0,0.0",
        "01,2700.0,0.0,1800.0,900.0,1800.0",
        "02,0.0,2700.0,0.0,0.0,900.0",
    ]
    ledger = json.loads((tmp_path / "t.csv.run.json").read_text())["ledger"]
    assert ledger["in"] == {"units": 3} and ledger["out"] == {"classes": 4}
    assert ledger["left_out"] == {"units too small to hold the centre of a pixel: all of their row is 0": ["003"]}
    assert any("2 units have a class on less than 95% of their area (01, 02)" in note for note in ledger["notes"])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32"])
@pytest.mark.parametrize("strip_pixels", [1, 50, 1 << 21])
def test_counts_equal_a_loop_over_pixels(write_scene, monkeypatch, dtype, strip_pixels):
    monkeypatch.setattr(land_cover, "STRIP_PIXELS", strip_pixels)
    codes, shapes = classes(20, 30, dtype=dtype), triangles(40, 20, 30)
    table = count(shapes, write_scene(codes, nodata=0))
    compared = 0
    for geocode, row in table.iterrows():
        expected = counted_by_loop(shapes[geocode], codes[0])
        if set(expected) <= {"nodata_m2"}:
            continue  # may meet no raster: its own area, see below
        assert {name: area / PIXEL_M2 for name, area in row.items() if area} == expected
        compared += 1
    assert compared >= 12


def test_a_code_is_no_class_only_where_the_raster_or_the_user_says_so(write_scene):
    codes, shapes = np.array([[[0, 5], [7, 5]]], "uint8"), {"a": rectangle(0, 0, 2, 2)}
    raster = write_scene(codes)
    assert dict(count(shapes, raster).loc["a"]) == {"class_0": 900, "class_5": 1800, "class_7": 900, "nodata_m2": 0}
    assert dict(count(shapes, raster, nodata=5).loc["a"]) == {"class_0": 900, "class_7": 900, "nodata_m2": 1800}
    masked = write_scene(codes, "masked.tif", mask=np.array([[True, False], [True, True]]))
    assert dict(count(shapes, masked).loc["a"]) == {"class_0": 900, "class_5": 900, "class_7": 900, "nodata_m2": 900}


def test_codes_are_sorted_as_numbers(write_scene):
    codes = np.array([[[100, 9, -3, 20]]], "int16")
    assert list(count({"a": rectangle(0, 0, 4, 1)}, write_scene(codes))) == ["class_-3", "class_9", "class_20", "class_100", "nodata_m2"]


def test_feet_become_metres(write_scene):
    grid = from_origin(2_000_000, 800_000, 10, 20)  # US survey feet
    raster = write_scene(np.full((1, 5, 5), 1, "uint8"), crs="EPSG:2264", transform=grid)
    table = count({"a": shapely.box(2_000_000, 799_940, 2_000_020, 800_000)}, raster, crs="EPSG:2264")
    assert table.class_1["a"] == pytest.approx(6 * 200 * (1200 / 3937) ** 2, abs=0.01)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:4269", "+proj=longlat +R=6371000"])
@pytest.mark.parametrize("latitude", [-60.0, -1.0, 39.0, 84.0])
def test_areas_in_degrees_are_those_on_the_ellipsoid(write_scene, crs, latitude):
    side = 1 / 1200
    grid = from_origin(-78, latitude, side, side)
    raster = write_scene(np.full((1, 240, 240), 40, "uint8"), crs=crs, transform=grid)
    # A row of vertices every pixel, since parallels are no geodesics.
    shape = shapely.segmentize(shapely.box(-78 + 7 * side, latitude - 200 * side, -78 + 90 * side, latitude - 11 * side), side / 10)
    true_m2 = abs(pyproj.CRS(crs).get_geod().geometry_area_perimeter(shape)[0])
    table = count({"a": shape}, raster, crs=crs)
    assert table.class_40["a"] == pytest.approx(true_m2, rel=1e-6)
    assert table.nodata_m2["a"] == 0


def test_a_unit_in_degrees_has_its_own_area_within_its_border_of_pixels(write_scene):
    """A disc of 1 km: what differs is the rounding of its border to whole pixels."""
    zone = gpd.GeoSeries([shapely.Point(*place(0, 0)).buffer(1000)], crs="EPSG:32618").to_crs("EPSG:6933")
    disc = zone.to_crs("EPSG:4326").iloc[0]
    west, _, _, north = disc.bounds
    side = 1 / 12_000
    raster = write_scene(
        np.full((1, 400, 500), 10, "uint8"), crs="EPSG:4326", transform=from_origin(west - 5 * side, north + 5 * side, side, side)
    )
    assert count({"a": disc}, raster, crs="EPSG:4326").class_10["a"] == pytest.approx(zone.area.iloc[0], rel=2e-3)


def test_units_are_laid_over_the_raster_in_its_own_crs(write_scene):
    codes, ledger = classes(60, 60), quiet()
    raster = write_scene(codes, nodata=0)
    shape = shapely.Point(place(30, 30)).buffer(500)
    degrees = gpd.GeoSeries([shape], crs="EPSG:32618").to_crs(4326).iloc[0]
    table = count({"a": degrees}, raster, crs="EPSG:4326", ledger=ledger)
    pd.testing.assert_frame_equal(table, count({"a": shape}, raster))
    assert "units reprojected from EPSG:4326 to EPSG:32618 for scene scene.tif" in ledger.notes


def tiles(write_scene, codes, *extents, **profile):
    """Parts of a raster as files of their own: first row, last row, first column, last column."""
    paths = []
    for number, (top, bottom, left, right) in enumerate(extents):
        grid = from_origin(LEFT + GSD_M * left, TOP - GSD_M * top, GSD_M, GSD_M)
        paths.append(write_scene(codes[:, top:bottom, left:right], f"tile{number}.tif", transform=grid, nodata=0, **profile))
    return paths


def test_tiles_that_overlap_count_as_the_map_that_they_are_cut_from(write_scene):
    codes = classes(40, 60)
    whole, shapes = write_scene(codes, nodata=0), triangles(30, 40, 60)
    parts = tiles(write_scene, codes, (0, 40, 0, 33), (0, 25, 28, 60), (20, 40, 30, 60))
    expected = count(shapes, whole)
    meets_all = (expected.drop(columns="nodata_m2").sum(axis=1) > 0).to_numpy()
    assert meets_all.sum() > 10
    for order in (parts, parts[::-1], [parts[1], parts[2], parts[0]]):
        # Units that meet a corner of the whole but none of its pixels may differ in how their area is measured.
        pd.testing.assert_frame_equal(count(shapes, *order)[meets_all], expected[meets_all])


def test_where_tiles_differ_the_first_that_has_a_class_counts(write_scene):
    first = write_scene(np.array([[[1, 0, 1]]], "uint8"), "first.tif", nodata=0)
    second = write_scene(np.array([[[2, 2, 2, 2, 0]]], "int16"), "second.tif", nodata=0)
    shapes = {"a": rectangle(0, 0, 6, 1)}
    assert dict(count(shapes, first, second).loc["a"]) == {"class_1": 1800, "class_2": 1800, "nodata_m2": 1800}
    assert dict(count(shapes, second, first).loc["a"]) == {"class_2": 3600, "nodata_m2": 1800}


def test_a_finer_tile_gives_the_class_at_the_centre(write_scene):
    """Nine pixels of 10 m for one of 30 m, of which the middle one holds its centre."""
    coarse = write_scene(np.zeros((1, 2, 3), "uint8"), "coarse.tif", nodata=0)
    nine = np.full((3, 3), 8, "uint8")
    nine[1, 1] = 7
    fine = write_scene(np.tile(nine, (2, 3))[None], "fine.tif", transform=from_origin(LEFT, TOP, GSD_M / 3, GSD_M / 3))
    row = count({"a": rectangle(0, 0, 3, 2)}, coarse, fine).loc["a"]
    assert dict(row) == {"class_7": 6 * PIXEL_M2, "nodata_m2": 0}


@pytest.mark.parametrize("strip_pixels", [7, 1 << 21])
def test_a_tile_of_another_grid_and_crs_is_sampled_at_the_centres(write_scene, monkeypatch, strip_pixels):
    """The left half in UTM, the right one in degrees and finer: north of a parallel is 1, south of it 2, in both."""
    monkeypatch.setattr(land_cover, "STRIP_PIXELS", strip_pixels)
    x, y = (array + 0.5 for array in np.meshgrid(np.arange(20), np.arange(30)))
    to_degrees = pyproj.Transformer.from_crs(32618, 4326, always_xy=True)
    _, latitude = to_degrees.transform(LEFT + GSD_M * x, TOP - GSD_M * y)
    parallel = to_degrees.transform(*place(20, 15))[1]
    left = write_scene(np.where(latitude > parallel, 1, 2)[None].astype("uint8"), "left.tif")
    west, north = to_degrees.transform(*place(20, -3))
    side = 1e-4
    top_rows = round((north - parallel) / side)
    right_codes = np.repeat([1, 2], [top_rows, 120])[None, :, None].repeat(90, axis=2).astype("uint16")
    right = write_scene(right_codes, "right.tif", crs="EPSG:4326", transform=from_origin(west, parallel + side * top_rows, side, side))
    row = count({"a": rectangle(5, 5, 30, 20)}, left, right).loc["a"] / PIXEL_M2
    assert row.sum() == 600 and row.nodata_m2 <= 20  # a column of pixels where the border, a meridian, leans
    assert row.class_1 == pytest.approx(300, abs=25) and row.class_2 == pytest.approx(300, abs=25)


def test_units_that_meet_no_raster_keep_their_own_area(write_scene):
    ledger = quiet()
    shapes = {"in": rectangle(1, 1, 2, 2), "out": rectangle(100, 100, 10, 10)}
    table = count(shapes, write_scene(np.full((1, 5, 5), 3, "uint8")), ledger=ledger)
    assert table.class_3["out"] == 0 and table.nodata_m2["out"] == pytest.approx(100 * PIXEL_M2 / 0.9996**2, rel=1e-4)
    assert ledger.left_out == {"units that meet no raster: all of their area is nodata_m2": ["out"]}


def test_a_crs_that_stretches_areas_is_named(write_scene):
    ledger = quiet()
    x, y = pyproj.Transformer.from_crs(32618, 3857, always_xy=True).transform(LEFT, TOP)
    raster = write_scene(np.full((1, 9, 9), 1, "uint8"), crs="EPSG:3857", transform=from_origin(x, y, 10, 10))
    table = count({"a": shapely.box(x, y - 60, x + 60, y)}, raster, crs="EPSG:3857", ledger=ledger)
    assert table.class_1["a"] == 3600
    stretch = 1 / np.cos(np.radians(40.65)) ** 2
    (said,) = [note for note in ledger.notes if note.startswith("areas in EPSG:3857 are ")]
    assert float(said.split()[4]) == pytest.approx(stretch, rel=0.01)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.integers(2, 400))
def test_every_pixel_of_a_unit_is_counted_once(tmp_path_factory, seed, height, width, strip_pixels):
    """Tiles of any extents and order, units of any place: a row adds up to whole pixels, as many as the unit has centres."""
    random, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("property")
    paths = []
    for number in range(random.integers(1, 4)):
        column, row = random.integers(-8, 8, 2)
        profile = {"count": 1, "height": height, "width": width, "dtype": "uint8", "nodata": 0, "crs": "EPSG:32618"}
        paths.append(folder / f"{number}.tif")
        with rasterio.open(paths[-1], "w", transform=from_origin(*place(column, row), GSD_M, GSD_M), **profile) as raster:
            raster.write(random.integers(0, 4, (1, height, width), dtype="uint8"))
    corners = random.uniform(-6, 14, (6, 3, 2))
    shapes = {str(number): shapely.Polygon([place(*corner) for corner in unit]) for number, unit in enumerate(corners)}
    shapes["whole"] = rectangle(-20, -20, 60, 60)
    before, land_cover.STRIP_PIXELS = land_cover.STRIP_PIXELS, strip_pixels
    try:
        ledger = quiet()
        table = count(shapes, *paths, ledger=ledger)
    except InputError as error:
        assert "no pixel of the" in str(error)
        return
    finally:
        land_cover.STRIP_PIXELS = before
    outside = {geocode for ids in ledger.left_out.values() for geocode in ids}
    centres = shapely.points(*place(*(np.indices((60, 60)).reshape(2, -1) - 19.5)))
    for geocode, shape in shapes.items():
        if geocode not in outside:
            assert table.loc[geocode].sum() / PIXEL_M2 == shapely.intersects(shape, centres).sum()


def test_rows_of_units_and_of_strips_change_no_byte(write_scene, write_units, tmp_path, monkeypatch):
    shapes, codes = triangles(15, 20, 30), classes(20, 30)
    raster = write_scene(codes, nodata=0)
    written = []
    for number, names in enumerate((list(shapes), list(shapes)[::-1])):
        monkeypatch.setattr(land_cover, "STRIP_PIXELS", (1 << 21, 33)[number])
        units = write_units({name: shapes[name] for name in names}, f"units{number}.gpkg")
        path = tmp_path / f"{number}.csv"
        assert main(["land_cover", "--units_path", units, "--raster_path", raster, "--output_path", str(path)]) == 0
        written.append(path.read_bytes())
    assert written[0] == written[1]


def test_ids_and_parquet(write_scene, write_units, tmp_path):
    raster, path = write_scene(np.full((1, 4, 4), 8, "uint8")), tmp_path / "t.parquet"
    units = write_units({"007": rectangle(0, 0, 2, 2)}, id_column="zone")
    flags = ["--units_path", units, "--raster_path", raster, "--output_path", str(path), "--id_column", "zone"]
    assert main(["land_cover", *flags]) == 0
    assert pd.read_parquet(path).to_dict("records") == [{"geocode": "007", "class_8": 3600.0, "nodata_m2": 0.0}]


@pytest.mark.parametrize(
    ("values", "profile", "kind", "says"),
    [
        (np.ones((3, 4, 4), "uint8"), {}, BandError, "has 3 bands but classes stand in one; take it out with: gdal_translate -b"),
        (np.ones((1, 4, 4), "float32"), {}, InputError, "holds float32 but class codes are whole numbers"),
        (np.ones((1, 4, 4), "complex64"), {}, InputError, "has complex pixels (complex64)"),
        (np.ones((1, 4, 4), "uint8"), {"crs": None}, CRSError, "states no CRS"),
        (np.zeros((1, 4, 4), "uint8"), {"nodata": 0}, InputError, "no pixel of the 1 units has a class in the rasters"),
        (np.arange(1600, dtype="uint16").reshape(1, 40, 40), {}, InputError, "hold 1,600 different codes, which no map of classes has"),
        (
            np.ones((1, 4, 4), "uint8"),
            {"crs": "EPSG:4326", "transform": rasterio.Affine(1e-3, 1e-4, -75.1, 1e-4, -1e-3, 40.7)},
            InputError,
            "is a turned grid in degrees",
        ),
    ],
)
def test_rasters_of_no_classes_are_refused(write_scene, values, profile, kind, says):
    with pytest.raises(kind) as refusal:
        count({"a": rectangle(0, 0, 40, 40)}, write_scene(values, **profile))
    assert says in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"--raster_path": "absent.tif"}, "scene absent.tif does not exist; check the path given to --raster_path"),
        ({"--raster_path": "units.gpkg"}, "scene units.gpkg cannot be opened as a raster"),
        ({"--output_path": "land_cover.txt"}, "--output_path land_cover.txt must end in .csv"),
        ({"--units_path": "absent.gpkg"}, "units absent.gpkg do not exist"),
        ({"--units_path": "points.gpkg"}, "land cover needs polygons but points.gpkg hold Point; give the tracts"),
        ({"--units_path": "far.gpkg"}, "no unit of far.gpkg lies on a scene"),
        ({"--raster_path": None}, "raster_path"),
    ],
)
def test_bad_settings_are_one_sentence(write_scene, write_units, tmp_path, monkeypatch, capsys, flags, says):
    monkeypatch.chdir(tmp_path)
    write_scene(np.ones((1, 4, 4), "uint8"))
    write_units({"a": rectangle(0, 0, 2, 2)})
    write_units({"a": shapely.Point(place(1, 1))}, "points.gpkg")
    write_units({"a": rectangle(9_000, 0, 2, 2)}, "far.gpkg")
    given_flags = {"--units_path": "units.gpkg", "--raster_path": "scene.tif", "--output_path": "land_cover.csv"} | flags
    try:
        status = main(["land_cover", *[word for flag, value in given_flags.items() if value is not None for word in (flag, value)]])
    except SystemExit as end:
        status = end.code
    assert status == 2 and says in capsys.readouterr().err.splitlines()[-1]
    assert not Path("land_cover.csv").exists()
