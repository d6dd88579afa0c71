"""The settings of ``python -m imagery2flow explain``; see ``run.config`` for how settings work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from imagery2flow.run.config import require

LAYERS = ("layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """Show where in a tile a model finds what it says of it: maps, masked images, contact sheets and a table.

    Args:
        data_path: Folder of patches that stage 1 wrote.
        output_dir: Folder to write: explanations.csv, contact_<city>.png, and for each tile <geocode>_<method>_<layer>.tif and ..._masked.png.
        scene_dir: Folder of the scenes, for patches that are windows of them.
        ckpt: Checkpoint of a ResNet that stage 2 trained with --objective classify or regress: a path, or a file name in --model_path; default the run named by --log.
        model_path: Folder of checkpoints.
        log: Name of the run.
        method: Relevance-CAM (Lee et al. 2021) or Grad-CAM (Selvaraju et al. 2017).
        layers: Stages of the ResNet, layer1 (fine) to layer4 (coarse, closest to the answer).
        contrast: Relevance-CAM shows what speaks for a class more than for the others, or raises a score more than it lowers it; false shows all that speaks for it.
        output_name: Class or target to explain; default the predicted class of each tile, or the first target.
        label_column: Column of the manifest with the city of each tile; without such a column all tiles are one group.
        tiles_per_city: Tiles to draw of each city, from its test split where the manifest has a column split; all where a city has fewer.
        geocodes: Ids of the tiles to explain, instead of drawing any.
        mask: What the masked image keeps: pixels above the map's mean and standard deviation (mean_plus_std), or above half of its range (half).
        device: auto, cpu, cuda, cuda:N or mps.
        seed: Seed of the draw.
    """

    data_path: str
    output_dir: str
    scene_dir: str | None = None
    ckpt: str | None = None
    model_path: str = "ckpt"
    log: str = "default"
    method: Literal["relevance_cam", "grad_cam"] = "relevance_cam"
    layers: list[str] = field(default_factory=lambda: ["layer4"])
    contrast: bool = True
    output_name: str | None = None
    label_column: str = "city"
    tiles_per_city: int = 10
    geocodes: list[str] = field(default_factory=list)
    mask: Literal["mean_plus_std", "half"] = "mean_plus_std"
    device: str = "auto"
    seed: int = 42

    def __post_init__(self) -> None:
        known = bool(self.layers) and set(self.layers) <= set(LAYERS) and len(set(self.layers)) == len(self.layers)
        require(known, "layers", " ".join(self.layers), f"among {', '.join(LAYERS)}, each once")
        require(self.tiles_per_city > 0, "tiles_per_city", self.tiles_per_city, "1 or more")
        require(len(set(self.geocodes)) == len(self.geocodes), "geocodes", " ".join(self.geocodes), "ids that differ")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
