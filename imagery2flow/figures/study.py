"""What figs.ipynb shows: one or several flow models with every region that they were tested in, read from their folders and joined by id.

Regions stand under their names, the models' own first; the same region in another year as ``M1 2010``. Predictors stand under the decoder's name, of several
models with the model's name behind it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd

from imagery2flow.figures.report_data import NAMES, OBSERVED, PAIR, ReportRun, read_report_run
from imagery2flow.flows.breakdown import by_origin
from imagery2flow.flows.groups import known_pairs
from imagery2flow.flows.metrics import ScoredPairs
from imagery2flow.flows.table import UNIVERSES
from imagery2flow.imagery.patch_files import find_patches, read_patch
from imagery2flow.run.errors import InputError, MissingInputError, TableError
from imagery2flow.run.files import read_table
from imagery2flow.run.report_config import ReportConfig
from imagery2flow.run.stage import Ledger

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
    """

    name: str
    folder: Path
    units: gpd.GeoSeries
    flows: pd.DataFrame
    predictions: dict[str, pd.DataFrame] = field(default_factory=dict)
    scores: dict[str, pd.DataFrame] = field(default_factory=dict)
    features: dict[str, Path] = field(default_factory=dict)

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
        if not path.is_file():
            return None
        table = read_table(path, name, ("geocode",))
        if "geocode" not in table:
            raise TableError(f"{path} has no column geocode; name the column of the ids so")
        return table

    def population(self) -> pd.Series | None:
        """Residents by geocode, from population.csv; None where there is none."""
        table = self.table("population.csv")
        return None if table is None else table.set_index("geocode")["population"].astype(float)


def read_study(models: Sequence[str | Path], ledger: Ledger) -> dict[str, StudyRegion]:
    """Reads models and all regions that they were tested in.

    Args:
        models: Folders that stage 4 wrote: one model, or several of one region and universe (both sensors, for example).
        ledger: Takes what is read, and what is left out.

    Raises:
        InputError: A folder is no model's, or the models were trained on different universes or flows.
    """
    if not models:
        raise InputError("no model is named; name the folder of one that train_ODPrediction.py wrote")
    regions: dict[str, StudyRegion] = {}
    universes = set()
    for model in map(Path, models):
        own = read_report_run(ReportConfig(run_dir=str(model)), ledger)
        universes.add(own.trained_on)
        suffix = f", {model.name}" if len(models) > 1 else ""
        for run in (own, *tested_elsewhere(model, ledger)):
            add_run(regions, run, model, suffix, own.trained_on)
    if len(universes) > 1:
        raise InputError(
            f"the models were trained on {', '.join(sorted(map(str, universes)))}; show models of one universe beside each other"
        )
    return regions


def overview(study: Mapping[str, StudyRegion]) -> pd.DataFrame:
    """What the figures are made of: index region; number of units, flows of the universe, and held-out flows by predictor."""
    rows = {
        name: {"units": len(region.units), "flows": len(region.flows)}
        | {f"held-out flows, {predictor}": len(table) for predictor, table in region.predictions.items()}
        for name, region in study.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def tested_elsewhere(model: Path, ledger: Ledger) -> Iterator[ReportRun]:
    """Runs of stage 5 with a model."""
    for path in sorted(model.glob("*/run.json")):
        if any(path.parent.glob("predictions_*")):
            yield read_report_run(ReportConfig(run_dir=str(path.parent)), ledger)


def add_run(regions: dict[str, StudyRegion], run: ReportRun, model: Path, suffix: str, universe: str | None) -> None:
    """Adds a run's predictions to its region."""
    settings = run.record["config"]
    year, first = settings["year"], next(iter(regions.values()), None)
    name = run.region if first is None or run.region != first.name or run.folder == model else f"{run.region} {year}"
    minimum = UNIVERSES.get(universe or "positive", 0.0)
    known = run.pairs[run.pairs[OBSERVED] > minimum].rename(columns={OBSERVED: "count"})
    if name not in regions:
        folder = Path(settings["data_root"]) / run.region
        regions[name] = StudyRegion(name, folder, run.units.geometry, known[[*PAIR, "count"]].reset_index(drop=True))
    region = regions[name]
    for decoder in run.decoders:
        table = folds_of(model, decoder, minimum) if run.folder == model else None
        if table is None:
            table = known[known.scored & known[decoder].notna()].rename(columns={decoder: "prediction"})
        region.predictions[NAMES.get(decoder, decoder) + suffix] = table[[*PAIR, "count", "prediction"]].reset_index(drop=True)
    if run.scores is not None:
        region.scores[model.name] = run.scores
    region.features[model.name] = Path(settings["node_feats_path"][0])


def folds_of(model: Path, decoder: str, minimum: float) -> pd.DataFrame | None:
    """Predictions of all origins by the folds that did not see them, where the folds of a model were joined."""
    path = model.with_name(model.name + FOLDS_SUFFIX) / f"predictions_{decoder}.csv"
    if not path.is_file():
        return None
    table = read_table(path, "predictions", PAIR)
    return table[table["count"] > minimum]


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
        self.files = find_patches(json.loads(record.read_text())["config"]["data_path"], (), ledger)
        self.geocodes = list(self.files.paths)

    def __len__(self) -> int:
        return len(self.geocodes)

    def __getitem__(self, number: Any) -> Any:
        path = self.files.paths[self.geocodes[number]]
        values, valid = read_patch(path, self.files.bands, self.files.names, self.files.all_bands)
        return np.where(valid, values, np.nan)
