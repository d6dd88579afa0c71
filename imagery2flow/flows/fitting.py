"""The training loop of the graph network.

Every step sees the whole graph and a batch of pairs of the training origins; the epoch with the best validation score is kept.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from imagery2flow.flows import metrics
from imagery2flow.flows.model import BalancedMSE, FlowModel, multinomial_loss, poisson_loss
from imagery2flow.flows.record import build_model, flow_range_of, to_flow
from imagery2flow.flows.region import Region
from imagery2flow.flows.sampling import PairSample
from imagery2flow.flows.scaling import Scaling
from imagery2flow.run.device import generator, seeded
from imagery2flow.run.errors import InputError
from imagery2flow.run.flow_config import FlowTrainingConfig
from imagery2flow.run.stage import Ledger

# Purposes of random numbers, as keys of ``run.device.generator``; 0 is the split's.
ORDER, WEIGHTS, DROPOUT = 1, 2, 3
WARMUP_START = 0.1
BETTER = {"rmse": -1.0, "mae": -1.0, "cpc": 1.0}  # sign that makes a higher value better
LOGGED_EPOCHS = 10
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


def to_tensors(region: Region, scaling: Scaling, sample: PairSample, device: torch.device) -> PairTensors:
    """Pairs on the device."""
    pairs = sample.pairs
    return PairTensors(
        torch.from_numpy(pairs.origin).to(device),
        torch.from_numpy(pairs.destination).to(device),
        torch.tensor(scaling.relative_distance(region, pairs), dtype=torch.float32, device=device),
        torch.tensor(pairs.count, dtype=torch.float32, device=device),
        torch.tensor(sample.weight, dtype=torch.float32, device=device),
    )


class NetworkFitting:
    """One training run of the graph network with the bilinear decoder."""

    def __init__(
        self, config: FlowTrainingConfig, region: Region, scaling: Scaling, train: PairSample, valid: PairSample, device: torch.device
    ) -> None:
        self.config, self.device = config, device
        self.train, self.valid = (to_tensors(region, scaling, pairs, device) for pairs in (train, valid))
        self.graph = scaling.graph_tensors(region, device)
        self.flow_range = flow_range_of(train.pairs, config.universe)
        with seeded(config.seed, WEIGHTS):
            self.model = build_model(dataclasses.asdict(config), scaling).to(device)
        with torch.no_grad():
            mean = (self.train.weight * self.train.count).sum() / self.train.weight.sum()
            # The mean of the logarithms, where there are any: nearer to most pairs than the logarithm of the mean.
            self.model.offset.fill_(mean.log2() if (self.train.count == 0).any() else self.train.count.log2().mean())
        groups = [{"params": self.model.parameters(), "lr": config.lr, "weight_decay": config.weight_decay}]
        self.balanced: BalancedMSE | None = None
        if config.loss == "balanced_mse":
            self.balanced = BalancedMSE(max(float(self.train.count.log2().std(correction=0)), SMALLEST_SIGMA)).to(device)
            groups.append({"params": self.balanced.parameters(), "lr": config.sigma_lr, "weight_decay": 0.0})
        self.optimizer = torch.optim.AdamW(groups)
        self.history: list[dict[str, float]] = []

    def run(self, ledger: Ledger) -> FlowModel:
        """Trains to the last epoch, or until the validation score stops improving; returns the network with the best epoch's weights.

        Raises:
            InputError: The training diverged.
        """
        config, sign = self.config, BETTER[self.config.select_by]
        best_score, best_epoch, best_state = -math.inf, 0, self.model.state_dict()
        with seeded(config.seed, DROPOUT, device=self.device):
            for epoch in tqdm(range(config.max_epochs), desc="train flows", unit="epoch", disable=None):
                loss = self.run_epoch(epoch)
                if (epoch + 1) % config.evaluate_every and epoch + 1 < config.max_epochs:
                    continue
                scores = self.evaluate()
                self.note(epoch, loss, scores, ledger)
                if sign * scores[config.select_by] > best_score:
                    best_score, best_epoch = sign * scores[config.select_by], epoch + 1
                    best_state = copy.deepcopy(self.model.state_dict())
                if epoch + 1 - best_epoch >= config.patience:
                    break
        if best_epoch == 0:
            raise InputError(f"no epoch gave a validation {config.select_by} that is a number: training diverged; lower --lr {config.lr}")
        self.model.load_state_dict(best_state)
        ledger.note(f"kept epoch {best_epoch} of {self.history[-1]['epoch']:.0f}: validation {config.select_by} {abs(best_score):.3f}")
        return self.model

    def run_epoch(self, epoch: int) -> float:
        """One pass over the training pairs; returns the mean loss."""
        self.model.train()
        self.optimizer.param_groups[0]["lr"] = learning_rate(self.config, epoch)  # the group of sigma keeps its own
        total = torch.zeros((), device=self.device)
        for chosen in self.batches(generator(self.config.seed, ORDER, epoch)):
            batch = self.train.select(chosen.to(self.device))
            predicted = self.model.decode(self.model.embed(self.graph), batch.origin, batch.destination, batch.distance)
            loss = self.loss(predicted, batch)
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_norm)
            self.optimizer.step()
            total += loss.detach() * len(batch)
        return float(total) / len(self.train)

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

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Scores on the validation pairs, in commuters."""
        self.model.eval()
        pairs = self.valid
        log_flow = self.model.decode(self.model.embed(self.graph), pairs.origin, pairs.destination, pairs.distance)
        observed, predicted = pairs.count.double().cpu().numpy(), to_flow(log_flow).clip(*self.flow_range)
        return {name: function(observed, predicted) for name, function in metrics.SCORES.items()}

    def note(self, epoch: int, loss: float, scores: dict[str, float], ledger: Ledger) -> None:
        """Adds an epoch to the history, and prints about ten of them a run."""
        sigma = {"sigma": self.balanced.sigma.item()} if self.balanced else {}
        row = {"epoch": epoch + 1, "loss": loss, **sigma, **{f"valid_{name}": value for name, value in scores.items()}}
        self.history.append(row)
        every = max(self.config.evaluate_every, self.config.max_epochs // LOGGED_EPOCHS)
        if len(self.history) == 1 or row["epoch"] % every == 0:
            values = ", ".join(f"{name.upper()} {value:.3f}" for name, value in scores.items())
            ledger.say(f"epoch {row['epoch']:.0f}/{self.config.max_epochs}: loss {loss:.3f}, validation {values}")


def learning_rate(config: FlowTrainingConfig, epoch: int) -> float:
    """Learning rate of an epoch (0-based): a linear rise from a tenth, then a tenth every ``decay_epochs``."""
    if epoch < config.warmup_epochs:
        return config.lr * (WARMUP_START + (1 - WARMUP_START) * epoch / config.warmup_epochs)
    return config.lr * (0.1 ** (epoch // config.decay_epochs) if config.decay_epochs else 1.0)
