"""What a report shows, read from the folder of a run and joined by id: units, pairs with their flows, scores."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd

from imagery2flow.figures.maps import read_predictions
from imagery2flow.flows.graph import centroid_degrees
from imagery2flow.flows.metrics import ScoredPairs
from imagery2flow.flows.region import find_units
from imagery2flow.flows.results import score_rows
from imagery2flow.imagery.units import read_units
from imagery2flow.run import files
from imagery2flow.run.earth import pair_distance_m, utm_epsg
from imagery2flow.run.errors import InputError, MissingInputError, TableError, shown
from imagery2flow.run.flow_config import Place, RegionConfig
from imagery2flow.run.report_config import ReportConfig
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import TABLE_SUFFIXES, read_table

TRAINING, TESTING = "train_ODPrediction", "test_ODPrediction"  # the stages whose folders hold predictions
OBSERVED = "observed"
SPLIT_COLUMN = "part of the run's split"
NAMES = {"lightgbm": "LightGBM"}  # of decoders, as readers know them
PAIR = ["h_geocode", "w_geocode"]


@dataclass(frozen=True)
class ReportRun:
    """A run with everything that a report shows.

    Attributes:
        folder: Where it lies.
        record: Its ``run.json``.
        trained_on: Universe of pairs that the model was trained on, where it is known.
        units: Index geocode (text, sorted), polygons in a projected CRS; all columns of the units file.
        pairs: h_geocode, w_geocode; origin and destination, positions in ``units``; observed (commuters, NaN where unknown); a column per
            decoder (NaN where its table has no such pair); scored, whether the pair counts in the scores; distance_m; sorted by ids.
        decoders: Columns of predictions in ``pairs``.
        scores: Rows of ``results.score_rows``; None where nothing was scored.
    """

    folder: Path
    record: dict[str, Any]
    trained_on: str | None
    units: gpd.GeoDataFrame
    pairs: pd.DataFrame
    decoders: tuple[str, ...]
    scores: pd.DataFrame | None

    @property
    def region(self) -> str:
        """The regions' names in one word."""
        return "+".join(self.record["config"]["region"])

    @property
    def has_observed(self) -> bool:
        """Whether any flow is known."""
        return bool(self.pairs[OBSERVED].notna().any())

    def scored_pairs(self, decoder: str) -> ScoredPairs:
        """The pairs that count in the scores of a decoder, as the metrics read them."""
        chosen = self.scored(decoder)
        same = (chosen.origin == chosen.destination).to_numpy()
        return ScoredPairs(chosen[OBSERVED].to_numpy(), chosen[decoder].to_numpy(), chosen.distance_m.to_numpy(), same)

    def scored(self, decoder: str) -> pd.DataFrame:
        """Rows of ``pairs`` that count in the scores of a decoder."""
        return self.pairs[self.pairs.scored & self.pairs[decoder].notna() & self.pairs[OBSERVED].notna()]


def read_report_run(config: ReportConfig, ledger: Ledger) -> ReportRun:
    """Reads and joins everything.

    Raises:
        MissingInputError: A file is absent; the message names the stage that writes it.
        TableError: A table has faults.
        InputError: The units are no polygons.
    """
    folder = Path(config.run_dir)
    record = read_record(folder)
    paths = prediction_paths(folder, record)
    units = with_split(read_region_units(config, record, ledger), folder)
    ledger.came_in["units"] = len(units)
    tables = {decoder: read_predictions(str(path), units.index, ledger) for decoder, path in paths.items()}
    pairs = with_places(join_predictions(tables, paths), units)
    ledger.came_in["pairs of units"] = len(pairs)
    if not pairs[OBSERVED].notna().any():
        ledger.note("no flow is known: the report shows predictions only, without observed flows, differences and scores")
    model = record if record["stage"] == TRAINING else read_json(folder.parent / "run.json", required=False)
    scores = read_scores_of(folder, record, model, config, ledger)
    return ReportRun(folder, record, model.get("config", {}).get("universe"), units, pairs, tuple(tables), scores)


def read_record(folder: Path) -> dict[str, Any]:
    """The run's ``run.json``.

    Raises:
        MissingInputError: It is no folder of a run.
        InputError: It is another stage's, or not readable.
    """
    if not folder.is_dir():
        raise MissingInputError(f"--run_dir {folder} is no folder; name one that train_ODPrediction.py or test_ODPrediction.py wrote")
    record = read_json(folder / "run.json", required=True)
    if not isinstance(record.get("config"), dict) or not isinstance(record["config"].get("region"), list):
        raise InputError(
            f"{folder / 'run.json'} tells of no region; name a folder that train_ODPrediction.py or test_ODPrediction.py wrote"
        )
    return {"stage": "", "ledger": {}, **record}


def read_json(path: Path, required: bool) -> dict[str, Any]:
    """An object in JSON; without ``required`` an empty one where there is no file.

    Raises:
        MissingInputError: It is required and absent.
        InputError: It is not an object in JSON.
    """
    if not path.is_file():
        if required:
            raise MissingInputError(f"{path} does not exist; name a folder that train_ODPrediction.py or test_ODPrediction.py wrote")
        return {}
    return files.read_json(path, "run file", "run the stage again")


def prediction_paths(folder: Path, record: dict[str, Any]) -> dict[str, Path]:
    """Tables of predictions by decoder.

    Raises:
        MissingInputError: There is none; the message names the stage that writes them.
    """
    found = [path for path in sorted(folder.glob("predictions_*")) if path.name.endswith(TABLE_SUFFIXES)]
    if not found:
        stage = TRAINING if record["stage"] == TRAINING else TESTING
        # A model that was imported has a folder, but only its cities have predictions.
        where = "" if record["stage"] in (TRAINING, TESTING) else ", then name the folder of the city inside it"
        raise MissingInputError(f"{folder} holds no predictions_<decoder>.csv; run {stage}.py{where}")
    return {path.name.removeprefix("predictions_").split(".")[0]: path for path in found}


def read_region_units(config: ReportConfig, record: dict[str, Any], ledger: Ledger) -> gpd.GeoDataFrame:
    """Units of all regions of the run, sorted by id, in one projected CRS.

    Raises:
        MissingInputError: A file is absent.
        InputError: The units are no polygons, or regions share ids.
    """
    known = {item.name for item in fields(RegionConfig)}
    settings = {name: value for name, value in record["config"].items() if name in known}
    given = {"data_root": config.data_root, "id_column": config.id_column, "units_path": config.units_path or None}
    if config.data_root is not None and not config.units_path:
        settings["units_path"] = []  # look in the folder that is named, not where the run found them
    region = RegionConfig(**settings | {name: value for name, value in given.items() if value is not None})
    units = [read_units(existing_units(region, place), region.id_column, ledger) for place in region.places()]
    first = units[0].to_crs(utm_epsg(units[0]))
    joined = pd.concat([first, *(table.to_crs(first.crs) for table in units[1:])]).sort_index()
    repeated = joined.index[joined.index.duplicated()]
    if len(repeated):
        raise TableError(
            f"the regions {region.name} share {len(repeated)} ids of units ({shown(repeated)}); give each unit an id of its own"
        )
    if not joined.geom_type.isin(("Polygon", "MultiPolygon")).all():
        raise InputError(
            f"a report needs polygons but the units hold {', '.join(sorted(set(joined.geom_type)))}; give the tracts themselves"
        )
    return gpd.GeoDataFrame(joined, geometry=first.geometry.name, crs=first.crs)


def with_split(units: gpd.GeoDataFrame, folder: Path) -> gpd.GeoDataFrame:
    """Adds which part of the split each unit belongs to, where stage 4 split units: only those held out have scores."""
    path = folder / "split.csv"
    if path.is_file():
        split = read_table(path, "split", ("geocode",)).set_index("geocode")["split"]
        units.insert(0, SPLIT_COLUMN, split.reindex(units.index))
    return units


def existing_units(region: RegionConfig, place: Place) -> Path:
    """The units file of a region.

    Raises:
        MissingInputError: It is absent.
    """
    path = find_units(region, place)
    if not path.exists():
        raise MissingInputError(f"units {path}, which the run names for region {place.region}, do not exist; name them with --units_path")
    return path


def join_predictions(tables: dict[str, pd.DataFrame], paths: dict[str, Path]) -> pd.DataFrame:
    """One row per pair that any decoder's table holds: --top_k and --min_flow keep other pairs of each.

    Raises:
        TableError: A table holds a pair twice, or two tables tell different flows of a pair.
    """
    joined = pd.DataFrame()
    for decoder, table in tables.items():
        twice = table.duplicated(PAIR)
        if twice.any():
            pairs = (table.h_geocode + " to " + table.w_geocode)[twice]
            raise TableError(f"predictions {paths[decoder]} hold {twice.sum():,} pairs twice ({shown(pairs)}); write them again")
        scored = table["scored"] if "scored" in table else table["split"] == "test" if "split" in table else table["count"].notna()
        part = table[PAIR].assign(**{decoder: table.prediction, "count": table["count"], "scored": scored.astype(bool)})
        if joined.empty:
            joined = part
            continue
        joined = joined.merge(part, on=PAIR, how="outer", suffixes=("", " again"))
        differing = joined["count"].notna() & joined["count again"].notna() & (joined["count"] != joined["count again"])
        if differing.any():
            pairs = (joined.h_geocode + " to " + joined.w_geocode)[differing]
            raise TableError(
                f"predictions {shown(paths.values())} tell different counts of {differing.sum():,} pairs ({shown(pairs)}); write them again with one run"
            )
        joined["count"] = joined["count"].fillna(joined["count again"])
        joined["scored"] = joined["scored"].eq(True) | joined["scored again"].eq(True)
        joined = joined.drop(columns=["count again", "scored again"])
    return joined.rename(columns={"count": OBSERVED}).astype(dict.fromkeys([OBSERVED, *tables], np.float64))


def with_places(pairs: pd.DataFrame, units: gpd.GeoDataFrame) -> pd.DataFrame:
    """Adds positions and distances, and sorts by ids."""
    origin, destination = (units.index.get_indexer(pairs[column]) for column in PAIR)
    distance_m = pair_distance_m(*centroid_degrees(units.geometry), origin, destination)
    placed = pairs.assign(origin=origin, destination=destination, distance_m=distance_m)
    return placed.sort_values(["origin", "destination"], ignore_index=True)


def read_scores_of(
    folder: Path, record: dict[str, Any], model: dict[str, Any], config: ReportConfig, ledger: Ledger
) -> pd.DataFrame | None:
    """Every predictor's scores on the run's own pairs, or None where the run scored nothing.

    Raises:
        MissingInputError: Stage 4, which always scores, left none.
    """
    if not (folder / "metrics.json").is_file():
        if record["stage"] == TRAINING:
            raise MissingInputError(f"{folder} holds no metrics.json; run {TRAINING}.py")
        return None
    data_root = config.data_root or record["config"].get("data_root", "data")
    # A city's folder that was copied away from its model's does not know how that was split.
    source = model.get("config", {"region": record["config"]["region"], "split": "an unknown split"})
    return score_rows(folder / "metrics.json", source, data_root, ledger).replace({"predictor": NAMES}, regex=True)
