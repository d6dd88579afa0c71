"""The figures of a report, each made of what the run has; one line in ``FIGURES`` adds one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from imagery2flow.figures.breakdowns import cpc_by_distance, cpc_by_intensity
from imagery2flow.figures.report_data import NAMES, TRAINING, ReportRun
from imagery2flow.figures.results import flow_training_curve, loss_curve
from imagery2flow.figures.scores import calibration, controls_dots
from imagery2flow.flows import breakdown
from imagery2flow.flows.groups import distance_groups, intensity_groups
from imagery2flow.flows.metrics import ScoredPairs
from imagery2flow.flows.region import find_encoder
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import read_table


class ReportFigure(NamedTuple):
    """A figure of the report.

    Attributes:
        caption: What it shows.
        draw: Makes it of a run, or returns None where the run lacks what it is made of.
    """

    caption: str
    draw: Callable[[ReportRun], Figure | None]


def scored(run: ReportRun) -> dict[str, ScoredPairs]:
    """The scored pairs by decoder, without decoders that have none."""
    found = {NAMES.get(decoder, decoder): run.scored_pairs(decoder) for decoder in run.decoders}
    return {name: pairs for name, pairs in found.items() if len(pairs)}


def controls(run: ReportRun) -> Figure | None:
    """The scores of every predictor."""
    return None if run.scores is None else controls_dots(run.scores.rename(columns={"pairs": "universe"}))


def calibration_bins(run: ReportRun) -> Figure | None:
    """Observed against predicted flows."""
    tables = {name: breakdown.calibration(pairs) for name, pairs in scored(run).items()}
    return calibration(tables) if tables else None


def distances(run: ReportRun) -> Figure | None:
    """CPC by distance."""
    tables = {name: distance_groups(pairs) for name, pairs in scored(run).items()}
    return cpc_by_distance(tables, pooled=True) if tables else None


def intensities(run: ReportRun) -> Figure | None:
    """CPC by observed flow."""
    tables = {name: intensity_groups(pairs) for name, pairs in scored(run).items()}
    return cpc_by_intensity(tables, pooled=True) if tables else None


def flow_training(run: ReportRun) -> Figure | None:
    """The training of the flow network; of a city the training of its model."""
    path = (run.folder if run.record["stage"] == TRAINING else run.folder.parent) / "training.csv"
    return flow_training_curve(read_table(path, "training", ())) if path.is_file() else None


def encoder_training(run: ReportRun) -> Figure | None:
    """The loss of the encoder, where its table still lies beside the checkpoint."""
    features = run.record["config"].get("node_feats_path", [])
    encoder = find_encoder(features[0], Ledger("report", quiet=True)) if features else None
    path = None if encoder is None else Path(encoder.path)
    table = None if path is None else path.with_name(path.stem + "_metrics.csv")
    return loss_curve(read_table(table, "metrics", ())) if table is not None and table.is_file() else None


FIGURES = (
    ReportFigure("The model beside its controls: CPC on the scored pairs of each universe", controls),
    ReportFigure("Calibration: scored pairs in bins of equal number by their prediction", calibration_bins),
    ReportFigure("CPC of the scored pairs by distance", distances),
    ReportFigure(
        "CPC of the scored pairs by observed flow; bins chosen by the truth flatter no model, so compare predictors within a bin",
        intensities,
    ),
    ReportFigure("Training of the flow network: its loss, and how well it predicts the validation pairs", flow_training),
    ReportFigure("Training of the image encoder", encoder_training),
)
