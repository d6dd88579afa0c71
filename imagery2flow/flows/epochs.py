"""One epoch of training the graph network: batches, loss, step. Everything is on the device and nothing here reads a file.

Every step sees the whole graph and a batch of pairs of the training origins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from imagery2flow.flows.attention import GraphTensors
from imagery2flow.flows.model import BalancedMSE, FlowModel, multinomial_loss, poisson_loss
from imagery2flow.run.device import generator, has_fused_adam
from imagery2flow.run.errors import InputError, shown
from imagery2flow.run.flow_config import FlowTrainingConfig

ORDER = 1  # purpose of random numbers, as key of ``run.device.generator``; 0 is the split's
WARMUP_START = 0.1
SMALLEST_SIGMA = 0.1


@dataclass(frozen=True)
class PairTensors:
    """A batch of pairs on the device: positions, relative distance, commuters, how many pairs each stands for; [num_pairs] each."""

    origin: Tensor
    destination: Tensor
    distance: Tensor
    count: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.origin)

    def select(self, chosen: Tensor) -> PairTensors:
        """Some of the pairs."""
        return PairTensors(self.origin[chosen], self.destination[chosen], self.distance[chosen], self.count[chosen], self.weight[chosen])


class NetworkTraining:
    """The network, its optimiser and the pairs that it is trained on.

    Args:
        config: Settings.
        model: The network, on the device.
        graph: What it sees of the region.
        train: Training pairs.
    """

    def __init__(self, config: FlowTrainingConfig, model: FlowModel, graph: GraphTensors, train: PairTensors) -> None:
        self.config, self.model, self.graph, self.train, self.device = config, model, graph, train, train.origin.device
        with torch.no_grad():
            mean = (train.weight * train.count).sum() / train.weight.sum()
            # The mean of the logarithms, where there are any: nearer to most pairs than the logarithm of the mean.
            model.offset.fill_(mean.log2() if (train.count == 0).any() else train.count.log2().mean())
        groups = [{"params": model.parameters(), "lr": config.lr, "weight_decay": config.weight_decay}]
        self.balanced: BalancedMSE | None = None
        if config.loss == "balanced_mse":
            self.balanced = BalancedMSE(max(float(train.count.log2().std(correction=0)), SMALLEST_SIGMA)).to(self.device)
            groups.append({"params": self.balanced.parameters(), "lr": config.sigma_lr, "weight_decay": 0.0})
        self.optimizer = torch.optim.AdamW(groups, fused=has_fused_adam(self.device))
        self.geocodes: Sequence[str] = ()  # ids of the units, for messages

    def run_epoch(self, epoch: int) -> float:
        """One pass over the training pairs; returns the mean loss.

        Raises:
            InputError: The loss is no number; the message names the first batch and its origins.
        """
        self.model.train()
        self.optimizer.param_groups[0]["lr"] = learning_rate(self.config, epoch)  # the group of sigma keeps its own
        total, is_finite, num_finite = (
            torch.zeros((), device=self.device),
            torch.ones((), device=self.device),
            torch.zeros((), device=self.device),
        )
        for chosen in self.batches(generator(self.config.seed, ORDER, epoch)):
            batch = self.train.select(chosen.to(self.device))
            predicted = self.model.decode(self.model.embed(self.graph), batch.origin, batch.destination, batch.distance)
            loss = self.loss(predicted, batch)
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_norm)
            self.optimizer.step()
            total += loss.detach() * len(batch)
            is_finite = is_finite * loss.detach().isfinite()
            num_finite = num_finite + is_finite  # batches before the first whose loss is no number, counted on the device
        if not math.isfinite(float(total)):
            raise InputError(self.divergence(epoch, int(num_finite)))
        return float(total) / len(self.train)

    def divergence(self, epoch: int, number: int) -> str:
        """The sentence for a loss that is no number from a batch (0-based) of an epoch on."""
        batches = list(self.batches(generator(self.config.seed, ORDER, epoch)))
        place = f"epoch {epoch + 1}"
        if number < len(batches):
            origins = self.train.origin.cpu()[batches[number]].unique().tolist()
            place += f", batch {number + 1} (origins {shown(self.geocodes[unit] if self.geocodes else unit for unit in origins)})"
        return f"training diverged: the loss is no number from {place} on; lower --lr {self.config.lr:g}, or look at these units"

    def batches(self, random: torch.Generator) -> Iterator[Tensor]:
        """Positions of the training pairs in batches of random pairs, or of random whole origins for the multinomial loss."""
        num_pairs = len(self.train)
        order = torch.randperm(num_pairs, generator=random)
        if self.config.loss == "multinomial":
            origin = self.train.origin.cpu()
            rank = torch.randperm(int(origin.max()) + 1, generator=random)
            order = torch.argsort(rank[origin], stable=True)
            ends = torch.cumsum(torch.unique_consecutive(rank[origin][order], return_counts=True)[1], 0)
            # Cut behind the origin with which a batch is full.
            full = torch.arange(self.config.batch_size, max(num_pairs, self.config.batch_size), self.config.batch_size)
            cuts = torch.unique(ends[torch.searchsorted(ends, full)])
            return iter(torch.tensor_split(order, cuts[cuts < num_pairs]))
        return iter(torch.tensor_split(order, math.ceil(num_pairs / self.config.batch_size)))

    def loss(self, predicted: Tensor, batch: PairTensors) -> Tensor:
        """Mean loss of a batch."""
        if self.balanced is not None:
            return self.balanced(predicted, batch.count.log2())
        if self.config.loss == "multinomial":
            return multinomial_loss(predicted, batch.count, batch.weight, batch.origin)
        return poisson_loss(predicted, batch.count, batch.weight)


def learning_rate(config: FlowTrainingConfig, epoch: int) -> float:
    """Learning rate of an epoch (0-based): a linear rise from a tenth, then a tenth every ``decay_epochs``."""
    if epoch < config.warmup_epochs:
        return config.lr * (WARMUP_START + (1 - WARMUP_START) * epoch / config.warmup_epochs)
    return config.lr * (0.1 ** (epoch // config.decay_epochs) if config.decay_epochs else 1.0)
