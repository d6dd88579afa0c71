"""One table of everything that a flow model was scored on: held-out origins of its own region, and other cities.

For a generated metro (``law.csv`` beside its flows) the table also holds the score of the law's own mean, which hardly any predictor beats.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from imagery2flow.flows import metrics
from imagery2flow.flows.controls import BANDS, DISTANCE, SHUFFLED, UNTRAINED
from imagery2flow.flows.record import MODEL_FILE
from imagery2flow.flows.scoring import Scores
from imagery2flow.flows.table import UNIVERSES
from imagery2flow.run.errors import MissingInputError
from imagery2flow.run.files import read_json, sha256
from imagery2flow.run.flow_config import ResultsConfig
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import read_table, write_table
from imagery2flow.sources.synthetic import best_prediction

BEST_REACHABLE = "best reachable"
# As rows of a table: the model, what it is read against, and the limit.
ORDER = ("bilinear", "lightgbm", *(f"{decoder}, {name}" for name in (SHUFFLED, UNTRAINED) for decoder in ("bilinear", "lightgbm")))
ORDER += (BANDS, DISTANCE, "constant", BEST_REACHABLE)


def collect_results(config: ResultsConfig, ledger: Ledger) -> Path:
    """Gathers, prints and writes ``<output_dir>/<log>/results.csv``; returns the path of the run file.

    Raises:
        MissingInputError: The model has no scores.
    """
    folder = Path(config.model_dir)
    paths = [path for path in (folder / "metrics.json", *sorted(folder.glob("*/metrics.json"))) if path.is_file()]
    paths = [path for path in paths if path.parent == folder or is_of_model(path.parent, folder, ledger)]
    if not paths:
        raise MissingInputError(f"{folder} holds no metrics.json; train and test a model with that --log and --output_dir first")
    ledger.came_in["files of scores"] = len(paths)
    source = read_run(folder)["config"]
    table = pd.concat([score_rows(path, source, config.data_root, ledger) for path in paths], ignore_index=True)
    write_table(folder / "results.csv", table)
    print(as_markdown(table))
    ledger.went_out["rows"] = len(table)
    return folder / "results_run.json"


def score_rows(path: Path, source: dict[str, Any], data_root: str, ledger: Ledger) -> pd.DataFrame:
    """The scores of one folder, one row per predictor and universe.

    Args:
        path: Its metrics.json.
        source: Settings of the model's training.
        data_root: Folder of the regions, where a generated one has its law.
        ledger: Takes what is read and left out.

    Returns:
        Columns region, year, tested on, pairs, predictor, num_pairs, cpc, rmse, mae.
    """
    ledger.reads(path)
    run, scores = read_run(path.parent)["config"], read_scores(path)
    law_path = Path(data_root) / "+".join(run["region"]) / "law.csv"
    if law_path.is_file():
        add_reachable(scores, law_path, path.parent, ledger)
    elsewhere = set(source["region"]).isdisjoint(run["region"])
    return region_rows(run, scores, "another city" if elsewhere else f"held out by {source['split']}")


def is_of_model(folder: Path, model: Path, ledger: Ledger) -> bool:
    """Whether the scores in a folder of stage 5 are those of the model that stands there now; those of an earlier one are left out."""
    stored = read_run(folder).get("inputs_sha256", {}) if (folder / "run.json").is_file() else {}
    # By its name: a model may be tested under one path and read under another.
    hashes = {digest for path, digest in stored.items() if Path(path).name == MODEL_FILE}
    if (model / MODEL_FILE).is_file() and hashes == {sha256(model / MODEL_FILE)}:
        return True
    ledger.leave_out(f"folders of scores that are not of the present {model / MODEL_FILE}; test again to have them", [folder])
    return False


def read_run(folder: Path) -> dict[str, Any]:
    """What ``run.json`` tells of a run."""
    return read_json(folder / "run.json", "run file", "run the stage again")


def read_scores(path: Path) -> Scores:
    """Scores by predictor and universe; a score that does not exist stands as null and is NaN."""
    return {
        predictor: {
            universe: {name: float("nan") if value is None else value for name, value in values.items()}
            for universe, values in by_universe.items()
        }
        for predictor, by_universe in read_json(path, "scores", "run the stage again").items()
    }


def add_reachable(scores: Scores, law_path: Path, folder: Path, ledger: Ledger) -> None:
    """Adds the scores of the law's own mean, but only beside rows of as many pairs: a table cut short by --top_k or --min_flow lacks some."""
    reachable = reachable_scores(law_path, folder)
    same = {name: values for name, values in reachable.items() if values["num_pairs"] == scores["constant"][name]["num_pairs"]}
    ledger.leave_out(
        f"{BEST_REACHABLE} of {folder}, whose table of predictions lacks pairs that were scored", reachable.keys() - same.keys()
    )
    if same:
        scores[BEST_REACHABLE] = same


def region_rows(run: dict[str, Any], scores: Scores, tested_on: str) -> pd.DataFrame:
    """One row per predictor and universe."""
    place = {"region": "+".join(run["region"]), "year": run["year"], "tested on": tested_on}
    return pd.DataFrame(
        [
            place | {"pairs": universe, "predictor": name} | {key: by_universe[universe][key] for key in ("num_pairs", *metrics.SCORES)}
            for universe in UNIVERSES
            for name in sorted(scores, key=ORDER.index)
            if universe in (by_universe := scores[name])
        ]
    )


def reachable_scores(law_path: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Scores of the law's own mean on the pairs that were scored, which hardly any predictor beats.

    The mean has the least expected squared error. CPC has its best expectation elsewhere, so that a predictor may come out a little above the mean.

    Args:
        law_path: The mean flow of every pair: h_geocode, w_geocode, mean.
        folder: Folder of the predictions; a column ``split`` (stage 4) or ``scored`` (stage 5) says which pairs were scored.
    """
    ids = ("h_geocode", "w_geocode")
    tables = sorted(folder.glob("predictions_*"))  # whatever decoder was asked for: the pairs are the same
    pairs = read_table(tables[0], "predictions", ids).dropna(subset=["count"])
    if "split" in pairs:
        pairs = pairs[pairs.split == "test"]
    if "scored" in pairs:
        pairs = pairs[pairs.scored]
    pairs = pairs.merge(read_table(law_path, "law", ids)[[*ids, "mean"]], on=list(ids), validate="one_to_one")
    observed, mean = pairs["count"].to_numpy(np.float64), pairs["mean"].to_numpy(np.float64)
    chosen = {name: observed > minimum for name, minimum in UNIVERSES.items() if name != "full"}  # the table holds no zeros
    return {
        name: metrics.score(observed[mask], best_prediction(mean[mask], UNIVERSES[name])) for name, mask in chosen.items() if mask.any()
    }


def as_markdown(table: pd.DataFrame) -> str:
    """A table of scores in Markdown."""
    return markdown(as_texts(table))


def as_texts(table: pd.DataFrame) -> pd.DataFrame:
    """A table of scores as readers see it: counts whole, CPC with three digits, commuters with two."""
    shown = table.drop(columns="num_pairs")
    shown.insert(list(table.columns).index("predictor"), "number", table["num_pairs"].map("{:,.0f}".format))
    for name in metrics.SCORES:
        shown[name] = table[name].map(f"{{:.{3 if name == 'cpc' else 2}f}}".format)
    return shown.astype(str).rename(columns=dict(zip(metrics.SCORES, (name.upper() for name in metrics.SCORES), strict=True)))


def markdown(shown: pd.DataFrame) -> str:
    """A table of texts in Markdown."""
    widths = [max(len(column), *shown[column].str.len()) for column in shown]
    lines = [shown.columns, ["-" * width for width in widths], *shown.to_numpy()]
    return "\n".join("| " + " | ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)) + " |" for line in lines)
