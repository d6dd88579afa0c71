"""How the bad inputs of the corpus are made: each function returns an action that spoils the current folder, a copy of a good one."""

from __future__ import annotations

import dataclasses
import gzip
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import numpy as np
import rasterio
import torch
from affine import Affine

from imagery2flow.run.files import save_tensors
from tests.spoiling import FLAGS, SCENE, UNITS, edit_units, later

MORE_FLAGS = FLAGS | {
    "land_cover": f"--units_path {UNITS} --raster_path data/M1/land_use.tif --output_path new.csv",
    "import_published": "--log new --device cpu",
    "results": "--log M1",
    "report": "outputs/M1 --output_path new.html",
}
OUTSIDE, SIDE_PX = "../outside.tif", 100
PORT = "CORPUS_PORT"  # environment variable: where a server listens that nobody may ask


@dataclasses.dataclass(frozen=True)
class Fault:
    """A bad input of the corpus.

    Attributes:
        name: What is wrong.
        stage: What reads it.
        flags: Appended to those with which the stage succeeds.
        outcome: Fragments of the sentence, ``...`` between them; or what is right all the same.
        check: Compares what was written with what is right; None where the stage must refuse.
        spoils: What makes it.
    """

    name: str
    stage: str
    flags: str
    outcome: str
    check: Callable[[], None] | None
    spoils: tuple[Callable[[], object], ...]


def refused(name: str, stage: str, flags: str, says: str, *spoils: Callable[[], object]) -> Fault:
    return Fault(name, stage, flags, says, None, spoils)


def right(name: str, stage: str, flags: str, outcome: str, check: Callable[[], None], *spoils: Callable[[], object]) -> Fault:
    return Fault(name, stage, flags, outcome, check, spoils)


def address(path: str = "x.tif") -> str:
    return f"http://127.0.0.1:{os.environ[PORT]}/{path}"


@later
def put_bytes(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)


@later
def put_text(path: str, text: str, encoding: str = "utf-8") -> None:
    """Writes a text in which ADDRESS is that of the server that nobody may ask, and HERE the current folder."""
    Path(path).write_bytes(text.replace("ADDRESS", address("")).replace("HERE", str(Path.cwd())).encode(encoding))


@later
def recode(path: str, change: Callable[[str], str], encoding: str = "utf-8") -> None:
    """Writes a text file again, changed and in another encoding."""
    Path(path).write_bytes(change(Path(path).read_text(encoding="utf-8")).encode(encoding))


@later
def flip_bits(path: str, count: int = 200) -> None:
    """Inverts bytes in the middle of a file."""
    content = bytearray(Path(path).read_bytes())
    middle = len(content) // 2
    content[middle : middle + count] = bytes(value ^ 0xFF for value in content[middle : middle + count])
    Path(path).write_bytes(content)


@later
def ring(path: str) -> None:
    """Puts a ring of two symbolic links in the place of a file."""
    Path(path).unlink(missing_ok=True)
    Path(path).symlink_to(Path(f"{path}.link").absolute())
    Path(f"{path}.link").symlink_to(Path(path).absolute())


@later
def folder_for(path: str) -> None:
    """Puts a folder in the place of a file."""
    Path(path).unlink()
    Path(path).mkdir()


@later
def scene(path: str = SCENE, change: Callable[[np.ndarray], np.ndarray] | None = None, **profile: object) -> None:
    """Writes the good scene again, with other pixels [num_bands, height, width] or another profile."""
    with rasterio.open(SCENE) as good:
        values, names, kept = good.read(), good.descriptions, {**good.profile, "nodata": None}
    values = values if change is None else change(values)
    kept |= {"count": len(values), "height": values.shape[1], "width": values.shape[2], "dtype": values.dtype} | profile
    with rasterio.open(path, "w", **kept) as raster:
        raster.descriptions = names[: len(values)]
        raster.write(values)


@later
def turned_scene() -> None:
    """The good scene with its rows as columns: the same pixels at the same places, on a grid turned by a quarter."""
    with rasterio.open(SCENE) as good:
        values, names, transform, crs = good.read(), good.descriptions, good.transform, good.crs
    turned = transform * Affine(0, 1, 0, 1, 0, 0)  # (column, row) there is (row, column) here
    shape = {"width": values.shape[1], "height": values.shape[2], "count": len(values), "dtype": values.dtype}
    with rasterio.open(SCENE, "w", driver="GTiff", crs=crs, transform=turned, **shape) as raster:
        raster.descriptions = names
        raster.write(values.swapaxes(1, 2))


@later
def constant_scene(path: str, crs: str, bounds: tuple[float, float, float, float] | None, value: int = 7, side: int = 400) -> None:
    """A scene of one value and three bands within bounds (west, south, east, north), or a little beyond those of the units."""
    west, south, east, north = bounds or gpd.read_file(UNITS).to_crs(crs).buffer(0.001).total_bounds
    transform = Affine((east - west) / side, 0, west, 0, -(north - south) / side, north)
    profile = {"driver": "GTiff", "width": side, "height": side, "count": 3, "dtype": "uint16", "crs": crs, "transform": transform}
    with rasterio.open(path, "w", **profile) as raster:
        raster.descriptions = ("red", "nir", "swir1")
        raster.write(np.full((3, side, side), value, "uint16"))


@later
def huge_scene(nodata: int | None) -> None:
    """A scene that says it has 100,000 x 100,000 pixels, and holds none of them."""
    with rasterio.open(SCENE) as good:
        profile = good.profile | {"width": 100_000, "height": 100_000, "nodata": nodata, "sparse_ok": True, "tiled": True}
        names = good.descriptions
    with rasterio.open(SCENE, "w", **profile | {"blockxsize": 512, "blockysize": 512, "bigtiff": "YES"}) as raster:
        raster.descriptions = names


def vrt(path: str, source: str, relative: int = 0, extra: str = "", kind: str = "") -> Callable[[], object]:
    """A VRT of the good scene's three bands from one source; in ``source`` ADDRESS and HERE are replaced."""
    return _vrt(path, source, relative, extra, kind)


@later
def _vrt(path: str, source: str, relative: int, extra: str, kind: str) -> None:
    with rasterio.open(SCENE) as good:
        srs, transform = good.crs.to_wkt(), ", ".join(map(str, good.transform.to_gdal()))
    properties = (
        f'<SourceProperties RasterXSize="{SIDE_PX}" RasterYSize="{SIDE_PX}" DataType="UInt16" BlockXSize="{SIDE_PX}" BlockYSize="1"/>'
    )
    bands = "".join(
        f'<VRTRasterBand dataType="UInt16" band="{band}"{kind}><Description>{name}</Description>{extra}<SimpleSource>'
        f'<SourceFilename relativeToVRT="{relative}">{source}</SourceFilename><SourceBand>{band}</SourceBand>{properties}</SimpleSource></VRTRasterBand>'
        for band, name in enumerate(("red", "nir", "swir1"), start=1)
    )
    put_text(
        path,
        f'<VRTDataset rasterXSize="{SIDE_PX}" rasterYSize="{SIDE_PX}"><SRS>{srs.replace("&", "&amp;")}</SRS><GeoTransform>{transform}</GeoTransform>{bands}</VRTDataset>',
    )()


@later
def units(change: Callable[[gpd.GeoDataFrame], gpd.GeoDataFrame], path: str = UNITS, **options: object) -> None:
    """Writes the units again, changed, by the name of another file if one is given."""
    table = change(gpd.read_file(UNITS))
    if path == UNITS:
        Path(UNITS).unlink()
    table.to_file(path, **options)


@later
def second_layer() -> None:
    gpd.read_file(UNITS)[:3].to_file(UNITS, layer="other", mode="a")


@later
def zipped(path: str, members: dict[str, str | bytes]) -> None:
    """An archive: content, or ``@path`` of a file, by the member's name."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, Path(content[1:]).read_bytes() if isinstance(content, str) and content[:1] == "@" else content)


@later
def zip_bomb(path: str) -> None:
    """An archive of a shapefile that unpacks to 1.2 GB of zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.write("units.shp")
        with archive.open("units.dbf", "w", force_zip64=True) as stream:
            for _ in range(120):
                stream.write(bytes(10_000_000))


@later
def gzip_bomb(path: str) -> None:
    """A gzipped file of 1.2 GB of zeros: one part of 10 MB, again and again."""
    Path(path).write_bytes(gzip.compress(bytes(10_000_000)) * 120)


class Bomb:
    """What a pickle of it would do: write a file."""

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, ("ran",)


@later
def pickled_bomb(path: str) -> None:
    Path(path).write_bytes(pickle.dumps(Bomb()))


@later
def torch_bomb(path: str) -> None:
    """A file as torch.save writes it, with code where a tensor should be."""
    content = load(path) if Path(path).is_file() else {}
    Path(path).unlink(missing_ok=True)
    torch.save({**content, "model": Bomb()}, path)


def load(path: str) -> dict[str, object]:
    content: dict[str, object] = torch.load(path, map_location="cpu", weights_only=True)
    return content


@later
def edit_tensors(path: str, change: Callable[[dict[str, object]], dict[str, object]]) -> None:
    content = change(load(path))
    Path(path).unlink()
    save_tensors(Path(path), content)


def outline(change: Callable[[object], object], position: int = 0) -> Callable[[], object]:
    """Changes the geometry of one unit."""

    def changed(table: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
        shapes = list(table.geometry)
        shapes[position] = change(shapes[position])
        return table.set_geometry(gpd.GeoSeries(shapes, crs=table.crs))

    return edit_units(changed)
