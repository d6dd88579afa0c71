"""Indexes of cities: the true value of each tile's city, and how far what was predicted is from it, over tiles and over cities.

Within a city the true value is one and the same: a score over tiles of cities that the model was trained on tells whether it recognises them. What a model knows of a city that it never saw is told by
predictions of models that left the city out. The mean predictor, which says the mean of its training tiles everywhere, stands beside every score.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from imagery2flow.cities import scores
from imagery2flow.cities.tiles import LARGEST, indexed_by_id
from imagery2flow.run.errors import InputError, TableError, shown
from imagery2flow.run.keys import key_columns, match_keys
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import read_table

MODEL, TRAINING_MEAN = "model", "training mean"


def read_indexes(path: str, key_column: str, ledger: Ledger) -> pd.DataFrame:
    """The table of true indexes: index key (text, sorted), its other columns as they are.

    Raises:
        MissingInputError: There is no such file.
        TableError: The column of keys is absent, or a key is empty or there twice.
    """
    header = read_table(path, "indexes", ()).columns
    named = key_columns(header, key_column)
    if len(named) != 1:
        has = "no" if not named else "more than one"
        raise TableError(f"indexes {path} has {has} column {key_column}, but {shown(header)}; name its column of cities with --labels_key")
    table = read_table(path, "indexes", named)
    ledger.reads(path)
    if "geocode" in table and named[0] != "geocode":
        table = table.drop(columns="geocode")
    return indexed_by_id(table.rename(columns={named[0]: "geocode"}), f"indexes {path}").rename_axis("key")


def true_values(indexes: pd.DataFrame, target: str, keys: pd.Series, key_column: str, ledger: Ledger) -> pd.Series:
    """The true index of each tile by id; tiles whose key has no value are left out, and their keys are listed.

    Args:
        indexes: By key.
        target: Column.
        keys: Of each tile, by id.
        key_column: What the keys are.
        ledger: Takes the keys without a value.

    Raises:
        InputError: There is no such column, it holds text, or no tile has a value.
    """
    if target not in indexes:
        raise InputError(
            f"the table of --labels_path has no column {target}, but {shown(indexes.columns)}; choose among them with --target_column"
        )
    if not pd.api.types.is_numeric_dtype(indexes[target]):
        raise InputError(
            f"the column {target} of --labels_path holds text ({shown(indexes[target].dropna().unique())}); give numbers, and empty cells where there is none"
        )
    match, several = match_keys(keys.dropna().unique(), indexes.index.tolist(), key_column)
    for name, candidates in several.items():
        raise InputError(f"{name} fits {len(candidates)} rows of --labels_path ({shown(candidates)}); name the one meant exactly so")
    values = keys.map(match).map(indexes[target])
    values = values.where(values.astype(np.float64).abs() <= LARGEST)
    ledger.leave_out("tiles without a key to the rows of --labels_path", keys.index[keys.isna()])
    ledger.leave_out(f"cities or tiles without a value of {target} in --labels_path", sorted(keys[values.isna()].dropna().unique()))
    ledger.leave_out(f"rows of --labels_path without a tile to score {target}", indexes.index.difference(list(match.values())))
    if values.isna().all():
        raise InputError(
            f"--labels_path has no value of {target} for any of the tiles ({shown(keys.unique())} against {shown(indexes.index)}); check --labels_key"
        )
    return values.dropna().astype(np.float64)


def city_table(tiles: pd.DataFrame) -> pd.DataFrame:
    """What was predicted for each city, as one row per city, sorted by name.

    Args:
        tiles: city, observed, predicted, mean (the mean predictor): one row per tile.

    Returns:
        city, tiles, observed (mean), predicted_mean, predicted_std (NaN of one tile), training_mean.
    """
    cities = tiles.groupby("city", sort=True)
    return cities.agg(
        tiles=("predicted", "size"),
        observed=("observed", "mean"),
        predicted_mean=("predicted", "mean"),
        predicted_std=("predicted", "std"),
        training_mean=("mean", "mean"),
    ).reset_index()


def score_rows(tiles: pd.DataFrame) -> pd.DataFrame:
    """Scores of the model and of the mean predictor, over tiles and over cities (mean against mean).

    Args:
        tiles: city, observed, predicted, mean: one row per tile.

    Returns:
        over, predictor, number (of tiles or cities), r2, rmse, spearman, note: why a score is empty.
    """
    cities = city_table(tiles)
    values = {
        ("tiles", MODEL): (tiles.observed, tiles.predicted),
        ("tiles", TRAINING_MEAN): (tiles.observed, tiles["mean"]),
        ("cities", MODEL): (cities.observed, cities.predicted_mean),
        ("cities", TRAINING_MEAN): (cities.observed, cities.training_mean),
    }
    rows = []
    for (over, predictor), pair in values.items():
        observed, predicted = (one.to_numpy(np.float64) for one in pair)
        found = {
            "r2": scores.r2(observed, predicted),
            "rmse": scores.rmse(observed, predicted),
            "spearman": scores.spearman(observed, predicted),
        }
        rows.append({"over": over, "predictor": predictor, "number": len(observed)} | found | {"note": why_undefined(observed, predicted)})
    return pd.DataFrame(rows)


def why_undefined(observed: np.ndarray, predicted: np.ndarray) -> str:
    """Why R2 or Spearman has no value; nothing where both have one."""
    if np.ptp(observed) == 0:
        return "the observed values are all equal: no R2, no Spearman"
    return "the predicted values are all equal: no Spearman" if np.ptp(predicted) == 0 else ""
