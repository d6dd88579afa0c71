"""What a raster, a vector file or a table may refer to."""

import os
import zipfile
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given
from hypothesis import strategies as st
from rasterio.errors import RasterioIOError
from rasterio.transform import from_origin

from imagery2flow.run import geofiles
from imagery2flow.run.errors import InputError, MissingInputError
from imagery2flow.run.geofiles import inside, open_raster, read_vector_file


def write_raster(path, value=3):
    profile = {"driver": "GTiff", "width": 4, "height": 4, "count": 1, "dtype": "uint8", "crs": 32618, "transform": from_origin(0, 4, 1, 1)}
    with rasterio.open(path, "w", **profile) as raster:
        raster.write(np.full((1, 4, 4), value, "uint8"))
    return Path(path)


def write_vrt(path, source, attribute='relativeToVRT="1"', tag="SourceFilename", more=""):
    band = f"<VRTRasterBand dataType='Byte' band='1'><SimpleSource><{tag} {attribute}>{source}</{tag}><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
    Path(path).write_text(f"<VRTDataset rasterXSize='4' rasterYSize='4'>{more}{band}</VRTDataset>")
    return Path(path)


def read(path, **options):
    with open_raster(path, "scene", **options) as raster:
        return raster.read(1)


@given(st.text(max_size=30))
def test_a_name_in_a_table_never_leads_out_of_its_folder(name):
    folder = Path("/data/patches")
    try:
        path = inside(folder, name, "manifest")
    except InputError:
        return
    assert Path(os.path.normpath(path)).is_relative_to(folder)


@pytest.mark.parametrize("name", ["a.tif", "deep/a.tif", "deep/../a.tif", "..a.tif"])
def test_a_name_inside_the_folder_is_taken(name):
    assert inside(Path("patches"), name, "manifest") == Path("patches") / name


@pytest.mark.parametrize("name", ["", "..", "../a.tif", "/etc/passwd", "deep/../../a.tif", "a\0.tif"])
def test_a_name_outside_the_folder_is_refused(name):
    with pytest.raises(InputError, match=r"manifest names the file .* which does not lie in patches; make it again"):
        inside(Path("patches"), name, "manifest")


@pytest.mark.parametrize(
    "options",
    [
        {"source": "../a.tif"},
        {"source": "../a.tif", "tag": "SOURCEFILENAME", "attribute": 'RELATIVETOVRT="1"'},  # GDAL does not mind the case
        {"source": "a.tif", "attribute": 'relativeToVRT="0"'},  # relative to the current folder, which is another
        {"source": "in.tif", "more": "<Metadata domain='GEOLOCATION'><MDI key='X_DATASET'>/data/x.tif</MDI></Metadata>"},
        {"source": "in.tif", "more": "<GDALWarpOptions><SourceDataset>/data/x.tif</SourceDataset></GDALWarpOptions>"},
        {"source": "in.tif", "more": "<Step><Argument name='gain_dataset_filename_1'>/data/x.tif</Argument></Step>"},
        {"source": "http://example.org/a.tif"},
        {"source": "vrt://a.tif"},
        {"source": "&lt;VRTDataset/&gt;"},
    ],
)
def test_a_vrt_that_refers_to_other_folders_is_refused_and_read_where_it_is_trusted(tmp_path, options):
    (tmp_path / "in").mkdir()
    write_raster(tmp_path / "in" / "in.tif")
    with pytest.raises(InputError, match="which does not lie in its folder"):
        read(write_vrt(tmp_path / "in" / "a.vrt", **options))


def test_a_trusted_vrt_is_read_and_one_of_its_own_folder_needs_no_trust(tmp_path):
    (tmp_path / "in").mkdir()
    write_raster(tmp_path / "a.tif", 7)
    assert (read(write_vrt(tmp_path / "in" / "a.vrt", "../a.tif"), allow_remote=True) == 7).all()
    write_raster(tmp_path / "in" / "b.tif", 8)
    assert (read(write_vrt(tmp_path / "b.vrt", "in/b.tif")) == 8).all()


def test_links_are_followed(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.tif").symlink_to(write_raster(tmp_path / "a.tif", 9))
    assert (read(write_vrt(tmp_path / "in" / "a.vrt", "link.tif")) == 9).all()


def test_a_file_that_lies_where_a_name_of_gdals_would_is_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("http:/h").mkdir(parents=True)
    write_raster(Path("http:/h/a.tif").absolute(), 4)
    assert (read("http://h/a.tif") == 4).all()
    with pytest.raises(RasterioIOError, match="no such file on this machine"):
        read("/vsimem/a.tif")


def test_only_formats_that_hold_their_own_content_are_opened(tmp_path):
    (tmp_path / "a.asc").write_text("ncols 1\nnrows 1\nxllcorner 0\nyllcorner 0\ncellsize 1\n5\n")
    with pytest.raises(RasterioIOError, match="with --allow_remote only"):
        read(tmp_path / "a.asc")
    with pytest.raises(RasterioIOError, match=r"HFA file$"):  # where there is no such flag
        read(tmp_path / "a.asc", allow_remote=None)
    assert read(tmp_path / "a.asc", allow_remote=True).tolist() == [[5]]


def test_units_in_an_archive_are_read_inside_it(tmp_path, monkeypatch):
    units = gpd.GeoDataFrame({"geocode": ["01"]}, geometry=[shapely.box(0, 0, 1, 1)], crs=32618)
    units.to_file(tmp_path / "units.gpkg")
    with zipfile.ZipFile(tmp_path / "units.zip", "w") as archive:
        archive.write(tmp_path / "units.gpkg", "deep/units.gpkg")
    assert read_vector_file(tmp_path / "units.zip", "units").equals(units)
    monkeypatch.setattr(geofiles, "LARGEST_UNPACKED_BYTES", 1000)
    with pytest.raises(InputError, match=r"for it unpacks to [\d,]+ bytes; unpack it"):
        read_vector_file(tmp_path / "units.zip", "units")


def test_a_table_of_styles_beside_the_one_layer_is_passed_over(tmp_path):
    units = gpd.GeoDataFrame({"geocode": ["01"]}, geometry=[shapely.box(0, 0, 1, 1)], crs=32618)
    units.drop(columns="geometry").to_csv(tmp_path / "a.csv")
    units.to_file(tmp_path / "units.gpkg", layer="tracts")
    import pyogrio

    pyogrio.write_dataframe(units.drop(columns="geometry"), tmp_path / "units.gpkg", layer="layer_styles", append=True)
    assert len(pyogrio.list_layers(tmp_path / "units.gpkg")) == 2
    assert read_vector_file(tmp_path / "units.gpkg", "units").equals(units)


@pytest.mark.parametrize(
    "content", ["", "hello", '{"type": "gdal_streamed_alg", "x": {"type": "FeatureCollection"}}', "<kml/>", '{"a": 1}']
)
def test_what_could_tell_gdal_to_look_elsewhere_is_no_units(tmp_path, content):
    (tmp_path / "units.geojson").write_text(content)
    with pytest.raises(MissingInputError, match="cannot be read as a vector file"):
        read_vector_file(tmp_path / "units.geojson", "units")
