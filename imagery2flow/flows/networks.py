"""Two published neural networks as baselines of the flow models: Deep Gravity and GMEL.

Deep Gravity (Simini et al. 2021, doi 10.1038/s41467-021-26752-4): a feed-forward network scores the features of a pair; the scores of one origin's
pairs, made shares, send out its outflow; the loss is the cross-entropy of the flow shares, a mean over the N origins

    p_od = exp s(x_o, x_d, d_od) / sum_k exp s(x_o, x_k, d_ok),   y'_od = O_o p_od,   loss = -1/N sum_o sum_d y_od / O_o log p_od

GMEL (Liu et al. 2020, doi 10.1609/aaai.v34i01.5422): two graph attention networks of the layer in ``flows.attention``, one for the units as
origins, one as destinations, learn three tasks at once, each by mean squared errors e of square roots

    sqrt y'_od = h_o . A g_d + a,   sqrt in'_d = u . g_d + b,   sqrt out'_o = v . h_o + c,   loss = w_1 e_y + w_2 e_in + w_3 e_out

and boosted trees on [h_o, g_d, d_od] then predict the flow.

Only the pairs given take part: a pair that is not given is unknown, not 0. Names of dimensions: num_pairs, num_units, dim. Pairs are positions of
units; features and distances are scaled by the caller. Equal seeds give equal results on one machine, whatever the order of the pairs.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import lightgbm
import numpy as np
import torch
from torch import Tensor, nn

with warnings.catch_warnings():  # torch_geometric 2.7 calls what torch 2.11 deprecates; the user cannot mend it
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)
    from torch_geometric.utils import scatter, softmax

from imagery2flow.flows.attention import GraphTensors, attend, attention_layers
from imagery2flow.flows.epochs import PairTensors
from imagery2flow.flows.sparse import pair_products
from imagery2flow.run.device import CPU, deterministic_on_cpu, generator, seeded
from imagery2flow.run.errors import InputError

# Origin, destination, scaled distance and commuters of pairs: [num_pairs] each.
PairArrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
# Purposes of random numbers, as keys of ``run.device.generator``, apart from those of ``flows.fitting``.
ORDER, WEIGHTS, DROPOUT = 11, 12, 13
PAIRS_PER_BLOCK = 65_536


@dataclass(frozen=True, kw_only=True)
class DeepGravityConfig:
    """Shape and training of Deep Gravity; the defaults take about 10 seconds of one CPU core for 20,000 pairs of 64 features.

    Attributes:
        widths: Of the hidden layers; published: 6 of 256, then 9 of 128.
        dropout: Share of each hidden layer that is hidden in training; published: .35.
        lr: Learning rate of RMSprop; published: 5e-6.
        momentum: As published.
        origins_per_batch: Origins, each with all its pairs, per step; as published.
        max_epochs: Most passes over the origins; published: 20.
        patience: Stop after this many epochs without a better validation loss.
    """

    widths: tuple[int, ...] = (128, 128, 64)
    dropout: float = 0.1
    lr: float = 3e-4
    momentum: float = 0.9
    origins_per_batch: int = 64
    max_epochs: int = 60
    patience: int = 10


@dataclass(frozen=True, kw_only=True)
class GmelConfig:
    """Shape and training of GMEL; the defaults take about 20 seconds of one CPU core for 20,000 pairs of 300 units.

    Attributes:
        embedding_size: Width of every layer; as published.
        num_layers: Of each of the two networks; as published.
        task_weights: Of flow, inflow and outflow; as published.
        lr: Learning rate of Adam; published: 1e-5.
        grad_norm: Longest gradient; as published.
        pairs_per_batch: As published.
        max_epochs: Most passes over the pairs; as published.
        patience: Stop after this many epochs without a better validation RMSE.
        num_trees: As published.
        max_depth: Of a tree; as published.
    """

    embedding_size: int = 128
    num_layers: int = 2
    task_weights: tuple[float, float, float] = (0.5, 0.25, 0.25)
    lr: float = 2e-3
    grad_norm: float = 1.0
    pairs_per_batch: int = 1_000
    max_epochs: int = 120
    patience: int = 20
    num_trees: int = 100
    max_depth: int = 2


def to_tensors(pairs: PairArrays, device: torch.device) -> PairTensors:
    """Sorts pairs, so that their order changes nothing, and moves them to the device."""
    order = np.lexsort((pairs[1], pairs[0]))
    origin, destination = (torch.as_tensor(part[order], dtype=torch.long, device=device) for part in pairs[:2])
    distance, count = (to_float(part[order], device) for part in pairs[2:])
    return PairTensors(origin, destination, distance, count, weight=torch.ones_like(count))


def to_float(values: np.ndarray, device: torch.device) -> Tensor:
    """Numbers on the device, in single precision."""
    return torch.as_tensor(values, dtype=torch.float32, device=device)


def keep_best(
    model: nn.Module, run_epoch: Callable[[int], None], validate: Callable[[], float] | None, max_epochs: int, patience: int
) -> None:
    """Trains, and leaves the model with the weights of the epoch of the least validation loss, or of the last where there is none.

    Raises:
        InputError: The training diverged.
    """
    best, best_epoch, best_state = math.inf, 0, model.state_dict()
    for epoch in range(max_epochs):
        model.train()
        run_epoch(epoch)
        model.eval()
        if validate is None:
            continue
        with torch.inference_mode():
            loss = validate()
        if loss < best:
            best, best_epoch, best_state = loss, epoch, copy.deepcopy(model.state_dict())
        if epoch - best_epoch >= patience:
            break
    if validate is not None:
        model.load_state_dict(best_state)
    if (validate is not None and best == math.inf) or not all(bool(values.isfinite().all()) for values in model.parameters()):
        raise InputError(
            f"the training of {type(model).__name__} diverged: no loss is a number; lower its lr, or scale features and distances"
        )


class DeepGravityNetwork(nn.Module):
    """The score of a pair: linear layers, each followed by a leaky ReLU and dropout, and a last one to a number."""

    def __init__(self, in_dim: int, config: DeepGravityConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in pairwise([2 * in_dim + 1, *config.widths]):
            layers += [nn.Linear(a, b), nn.LeakyReLU(), nn.Dropout(config.dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(config.widths[-1], 1))

    def forward(self, features: Tensor, origin: Tensor, destination: Tensor, distance: Tensor) -> Tensor:
        """Scores [num_pairs] of pairs [num_pairs] of units with features [num_units, dim]."""
        return self.layers(torch.cat([features[origin], features[destination], distance[:, None]], dim=1)).squeeze(1)


@dataclass(frozen=True)
class DeepGravity:
    """A trained Deep Gravity."""

    network: DeepGravityNetwork
    device: torch.device

    @torch.inference_mode()
    def predict(
        self, features: np.ndarray, origin: np.ndarray, destination: np.ndarray, distance: np.ndarray, outflow: np.ndarray
    ) -> np.ndarray:
        """Flows in commuters [num_pairs], which add up to the outflow of each origin over the pairs given.

        Args:
            features: Scaled as in training [num_units, dim].
            origin: Positions [num_pairs].
            destination: Positions [num_pairs].
            distance: Scaled as in training [num_pairs].
            outflow: Commuters who leave each unit for a pair given [num_units].
        """
        units = to_float(features, self.device)
        group = torch.as_tensor(origin, dtype=torch.long)
        parts = zip(*(part.split(PAIRS_PER_BLOCK) for part in (group, torch.as_tensor(destination), to_float(distance, CPU))), strict=True)
        score = torch.cat([self.network(units, *(part.to(self.device) for part in block)).cpu() for block in parts])
        share = softmax(score.double(), group, num_nodes=len(features))  # [num_pairs]
        return np.asarray(outflow)[origin] * share.numpy()


def fit_deep_gravity(
    features: np.ndarray,
    train: PairArrays,
    valid: PairArrays | None,
    seed: int,
    device: torch.device,
    config: DeepGravityConfig | None = None,
) -> DeepGravity:
    """Trains Deep Gravity.

    Args:
        features: Of mean about 0 and deviation about 1 [num_units, dim].
        train: Pairs; distances scaled to about 0 to 1, 0 or more commuters.
        valid: Pairs of other origins, which choose the epoch; None for the last one.
        seed: Of first weights, order of the origins, and dropout.
        device: Where to train.
        config: None for the defaults.

    Raises:
        InputError: The training diverged.
    """
    config = config or DeepGravityConfig()
    units, pairs_of_training = to_float(features, device), to_tensors(train, device)
    held_out = None if valid is None else to_tensors(valid, device)
    with seeded(seed, WEIGHTS):
        network = DeepGravityNetwork(features.shape[1], config).to(device)
    optimizer = torch.optim.RMSprop(network.parameters(), lr=config.lr, momentum=config.momentum)

    def loss_of(pairs: PairTensors) -> Tensor:
        return share_loss(network(units, pairs.origin, pairs.destination, pairs.distance), pairs.origin, pairs.count)

    def run_epoch(epoch: int) -> None:
        for batch in batches_of_origins(pairs_of_training, config.origins_per_batch, generator(seed, ORDER, epoch)):
            step(optimizer, loss_of(batch))

    validate = None if held_out is None else lambda: float(loss_of(held_out))
    with deterministic_on_cpu(device), seeded(seed, DROPOUT, device=device):
        keep_best(network, run_epoch, validate, config.max_epochs, config.patience)
    return DeepGravity(network, device)


def step(optimizer: torch.optim.Optimizer, loss: Tensor, grad_norm: float = math.inf) -> None:
    """One step down the gradient of a loss, shortened to ``grad_norm``."""
    optimizer.zero_grad()
    loss.backward()
    for group in optimizer.param_groups:
        nn.utils.clip_grad_norm_(group["params"], grad_norm)
    optimizer.step()


def share_loss(score: Tensor, group: Tensor, count: Tensor) -> Tensor:
    """Cross-entropy of the flow shares, a mean over the groups that have flows.

    Args:
        score: [num_pairs].
        group: Whose commuters the pair shares, 0 or more [num_pairs].
        count: Commuters [num_pairs].
    """
    total = scatter(count, group)[group]  # [num_pairs]
    share = count / torch.where(total > 0, total, 1.0)
    return -(share * log_softmax(score, group)).sum() / share.sum().clamp(min=1)  # the shares of a group add up to 1


def log_softmax(score: Tensor, group: Tensor) -> Tensor:
    """Logarithm of the softmax within groups, finite also where that is 0 in single precision: [num_pairs]."""
    score = score - scatter(score.detach(), group, reduce="max")[group]
    return score - scatter(score.exp(), group)[group].log()


def batches_of_origins(pairs: PairTensors, origins_per_batch: int, random: torch.Generator) -> Iterator[PairTensors]:
    """All pairs, some origins at a time and all pairs of each, the origins in random order."""
    _, length = torch.unique_consecutive(pairs.origin.cpu(), return_counts=True)  # [num_origins]
    of_origin = torch.arange(len(pairs)).split(length.tolist())
    for chosen in torch.randperm(len(length), generator=random).split(origins_per_batch):
        yield pairs.select(torch.cat([of_origin[position] for position in chosen.tolist()]).to(pairs.origin.device))


class GmelNetwork(nn.Module):
    """Two graph attention networks, a bilinear form, and two linear ones."""

    def __init__(self, in_dim: int, config: GmelConfig) -> None:
        super().__init__()
        width = config.embedding_size
        widths = [in_dim] + [width] * config.num_layers
        self.as_origin, self.as_destination = attention_layers(widths), attention_layers(widths)
        self.interaction = nn.Parameter(torch.randn(width, width) / width)
        self.offset = nn.Parameter(torch.zeros(()))
        self.inflow, self.outflow = nn.Linear(width, 1), nn.Linear(width, 1)

    def embed(self, graph: GraphTensors) -> tuple[Tensor, Tensor]:
        """Embeddings of the units as origins h and as destinations g: [num_units, embedding_size] each."""
        as_origin = as_destination = graph.features
        for layer, other in zip(self.as_origin, self.as_destination, strict=True):
            as_origin = torch.relu(attend(layer, as_origin, graph))
            as_destination = torch.relu(attend(other, as_destination, graph))
        return as_origin, as_destination

    def root_flow(self, as_origin: Tensor, as_destination: Tensor, pairs: PairTensors) -> Tensor:
        """Square root of the flow of pairs [num_pairs]."""
        return pair_products(as_origin @ self.interaction, as_destination, pairs.origin, pairs.destination) + self.offset

    def loss(
        self, embedded: tuple[Tensor, Tensor], pairs: PairTensors, inflow: Tensor, outflow: Tensor, weights: tuple[float, float, float]
    ) -> Tensor:
        """Weighted errors of the flows, and of the margins of the units that have a pair; inflow and outflow are [num_units]."""
        as_origin, as_destination = embedded
        origins, destinations = pairs.origin.unique(), pairs.destination.unique()
        errors = (
            self.root_flow(as_origin, as_destination, pairs) - pairs.count.sqrt(),
            self.inflow(as_destination[destinations]).squeeze(1) - inflow[destinations].sqrt(),
            self.outflow(as_origin[origins]).squeeze(1) - outflow[origins].sqrt(),
        )
        return sum((weight * error.square().mean() for weight, error in zip(weights, errors, strict=True)), errors[0].new_zeros(()))


@dataclass(frozen=True)
class Gmel:
    """A trained GMEL."""

    network: GmelNetwork
    trees: lightgbm.LGBMRegressor
    device: torch.device

    def predict(
        self,
        features: np.ndarray,
        edge: np.ndarray,
        edge_weight: np.ndarray,
        origin: np.ndarray,
        destination: np.ndarray,
        distance: np.ndarray,
    ) -> np.ndarray:
        """Flows in commuters, 0 or more [num_pairs]; arguments as the parts of those of ``fit_gmel``."""
        embedded = embed_units(self.network, features, edge, edge_weight, self.device)
        blocks = [slice(start, start + PAIRS_PER_BLOCK) for start in range(0, len(origin), PAIRS_PER_BLOCK)]
        parts = [self.trees.predict(tree_features(*embedded, origin[block], destination[block], distance[block])) for block in blocks]
        return np.maximum(np.concatenate([np.zeros(0), *parts]), 0.0)


def fit_gmel(
    features: np.ndarray,
    edge: np.ndarray,
    edge_weight: np.ndarray,
    train: PairArrays,
    inflow: np.ndarray,
    outflow: np.ndarray,
    valid: PairArrays | None,
    seed: int,
    device: torch.device,
    config: GmelConfig | None = None,
) -> Gmel:
    """Trains GMEL: first the networks, then the trees on what they learned.

    Args:
        features: Of mean about 0 and deviation about 1 [num_units, dim].
        edge: Positions of (neighbour, unit) [2, num_edges].
        edge_weight: Scaled distance between them [num_edges, 1].
        train: Pairs; distances scaled to about 0 to 1, 0 or more commuters.
        inflow: Commuters who arrive at each unit by the training pairs; read for units with such a pair only [num_units].
        outflow: Commuters who leave, likewise [num_units].
        valid: Pairs that choose the epoch by the RMSE of the bilinear form; None for the last one.
        seed: Of first weights, order of the pairs, and trees.
        device: Where to train the networks; the trees grow on the CPU.
        config: None for the defaults.

    Raises:
        InputError: The training diverged.
    """
    config = config or GmelConfig()
    pairs_of_training = to_tensors(train, device)
    held_out = None if valid is None else to_tensors(valid, device)
    graph = GraphTensors(to_float(features, device), torch.as_tensor(edge, device=device), to_float(edge_weight, device))
    margins = to_float(inflow, device), to_float(outflow, device)
    with seeded(seed, WEIGHTS):
        network = GmelNetwork(features.shape[1], config).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)

    def run_epoch(epoch: int) -> None:
        for chosen in torch.randperm(len(pairs_of_training), generator=generator(seed, ORDER, epoch)).split(config.pairs_per_batch):
            batch = pairs_of_training.select(chosen.to(device))
            step(optimizer, network.loss(network.embed(graph), batch, *margins, config.task_weights), config.grad_norm)

    def rmse(pairs: PairTensors) -> float:
        return float((network.root_flow(*network.embed(graph), pairs).square() - pairs.count).square().mean().sqrt())

    with deterministic_on_cpu(device):
        keep_best(network, run_epoch, None if held_out is None else lambda: rmse(held_out), config.max_epochs, config.patience)
    embedded = embed_units(network, features, edge, edge_weight, device)
    return Gmel(network, fit_trees(embedded, pairs_of_training, seed, config), device)


@torch.inference_mode()
def embed_units(
    network: GmelNetwork, features: np.ndarray, edge: np.ndarray, edge_weight: np.ndarray, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of the units as origins and as destinations [num_units, embedding_size]."""
    with deterministic_on_cpu(device):
        embedded = network.embed(
            GraphTensors(to_float(features, device), torch.as_tensor(edge, device=device), to_float(edge_weight, device))
        )
    return embedded[0].cpu().numpy(), embedded[1].cpu().numpy()


def tree_features(
    as_origin: np.ndarray, as_destination: np.ndarray, origin: np.ndarray, destination: np.ndarray, distance: np.ndarray
) -> np.ndarray:
    """What the trees see of pairs, [h_o, g_d, d_od]: [num_pairs, 2 * embedding_size + 1]."""
    return np.concatenate([as_origin[origin], as_destination[destination], distance[:, None].astype(as_origin.dtype)], axis=1)


def fit_trees(embedded: tuple[np.ndarray, np.ndarray], pairs: PairTensors, seed: int, config: GmelConfig) -> lightgbm.LGBMRegressor:
    """Boosted trees of squared errors on raw counts, as published; the result depends on data and seed only."""
    trees = lightgbm.LGBMRegressor(
        n_estimators=config.num_trees,
        max_depth=config.max_depth,
        num_leaves=2**config.max_depth,
        random_state=seed,
        deterministic=True,
        force_row_wise=True,
        n_jobs=torch.get_num_threads(),
        verbosity=-1,
    )
    places = pairs.origin.cpu().numpy(), pairs.destination.cpu().numpy(), pairs.distance.cpu().numpy()
    return trees.fit(tree_features(*embedded, *places), pairs.count.cpu().numpy())
