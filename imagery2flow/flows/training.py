"""Stage 4: train the flow model of one or several regions, and its controls.

First the graph network with the bilinear decoder, then the trees (``flows.learning``). The test pairs are looked at once, at the end.

Writes ``<output_dir>/<log>/``: od_model.pt, lightgbm*.txt, split.csv, training.csv, predictions_bilinear.csv, predictions_lightgbm.csv,
metrics.json, run.json; controls/<name>/ with the models that the scores are read against.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from imagery2flow.flows import metrics
from imagery2flow.flows.controls import MODEL, Variant, variants
from imagery2flow.flows.learning import learn
from imagery2flow.flows.record import FlowRecord, save_record
from imagery2flow.flows.region import Region, load_region
from imagery2flow.flows.scoring import Choice, Scores, chosen_pairs, score_universes, scores_of
from imagery2flow.flows.splits import SPLITS, Split, check_split, draw_split, note_omitted, read_population, read_split
from imagery2flow.flows.table import FlowTable
from imagery2flow.run.device import choose_device, deterministic_on_cpu, generator
from imagery2flow.run.files import check_output_folder, write_json
from imagery2flow.run.flow_config import FlowTrainingConfig
from imagery2flow.run.inspection import Inspection
from imagery2flow.run.lock import only_run
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import write_table
from imagery2flow.run.unfinished import kept_parts

SPLIT = 0  # purpose of random numbers, as a key of ``run.device.generator``; 1 to 3 are in fitting.py, 4 in tree_decoder.py, 5 in sampling.py, 6 in controls.py
CONTROLS_FOLDER = "controls"


def train_flows(config: FlowTrainingConfig, ledger: Ledger) -> Path:
    """Runs stage 4 and returns the path of its ``run.json``.

    Raises:
        InputError: The region's files cannot be used, or a split is empty.
    """
    device, region, pairs, split = read_inputs(config, ledger)
    units, edges = len(region.graph.geocodes), region.graph.edge.shape[1]
    ledger.note(f"{units:,} units, {edges:,} edges, {len(pairs):,} pairs of {config.universe}, device {device}")
    folder = Path(config.model_dir)
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name != "output_dir"}
    with only_run(folder), kept_parts(folder, settings) as parts:
        scores = fit_variants(config, region, split, folder, parts, ledger)
        write_json(folder / "metrics.json", scores)
    ledger.went_out["test flows scored"] = int((split.of(region.observed().universe("positive")) == "test").sum())
    print(metrics.format_scores(scores, f"{region.name}: held out by {config.split}, trained on {config.universe}"))
    ledger.note(f"model, predictions and metrics are in {folder}")
    return folder / "run.json"


def fit_variants(config: FlowTrainingConfig, region: Region, split: Split, folder: Path, parts: Path, ledger: Ledger) -> Scores:
    """Fits and writes the model and its controls, and scores them all; ``parts`` takes the checkpoints of networks in training."""
    scores: Scores = {}
    device = choose_device(config.device)
    for name in ("run.json", "metrics.json"):
        (folder / name).unlink(missing_ok=True)  # of an earlier run: what tells that a run is done comes last
    shutil.rmtree(folder / CONTROLS_FOLDER, ignore_errors=True)  # of an earlier run with other settings
    for variant in variants(config, region, ledger):
        ledger.say(f"fits {variant.row('both decoders')}")
        learned = learn(variant.config, variant.region, split, ledger, device, variant.network, parts)
        save_record(folder if variant.name == MODEL else folder / CONTROLS_FOLDER / variant.name.replace(" ", "_"), learned.record)
        scores |= score_variant(variant, learned.record, split)
        if variant.name == MODEL:
            write_model_tables(folder, region, learned.record, split, learned.history)
            tested = chosen_pairs(region.observed(), test_of(split))
            scores["constant"] = score_universes(region, tested, None, learned.record.constant)
    return scores


def read_inputs(config: FlowTrainingConfig, ledger: Ledger) -> tuple[torch.device, Region, FlowTable, Split]:
    """Device, region, pairs of the universe and split; everything that can be known to be wrong with them is one error.

    Raises:
        InputError: A file cannot be used, the device is absent, the flows have no such universe, or a split is too small.
    """
    inspection = Inspection(ledger)
    inspection.look("--output_dir", check_output_folder, config.output_dir, "--output_dir")
    device = inspection.look("--device", choose_device, config.device)
    region = inspection.look(f"region {config.name}", load_region, config, ledger, flows_required=True)
    pairs, split = None, None
    if region is not None:
        pairs = inspection.look("--universe", region.observed().universe, config.universe)
        split = inspection.look(config.split_path or "--split", make_split, config, region, ledger)
    elif config.split_path is not None:
        inspection.look(config.split_path, read_split, config.split_path, config.split, (), ledger)
    else:
        inspection.look("--population_path", read_populations, config, (), ledger)
    if pairs is not None and split is not None:
        inspection.look("--split", check_split, split, pairs, config.universe)
    inspection.raise_if_any()
    assert device is not None
    assert region is not None
    assert pairs is not None
    assert split is not None
    return device, region, pairs, split


def make_split(config: FlowTrainingConfig, region: Region, ledger: Ledger) -> Split:
    """The split, read or drawn."""
    if config.split_path is not None:
        split = read_split(config.split_path, config.split, region.graph.geocodes, ledger)
        note_omitted(split, region.observed(), ledger)
        return split
    population = region_population(config, region, ledger)
    if population is None:
        ledger.note("no --population_path: the split is random, not stratified by population")
    seed = int(torch.randint(2**31, (1,), generator=generator(config.seed, SPLIT)))
    split = draw_split(config.split, region, population, seed, config.fold)
    if config.split != "pair":
        counts = ", ".join(f"{(split.label == name).sum():,} {name}" for name in SPLITS)
        ledger.note(f"{'origins' if config.split == 'origin' else 'units'}: {counts}")
    return split


def region_population(config: FlowTrainingConfig, region: Region, ledger: Ledger) -> np.ndarray | None:
    """Population per unit from all tables together, NaN where unknown [num_units]; None without a table."""
    if not config.population_path:
        return None
    tables = read_populations(config, region.graph.geocodes, ledger)
    population = np.array(pd.DataFrame(np.stack(tables)).bfill().iloc[0], dtype=np.float64)  # the first table that knows a unit
    unknown = np.array(region.graph.geocodes, dtype=object)[np.isnan(population)]
    ledger.leave_out("units without a known population, ranked at random in the split", unknown)
    return population


def read_populations(config: FlowTrainingConfig, geocodes: Sequence[str], ledger: Ledger) -> list[np.ndarray]:
    """Population per unit in each table, NaN where unknown [num_units]; without ``geocodes`` the tables themselves are all that is checked.

    Raises:
        InputError: Tables have faults, those of all of them.
    """
    inspection = Inspection(ledger)
    column = config.population_column
    tables = [inspection.look(path, read_population, path, column, geocodes, ledger) for path in config.population_path]
    inspection.raise_if_any()
    return [table for table in tables if table is not None]


def write_model_tables(folder: Path, region: Region, record: FlowRecord, split: Split, history: list[dict[str, float]]) -> None:
    """Writes the split, the history of the training, and a prediction of every observed flow with its split."""
    if split.kind != "pair":
        label = pd.DataFrame({"geocode": region.graph.geocodes, "split": split.label})
        write_table(folder / "split.csv", label[label.split != ""])
    write_table(folder / "training.csv", pd.DataFrame(history))
    observed = region.observed().universe("positive")
    with deterministic_on_cpu(record.device):
        predictions = record.predict(record.embed(region), observed)
    for name, values in predictions.items():
        write_table(folder / f"predictions_{name}.csv", observed.to_frame().assign(prediction=values, split=split.of(observed)))


def score_variant(variant: Variant, record: FlowRecord, split: Split) -> Scores:
    """Scores of a model's decoders on the test pairs."""
    with deterministic_on_cpu(record.device):
        found = scores_of(record, variant.region, test_of(split))
    return {variant.row(decoder): values for decoder, values in found.items()}


def test_of(split: Split) -> Choice:
    """The choice of test pairs."""
    return lambda pairs: split.of(pairs) == "test"


test_of.__test__ = False  # type: ignore[attr-defined]  # pytest must not take it for a test
