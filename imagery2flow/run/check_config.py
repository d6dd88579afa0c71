"""The settings of ``python -m imagery2flow check``; see ``run.config`` for how settings work."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from imagery2flow.run.acquire_config import SENSOR_BANDS
from imagery2flow.run.config import LabelConfig, require
from imagery2flow.run.flow_config import RegionConfig, SplitName, UniverseName


@dataclass(frozen=True, kw_only=True)
class CheckConfig(RegionConfig, LabelConfig):
    """Look at all inputs of a run before it starts, and list every fault at once; status 2 if there is any. What is not given is looked for in <data_root>/<region>/.

    Args:
        node_feats_path: Table of features, one per region or one for all; default every table that stage 3 wrote into the region's folder.
        log: Name of the flow model that is to predict the region (stage 5); its training is not looked at then.
        input_tif_path: Scenes of the region; default scene.tif and <sensor>_<year>.tif.
        bands: Names or numbers of the bands to keep, as for stage 1.
        band_names: Names for the bands of scenes that carry none.
        nodata: Value that marks missing pixels, besides the one that a scene declares.
        context_m: Margin in metres around the unit, as for stage 1.
        allow_remote: Scenes may refer to other folders and to servers, as for stage 1.
        data_path: Folder of patches; default the folders of the year that stage 1 wrote.
        scene_dir: Folder of the scenes, for patches that are windows of them.
        ckpt: Encoder that is to embed the region (stages 3 and 5): a path, or a file name in --model_path.
        model_path: Folder of checkpoints.
        population_path: Tables of the population per geocode; default population.csv.
        population_column: Column of the population.
        split_path: Table geocode, split that stage 4 is to use.
        split: What stage 4 is to hold out.
        universe: Pairs that stage 4 is to train on.
        predict_only: The region is only predicted, so that its flows need not suffice for training.
        output_path: JSON file for what is found; none is written without it.
    """

    node_feats_path: list[str] = field(default_factory=list)
    log: str = ""
    input_tif_path: list[str] = field(default_factory=list)
    bands: list[str] = field(default_factory=list)
    band_names: list[str] = field(default_factory=list)
    nodata: float | None = None
    context_m: float | None = None
    allow_remote: bool = False
    data_path: str | None = None
    scene_dir: str | None = None
    ckpt: str | None = None
    model_path: str = "ckpt"
    population_path: list[str] = field(default_factory=list)
    population_column: str = "population"
    split_path: str | None = None
    split: SplitName = "origin"
    universe: UniverseName = "gt10"
    predict_only: bool = False
    output_path: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("input_tif_path", "data_path"):
            require(
                not getattr(self, name) or len(self.region) == 1,
                name,
                getattr(self, name),
                "left out for several regions; check them one by one",
            )
        self.check_labels()
        require(self.context_m is None or self.context_m >= 0, "context_m", self.context_m, "0 or more metres")

    @property
    def trains(self) -> bool:
        """Whether the flows must suffice for training a model."""
        return not (self.predict_only or self.log)

    def folder(self, region: str) -> Path:
        """Folder of a region."""
        return Path(self.data_root) / region

    def scene_paths(self, region: str) -> list[str]:
        """The scenes, as given or in the region's folder."""
        names = ("scene.tif", *(f"{sensor}_{self.year}.tif" for sensor in SENSOR_BANDS))
        return self.input_tif_path or [str(self.folder(region) / name) for name in names if (self.folder(region) / name).is_file()]

    def feature_paths(self, region: str) -> list[str]:
        """Where features are not given, the tables that stage 3 wrote into the region's folder, as their run files say."""
        if self.node_feats_path:
            return []
        run_files = sorted(self.folder(region).glob("*.run.json"))
        texts = {str(path).removesuffix(".run.json"): path.read_text(errors="replace") for path in run_files}
        return [path for path, text in texts.items() if '"stage": "get_img_embedding"' in text and '"predict": true' not in text]

    def patch_folders(self, region: str) -> list[str]:
        """The folders of patches, as given or in the region's folder."""
        if self.data_path is not None:
            return [self.data_path]
        return sorted(str(path.parent) for path in self.folder(region).glob(f"*_{self.year}/manifest.csv"))

    def distance_paths(self, region: str) -> list[str]:
        """Where distances are not given, those in the region's folder, which a run need not take."""
        path = self.folder(region) / "distances.csv"
        return [str(path)] if not self.distance_path and path.is_file() else []

    def population_paths(self, region: str) -> list[str]:
        """The tables of the population, as given or in the region's folder."""
        path = self.folder(region) / "population.csv"
        return self.population_path or ([str(path)] if path.is_file() else [])
