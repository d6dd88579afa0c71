"""The one place that opens rasters and vector files of others, so that a file reaches nothing but what lies beside it.

What a user names is trusted to be what is meant: any file of this machine. What a file refers to is not: a VRT, an overview or a mask may name other files and
addresses, and GDAL follows. Only formats that hold their own content are read, known by their first bytes and opened by that format's reader alone; of a VRT every file
that it names is looked at first. ``--allow_remote`` lifts this for scenes and rasters. Python in a VRT never runs. Symbolic links are the user's own and are followed.
"""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

from imagery2flow.run.errors import InputError, MissingInputError, as_clause, first_sentence, shown

if TYPE_CHECKING:
    import geopandas as gpd

NO_PYTHON = {"GDAL_VRT_ENABLE_PYTHON": "NO"}
# No file on a server has this ending: GDAL asks none.
LOCAL_ONLY = NO_PYTHON | {"CPL_VSIL_CURL_ALLOWED_EXTENSIONS": "{none}"}
RASTER_DRIVERS = {
    b"II*\0": "GTiff",
    b"MM\0*": "GTiff",
    b"II+\0": "GTiff",
    b"MM\0+": "GTiff",
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"\0\0\0\x0cjP  ": "JP2OpenJPEG",
    b"\xff\x4f\xff\x51": "JP2OpenJPEG",
    b"EHFA_HEADER_TAG": "HFA",
    b"<VRTDataset": "VRT",
}
RASTER_FORMATS = "GeoTIFF, VRT, JPEG, PNG, JPEG 2000 or HFA"
TRUST = "bring everything into that folder, or pass --allow_remote if you trust the file"
VECTOR_STARTS = (b"SQLite format 3\0", b"\0\0\x27\x0a", b"fgb")  # GeoPackage, Shapefile, FlatGeobuf
VECTOR_FORMATS = "a GeoPackage, Shapefile or GeoJSON"
GEOJSON = re.compile(rb'"type"\s*:\s*"(FeatureCollection|Feature|Topology)"')
GDAL_COMMAND = b"gdal_streamed_alg"  # JSON that tells GDAL what to read and from where
SIGNATURE_BYTES, HEAD_BYTES = 1 << 10, 1 << 16
LARGEST_UNPACKED_BYTES = 1 << 30  # of what an archive says that it holds; the tracts of the largest state are a tenth of it
REFERRING = ("filename", "dataset", "path")  # in the names of XML elements and arguments that name a file
REFERRING_KEYS = ("X_DATASET", "Y_DATASET", "OVERVIEW_FILE")  # of metadata
VIRTUAL = re.compile(
    r"/vsi|<|[A-Za-z][A-Za-z0-9_+.-]*:"
)  # how a name begins that is no path: file systems of GDAL's, XML, addresses, connections


def raster_env(allow_remote: bool | None = False, **options: Any) -> rasterio.Env:
    """GDAL's options while rasters of others are open."""
    return rasterio.Env(**options, **(NO_PYTHON if allow_remote else LOCAL_ONLY))


def open_raster(path: str | Path, what: str, allow_remote: bool | None = False) -> rasterio.DatasetReader:
    """Opens a raster of this machine that refers to nothing outside its folder.

    Args:
        path: File; with ``allow_remote`` whatever GDAL takes for a name.
        what: What the file is, for messages.
        allow_remote: Whether the user trusts what the file refers to, in any format; None where a stage has no such flag.

    Raises:
        InputError: The file refers to something outside its folder, or to a program.
        RasterioIOError: There is no such file, or it is no raster.
    """
    with raster_env(allow_remote):
        if allow_remote:
            return rasterio.open(path)
        location = absolute(path)
        driver = check_references(location, location.parent, f"{what} {path}", allow_remote, set(), ())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # the stages say it where it matters
            dataset = rasterio.open(str(location), driver=driver)
        outside = [name for name in dataset.files if not lies_in(Path(name), location.parent)]
        if outside:  # what none of the checks above knows
            dataset.close()
            raise outside_error(f"{what} {path}", outside[0], allow_remote)
        return dataset


def absolute(path: str | Path) -> Path:
    """The path of a file of this machine, which GDAL takes for nothing else.

    Raises:
        RasterioIOError: There is no such file.
    """
    location = Path(os.path.abspath(path))  # noqa: PTH100  without following links
    if not is_file(location) or str(location).startswith("/vsi"):
        raise RasterioIOError(f"{path}: no such file on this machine")
    return location


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that is too long for one, or a ring of links, is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def raster_driver(path: Path, allow_remote: bool | None) -> str:
    """GDAL's name of a raster's format, by its first bytes.

    Raises:
        RasterioIOError: It is none of those that hold their own content.
    """
    head = read_head(path, SIGNATURE_BYTES)
    if not head:
        raise RasterioIOError("it is empty")
    for start, driver in RASTER_DRIVERS.items():
        if head.startswith(start) or (driver == "VRT" and re.match(rb"(<\?xml.*?\?>)?\s*<VRTDataset", head, re.DOTALL)):
            return driver
    others = "" if allow_remote is None else ", and other formats are read with --allow_remote only"
    raise RasterioIOError(f"it is no {RASTER_FORMATS} file{others}")


def read_head(path: Path, num_bytes: int = HEAD_BYTES) -> bytes:
    """The first bytes of a file, without the mark that some editors put before text."""
    with path.open("rb") as stream:
        return stream.read(num_bytes).removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")


def check_references(
    path: Path, folder: Path, what: str, allow_remote: bool | None, done: set[Path], chain: tuple[Path, ...]
) -> str | None:
    """Refuses a raster that refers, itself or by the files that it names, to something outside a folder; returns GDAL's name of its format.

    Args:
        path: The raster; an absolute path.
        folder: Where everything must lie.
        what: The file that the user named, for messages.
        allow_remote: As in ``open_raster``.
        done: Rasters that were looked at.
        chain: Rasters that led here.

    Raises:
        InputError: It does, or it holds a program, or refers to itself.
    """
    if path in chain:
        raise InputError(f"{what} refers to itself by way of {path.name}; make it again from its sources")
    if path in done or not is_file(path):
        return None  # what is not there, GDAL misses
    done.add(path)
    driver = raster_driver(path, allow_remote)
    beside = path.with_name(f"{path.name}.aux.xml")
    for source in (path if driver == "VRT" else None, beside if is_file(beside) else None):
        for name, relative in references(source, what) if source else ():
            target = Path(os.path.normpath(path.parent / name if relative else Path.cwd() / name))
            if VIRTUAL.match(name) or not lies_in(target, folder):
                raise outside_error(what, name, allow_remote)
            try:
                check_references(target, folder, what, allow_remote, done, (*chain, path))
            except RasterioIOError as error:
                raise InputError(f"{what} refers to {name}, but {first_sentence(error)}; convert that with gdal_translate") from error
    return driver


def references(path: Path, what: str) -> Iterator[tuple[str, bool]]:
    """What a VRT, or what stands beside a raster, refers to: a name, and whether it is relative to that file.

    Raises:
        InputError: The file is no XML, or holds a program.
    """
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(f"{what} cannot be read, because {path.name} is no XML ({first_sentence(error)}); make it again") from error
    for element in root.iter():
        tag, text = element.tag.lower(), (element.text or "").strip()
        if tag == "pixelfunctioncode" or (tag == "pixelfunctionlanguage" and text.lower() != "c"):
            raise InputError(
                f"{what} holds a program, which is never run; write its result with gdal_translate where you trust it, and name that"
            )
        kind = (element.get("name") or "").lower() if tag == "argument" else tag
        is_key = (element.get("key") or "").upper() in REFERRING_KEYS
        if text and element is not root and (is_key or any(word in kind for word in REFERRING)):
            yield text, is_key or any(name.lower() == "relativetovrt" and value == "1" for name, value in element.attrib.items())


def lies_in(path: Path, folder: Path) -> bool:
    """Whether an absolute path, links not followed, leads into a folder."""
    return Path(os.path.normpath(path)).is_relative_to(folder)


def outside_error(what: str, name: str, allow_remote: bool | None) -> InputError:
    """The sentence for a file that refers to something outside its folder."""
    remedy = "bring everything into that folder" if allow_remote is None else TRUST
    return InputError(f"{what} refers to {name}, which does not lie in its folder; {remedy}")


def inside(folder: Path, name: str, what: str) -> Path:
    """The path of a file that a table names, which must lie in a folder.

    Raises:
        InputError: It does not.
    """
    path = folder / name
    if not name or "\0" in name or not lies_in(Path(os.path.abspath(path)), Path(os.path.abspath(folder))):  # noqa: PTH100
        raise InputError(f"{what} names the file {name!r}, which does not lie in {folder}; make it again, or correct that path")
    return path


def read_vector_file(path: Path, what: str) -> gpd.GeoDataFrame:
    """Reads the one layer with geometries of a vector file of this machine, which refers to nothing else.

    Raises:
        MissingInputError: The file is absent or cannot be read.
        InputError: Its format could refer to other files, or it has several layers.
    """
    import geopandas as gpd
    import pyogrio

    name = vector_name(path, what)
    try:
        pyogrio.set_gdal_config_options(LOCAL_ONLY)
        layers = [str(layer) for layer, kind in pyogrio.list_layers(name) if kind is not None]
        if len(layers) > 1:
            raise InputError(
                f"{what} {path} hold {len(layers)} layers ({shown(layers)}); keep one, with: ogr2ogr one.gpkg {path} {layers[0]}"
            )
        return gpd.read_file(name, **({"layer": layers[0]} if layers else {}))
    except InputError:
        raise
    except Exception as error:  # pyogrio raises its own classes, and plain RuntimeError from GDAL
        raise MissingInputError(f"{what} {path} cannot be read as a vector file ({as_clause(error)}); name {VECTOR_FORMATS}") from error


def vector_name(path: Path, what: str) -> str:
    """What GDAL is told to open for a vector file.

    Raises:
        MissingInputError: There is no such file, or it is a folder.
        InputError: Its format could refer to other files.
    """
    location = Path(os.path.abspath(path))  # noqa: PTH100
    if location.suffix == ".gdb" and location.is_dir():
        return str(location)
    if not is_file(location):
        raise MissingInputError(f"{what} {path} {'are a folder' if location.is_dir() else 'do not exist'}; check the path")
    head = read_head(location)
    if head.startswith(b"PK\3\4"):
        try:
            return zipped_name(location)
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{what} {path} cannot be read, for {first_sentence(error)}; unpack it, and name the file") from error
    is_json = head.startswith((b"{", b"\x1e")) and GEOJSON.search(head) and GDAL_COMMAND not in head
    is_text = location.suffix.lower() == ".csv" and not head.startswith((b"<", b"{", b"["))
    if not (head.startswith(VECTOR_STARTS) or is_json or is_text):
        problem = "it is empty" if not head else "its content is none of these formats"
        raise MissingInputError(f"{what} {path} cannot be read as a vector file ({problem}); name {VECTOR_FORMATS}")
    return str(location)


def zipped_name(path: Path) -> str:
    """What GDAL is told to open for the one vector file in an archive: it reads inside, and nothing is written, whatever paths the archive names.

    Raises:
        ValueError: There are none or several, or they unpack to too much.
        BadZipFile: It is no archive.
    """
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.lower().endswith((".shp", ".gpkg", ".geojson"))]
        unpacked_bytes = sum(entry.file_size for entry in archive.infolist())
        if len(names) != 1:
            raise ValueError(f"it holds {len(names)} shapefiles")
        if unpacked_bytes > LARGEST_UNPACKED_BYTES:
            raise ValueError(f"it unpacks to {unpacked_bytes:,} bytes")
        with archive.open(names[0]) as stream:
            head = stream.read(HEAD_BYTES)
    if not head.startswith(VECTOR_STARTS) and (not GEOJSON.search(head) or GDAL_COMMAND in head):
        raise ValueError(f"{names[0]} in it is none of the formats that are read")
    return f"/vsizip/{{{path.absolute()}}}/{names[0]}"
