"""Five models of one region, each tested on another fifth of its origins, as one: every observed flow predicted by the model that did not see its origin.

Writes ``<output_dir>/<log>/``: predictions_<decoder>.csv (h_geocode, w_geocode, count, prediction, fold), folds.csv (every score of every fold), run.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from imagery2flow.flows import metrics
from imagery2flow.flows.results import markdown, read_run, read_scores, region_rows
from imagery2flow.run.errors import InputError, MissingInputError, shown
from imagery2flow.run.files import check_output_folder
from imagery2flow.run.flow_config import DECODERS, FOLDS, FoldsConfig
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import read_table, write_table

OF_ONE_RUN = ("log", "fold", "device")  # settings in which the runs may differ


def join_folds(config: FoldsConfig, ledger: Ledger) -> Path:
    """Joins the test predictions and the scores of the folds; returns the path of the run file.

    Raises:
        InputError: The runs are no folds of one split.
    """
    check_output_folder(config.output_dir, "--output_dir")
    runs = {folder: read_fold(folder) for folder in (Path(config.output_dir) / log for log in config.logs)}
    check_folds(runs)
    ledger.came_in["folds"] = len(runs)
    target = Path(config.output_dir) / config.log
    for decoder in DECODERS:
        tables = [tested(folder, decoder, run["fold"], ledger) for folder, run in runs.items()]
        joined = pd.concat(tables, ignore_index=True).sort_values(["h_geocode", "w_geocode"], ignore_index=True)
        twice = joined.duplicated(["h_geocode", "w_geocode"])
        assert not twice.any(), "folds of one split test each origin once"
        write_table(target / f"predictions_{decoder}.csv", joined)
        ledger.went_out[f"flows predicted, {decoder}"] = len(joined)
    absent = sorted(set(range(FOLDS)) - {run["fold"] for run in runs.values()})
    if absent:
        ledger.note(f"folds {shown(absent)} are missing: the flows of their origins are not in the predictions")
    scores = pd.concat([fold_scores(folder, run, ledger) for folder, run in runs.items()], ignore_index=True)
    write_table(target / "folds.csv", scores)
    print(as_markdown(scores))
    ledger.note(f"predictions and scores are in {target}")
    return target / "run.json"


def read_fold(folder: Path) -> dict[str, Any]:
    """The settings of a run of stage 4.

    Raises:
        MissingInputError: It is absent or unfinished.
    """
    if not (folder / "run.json").is_file() or not (folder / "metrics.json").is_file():
        raise MissingInputError(
            f"{folder} holds no finished run of train_ODPrediction.py; train it with --log {folder.name}, or leave it out"
        )
    settings: dict[str, Any] = read_run(folder)["config"]
    return settings


def check_folds(runs: dict[Path, dict[str, Any]]) -> None:
    """Refuses runs that are not folds of one split.

    Raises:
        InputError: Settings other than the fold differ, a fold occurs twice, or the split is not one of origins.
    """
    first, *others = runs
    if "fold" not in runs[first] or runs[first]["split"] != "origin":
        raise InputError(f"{first} was not trained on a fold of origins; train it with --split origin --fold 0")
    for other in others:
        names = sorted(set(runs[first]) | set(runs[other]))
        differ = [name for name in names if name not in OF_ONE_RUN and runs[first].get(name) != runs[other].get(name)]
        if differ:
            raise InputError(f"{first} and {other} differ in {', '.join(differ)}; folds of one split differ in --fold alone")
    folds = [run["fold"] for run in runs.values()]
    twice = sorted({fold for fold in folds if folds.count(fold) > 1})
    if twice:
        raise InputError(f"fold {shown(twice)} occurs more than once among {', '.join(path.name for path in runs)}; name each fold once")


def tested(folder: Path, decoder: str, fold: int, ledger: Ledger) -> pd.DataFrame:
    """The predictions of a run for the flows that it was tested on."""
    path = folder / f"predictions_{decoder}.csv"
    table = read_table(path, "predictions", ("h_geocode", "w_geocode"))
    ledger.reads(path)
    return table[table.split == "test"].drop(columns="split").assign(fold=fold)


def fold_scores(folder: Path, run: dict[str, Any], ledger: Ledger) -> pd.DataFrame:
    """One row per predictor and universe, with the fold."""
    ledger.reads(folder / "metrics.json")
    rows = region_rows(run, read_scores(folder / "metrics.json"), "held out by origin")
    rows.insert(0, "fold", run["fold"])
    return rows


def as_markdown(scores: pd.DataFrame) -> str:
    """Mean and standard deviation over the folds, a row per predictor and universe, in Markdown."""
    groups = scores.groupby(["pairs", "predictor"], sort=False)
    table = groups.fold.count().rename("folds").reset_index()
    for name in metrics.SCORES:
        digits = 3 if name == "cpc" else 2
        mean, deviation = groups[name].mean().to_numpy(), groups[name].std().to_numpy()
        table[name.upper()] = [f"{m:.{digits}f} ± {s:.{digits}f}" for m, s in zip(mean, deviation, strict=True)]
    return markdown(table.astype(str))
