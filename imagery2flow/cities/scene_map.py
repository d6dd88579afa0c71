"""What a model says of every place of a scene, as a raster that lies where its windows lie, and as means over districts.

Of a classifier the layers are the probabilities of the classes, of a regressor the scores of the targets, and of an encoder that was trained without labels the
first principal components of its vectors, which show where places are alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
from affine import Affine
from exactextract import exact_extract
from rasterio.crs import CRS
from torch import nn

from imagery2flow.cities.sliding import Sliding, WindowGrid, cell_values, make_grid, slide
from imagery2flow.encoder.checkpoint import EncoderRecord, check_scale, find_checkpoint, load_encoder
from imagery2flow.encoder.embeddings import note_encoder
from imagery2flow.encoder.predictions import load_predictor
from imagery2flow.encoder.similarity import principal_components
from imagery2flow.encoder.supervised import Outputs, has_head
from imagery2flow.imagery.patches import describe_scenes
from imagery2flow.imagery.scene import Scene, open_scene
from imagery2flow.imagery.units import check_polygons, read_units, scene_crs, to_scene_crs
from imagery2flow.run.config import log_name
from imagery2flow.run.device import choose_device, make_fabric
from imagery2flow.run.errors import InputError
from imagery2flow.run.files import check_output_folder, replacing_by_gdal
from imagery2flow.run.inspection import Inspection
from imagery2flow.run.scene_map_config import SceneMapConfig
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import write_table

NUM_COMPONENTS = 3
NO_CLASS = 65_535


@dataclass(frozen=True)
class Mapper:
    """A model as the map needs it.

    Attributes:
        model: Views [batch, num_bands, view_size, view_size] -> [batch, num_layers], or vectors of an encoder without a head.
        record: What the checkpoint says of the encoder.
        layers: Names of the layers; of an encoder without a head those of the components.
        kind: ``classes``, ``targets`` or ``components``.
    """

    model: nn.Module
    record: EncoderRecord
    layers: tuple[str, ...]
    kind: str


@dataclass(frozen=True)
class SceneMap:
    """A map: layers [num_layers, rows, columns] with NaN where nothing is known, where its cells lie, and what it is of."""

    values: np.ndarray
    layers: tuple[str, ...]
    kind: str
    transform: Affine
    crs: CRS | None
    scene: Scene


def load_mapper(path: Path) -> Mapper:
    """Loads the model of any checkpoint of stage 2.

    Raises:
        InputError: The file is no such checkpoint.
    """
    if not has_head(path):
        encoder, record = load_encoder(path)
        return Mapper(encoder, record, tuple(f"component_{number}" for number in range(1, NUM_COMPONENTS + 1)), "components")
    predictor, record = load_predictor(path)
    return Mapper(predictor, record, layer_names(predictor.outputs), predictor.outputs.kind)


def layer_names(outputs: Outputs) -> tuple[str, ...]:
    """Names of the layers of a map, as the columns of a table of predictions are called."""
    prefix = "probability" if outputs.kind == "classes" else "predicted"
    return tuple(f"{prefix}_{name}" for name in outputs.names)


def map_scene(config: SceneMapConfig, ledger: Ledger) -> SceneMap:
    """Maps a scene and writes the rasters and the table of districts.

    Raises:
        InputError: The model, the scene or the districts cannot be used, or do not fit each other.
    """
    mapper, scene, districts = read_inputs(config, ledger)
    grid = make_grid(scene, config.size, config.stride, config.geometry)
    fabric, choice = make_fabric(config.device, config.precision)
    ledger.note(choice)
    mapper.model.to(fabric.device)
    record = mapper.record
    with fabric.autocast():
        found = slide(
            scene,
            grid,
            config.geometry,
            mapper.model,
            record.normalisation,
            record.view_size,
            config.batch_size,
            config.min_valid,
            fabric.device,
        )
    found = as_components(found) if mapper.kind == "components" else found
    values = cell_values(found, grid, config.geometry)
    scene_map = SceneMap(values, mapper.layers, mapper.kind, grid.transform(scene.transform, config.geometry), scene.crs, scene)
    fill_ledger(ledger, grid, found, scene_map)
    write_map(Path(config.output_path), scene_map)
    if districts is not None:
        write_table(beside(config, "_districts.csv"), district_means(scene_map, districts, Path(config.output_path)), index=True)
        ledger.came_in["districts"] = len(districts)
        ledger.note(f"means over districts: {beside(config, '_districts.csv')}")
    return scene_map


def read_inputs(config: SceneMapConfig, ledger: Ledger) -> tuple[Mapper, Scene, gpd.GeoDataFrame | None]:
    """Model, scene and districts; all that is wrong with them is one error.

    Raises:
        InputError: Something cannot be used.
    """
    inspection = Inspection(ledger)
    inspection.look("--output_path", check_output_folder, Path(config.output_path).parent, "--output_path")
    inspection.look("--device", choose_device, config.device)
    path = inspection.look("--ckpt", find_checkpoint, config.ckpt, config.model_path, log_name(config.log))
    mapper = None if path is None else inspection.look(path, load_mapper, path)
    if path is not None and mapper is not None:
        note_encoder(path, mapper.record, ledger)
    bands = mapper.record.normalisation.band_names if mapper else ()
    scene = inspection.look(
        config.scene_path, open_scene, config.scene_path, bands, config.band_names, config.nodata, "--scene_path", config.allow_remote
    )
    if scene is not None:
        describe_scenes([scene], ledger)
    if scene is not None and mapper is not None:
        inspection.look(config.scene_path, check_scale, mapper.record, scene.dtype, config.scene_path)
    districts = None
    if config.districts_path is not None:
        districts = inspection.look(config.districts_path, read_districts, config.districts_path, config.id_column, scene, ledger)
    inspection.raise_if_any()
    assert mapper is not None
    assert scene is not None
    return mapper, scene, districts


def read_districts(path: str, id_column: str | None, scene: Scene | None, ledger: Ledger) -> gpd.GeoDataFrame:
    """Polygons in the CRS of the scene: index ``geocode``.

    Raises:
        InputError: They cannot be used, or the scene has no CRS to lay them over.
    """
    units = read_units(path, id_column, ledger)
    check_polygons(units, "a mean over districts", path)
    if scene is None:
        return units
    return gpd.GeoDataFrame(geometry=to_scene_crs(units, scene, ledger), crs=scene_crs(scene))


def as_components(found: Sliding) -> Sliding:
    """The first principal components of the vectors of all windows, each from 0 to 1."""
    known = np.isfinite(found.values).all(axis=0)
    values = np.full((NUM_COMPONENTS, *known.shape), np.nan, dtype=np.float32)
    components, _ = principal_components(found.values[:, known].T.astype(np.float64), NUM_COMPONENTS)  # [n, NUM_COMPONENTS]
    lowest, highest = components.min(axis=0), components.max(axis=0)
    values[:, known] = ((components - lowest) / np.where(highest > lowest, highest - lowest, 1.0)).T
    return Sliding(values, found.cell_has_pixel)


def fill_ledger(ledger: Ledger, grid: WindowGrid, found: Sliding, scene_map: SceneMap) -> None:
    """Counts windows and cells, and says what of the scene no cell covers."""
    known = int(np.isfinite(found.values).all(axis=0).sum())
    ledger.came_in["windows"] = grid.rows * grid.columns
    ledger.went_out.update({"windows with a value": known, "cells": int(np.isfinite(scene_map.values[0]).sum())})
    ledger.left_out |= {} if known == grid.rows * grid.columns else {"windows with too few valid pixels": window_names(found)}
    rows, columns = scene_map.values.shape[1:]
    share = rows * columns * grid.stride**2 / (grid.width * grid.height)
    ledger.note(f"{rows:,} x {columns:,} cells of {grid.stride} px cover {share:.1%} of the scene")


def window_names(found: Sliding) -> list[str]:
    """Names of the windows without a value, as those of tiles."""
    return [f"r{row:04d}c{column:04d}" for row, column in np.argwhere(~np.isfinite(found.values).all(axis=0))]


def beside(config: SceneMapConfig, ending: str) -> Path:
    """A file beside the map."""
    output = Path(config.output_path)
    return output.with_name(output.stem + ending)


def write_map(path: Path, scene_map: SceneMap) -> None:
    """Writes the layers as a GeoTIFF and, of a classifier, the number of the most probable class as another, ``<name>_class.tif``.

    Raises:
        InputError: A file cannot be written.
    """
    write_layers(path, scene_map.values, scene_map, scene_map.layers, np.nan, {})
    if scene_map.kind == "classes":
        known = np.isfinite(scene_map.values).all(axis=0)
        number = np.where(known, np.where(known, scene_map.values, 0).argmax(axis=0), NO_CLASS).astype(np.uint16)
        names = {str(place): layer.removeprefix("probability_") for place, layer in enumerate(scene_map.layers)}
        write_layers(path.with_name(f"{path.stem}_class.tif"), number[None], scene_map, ("class",), NO_CLASS, names)


def write_layers(path: Path, values: np.ndarray, scene_map: SceneMap, names: tuple[str, ...], nodata: float, tags: dict[str, str]) -> None:
    """Writes layers [num_layers, rows, columns] where the cells of a map lie; ``tags`` are names of the values."""
    profile = {"driver": "GTiff", "count": len(values), "height": values.shape[1], "width": values.shape[2], "dtype": values.dtype}
    profile |= {
        "crs": scene_map.crs,
        "transform": scene_map.transform,
        "nodata": nodata,
        "compress": "deflate",
        "photometric": "MINISBLACK",
    }
    with replacing_by_gdal(path) as temporary, rasterio.open(temporary, "w", **profile) as raster:
        raster.write(values)
        raster.descriptions = names
        raster.update_tags(**{f"class_{number}": name for number, name in tags.items()})


def district_means(scene_map: SceneMap, districts: gpd.GeoDataFrame, raster: Path) -> pd.DataFrame:
    """Mean of each layer over each district, each cell by the share of it that lies inside; empty where no cell with a value does.

    Args:
        scene_map: The map.
        districts: Polygons in its CRS: index ``geocode``.
        raster: The map's own file.

    Returns:
        Index ``geocode``; ``cells`` (sum of the shares of cells with a value) and a column per layer.

    Raises:
        InputError: The map is turned against its CRS, so that cells cannot be shared out.
    """
    if scene_map.transform.b or scene_map.transform.d:
        raise InputError(
            f"scene {scene_map.scene.path} is turned against its CRS, for which no means over districts are made; warp it first, or leave --districts_path out"
        )
    shapes = gpd.GeoDataFrame({"place": range(len(districts))}, geometry=districts.geometry.to_numpy(), crs=districts.crs)
    found = exact_extract(str(raster), shapes, ["mean", "count"], include_cols=["place"], output="pandas").sort_values("place")
    several = len(scene_map.layers) > 1
    columns = {name: f"band_{number}_mean" if several else "mean" for number, name in enumerate(scene_map.layers, start=1)}
    table = pd.DataFrame({name: found[column].to_numpy(dtype=float) for name, column in columns.items()}, index=districts.index)
    table.insert(0, "cells", found["band_1_count" if several else "count"].to_numpy(dtype=float))
    return table
