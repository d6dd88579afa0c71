"""``python -m imagery2flow cities``: how well cities are recognised, which look alike, what unseen ones look like, and how well indexes are predicted.

Tiles are joined by id (``cities.tiles``). Cities that a model never saw cannot be named by it: their tiles count in no score of recognition, and ``looks_like`` says instead
which known cities they resemble.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from imagery2flow.cities import indexes, scores, similarity, tiles
from imagery2flow.cities.results import CONFUSION, COSINE, FRECHET, CityResults, as_text, write_results
from imagery2flow.run.cities_config import CitiesConfig
from imagery2flow.run.errors import InputError, shown
from imagery2flow.run.files import check_output_folder
from imagery2flow.run.inspection import Inspection
from imagery2flow.run.stage import Ledger

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Inputs:
    """What was read.

    Attributes:
        tiles: By id: city, and the key of the table of indexes if there is one.
        probabilities: By id of the tiles that count: one column per class, NaN where the tile's model does not know the class; None without a classifier.
        targets: By target and id of the tiles that count: predicted, mean.
        features: By id; None without a table.
        indexes: By key; None without a table.
    """

    tiles: pd.DataFrame
    probabilities: pd.DataFrame | None
    targets: dict[str, pd.DataFrame]
    features: pd.DataFrame | None
    indexes: pd.DataFrame | None

    @property
    def tested(self) -> pd.Index:
        """Ids of all tiles that count, of classifiers or of predicted indexes."""
        tables = [table for table in (self.probabilities, *self.targets.values()) if table is not None]
        return pd.Index([], dtype=object).append([table.index for table in tables]).unique()


def score_cities(config: CitiesConfig, ledger: Ledger, draw_figures: Callable[[CityResults], Mapping[str, Figure]]) -> Path:
    """Reads, scores, draws, prints and writes; returns the path of the run file.

    Args:
        config: Settings.
        ledger: Takes everything that is left out.
        draw_figures: Makes figures, by file name without its suffix; handed in, because they are made above this layer.

    Raises:
        InputError: An input cannot be used, or there is nothing to score.
    """
    inputs, results = read_inputs(config, ledger), CityResults()
    city = inputs.tiles.city
    probabilities = None if inputs.probabilities is None else drawn(inputs.probabilities, city, config, ledger)
    if probabilities is not None:
        add_recognition(results, probabilities, city, config, ledger)
    if inputs.features is not None:
        add_features(results, feature_tiles(inputs, config, ledger), city, ledger)
    if probabilities is not None:
        add_unseen(results, probabilities, city, ledger)
    add_indexes(results, inputs, config, ledger)
    write_results(results, draw_figures(results), config.output)
    print(as_text(results))
    return config.output / "run.json"


def read_inputs(config: CitiesConfig, ledger: Ledger) -> Inputs:
    """Reads all inputs, so that their faults are named together, and joins them by id.

    Raises:
        InputError: One cannot be used, or they do not fit each other.
    """
    inspection = Inspection(ledger)
    inspection.look("--output_dir", check_output_folder, config.output, "--output_dir")
    key = config.labels_key if config.labels_path else None
    found = inspection.look("--data_path", tiles.read_tiles, config.data_path, config.label_column, key, ledger)
    tables = [inspection.look(path, tiles.read_predictions, path, ledger) for path in config.predictions_path]
    features = inspection.look("--embeddings_path", tiles.read_features, config.embeddings_path, ledger)
    truth = (
        inspection.look(config.labels_path, indexes.read_indexes, config.labels_path, config.labels_key, ledger)
        if config.labels_path
        else None
    )
    inspection.raise_if_any()
    read = [table for table in tables if table is not None]
    assert found is not None and len(read) == len(tables), "what was not read has raised"
    tiles.note_missing(read, found, ledger)
    targets = chosen_targets(tiles.join_targets(read, found), config)
    inputs = Inputs(found, tiles.join_classes(read, found, ledger), targets, features, truth)
    if inputs.tested.empty:
        raise InputError(
            f"--predictions_path: {shown(config.predictions_path)} hold no tile of split test; predict tiles that the model was not trained on"
        )
    return inputs


def chosen_targets(targets: dict[str, pd.DataFrame], config: CitiesConfig) -> dict[str, pd.DataFrame]:
    """The targets that are asked for, or all.

    Raises:
        InputError: One was not predicted, or predictions and truth are not both there.
    """
    absent = [name for name in config.target_column if name not in targets]
    if absent:
        raise InputError(
            f"--target_column {shown(absent)} is predicted in no table of --predictions_path, which hold {shown(targets) or 'no index'}; choose among those"
        )
    if targets and not config.labels_path:
        raise InputError(
            f"--predictions_path hold indexes ({shown(targets)}) but no --labels_path says the true ones; name the table of indexes"
        )
    if config.labels_path and not targets:
        raise InputError(
            "--labels_path names true indexes but no table of --predictions_path holds predicted ones; leave the flag out, or add a table"
        )
    return {name: targets[name] for name in config.target_column or targets}


def drawn(table: pd.DataFrame, city: pd.Series, config: CitiesConfig, ledger: Ledger | None = None) -> pd.DataFrame:
    """The rows of a table by id that were drawn; a ledger is told how many, and which cities have fewer than asked for."""
    own = city.loc[table.index]
    ids = tiles.draw_tiles(own, config.tiles_per_city, config.seed)
    if ledger is None:
        return table.loc[ids]
    number = own.value_counts().sort_index()
    few = number[number < config.tiles_per_city]
    limit = (
        f"at most {config.tiles_per_city} per city, drawn by seed {config.seed}" if config.tiles_per_city else "without a limit per city"
    )
    notes = [f"{len(ids):,} of {len(table):,} tiles to test count, {limit}"]
    if len(few):
        named = ", ".join(f"{name} ({count})" for name, count in few.items())
        notes.append(f"{len(few)} cities have fewer than {config.tiles_per_city} tiles to test and give all: {named}")
    for sentence in notes:
        if sentence not in ledger.notes:  # classes and indexes may be of the same tiles
            ledger.note(sentence)
    return table.loc[ids]


def add_recognition(results: CityResults, probabilities: pd.DataFrame, city: pd.Series, config: CitiesConfig, ledger: Ledger) -> None:
    """Adds scores, confusion, confused pairs, calibration, and the similarity that confusion tells, from tiles of cities that their models know.

    Args:
        results: To add to.
        probabilities: Of the tiles that were drawn: [num_tiles, num_classes], NaN where the tile's model does not know the class.
        city: By id.
        config: Settings.
        ledger: Takes classes without tiles.
    """
    names = list(probabilities)
    probabilities = probabilities[is_seen(probabilities, city)].fillna(0.0)  # a model gives no probability to a class that it does not know
    ledger.went_out["tiles of known cities scored"] = len(probabilities)
    values, true = probabilities.to_numpy(np.float64), pd.Index(names).get_indexer(city.loc[probabilities.index])
    results.metrics["cities"] = scores.all_class_scores(values, true, config.top_k, config.calibration_bins)
    if not len(true):
        ledger.note("no tile to test lies in a city that its model knows: there are no scores of recognition")
        return
    if config.top_k >= len(names):
        ledger.note(f"top-{config.top_k} of {len(names)} classes is right whatever a model says; choose a smaller --top_k")
    called = scores.called_class(values)
    confusion = scores.confusion_matrix(true, called, len(names))
    by_class = scores.class_scores(confusion, names)
    ledger.leave_out("classes without a tile to test, which are in no mean over classes", by_class.index[by_class.tiles == 0])
    results.tables |= {
        "scores_by_class": by_class.reset_index(),
        "confusion": pd.DataFrame(confusion, names, names).rename_axis("true_city").reset_index(),
        "confused_pairs": scores.confused_pairs(confusion, names),
        "calibration": scores.calibration_bins(values.max(axis=1), called == true, config.calibration_bins),
    }
    shares = similarity.symmetrised_confusion(confusion)
    add_similarity(results, CONFUSION, pd.DataFrame(shares, names, names), similarity.confusion_distance(shares), ledger)


def is_seen(probabilities: pd.DataFrame, city: pd.Series) -> np.ndarray:
    """Whether the model of each tile knows the tile's city: [num_tiles] of bool."""
    place = probabilities.columns.get_indexer(city.loc[probabilities.index])
    own = probabilities.to_numpy(np.float64)[np.arange(len(place)), place]
    return (place >= 0) & np.isfinite(own)


def add_similarity(results: CityResults, measure: str, table: pd.DataFrame, distance: np.ndarray, ledger: Ledger) -> None:
    """Adds a measure of similarity, and its distances as a plane; cities of which it says nothing have no place there."""
    known = np.isfinite(distance.diagonal())
    ledger.leave_out(f"cities without a similarity by {measure}", table.index[~known])
    results.similarity[measure] = table
    if known.sum() < 2:
        ledger.note(f"{known.sum()} cities have a similarity by {measure}; a tree and a map need 2")
        return
    results.distances[measure] = pd.DataFrame(distance, table.index, table.columns).loc[known, known]
    plane = similarity.planar_map(results.distances[measure].to_numpy())
    results.maps[measure] = plane
    numbers = {"num_cities": int(known.sum()), "variance_shown_by_map": plane.variance_shown, "stress_of_map": plane.stress}
    results.metrics.setdefault("similarity", {})[measure] = numbers


def feature_tiles(inputs: Inputs, config: CitiesConfig, ledger: Ledger) -> pd.DataFrame:
    """Features of the tiles that stand for each city: its tiles to test, or its others where it has none, as many as are drawn for scores.

    Raises:
        InputError: No tile has features.
    """
    assert inputs.features is not None
    city, features = inputs.tiles.city, inputs.features
    tested = inputs.tested if inputs.probabilities is None else inputs.probabilities.index  # the tiles of the other scores
    ledger.leave_out("tiles to test without features", tested.difference(features.index))
    ledger.leave_out("features of ids that are no tile with a city", features.index.difference(city.index))
    own = city[city.index.isin(features.index)]
    if own.empty:
        raise InputError(
            f"--embeddings_path: none of the ids ({shown(features.index)}) is among the tiles ({shown(city.index)}); name the features of these patches"
        )
    is_tested = own.index.isin(tested)
    replaced = sorted(set(own) - set(own[is_tested]))
    if replaced:
        ledger.note(
            f"{len(replaced)} cities have no tile to test with features; their similarity is that of their other tiles: {', '.join(replaced)}"
        )
    ledger.leave_out("cities without features", sorted(set(city) - set(own)))
    return drawn(features.loc[own.index[is_tested | own.isin(replaced)]], city, config)


def add_features(results: CityResults, features: pd.DataFrame, city: pd.Series, ledger: Ledger) -> None:
    """Adds the similarities of features: the cosine of city means, and the Frechet distance.

    Args:
        results: To add to.
        features: By id of the tiles that stand for the cities: [num_tiles, dim].
        city: By id.
        ledger: Takes what is left out.
    """
    names, place = np.unique(city.loc[features.index].to_numpy(dtype=str), return_inverse=True)
    vectors = features.to_numpy(np.float64)
    cosine = similarity.cosine_similarity(similarity.city_means(vectors, place, len(names)))
    gaussians = similarity.fit_gaussians(vectors, place, len(names))
    frechet = similarity.frechet_distances(gaussians)
    add_similarity(results, COSINE, pd.DataFrame(cosine, names, names), similarity.cosine_distance(cosine), ledger)
    add_similarity(results, FRECHET, pd.DataFrame(frechet, names, names), frechet, ledger)
    ledger.went_out["tiles whose features are compared"] = len(vectors)
    ledger.note(
        f"Frechet distances are of {gaussians.means.shape[1]} principal components of {vectors.shape[1]} features, which hold {gaussians.variance_kept:.1%} of their variance"
    )


def add_unseen(results: CityResults, probabilities: pd.DataFrame, city: pd.Series, ledger: Ledger) -> None:
    """Adds which known cities each city looks like that its model never saw, the most probable first.

    Args:
        results: To add to; the similarities of features are there already.
        probabilities: Of the tiles that were drawn: [num_tiles, num_classes], NaN where the tile's model does not know the class.
        city: By id.
        ledger: Takes the tiles of those cities.
    """
    unseen = probabilities[~is_seen(probabilities, city)]
    if unseen.empty:
        return
    ledger.leave_out("tiles of cities that their model never saw: not in the scores, see looks_like.csv", unseen.index)
    parts = []
    for name, own in unseen.groupby(city.loc[unseen.index]):
        means = own.mean().dropna()
        called = own.fillna(0.0).idxmax(axis=1).value_counts(normalize=True)
        table = pd.DataFrame({"city": name, "looks_like": means.index, "tiles": len(own), "mean_probability": means.to_numpy()})
        table["share_of_tiles_called_so"] = table.looks_like.map(called).fillna(0.0)
        for measure in (COSINE, FRECHET):
            known = results.similarity.get(measure, pd.DataFrame())
            table[measure] = table.looks_like.map(known.loc[name]) if name in known else np.nan
            table[f"rank_by_{measure}"] = table[measure].rank(ascending=measure == FRECHET, method="first").astype("Int64")
        parts.append(table.sort_values(["mean_probability", "looks_like"], ascending=[False, True]))
    results.tables["looks_like"] = pd.concat(parts, ignore_index=True)
    ledger.went_out["cities never seen"] = len(parts)


def add_indexes(results: CityResults, inputs: Inputs, config: CitiesConfig, ledger: Ledger) -> None:
    """Adds the scores of every index, and what was predicted for each city."""
    score_tables, city_tables = {}, {}
    for target, predicted in inputs.targets.items():
        assert inputs.indexes is not None
        keys = inputs.tiles.key.loc[predicted.index]
        observed = indexes.true_values(inputs.indexes, target, keys, config.labels_key, ledger)
        table = drawn(predicted.loc[observed.index], inputs.tiles.city, config, ledger)
        table = table.assign(observed=observed, city=inputs.tiles.city)
        score_tables[target], city_tables[target] = indexes.score_rows(table), indexes.city_table(table)
        ledger.went_out[f"tiles scored by {target}"] = len(table)
    if score_tables:
        for name, parts in (("index_scores", score_tables), ("index_by_city", city_tables)):
            results.tables[name] = pd.concat(parts, names=["target", None]).reset_index("target").reset_index(drop=True)
        results.metrics["indexes"] = {
            target: {
                f"{predictor} over {over}": row.to_dict() for (over, predictor), row in table.set_index(["over", "predictor"]).iterrows()
            }
            for target, table in score_tables.items()
        }
