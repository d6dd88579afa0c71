"""Reads patches: what stage 1 wrote, or any folder of images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioIOError
from tqdm import tqdm

from imagery2flow.imagery.cutting import USABLE, WINDOW, WRITTEN
from imagery2flow.imagery.patches import read_manifest
from imagery2flow.imagery.patchset import Normalisation, PatchSet, measure
from imagery2flow.imagery.scene import IMAGE_SUFFIXES, choose_bands, imagery_bands
from imagery2flow.imagery.windows import (
    LONGEST_SIDE,
    ImagePlan,
    SceneSettings,
    TileWindow,
    plan_images,
    read_images,
    scene_paths,
    scene_settings,
    tile_windows,
)
from imagery2flow.run.errors import BandError, InputError, MissingInputError, TableError, first_sentence, shown
from imagery2flow.run.geofiles import inside, open_raster, raster_env
from imagery2flow.run.memory import Allocate
from imagery2flow.run.stage import Ledger
from imagery2flow.run.unfinished import unfinished_folders

CHOOSE_BANDS = "choose among them with --bands"


@dataclass(frozen=True)
class PatchFiles:
    """Patches that are still on disk.

    Attributes:
        folder: Where they are, or the manifest that names them.
        paths: File of each patch by its id, sorted by id; of a tile that stays a window, its scene.
        num_pixels: Pixels of each patch by its id.
        bands: 1-based numbers of the bands to read.
        names: Their names.
        all_bands: Whether every patch must have these bands and no other.
        dtype: NumPy type of the pixels.
        windows: What of its scene a tile shows, and its split, by its id; empty where every patch is a file of its own.
        scenes: How those scenes are read; None where every patch is a file of its own.
    """

    folder: Path
    paths: dict[str, Path]
    num_pixels: dict[str, int]
    bands: tuple[int, ...]
    names: tuple[str, ...]
    all_bands: bool
    dtype: str
    windows: dict[str, TileWindow] = field(default_factory=dict)
    scenes: SceneSettings | None = None

    def select(self, geocodes: Sequence[str]) -> PatchFiles:
        """Some of them."""
        chosen = {geocode: self.paths[geocode] for geocode in geocodes}
        num_pixels = {geocode: self.num_pixels[geocode] for geocode in geocodes}
        windows = {geocode: self.windows[geocode] for geocode in geocodes} if self.windows else {}
        return replace(self, paths=chosen, num_pixels=num_pixels, windows=windows)

    def absolute(self) -> PatchFiles:
        """The same for processes that began in another folder."""
        return replace(self, folder=self.folder.absolute(), paths={geocode: path.absolute() for geocode, path in self.paths.items()})


def load_patches(
    data_path: str, bands: Sequence[str], ledger: Ledger, remedy: str = CHOOSE_BANDS, allocate: Allocate = np.empty
) -> PatchSet:
    """Loads the patches of a folder.

    Args:
        data_path: Folder that stage 1 wrote, or a folder of images named ``..._<geocode>.tif``.
        bands: Names or 1-based numbers of the bands to take, or their published count; all if empty.
        ledger: Takes the units without a patch, and patches without a valid pixel.
        remedy: What the user can do if a band is not there.
        allocate: Makes the table of pixels.

    Raises:
        MissingInputError: The folder is absent or holds no patch.
        BandError: Bands are missing, or differ between patches.
        TableError: An id occurs more than once.
        InputError: No patch has a valid pixel.
    """
    files = find_patches(data_path, bands, ledger, remedy)
    patches = read_patches(files, allocate)
    note_patches(files, patches.geocodes, ledger)
    return patches


def note_patches(files: PatchFiles, with_pixels: Iterable[str], ledger: Ledger) -> None:
    """Notes what was read, and what has no valid pixel.

    Raises:
        InputError: No patch has a valid pixel.
    """
    ledger.came_in["patches"] = len(files.paths)
    empty = sorted(set(files.paths) - set(with_pixels))
    if len(empty) == len(files.paths):
        raise InputError(f"no patch of {files.folder} has a valid pixel; check the nodata value of the scene")
    ledger.leave_out("patches without a valid pixel", empty)


def find_patches(
    data_path: str, bands: Sequence[str], ledger: Ledger, remedy: str = CHOOSE_BANDS, scene_dir: str | None = None
) -> PatchFiles:
    """Finds the patches of a folder and the bands to read; as ``load_patches``. Tiles that are windows of scenes need the folder of those."""
    folder = Path(data_path)
    if (folder / "manifest.csv").is_file() and (read_manifest(folder).status == WINDOW).any():
        return find_windows(folder, bands, ledger, remedy, scene_dir)
    paths = find_paths(folder, ledger)
    first = next(iter(paths.values()))
    chosen, names, all_bands = choose_patch_bands(first, bands, ledger, remedy)
    with open_patch(first) as patch:
        dtype = patch.dtypes[chosen[0] - 1]
    return PatchFiles(folder, paths, patch_sizes(folder, paths), tuple(chosen), names, all_bands, dtype)


def find_windows(folder: Path, bands: Sequence[str], ledger: Ledger, remedy: str, scene_dir: str | None) -> PatchFiles:
    """Finds tiles that are windows of scenes; as ``find_patches``."""
    rows = listed_patches(folder, ledger)
    settings = scene_settings(folder)
    paths, windows = scene_paths(rows, folder, scene_dir), tile_windows(rows, folder)
    available = dict(enumerate(settings.bands, start=1))
    chosen = choose_bands(without_count(bands, available, folder), available, f"patches {folder}", remedy)
    num_pixels = {geocode: window.width * window.height for geocode, window in windows.items()}
    names = tuple(available[number] for number in chosen)
    return PatchFiles(folder, paths, num_pixels, tuple(chosen), names, not bands, settings.dtype, windows, settings)


def read_patches(files: PatchFiles, allocate: Allocate = np.empty, normalisation: Normalisation | None = None) -> PatchSet:
    """Reads patches; those without a valid pixel are passed over.

    Args:
        files: Which.
        allocate: Makes the table of pixels; at once, because a table that grows would take twice its memory.
        normalisation: Statistics of the bands; default these patches' own.

    Raises:
        BandError: Bands or types differ between patches.
        InputError: A file is damaged, or is not what the manifest says.
    """
    plans = plan_images(files.paths, files.windows) if files.windows else []
    size = (
        sum(plan.window.width * plan.window.height for plan in plans)
        if plans
        else sum(files.num_pixels[geocode] for geocode in files.paths)
    )
    table, table_valid = allocate((size, len(files.bands)), np.dtype(files.dtype)), allocate((size,), np.dtype(bool))
    shapes: list[tuple[int, ...]] = []
    frames: dict[str, tuple[int, ...]] = {}
    end = 0
    for found, values, valid in read_framed(files, plans):
        with_pixels = {geocode: frame for geocode, frame in found.items() if valid[frame.rows, frame.columns].any()}
        if with_pixels:
            frames |= {geocode: (len(shapes), *frame.corner_and_size) for geocode, frame in with_pixels.items()}
            shapes.append(valid.shape)
            rows = slice(end, end + valid.size)
            for number, band in enumerate(values):  # a quarter of the time of one transposed copy
                table[rows, number] = band.reshape(-1)
            table_valid[rows] = valid.reshape(-1)
            end += valid.size
    height, width = np.array(shapes, dtype=np.int64).reshape(-1, 2).T
    first_pixel = np.cumsum(height * width) - height * width
    normalisation = normalisation or measure(table[:end], table_valid[:end], files.names)
    geocodes = sorted(frames)
    placed = np.array([frames[geocode] for geocode in geocodes], dtype=np.int64).reshape(-1, 5)
    return PatchSet(tuple(geocodes), table[:end], table_valid[:end], first_pixel, height, width, normalisation, placed)


@dataclass(frozen=True)
class Frame:
    """A patch within an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def rows(self) -> slice:
        """Its rows of the image."""
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        """Its columns of the image."""
        return slice(self.left, self.left + self.width)

    @property
    def corner_and_size(self) -> tuple[int, int, int, int]:
        """Top, left, height, width."""
        return self.top, self.left, self.height, self.width


def read_framed(files: PatchFiles, plans: Sequence[ImagePlan]) -> Iterator[tuple[dict[str, Frame], np.ndarray, np.ndarray]]:
    """Reads the images of patches: the frame of each patch in it, values [num_bands, height, width] and valid [height, width]."""
    if files.scenes is None:
        for geocode, path in tqdm(files.paths.items(), desc="read patches", unit="patch", disable=None, leave=False):
            values, valid = read_whole_patch(files, geocode, path)
            yield {geocode: Frame(0, 0, *valid.shape)}, values, valid
        return
    bar = tqdm(plans, desc="read scenes", unit="image", disable=None, leave=False)
    for plan, values, valid in read_images(bar, files.scenes, files.names):
        windows = {geocode: files.windows[geocode] for geocode in plan.geocodes}
        yield (
            {
                geocode: Frame(window.row - plan.window.row_off, window.column - plan.window.col_off, window.height, window.width)
                for geocode, window in windows.items()
            },
            *in_single_precision(values, valid),
        )


def read_whole_patch(files: PatchFiles, geocode: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads a patch that is a file: values [num_bands, height, width] and valid [height, width].

    Raises:
        BandError: Its type differs from that of the others.
        InputError: It is damaged, or is not what the manifest says.
    """
    values, valid = read_patch(path, files.bands, files.names, files.all_bands)
    if values.dtype.name != files.dtype:
        raise BandError(f"patch {path} holds {values.dtype.name} but the patches before it {files.dtype}; bring all to one type and scale")
    if valid.size != files.num_pixels[geocode]:
        said = files.num_pixels[geocode]
        raise InputError(f"patch {path} has {valid.size:,} pixels but manifest.csv says {said:,}; run img_preprocessing.py again")
    return values, valid


def patch_sizes(folder: Path, paths: dict[str, Path]) -> dict[str, int]:
    """Number of pixels of each patch, from the manifest where it tells, else from the files' headers."""
    manifest = read_manifest(folder) if (folder / "manifest.csv").is_file() else pd.DataFrame()
    if {"width", "height"} <= set(manifest.columns):
        written = manifest[manifest.status == WRITTEN].set_index("geocode")
        width, height = (pd.to_numeric(written[side], errors="coerce").reindex(list(paths)) for side in ("width", "height"))
        if (width.between(1, LONGEST_SIDE) & height.between(1, LONGEST_SIDE) & (width % 1 == 0) & (height % 1 == 0)).all():
            return {geocode: int(size) for geocode, size in (width * height).items()}
    found = {}
    for geocode, path in paths.items():
        with open_patch(path) as patch:
            found[geocode] = patch.width * patch.height
    return found


def find_paths(folder: Path, ledger: Ledger) -> dict[str, Path]:
    """Files of the patches by id, sorted by id; the manifest decides where there is one.

    Raises:
        MissingInputError: The folder is absent or holds no patch, or a patch of the manifest is gone.
        TableError: An id occurs more than once.
        InputError: The manifest names a file outside the folder.
    """
    if not folder.is_dir():
        raise MissingInputError(
            f"--data_path {folder} is no folder; name the one that img_preprocessing.py wrote, <output_tif_dir>/<region>/<tag>_<year>"
        )
    if (folder / "manifest.csv").is_file():
        written = listed_patches(folder, ledger)
        named = zip(written.geocode, written.path.fillna(""), strict=True)
        paths = {geocode: inside(folder, name, f"{folder}/manifest.csv") for geocode, name in named}
        gone = [str(path) for path in paths.values() if not path.is_file()]
        if gone:
            raise MissingInputError(
                f"{len(gone)} patches of {folder}/manifest.csv are gone ({shown(gone)}); run img_preprocessing.py again"
            )
    else:
        if unfinished_folders(folder):
            raise MissingInputError(
                f"{folder} has no manifest.csv yet, because img_preprocessing.py has not come to its end; run the same command again"
            )
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."))
        paths = {path.stem.rsplit("_", 1)[-1]: path for path in files}
        if len(paths) < len(files):
            raise TableError(
                f"{folder} holds {len(files)} images but only {len(paths)} ids (the part of the name behind the last '_'); rename them so that each id occurs once"
            )
        paths = dict(sorted(paths.items()))
        ledger.note(f"{folder} has no manifest.csv: every image in it is taken, its id from the file's name")
    if not paths:
        raise MissingInputError(f"--data_path {folder} holds no patch; make them with img_preprocessing.py")
    return paths


def listed_patches(folder: Path, ledger: Ledger) -> pd.DataFrame:
    """Rows of the manifest that have a patch, sorted by id; the ledger takes the others.

    Raises:
        TableError: Ids or paths are absent or repeated.
    """
    manifest = read_manifest(folder)
    ledger.reads(folder / "manifest.csv")
    has_patch = manifest.status.isin(USABLE)
    ledger.leave_out("units without a patch", manifest.geocode[~has_patch])
    written = manifest[has_patch].sort_values("geocode")
    if written[["geocode", "path"]].isna().any(axis=None):
        raise TableError(f"{folder}/manifest.csv has written patches without a unit or a path; run img_preprocessing.py again")
    repeated = written.geocode[written.geocode.duplicated()]
    if len(repeated):
        raise TableError(
            f"{folder}/manifest.csv names {len(repeated)} units more than once ({shown(repeated)}); run img_preprocessing.py again, or keep one row each"
        )
    return written


def choose_patch_bands(
    path: Path, bands: Sequence[str], ledger: Ledger, remedy: str = CHOOSE_BANDS
) -> tuple[list[int], tuple[str, ...], bool]:
    """Numbers and names of the bands to read, by the first patch, and whether these must be all bands of every patch.

    One number is the published count, unless a band has that name.

    Raises:
        BandError: A count differs from the patches' bands, or a name is not among them.
    """
    with open_patch(path) as patch:
        available = imagery_bands(patch, asked=bands)
        alpha_bands = [str(number) for number in patch.indexes if number not in available]
    if alpha_bands:
        ledger.note(f"patches {path.parent}: band {', '.join(alpha_bands)} is taken as alpha, not as imagery")
    bands = without_count(bands, available, path.parent)
    chosen = choose_bands(bands, available, f"patches {path.parent}", remedy)
    return chosen, tuple(available[number] for number in chosen), not bands


def without_count(bands: Sequence[str], available: dict[int, str], folder: Path) -> Sequence[str]:
    """The bands that are asked for; none, which is all, where one number tells their count, as published.

    Raises:
        BandError: The count differs.
    """
    if len(bands) != 1 or not bands[0].isdigit() or bands[0] in available.values():
        return bands
    if int(bands[0]) != len(available):
        listing = ", ".join(available.values())
        raise BandError(
            f"--bands {bands[0]} but the patches of {folder} have {len(available)} bands ({listing}); name the ones to use, for example --bands {available[1]}"
        )
    return ()


def open_patch(path: Path) -> rasterio.DatasetReader:
    """Opens a patch.

    Raises:
        InputError: The file is no image.
    """
    try:
        return open_raster(path, "patch", allow_remote=None)
    except RasterioIOError as error:
        raise InputError(
            f"patch {path} cannot be opened ({first_sentence(error.__cause__ or error)}); it may be truncated: run img_preprocessing.py again"
        ) from error


def georeference(files: PatchFiles, geocode: str) -> tuple[CRS | None, Affine]:
    """CRS of a patch, or None, and from (column, row) of its pixels to that CRS."""
    with open_patch(files.paths[geocode]) as source:
        if geocode not in files.windows:
            return source.crs, source.transform
        window = files.windows[geocode]
        return source.crs, source.transform @ Affine.translation(window.column, window.row)


def is_masked_by_imagery(patch: rasterio.DatasetReader, number: int, imagery: dict[int, str]) -> bool:
    """Whether GDAL's mask of a band is an alpha band that is imagery, and so says nothing of what is valid."""
    return MaskFlags.alpha in patch.mask_flag_enums[number - 1] and len(imagery) == patch.count


def read_patch(path: Path, chosen: Sequence[int], names: Sequence[str], all_bands: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Values [num_bands, height, width] and valid [height, width] of one patch.

    Args:
        path: File of the patch.
        chosen: Numbers of the bands to read.
        names: Their names.
        all_bands: Whether the patch must have these bands and no other.

    Raises:
        BandError: The patch's bands differ from the first patch's.
        InputError: The file is damaged.
    """
    with open_patch(path) as patch:
        available = imagery_bands(patch, asked=[str(number) for number in chosen])
        found = list(available.values()) if all_bands else [available.get(number, "none") for number in chosen]
        if found != list(names):
            raise BandError(
                f"patch {path} has the bands {', '.join(found)} where the others have {', '.join(names)}; cut all patches from scenes with equal bands"
            )
        try:
            masked = [number for number in chosen if not is_masked_by_imagery(patch, number, available)]
            with raster_env():
                values = patch.read(list(chosen))
                valid = (patch.read_masks(masked) > 0).all(axis=0) if masked else np.ones(values.shape[1:], dtype=bool)
        except RasterioIOError as error:
            raise InputError(
                f"patch {path} cannot be read ({first_sentence(error.__cause__ or error)}); it may be truncated: run img_preprocessing.py again"
            ) from error
    return in_single_precision(values, valid)


def in_single_precision(values: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Takes pixels [num_bands, height, width] for missing that are no numbers in the precision of the views: 1e300 is infinite there."""
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            valid &= np.isfinite(values.astype(np.float32)).all(axis=0)
        values[:, ~valid] = 0
    return values, valid
