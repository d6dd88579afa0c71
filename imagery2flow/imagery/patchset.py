"""A set of patches in memory: what stage 1 wrote, or any folder of images, as one flat table of pixels.

Patches differ in size, so their pixels stand one behind the other: ``values`` [num_pixels, num_bands] in the patches' own type, ``valid``
[num_pixels] of bool; patch i takes the rows from ``first_pixel[i]``, row-major, ``height[i]`` x ``width[i]``. Patches are sorted by id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioIOError
from tqdm import tqdm

from imagery2flow.imagery.cutting import WRITTEN
from imagery2flow.imagery.patches import read_manifest
from imagery2flow.imagery.scene import choose_bands, imagery_bands
from imagery2flow.run.errors import BandError, InputError, MissingInputError, TableError, shown
from imagery2flow.run.stage import Ledger

CHOOSE_BANDS = "choose among them with --bands"
IMAGE_SUFFIXES = {".tif", ".tiff", ".png", ".jpg", ".jpeg", ".vrt"}


@dataclass(frozen=True)
class Normalisation:
    """How pixel values become numbers around 0: (value - mean) / std per band; ``highest`` scales values to 0..1 for RGB jitter.

    Attributes:
        band_names: Name of each band.
        mean: Mean over valid pixels, per band, in the patches' units.
        std: Standard deviation, per band; 1 for a constant band.
        highest: Largest value, per band; for uint8 always 255.
        dtype: NumPy type of the patches, which tells their scale.
    """

    band_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    highest: tuple[float, ...]
    dtype: str


@dataclass(frozen=True)
class PatchSet:
    """Patches of different size in one flat table; see the module's docstring for the layout."""

    geocodes: tuple[str, ...]
    values: np.ndarray
    valid: np.ndarray
    first_pixel: np.ndarray
    height: np.ndarray
    width: np.ndarray
    normalisation: Normalisation

    def __len__(self) -> int:
        return len(self.geocodes)

    def patch(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """One patch: values [height, width, num_bands] and valid [height, width]."""
        height, width = int(self.height[position]), int(self.width[position])
        rows = slice(int(self.first_pixel[position]), int(self.first_pixel[position]) + height * width)
        return self.values[rows].reshape(height, width, -1), self.valid[rows].reshape(height, width)


def load_patches(data_path: str, bands: Sequence[str], ledger: Ledger, remedy: str = CHOOSE_BANDS) -> PatchSet:
    """Loads the patches of a folder.

    Args:
        data_path: Folder that stage 1 wrote, or a folder of images named ``..._<geocode>.tif``.
        bands: Names or 1-based numbers of the bands to take, or their published count; all if empty.
        ledger: Takes the units without a patch, and patches without a valid pixel.
        remedy: What the user can do if a band is not there.

    Raises:
        MissingInputError: The folder is absent or holds no patch.
        BandError: Bands are missing, or differ between patches.
        TableError: An id occurs more than once.
        InputError: No patch has a valid pixel.
    """
    folder = Path(data_path)
    paths = find_patches(folder, ledger)
    chosen, names, all_bands = choose_patch_bands(next(iter(paths.values())), bands, ledger, remedy)
    shapes: dict[str, tuple[int, ...]] = {}
    pixels: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    dtype: str | None = None
    for geocode, path in tqdm(paths.items(), desc="read patches", unit="patch", disable=None):
        values, valid = read_patch(path, chosen, names, all_bands)
        if dtype not in (None, values.dtype.name):
            raise BandError(f"patch {path} holds {values.dtype.name} but the patches before it {dtype}; bring all to one type and scale")
        dtype = values.dtype.name
        if not valid.any():
            continue
        shapes[geocode] = valid.shape
        pixels.append(values.reshape(len(chosen), -1).T)  # [height * width, num_bands]
        masks.append(valid.reshape(-1))
    ledger.came_in["patches"] = len(paths)
    if not pixels:
        raise InputError(f"no patch of {folder} has a valid pixel; check the nodata value of the scene")
    ledger.leave_out("patches without a valid pixel", sorted(set(paths) - set(shapes)))
    values, valid = np.concatenate(pixels), np.concatenate(masks)
    height, width = np.array(list(shapes.values()), dtype=np.int64).T
    first_pixel = np.concatenate([[0], np.cumsum(height * width)[:-1]])
    return PatchSet(tuple(shapes), values, valid, first_pixel, height, width, measure(values, valid, names))


def find_patches(folder: Path, ledger: Ledger) -> dict[str, Path]:
    """Files of the patches by id, sorted by id; the manifest decides where there is one.

    Raises:
        MissingInputError: The folder is absent or holds no patch, or a patch of the manifest is gone.
        TableError: An id occurs more than once.
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
        repeated = written.geocode[written.geocode.duplicated()]
        if len(repeated):
            raise TableError(
                f"{folder}/manifest.csv names {len(repeated)} units more than once ({shown(repeated)}); run img_preprocessing.py again, or keep one row each"
            )
        paths = {geocode: folder / name for geocode, name in zip(written.geocode, written.path, strict=True)}
        gone = [str(path) for path in paths.values() if not path.is_file()]
        if gone:
            raise MissingInputError(
                f"{len(gone)} patches of {folder}/manifest.csv are gone ({shown(gone)}); run img_preprocessing.py again"
            )
    else:
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
        return rasterio.open(path)
    except RasterioIOError as error:
        raise InputError(
            f"patch {path} cannot be opened ({str(error).splitlines()[0]}); it may be truncated: run img_preprocessing.py again"
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
            values = patch.read(list(chosen))
            masked = [number for number in chosen if not is_masked_by_imagery(patch, number, available)]
            valid = (patch.read_masks(masked) > 0).all(axis=0) if masked else np.ones(values.shape[1:], dtype=bool)
        except RasterioIOError as error:
            raise InputError(
                f"patch {path} cannot be read ({str(error).splitlines()[0]}); it may be truncated: run img_preprocessing.py again"
            ) from error
    if values.dtype.kind == "f":
        valid &= np.isfinite(values).all(axis=0)
        values[:, ~valid] = 0
    return values, valid


def measure(values: np.ndarray, valid: np.ndarray, names: Sequence[str]) -> Normalisation:
    """Statistics per band over valid pixels [num_pixels, num_bands], in double precision."""
    pixels = values[valid].astype(np.float64)
    std = pixels.std(axis=0)
    highest = np.full(len(names), 255.0) if values.dtype == np.uint8 else pixels.max(axis=0)
    return Normalisation(
        band_names=tuple(names),
        mean=tuple(pixels.mean(axis=0).tolist()),
        std=tuple(np.where(std > 0, std, 1.0).tolist()),
        highest=tuple(np.where(highest > 0, highest, 1.0).tolist()),
        dtype=values.dtype.name,
    )


def unit_statistics(patches: PatchSet, normalisation: Normalisation) -> np.ndarray:
    """Mean and standard deviation of every band over each patch's valid pixels, in normalised units: [num_patches, 2 * num_bands]."""
    num_bands = len(normalisation.band_names)
    owner = np.repeat(np.arange(len(patches)), patches.height * patches.width)[patches.valid]
    pixels = (patches.values[patches.valid].astype(np.float64) - normalisation.mean) / normalisation.std
    count = np.maximum(np.bincount(owner, minlength=len(patches)), 1)[:, None]
    total, squares = np.zeros((len(patches), num_bands)), np.zeros((len(patches), num_bands))
    for band in range(num_bands):
        total[:, band] = np.bincount(owner, pixels[:, band], minlength=len(patches))
        squares[:, band] = np.bincount(owner, pixels[:, band] ** 2, minlength=len(patches))
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    return np.concatenate([mean, std], axis=1)
