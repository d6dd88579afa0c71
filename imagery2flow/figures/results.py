"""Figures of runs and scores."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from imagery2flow.figures.style import COLOURS, GREY, new_figure


def loss_curve(history: pd.DataFrame) -> Figure:
    """SimCLR's loss against its chance level, and the two signs that the encoder learns: partners found, features spread.

    Args:
        history: epoch, loss, chance, retrieval, spread: one row per epoch.
    """
    figure, (left, right) = new_figure(8, 3, columns=2)
    left.plot(history.epoch, history.loss, color=COLOURS[0], label="NT-Xent loss")
    left.plot(history.epoch, history.chance, color=GREY, linestyle="--", label="chance, log(2N - 1)")
    left.set(xlabel="epoch", ylabel="loss (nats)", ylim=(0, None))
    right.plot(history.epoch, history.retrieval, color=COLOURS[2], label="partner is nearest (share of views)")
    right.plot(history.epoch, history.spread, color=COLOURS[1], label="feature spread (0 is collapsed)")
    right.set(xlabel="epoch", ylim=(0, 1.05))
    for axis in (left, right):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend(frameon=False, fontsize=8)
    return figure


def flow_training_curve(history: pd.DataFrame) -> Figure:
    """The flow network's loss, and the scores of the validation pairs by which its best epoch is chosen.

    Args:
        history: epoch, loss, valid_cpc (NaN in epochs without an evaluation): one row per epoch.
    """
    figure, (left, right) = new_figure(8, 3, columns=2)
    left.plot(history.epoch, history.loss, color=COLOURS[0])
    left.set(xlabel="epoch", ylabel="training loss")
    evaluated = history.dropna(subset=["valid_cpc"])
    right.plot(evaluated.epoch, evaluated.valid_cpc, color=COLOURS[2])
    right.set(xlabel="epoch", ylabel="CPC of the validation pairs")
    for axis in (left, right):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
