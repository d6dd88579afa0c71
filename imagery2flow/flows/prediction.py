"""Stage 5: predict the flows of another region with a trained flow model; scores where flows are known.

Writes ``<output_dir>/<log>/<region>_<year>/``: predictions_bilinear and predictions_lightgbm (h_geocode, w_geocode, count, prediction; count
empty where unknown), metrics.json where flows are known, run.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from imagery2flow.flows import metrics
from imagery2flow.flows.graph import RegionGraph
from imagery2flow.flows.record import EmbeddedRegion, FlowRecord, load_record
from imagery2flow.flows.region import Region, load_region
from imagery2flow.flows.table import FlowTable
from imagery2flow.flows.training import constant_scores
from imagery2flow.run.device import choose_device, deterministic_on_cpu
from imagery2flow.run.errors import InputError
from imagery2flow.run.files import TableWriter, write_json
from imagery2flow.run.flow_config import FlowTestConfig
from imagery2flow.run.stage import Ledger

DECODERS = ("bilinear", "lightgbm")
PAIRS_PER_BLOCK = 1_000_000


def test_flows(config: FlowTestConfig, ledger: Ledger) -> Path:
    """Runs stage 5 and returns the path of its ``run.json``.

    Raises:
        InputError: The model or the region's files cannot be used, or do not fit each other.
    """
    record = load_record(Path(config.model_dir), choose_device(config.device))
    check_model(config, record, ledger)
    region = load_region(config, ledger, flows_required=False)
    folder = Path(config.model_dir) / f"{config.region}_{config.year}"
    with deterministic_on_cpu(record.device):
        observed, predictions = write_predictions(config, record, record.embed(region), folder)
    (folder / "metrics.json").unlink(missing_ok=True)
    ledger.note(f"predictions are in {folder}")
    if observed is not None:
        score(config, record, region.graph, observed, predictions, folder, ledger)
    return folder / "run.json"


test_flows.__test__ = False  # type: ignore[attr-defined]  # pytest must not take it for a test


def check_model(config: FlowTestConfig, record: FlowRecord, ledger: Ledger) -> None:
    """Refuses a model of another shape than the flags say.

    Raises:
        InputError: They differ.
    """
    ledger.reads(Path(config.model_dir) / "od_model.pt")
    ledger.note(f"model {config.model_dir} was trained on {record.region}, universe {record.config['universe']}")
    for name in ("embedding_size", "num_hidden_layers"):
        asked, found = getattr(config, name), record.config[name]
        if asked is not None and asked != found:
            raise InputError(
                f"--{name} {asked} but the model {config.model_dir} has {found}; leave the flag out or name another model with --log"
            )
    if config.max_epochs is not None or config.lr is not None:
        ledger.note("--max_epochs and --lr are without effect here: testing trains nothing")


def pairs_to_predict(config: FlowTestConfig, region: Region) -> Iterator[FlowTable]:
    """The pairs to predict, in blocks: those with an observed flow, or every pair of units."""
    observed = None if region.flows is None else region.flows.universe("positive")
    if observed is not None and not config.all_pairs:
        yield observed
        return
    num_units = len(region.graph.geocodes)
    origins_per_block = max(1, PAIRS_PER_BLOCK // num_units)
    for start in range(0, num_units, origins_per_block):
        origins = np.arange(start, min(start + origins_per_block, num_units))
        origin, destination = np.repeat(origins, num_units), np.tile(np.arange(num_units), len(origins))
        count = np.full(len(origin), np.nan)
        if observed is not None:
            known = observed.select((observed.origin >= origins[0]) & (observed.origin <= origins[-1]))
            count[(known.origin - start) * num_units + known.destination] = known.count
        yield FlowTable(region.graph.geocodes, origin, destination, count)


def write_predictions(
    config: FlowTestConfig, record: FlowRecord, embedded: EmbeddedRegion, folder: Path
) -> tuple[FlowTable | None, dict[str, np.ndarray]]:
    """Predicts and writes block by block; returns the observed pairs and their predictions for scoring."""
    kept: list[FlowTable] = []
    values: dict[str, list[np.ndarray]] = {name: [] for name in DECODERS}
    paths = {name: folder / f"predictions_{name}.{config.table_format}" for name in DECODERS}
    with TableWriter(paths["bilinear"]) as bilinear, TableWriter(paths["lightgbm"]) as lightgbm:
        for pairs in pairs_to_predict(config, embedded.region):
            predictions = record.predict(embedded, pairs)
            frame = pairs.to_frame()
            bilinear.write(frame.assign(prediction=predictions["bilinear"]))
            lightgbm.write(frame.assign(prediction=predictions["lightgbm"]))
            known = ~np.isnan(pairs.count)
            kept.append(pairs.select(known))
            for name in DECODERS:
                values[name].append(predictions[name][known])
    if embedded.region.flows is None:
        return None, {}
    parts = [np.concatenate([getattr(part, side) for part in kept]) for side in ("origin", "destination", "count")]
    return FlowTable(embedded.region.graph.geocodes, *parts), {name: np.concatenate(parts) for name, parts in values.items()}


def score(
    config: FlowTestConfig,
    record: FlowRecord,
    graph: RegionGraph,
    observed: FlowTable,
    predictions: dict[str, np.ndarray],
    folder: Path,
    ledger: Ledger,
) -> None:
    """Scores the predictions, leaving out origins that the model was trained or chosen on."""
    seen = record.has_learned(graph)
    fair = ~seen[observed.origin]
    if seen.any():
        ledger.note(
            f"{int((~fair).sum()):,} flows begin in units that the model was trained or chosen on; scores are of the other {int(fair.sum()):,}"
        )
    if not fair.any():
        ledger.note("no flow is left to score: predictions only")
        return
    scores = {name: metrics.score_universes(observed.count[fair], values[fair]) for name, values in predictions.items()}
    scores["constant"] = constant_scores(record, observed.select(fair))
    write_json(folder / "metrics.json", scores)
    ledger.went_out["flows scored"] = int(fair.sum())
    print(metrics.format_scores(scores, f"{config.region}: predicted by the model of {record.region}"))
