"""``python -m imagery2flow import_published``: weights in the published formats as a flow model that stage 5 reads.

The network's file is a dictionary of tensors. The trees' file is a pickle, which could run any code when it is unpickled: LightGBM's own text is looked for
among its bytes instead. Neither file holds how features and distances were scaled: that is learned again, from the source region's files.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import torch
from torch import Tensor

from imagery2flow.flows.decoder import FlowTrees
from imagery2flow.flows.learning import fit_constants, split_by_id
from imagery2flow.flows.model import FlowModel
from imagery2flow.flows.record import MODEL_FILE, Embedder, FlowRecord, build_model, save_record
from imagery2flow.flows.region import Region, load_region
from imagery2flow.flows.scaling import Scaling, fit_scaling
from imagery2flow.flows.splits import Split, read_split
from imagery2flow.flows.tree_decoder import TreeDecoder, UnitInputs
from imagery2flow.run.device import choose_device
from imagery2flow.run.errors import InputError, shown
from imagery2flow.run.files import check_output_folder, existing_file, load_tensors, write_text
from imagery2flow.run.flow_config import FlowTrainingConfig, ImportConfig, TreesConfig
from imagery2flow.run.stage import Ledger

TREES_FILE = "published_trees.txt"
SMALLEST_FLOW = 2.0  # published predictions are 2 to the power of at least 1
# The published file holds scores beside the weights, as numpy's numbers; those of numpy 1 come from a module of another name.
NUMPY_SCALAR = np.float64(0).__reduce__()[0]  # how numpy itself makes a number out of its bytes
NUMPY_NUMBERS: list[Any] = [
    (NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    (NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
]
LAYER_PARTS = ("fcV", "fcW", "fcU", "attn_fc")
# LightGBM's text, from its first line to its last, among other bytes.
TREES_TEXT = re.compile(
    rb"tree\nversion=v\d+\n.*?\nend of trees\n.*?(?:\nend of parameters\n\n?(?:pandas_categorical:[^\n]*\n)?|\npandas_categorical:[^\n]*\n)",
    re.DOTALL,
)


def import_published(config: ImportConfig, ledger: Ledger) -> Path:
    """Writes the folder of the model, or of the trees' text alone; returns the path of its run file.

    Raises:
        InputError: A file is not in the published format, or the parts do not fit each other.
    """
    folder = Path(config.model_dir)
    check_output_folder(folder, "--output_dir")
    if (folder / MODEL_FILE).exists():
        raise InputError(f"{folder} holds a flow model already; remove it, or name another with --log")
    text = None if config.lightgbm_path is None else read_trees_text(config.lightgbm_path, ledger)
    booster = None if text is None else load_text(text, ledger)
    if config.network_path is None:
        assert text is not None
        write_text(folder / TREES_FILE, text)
        ledger.note(
            f"the trees alone predict nothing: they read embeddings by a network that is not given; their text is {folder / TREES_FILE}"
        )
        return folder / "run.json"
    weights = read_network(config.network_path, ledger)
    region = load_region(config, ledger, flows_required=True)
    save_record(folder, build_record(config, region, weights, booster, ledger))
    ledger.note(
        "the files hold no scaling: features are standardised by all units of the source region, also in another city, edges are divided by its longest, and "
        "the trees' distances by its largest, which may differ from those of the weights' training"
    )
    ledger.note("neighbours are units that touch, where the published graph joins those with a distance in its table")
    return folder / "run.json"


def build_record(
    config: ImportConfig, region: Region, weights: dict[str, Tensor], booster: lightgbm.Booster | None, ledger: Ledger
) -> FlowRecord:
    """The model.

    Raises:
        InputError: The weights are for other features, or the trees for other embeddings.
    """
    device = choose_device(config.device)
    settings = published_settings(config, weights)
    scaling = unbounded(fit_scaling(region, settings.area_feature, settings.num_components))
    model = load_network(config, dataclasses.asdict(settings), scaling, weights).to(device)
    split = read_or_assume_split(config, region, ledger)
    unit_inputs = UnitInputs(settings.trees, (), False)
    members = () if booster is None else (FlowTrees(booster, np.arange(check_columns(config, booster, settings))),)
    places = zip(region.graph.longitude.tolist(), region.graph.latitude.tolist(), strict=True)
    return FlowRecord(
        embedder=Embedder(model, scaling, device),
        home=TreeDecoder(unit_inputs, None, members, (1.0,) * len(members)),
        transfer=None,
        config=dataclasses.asdict(settings),
        region=region.name,
        split_kind=split.kind,
        split=split_by_id(split, region),
        centroid=dict(zip(region.graph.geocodes, places, strict=True)),
        constant=fit_constants(region.observed(), split),
        flow_range=(SMALLEST_FLOW, float("inf")),
        encoder=region.encoder,
    )


def published_settings(config: ImportConfig, weights: dict[str, Tensor]) -> FlowTrainingConfig:
    """The published model as settings of stage 4, with the sizes of the weights."""
    shared = {
        item.name: getattr(config, item.name) for item in dataclasses.fields(config) if item.name not in ("network_path", "lightgbm_path")
    }
    trees = TreesConfig(
        embeddings=True, unit_features=False, potentials=False, law=False, transfer_trees=0, early_stopping=0, objective="l2"
    )
    return FlowTrainingConfig(
        **shared,
        embedding_size=weights["bilinear.weight"].shape[1],
        num_hidden_layers=num_layers(weights) - 1,
        universe="gt10",
        loss="balanced_mse",
        area_feature=False,
        num_components=0,
        context_m=[],
        transfer_context_m=[],
        dropout=0.0,
        unit_terms=False,
        pair_distance=False,
        trees=trees,
    )


def unbounded(scaling: Scaling) -> Scaling:
    """The scaling without the range in which features are held: the published model has none."""
    return dataclasses.replace(scaling, low=np.full_like(scaling.low, -np.inf), high=np.full_like(scaling.high, np.inf))


def read_or_assume_split(config: ImportConfig, region: Region, ledger: Ledger) -> Split:
    """The split of origins that the weights were trained with; without one every unit counts as trained on."""
    if config.split_path is not None:
        return read_split(config.split_path, "origin", region.graph.geocodes, ledger)
    ledger.note("without --split_path every unit of the source region counts as trained on: the model is scored in other regions only")
    return Split("origin", np.full(len(region.graph.geocodes), "train", dtype=object))


def read_network(path: str, ledger: Ledger) -> dict[str, Tensor]:
    """Reads the weights of the published graph network and bilinear decoder: tensors by name.

    Raises:
        MissingInputError: There is no such file.
        InputError: It holds other tensors than those of the published network.
    """
    with torch.serialization.safe_globals(NUMPY_NUMBERS):
        content = load_tensors(Path(path), "network", writer="the published code")
    ledger.reads(path)
    stored = content.get("state_dict", content)
    items = stored.items() if isinstance(stored, dict) else ()
    weights = {str(name).removeprefix("module."): value for name, value in items if isinstance(value, Tensor)}
    count = num_layers(weights)
    expected = {f"gat.layers.{layer}.{part}.weight" for layer in range(count) for part in LAYER_PARTS} | {
        "bilinear.weight",
        "bilinear.bias",
    }
    absent, unknown = sorted(expected - set(weights)), sorted(set(weights) - expected - {"criterion.noise_sigma"})
    if absent or unknown or not count:
        raise InputError(
            f"network {path} does not hold the published weights (missing: {shown(absent) or 'layers'}; unknown: {shown(unknown) or 'none'}); "
            "name a file with gat.layers.N.fcW.weight and bilinear.weight"
        )
    ledger.take_in("weights of the network", sum(value.numel() for value in weights.values()))
    return {name: value.float() for name, value in weights.items()}


def num_layers(weights: dict[str, Tensor]) -> int:
    """Number of graph layers."""
    return len({name.split(".")[2] for name in weights if name.startswith("gat.layers.")})


def load_network(config: ImportConfig, settings: dict[str, Any], scaling: Scaling, weights: dict[str, Tensor]) -> FlowModel:
    """The network with the published weights.

    Raises:
        InputError: They have other shapes than the features ask for.
    """
    asked = weights["gat.layers.0.fcW.weight"].shape[1]
    if asked != scaling.in_dim:
        raise InputError(
            f"network {config.network_path} reads {asked:,} features but {config.node_feats_path[0]} has {scaling.in_dim:,}; give the features that it was trained on"
        )
    model = build_model(settings, scaling)
    try:
        model.load_state_dict(to_own_names(weights))
    except (RuntimeError, IndexError) as error:
        raise InputError(f"network {config.network_path} has weights whose shapes do not fit each other; name an undamaged file") from error
    return model


def to_own_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published weights by the names of ``FlowModel``.

    Published, the score of an edge is a . [W h_neighbour || W h_unit || V d]; here a has three parts, and V as many rows as a layer is wide, of which
    only the first is used.
    """
    own = {"interaction": weights["bilinear.weight"][0], "offset": weights["bilinear.bias"].reshape(())}
    for layer in range(num_layers(weights)):
        slope, projection, residual, attention = (weights[f"gat.layers.{layer}.{part}.weight"] for part in LAYER_PARTS)
        width = len(projection)
        first = torch.zeros(width)
        first[0] = 1.0
        own |= {
            f"layers.{layer}.lin.weight": projection,
            f"layers.{layer}.res.weight": residual,
            f"layers.{layer}.lin_edge.weight": first[:, None] * slope.reshape(()),
            f"layers.{layer}.att_src": attention[:, None, :width],
            f"layers.{layer}.att_dst": attention[:, None, width : 2 * width],
            f"layers.{layer}.att_edge": (first * attention[0, 2 * width])[None, None],
        }
    return own


def read_trees_text(path: str, ledger: Ledger) -> str:
    """Finds LightGBM's text among the bytes of a file, without running anything that the file may hold.

    Raises:
        MissingInputError: There is no such file.
        InputError: It holds no such text, a damaged one, or several that differ.
    """
    content = existing_file(path, "LightGBM decoder").read_bytes()
    ledger.reads(path)
    found = {match.group() for match in TREES_TEXT.finditer(content)}
    if len(found) != 1:
        problem = "no model in LightGBM's text" if not found else f"{len(found)} models"
        raise InputError(
            f"LightGBM decoder {path} holds {problem}; name an uncompressed pickle of one model, or what Booster.save_model wrote"
        )
    text = found.pop()
    sizes = re.search(rb"\ntree_sizes=([\d ]*)\n", text)
    # LightGBM crashes on a damaged text; it states how many bytes its trees take.
    if sizes is None or sum(map(int, sizes[1].split())) != text.index(b"end of trees\n") - text.index(b"\nTree=0\n") - 1:
        raise InputError(f"LightGBM decoder {path} is damaged: its trees do not have the size that it states; name an undamaged file")
    return text.decode("utf-8", errors="replace")


def load_text(text: str, ledger: Ledger) -> lightgbm.Booster:
    """The trees of a text that ``read_trees_text`` found."""
    booster = lightgbm.Booster(model_str=text)
    ledger.note(f"LightGBM: {booster.num_trees():,} trees that read {booster.num_feature():,} features")
    return booster


def check_columns(config: ImportConfig, booster: lightgbm.Booster, settings: FlowTrainingConfig) -> int:
    """Number of columns that the trees read: the embeddings of both ends and the distance.

    Raises:
        InputError: It is another.
    """
    expected = 2 * settings.embedding_size + 1
    if booster.num_feature() != expected:
        raise InputError(
            f"LightGBM decoder {config.lightgbm_path} reads {booster.num_feature():,} features, but two embeddings by {config.network_path} and a distance "
            f"are {expected:,}; give parts of one model"
        )
    return expected
