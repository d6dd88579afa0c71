"""Training the graph network on a region: the epoch with the best validation score is kept."""

from __future__ import annotations

import copy
import dataclasses
import math

import torch
from tqdm import tqdm

from imagery2flow.flows import metrics
from imagery2flow.flows.epochs import NetworkTraining, PairTensors
from imagery2flow.flows.model import FlowModel
from imagery2flow.flows.record import build_model, flow_range_of, to_flow
from imagery2flow.flows.region import Region
from imagery2flow.flows.sampling import PairSample
from imagery2flow.flows.scaling import Scaling
from imagery2flow.run.device import seeded
from imagery2flow.run.errors import InputError
from imagery2flow.run.flow_config import FlowTrainingConfig
from imagery2flow.run.stage import Ledger

# Purposes of random numbers, as keys of ``run.device.generator``.
WEIGHTS, DROPOUT = 2, 3
BETTER = {"rmse": -1.0, "mae": -1.0, "cpc": 1.0}  # sign that makes a higher value better
LOGGED_EPOCHS = 10


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


class NetworkFitting(NetworkTraining):
    """One training run of the graph network with the bilinear decoder."""

    def __init__(
        self, config: FlowTrainingConfig, region: Region, scaling: Scaling, train: PairSample, valid: PairSample, device: torch.device
    ) -> None:
        with seeded(config.seed, WEIGHTS):
            model = build_model(dataclasses.asdict(config), scaling).to(device)
        super().__init__(config, model, scaling.graph_tensors(region, device), to_tensors(region, scaling, train, device))
        self.valid = to_tensors(region, scaling, valid, device)
        self.flow_range = flow_range_of(train.pairs, config.universe)
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
