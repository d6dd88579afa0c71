"""A scene: one raster of several bands, read window by window.

A pixel is valid when none of the bands that are read marks it as missing (nodata value, mask, alpha, or NaN). 0 is missing only where the
scene, or ``--nodata 0``, says so.

Shapes: ``values`` [num_bands, height, width] in the scene's type, ``valid`` [height, width] of bool.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioIOError
from rasterio.windows import Window

from imagery2flow.run.errors import BandError, InputError, MissingInputError, first_sentence
from imagery2flow.run.geofiles import VIRTUAL, is_file, open_raster, raster_env

# The words by which producers name a band, as in "TM3_red" or "red_toa_reflectance_x10000", and the name that we use.
BAND_WORDS = {word: word for word in ("coastal", "blue", "green", "red", "nir", "swir1", "swir2", "pan", "cirrus", "thermal")}
BAND_WORDS |= {
    "brightness": "thermal",
    "tir": "thermal",
    "tirs1": "thermal",
    "rededge": "rededge",
    "nir08": "nir",
    "swir16": "swir1",
    "swir22": "swir2",
}
IMAGE_SUFFIXES = {".tif", ".tiff", ".png", ".jpg", ".jpeg", ".jp2", ".vrt"}
NAME_BANDS = "choose among them with --bands, or name them with --band_names"
METRES_PER_DEGREE = 111_320.0  # of latitude, and of longitude at the equator
# Above this share of a scene's width, a block is a strip: reading one small patch decodes whole rows of the scene.
STRIP_SHARE = 0.9
LARGE_SCENE_PIXELS = 4_000_000


@dataclass(frozen=True)
class Scene:
    """What is known of a scene without reading its pixels.

    Attributes:
        path: File.
        crs: CRS, or None for an image without one.
        transform: From (column, row) to CRS coordinates.
        width: Pixels.
        height: Pixels.
        bands: 1-based numbers of the bands that are read.
        band_names: Name of each of them.
        dtype: NumPy type of the pixels.
        nodata: Values that mark missing pixels: the file's own and the one that is given; empty if there is none.
        has_mask: Whether the file itself says which pixels are valid.
        alpha_bands: 1-based numbers of the bands that are taken as alpha and not as imagery.
        block_width: Width of the blocks that the file is stored in.
        block_height: Their height.
        block_bytes: Memory that one block takes with all bands of the file, for a file may store them together.
        trusted_name: What GDAL opens where the user trusts it and all that it refers to (``--allow_remote``); None for a file that is not trusted.
    """

    path: Path
    crs: CRS | None
    transform: Affine
    width: int
    height: int
    bands: tuple[int, ...]
    band_names: tuple[str, ...]
    dtype: str
    nodata: tuple[float, ...]
    has_mask: bool
    alpha_bands: tuple[int, ...]
    block_width: int
    block_height: int
    block_bytes: int
    trusted_name: str | None = None

    @property
    def gsd_m(self) -> float:
        """Side of a pixel in metres (geometric mean of both sides; at the scene's centre for a CRS in degrees)."""
        side_x_m, side_y_m = self.pixel_sides_m()
        return float(np.sqrt(side_x_m * side_y_m))

    def pixel_sides_m(self) -> tuple[float, float]:
        """Width and height of a pixel in metres; in units of the transform where no CRS says how long they are."""
        a, b, _, d, e, _ = self.transform[:6]
        side_x, side_y = float(np.hypot(a, d)), float(np.hypot(b, e))
        if self.crs is None or not self.lies_on_earth:
            return side_x, side_y
        if self.crs.is_geographic:
            _, latitude = self.transform * (self.width / 2, self.height / 2)
            return side_x * METRES_PER_DEGREE * float(np.cos(np.radians(latitude))), side_y * METRES_PER_DEGREE
        _, metres_per_unit = self.crs.linear_units_factor
        return side_x * metres_per_unit, side_y * metres_per_unit

    def open(self) -> rasterio.DatasetReader:
        """Opens the file; it is read within ``env``."""
        return open_raster(self.trusted_name or self.path, "scene", self.trusted_name is not None)

    def env(self) -> rasterio.Env:
        """GDAL's options while the file is read."""
        return raster_env(self.trusted_name is not None)

    @property
    def lies_on_earth(self) -> bool:
        """Whether the CRS ties the pixels to places; without one, or with a local one (of a building site, a sheet of paper), none does."""
        return self.crs is not None and (self.crs.is_geographic or self.crs.is_projected)

    @property
    def is_large_strips(self) -> bool:
        """Whether the scene is large and stored in strips, so that windows are slow to read."""
        return self.width * self.height > LARGE_SCENE_PIXELS and self.block_width >= STRIP_SHARE * self.width


def band_name(description: str | None, number: int) -> str:
    """Common name of a band from what the file says of it: ``TM4_nir`` and ``nir_toa_reflectance_x10000`` are both ``nir``."""
    if not description:
        return f"band{number}"
    words = re.findall(r"[a-z]+\d*", description.lower().replace("red edge", "rededge"))
    known = [BAND_WORDS[word] for word in words if word in BAND_WORDS]
    return known[0] if known else description.strip().lower()


def band_names(descriptions: Sequence[str | None]) -> list[str]:
    """Common names of all bands of a file; bands that would share one (``TM3_red``, ``TM3_red_qa``) keep what the file says of them."""
    common = [band_name(text, number) for number, text in enumerate(descriptions, start=1)]
    return [name if common.count(name) == 1 else str(text).strip().lower() for name, text in zip(common, descriptions, strict=True)]


def imagery_bands(dataset: rasterio.DatasetReader, names: Sequence[str] = (), asked: Sequence[str] = ()) -> dict[int, str]:
    """Number and name of the bands of a file that are imagery.

    An alpha band is a mask, not imagery. GDAL takes the fourth band of a uint8 file for alpha unless its writer said otherwise: a band that
    names a part of the spectrum, and one that the user names or asks for, is imagery all the same, unless its name is "alpha".

    Args:
        dataset: The file.
        names: Names of all bands, instead of those that the file carries.
        asked: Names or 1-based numbers of the bands that the user asks for.
    """
    all_names = band_names(names or dataset.descriptions)
    kinds = [kind.name for kind in dataset.colorinterp]
    known = {*BAND_WORDS.values(), *(all_names if names else ()), *(text.lower() for text in asked)}
    return {
        number: name
        for number, (name, kind) in enumerate(zip(all_names, kinds, strict=True), start=1)
        if kind != "alpha" or (name != "alpha" and (name in known or is_number_of(number, asked, all_names)))
    }


def is_number_of(number: int, asked: Sequence[str], names: Iterable[str]) -> bool:
    """Whether a band is asked for by its number: a digit that is the name of a band is that name."""
    return str(number) in asked and str(number) not in names


def needs_mask(dataset: rasterio.DatasetReader, imagery: dict[int, str], chosen: Sequence[int]) -> bool:
    """Whether the file itself must say which pixels are valid: it carries a mask or an alpha band, or its bands mark nodata differently."""
    has_alpha = len(imagery) < dataset.count
    has_mask = any(MaskFlags.per_dataset in flags and (has_alpha or MaskFlags.alpha not in flags) for flags in dataset.mask_flag_enums)
    return has_mask or len({dataset.nodatavals[number - 1] for number in chosen}) > 1


def open_scene(
    path: str,
    bands: Sequence[str] = (),
    names: Sequence[str] = (),
    nodata: float | None = None,
    flag: str = "--input_tif_path",
    allow_remote: bool = False,
) -> Scene:
    """Reads what a file says of itself.

    Args:
        path: GeoTIFF, VRT, JPEG and what else ``run.geofiles`` knows; with ``allow_remote`` whatever GDAL reads.
        bands: Names or 1-based numbers of the bands to keep; all if empty.
        names: Names of all bands of the file, instead of those it carries.
        nodata: Value that marks missing pixels, besides the one that the file declares.
        flag: The flag that the path was given to, for messages.
        allow_remote: Whether the user trusts what the file refers to, wherever that lies.

    Raises:
        MissingInputError: The file is absent or no raster.
        BandError: A band is asked for that the file has not, or two bands have one name.
        InputError: The file's type is complex, or it refers to what does not lie in its folder.
    """
    # Absolute, for processes of other machines begin in another folder; an address stays as it is.
    trusted_name = (str(Path(path).absolute()) if is_file(Path(path)) else path) if allow_remote else None
    try:
        with open_raster(trusted_name or path, "scene", allow_remote) as dataset:
            if names and len(names) != dataset.count:
                raise BandError(
                    f"--band_names names {len(names)} bands ({', '.join(names)}) but scene {path} has {dataset.count}; name each band once"
                )
            imagery = imagery_bands(dataset, names, bands)
            chosen = choose_bands(bands, imagery, f"scene {path}")
            dtypes = sorted({dataset.dtypes[number - 1] for number in chosen})
            if len(dtypes) > 1:
                raise BandError(
                    f"scene {path} has bands of different types ({', '.join(dtypes)}); convert it, or choose bands of one type with --bands"
                )
            if np.dtype(dtypes[0]).kind == "c":
                raise InputError(f"scene {path} has complex pixels ({dtypes[0]}); convert it to real numbers first")
            declared = {dataset.nodatavals[number - 1] for number in chosen}
            block_height, block_width = dataset.block_shapes[0]
            own_nodata = declared.pop() if len(declared) == 1 else None  # bands that differ are read with the file's masks
            return Scene(
                path=Path(path),
                crs=dataset.crs,
                transform=dataset.transform,
                width=dataset.width,
                height=dataset.height,
                bands=tuple(chosen),
                band_names=tuple(imagery[number] for number in chosen),
                dtype=dtypes[0],
                nodata=tuple(dict.fromkeys(value for value in (own_nodata, nodata) if value is not None)),
                has_mask=needs_mask(dataset, imagery, chosen),
                alpha_bands=tuple(number for number in dataset.indexes if number not in imagery),
                block_width=block_width,
                block_height=block_height,
                block_bytes=block_height * block_width * dataset.count * np.dtype(dtypes[0]).itemsize,
                trusted_name=trusted_name,
            )
    except RasterioIOError as error:
        if allow_remote or is_file(Path(path)):
            raise InputError(
                f"scene {path} cannot be opened as a raster ({first_sentence(error)}); check the path given to {flag}, "
                "or, if the file is damaged, copy it again"
            ) from error
        reason = "is a folder" if os.path.isdir(path) else "does not exist"  # noqa: PTH112  which takes any name
        if VIRTUAL.match(path):
            raise MissingInputError(
                f"scene {path} is no file of this machine; name one with {flag}, or pass --allow_remote if you trust it"
            ) from error
        raise MissingInputError(f"scene {path} {reason}; check the path given to {flag}") from error


def choose_bands(asked: Sequence[str], available: dict[int, str], where: str, remedy: str = NAME_BANDS) -> list[int]:
    """Numbers of the bands that are asked for by name or else by number, in the order asked; all if none is asked for.

    Args:
        asked: Names or 1-based numbers.
        available: Number and name of each band.
        where: What has these bands, for messages.
        remedy: What the user can do about a band that is not there.

    Raises:
        BandError: A band is missing or its name is ambiguous.
    """
    if not asked:
        return list(available)
    chosen = []
    for wanted in asked:
        # Names first: the bands of a file that calls them 4, 3, 2 are not meant by their place.
        matching = [number for number, name in available.items() if name.lower() == wanted.lower()]
        matching = matching or [number for number in available if str(number) == wanted]
        if len(matching) != 1:
            problem = "has no" if not matching else f"has {len(matching)} bands named"
            listing = ", ".join(f"{number} {name}" for number, name in available.items())
            raise BandError(f"{where} {problem} {wanted}; its bands are {listing}: {remedy}")
        chosen.append(matching[0])
    return chosen


def check_scenes_agree(scenes: Sequence[Scene]) -> None:
    """Refuses scenes that cannot stand beside each other in one set of patches.

    Raises:
        BandError: Bands or types differ.
    """
    first = scenes[0]
    for scene in scenes[1:]:
        if scene.band_names != first.band_names:
            raise BandError(
                f"scene {scene.path} has the bands {', '.join(scene.band_names)} but {first.path} has {', '.join(first.band_names)}; choose common ones with --bands"
            )
        if scene.dtype != first.dtype:
            raise BandError(
                f"scene {scene.path} holds {scene.dtype} but {first.path} holds {first.dtype}; bring them to one type and scale first"
            )


class SceneReader:
    """Reads windows of scenes; keeps the files open until it is closed. One per process."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self.scenes = scenes
        self._datasets: dict[int, rasterio.DatasetReader] = {}

    def read(self, scene_number: int, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Reads a window that may reach beyond the scene; what lies beyond is 0 and not valid.

        Returns:
            Values [num_bands, height, width] and valid [height, width].
        """
        scene = self.scenes[scene_number]
        row, column = max(window.row_off, 0), max(window.col_off, 0)
        height = min(window.row_off + window.height, scene.height) - row
        width = min(window.col_off + window.width, scene.width) - column
        if (height, width) == (window.height, window.width):
            return self._read_inside(scene_number, window)
        values = np.zeros((len(scene.bands), window.height, window.width), dtype=scene.dtype)
        valid = np.zeros((window.height, window.width), dtype=bool)
        if height > 0 and width > 0:
            rows = slice(row - window.row_off, row - window.row_off + height)
            columns = slice(column - window.col_off, column - window.col_off + width)
            values[:, rows, columns], valid[rows, columns] = self._read_inside(scene_number, Window(column, row, width, height))
        return values, valid

    def _read_inside(self, scene_number: int, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Reads a window that lies inside the scene."""
        scene = self.scenes[scene_number]
        dataset = self._datasets.get(scene_number)
        if dataset is None:
            dataset = self._datasets[scene_number] = scene.open()
        try:
            with scene.env():
                values = dataset.read(list(scene.bands), window=window)
                valid = ~missing(values, scene.nodata)
                if scene.has_mask:
                    valid &= (dataset.read_masks(list(scene.bands), window=window) > 0).all(axis=0)
        except RasterioIOError as error:
            raise InputError(
                f"scene {scene.path} cannot be read at {window} ({first_sentence(error.__cause__ or error)}); the file may be truncated: copy it again"
            ) from error
        blacken(values, valid)
        return values, valid

    def close(self) -> None:
        """Closes the files."""
        for dataset in self._datasets.values():
            dataset.close()
        self._datasets.clear()


def blacken(values: np.ndarray, valid: np.ndarray) -> None:
    """Sets the pixels of ``values`` [num_bands, height, width] that are not ``valid`` [height, width] to 0, in place."""
    # The bits times 0 or 1: NaN times 0 would be NaN, and indexing with a mask takes many times as long.
    bits = values.view(f"u{values.dtype.itemsize}")
    np.multiply(bits, valid, out=bits)


def missing(values: np.ndarray, nodata: Iterable[float]) -> np.ndarray:
    """Where any band [num_bands, height, width] is NaN or equals a nodata value: [height, width] of bool."""
    absent = (~np.isfinite(values)).any(axis=0) if values.dtype.kind == "f" else np.zeros(values.shape[1:], dtype=bool)
    for value in nodata:
        if not np.isnan(value) and fits_type(value, values.dtype):
            absent |= (values == np.asarray(value, dtype=values.dtype)).any(axis=0)
    return absent


def fits_type(value: float, dtype: np.dtype) -> bool:
    """Whether an integer type can hold the value (a nodata of -9999 in a uint8 file marks nothing)."""
    if dtype.kind == "f":
        return True
    limits = np.iinfo(dtype)
    return float(value).is_integer() and limits.min <= value <= limits.max
