"""Stages 4 and 5 beside the published way to train, and beside bare matrix products and trees; and how fast the commands answer."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import torch
from generated import FEATURES, LEFT, make_region, split_of
from references import bare_bilinear, published_epoch
from timing import ROOT, Row, Settings, Target, alternate, command_of, peak_mb, run

from imagery2flow.flows.fitting import NetworkFitting
from imagery2flow.flows.learning import learn
from imagery2flow.flows.outflow import RegionPredictor
from imagery2flow.flows.prediction import all_pairs
from imagery2flow.flows.record import EmbeddedRegion, FlowRecord, load_record, save_record
from imagery2flow.flows.region import Region, load_region
from imagery2flow.flows.sampling import every_pair
from imagery2flow.flows.scaling import fit_scaling
from imagery2flow.flows.table import FlowTable
from imagery2flow.run.cli import parse_config
from imagery2flow.run.device import choose_device, deterministic_on_cpu, generator
from imagery2flow.run.flow_config import FlowTrainingConfig
from imagery2flow.run.stage import Ledger

EMBEDDING_DIM = 512
FASTER_THAN_PUBLISHED = Target(50, "x", at_least=True)
BALANCED_MEMORY = Target(1000, "MB")
SLOWER_THAN_BARE = Target(1.3, "x")
PREDICTION_MEMORY = Target(2000, "MB")
TIME_TO_HELP = Target(1.0, "s")
SCRIPTS = ("img_preprocessing.py", "train_img_encoder.py", "get_img_embedding.py", "train_ODPrediction.py", "test_ODPrediction.py")
FAR_WEST_M = LEFT - 200_000.0  # of another city, so that the trees for other cities predict it

BALANCED_PREPARE = """
import torch
from imagery2flow.flows.model import BalancedMSE
"""
BALANCED_WORK = """
random = torch.Generator().manual_seed(0)
target = torch.randint(11, 300, ({0},), generator=random).float().log2()
predicted = (target + torch.randn({0}, generator=random)).requires_grad_()
BalancedMSE(1.0)(predicted, target).backward()
"""
PREDICTION_PREPARE = """
import sys
sys.path.insert(0, {benchmarks!r})
from bench_flows import predict_everything
"""
PREDICTION_WORK = "predict_everything({folder!r}, {num_units})"


def od_epoch(settings: Settings) -> list[Row]:
    """An epoch of the published network on New York's flows, ours and the published way: pairs trained on a second."""
    recipe = published_recipe()
    region = make_region("city", 60, num_pairs=600) if settings.data is None else load_city(settings.data, recipe)
    rows = []
    pairs = region.observed().universe("gt10")
    for batch_size in dict.fromkeys((min(recipe.batch_size, len(pairs)), len(pairs))):
        fitting = make_fitting(dataclasses.replace(recipe, batch_size=batch_size), region)
        theirs = make_fitting(recipe, region)
        trained: list[int] = []

        def ours_epoch(fitting: NetworkFitting = fitting) -> None:
            with deterministic_on_cpu(fitting.device):
                fitting.run_epoch(10)

        def published(theirs: NetworkFitting = theirs, trained: list[int] = trained) -> None:
            assert theirs.balanced is not None
            order = torch.randperm(len(theirs.graph.features), generator=generator(0, len(trained))).to(theirs.device)
            trained.append(published_epoch(theirs.model, theirs.graph, theirs.train, order, theirs.balanced.sigma.item()))

        ours_s, published_s = alternate([ours_epoch, published], settings.repeats)
        ours, theirs_rate = len(pairs) / ours_s, statistics.mean(trained) / published_s
        stage = f"4 epoch, {len(region.graph.geocodes):,} tracts, {len(pairs):,} pairs, width {recipe.embedding_size}, {batch_size:,} pairs a step"
        reference = (
            f"published batches of 512 units {theirs_rate:,.0f} pairs/s ({statistics.mean(trained):,.0f} pairs in {published_s:.2f} s)"
        )
        rows.append(Row(stage, f"{ours:,.0f} pairs/s ({ours_s:.2f} s)", reference, ours / theirs_rate, FASTER_THAN_PUBLISHED))
    return rows


def published_recipe() -> FlowTrainingConfig:
    """The settings of ``configs/paper``."""
    recipe = ROOT / "configs" / "paper" / "train_ODPrediction.yaml"
    return parse_config("bench.py", FlowTrainingConfig, ["--config", str(recipe), "--region", "nyc", "--node_feats_path", "none"])


def load_city(data: Path, config: FlowTrainingConfig) -> Region:
    """New York with random numbers for embeddings, which cost the same."""
    units, flows = data / "nyc" / "units.gpkg", data / "nyc" / "flows.csv"
    geocodes = gpd.read_file(units).GEOID
    vectors = np.random.default_rng(0).normal(size=(len(geocodes), EMBEDDING_DIM)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/vectors.parquet"
        pd.DataFrame(vectors, columns=[*map(str, range(EMBEDDING_DIM))]).assign(geocode=geocodes).to_parquet(path)
        place = {"node_feats_path": [path], "units_path": [str(units)], "flows_path": [str(flows)]}
        return load_region(dataclasses.replace(config, **place), Ledger("bench", quiet=True), flows_required=True)


def make_fitting(config: FlowTrainingConfig, region: Region) -> NetworkFitting:
    """A run that has not begun, on all pairs of the universe."""
    pairs = every_pair(region.observed().universe(config.universe))
    scaling = fit_scaling(region, config.area_feature, config.num_components)
    return NetworkFitting(config, region, scaling, pairs, pairs, choose_device(config.device))


def balanced_mse(settings: Settings) -> list[Row]:
    """Peak memory of the exact balanced loss of many pairs."""
    count = settings.size(200_000, 5_000)
    before, after = peak_mb(BALANCED_PREPARE, BALANCED_WORK.format(count))
    stage = f"4 balanced MSE forward and backward, {count:,} pairs, memory above the imports"
    full = f"{before:,.0f} MB after the imports; one matrix of all pairs {4 * count**2 / 1e6:,.0f} MB"
    return [Row(stage, f"{after - before:,.0f} MB ({after:,.0f} MB in all)", full, after - before, BALANCED_MEMORY)]


def trained_model(settings: Settings) -> FlowRecord:
    """A model of a small generated city; its trees are as many and as large as by default."""
    folder = settings.scratch / "model"
    device = choose_device("auto")
    if not (folder / "od_model.pt").is_file():
        region = make_region("source", settings.size(400, 40))
        config = FlowTrainingConfig(region=["source"], node_feats_path=["none"], max_epochs=settings.size(10, 2))
        if settings.quick:
            trees = dataclasses.replace(config.trees, num_trees=10, transfer_trees=10, early_stopping=5)
            config = dataclasses.replace(config, trees=trees)
        save_record(folder, learn(config, region, split_of(region), Ledger("bench", quiet=True), device).record)
    return load_record(folder, device)


def prediction(settings: Settings) -> list[Row]:
    """Every pair of a large region by both decoders, and bare matrix products and LightGBM on ready columns for the same pairs."""
    num_units = settings.size(5_000, 60)
    record = trained_model(settings)
    embedded = record.embed(target_region(num_units))
    predictor = RegionPredictor(record, embedded)
    blocks = list(all_pairs(embedded.seen.region))[:: max(num_units // 1000, 1)]
    ours_s = bare_s = 0.0
    with deterministic_on_cpu(record.device):
        for number, pairs in enumerate(blocks * settings.repeats):
            ready = ready_columns(embedded, pairs)
            ways = [
                lambda pairs=pairs: predictor.predict(pairs),
                lambda pairs=pairs, ready=ready: bare_prediction(record, embedded, pairs, ready),
            ]
            times = alternate(ways if number % 2 else ways[::-1], 1, warm_up=number == 0)
            ours, bare = times if number % 2 else times[::-1]
            ours_s, bare_s = ours_s + ours, bare_s + bare
    started = time.perf_counter()
    folder = str(settings.scratch / "model")
    before, after = peak_mb(
        PREDICTION_PREPARE.format(benchmarks=str(ROOT / "benchmarks")), PREDICTION_WORK.format(folder=folder, num_units=num_units)
    )
    seconds = time.perf_counter() - started
    stage, count = f"5 all pairs of {num_units:,} units, both decoders", sum(map(len, blocks)) * settings.repeats
    return [
        Row(stage, f"{count / ours_s:,.0f} pairs/s", f"bare matrix products and LightGBM {count / bare_s:,.0f} pairs/s", ours_s / bare_s, SLOWER_THAN_BARE),
        Row(f"{stage}, peak memory", f"{after:,.0f} MB ({seconds:.0f} s in all)", f"{before:,.0f} MB after the imports", after, PREDICTION_MEMORY),
    ]  # fmt: skip


def target_region(num_units: int) -> Region:
    """Another city, without flows."""
    region = make_region("target", num_units, west_m=FAR_WEST_M, num_pairs=1)
    assert region.columns == FEATURES
    return dataclasses.replace(region, flows=None)


def predict_everything(folder: str, num_units: int) -> float:
    """Every pair by both decoders, block by block; returns the sum."""
    record = load_record(Path(folder), choose_device("auto"))
    predictor = RegionPredictor(record, record.embed(target_region(num_units)))
    with deterministic_on_cpu(record.device):
        return sum(
            float(values.sum()) for pairs in all_pairs(predictor.embedded.seen.region) for values in predictor.predict(pairs).values()
        )


def ready_columns(embedded: EmbeddedRegion, pairs: FlowTable) -> list[np.ndarray]:
    """What each of the trees reads of pairs."""
    distance = embedded.seen.relative_distance(pairs)
    return [embedded.inputs.columns(pairs, distance, trees.columns) for trees in embedded.trees.members]


def bare_prediction(record: FlowRecord, embedded: EmbeddedRegion, pairs: FlowTable, ready: list[np.ndarray]) -> None:
    """The same pairs by library calls alone."""
    model, hidden = record.embedder.model, embedded.seen.hidden
    assert model is not None
    assert hidden is not None
    weights = model.interaction.detach().cpu().numpy()
    bare_bilinear(hidden.cpu().numpy(), weights, np.unique(pairs.origin), model.offset.item())
    for trees, columns in zip(embedded.trees.members, ready, strict=True):
        trees.booster.predict(columns)


def start_up(settings: Settings) -> list[Row]:
    """``--help`` of every script."""
    seconds = alternate([lambda script=script: run(command_of(script, "--help")) for script in SCRIPTS], settings.repeats)
    return [Row(f"{script} --help", f"{taken:.2f} s", "", taken, TIME_TO_HELP) for script, taken in zip(SCRIPTS, seconds, strict=True)]
