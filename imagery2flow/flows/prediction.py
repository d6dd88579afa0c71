"""Stage 5: predict the flows of another region with a trained flow model; scores where flows are known.

Writes ``<output_dir>/<log>/<region>_<year>/``: predictions_bilinear and predictions_lightgbm (h_geocode, w_geocode, count, prediction,
scored; count empty where unknown, scored where the flow is known and the model has not learned from it), metrics.json where flows are known, run.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from imagery2flow.flows import metrics
from imagery2flow.flows.controls import CONTROLS, SHUFFLED, UNTRAINED, as_seen
from imagery2flow.flows.outflow import RegionPredictor, largest_destinations
from imagery2flow.flows.record import FlowRecord, load_record
from imagery2flow.flows.region import Region, load_region
from imagery2flow.flows.scoring import Choice, Scores, chosen_pairs, score_universes, scores_of
from imagery2flow.flows.splits import read_unit_column
from imagery2flow.flows.table import FlowTable
from imagery2flow.flows.training import CONTROLS_FOLDER
from imagery2flow.run.device import CPU, choose_device, deterministic_on_cpu
from imagery2flow.run.errors import InputError
from imagery2flow.run.files import check_output_folder, write_json
from imagery2flow.run.flow_config import DECODERS, FlowTestConfig, RegionConfig
from imagery2flow.run.inspection import Inspection
from imagery2flow.run.lock import only_run
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import TableWriter

PAIRS_PER_BLOCK = 1_000_000


def test_flows(config: FlowTestConfig, ledger: Ledger) -> Path:
    """Runs stage 5 and returns the path of its ``run.json``.

    Raises:
        InputError: The model or the region's files cannot be used, or do not fit each other.
    """
    record, region, totals = read_inputs(config, ledger)
    folder = Path(config.model_dir) / f"{region.name}_{config.year}"
    check_output_folder(folder, "--output_dir")
    with only_run(folder):
        predict_and_score(config, record, region, totals, folder, ledger)
    return folder / "run.json"


test_flows.__test__ = False  # type: ignore[attr-defined]  # pytest must not take it for a test


def predict_and_score(
    config: FlowTestConfig, record: FlowRecord, region: Region, totals: np.ndarray | None, folder: Path, ledger: Ledger
) -> None:
    """Writes the predictions, held to known outflows [num_units] where they are asked for, and the scores where flows are known."""
    with deterministic_on_cpu(record.device):
        predictor = RegionPredictor(record, record.embed(region), present_decoders(config, record, ledger))
        note_decoder(predictor, region, ledger)
        if totals is not None:
            predictor = predictor.with_outflows(totals, config.origin_totals, all_pairs(region), ledger)
        for name in ("run.json", "metrics.json"):
            (folder / name).unlink(missing_ok=True)  # of an earlier run: what tells that a run is done comes last
        write_predictions(config, predictor, region, folder, ledger)
    ledger.note(f"predictions are in {folder}")
    if region.flows is not None:
        score(config, predictor, region, folder, ledger)


def read_inputs(config: FlowTestConfig, ledger: Ledger) -> tuple[FlowRecord, Region, np.ndarray | None]:
    """The model, the region and, where they are asked for, the known outflows [num_units]; all that is wrong with them is one error.

    Raises:
        InputError: The model or the region's files cannot be used, or do not fit each other.
    """
    inspection = Inspection(ledger)
    device = inspection.look("--device", choose_device, config.device)
    record = inspection.look(f"model {config.model_dir}", load_record, Path(config.model_dir), device or CPU)
    if record is not None:
        inspection.look(f"model {config.model_dir}", check_model, config, record, ledger)
    region = inspection.look(f"region {config.name}", load_region, config, ledger, flows_required=False)
    totals, path = None, config.origin_totals_path
    if path is not None:
        column, geocodes = config.origin_totals_column, region.graph.geocodes if region else ()
        totals = inspection.look(path, read_unit_column, path, "origin totals", column, "--origin_totals_column", geocodes, ledger)
    if record is not None and region is not None:
        look_at_fit(config, record, region, inspection)
    inspection.raise_if_any()
    assert record is not None
    assert region is not None
    return record, region, totals


def look_at_fit(config: RegionConfig, record: FlowRecord, region: Region, inspection: Inspection) -> None:
    """Looks whether a model can predict a region: the same columns of features, of one encoder, and distances of one kind."""
    for check in (record.scaling.check_columns, partial(check_distances, config, record), partial(check_encoder, config, record)):
        inspection.look(f"model {config.model_dir}", check, region)


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


def present_decoders(config: FlowTestConfig, record: FlowRecord, ledger: Ledger) -> list[str]:
    """Those of the chosen decoders that the model has.

    Raises:
        InputError: There is none.
    """
    present: list[str] = [name for name in config.decoders if name in record.decoders]
    if not present:
        raise InputError(
            f"model {config.model_dir} has no decoder {' or '.join(config.decoders)}; use --decoders {' '.join(record.decoders)}"
        )
    absent = [name for name in config.decoders if name not in present]
    if absent:
        ledger.note(f"the model has no decoder {', '.join(absent)}")
    return present


def note_decoder(predictor: RegionPredictor, region: Region, ledger: Ledger) -> None:
    """Says which LightGBM decoder predicts, and where that may surprise."""
    record, known = predictor.record, int(predictor.record.known_units(region.graph).sum())
    if record.transfer is None or "lightgbm" not in predictor.decoders:
        return
    if predictor.embedded.trees is record.transfer:
        also = f"; {known:,} of its {len(region.graph.geocodes):,} units are of the source region" if known else ""
        ledger.note(f"LightGBM: the trees for other regions than {record.region}{also}")
    elif known < len(record.centroid):
        ledger.note(
            f"LightGBM: the trees for {record.region}, of whose {len(record.centroid):,} units only these {known:,} are here: what lies around those at the border is unknown"
        )


def check_distances(config: RegionConfig, record: FlowRecord, region: Region) -> None:
    """Refuses to decode distances of one kind by a model of the other: a way by road is longer.

    Raises:
        InputError: They differ.
    """
    kinds = {True: "distances of a table", False: "great-circle distances"}
    asked, found = region.graph.table_m is not None, bool(record.config["distance_path"])
    if asked != found:
        remedy = "leave --distance_path out" if asked else "give a table with --distance_path"
        raise InputError(
            f"region {region.name} has {kinds[asked]} but the model {config.model_dir} was trained on {kinds[found]}; {remedy}, or train a model on {kinds[asked]}"
        )


def check_encoder(config: RegionConfig, record: FlowRecord, region: Region) -> None:
    """Refuses features of another encoder: column 7 of one has nothing to do with column 7 of another.

    Raises:
        InputError: Both encoders are known and differ.
    """
    if record.encoder is None or region.encoder is None or record.encoder.sha256 == region.encoder.sha256:
        return
    raise InputError(
        f"features {' '.join(config.node_feats_path)} come from the encoder {region.encoder} but the model {config.model_dir} was trained on those of {record.encoder}; embed {region.name} with that one, or train a model on features of this one"
    )


def all_pairs(region: Region) -> Iterator[FlowTable]:
    """Every pair of units in blocks of whole origins; counts where they are known, else NaN."""
    num_units = len(region.graph.geocodes)
    origins_per_block = max(1, PAIRS_PER_BLOCK // num_units)
    for start in range(0, num_units, origins_per_block):
        origins = np.arange(start, min(start + origins_per_block, num_units))
        origin, destination = np.repeat(origins, num_units), np.tile(np.arange(num_units), len(origins))
        count = np.full(len(origin), np.nan)
        if region.flows is not None and region.flows.block is not None:
            block = region.flows.block
            count[(block[origin] >= 0) & (block[origin] == block[destination])] = 0.0
        if region.flows is not None:  # an explicit 0 is as good as a flow
            known = region.flows.select((region.flows.origin >= origins[0]) & (region.flows.origin <= origins[-1]))
            count[(known.origin - start) * num_units + known.destination] = known.count
        yield FlowTable(region.graph.geocodes, origin, destination, count)


def write_predictions(config: FlowTestConfig, predictor: RegionPredictor, region: Region, folder: Path, ledger: Ledger) -> None:
    """Predicts and writes block by block: the pairs with an observed flow, or every pair of units."""
    whole = config.all_pairs or region.flows is None or config.origin_totals_path is not None
    if whole and predictor.record.config["universe"] == "gt10":
        ledger.note(
            "the model was trained on flows above 10 and says how many commute given that more than 10 do: for a whole matrix train with --universe full or positive"
        )
    paths: dict[str, Path] = {name: folder / f"predictions_{name}.{config.table_format}" for name in predictor.decoders}
    written = 0
    with ExitStack() as stack:
        writers = {name: stack.enter_context(TableWriter(path)) for name, path in paths.items()}
        for pairs in all_pairs(region) if whole else [region.observed().universe("positive")]:
            scored = ~np.isnan(pairs.count) & ~predictor.record.has_learned(region.graph, pairs)
            for name, values in predictor.predict(pairs).items():
                kept = values >= config.min_flow
                if config.top_k:
                    kept &= largest_destinations(pairs.origin, values, config.top_k)
                chosen = pairs.select(np.flatnonzero(kept)) if not kept.all() else pairs
                table = chosen.to_frame(categorical=True).assign(prediction=values[kept], scored=scored[kept])
                writers[name].write(table)
                written += len(chosen)
    ledger.went_out["predictions written"] = written
    for path in folder.glob("predictions_*"):
        if path not in paths.values():
            path.unlink()  # of an earlier run: a reader could take it for this one's


def score(config: FlowTestConfig, predictor: RegionPredictor, region: Region, folder: Path, ledger: Ledger) -> None:
    """Scores the predictions and those of the controls, leaving out pairs that the model was trained or chosen on."""
    record = predictor.record

    def fair(pairs: FlowTable) -> np.ndarray:
        return ~record.has_learned(region.graph, pairs)

    observed = region.observed().universe("positive")
    seen = int((~fair(observed)).sum())
    if seen:
        ledger.note(
            f"{seen:,} flows belong to units that the model was trained or chosen on; scores are of the other {len(observed) - seen:,}"
        )
    if seen == len(observed):
        ledger.note("no flow is left to score: predictions only")
        return
    tested = chosen_pairs(region.observed(), fair)
    with deterministic_on_cpu(record.device):
        scores: Scores = {
            name: score_universes(region, tested, values, record.constant) for name, values in predictor.predict(tested).items()
        }
        scores |= control_scores(config, region, fair, ledger)
    scores["constant"] = score_universes(region, tested, None, record.constant)
    write_json(folder / "metrics.json", scores)
    ledger.went_out["flows scored"] = len(observed) - seen
    print(metrics.format_scores(scores, f"{region.name}: predicted by the model of {record.region}"))


def control_scores(config: FlowTestConfig, region: Region, fair: Choice, ledger: Ledger) -> Scores:
    """Scores of the controls that stage 4 trained beside the model."""
    scores: Scores = {}
    for name in CONTROLS:
        folder = Path(config.model_dir) / CONTROLS_FOLDER / name.replace(" ", "_")
        if not folder.is_dir():
            continue
        record = load_record(folder, choose_device(config.device))
        seen = as_seen(name, region, record.config["seed"])
        if seen is None:
            ledger.note(f"no control with {name}: this region lacks the columns that it reads")
            continue
        decoders = config.decoders if name in (SHUFFLED, UNTRAINED) else DECODERS
        for decoder, values in scores_of(record, seen, fair, decoders).items():
            scores[f"{decoder}, {name}" if name in (SHUFFLED, UNTRAINED) else name] = values
    return scores
