"""Which region's model predicts which other region how well (paper, fig. 5): a table per sensor and decoder.

Reads the scores that stages 4 and 5 left in ``<output_dir>/<region>_<tag>_<year>/``. On the diagonal stand the scores of held-out origins of the source itself. Writes
``<output_dir>/transfer_<tag>_<year>_<decoder>_<universe>_<score>.csv``: index target, a column per source, empty where there is no score.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from imagery2flow.flows.results import is_of_model, read_scores
from imagery2flow.run.errors import InputError, MissingInputError
from imagery2flow.run.files import check_output_folder
from imagery2flow.run.flow_config import DECODERS, TransferConfig
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import write_table

CONSTANT = "constant"


def collect_transfer(config: TransferConfig, ledger: Ledger) -> Path:
    """Collects, prints and writes the tables; returns the path of the run file.

    Raises:
        MissingInputError: No model has a score.
        InputError: The models have no such score.
    """
    folder = Path(config.output_dir)
    check_output_folder(folder, "--output_dir")
    tables = {(tag, predictor): empty_table(config.regions) for tag in config.tags for predictor in (*DECODERS, CONSTANT)}
    for tag in config.tags:
        for source, target, path in score_files(config, tag, ledger):
            ledger.reads(path)
            for predictor, value in scores_in(path, config):
                tables[tag, predictor].loc[target, source] = value
    if all(table.isna().all(axis=None) for table in tables.values()):
        names = ", ".join(f"{config.regions[0]}_{tag}_{config.year}" for tag in config.tags)
        raise MissingInputError(f"{folder} holds no scores of models such as {names}; train and test them with those names of --log first")
    for (tag, predictor), table in tables.items():
        known = int(table.notna().sum(axis=None))
        ledger.went_out[f"{tag}, {predictor}: scores of {table.size}"] = known
        if known:
            name = f"transfer_{tag}_{config.year}_{predictor}_{config.universe}_{config.score}"
            write_table(folder / f"{name}.csv", table.reset_index())
            print(f"\n{tag} {config.year}, {predictor}: {config.score} on {config.universe}, source above, target at the left")
            print(table.to_string(float_format="{:.3f}".format, na_rep="-"))
    return folder / "transfer_run.json"


def empty_table(regions: list[str]) -> pd.DataFrame:
    """A table without scores."""
    table = pd.DataFrame(np.nan, index=pd.Index(regions, name="target"), columns=regions)
    return table.rename_axis(columns="source")


def score_files(config: TransferConfig, tag: str, ledger: Ledger) -> Iterator[tuple[str, str, Path]]:
    """Source, target and path of the scores of one sensor; those of an earlier model under the same name are left out."""
    for source in config.regions:
        model = Path(config.output_dir) / f"{source}_{tag}_{config.year}"
        if not (model / "metrics.json").is_file():
            ledger.leave_out(f"models of {tag} that are not trained yet", [model.name])
            continue
        yield source, source, model / "metrics.json"
        for target in config.regions:
            place = model / f"{target}_{config.year}"
            if target == source:
                continue
            if not (place / "metrics.json").is_file():
                ledger.leave_out(f"models of {tag} that are not tested there yet, as source/target", [f"{source}/{target}"])
            elif is_of_model(place, model, ledger):
                yield source, target, place / "metrics.json"


def scores_in(path: Path, config: TransferConfig) -> Iterator[tuple[str, float]]:
    """The score of each decoder and of the constant.

    Raises:
        InputError: There is no score of that name.
    """
    scores = read_scores(path)
    for predictor in (*DECODERS, CONSTANT):
        by_universe = scores.get(predictor, {})
        if config.universe not in by_universe:
            continue
        values = by_universe[config.universe]
        if config.score not in values:
            raise InputError(f"--score {config.score} is not in {path}; there are {', '.join(sorted(values))}")
        yield predictor, values[config.score]
