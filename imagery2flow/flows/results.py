"""One table of everything that a flow model was scored on: held-out origins of its own region, and other cities.

For a generated metro (``law.csv`` beside its flows) the table also holds the best score that any predictor can reach.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from imagery2flow.flows import metrics
from imagery2flow.flows.controls import BANDS, DISTANCE, SHUFFLED, UNTRAINED
from imagery2flow.flows.scoring import Scores
from imagery2flow.flows.table import UNIVERSES
from imagery2flow.run.errors import MissingInputError
from imagery2flow.run.files import read_table, write_table
from imagery2flow.run.flow_config import ResultsConfig
from imagery2flow.run.stage import Ledger
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
    if not paths:
        raise MissingInputError(f"{folder} holds no metrics.json; train and test a model with that --log and --output_dir first")
    ledger.came_in["files of scores"] = len(paths)
    parts = []
    for path in paths:
        ledger.reads(path)
        run = json.loads((path.parent / "run.json").read_text())["config"]
        scores: Scores = json.loads(path.read_text())
        law_path = Path(config.data_root) / "+".join(run["region"]) / "law.csv"
        if law_path.is_file():
            scores[BEST_REACHABLE] = reachable_scores(law_path, path.parent)
        parts.append(region_rows(run, scores, f"held out by {run['split']}" if path.parent == folder else "another city"))
    table = pd.concat(parts, ignore_index=True)
    write_table(folder / "results.csv", table)
    print(as_markdown(table))
    ledger.went_out["rows"] = len(table)
    return folder / "results_run.json"


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
    """Scores of the law's own mean on the pairs that were scored: the best that any predictor can reach.

    Args:
        law_path: The mean flow of every pair: h_geocode, w_geocode, mean.
        folder: Folder of the predictions; those of the model's own region say in a column ``split`` which pairs were held out.
    """
    ids = ("h_geocode", "w_geocode")
    tables = sorted(folder.glob("predictions_bilinear.*"))
    pairs = read_table(tables[0], "predictions", ids).dropna(subset=["count"])
    if "split" in pairs:
        pairs = pairs[pairs.split == "test"]
    pairs = pairs.merge(read_table(law_path, "law", ids)[[*ids, "mean"]], on=list(ids), validate="one_to_one")
    observed, mean = pairs["count"].to_numpy(np.float64), pairs["mean"].to_numpy(np.float64)
    chosen = {name: observed > minimum for name, minimum in UNIVERSES.items() if name != "full"}  # the table holds no zeros
    return {
        name: metrics.score(observed[mask], best_prediction(mean[mask], UNIVERSES[name])) for name, mask in chosen.items() if mask.any()
    }


def as_markdown(table: pd.DataFrame) -> str:
    """A table in Markdown: counts whole, CPC with three digits, commuters with two."""
    shown = table.drop(columns="num_pairs")
    shown.insert(list(table.columns).index("predictor"), "number", table["num_pairs"].map("{:,.0f}".format))
    for name in metrics.SCORES:
        shown[name] = table[name].map(f"{{:.{3 if name == 'cpc' else 2}f}}".format)
    shown = shown.astype(str).rename(columns=dict(zip(metrics.SCORES, (name.upper() for name in metrics.SCORES), strict=True)))
    return markdown(shown)


def markdown(shown: pd.DataFrame) -> str:
    """A table of texts in Markdown."""
    widths = [max(len(column), *shown[column].str.len()) for column in shown]
    lines = [shown.columns, ["-" * width for width in widths], *shown.to_numpy()]
    return "\n".join("| " + " | ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)) + " |" for line in lines)
