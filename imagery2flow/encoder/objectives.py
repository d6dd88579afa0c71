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
from torch.utils.checkpoint import checkpoint

from imagery2flow.run.device import full_precision, seeded

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
