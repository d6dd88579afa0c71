"""The settings of the imagery stages: one frozen dataclass per stage, whose fields are the stage's flags and its YAML keys.

``run.cli`` makes the flags and checks the types; ``__post_init__`` checks the values. The published flag names are kept; the published
values are in ``configs/paper``. Nothing here imports a heavy library, so that ``--help`` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal

from imagery2flow.run.errors import InputError


def require(condition: bool, flag: str, value: Any, rule: str) -> None:
    """Refuses a setting that is out of range.

    Raises:
        InputError: ``condition`` is false.
    """
    if not condition:
        raise InputError(f"--{flag} {value} must be {rule}")


def log_name(log: str) -> str:
    """Name of a run from the published ``--log`` flag: ``log/M1_s2.log`` and ``M1_s2-log.txt`` both give ``M1_s2``."""
    name = PurePath(log).name
    for suffix in (".log", ".txt", "-log"):
        name = name.removesuffix(suffix)
    require(bool(name), "log", log, "a name")
    return name


@dataclass(frozen=True, kw_only=True)
class PreprocessingConfig:
    """Stage 1: cut one image patch per areal unit out of one or several scenes.

    Args:
        input_tif_path: One or several scenes: GeoTIFF, VRT, JPEG 2000, ...; any CRS, bands and type; other formats with --allow_remote. For grid also a folder tree <city>/<site>/<image>.
        output_tif_dir: Folder under which <region>/<tag>_<year>/ is written.
        region: Name of the city or area.
        shp_path: Areal units (GeoPackage, Shapefile, GeoJSON) with an id column and a CRS; points for --mode points.
        year: Year of the imagery, part of the file names.
        tag: Sensor, part of the file names: s2, l8, l5.
        id_column: Column of the unit ids; default GEOID20, GEOID or geocode, whichever is there.
        mode: zones cuts along polygons, grid tiles the scene, points cuts a square around each point.
        size: Side of a tile in pixels, for grid and points.
        stride: Step between tiles in pixels, for grid; default the size.
        split: Which tiles of a tree of cities are for training, validation and test: last_site as published (each city's last site, its images halved for test and validation), sites or scenes (each city's dealt by --split_shares), or none; default last_site for a tree.
        split_shares: Shares of training, validation and test for --split sites and scenes.
        seed: Seed of that dealing.
        materialize: Write each patch as a file; false, for grid, leaves tiles as windows of their scenes, which the next stages read with --scene_dir.
        all_touched: Keep every pixel that a unit's polygon touches instead of those whose centre it covers.
        context_m: Margin in metres around the unit; given (0 included), the imagery around the unit is kept, not blackened.
        min_valid: Smallest share of valid pixels that a patch must have, 0 to 1.
        bands: Names of the bands to keep (or 1-based numbers, which no band has as its name), in that order; default all.
        band_names: Names for the bands of scenes that carry none.
        nodata: Value that marks missing pixels, besides the one that a scene declares.
        workers: Processes that cut patches; 0 takes one per core.
        dask: Address of a dask scheduler, tcp://host:port, whose workers cut the patches instead; they must see the same folders.
        allow_remote: Also read scenes of any format that GDAL knows, by any of its names, and what they refer to outside their folder, on servers too; Python in a VRT never runs.
    """

    input_tif_path: list[str]
    output_tif_dir: str = "data"
    region: str = "M1"
    shp_path: str | None = None
    year: int = 2020
    tag: str = "l8"
    id_column: str | None = None
    mode: Literal["zones", "grid", "points"] = "zones"
    size: int = 256
    stride: int | None = None
    split: Literal["none", "last_site", "sites", "scenes"] | None = None
    split_shares: list[float] = field(default_factory=lambda: [0.6, 0.2, 0.2])
    seed: int = 42
    materialize: bool = True
    all_touched: bool = False
    context_m: float | None = None
    min_valid: float = 0.0
    bands: list[str] = field(default_factory=list)
    band_names: list[str] = field(default_factory=list)
    nodata: float | None = None
    workers: int = 0
    dask: str | None = None
    allow_remote: bool = False

    def __post_init__(self) -> None:
        require(self.size > 0, "size", self.size, "a number of pixels above 0")
        require(self.stride is None or self.stride > 0, "stride", self.stride, "a number of pixels above 0")
        require(self.context_m is None or self.context_m >= 0, "context_m", self.context_m, "0 or more metres")
        require(0 <= self.min_valid <= 1, "min_valid", self.min_valid, "between 0 and 1")
        require(self.workers >= 0, "workers", self.workers, "0 (one per core) or more")
        require(self.mode == "grid" or self.shp_path is not None, "shp_path", "(none)", f"given for --mode {self.mode}")
        require(self.mode == "zones" or self.context_m is None, "context_m", self.context_m, "left out unless --mode zones")
        require(self.mode == "grid" or self.materialize, "materialize", self.materialize, "true unless --mode grid")
        require(self.mode == "grid" or self.split is None, "split", self.split, "left out unless --mode grid")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        shares = self.split_shares
        fit = len(shares) == 3 and shares[0] > 0 and min(shares) >= 0 and abs(sum(shares) - 1) < 1e-6
        require(fit, "split_shares", shares, "three numbers of 0 or more that add up to 1, the first above 0")


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """How random views of a patch are drawn. Radiometric changes are weak by default: brightness tells a business district from a suburb.

    Args:
        crop_min_share: Smallest share of the patch's area that a crop covers; the largest is 1.
        flip: Flip left-right with probability 1/2.
        turn: Also flip top-bottom and transpose with probability 1/2 each: all eight orientations.
        shift: Largest random offset per band, in standard deviations of the band.
        gain: Largest random relative change of contrast per band, around the band's mean.
        band_drop_probability: Probability that one band of a view is set to its mean.
        blur_probability: Probability that a view is blurred (Gaussian, sigma .1 to 2 pixels of the view).
        rgb_jitter: Strength s of the published RGB jitter: brightness, contrast, saturation s and hue s/4, in random order; 0 is off.
        rgb_jitter_probability: Probability that a view is jittered.
        grey_probability: Probability that an RGB view becomes grey.
    """

    crop_min_share: float = 0.2
    flip: bool = True
    turn: bool = True
    shift: float = 0.1
    gain: float = 0.1
    band_drop_probability: float = 0.0
    blur_probability: float = 0.0
    rgb_jitter: float = 0.0
    rgb_jitter_probability: float = 0.8
    grey_probability: float = 0.0

    def __post_init__(self) -> None:
        require(0 < self.crop_min_share <= 1, "views.crop_min_share", self.crop_min_share, "above 0 and at most 1")
        for name in ("band_drop_probability", "blur_probability", "rgb_jitter_probability", "grey_probability"):
            require(0 <= getattr(self, name) <= 1, f"views.{name}", getattr(self, name), "between 0 and 1")
        for name in ("shift", "gain", "rgb_jitter"):
            require(0 <= getattr(self, name) <= 1, f"views.{name}", getattr(self, name), "between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """Where the labels of patches come from, and which patches are kept from training.

    Args:
        label_column: Column of the classes, in --labels_path or else in the patches' manifest.csv; with targets, the groups that balanced sampling draws alike.
        target_column: Columns of the numbers to predict, likewise; a model learns all of them, and a missing number counts for nothing.
        labels_path: Table of labels: CSV or Parquet.
        labels_key: Column that joins the table to manifest.csv, in both. Keys that are not ids of patches may differ by a code in parentheses: "ALA", "Almaty (ALA)".
        held_out_column: Column of manifest.csv by whose groups (cities) patches are held out: those of one fold of the groups are the test.
        folds: Number of folds that the groups are dealt into, in an order that --seed draws.
        fold: Number of the fold that is held out, from 1.
    """

    label_column: str | None = None
    target_column: list[str] = field(default_factory=list)
    labels_path: str | None = None
    labels_key: str = "geocode"
    held_out_column: str | None = None
    folds: int = 5
    fold: int = 1

    def check_labels(self) -> None:
        """Refuses numbers of folds that do not exist.

        Raises:
            InputError: A setting is out of range.
        """
        require(self.folds >= 2, "folds", self.folds, "2 or more")
        require(1 <= self.fold <= self.folds, "fold", self.fold, f"1 to {self.folds}, the number of --folds")
        repeated = len(set(self.target_column)) < len(self.target_column)
        require(not repeated, "target_column", " ".join(self.target_column), "columns of which none occurs twice")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(LabelConfig):
    """Stage 2: train an image encoder on patches: without labels (SimCLR), to tell classes apart, or to predict numbers.

    Args:
        objective: simclr learns without labels, classify the classes of --label_column, regress the numbers of --target_column.
        data_path: Folder of patches that stage 1 wrote.
        scene_dir: Folder of the scenes, for patches that are windows of them (img_preprocessing.py --materialize false).
        bands: Published count (3), or names (red nir) or numbers (1 2) of the bands to use; default all.
        lr: Learning rate of Adam.
        batch_size: Images per step over all processes; the negatives of the loss. An epoch's last batches are evened out.
        projection_dim: Length of the projected vector in the loss.
        resnet: Backbone.
        init: Weights to begin with: random (scratch), torchvision's for ImageNet (imagenet), or those of a file: torchvision's, or a checkpoint of this stage.
        normalisation: What scales the bands: the training patches' mean and deviation (patches), or ImageNet's, for red, green, blue of 0 to 255 (imagenet).
        balanced: Draw each class, or group of --label_column, equally often in an epoch, with replacement; false shows every patch once.
        target_scale: Divide targets by this number, as published for ranks (100); default: subtract their mean and divide by their deviation over the training patches.
        temperature: Temperature of the NT-Xent loss.
        total_epoch: Passes over the patches.
        model_path: Folder of checkpoints; <log>_img_<total_epoch>.pth is written there after every epoch.
        schedule: Epochs at which the learning rate drops to a tenth.
        cos: Cosine decay of the learning rate instead of the schedule.
        log: Name of the run.
        weight_decay: Weight decay of the optimiser.
        view_size: Side of a view in pixels; 0 takes 64 for patches of up to 128 pixels, else 224.
        views: How random views are drawn.
        accumulate: Parts in which a batch goes through the encoder, for batches too large for a device; the negatives stay those of the whole batch.
        patches_on: Where pixels are kept: on the device, in main memory (host), in a temporary file in --model_path (disk), or the first where they fit (auto).
        compile: Compile the encoder (torch.compile): on, off, or auto: on a GPU, in long runs, where a trial of both is faster compiled.
        resume: Continue from the run's checkpoint if there is one, and refuse one of other settings; false trains anew, over what is there.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: bf16 where the device has it (auto), or one of the two.
        seed: Seed of everything random.
    """

    data_path: str
    scene_dir: str | None = None
    objective: Literal["simclr", "classify", "regress"] = "simclr"
    bands: list[str] = field(default_factory=list)
    lr: float = 1e-3
    batch_size: int = 128
    projection_dim: int = 128
    resnet: Literal["resnet18", "resnet34", "resnet50", "resnet101", "vit_l_16"] = "resnet18"
    init: str = "scratch"
    normalisation: Literal["patches", "imagenet"] = "patches"
    balanced: bool = True
    target_scale: float | None = None
    temperature: float = 0.5
    total_epoch: int = 120
    model_path: str = "ckpt"
    schedule: list[int] = field(default_factory=lambda: [90, 110])
    cos: bool = False
    log: str = "default"
    weight_decay: float = 0.0
    view_size: int = 0
    views: ViewConfig = field(default_factory=ViewConfig)
    accumulate: int = 1
    patches_on: Literal["auto", "device", "host", "disk"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    resume: bool = True
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int = 42

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", self.lr, "above 0")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        require(self.batch_size >= 2, "batch_size", self.batch_size, "2 or more: a view needs another image as its negative")
        require(self.projection_dim > 0, "projection_dim", self.projection_dim, "above 0")
        require(self.temperature > 0, "temperature", self.temperature, "above 0")
        require(self.total_epoch > 0, "total_epoch", self.total_epoch, "above 0")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        require(self.accumulate > 0, "accumulate", self.accumulate, "1 or more")
        require(self.view_size == 0 or self.view_size >= 16, "view_size", self.view_size, "16 or more, or 0 to choose by the patches")
        fits = self.resnet != "vit_l_16" or self.view_size % 16 == 0
        require(fits, "view_size", self.view_size, "a multiple of 16, the ViT's token size")
        self.check_labels()
        self.check_objective()

    def check_objective(self) -> None:
        """Refuses labels without an objective that learns them, and the other way round.

        Raises:
            InputError: A setting is missing, or would be passed over.
        """
        learns, targets = self.objective, " ".join(self.target_column)
        if learns == "classify":
            require(self.label_column is not None, "label_column", "(none)", "given for --objective classify: the column of the classes")
        if learns == "regress":
            require(bool(targets), "target_column", "(none)", "given for --objective regress: the columns of the numbers to predict")
        else:
            require(not targets, "target_column", targets, "left out unless --objective regress")
            require(self.target_scale is None, "target_scale", self.target_scale, "left out unless --objective regress")
        if learns == "simclr":
            for name in ("label_column", "labels_path", "held_out_column"):
                require(getattr(self, name) is None, name, getattr(self, name), "left out unless --objective classify or regress")
        require(self.target_scale is None or self.target_scale > 0, "target_scale", self.target_scale, "above 0")
        require(bool(self.init), "init", "(none)", "scratch, imagenet, or the path of a file of weights")

    @property
    def checkpoint(self) -> str:
        """Path of the run's checkpoint, by the published naming."""
        return f"{self.model_path}/{log_name(self.log)}_img_{self.total_epoch}.pth"


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """Stage 3: one vector per patch with a trained encoder.

    Args:
        data_path: Folder of patches that stage 1 wrote.
        scene_dir: Folder of the scenes, for patches that are windows of them (img_preprocessing.py --materialize false).
        output_path: Table to write: geocode, 0..D-1; CSV or Parquet by its suffix.
        ckpt: Checkpoint that stage 2 wrote: a path, or a file name in --model_path; default the run named by --log.
        model_path: Folder of checkpoints.
        log: Name of the run.
        predict: Write what a model that was trained with labels says of each patch instead of its vector: probability_<class>, or predicted_<target> and mean_<target>.
        normalisation: Statistics that scale the bands: the encoder's (checkpoint), or these patches' own (patches) for imagery whose numbers are on another scale.
        band_statistics: Append each band's mean and standard deviation, scaled alike, as named columns: red_mean, red_std.
        untrained_control: Also write <output_path>_untrained with the vectors of an encoder with random weights, a control for the flow stages.
        batch_size: Patches per forward pass.
        workers: Processes of this machine that read and embed patches; 1 is this process, 0 one per core. They share the cores, and the first GPU.
        dask: Address of a dask scheduler (tcp://host:port) whose workers read and embed instead; all machines must see the same folders.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: bf16 where the device has it (auto), or one of the two.
    """

    data_path: str
    output_path: str
    scene_dir: str | None = None
    ckpt: str | None = None
    model_path: str = "ckpt"
    log: str = "default"
    predict: bool = False
    normalisation: Literal["checkpoint", "patches"] = "checkpoint"
    band_statistics: bool = True
    untrained_control: bool = True
    batch_size: int = 256
    workers: int = 1
    dask: str | None = None
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        require(self.batch_size > 0, "batch_size", self.batch_size, "above 0")
        require(self.workers >= 0, "workers", self.workers, "0 (one per core) or more")


@dataclass(frozen=True, kw_only=True)
class FlowMapConfig:
    """Draw a region's imagery, observed flows and predicted flows beside each other.

    Args:
        predictions_path: Table that stage 4 or 5 wrote: h_geocode, w_geocode, count, prediction.
        units_path: Areal units of those flows.
        scene_path: Scene to show; its first three bands as red, green, blue.
        output_path: Picture to write: PNG, PDF or SVG by its suffix.
        id_column: Column of the unit ids; default GEOID20, GEOID or geocode, whichever is there.
        allow_remote: Also read scenes of any format that GDAL knows, by any of its names, and what they refer to outside their folder, on servers too; Python in a VRT never runs.
    """

    predictions_path: str
    units_path: str
    scene_path: str
    output_path: str
    id_column: str | None = None
    allow_remote: bool = False


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """Generate a metro whose imagery shows land use and whose flows follow a known law of it.

    Args:
        output_dir: Folder under which <region>/ is written: scene.tif, land_use.tif, units.gpkg, flows.csv, population.csv, law.csv.
        region: Name of the metro.
        num_units: Number of tracts.
        seed: Seed of everything random.
        utm_zone: UTM zone (north) of the metro's CRS.
        size_px: Side of the scene in pixels of 30 m.
    """

    output_dir: str = "data"
    region: str = "metro"
    num_units: int = 240
    seed: int = 1
    utm_zone: int = 18
    size_px: int = 640

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        require(self.num_units >= 10, "num_units", self.num_units, "10 or more")
        require(1 <= self.utm_zone <= 60, "utm_zone", self.utm_zone, "1 to 60")
        require(self.size_px**2 >= 200 * self.num_units, "size_px", self.size_px, "large enough for 200 pixels per unit")
