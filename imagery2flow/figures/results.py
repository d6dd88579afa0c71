"""Figures of runs and scores."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from imagery2flow.figures.style import COLOURS, GREY, new_figure


def loss_curve(history: pd.DataFrame) -> Figure:
    """The encoder's loss, and what tells whether it learns: of SimCLR partners found and features spread, with labels accuracy or R2.

    Args:
        history: epoch, loss, and what the objective measures: one row per epoch.
    """
    figure, (left, right) = new_figure(8, 3, columns=2)
    (draw_contrastive if "retrieval" in history else draw_labelled)(history, left, right)
    for axis in (left, right):
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=8)
    return figure


def draw_contrastive(history: pd.DataFrame, left: Axes, right: Axes) -> None:
    """SimCLR's loss against its chance level, and the two signs that the encoder learns."""
    left.plot(history.epoch, history.loss, color=COLOURS[0], label="NT-Xent loss")
    left.plot(history.epoch, history.chance, color=GREY, linestyle="--", label="chance, log(2N - 1)")
    left.set(ylabel="loss (nats)", ylim=(0, None))
    right.plot(history.epoch, history.retrieval, color=COLOURS[2], label="partner is nearest (share of views)")
    right.plot(history.epoch, history.spread, color=COLOURS[1], label="feature spread (0 is collapsed)")
    right.set(ylim=(0, 1.05))


def draw_labelled(history: pd.DataFrame, left: Axes, right: Axes) -> None:
    """Loss of an objective with labels, and how well it does, in training and in validation where there is one."""
    names = {"loss": "training", "validation_loss": "validation"}
    scores = {"accuracy": "accuracy, training", "validation_accuracy": "accuracy, validation", "validation_r2": "R2, validation"}
    for axis, labels in ((left, names), (right, scores)):
        for number, (name, label) in enumerate(labels.items()):
            if name in history:
                axis.plot(history.epoch, history[name], color=COLOURS[number], label=label)
    left.set(ylabel="loss", ylim=(0, None))
    right.set(ylim=(None, 1.05))


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
