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
    """Two views of each of some patches, not yet made: the first views, then the second; with their pixels where these are brought to the device."""

    drawn: Drawn
    tiles: list[Tiles] | None

    @property
    def num_patches(self) -> int:
        """Patches that are seen twice."""
        return len(self.drawn.boxes.patch) // 2


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
    """Draws, cuts and resamples the views of training steps."""

    def __init__(self, pyramid: Pyramid, config: ViewConfig, view_size: int, device: torch.device) -> None:
        self.pyramid, self.config, self.view_size, self.device = pyramid, config, view_size, device

    @property
    def streams(self) -> bool:
        """Whether pixels are brought to the device step by step."""
        return self.pyramid.device != self.device

    def steps(self, jobs: Iterable[StepJob]) -> Iterator[list[ViewPart]]:
        """The parts of each step, in order."""
        return ahead(self.parts, jobs, LOADER_THREADS, STEPS_AHEAD) if self.streams else map(self.parts, jobs)

    def parts(self, job: StepJob) -> list[ViewPart]:
        """Draws two views of every patch of the batch, and takes this process's."""
        drawn = draw_views(self.pyramid, job.batch.repeat(2), self.config, job.random)  # [2N]
        own = [drawn.select(torch.cat([places, places + len(job.batch)])) for places in job.mine]
        return [ViewPart(part, self.cut(part) if self.streams else None) for part in own]

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
