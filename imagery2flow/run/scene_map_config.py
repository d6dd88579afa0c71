"""The settings of the command that maps what a model says of every place of a scene."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from imagery2flow.run.config import require


@dataclass(frozen=True, kw_only=True)
class SceneMapConfig:
    """Slide a window over a scene and map what a model says of every place.

    Args:
        scene_path: Scene: GeoTIFF, VRT, JPEG, ...; with a CRS where --districts_path is given.
        output_path: GeoTIFF to write: a layer per class (its probability) or target (its score), and beside it <name>_class.tif, <name>.png, <name>_districts.csv.
        ckpt: Checkpoint that stage 2 wrote: a path, or a file name in --model_path; default the run named by --log.
        model_path: Folder of checkpoints.
        log: Name of the run.
        size: Side of a window in pixels; that of the tiles that the model was trained on.
        stride: Step between windows in pixels, which is the side of a cell of the map.
        geometry: centre gives each cell the value of the window around it; blend the weighted mean over all windows that hold it, up to the scene's border.
        min_valid: Smallest share of valid pixels that a window must have, 0 to 1.
        districts_path: Polygons (GeoPackage, Shapefile, GeoJSON) with an id column, for the mean of each layer in each.
        id_column: Column of their ids; default GEOID20, GEOID or geocode, whichever is there.
        band_names: Names for the bands of a scene that carries none.
        nodata: Value that marks missing pixels, besides the one that the scene declares.
        batch_size: Windows per forward pass.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: bf16 where the device has it (auto), or one of the two.
        allow_remote: Also read scenes of any format that GDAL knows, by any of its names, and what they refer to outside their folder, on servers too; Python in a VRT never runs.
    """

    scene_path: str
    output_path: str
    ckpt: str | None = None
    model_path: str = "ckpt"
    log: str = "default"
    size: int = 480
    stride: int = 60
    geometry: Literal["centre", "blend"] = "centre"
    min_valid: float = 0.5
    districts_path: str | None = None
    id_column: str | None = None
    band_names: list[str] = field(default_factory=list)
    nodata: float | None = None
    batch_size: int = 64
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    allow_remote: bool = False

    def __post_init__(self) -> None:
        require(self.size > 0, "size", self.size, "a number of pixels above 0")
        require(0 < self.stride <= self.size, "stride", self.stride, "above 0 and at most --size")
        require(0 <= self.min_valid <= 1, "min_valid", self.min_valid, "between 0 and 1")
        require(self.batch_size > 0, "batch_size", self.batch_size, "above 0")
        require(self.output_path.endswith(".tif"), "output_path", self.output_path, "a file name that ends in .tif")
