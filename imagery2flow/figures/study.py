"""What figs.ipynb shows: one or several flow models with every region that they were tested in, read from their folders and joined by id.

Regions stand under their names, the models' own first; the same region in another year as ``M1 2010``. Predictors stand under the decoder's name, of several
models with the model's name behind it. All predictors of a region hold the same pairs, those that every one predicts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd

from imagery2flow.figures.report_data import NAMES, OBSERVED, PAIR, ReportRun, read_report_run
from imagery2flow.flows.breakdown import by_origin
from imagery2flow.flows.distance_decay import DistanceDecay, divergences, fit_distance_decay, trip_length_shares, trip_lengths
from imagery2flow.flows.groups import known_pairs
from imagery2flow.flows.metrics import ScoredPairs
from imagery2flow.flows.results import is_of_model
from imagery2flow.flows.table import UNIVERSES
from imagery2flow.imagery.patch_files import find_patches, read_patch
from imagery2flow.run.errors import InputError, MissingInputError, TableError
from imagery2flow.run.files import read_json
from imagery2flow.run.report_config import ReportConfig
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import read_table

FOLDS_SUFFIX = "_folds"  # runs/reproduce.sh names the joined folds of a model so


@dataclass(frozen=True)
class StudyRegion:
    """A region, and what models predict there.

    Attributes:
        name: Its name, with the year where it is not the first.
        folder: ``<data_root>/<region>``, where further tables of it lie.
        units: Index geocode, polygons.
        flows: Observed flows of the models' universe: h_geocode, w_geocode, count.
        predictions: By predictor, for pairs of known flow in that universe that the model has not learned from: h_geocode, w_geocode, count, prediction.
        scores: By model, rows of ``results.score_rows``.
        features: By model, the table of vectors that it reads.
        population_path: Table of residents per geocode; there may be none.
        population_column: Its column.
    """

    name: str
    folder: Path
    units: gpd.GeoSeries
    flows: pd.DataFrame
    predictions: dict[str, pd.DataFrame] = field(default_factory=dict)
    scores: dict[str, pd.DataFrame] = field(default_factory=dict)
    features: dict[str, Path] = field(default_factory=dict)
    population_path: Path | None = None
    population_column: str = "population"

    def pairs(self) -> dict[str, tuple[np.ndarray, ScoredPairs]]:
        """By predictor: origins of the pairs [num_pairs] of text, and what is scored."""
        return {name: known_pairs(table, self.units) for name, table in self.predictions.items()}

    def origins(self) -> dict[str, pd.DataFrame]:
        """By predictor: the scores of each origin (``breakdown.by_origin``)."""
        return {name: by_origin(*pairs) for name, pairs in self.pairs().items()}

    def table(self, name: str) -> pd.DataFrame | None:
        """A table of the region's folder, such as population.csv or land_cover.csv; None where there is none.

        Raises:
            TableError: It has no column geocode.
        """
        path = self.folder / name
        return read_by_geocode(path) if path.is_file() else None

    def population(self) -> pd.Series | None:
        """Residents by geocode, from the table that the run named, or else the region's population.csv; None where there is none."""
        path = self.population_path or self.folder / "population.csv"
        return read_by_geocode(path).set_index("geocode")[self.population_column].astype(float) if path.is_file() else None

    def decay(self) -> tuple[pd.DataFrame, DistanceDecay]:
        """P(d) of all observed flows and of each prediction, of which only held-out flows count, and the fit to all observed flows.

        Returns:
            Index km, columns ``observed`` and the predictors, shares of commuters; and the fit.
        """
        _, observed = known_pairs(self.flows.assign(prediction=0.0), self.units)
        shares = trip_length_shares(observed.distance_m, {OBSERVED: observed.observed})
        predicted = [trip_length_shares(pairs.distance_m, {name: pairs.predicted}) for name, (_, pairs) in self.pairs().items()]
        return shares.join(predicted, how="outer").fillna(0.0), fit_distance_decay(trip_lengths(observed.distance_m, observed.observed))

    def decay_divergences(self) -> pd.DataFrame:
        """How far P(d) of each prediction is from that of the same observed flows: index predictor; kl_bits, js_bits, num_pairs."""
        rows = {}
        for name, (_, pairs) in self.pairs().items():
            shares = trip_length_shares(pairs.distance_m, {OBSERVED: pairs.observed, name: pairs.predicted})
            rows[name] = (*divergences(shares[OBSERVED].to_numpy(), shares[name].to_numpy()), len(pairs))
        return pd.DataFrame.from_dict(rows, orient="index", columns=["kl_bits", "js_bits", "num_pairs"])


def read_by_geocode(path: Path) -> pd.DataFrame:
    """A table with the column geocode.

    Raises:
        TableError: It has no such column.
    """
    table = read_table(path, path.name, ("geocode",))
    if "geocode" not in table:
        raise TableError(f"{path} has no column geocode; name the column of the ids so")
    return table


def read_study(models: Sequence[str | Path], ledger: Ledger, data_root: str | None = None) -> dict[str, StudyRegion]:
    """Reads models and all regions that they were tested in.

    Args:
        models: Folders that stage 4 wrote: one model, or several of one region and universe (both sensors, for example).
        ledger: Takes what is read, and what is left out.
        data_root: Folder of the regions; default that of the runs.

    Raises:
        InputError: A folder is no model's, or the models were trained on different universes or flows.
    """
    if not models:
        raise InputError("no model is named; name the folder of one that train_ODPrediction.py wrote")
    regions: dict[str, StudyRegion] = {}
    universes = set()
    with_folds = all(folds_folder(Path(model)).is_dir() for model in models)
    for model in map(Path, models):
        own = read_report_run(ReportConfig(run_dir=str(model), data_root=data_root), ledger)
        universes.add(own.trained_on)
        suffix = f", {model.name}" if len(models) > 1 else ""
        for run in (own, *tested_elsewhere(model, ledger, data_root)):
            add_run(regions, run, model, suffix, own.trained_on, data_root)
        if with_folds:
            join_folds(regions[own.region], model, suffix, UNIVERSES.get(own.trained_on or "positive", 0.0))
    if len(universes) > 1:
        raise InputError(
            f"the models were trained on {', '.join(sorted(map(str, universes)))}; show models of one universe beside each other"
        )
    for region in regions.values():
        keep_common_pairs(region, ledger)
    return regions


def overview(study: Mapping[str, StudyRegion]) -> pd.DataFrame:
    """What the figures are made of: index region; number of units, flows of the universe, and held-out flows by predictor."""
    rows = {
        name: {"units": len(region.units), "flows": len(region.flows)}
        | {f"held-out flows, {predictor}": len(table) for predictor, table in region.predictions.items()}
        for name, region in study.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def tested_elsewhere(model: Path, ledger: Ledger, data_root: str | None) -> Iterator[ReportRun]:
    """Runs of stage 5 with a model as it stands there now."""
    for path in sorted(model.glob("*/run.json")):
        if any(path.parent.glob("predictions_*")) and is_of_model(path.parent, model, ledger):
            yield read_report_run(ReportConfig(run_dir=str(path.parent), data_root=data_root), ledger)


def add_run(regions: dict[str, StudyRegion], run: ReportRun, model: Path, suffix: str, universe: str | None, data_root: str | None) -> None:
    """Adds a run's predictions to its region."""
    settings = run.record["config"]
    year, first = settings["year"], next(iter(regions.values()), None)
    name = run.region if first is None or run.region != first.name or run.folder == model else f"{run.region} {year}"
    minimum = UNIVERSES.get(universe or "positive", 0.0)
    known = run.pairs[run.pairs[OBSERVED] > minimum].rename(columns={OBSERVED: "count"})
    if name not in regions:
        folder = Path(data_root or settings["data_root"]) / run.region
        path = next(iter(settings.get("population_path") or []), None)
        regions[name] = StudyRegion(
            name,
            folder,
            run.units.geometry,
            known[[*PAIR, "count"]].reset_index(drop=True),
            population_path=None if path is None else Path(path),
            population_column=settings.get("population_column", "population"),
        )
    region = regions[name]
    for decoder in run.decoders:
        table = known[known.scored & known[decoder].notna()].rename(columns={decoder: "prediction"})
        region.predictions[NAMES.get(decoder, decoder) + suffix] = table[[*PAIR, "count", "prediction"]].reset_index(drop=True)
    if run.scores is not None:
        region.scores[model.name] = run.scores
    region.features[model.name] = Path(settings["node_feats_path"][0])


def folds_folder(model: Path) -> Path:
    """Where the folds of a model are joined."""
    return model.with_name(model.name + FOLDS_SUFFIX)


def join_folds(region: StudyRegion, model: Path, suffix: str, minimum: float) -> None:
    """Replaces a model's predictions of its own region by those of its folds, of which each origin has the one that did not see it."""
    for path in sorted(folds_folder(model).glob("predictions_*.csv")):
        decoder = path.stem.removeprefix("predictions_")
        table = read_table(path, "predictions", PAIR)
        region.predictions[NAMES.get(decoder, decoder) + suffix] = table.loc[table["count"] > minimum, [*PAIR, "count", "prediction"]]


def keep_common_pairs(region: StudyRegion, ledger: Ledger) -> None:
    """Leaves only pairs that every predictor predicts, in one order: a unit without a patch of one sensor is missing there."""
    keys = {name: pd.MultiIndex.from_frame(table[PAIR]) for name, table in region.predictions.items()}
    common = reduce(pd.MultiIndex.intersection, keys.values()).sort_values()
    for name, table in region.predictions.items():
        dropped = keys[name].difference(common)
        ledger.leave_out(f"flows of {region.name} that {name} predicts but others do not", [" to ".join(pair) for pair in dropped])
        region.predictions[name] = table.set_axis(keys[name]).loc[common].reset_index(drop=True)


def read_vectors(path: str | Path) -> pd.DataFrame:
    """An encoder's vectors: index geocode, a column per dimension.

    Raises:
        TableError: The table has none.
    """
    table = read_table(path, "vectors", ("geocode",))
    numbered = [column for column in table if str(column).isdigit()]
    if not numbered or "geocode" not in table:
        raise TableError(f"vectors {path} hold no numbered columns of geocodes; name a table that get_img_embedding.py wrote")
    return table.set_index("geocode")[numbered]


class Pictures(Sequence[np.ndarray]):
    """The patches of which a table of vectors was made, each read when it is looked at: [num_bands, height, width], NaN where there is no imagery."""

    def __init__(self, features: Path, ledger: Ledger) -> None:
        """Finds the patches by the run file of the table.

        Raises:
            MissingInputError: The run file is absent.
            InputError: The patches cannot be read.
        """
        record = Path(f"{features}.run.json")
        if not record.is_file():
            raise MissingInputError(f"{record}, which names the patches, does not exist; write the vectors again with get_img_embedding.py")
        self.files = find_patches(
            read_json(record, "run file", "write the vectors again with get_img_embedding.py")["config"]["data_path"], (), ledger
        )
        self.geocodes = list(self.files.paths)

    def __len__(self) -> int:
        return len(self.geocodes)

    def __getitem__(self, number: Any) -> Any:
        path = self.files.paths[self.geocodes[number]]
        values, valid = read_patch(path, self.files.bands, self.files.names, self.files.all_bands)
        return np.where(valid, values, np.nan)
