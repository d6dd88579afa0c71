"""Which pairs a model is fitted to, and how many each stands for.

In the universe ``full`` nearly all pairs are zeros. All flows are kept and some zeros are drawn, each of which stands for as many as were there for
each drawn: the expectation of any weighted sum over the sample is the sum over all pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from imagery2flow.flows.table import FlowTable
from imagery2flow.run.device import random_numbers
from imagery2flow.run.flow_config import FlowTrainingConfig

ZEROS = 5  # purpose of random numbers


@dataclass(frozen=True)
class PairSample:
    """Pairs and how many each stands for [num_pairs]."""

    pairs: FlowTable
    weight: np.ndarray

    def __len__(self) -> int:
        return len(self.pairs)


def draw_sample(config: FlowTrainingConfig, pairs: FlowTable) -> PairSample:
    """The pairs to fit to: all, or in the universe ``full`` all flows and some zeros."""
    if config.universe != "full":
        return every_pair(pairs)
    return sample_zeros(pairs, config.zeros_per_flow, random_numbers(config.seed, ZEROS))


def every_pair(pairs: FlowTable) -> PairSample:
    """Each pair stands for itself."""
    return PairSample(pairs, np.ones(len(pairs)))


def sample_zeros(pairs: FlowTable, zeros_per_flow: float, random: np.random.Generator) -> PairSample:
    """All flows and some of the zeros.

    Args:
        pairs: Pairs, zeros among them.
        zeros_per_flow: Zeros to draw for each flow; at least one is drawn where there are any, and at most all.
        random: Source of randomness.
    """
    zero = np.flatnonzero(pairs.count == 0)
    flows = np.flatnonzero(pairs.count > 0)
    num_drawn = min(len(zero), max(int(zeros_per_flow * len(flows)), 1))
    if num_drawn == len(zero):
        return every_pair(pairs)
    drawn = random.choice(zero, num_drawn, replace=False)
    chosen = np.sort(np.concatenate([flows, drawn]))
    weight = np.ones(len(pairs))
    weight[drawn] = len(zero) / num_drawn
    return PairSample(pairs.select(chosen), weight[chosen])
