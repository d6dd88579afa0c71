"""Training the graph network on a region: the epoch with the best validation score is kept."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from pathlib import Path

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
from imagery2flow.run.errors import InputError, is_out_of_memory
from imagery2flow.run.files import content_hash, load_tensors, save_tensors
from imagery2flow.run.flow_config import FlowTrainingConfig
from imagery2flow.run.stage import Ledger
from imagery2flow.run.unfinished import HASH_LENGTH

# Purposes of random numbers, as keys of ``run.device.generator``.
WEIGHTS, DROPOUT = 2, 3
BETTER = {"rmse": -1.0, "mae": -1.0, "cpc": 1.0}  # sign that makes a higher value better
LOGGED_EPOCHS = 10
CHECKPOINT_EVERY_S = 10.0
POSITION = (
    "epoch",
    "is_out_of_patience",
    "best_score",
    "best_epoch",
    "best_state",
    "history",
)  # what a checkpoint holds beside weights and random numbers


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
        self.geocodes = region.graph.geocodes
        self.history: list[dict[str, float]] = []
        self.epoch, self.is_out_of_patience = 0, False
        self.best_score, self.best_epoch, self.best_state = -math.inf, 0, self.model.state_dict()

    def run(self, ledger: Ledger, parts: Path | None = None) -> FlowModel:
        """Trains to the last epoch, or until the validation score stops improving; returns the network with the best epoch's weights.

        Args:
            ledger: Takes the epochs.
            parts: Folder of a checkpoint, from which a run that was killed goes on; None keeps none.

        Raises:
            InputError: The training diverged, or the device has too little memory.
        """
        config = self.config
        checkpoint = None if parts is None else parts / f"network_{self.fingerprint()}.pt"
        try:
            with seeded(config.seed, DROPOUT, device=self.device):
                if checkpoint is not None:
                    self.resume(checkpoint, ledger)
                self.run_epochs(ledger, checkpoint)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(
                f"the memory of {self.device} is full in epoch {self.epoch + 1}, with batches of {config.batch_size} pairs; use a lower --batch_size or --device cpu"
            ) from error
        if self.best_epoch == 0:
            raise InputError(f"no epoch gave a validation {config.select_by} that is a number: training diverged; lower --lr {config.lr}")
        self.model.load_state_dict(self.best_state)
        ledger.note(
            f"kept epoch {self.best_epoch} of {self.history[-1]['epoch']:.0f}: validation {config.select_by} {abs(self.best_score):.3f}"
        )
        return self.model

    def run_epochs(self, ledger: Ledger, checkpoint: Path | None) -> None:
        """Trains from ``self.epoch`` on, and keeps a checkpoint now and then and at the end."""
        config, sign = self.config, BETTER[self.config.select_by]
        saved = time.monotonic()
        for epoch in tqdm(range(self.epoch, config.max_epochs), desc="train flows", unit="epoch", disable=None):
            if self.is_out_of_patience:
                break
            loss = self.run_epoch(epoch)
            if (epoch + 1) % config.evaluate_every == 0 or epoch + 1 == config.max_epochs:
                scores = self.evaluate()
                self.note(epoch, loss, scores, ledger)
                if sign * scores[config.select_by] > self.best_score:
                    self.best_score, self.best_epoch = sign * scores[config.select_by], epoch + 1
                    self.best_state = copy.deepcopy(self.model.state_dict())
                self.is_out_of_patience = epoch + 1 - self.best_epoch >= config.patience
            self.epoch = epoch + 1
            is_last = self.is_out_of_patience or self.epoch == config.max_epochs
            if checkpoint is not None and (is_last or time.monotonic() - saved >= CHECKPOINT_EVERY_S):
                self.save(checkpoint)
                saved = time.monotonic()

    def fingerprint(self) -> str:
        """Hash of everything that the training follows from, before its first epoch: settings, graph, pairs, first weights."""
        graph = {name: value for name, value in vars(self.graph).items() if isinstance(value, torch.Tensor)}
        settings = dataclasses.asdict(self.config)
        return content_hash([settings, graph, vars(self.train), vars(self.valid), self.model.state_dict()])[:HASH_LENGTH]

    def save(self, path: Path) -> None:
        """Writes a checkpoint: everything that the next epoch follows from."""
        content = {name: getattr(self, name) for name in POSITION}
        content |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "random": torch.get_rng_state()}
        content |= {} if self.balanced is None else {"balanced": self.balanced.state_dict()}
        content |= {"device_random": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {}
        save_tensors(path, {**content, "sha256": content_hash(content)})

    def resume(self, path: Path, ledger: Ledger) -> None:
        """Goes on from a checkpoint, if there is one that is whole."""
        if not path.is_file():
            return
        try:
            content = load_tensors(path, "checkpoint")
        except InputError as error:
            ledger.note(f"warning: {error}; the network is trained anew")
            return
        if content.pop("sha256", None) != content_hash(content):
            ledger.note(f"warning: checkpoint {path} is damaged; the network is trained anew")
            return
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        if self.balanced is not None:
            self.balanced.load_state_dict(content["balanced"])
        torch.set_rng_state(content["random"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(content["device_random"], self.device)
        for name in POSITION:
            setattr(self, name, content[name])
        ledger.note(f"the network goes on at epoch {self.epoch} of a run that did not come to its end")

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
