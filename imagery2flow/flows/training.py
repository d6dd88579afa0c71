"""Stage 4: train the flow model of one region.

Every step sees the whole graph and a batch of pairs of the training origins; the epoch with the best validation score is kept. Then the trees
are fitted on the network's embeddings. The test origins are looked at once, at the end.

Writes ``<output_dir>/<log>/``: od_model.pt, lightgbm.txt, split.csv, training.csv, predictions_bilinear.csv, predictions_lightgbm.csv,
metrics.json, run.json.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from imagery2flow.flows import metrics
from imagery2flow.flows.baselines import best_constant
from imagery2flow.flows.decoder import pair_features, train_trees
from imagery2flow.flows.model import BalancedMSE, FlowModel, GraphTensors
from imagery2flow.flows.record import FlowRecord, Scaling, build_model, fit_scaling, save_record
from imagery2flow.flows.region import Region, load_region
from imagery2flow.flows.table import SPLITS, UNIVERSES, FlowTable, check_split, read_population, read_split, split_origins
from imagery2flow.run.config import FlowTrainingConfig
from imagery2flow.run.device import choose_device, deterministic_on_cpu, generator, seeded_initialisation
from imagery2flow.run.errors import InputError
from imagery2flow.run.files import write_json, write_table
from imagery2flow.run.stage import Ledger

# Purposes of random numbers, as keys of ``run.device.generator``.
SPLIT, ORDER = 0, 1
WARMUP_START = 0.1
BETTER = {"rmse": -1.0, "mae": -1.0, "cpc": 1.0}  # sign that makes a higher value better
LOGGED_EPOCHS = 10


@dataclass(frozen=True)
class PairTensors:
    """A batch of pairs on the device: positions, relative distance, log2 of the flow; [num_pairs] each."""

    origin: Tensor
    destination: Tensor
    distance: Tensor
    log_flow: Tensor

    def __len__(self) -> int:
        return len(self.origin)

    def select(self, chosen: Tensor) -> PairTensors:
        """Some of the pairs."""
        return PairTensors(self.origin[chosen], self.destination[chosen], self.distance[chosen], self.log_flow[chosen])


def train_flows(config: FlowTrainingConfig, ledger: Ledger) -> Path:
    """Runs stage 4 and returns the path of its ``run.json``.

    Raises:
        InputError: The region's files cannot be used, or a split is empty.
    """
    device = choose_device(config.device)
    region = load_region(config, ledger, flows_required=True)
    assert region.flows is not None
    split = make_split(config, region.flows, ledger)
    check_split(split, region.flows, config.universe)
    scaling = fit_scaling(region, config.area_feature)
    ledger.note(
        f"{len(region.graph.geocodes):,} units, {region.graph.edge.shape[1]:,} edges, {len(region.flows.universe(config.universe)):,} flows of {config.universe}, device {device}"
    )
    with deterministic_on_cpu(device):
        model, history = train_network(config, region, scaling, split, device, ledger)
        record = fit_decoders(config, region, scaling, split, model, device)
    folder = Path(config.model_dir)
    save_record(folder, record)
    write_table(folder / "split.csv", pd.DataFrame({"geocode": region.graph.geocodes, "split": split})[split != ""])
    write_table(folder / "training.csv", pd.DataFrame(history))
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


def train_network(
    config: FlowTrainingConfig, region: Region, scaling: Scaling, split: np.ndarray, device: torch.device, ledger: Ledger
) -> tuple[FlowModel, list[dict[str, float]]]:
    """Trains the graph network with the bilinear decoder; returns the best epoch's weights and the history."""
    pairs = {name: tensors_of(region, scaling, split, name, config.universe, device) for name in ("train", "valid")}
    graph = scaling.graph_tensors(region, device)
    with seeded_initialisation(config.seed):
        model = build_model(dataclasses.asdict(config), scaling).to(device)
    targets = pairs["train"].log_flow
    with torch.no_grad():
        model.offset.fill_(targets.mean())
    loss_function = BalancedMSE(max(float(targets.std(correction=0)), 0.1)).to(device)
    optimizer = torch.optim.Adam(
        [{"params": model.parameters(), "lr": config.lr}, {"params": loss_function.parameters(), "lr": config.sigma_lr}]
    )
    best_score, best_epoch, best_state = -math.inf, 0, copy.deepcopy(model.state_dict())
    history: list[dict[str, float]] = []
    for epoch in tqdm(range(config.max_epochs), desc="train flows", unit="epoch", disable=None):
        optimizer.param_groups[0]["lr"] = learning_rate(config, epoch)  # the group of sigma keeps its own
        loss = train_epoch(model, loss_function, optimizer, graph, pairs["train"], config, epoch)
        if (epoch + 1) % config.evaluate_every and epoch + 1 < config.max_epochs:
            continue
        scores = validate(model, graph, pairs["valid"])
        history.append(
            {
                "epoch": epoch + 1,
                "loss": loss,
                "sigma": loss_function.sigma.item(),
                **{f"valid_{name}": value for name, value in scores.items()},
            }
        )
        report(history[-1], config, ledger)
        if BETTER[config.select_by] * scores[config.select_by] > best_score:
            best_score, best_epoch, best_state = (
                BETTER[config.select_by] * scores[config.select_by],
                epoch + 1,
                copy.deepcopy(model.state_dict()),
            )
        if epoch + 1 - best_epoch >= config.patience:
            break
    if best_epoch == 0:
        raise InputError(f"no epoch gave a validation {config.select_by} that is a number: the training diverged; lower --lr {config.lr}")
    model.load_state_dict(best_state)
    ledger.note(f"kept epoch {best_epoch} of {history[-1]['epoch'] if history else 0}: validation {config.select_by} {abs(best_score):.3f}")
    return model, history


def tensors_of(region: Region, scaling: Scaling, split: np.ndarray, name: str, universe: str, device: torch.device) -> PairTensors:
    """The pairs of a split and universe on the device."""
    assert region.flows is not None
    pairs = region.flows.universe(universe).of_origins(split == name)
    distance = scaling.relative_distance(region, pairs)
    return PairTensors(
        torch.from_numpy(pairs.origin).to(device),
        torch.from_numpy(pairs.destination).to(device),
        torch.tensor(distance, dtype=torch.float32, device=device),
        torch.tensor(np.log2(pairs.count), dtype=torch.float32, device=device),
    )


def train_epoch(
    model: FlowModel,
    loss_function: BalancedMSE,
    optimizer: torch.optim.Optimizer,
    graph: GraphTensors,
    pairs: PairTensors,
    config: FlowTrainingConfig,
    epoch: int,
) -> float:
    """One pass over the training pairs; returns the mean loss."""
    model.train()
    order = torch.randperm(len(pairs), generator=generator(config.seed, ORDER, epoch))
    batches = torch.tensor_split(order, math.ceil(len(pairs) / config.batch_size))
    total = 0.0
    for chosen in batches:
        batch = pairs.select(chosen.to(pairs.origin.device))
        predicted = model.decode(model.embed(graph), batch.origin, batch.destination, batch.distance)
        loss = loss_function(predicted, batch.log_flow)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_norm)
        optimizer.step()
        total += loss.item() * len(batch)
    return total / len(pairs)


@torch.inference_mode()
def validate(model: FlowModel, graph: GraphTensors, pairs: PairTensors) -> dict[str, float]:
    """Scores on the validation pairs, in commuters."""
    model.eval()
    log_flow = model.decode(model.embed(graph), pairs.origin, pairs.destination, pairs.distance)
    observed, predicted = (torch.exp2(values.clamp(max=30)).double().cpu().numpy() for values in (pairs.log_flow, log_flow))
    return {"cpc": metrics.cpc(observed, predicted), "rmse": metrics.rmse(observed, predicted), "mae": metrics.mae(observed, predicted)}


def learning_rate(config: FlowTrainingConfig, epoch: int) -> float:
    """Learning rate of an epoch (0-based): a linear rise from a tenth, then a tenth every ``decay_epochs``."""
    if epoch < config.warmup_epochs:
        return config.lr * (WARMUP_START + (1 - WARMUP_START) * epoch / config.warmup_epochs)
    return config.lr * (0.1 ** (epoch // config.decay_epochs) if config.decay_epochs else 1.0)


def report(row: dict[str, float], config: FlowTrainingConfig, ledger: Ledger) -> None:
    """Prints an epoch, about ten times a run."""
    if row["epoch"] == config.evaluate_every or row["epoch"] % max(config.evaluate_every, config.max_epochs // LOGGED_EPOCHS) == 0:
        ledger.say(
            f"epoch {row['epoch']:.0f}/{config.max_epochs}: loss {row['loss']:.3f}, sigma {row['sigma']:.2f}, validation "
            f"CPC {row['valid_cpc']:.3f}, RMSE {row['valid_rmse']:.2f}, MAE {row['valid_mae']:.2f}"
        )


def fit_decoders(
    config: FlowTrainingConfig, region: Region, scaling: Scaling, split: np.ndarray, model: FlowModel, device: torch.device
) -> FlowRecord:
    """Fits the trees on the network's embeddings, and the constants; returns the complete model."""
    assert region.flows is not None
    with torch.inference_mode():
        hidden = model.eval().embed(scaling.graph_tensors(region, device)).cpu().numpy()
    sets = []
    for name in ("train", "valid"):
        pairs = region.flows.universe(config.universe).of_origins(split == name)
        sets.append((pair_features(hidden, pairs, scaling.relative_distance(region, pairs)), pairs.count))
    trees = train_trees(sets[0], sets[1], config.trees, config.seed, torch.get_num_threads())
    train_flows = region.flows.of_origins(split == "train")
    return FlowRecord(
        model=model,
        trees=trees,
        scaling=scaling,
        config=dataclasses.asdict(config),
        region=config.region,
        split={geocode: str(name) for geocode, name in zip(region.graph.geocodes, split, strict=True) if name},
        constant={name: best_constant(train_flows.universe(name).count) for name in UNIVERSES if len(train_flows.universe(name))},
        log2_limit=float(np.log2(train_flows.count.max())) + 1.0,
        device=device,
    )


def score_and_write(folder: Path, region: Region, record: FlowRecord, split: np.ndarray) -> dict[str, Any]:
    """Predicts every observed flow, scores those of the test origins, and writes both."""
    assert region.flows is not None
    observed = region.flows.universe("positive")
    predictions = record.predict(region, observed, record.embed(region))
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
