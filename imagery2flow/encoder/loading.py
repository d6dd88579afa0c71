"""Brings views to the encoder: pixels are kept on its device where they fit, else each step's crops are cut out ahead of it, by threads.

What a step sees follows from its batch and its random numbers alone: not from where the pixels are kept, nor from the number of processes, nor from the
parts that a batch is divided into.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from imagery2flow.imagery.pyramid import Pyramid
from imagery2flow.imagery.views import Drawn, Tiles, cut, draw_views, jittered_views
from imagery2flow.run.config import ViewConfig

Job = TypeVar("Job")
Made = TypeVar("Made")
# Threads wait for memory or a file most of the time; each step ahead holds the crops of one batch in main memory.
LOADER_THREADS, STEPS_AHEAD = 4, 6


@dataclass(frozen=True)
class ViewPart:
    """Views of some patches of a batch, not yet made: their first views, then the second ones if there are any.

    Attributes:
        drawn: Random numbers of the views.
        tiles: Their pixels, where these are brought to the device.
        patches: Numbers of the patches [n].
        batch: Those of the whole batch, of all processes [N].
    """

    drawn: Drawn
    tiles: list[Tiles] | None
    patches: Tensor
    batch: Tensor


@dataclass(frozen=True)
class StepJob:
    """What a step is made from.

    Attributes:
        batch: Numbers of the patches of all processes [N].
        mine: Places in the batch that this process takes, in the parts that go through the encoder one after the other.
        random: Generator of the step's random numbers; the same on every process.
    """

    batch: Tensor
    mine: list[Tensor]
    random: torch.Generator


class ViewLoader:
    """Draws, cuts and resamples the views of training steps.

    Args:
        pyramid: The patches.
        config: How views are drawn.
        view_size: Their side in pixels.
        device: The encoder's.
        views_per_patch: Views of each patch in a step.
    """

    def __init__(self, pyramid: Pyramid, config: ViewConfig, view_size: int, device: torch.device, views_per_patch: int = 2) -> None:
        self.pyramid, self.config, self.view_size, self.device = pyramid, config, view_size, device
        self.views_per_patch = views_per_patch

    @property
    def streams(self) -> bool:
        """Whether pixels are brought to the device step by step."""
        return self.pyramid.device != self.device

    def steps(self, jobs: Iterable[StepJob]) -> Iterator[list[ViewPart]]:
        """The parts of each step, in order."""
        return ahead(self.parts, jobs, LOADER_THREADS, STEPS_AHEAD) if self.streams else map(self.parts, jobs)

    def parts(self, job: StepJob) -> list[ViewPart]:
        """Draws the views of every patch of the batch, and takes this process's."""
        drawn = draw_views(self.pyramid, job.batch.repeat(self.views_per_patch), self.config, job.random)  # [views_per_patch * N]
        return [self.part(job.batch, places, drawn) for places in job.mine]

    def part(self, batch: Tensor, places: Tensor, drawn: Drawn) -> ViewPart:
        """The views of the patches at some places of a batch."""
        own = drawn.select(torch.cat([places + view * len(batch) for view in range(self.views_per_patch)]))
        return ViewPart(own, self.cut(own) if self.streams else None, batch[places], batch)

    def cut(self, drawn: Drawn) -> list[Tiles]:
        """The pixels that views show, where all pixels are, ready to be sent."""
        tiles = cut(self.pyramid, drawn.boxes, self.view_size)
        return [part.pinned() for part in tiles] if self.device.type == "cuda" and self.streams else tiles

    def views(self, part: ViewPart) -> Tensor:
        """Resamples and jitters on the device: [2n, num_bands, view_size, view_size]."""
        tiles = self.cut(part.drawn) if part.tiles is None else [tile.to(self.device) for tile in part.tiles]
        return jittered_views(tiles, part.drawn, self.pyramid)


def ahead(make: Callable[[Job], Made], jobs: Iterable[Job], threads: int, depth: int) -> Iterator[Made]:
    """Makes things in threads, in order and at most ``depth`` ahead of whoever takes them."""
    pending: deque[Future[Made]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for job in jobs:
            pending.append(pool.submit(make, job))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
