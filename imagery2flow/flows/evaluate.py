"""Every combination asked for of split, universe and predictor, over several seeds, as one table with mean and standard deviation.

A trial is one split, universe and seed: the model, its controls and the baselines are fitted to the same training pairs and scored on the same test pairs.
Another seed is another split and other random numbers; in the split ``city``, where the test pairs are given, only other numbers.

Writes ``<output_dir>/<log>/``: evaluation.csv (mean and deviation), trials.csv (every score), metrics.json, breakdown_<kind>.csv, run.json.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from imagery2flow.flows import metrics
from imagery2flow.flows.breakdown import by_distance, by_origin, by_volume, calibration
from imagery2flow.flows.compare import compare
from imagery2flow.flows.controls import MODEL, as_seen, variants
from imagery2flow.flows.learning import learn
from imagery2flow.flows.record import SAME_PLACE_M
from imagery2flow.flows.region import Region, join_regions, load_places
from imagery2flow.flows.results import markdown
from imagery2flow.flows.scoring import scored_pairs
from imagery2flow.flows.splits import SPLITS, Split, check_split, draw_split, label_ranked
from imagery2flow.flows.table import FlowTable
from imagery2flow.flows.training import region_population
from imagery2flow.run.device import choose_device, deterministic_on_cpu
from imagery2flow.run.earth import great_circle_m
from imagery2flow.run.errors import InputError, shown
from imagery2flow.run.files import check_output_folder, write_json
from imagery2flow.run.flow_config import EvaluateConfig, UniverseName
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import write_table

SHOWN = ("cpc", "skill", "cpc_off_diagonal", "rmse", "mae", "cpl", "jsd_flow", "jsd_distance", "r_log")
# Four in five train, one chooses when to stop: the test pairs are another city's.
OF_FIVE_WITHOUT_TEST = ("train",) * 4 + ("valid",)
PLACE = ["split", "universe", "predictor"]


@dataclass(frozen=True)
class Trial:
    """What one row of scores comes from.

    Attributes:
        name: Of the split.
        universe: Pairs that are trained and scored on.
        seed: Of the split and of everything random.
        source: Region that is trained on.
        target: Region that is tested on.
        split: What is trained on and, within one region, tested.
    """

    name: str
    universe: UniverseName
    seed: int
    source: Region
    target: Region
    split: Split

    def test_pairs(self) -> FlowTable:
        """The pairs that are scored."""
        pairs = self.target.observed().universe(self.universe)
        return pairs if self.name == "city" else pairs.select(self.split.of(pairs) == "test")


def evaluate(config: EvaluateConfig, ledger: Ledger) -> Path:
    """Runs all trials and returns the path of the run file.

    Raises:
        InputError: A file cannot be used, a split is empty, or a universe is not supported by a flow table.
    """
    check_output_folder(config.output_dir, "--output_dir")
    device = choose_device(config.device)
    rows: list[pd.DataFrame] = []
    details: dict[str, list[pd.DataFrame]] = {}
    for trial in trials(config, ledger):
        settings = dataclasses.replace(config, seed=trial.seed, universe=trial.universe)
        if trial.name != "city":  # nothing is predicted elsewhere
            settings = dataclasses.replace(settings, trees=dataclasses.replace(config.trees, transfer_trees=0))
        table, parts = run_trial(settings, trial, ledger, device)
        rows.append(table)
        for kind, part in parts.items():
            details.setdefault(kind, []).append(part)
        best = table.sort_values("cpc").iloc[-1]
        ledger.say(
            f"{trial.name}, {trial.universe}, seed {trial.seed}: {len(table)} predictors, best {best.predictor} with CPC {best.cpc:.3f}"
        )
    scores = pd.concat(rows, ignore_index=True)
    summary = summarise(scores)
    folder = Path(config.model_dir)
    write_table(folder / "trials.csv", scores)
    write_table(folder / "evaluation.csv", summary)
    write_json(folder / "metrics.json", as_json(summary))
    for kind, parts_of in details.items():
        write_table(folder / f"breakdown_{kind}.csv", pd.concat(parts_of, ignore_index=True))
    print(markdown(shown_table(summary)))
    ledger.went_out["trials"] = len(rows)
    ledger.note(f"evaluation.csv, trials.csv, metrics.json and the breakdowns are in {folder}")
    return folder / "run.json"


def trials(config: EvaluateConfig, ledger: Ledger) -> Iterator[Trial]:
    """Every combination of split, universe and seed; all are checked before the first is run.

    Raises:
        InputError: A file cannot be used, a split is empty, or a universe is not supported by a flow table.
    """
    regions = dict(zip(config.region, load_places(config, ledger, flows_required=True), strict=True))
    source = join_regions([region for name, region in regions.items() if name not in config.test_region])
    target = join_regions([regions[name] for name in config.test_region]) if config.test_region else source
    if config.test_region:
        refuse_shared_units(source, target)
    population = region_population(config, source, ledger)
    found = []
    for name in config.splits:
        for universe in config.universes:
            for seed in range(config.seed, config.seed + config.seeds):
                split = city_split(source, seed) if name == "city" else draw_split(name, source, population, seed)
                trial = Trial(name, universe, seed, source, target if name == "city" else source, split)
                check_split(split, source.observed().universe(universe), universe, SPLITS[:2] if name == "city" else SPLITS)
                if not (trial.test_pairs().count > 0).any():
                    raise InputError(
                        f"the region {target.name}, held out whole, has no flow of the universe {universe}; use --universes positive, or another --test_region"
                    )
                found.append(trial)
    return iter(found)


def refuse_shared_units(source: Region, target: Region) -> None:
    """Refuses a test in a city some of whose units are trained on; as ids of tiles may repeat, a unit is known by its id and place.

    Raises:
        InputError: A unit is in both.
    """
    place = pd.DataFrame({"x": source.graph.longitude, "y": source.graph.latitude}, index=list(source.graph.geocodes))
    place = place.reindex(list(target.graph.geocodes))
    near = great_circle_m(target.graph.longitude, target.graph.latitude, place.x.to_numpy(), place.y.to_numpy()) < SAME_PLACE_M
    if near.any():
        raise InputError(
            f"the regions {source.name}, trained on, and {target.name}, held out whole, share {near.sum()} units ({shown(place.index[near])}); leave those out of one of them"
        )


def city_split(source: Region, seed: int) -> Split:
    """Training and validation units for a test in another city: pairs that touch a validation unit are validated on."""
    label = np.full(len(source.graph.geocodes), "", dtype=object)
    random = np.random.default_rng(seed)
    for units in source.parts():
        label[units] = label_ranked(np.full(len(units), np.nan), OF_FIVE_WITHOUT_TEST, random)
    return Split("unit", label, seed)


def run_trial(config: EvaluateConfig, trial: Trial, ledger: Ledger, device: torch.device) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Fits and scores every predictor of a trial; returns their scores, and the breakdowns by kind."""
    pairs = trial.test_pairs()
    predictions: dict[str, np.ndarray] = {}
    constant = 0.0
    quiet = Ledger(ledger.stage, quiet=True)
    for variant in variants(config, trial.source, quiet):
        record = learn(variant.config, variant.region, trial.split, quiet, device, variant.network).record
        seen = variant.region if trial.target is trial.source else as_seen(variant.name, trial.target, config.seed)
        if variant.name == MODEL:
            constant = record.constant[trial.universe]
        if seen is None:
            ledger.note(f"no row {variant.name}: {trial.target.name} lacks the columns that it reads")
            continue
        with deterministic_on_cpu(device):
            found = record.predict(record.embed(seen), pairs)
        predictions |= {variant.row(decoder): values for decoder, values in found.items()}
    predictions["constant"] = np.full(len(pairs), constant)
    if config.baselines:
        predictions |= compare(config, trial.source, trial.target, trial.split, pairs, device)
    place = {"split": trial.name, "universe": trial.universe, "seed": trial.seed}
    level = metrics.cpc(pairs.count, predictions["constant"])
    rows: list[dict[str, object]] = []
    details: dict[str, list[pd.DataFrame]] = {"origin": [], "distance": [], "volume": [], "calibration": []}
    for name, values in predictions.items():
        scored = scored_pairs(trial.target, pairs, values)
        rows.append(place | {"predictor": name} | metrics.all_scores(scored, level))
        if config.breakdowns:
            ids = np.array(pairs.geocodes, dtype=object)[pairs.origin]
            tables = {
                "origin": by_origin(ids, scored),
                "distance": by_distance(scored),
                "volume": by_volume(scored),
                "calibration": calibration(scored),
            }
            for kind, table in tables.items():
                details[kind].append(table.assign(**place, predictor=name))
    return pd.DataFrame(rows), {kind: pd.concat(tables, ignore_index=True) for kind, tables in details.items() if tables}


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation (of the sample) over the seeds, in the order in which predictors came: columns <score> and <score>_std."""
    grouped = scores.drop(columns="seed").groupby(PLACE, sort=False)
    mean, spread = grouped.mean(), grouped.std(ddof=1)
    table = mean.join(spread.drop(columns="num_pairs").add_suffix("_std"))
    table.insert(0, "seeds", grouped.size())
    return table.reset_index()


def as_json(summary: pd.DataFrame) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Split -> universe -> predictor -> score."""
    nested: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for row in summary.to_dict("records"):
        split, universe, predictor = (str(row.pop(name)) for name in PLACE)
        nested.setdefault(split, {}).setdefault(universe, {})[predictor] = row
    return nested


def shown_table(summary: pd.DataFrame) -> pd.DataFrame:
    """What is printed: mean and deviation of the main scores, as text."""
    shown = summary[PLACE].copy()
    shown["pairs"] = summary["num_pairs"].map("{:,.0f}".format)
    for name in SHOWN:
        digits = 2 if name in ("rmse", "mae") else 3
        spread = summary[f"{name}_std"].map(lambda value, digits=digits: "" if np.isnan(value) else f" ±{value:.{digits}f}")
        shown[name] = summary[name].map(f"{{:.{digits}f}}".format) + spread
    return shown
