"""Stage 4: train the flow model of one region.

First the graph network with the bilinear decoder, then the trees on what it learned. The test origins are looked at once, at the end.

Writes ``<output_dir>/<log>/``: od_model.pt, lightgbm.txt, split.csv, training.csv, predictions_bilinear.csv, predictions_lightgbm.csv,
metrics.json, run.json.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from imagery2flow.flows import metrics
from imagery2flow.flows.baselines import best_constant
from imagery2flow.flows.decoder import pair_features, train_trees
from imagery2flow.flows.fitting import NetworkFitting
from imagery2flow.flows.model import FlowModel
from imagery2flow.flows.record import FlowRecord, embed_region, flow_range_of, save_record
from imagery2flow.flows.region import Region, load_region
from imagery2flow.flows.scaling import Scaling, fit_scaling
from imagery2flow.flows.table import SPLITS, UNIVERSES, FlowTable, check_split, read_population, read_split, split_origins
from imagery2flow.run.config import FlowTrainingConfig
from imagery2flow.run.device import choose_device, deterministic_on_cpu, generator
from imagery2flow.run.files import check_output_folder, write_json, write_table
from imagery2flow.run.stage import Ledger

SPLIT = 0  # purpose of random numbers, as a key of ``run.device.generator``; the others are in fitting.py


def train_flows(config: FlowTrainingConfig, ledger: Ledger) -> Path:
    """Runs stage 4 and returns the path of its ``run.json``.

    Raises:
        InputError: The region's files cannot be used, or a split is empty.
    """
    check_output_folder(config.output_dir, "--output_dir")
    device = choose_device(config.device)
    region = load_region(config, ledger, flows_required=True)
    assert region.flows is not None
    split = make_split(config, region.flows, ledger)
    check_split(split, region.flows, config.universe)
    scaling = fit_scaling(region, config.area_feature, config.num_components)
    ledger.note(
        f"{len(region.columns):,} columns of features, of which the network sees {scaling.in_dim:,} after scaling{' and reduction' if scaling.projection is not None else ''}"
    )
    ledger.note(
        f"{len(region.graph.geocodes):,} units, {region.graph.edge.shape[1]:,} edges, {len(region.flows.universe(config.universe)):,} flows of {config.universe}, device {device}"
    )
    train, valid = (region.flows.universe(config.universe).of_origins(split == name) for name in ("train", "valid"))
    with deterministic_on_cpu(device):
        fitting = NetworkFitting(config, region, scaling, train, valid, device)
        record = fit_decoders(config, region, scaling, split, fitting.run(ledger), device)
    folder = Path(config.model_dir)
    save_record(folder, record)
    write_table(folder / "split.csv", pd.DataFrame({"geocode": region.graph.geocodes, "split": split})[split != ""])
    write_table(folder / "training.csv", pd.DataFrame(fitting.history))
    scores = score_and_write(folder, region, record, split)
    ledger.went_out["test flows scored"] = int((split[region.flows.origin] == "test").sum())
    print(metrics.format_scores(scores, f"{config.region}: held-out origins, trained on {config.universe}"))
    ledger.note(f"model, predictions and metrics are in {folder}")
    return folder / "run.json"


def make_split(config: FlowTrainingConfig, flows: FlowTable, ledger: Ledger) -> np.ndarray:
    """Split of every origin, read or drawn: [num_units] of text."""
    if config.split_path is not None:
        return read_split(config.split_path, flows, ledger)
    population = None
    if config.population_path is not None:
        population = read_population(config.population_path, config.population_column, flows.geocodes, ledger)
    else:
        ledger.note("no --population_path: the split is random, not stratified by population")
    seed = int(torch.randint(2**31, (1,), generator=generator(config.seed, SPLIT)))
    split = split_origins(flows, population, np.random.default_rng(seed))
    counts = ", ".join(f"{(split == name).sum():,} {name}" for name in SPLITS)
    ledger.note(f"origins: {counts}")
    return split


def fit_decoders(
    config: FlowTrainingConfig,
    region: Region,
    scaling: Scaling,
    split: np.ndarray,
    trained: FlowModel,
    device: torch.device,
) -> FlowRecord:
    """Fits the trees on what the network knows of each unit, and the constants; returns the complete model."""
    assert region.flows is not None
    settings = dataclasses.asdict(config)
    embedded = embed_region(trained, scaling, region, device, settings)
    sets = []
    for name in ("train", "valid"):
        pairs = region.flows.universe(config.universe).of_origins(split == name)
        sets.append((pair_features(embedded.tree_inputs, pairs, scaling.relative_distance(region, pairs)), pairs.count))
    trees = train_trees(sets[0], sets[1], config.trees, config.seed, torch.get_num_threads())
    train_flows = region.flows.of_origins(split == "train")
    return FlowRecord(
        model=trained,
        trees=trees,
        scaling=scaling,
        config=settings,
        region=config.region,
        split={geocode: str(name) for geocode, name in zip(region.graph.geocodes, split, strict=True) if name},
        centroid=dict(
            zip(region.graph.geocodes, zip(region.graph.longitude.tolist(), region.graph.latitude.tolist(), strict=True), strict=True)
        ),
        constant={name: best_constant(train_flows.universe(name).count) for name in UNIVERSES if len(train_flows.universe(name))},
        flow_range=flow_range_of(train_flows, config.universe),
        device=device,
    )


def score_and_write(folder: Path, region: Region, record: FlowRecord, split: np.ndarray) -> dict[str, Any]:
    """Predicts every observed flow, scores those of the test origins, and writes both."""
    assert region.flows is not None
    observed = region.flows.universe("positive")
    predictions = record.predict(record.embed(region), observed)
    scored = split[observed.origin] == "test"
    scores = {name: metrics.score_universes(observed.count[scored], values[scored]) for name, values in predictions.items()}
    scores["constant"] = constant_scores(record, observed.select(scored))
    write_json(folder / "metrics.json", scores)
    for name, values in predictions.items():
        table = observed.to_frame().assign(prediction=values, split=split[observed.origin])
        write_table(folder / f"predictions_{name}.csv", table)
    return scores


def constant_scores(record: FlowRecord, observed: FlowTable) -> dict[str, dict[str, float]]:
    """Scores of the constant that fits the training flows of each universe best."""
    scores = {}
    for name, constant in record.constant.items():
        pairs = observed.universe(name)
        if len(pairs):
            scores[name] = metrics.score(pairs.count, np.full(len(pairs), constant))
    return scores
