"""Which tiles are explained: some of each city, drawn from those that the model was tested on, or those that the user names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable
from pathlib import Path

import pandas as pd

from imagery2flow.imagery.patch_files import PatchFiles
from imagery2flow.imagery.units import check_ids
from imagery2flow.run.device import random_numbers
from imagery2flow.run.errors import InputError, shown
from imagery2flow.run.explain_config import ExplainConfig
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import read_table

ALL = "all"  # the one group of tiles without cities
TEST = "test"
LONGEST_NAME = 100  # characters of a city's name in a file's


def choose_tiles(files: PatchFiles, held_out: Collection[str], config: ExplainConfig, ledger: Ledger) -> dict[str, list[str]]:
    """Ids of the tiles to explain by city, both sorted.

    Args:
        files: All tiles.
        held_out: Cities that the model never saw: all of their tiles are of the test split.
        config: Settings.
        ledger: Takes what is not drawn from, and cities with fewer tiles than asked for.

    Raises:
        InputError: An id is unknown or cannot name a file, or there is nothing to draw from.
    """
    table = label_tiles(files, config.label_column, ledger)
    if config.geocodes:
        unknown = [geocode for geocode in config.geocodes if geocode not in table.index]
        if unknown:
            raise InputError(
                f"--geocodes: {len(unknown)} are no patches of {files.folder} ({shown(unknown)}); name ids of its manifest.csv"
            )
        table = table.loc[sorted(config.geocodes)]
        chosen = {str(city): part.index.tolist() for city, part in table.groupby(table.city.fillna(ALL))}
    else:
        chosen = draw_tiles(table, held_out, config, ledger)
    check_ids(pd.Series([geocode for geocodes in chosen.values() for geocode in geocodes]), f"patches of {files.folder}")
    return chosen


def label_tiles(files: PatchFiles, label_column: str, ledger: Ledger) -> pd.DataFrame:
    """City and split of each tile by its id: NaN where the manifest says none, or has no such column."""
    path = files.folder / "manifest.csv"
    ids = pd.Index(list(files.paths), name="geocode")
    if not path.is_file():
        return pd.DataFrame({"city": ALL, "split": None}, index=ids)
    manifest = read_table(path, "manifest", ("geocode", "path", label_column, "split")).drop_duplicates("geocode").set_index("geocode")
    if label_column not in manifest:
        ledger.note(f"{path} has no column {label_column}: all tiles are one group")
        manifest[label_column] = ALL
    if "split" not in manifest:
        ledger.note(f"{path} has no column split: tiles are drawn from all, those that the model was trained on too")
        manifest["split"] = TEST
    return manifest.reindex(ids)[[label_column, "split"]].set_axis(["city", "split"], axis=1)


def draw_tiles(table: pd.DataFrame, held_out: Collection[str], config: ExplainConfig, ledger: Ledger) -> dict[str, list[str]]:
    """Some tiles of each city at random; a city's draw does not depend on which others there are.

    Raises:
        InputError: No tile has a city and is of the test split.
    """
    ledger.leave_out("tiles without a city, which none is drawn from", table.index[table.city.isna()])
    tested = table[table.city.notna() & ((table.split == TEST) | table.city.isin(held_out) | table.split.isna().all())]
    if not len(tested):
        raise InputError(
            f"no tile of {config.data_path} has a city in the column {config.label_column} and the split {TEST}; name the tiles to explain with --geocodes"
        )
    ledger.leave_out(f"cities without a tile of the split {TEST}", sorted(set(table.city.dropna()) - set(tested.city)))
    chosen, few = {}, []
    for city, part in tested.groupby("city"):
        key = int.from_bytes(hashlib.sha256(str(city).encode()).digest()[:4])
        order = random_numbers(config.seed, key).permutation(len(part))
        chosen[str(city)] = sorted(part.index.sort_values()[order[: config.tiles_per_city]])
        few += [f"{city} {len(part)}"] if len(part) < config.tiles_per_city else []
    if few:
        ledger.note(f"{len(few)} cities have fewer than {config.tiles_per_city} tiles, and give all: {shown(few)}")
    return chosen


def file_names(cities: Iterable[str]) -> dict[str, str]:
    """What stands for each city in the name of a file: letters, digits, '-', '.' and '_', different for each, in whatever case."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for city in cities:
        base = re.sub(r"[^\w.-]+", "_", city).strip("._")[:LONGEST_NAME] or "city"
        candidates = (base if number == 1 else f"{base}_{number}" for number in range(1, len(taken) + 2))
        names[city] = next(name for name in candidates if name.casefold() not in taken)
        taken.add(names[city].casefold())
    return names


def sheet_path(folder: Path, name: str, number: int) -> Path:
    """The file of a city's contact sheet: of several the first has no number."""
    return folder / (f"contact_{name}.png" if number == 1 else f"contact_{name}_sheet{number}.png")
