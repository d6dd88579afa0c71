import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from rasterio.transform import from_origin

from imagery2flow.imagery.scene import open_scene
from imagery2flow.imagery.units import mend, point_windows, read_units, to_scene_crs, zone_windows
from imagery2flow.run.errors import CRSError, InputError, MissingInputError, TableError

from .helpers import GSD_M, noise, place, quiet, rectangle

SQUARE = rectangle(0, 0, 2, 2)


@pytest.fixture
def scene(write_scene):
    """10 x 8 pixels of 30 m."""
    return open_scene(write_scene(noise(1, 8, 10)))


def windows(scene, *shapes, context_m=None):
    return zone_windows(gpd.GeoSeries(list(shapes), crs=scene.crs), scene, context_m).tolist()


@pytest.mark.parametrize("column", ["GEOID20", "GEOID", "geocode", "GEOID10"])
def test_units_are_sorted_by_id_and_ids_are_text_with_leading_zeros(write_units, column):
    path = write_units({"09": SQUARE, "01": rectangle(2, 0, 2, 2), "10": rectangle(4, 0, 2, 2)}, id_column=column)
    ledger = quiet()
    units = read_units(path, None, ledger)
    assert list(units.index) == ["01", "09", "10"]
    assert units.index.name == "geocode"
    assert units.geometry["01"].equals(rectangle(2, 0, 2, 2))
    assert [str(path) for path in ledger.inputs] == [path]


def test_the_id_column_can_be_named(write_units):
    path = write_units({"a": SQUARE}, id_column="name")
    assert list(read_units(path, "name", quiet()).index) == ["a"]


def test_without_id_column_the_columns_that_are_there_are_named(write_units):
    path = write_units({"a": SQUARE}, id_column="name")
    with pytest.raises(
        TableError, match=rf"units {path} have no id column GEOID20 or .*; their columns are name: name one with --id_column"
    ):
        read_units(path, None, quiet())
    with pytest.raises(TableError, match="have no id column tract"):
        read_units(path, "tract", quiet())


def test_repeated_ids_are_refused(tmp_path):
    path = tmp_path / "units.gpkg"
    gpd.GeoDataFrame({"GEOID": ["a", "b", "a"]}, geometry=[SQUARE] * 3, crs=32618).to_file(path)
    with pytest.raises(TableError, match=rf"units {path}, column GEOID: 1 ids occur more than once \(a\); dissolve or rename"):
        read_units(path, None, quiet())


def test_ids_that_are_numbers_are_refused(write_units):
    path = write_units({1001: SQUARE, 1002: SQUARE})
    with pytest.raises(TableError, match=rf"units {path}, column GEOID20: the ids are numbers \(1001\), .*store them as text"):
        read_units(path, None, quiet())


@pytest.mark.parametrize("empty", [None, "", "  "])
def test_empty_ids_are_refused(write_units, empty):
    path = write_units({"a": SQUARE, empty: SQUARE})
    with pytest.raises(TableError, match=rf"units {path}, column GEOID20: .*1 ids are empty; give every unit an id"):
        read_units(path, None, quiet())


@pytest.mark.parametrize("unfit", ["36/061", "a\\b", "../up", ".hidden", " a", "a "])
def test_ids_that_cannot_be_part_of_a_file_name_are_refused(write_units, unfit):
    path = write_units({unfit: SQUARE, "b": SQUARE})
    with pytest.raises(TableError, match=rf"units {path}, column GEOID20: 1 ids cannot be part of a file name .*; use letters"):
        read_units(path, None, quiet())


def test_all_faults_of_the_ids_are_told_at_once(tmp_path):
    path = tmp_path / "units.gpkg"
    gpd.GeoDataFrame({"GEOID": ["a/b", "c", "c", None]}, geometry=[SQUARE] * 4, crs=32618).to_file(path)
    with pytest.raises(
        TableError, match=r"3 faults: 1 ids are empty.*1 ids occur more than once \(c\).*1 ids cannot be .* \(a/b\)"
    ) as caught:
        read_units(path, None, quiet())
    assert "\n" not in str(caught.value)


def test_units_without_crs_are_refused(write_units):
    path = write_units({"a": SQUARE}, crs=None)
    with pytest.raises(CRSError, match=rf"units {path} state no CRS; write it into the file"):
        read_units(path, None, quiet())


def test_a_missing_and_a_broken_file_are_refused(tmp_path):
    with pytest.raises(MissingInputError, match=rf"units {tmp_path}/none.gpkg do not exist; check the path"):
        read_units(tmp_path / "none.gpkg", None, quiet())
    (tmp_path / "broken.gpkg").write_text("no vector file")
    with pytest.raises(MissingInputError, match=r"broken.gpkg cannot be read as a vector file .*; name a GeoPackage"):
        read_units(tmp_path / "broken.gpkg", None, quiet())


def test_a_table_without_geometries_is_refused(tmp_path):
    pd.DataFrame({"GEOID": ["a"]}).to_csv(tmp_path / "units.csv", index=False)
    with pytest.raises(InputError, match=r"hold a table without geometries; name a file with polygons or points"):
        read_units(tmp_path / "units.csv", None, quiet())


def test_units_without_geometry_are_left_out_with_a_line_in_the_ledger(write_units):
    ledger = quiet()
    units = read_units(write_units({"a": SQUARE, "none": None, "empty": shapely.Polygon()}), None, ledger)
    assert list(units.index) == ["a"]
    assert ledger.left_out == {"without geometry in the units file": ["empty", "none"]}
    with pytest.raises(TableError, match="hold no geometry"):
        read_units(write_units({"a": None}, "empty.gpkg"), None, quiet())


def test_invalid_geometries_are_mended_and_noted(write_units):
    bow_tie = shapely.Polygon([place(0, 0), place(4, 4), place(4, 0), place(0, 4)])
    ledger = quiet()
    units = read_units(write_units({"a": SQUARE, "bow": bow_tie}), None, ledger)
    assert units.geometry.is_valid.all()
    assert units.geometry["bow"].area == pytest.approx(8 * GSD_M**2)  # two triangles of base 4 and height 2 pixels
    assert units.geometry["a"].equals(SQUARE)
    assert ledger.notes == ["1 invalid geometries were mended: bow"]


def test_units_in_the_crs_of_the_scene_are_left_as_they_are(scene, write_units):
    ledger = quiet()
    units = read_units(write_units({"a": SQUARE}), None, ledger)
    assert to_scene_crs(units, scene, ledger)["a"].equals(SQUARE)
    assert ledger.notes == []


def test_units_in_another_crs_are_reprojected_and_that_is_noted(scene, write_units):
    ledger = quiet()
    degrees = gpd.GeoSeries([SQUARE], crs=32618).to_crs(4326)[0]
    units = read_units(write_units({"a": degrees}, crs="EPSG:4326"), None, ledger)
    assert shapely.equals_exact(to_scene_crs(units, scene, ledger)["a"], SQUARE, tolerance=1e-3)
    assert ledger.notes == ["units reprojected from EPSG:4326 to EPSG:32618 for scene scene.tif"]


def test_a_scene_without_crs_is_refused(write_scene, write_units):
    path = write_scene(noise(1, 4, 4), crs=None)
    units = read_units(write_units({"a": SQUARE}), None, quiet())
    with pytest.raises(CRSError, match=rf"scene {path} states no CRS, .*assign one with: rio edit-info"):
        to_scene_crs(units, open_scene(path), quiet())


def test_the_window_of_a_unit_is_its_bounding_box_in_whole_pixels(scene):
    assert windows(scene, rectangle(2, 3, 4, 1)) == [[2, 3, 4, 1]]
    assert windows(scene, rectangle(2.5, 3.9, 1.6, 0.2)) == [[2, 3, 3, 2]]
    assert windows(scene, rectangle(-3, -2, 2, 1)) == [[-3, -2, 2, 1]]
    assert windows(scene, rectangle(2 - 1e-8, 3 - 1e-8, 4 + 2e-8, 1 + 2e-8)) == [[2, 3, 4, 1]]  # rounding adds no pixels
    assert windows(scene, rectangle(5.2, 6.2, 1e-9, 1e-9)) == [[5, 6, 1, 1]]


def test_a_margin_in_metres_widens_the_window(scene):
    assert windows(scene, rectangle(2, 3, 4, 1), context_m=0.0) == [[2, 3, 4, 1]]
    assert windows(scene, rectangle(2, 3, 4, 1), context_m=60.0) == [[0, 1, 8, 5]]
    assert windows(scene, rectangle(2, 3, 4, 1), context_m=10.0) == [[1, 2, 6, 3]]


def test_a_margin_in_metres_is_converted_to_degrees(write_scene):
    # 60 degrees north: a pixel of .001 degrees is 55.66 m wide and 111.32 m high.
    degrees = open_scene(write_scene(noise(1, 10, 10), crs="EPSG:4326", transform=from_origin(10, 60.005, 0.001, 0.001)))
    centre = shapely.box(10.004, 59.999, 10.006, 60.001)
    assert windows(degrees, centre, context_m=111.0) == [[2, 3, 6, 4]]


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_the_square_around_a_point_is_centred_as_well_as_whole_pixels_allow(scene, size):
    positions = [(4.5, 3.5), (4.1, 3.9), (4.9, 3.2), (4.0, 3.0)]
    points = gpd.GeoSeries([shapely.Point(place(*position)) for position in positions], crs=scene.crs)
    found = point_windows(points, scene, size)
    assert (found[:, 2:] == size).all()
    off_centre = found[:, :2] + size / 2 - np.array(positions)
    assert np.abs(off_centre).max() <= 0.5 + 1e-6


def test_points_mode_refuses_polygons(scene):
    with pytest.raises(InputError, match="--mode points needs points but the units hold Polygon; use --mode zones"):
        point_windows(gpd.GeoSeries([SQUARE], crs=scene.crs), scene, 4)


def test_of_a_mended_polygon_the_areas_are_kept_and_not_the_line_of_a_spike(write_units):
    spiked = shapely.Polygon([(0, 0), (30, 0), (30, 30), (30, 60), (30, 30), (0, 30)])
    assert shapely.make_valid(spiked).geom_type == "GeometryCollection"
    line = shapely.GeometryCollection([shapely.LineString([(0, 0), (9, 9)]), shapely.Polygon([(0, 0), (9, 9), (9, 0), (0, 9)])])
    ledger = quiet()
    units = read_units(write_units({"a": SQUARE, "spiked": spiked}), None, ledger)
    assert units.geometry["spiked"].equals(shapely.box(0, 0, 30, 30))
    assert units.geometry["a"].equals(SQUARE)
    assert ledger.notes == ["1 invalid geometries were mended: spiked"]
    assert mend(line).geom_type == "GeometryCollection"  # what was no polygon is not made one
    assert mend(shapely.Polygon([(0, 0), (9, 9), (0, 0), (9, 9)])).area == 0
