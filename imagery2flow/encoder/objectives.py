"""What an encoder is trained for, as the one training loop asks it; ``encoder.labelled`` has the objectives with labels.

SimCLR: two views of one patch are near each other, and far from the views of all other patches.

Paper, eq. 2 (projector) and eq. 3 (NT-Xent); Chen et al. 2020, eq. 1. With N patches in a batch there are 2N projected views z, normalised to
length 1, and for a view i with partner j

    loss_i = -log( exp(z_i . z_j / T) / sum_{k != i} exp(z_i . z_k / T) )

averaged over all 2N views. An encoder that tells nothing apart scores log(2N - 1).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from imagery2flow.run.config import EncoderConfig
from imagery2flow.run.device import full_precision, generator, seeded

if TYPE_CHECKING:
    from lightning_fabric import Fabric

ORDER = 0  # purpose of random numbers: a key of ``run.device.generator``
Gather = Callable[[Tensor], Tensor]
SIMILARITIES_PER_BLOCK = 1 << 24  # 64 MB in single precision


def nt_xent(
    first: Tensor, second: Tensor, temperature: float, gather: Gather | None = None, rank: int = 0, shares: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """NT-Xent loss of the views on this process against the views of all processes, in single precision whatever the encoder computes in.

    With W processes that share N patches, the n of this process weigh W n / N, so that the mean over the processes is the loss of one process
    with all N; so are the gradients, since DDP averages them and ``gather`` passes the other processes' gradients back.

    Args:
        first: Projected first views [n, dim].
        second: Projected second views [n, dim], row by row of the same patches.
        temperature: T.
        gather: Collects tensors of one shape of all processes, with gradients: [...] -> [W, ...]; None for one process.
        rank: Number of this process.
        shares: Number of patches on each process; left out for one process.

    Returns:
        The loss, and the share of this process's views whose nearest neighbour is their partner, weighted alike (both scalars).
    """
    n, dim = first.shape
    shares = shares or (n,)
    with torch.autocast(first.device.type, enabled=False):
        local = nn.functional.normalize(torch.stack([first, second]).float(), dim=-1)  # [2, n, dim]
        everyone = [local] if gather is None else gather_unequal(local, gather, shares)  # [2, shares[i], dim] each
        queries, keys = local.reshape(2 * n, dim) / temperature, torch.cat([part.reshape(-1, dim) for part in everyone])  # [2N, dim]
        own = torch.arange(2 * n, device=keys.device) + 2 * sum(shares[:rank])
        partner = own.reshape(2, n).flip(0).reshape(-1)
        rows = max(1, SIMILARITIES_PER_BLOCK // len(keys))
        if len(queries) <= rows:
            losses, hits = block_loss(queries, own, partner, keys)
        else:  # each block's similarities are computed once more for the gradient, so that no more than one block is held
            blocks = zip(*(part.split(rows) for part in (queries, own, partner)), strict=True)
            parts = [checkpoint(block_loss, *block, keys, use_reentrant=False) for block in blocks]
            losses, hits = (torch.stack(part).sum(dim=0) for part in zip(*parts, strict=True))
        weight = len(shares) / (2 * sum(shares))
        return weight * losses, weight * hits


def block_loss(queries: Tensor, own: Tensor, partner: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the losses of some views, and how many find their partner.

    Args:
        queries: Normalised projections, divided by the temperature [rows, dim].
        own: Each view's own place among the keys [rows].
        partner: Its partner's [rows].
        keys: Normalised projections of all views [2N, dim].
    """
    with full_precision(keys.device):
        logits = (queries @ keys.T).scatter(1, own[:, None], -torch.inf)  # [rows, 2N]
    return nn.functional.cross_entropy(logits, partner, reduction="sum"), (logits.argmax(dim=1) == partner).sum()


def gather_unequal(local: Tensor, gather: Gather, shares: Sequence[int]) -> list[Tensor]:
    """All processes' tensors [2, shares[i], dim], padded to one shape on their way."""
    padded = nn.functional.pad(local, (0, 0, 0, max(shares) - local.shape[1]))
    return [part[:, :share] for part, share in zip(gather(padded), shares, strict=True)]


def chance_level(num_patches: int) -> float:
    """NT-Xent loss of an encoder that tells nothing apart: log(2N - 1)."""
    return math.log(2 * num_patches - 1)


def feature_spread(features: Tensor) -> Tensor:
    """Standard deviation of the length-1 features over a batch [batch, dim], averaged over dimensions, times sqrt(dim).

    About 1 for directions spread evenly over the sphere, 0 when all patches have one feature: the encoder has collapsed.
    """
    directions = nn.functional.normalize(features.detach().float(), dim=-1)
    return directions.std(dim=0, unbiased=False).mean() * math.sqrt(features.shape[1])


class SimCLR(nn.Module):
    """Encoder and two-layer projector (paper, eq. 2): h = f(x), z = W2 ReLU(W1 h)."""

    def __init__(self, backbone: nn.Module, dim: int, projection_dim: int, seed: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.encode: Callable[[Tensor], Tensor] = backbone.forward  # or the same compiled, under the same names of weights
        with seeded(seed):
            self.projector = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, projection_dim))

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Views [batch, num_bands, size, size] -> features [batch, dim] and projections [batch, projection_dim]."""
        features = self.encode(views)
        return features, self.projector(features)


class Objective(ABC):
    """What the training loop asks of an objective. Patches are known by their numbers in the set that is trained on.

    Attributes:
        views_per_patch: Random views of each patch in a step.
        measures: What a step measures and the history shows, the loss first.
        is_sum: Whether the loss of a batch is the sum of those of its parts, so that each part can pass its gradient back by itself.
    """

    views_per_patch: ClassVar[int]
    measures: ClassVar[tuple[str, ...]]
    is_sum: ClassVar[bool]

    @abstractmethod
    def build_model(self, backbone: nn.Module, dim: int) -> nn.Module:
        """The backbone, of ``dim`` features, with what the objective sets upon it: views -> features and outputs."""

    @abstractmethod
    def order(self, epoch: int) -> Tensor:
        """Numbers of the patches that an epoch shows, in order; as many as there are patches."""

    @abstractmethod
    def loss(self, features: Tensor, outputs: Tensor, patches: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and the other measures of this process's part of a batch, scaled so that their mean over processes is that of the batch.

        Args:
            features: Of the part's views, all first views before all second ones [views_per_patch * n, dim].
            outputs: Likewise [views_per_patch * n, num_outputs].
            patches: Numbers of the part's patches [n].
            batch: Those of the whole batch, of all processes [N].

        Returns:
            The loss, a scalar with a gradient, and the other ``measures`` [len(measures) - 1] without.
        """

    @abstractmethod
    def describe(self, row: dict[str, float]) -> str:
        """An epoch's row of the history for people."""

    def weight(self, batch: Tensor) -> float:
        """Weight of a batch in the means of its epoch."""
        return 1.0

    def judge(self, outputs: Tensor) -> dict[str, float]:
        """Measures of the validation patches, from the outputs of all of them [num_patches, num_outputs]; the names begin with ``validation_``."""
        raise NotImplementedError

    @property
    def content(self) -> dict[str, Any]:
        """What a checkpoint holds of the objective, apart from weights and settings."""
        return {}


class Contrastive(Objective):
    """SimCLR on random pairs of views."""

    views_per_patch = 2
    measures = ("loss", "chance", "spread", "retrieval")
    is_sum = False

    def __init__(self, config: EncoderConfig, num_patches: int, fabric: Fabric) -> None:
        self.config, self.num_patches, self.fabric = config, num_patches, fabric

    def build_model(self, backbone: nn.Module, dim: int) -> nn.Module:
        """Encoder and projector."""
        return SimCLR(backbone, dim, self.config.projection_dim, self.config.seed + 1)

    def order(self, epoch: int) -> Tensor:
        """Each patch once."""
        return torch.randperm(self.num_patches, generator=generator(self.config.seed, ORDER, epoch))

    def loss(self, features: Tensor, outputs: Tensor, patches: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """NT-Xent; chance level, spread of the features, and the share of views that find their partner."""
        gather = self.gather if self.fabric.world_size > 1 else None
        shares = [len(part) for part in torch.tensor_split(batch, self.fabric.world_size)]
        first, second = outputs.chunk(2)
        loss, retrieval = nt_xent(first, second, self.config.temperature, gather, self.fabric.global_rank, shares)
        chance = torch.full((1,), chance_level(len(batch)), device=loss.device)
        return loss, torch.cat([chance, torch.stack([feature_spread(features), retrieval])])

    def gather(self, local: Tensor) -> Tensor:
        """All processes' tensors, with gradients: [...] -> [world_size, ...]."""
        return cast("Tensor", self.fabric.all_gather(local, sync_grads=True))

    def describe(self, row: dict[str, float]) -> str:
        """The loss against chance, and the two signs of collapse."""
        return (
            f"loss {row['loss']:.3f} (chance {row['chance']:.3f}), partner found {row['retrieval']:.0%}, "
            f"feature spread {row['spread']:.2f} (0 is collapsed)"
        )
