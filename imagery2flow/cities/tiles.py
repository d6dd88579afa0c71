"""What is known and said of tiles, joined by id: the city of each, predictions of one or several models, and features.

Which rows of a table of predictions count: those whose split is ``test``; of a classifier also those of split ``unknown`` whose city is none of its classes, because it
cannot have been trained on them as such. A class that only some of several classifiers know is NaN in the rows of the others.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from imagery2flow.encoder.predictions import UNKNOWN
from imagery2flow.imagery.sites import SPLITS
from imagery2flow.run.device import random_numbers
from imagery2flow.run.errors import Faults, InputError, TableError, shown
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import read_table

SEEN_AS = (*SPLITS, UNKNOWN)
PROBABILITY, PREDICTED, MEAN = "probability_", "predicted_", "mean_"
LARGEST = 1e100  # whose square is still a number
SUM_TOLERANCE = 1e-3  # what sixteen-bit floats and CSV of few digits leave of a sum of 1


def read_tiles(folders: Sequence[str], label_column: str, key_column: str | None, ledger: Ledger) -> pd.DataFrame:
    """The tiles of all manifests: index geocode, sorted; columns status, city, and key, what joins them to the table of indexes.

    Args:
        folders: Folders of patches with a manifest.csv.
        label_column: Column with the name of the city.
        key_column: Column that becomes ``key``; None for none.
        ledger: Takes the tiles without a city.

    Raises:
        MissingInputError: A folder has no manifest.csv.
        InputError: A column is absent.
        TableError: An id is empty or there twice.
    """
    parts = []
    columns = {"status": "status", "city": label_column} | ({"key": key_column} if key_column else {})
    for folder in folders:
        path = Path(folder) / "manifest.csv"
        table = read_table(path, "manifest", ("geocode", *columns.values()))
        ledger.reads(path)
        for name in ("geocode", *columns.values()):
            if name not in table:
                raise InputError(
                    f"{path} has no column {name}, but {shown(table.columns)}; make the patches with img_preprocessing.py --mode grid from folders <city>/<site>, or name another column"
                )
        parts.append(pd.DataFrame({"geocode": table.geocode} | {new: table[old] for new, old in columns.items()}))
    tiles = indexed_by_id(pd.concat(parts), f"manifest.csv of {shown(folders)}")
    ledger.take_in("tiles", len(tiles))
    ledger.leave_out(f"tiles without a value in the column {label_column}", tiles.index[tiles.city.isna()])
    return tiles.dropna(subset=["city"])


def indexed_by_id(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """The table with its ids as a sorted index.

    Raises:
        TableError: There is no column geocode, or an id is empty, there twice or a number.
    """
    if "geocode" not in table:
        raise TableError(f"{where} has no column geocode, but {shown(table.columns)}; name the column of ids geocode")
    faults = Faults(where)
    ids = table["geocode"]
    if ids.isna().any():
        faults.add(f"{ids.isna().sum():,} rows have no id; fill or remove them")
    elif pd.api.types.is_numeric_dtype(ids) and len(ids):
        faults.add(f"its ids are numbers ({shown(ids)}), whose leading zeros are lost; store them as text")
    if ids.dropna().duplicated().any():
        repeated = sorted(set(ids[ids.duplicated()].dropna().astype(str)))
        faults.add(f"{len(repeated):,} ids are there more than once ({shown(repeated)}); keep one row each")
    faults.raise_if_any()
    return table.set_index("geocode").sort_index()


def read_predictions(path: str, ledger: Ledger) -> pd.DataFrame:
    """A table of predictions: index geocode, sorted; columns split and those of classes or targets, every number finite.

    Raises:
        MissingInputError: There is no such file.
        TableError: Columns are absent, or values are no numbers, no probabilities, or no splits.
    """
    where = f"predictions {path}"
    table = indexed_by_id(read_table(path, "predictions", ("geocode", "split")), where)
    ledger.reads(path)
    ledger.take_in("rows of predictions", len(table))
    numbers = [name for name in table if str(name).startswith((PROBABILITY, PREDICTED, MEAN))]
    means = [name.replace(PREDICTED, MEAN, 1) for name in numbers if name.startswith(PREDICTED)]
    faults = Faults(where)
    if not any(name.startswith((PROBABILITY, PREDICTED)) for name in numbers):
        faults.add(f"it has no column {PROBABILITY}<class> or {PREDICTED}<target>; make it with get_img_embedding.py --predict")
    for name in ("split", *means):
        if name not in table:
            faults.add(f"it has no column {name}; make it with get_img_embedding.py --predict")
    faults.raise_if_any()
    foreign = table.index[~table["split"].isin(SEEN_AS)]
    if len(foreign):
        faults.add(
            f"{len(foreign):,} rows have a split other than {', '.join(SEEN_AS)} ({shown(table.loc[foreign, 'split'].unique())}); mend them"
        )
    check_numbers(table[numbers], faults)
    faults.raise_if_any()
    check_probabilities(table[[name for name in numbers if name.startswith(PROBABILITY)]], faults)
    faults.raise_if_any()
    counts = ", ".join(f"{count:,} {name}" for name, count in table["split"].value_counts().reindex(SEEN_AS).dropna().astype(int).items())
    ledger.note(f"{where}: {counts}")
    return table[["split", *numbers]]


def check_numbers(table: pd.DataFrame, faults: Faults) -> None:
    """Notes columns that are no numbers, and ids with a value that is none."""
    texts = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    if texts:
        faults.add(f"the columns {shown(texts)} hold text where numbers are needed; mend them")
        return
    bad = table.index[~(np.abs(table.to_numpy()) <= LARGEST).all(axis=1)]
    if len(bad):
        faults.add(
            f"{len(bad):,} rows hold an empty cell or a value that is not finite or beyond {LARGEST:g} ({shown(bad)}); make the table again, or remove the rows"
        )


def check_probabilities(table: pd.DataFrame, faults: Faults) -> None:
    """Notes ids whose probabilities are below 0 or do not sum to 1."""
    if table.shape[1] == 0:
        return
    values = table.to_numpy(np.float64)
    bad = table.index[(values < 0).any(axis=1) | (np.abs(values.sum(axis=1) - 1) > SUM_TOLERANCE)]
    if len(bad):
        faults.add(
            f"the probabilities of {len(bad):,} rows are below 0 or do not sum to 1 ({shown(bad)}); give every class of the model a column, and make them with get_img_embedding.py --predict"
        )


def join_classes(tables: Sequence[pd.DataFrame], tiles: pd.DataFrame, ledger: Ledger) -> pd.DataFrame | None:
    """Probabilities of the rows that count, of all classifiers: index geocode, sorted; columns are classes, sorted; None without a classifier.

    Args:
        tables: Tables of predictions.
        tiles: Tiles with their city; rows of other ids are left out.
        ledger: Takes what is left out.

    Raises:
        TableError: A row counts in two tables.
    """
    parts = []
    for table in tables:
        found = table[[name for name in table if name.startswith(PROBABILITY)]]
        if found.shape[1] == 0:
            continue
        found = found.rename(columns=lambda name: name.removeprefix(PROBABILITY)).loc[found.index.isin(tiles.index)]
        split, is_class = table["split"].loc[found.index], tiles.city.loc[found.index].isin(found.columns)
        ledger.leave_out(
            "tiles of split unknown in cities that the model knows: it may have been trained on them",
            found.index[(split == "unknown") & is_class],
        )
        parts.append(found[(split == "test") | ((split == "unknown") & ~is_class)])
    return join_rows(parts, "probabilities").sort_index(axis=1) if parts else None


def join_targets(tables: Sequence[pd.DataFrame], tiles: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """By target the test rows of all models that predict it: index geocode, sorted; columns predicted and mean (the mean predictor).

    Raises:
        TableError: A row is test in two tables of one target.
    """
    parts = defaultdict(list)
    for table in tables:
        test = table[(table["split"] == "test") & table.index.isin(tiles.index)]
        for name in test:
            if name.startswith(PREDICTED):
                target = name.removeprefix(PREDICTED)
                parts[target].append(test[[name, MEAN + target]].set_axis(["predicted", "mean"], axis=1))
    return {target: join_rows(found, f"predictions of {target}") for target, found in parts.items()}


def join_rows(parts: Sequence[pd.DataFrame], what: str) -> pd.DataFrame:
    """Rows of several tables as one, sorted by id.

    Raises:
        TableError: An id is in two of them.
    """
    table = pd.concat(parts).sort_index()
    repeated = table.index[table.index.duplicated()].unique()
    if len(repeated):
        raise TableError(
            f"--predictions_path: {len(repeated):,} tiles have {what} for testing in more than one table ({shown(repeated)}); name tables of models that were tested on different tiles"
        )
    return table


def note_missing(tables: Sequence[pd.DataFrame], tiles: pd.DataFrame, ledger: Ledger) -> None:
    """Notes ids that are only in the predictions or only in the manifest.

    Raises:
        TableError: They have none in common.
    """
    predicted = pd.Index([]).union(pd.concat([table["split"] for table in tables]).index.unique())
    foreign = predicted.difference(tiles.index)
    if len(foreign) == len(predicted):
        raise TableError(
            f"--predictions_path: none of the {len(predicted):,} ids ({shown(predicted)}) is among the {len(tiles):,} tiles with a city ({shown(tiles.index)}); name the predictions of these patches"
        )
    ledger.leave_out("predictions of ids that are no tile with a city", foreign)
    absent = tiles.loc[tiles.index.difference(predicted), "status"]
    for status, ids in absent.groupby(absent.fillna("no status")):
        ledger.leave_out(f"tiles without a prediction, in the manifest: {status}", ids.index)


def draw_tiles(city: pd.Series, tiles_per_city: int, seed: int) -> pd.Index:
    """Ids of at most so many tiles of each city, sorted: what is drawn of a city depends on its own tiles and the seed alone.

    Args:
        city: Of each tile, by id.
        tiles_per_city: 0 for all.
        seed: Of the draw.
    """
    if tiles_per_city == 0:
        return city.index.sort_values()
    drawn = []
    for name, own in city.groupby(city):
        ids = own.index.sort_values().to_numpy()
        random = random_numbers(seed, zlib.crc32(str(name).encode()))
        drawn.append(ids if len(ids) <= tiles_per_city else random.choice(ids, tiles_per_city, replace=False))
    return pd.Index(np.concatenate([np.empty(0, dtype=object), *drawn]), name="geocode").sort_values()


def read_features(paths: Sequence[str], ledger: Ledger) -> pd.DataFrame | None:
    """Numbered columns of the tables of features: index geocode, sorted; None without a table.

    Raises:
        MissingInputError: There is no such file.
        TableError: There are no numbered columns, other ones in another table, or values that are no numbers.
    """
    parts: list[pd.DataFrame] = []
    for path in paths:
        faults = Faults(f"features {path}")
        table = read_table(path, "features", ("geocode",))
        ledger.reads(path)
        table.columns = table.columns.astype(str)
        found = indexed_by_id(table, faults.where)[sorted((name for name in table if name.isdigit()), key=int)]
        ledger.take_in("rows of features", len(found))
        if found.shape[1] == 0:
            faults.add("it has no numbered columns; make it with get_img_embedding.py")
        elif parts and list(found) != list(parts[0]):
            faults.add(f"it has {found.shape[1]} numbered columns but {paths[0]} has {parts[0].shape[1]}; make both with one encoder")
        check_numbers(found, faults)
        faults.raise_if_any()
        parts.append(found)
    return indexed_by_id(pd.concat(parts).reset_index(), f"features {shown(paths)}") if parts else None
