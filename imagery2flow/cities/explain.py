"""``python -m imagery2flow explain``: maps of where in tiles a model finds what it says of them, their masked images, contact sheets and a table.

The model sees a tile as stage 3 shows it: whole, upright, stretched to a square view, scaled by the checkpoint's normalisation. A map of the view goes back
onto the tile's own pixels by the places that its cells look at, and is written with the tile's georeference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from imagery2flow.cities.relevance import ClassMap, grad_cam, relevance_cam, resnet_of
from imagery2flow.cities.tile_choice import choose_tiles, file_names, sheet_path
from imagery2flow.cities.tile_maps import cell_px, encode_map, kept_pixels, mass_in_upper_tenth, on_tile
from imagery2flow.encoder.checkpoint import EncoderRecord, find_checkpoint
from imagery2flow.encoder.embeddings import look_at_patches, note_encoder
from imagery2flow.encoder.supervised import Outputs, Supervised, as_predictions, load_supervised
from imagery2flow.imagery.patch_files import PatchFiles, georeference, read_patches
from imagery2flow.imagery.patchset import Normalisation, PatchSet
from imagery2flow.imagery.pyramid import build_pyramid
from imagery2flow.imagery.views import embedding_views
from imagery2flow.run.config import log_name
from imagery2flow.run.device import choose_device, full_precision, make_fabric
from imagery2flow.run.errors import BandError, InputError
from imagery2flow.run.explain_config import ExplainConfig
from imagery2flow.run.files import check_output_folder, replacing
from imagery2flow.run.inspection import Inspection
from imagery2flow.run.lock import only_run
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import write_table

TILES_PER_SHEET = 10
FEWEST_CELLS = 4  # along a side of a map


@dataclass(frozen=True)
class Explainer:
    """A model, and how it is asked.

    Attributes:
        model: On its device.
        record: What its checkpoint says of the encoder.
        outputs: What it says of tiles.
        config: Settings.
        device: Where it computes.
    """

    model: Supervised
    record: EncoderRecord
    outputs: Outputs
    config: ExplainConfig
    device: torch.device


@dataclass(frozen=True)
class ExplainedTile:
    """A tile, what the model says of it, and where in it that is found.

    Attributes:
        geocode: Id.
        city: Group.
        pixels: [height, width, num_bands], in the tile's units.
        valid: [height, width].
        output: Name of the class or target that is explained.
        predicted: Name of the class with the highest probability; empty for targets.
        value: Probability of the class, or score in the target's unit.
        maps: By layer, on the tile's pixels, NaN where one is missing [height, width].
        masks: By layer, the pixels that the masked image keeps [height, width].
        relevance_sums: By layer.
    """

    geocode: str
    city: str
    pixels: np.ndarray
    valid: np.ndarray
    output: str
    predicted: str
    value: float
    maps: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    relevance_sums: dict[str, float]


# Writes the masked images of some tiles and their contact sheet: tiles, settings, normalisation, path of the sheet.
Draw = Callable[[Sequence[ExplainedTile], ExplainConfig, Normalisation, Path], None]


def explain(config: ExplainConfig, ledger: Ledger, draw: Draw) -> Path:
    """Explains tiles and returns the path of ``run.json``.

    Raises:
        InputError: The checkpoint or the patches cannot be used, or do not fit each other.
    """
    explainer, files = read_inputs(config, ledger)
    chosen = choose_tiles(files, explainer.outputs.held_out, config, ledger)
    folder, names = Path(config.output_dir), file_names(chosen)
    ledger.came_in.update({"patches": len(files.paths), "tiles to explain": sum(map(len, chosen.values()))})
    rows: list[dict[str, object]] = []
    sheets = 0
    with only_run(folder), tqdm(total=ledger.came_in["tiles to explain"], desc="explain", unit="tile", disable=None) as bar:
        folder.mkdir(parents=True, exist_ok=True)
        for city, geocodes in chosen.items():
            for number, start in enumerate(range(0, len(geocodes), TILES_PER_SHEET), start=1):
                part = geocodes[start : start + TILES_PER_SHEET]
                tiles = explain_tiles(explainer, files.select(part), city)
                ledger.leave_out("patches without a valid pixel", sorted(set(part) - {tile.geocode for tile in tiles}))
                for tile in tiles:
                    write_maps(tile, files, folder, config)
                    rows += rows_of(tile, explainer)
                if tiles:
                    draw(tiles, config, explainer.record.normalisation, sheet_path(folder, names[city], number))
                    sheets += 1
                bar.update(len(part))
        if not rows:
            raise InputError(f"none of the tiles of {config.data_path} has a valid pixel; name others with --geocodes")
        write_table(folder / "explanations.csv", pd.DataFrame(rows))
    ledger.went_out.update({"explained tiles": len(rows) // len(config.layers), "maps": len(rows), "contact sheets": sheets})
    return folder / "run.json"


def read_inputs(config: ExplainConfig, ledger: Ledger) -> tuple[Explainer, PatchFiles]:
    """The model on its device, and all tiles; all that can be known to be wrong before pixels are read is one error.

    Raises:
        InputError: The model, the patches, the device or the folder to write cannot be used, or do not fit each other.
    """
    inspection = Inspection(ledger)
    inspection.look("--output_dir", check_output_folder, config.output_dir, "--output_dir")
    inspection.look("--device", choose_device, config.device)
    path = inspection.look("--ckpt", find_checkpoint, config.ckpt, config.model_path, log_name(config.log))
    loaded = None if path is None else inspection.look(path, load_supervised, path)
    if path is not None and loaded is not None:
        note_encoder(path, loaded[1], ledger)
        inspection.look(path, resnet_of, loaded[0])
        inspection.look("--output_name", check_output_name, config.output_name, loaded[2])
    files = look_at_patches(config.data_path, path, loaded and loaded[1], False, inspection, config.scene_dir)
    if files is not None and loaded is not None:
        inspection.look(config.data_path, check_type, files, loaded[1])
    inspection.raise_if_any()
    assert loaded is not None
    assert files is not None
    fabric, sentence = make_fabric(config.device, "fp32")
    ledger.note(sentence)
    note_coarse_layers(config, loaded[1].view_size, ledger)
    return Explainer(loaded[0].to(fabric.device), loaded[1], loaded[2], config, fabric.device), files


def note_coarse_layers(config: ExplainConfig, view_size: int, ledger: Ledger) -> None:
    """Says of which layers the maps have so few cells that they show no place."""
    for layer in config.layers:
        cells = -(-view_size // cell_px(layer))
        if cells < FEWEST_CELLS:
            ledger.note(
                f"{layer} has {cells} x {cells} cells for views of {view_size} px, too few to show a place; take a layer before it, or train with a larger --view_size"
            )


def check_output_name(name: str | None, outputs: Outputs) -> None:
    """Refuses a class or target that the model does not know.

    Raises:
        InputError: It does not.
    """
    if name is not None and name not in outputs.names:
        raise InputError(f"--output_name {name} is none of the model's {outputs.kind}; name one of {', '.join(outputs.names)}")


def check_type(files: PatchFiles, record: EncoderRecord) -> None:
    """Refuses patches whose type tells that their numbers are on another scale than the encoder's.

    Raises:
        BandError: The types differ.
    """
    trained = record.normalisation.dtype
    if files.dtype != trained:
        raise BandError(f"patches {files.folder} hold {files.dtype} but the encoder was trained on {trained}; bring them to its units")


def explain_tiles(explainer: Explainer, files: PatchFiles, city: str) -> list[ExplainedTile]:
    """Explains some tiles, of which those without a valid pixel are passed over."""
    patches = read_patches(files, normalisation=explainer.record.normalisation)
    if not len(patches):
        return []
    view_size = explainer.record.view_size
    pyramid = build_pyramid(patches, explainer.record.normalisation, view_size).to(explainer.device)
    with full_precision(explainer.device):
        views = embedding_views(pyramid, torch.arange(len(patches)), view_size)
        with torch.no_grad():
            said = as_predictions(explainer.model(views)[1], explainer.outputs)  # [num_tiles, num_outputs]
        chosen = choose_outputs(said, explainer)
        found = class_maps(explainer, views, chosen)
    everything = zip(said.cpu().tolist(), chosen.tolist(), strict=True)
    return [one_tile(explainer, patches, city, position, *part, found) for position, part in enumerate(everything)]


def choose_outputs(said: torch.Tensor, explainer: Explainer) -> torch.Tensor:
    """Numbers of the outputs to explain [num_tiles]: the one that was asked for, else the predicted class or the first target."""
    if explainer.config.output_name is None and explainer.outputs.kind == "classes":
        return said.argmax(dim=1)
    name = explainer.config.output_name or explainer.outputs.names[0]
    return torch.full((len(said),), explainer.outputs.names.index(name), device=said.device)


def class_maps(explainer: Explainer, views: torch.Tensor, chosen: torch.Tensor) -> dict[str, ClassMap]:
    """Maps of the views by layer."""
    config = explainer.config
    if config.method == "grad_cam":
        return grad_cam(explainer.model, views, chosen, config.layers)
    return relevance_cam(explainer.model, views, chosen, explainer.outputs.kind, config.layers, config.contrast)


def one_tile(
    explainer: Explainer, patches: PatchSet, city: str, position: int, said: list[float], chosen: int, found: dict[str, ClassMap]
) -> ExplainedTile:
    """Brings the maps of one view onto the pixels of its tile."""
    pixels, valid = patches.patch(position)
    view_size, names = explainer.record.view_size, explainer.outputs.names
    maps = {}
    for layer, class_map in found.items():
        values = class_map.values[position].cpu().numpy()
        maps[layer] = np.where(valid, on_tile(values, layer, view_size, valid.shape), np.nan).astype(np.float32)
    return ExplainedTile(
        geocode=patches.geocodes[position],
        city=city,
        pixels=pixels,
        valid=valid,
        output=names[chosen],
        predicted=names[int(np.argmax(said))] if explainer.outputs.kind == "classes" else "",
        value=said[chosen],
        maps=maps,
        masks={layer: kept_pixels(values, explainer.config.mask) for layer, values in maps.items()},
        relevance_sums={layer: float(class_map.relevance_sum[position]) for layer, class_map in found.items()},
    )


def write_maps(tile: ExplainedTile, files: PatchFiles, folder: Path, config: ExplainConfig) -> None:
    """Writes the maps of a tile with its georeference; a missing pixel is NaN."""
    crs, transform = georeference(files, tile.geocode)
    for layer, values in tile.maps.items():
        content = encode_map(values, crs, transform)
        with replacing(folder / f"{tile.geocode}_{config.method}_{layer}.tif") as temporary:
            temporary.write_bytes(content)


def rows_of(tile: ExplainedTile, explainer: Explainer) -> list[dict[str, object]]:
    """What the table says of a tile, a row per layer."""
    of_classes = explainer.outputs.kind == "classes"
    about: dict[str, object] = {"geocode": tile.geocode, "city": tile.city, "output": tile.output}
    about |= {"probability": tile.value, "predicted": tile.predicted} if of_classes else {"score": tile.value}
    return [
        about
        | {"method": explainer.config.method, "layer": layer, "mass_in_upper_tenth": mass_in_upper_tenth(values)}
        | {"kept_share": float(tile.masks[layer][tile.valid].mean()), "relevance_sum": tile.relevance_sums[layer]}
        for layer, values in tile.maps.items()
    ]
