"""Reads patches: what stage 1 wrote, or any folder of images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioIOError
from tqdm import tqdm

from imagery2flow.imagery.cutting import WRITTEN
from imagery2flow.imagery.patches import read_manifest
from imagery2flow.imagery.patchset import Normalisation, PatchSet, measure
from imagery2flow.imagery.scene import choose_bands, imagery_bands
from imagery2flow.run.errors import BandError, InputError, MissingInputError, TableError, first_sentence, shown
from imagery2flow.run.geofiles import inside, open_raster, raster_env
from imagery2flow.run.memory import Allocate
from imagery2flow.run.stage import Ledger
from imagery2flow.run.unfinished import unfinished_folders

CHOOSE_BANDS = "choose among them with --bands"
LONGEST_SIDE = 1 << 20  # pixels of a patch; what is longer is a damaged manifest
IMAGE_SUFFIXES = {".tif", ".tiff", ".png", ".jpg", ".jpeg", ".vrt"}


@dataclass(frozen=True)
class PatchFiles:
    """Patches that are still on disk.

    Attributes:
        folder: Where they are.
        paths: File of each patch by its id, sorted by id.
        num_pixels: Pixels of each patch by its id.
        bands: 1-based numbers of the bands to read.
        names: Their names.
        all_bands: Whether every patch must have these bands and no other.
        dtype: NumPy type of the pixels.
    """

    folder: Path
    paths: dict[str, Path]
    num_pixels: dict[str, int]
    bands: tuple[int, ...]
    names: tuple[str, ...]
    all_bands: bool
    dtype: str

    def select(self, geocodes: Sequence[str]) -> PatchFiles:
        """Some of them."""
        chosen = {geocode: self.paths[geocode] for geocode in geocodes}
        return replace(self, paths=chosen, num_pixels={geocode: self.num_pixels[geocode] for geocode in geocodes})

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


def find_patches(data_path: str, bands: Sequence[str], ledger: Ledger, remedy: str = CHOOSE_BANDS) -> PatchFiles:
    """Finds the patches of a folder and the bands to read; as ``load_patches``."""
    folder = Path(data_path)
    paths = find_paths(folder, ledger)
    first = next(iter(paths.values()))
    chosen, names, all_bands = choose_patch_bands(first, bands, ledger, remedy)
    with open_patch(first) as patch:
        dtype = patch.dtypes[chosen[0] - 1]
    return PatchFiles(folder, paths, patch_sizes(folder, paths), tuple(chosen), names, all_bands, dtype)


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
    size = sum(files.num_pixels[geocode] for geocode in files.paths)
    table, table_valid = allocate((size, len(files.bands)), np.dtype(files.dtype)), allocate((size,), np.dtype(bool))
    shapes: dict[str, tuple[int, ...]] = {}
    end = 0
    for geocode, path in tqdm(files.paths.items(), desc="read patches", unit="patch", disable=None, leave=False):
        values, valid = read_patch(path, files.bands, files.names, files.all_bands)
        if values.dtype.name != files.dtype:
            raise BandError(
                f"patch {path} holds {values.dtype.name} but the patches before it {files.dtype}; bring all to one type and scale"
            )
        if valid.size != files.num_pixels[geocode]:
            said = files.num_pixels[geocode]
            raise InputError(f"patch {path} has {valid.size:,} pixels but manifest.csv says {said:,}; run img_preprocessing.py again")
        if valid.any():
            shapes[geocode] = valid.shape
            rows = slice(end, end + valid.size)
            table[rows], table_valid[rows] = values.reshape(len(files.bands), -1).T, valid.reshape(-1)  # [height * width, num_bands]
            end += valid.size
    height, width = np.array([*shapes.values()], dtype=np.int64).reshape(-1, 2).T
    first_pixel = np.cumsum(height * width) - height * width
    normalisation = normalisation or measure(table[:end], table_valid[:end], files.names)
    return PatchSet(tuple(shapes), table[:end], table_valid[:end], first_pixel, height, width, normalisation)


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
        manifest = read_manifest(folder)
        ledger.reads(folder / "manifest.csv")
        ledger.leave_out("units without a patch", manifest.geocode[manifest.status != WRITTEN])
        written = manifest[manifest.status == WRITTEN].sort_values("geocode")
        if written[["geocode", "path"]].isna().any(axis=None):
            raise TableError(f"{folder}/manifest.csv has written patches without a unit or a path; run img_preprocessing.py again")
        repeated = written.geocode[written.geocode.duplicated()]
        if len(repeated):
            raise TableError(
                f"{folder}/manifest.csv names {len(repeated)} units more than once ({shown(repeated)}); run img_preprocessing.py again, or keep one row each"
            )
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
    if len(bands) == 1 and bands[0].isdigit() and bands[0] not in available.values():
        if int(bands[0]) != len(available):
            listing = ", ".join(available.values())
            raise BandError(
                f"--bands {bands[0]} but the patches of {path.parent} have {len(available)} bands ({listing}); name the ones to use, for example --bands {available[1]}"
            )
        bands = ()
    chosen = choose_bands(bands, available, f"patches {path.parent}", remedy)
    return chosen, tuple(available[number] for number in chosen), not bands


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
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            valid &= np.isfinite(values.astype(np.float32)).all(axis=0)  # in the precision of the views: 1e300 is infinite there
        values[:, ~valid] = 0
    return values, valid
