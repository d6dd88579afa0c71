"""A trained flow model with everything that a prediction needs: weights, scaling, decoders, and which units it learned from.

A folder ``<output_dir>/<log>/``: ``od_model.pt`` (plain tensors and values), ``lightgbm*.txt`` (LightGBM's own text), ``split.csv``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from imagery2flow.flows.decoder import PairInputs
from imagery2flow.flows.graph import RegionGraph
from imagery2flow.flows.model import FlowModel
from imagery2flow.flows.region import EncoderFile, Region
from imagery2flow.flows.scaling import Scaling
from imagery2flow.flows.table import UNIVERSES, FlowTable
from imagery2flow.flows.tree_decoder import HOME, TRANSFER, Seen, TreeDecoder, load_decoder, save_decoder
from imagery2flow.run.earth import great_circle_m
from imagery2flow.run.errors import InputError, MissingInputError, first_sentence, is_out_of_memory, shown
from imagery2flow.run.files import as_tensors, from_tensors, load_tensors, save_tensors
from imagery2flow.run.flow_config import DECODERS

FORMAT = "imagery2flow-od-5"
MODEL_FILE = "od_model.pt"
PAIRS_PER_BLOCK = 500_000
SAME_PLACE_M = 1000.0
PLAIN_FIELDS = ("config", "region", "split_kind", "split", "centroid", "constant", "flow_range")
NETWORK_SHAPE = ("embedding_size", "num_hidden_layers", "dropout", "unit_terms", "pair_distance", "dual_encoder")


@dataclass(frozen=True)
class EmbeddedRegion:
    """A region as the decoders see it.

    Attributes:
        seen: The region and its embeddings by the graph network.
        trees: The LightGBM decoder for it.
        inputs: What that one reads of the units.
    """

    seen: Seen
    trees: TreeDecoder
    inputs: PairInputs


@dataclass(frozen=True)
class Embedder:
    """The part of a flow model that knows no pairs: scaling and graph network."""

    model: FlowModel | None
    scaling: Scaling
    device: torch.device

    @torch.inference_mode()
    def see(self, region: Region) -> Seen:
        """Runs the graph network over a region.

        Raises:
            TableError: The region's features are not the model's.
        """
        hidden = None if self.model is None else self.model.eval().embed(self.scaling.graph_tensors(region, self.device))
        return Seen(region, self.scaling, hidden)


@dataclass(frozen=True)
class FlowRecord:
    """A trained flow model.

    Attributes:
        embedder: Scaling and graph network (absent in some controls), both from the source region.
        home: LightGBM decoder for the source region; without members where the model has none.
        transfer: The one for other regions; None where that is the same.
        config: Settings of the training run, as plain values.
        region: Name of the source region.
        split_kind: What was held out: origin, unit, block, pair.
        split: Split of the units of the source region: id -> train, valid, test.
        centroid: Where all units of the source region lie: id -> longitude and latitude.
        constant: Best constant of the training flows, by universe.
        flow_range: Predictions of the bilinear decoder are held in this range, in commuters; see ``flow_range_of``.
        encoder: The encoder of the features that the model was trained on; None where it is not known.
    """

    embedder: Embedder
    home: TreeDecoder
    transfer: TreeDecoder | None
    config: dict[str, Any]
    region: str
    split_kind: str
    split: dict[str, str]
    centroid: dict[str, tuple[float, float]]
    constant: dict[str, float]
    flow_range: tuple[float, float]
    encoder: EncoderFile | None = None

    @property
    def scaling(self) -> Scaling:
        """From the source region."""
        return self.embedder.scaling

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.embedder.device

    @property
    def decoders(self) -> tuple[str, ...]:
        """Those that the model has."""
        there = {"bilinear": self.embedder.model is not None, "lightgbm": bool(self.home.members)}
        return tuple(name for name in DECODERS if there[name])

    def known_units(self, graph: RegionGraph) -> np.ndarray:
        """Which units are of the source region [num_units]: same id, same place (tiles of two cities may share ids)."""
        place = pd.DataFrame.from_dict(self.centroid, orient="index", columns=["x", "y"]).reindex(list(graph.geocodes))
        return great_circle_m(graph.longitude, graph.latitude, place.x.to_numpy(), place.y.to_numpy()) < SAME_PLACE_M

    def has_learned(self, graph: RegionGraph, pairs: FlowTable) -> np.ndarray:
        """Which pairs the model was trained or chosen on, or whose units it learned from [num_pairs].

        With a split of origins a pair belongs to its origin; with any other, a unit that was learned from at either end is enough.
        """
        label = np.array([self.split.get(geocode, "") for geocode in graph.geocodes], dtype=object)
        seen = self.known_units(graph) & np.isin(label, ("train", "valid"))
        return seen[pairs.origin] if self.split_kind == "origin" else seen[pairs.origin] | seen[pairs.destination]

    def embed(self, region: Region) -> EmbeddedRegion:
        """Runs the graph network over a region, and chooses the LightGBM decoder: that of the source region if every unit is one of it.

        Units that potentials were fitted to get their cross-fitted ones.

        Raises:
            TableError: The region's features are not the model's.
        """
        known = self.known_units(region.graph)
        trees = self.home if known.all() or self.transfer is None else self.transfer
        crossed = None
        if trees.potentials is not None:
            crossed = (
                pd.DataFrame(trees.potentials.crossed, index=list(self.centroid)).reindex(list(region.graph.geocodes)).to_numpy(copy=True)
            )
            crossed[~known] = np.nan
        seen = self.embedder.see(region)
        return EmbeddedRegion(seen, trees, trees.unit_inputs.of_pairs(seen, trees.potentials, crossed))

    def predict(self, embedded: EmbeddedRegion, pairs: FlowTable, decoders: Sequence[str] = DECODERS) -> dict[str, np.ndarray]:
        """Predicted flows of pairs by each of the decoders that the model has: [num_pairs] each, in commuters.

        Raises:
            InputError: A prediction is no number; the message names its pair.
        """
        distance = embedded.seen.relative_distance(pairs)
        found = {}
        if "bilinear" in decoders and embedded.seen.hidden is not None:
            found["bilinear"] = self.predict_bilinear(embedded.seen.hidden, pairs, distance)
        if "lightgbm" in decoders and "lightgbm" in self.decoders:
            found["lightgbm"] = embedded.trees.predict(embedded.inputs, pairs, distance)
        for name, values in found.items():
            check_predictions(name, values, pairs)
        return found

    @torch.inference_mode()
    def predict_bilinear(self, hidden: torch.Tensor, pairs: FlowTable, distance: np.ndarray) -> np.ndarray:
        """Predicted flows of pairs by the network [num_pairs]."""
        size = PAIRS_PER_BLOCK
        while True:
            try:
                return self.predict_in_blocks(hidden, pairs, distance, size)
            except RuntimeError as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
            size //= 2
            tqdm.write(f"the memory of {self.device} is full: going on with {size:,} pairs at once", file=sys.stderr)

    def predict_in_blocks(self, hidden: torch.Tensor, pairs: FlowTable, distance: np.ndarray, size: int) -> np.ndarray:
        """The same in blocks of about so many pairs, or of an origin's."""
        assert self.embedder.model is not None
        origins = pairs.whole_origins()
        rows = 1 if origins is None else len(pairs.geocodes)  # pairs that stand together
        parts = []
        for start in range(0, len(pairs), max(size // rows, 1) * rows):
            block = slice(start, start + max(size // rows, 1) * rows)
            relative = torch.tensor(distance[block], dtype=torch.float32, device=self.device)
            if origins is None:
                origin, destination = (torch.from_numpy(side[block]).to(self.device) for side in (pairs.origin, pairs.destination))
                log_flow = self.embedder.model.decode(hidden, origin, destination, relative)
            else:
                origin = torch.from_numpy(pairs.origin[block][::rows].copy()).to(self.device)
                log_flow = self.embedder.model.decode_rows(hidden, origin, relative.view(-1, rows)).flatten()
            parts.append(to_flow(log_flow).clip(*self.flow_range))
        return np.concatenate(parts) if parts else np.zeros(0)


def check_predictions(decoder: str, values: np.ndarray, pairs: FlowTable) -> None:
    """Refuses flows that are no numbers.

    Raises:
        InputError: One is infinite or NaN; the message names its pair.
    """
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        ids = (f"{pairs.geocodes[pairs.origin[number]]} to {pairs.geocodes[pairs.destination[number]]}" for number in bad)
        raise InputError(
            f"the decoder {decoder} predicts no number for {len(bad):,} pairs ({shown(ids)}); look at the features of these units"
        )


def to_flow(log_flow: torch.Tensor) -> np.ndarray:
    """Commuters from their log2 [num_pairs], in double precision, which Apple's devices do not have: on the CPU."""
    return torch.exp2(log_flow.cpu().double()).numpy()


def flow_range_of(train: FlowTable, universe: str) -> tuple[float, float]:
    """Range of predictions: from the smallest flow of the universe that is trained on to twice the largest training flow.

    A model that saw only flows above 10 says how many commute, given that more than 10 do. Without the lower end, a decoder that meets
    distances longer than any in its own city predicts that nobody does (docs/experiments.md).
    """
    return UNIVERSES[universe] + 1.0, 2.0 * float(train.count.max())


def save_record(folder: Path, record: FlowRecord) -> None:
    """Writes the model's folder."""
    embedder = record.embedder
    folder.mkdir(parents=True, exist_ok=True)
    decoders = [save_decoder(folder, name, decoder) for name, decoder in ((HOME, record.home), (TRANSFER, record.transfer))]
    content = {name: getattr(record, name) for name in PLAIN_FIELDS} | {
        "format": FORMAT,
        "encoder": None if record.encoder is None else tuple(record.encoder),  # a plain tuple: nothing else loads as data
        "scaling": as_tensors(embedder.scaling) | {"columns": list(embedder.scaling.columns)},
        "model": None if embedder.model is None else embedder.model.state_dict(),
        "decoders": decoders,
    }
    save_tensors(folder / MODEL_FILE, content)
    written = {file["name"] for decoder in decoders if decoder is not None for file in decoder["files"]}
    for path in folder.glob(f"{HOME}*.txt"):
        if path.name not in written:
            path.unlink()  # of an earlier model


def load_record(folder: Path, device: torch.device) -> FlowRecord:
    """Reads a model's folder.

    Raises:
        MissingInputError: A file is absent.
        InputError: A file is not one that stage 4 wrote.
    """
    if not (folder / MODEL_FILE).is_file():
        raise MissingInputError(
            f"OD model {folder / MODEL_FILE} does not exist; train it with train_ODPrediction.py, or name another with --log and --output_dir"
        )
    content = load_tensors(folder / MODEL_FILE, "OD model")
    if content.get("format") != FORMAT:
        raise InputError(
            f"OD model {folder / MODEL_FILE} is not one that this version's train_ODPrediction.py wrote (its format is {content.get('format')}, not {FORMAT}); train it again, or name another with --log and --output_dir"
        )
    try:
        stored = from_tensors(content["scaling"])
        scaling = Scaling(**{**stored, "columns": tuple(stored["columns"])})
        model = None
        if content["model"] is not None:
            model = build_model(content["config"], scaling).to(device)
            model.load_state_dict(content["model"])
        home, transfer = (load_decoder(folder, decoder) for decoder in content["decoders"])
        assert home is not None
        encoder = None if content["encoder"] is None else EncoderFile(*content["encoder"])
        plain = {name: content[name] for name in PLAIN_FIELDS}
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:  # whichever part is not what the format says
        raise InputError(
            f"OD model {folder / MODEL_FILE} is damaged: its parts do not fit each other ({first_sentence(error)[:100]}); train it again"
        ) from error
    return FlowRecord(embedder=Embedder(model, scaling, device), home=home, transfer=transfer, encoder=encoder, **plain)


def build_model(config: dict[str, Any], scaling: Scaling) -> FlowModel:
    """The network that the settings describe, with whatever weights torch's generator gives."""
    return FlowModel(scaling.in_dim, **{name: config[name] for name in NETWORK_SHAPE})
