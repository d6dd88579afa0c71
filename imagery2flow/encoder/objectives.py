"""What an encoder is trained for. SimCLR: two views of one patch are near each other, and far from the views of all other patches.

Paper, eq. 2 (projector) and eq. 3 (NT-Xent); Chen et al. 2020, eq. 1. With N patches in a batch there are 2N projected views z, normalised to
length 1, and for a view i with partner j

    loss_i = -log( exp(z_i . z_j / T) / sum_{k != i} exp(z_i . z_k / T) )

averaged over all 2N views. An encoder that tells nothing apart scores log(2N - 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from imagery2flow.run.device import seeded

Gather = Callable[[Tensor], Tensor]


def nt_xent(
    first: Tensor, second: Tensor, temperature: float, gather: Gather | None = None, rank: int = 0, shares: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """NT-Xent loss of the views on this process against the views of all processes, in full precision.

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
        queries, keys = local.reshape(2 * n, dim), torch.cat([part.reshape(-1, dim) for part in everyone])
        logits = queries @ keys.T / temperature  # [2n, 2N]
        own = torch.arange(2 * n, device=logits.device) + 2 * sum(shares[:rank])
        logits = logits.masked_fill(nn.functional.one_hot(own, len(keys)).bool(), -torch.inf)
        partner = own.reshape(2, n).flip(0).reshape(-1)
        weight = len(shares) * n / sum(shares)
        return weight * nn.functional.cross_entropy(logits, partner), weight * (logits.argmax(dim=1) == partner).float().mean()


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
        with seeded(seed):
            self.projector = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, projection_dim))

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Views [batch, num_bands, size, size] -> features [batch, dim] and projections [batch, projection_dim]."""
        features = self.backbone(views)
        return features, self.projector(features)
