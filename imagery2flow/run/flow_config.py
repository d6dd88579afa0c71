"""The settings of the flow stages; see ``run.config`` for how a dataclass becomes flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from imagery2flow.run.config import log_name, require
from imagery2flow.run.errors import InputError

UniverseName = Literal["gt10", "positive", "full"]
MOST_LEAVES = 131072  # LightGBM's own limit
DecoderName = Literal["bilinear", "lightgbm"]
DECODERS: tuple[DecoderName, ...] = ("bilinear", "lightgbm")
SplitName = Literal["origin", "unit", "block", "pair"]
FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class TreesConfig:
    """The LightGBM decoder.

    Args:
        num_trees: Most trees; fewer where the validation score stops improving.
        max_depth: Deepest tree; -1 for no limit.
        num_leaves: Most leaves per tree.
        learning_rate: Shrinkage per tree.
        min_leaf_pairs: Fewest pairs in a leaf.
        feature_share: Share of the features that each tree may use. Published: 1.
        pair_share: Share of the training pairs that each tree sees. Published: 1.
        objective: poisson fits expected counts, l2 is the published squared error on raw counts.
        early_stopping: Stop after this many trees without a better validation score, then fit so many on training and validation pairs together; 0 fits num_trees, as published, on training pairs.
        embeddings: Give the trees the network's embeddings of both ends, as published.
        unit_features: Give the trees the features of both ends that the network sees, and those of their surroundings. Published: not.
        potentials: Give the trees the outflow and inflow that imagery alone predicts for both ends. Published: not.
        law: Average them with trees that see potentials and distance only and may only rise with the ones and fall with the other. Published: not.
        transfer_trees: For other cities fit so many trees of their own, on training and validation pairs, which see transfer_context_m around a unit; 0 uses the source city's there too, as published.
    """

    num_trees: int = 3000
    max_depth: int = -1
    num_leaves: int = 31
    learning_rate: float = 0.05
    min_leaf_pairs: int = 20
    feature_share: float = 0.5
    pair_share: float = 0.7
    objective: Literal["poisson", "l2"] = "poisson"
    early_stopping: int = 100
    embeddings: bool = False
    unit_features: bool = True
    potentials: bool = True
    law: bool = True
    transfer_trees: int = 300

    def __post_init__(self) -> None:
        require(self.num_trees > 0, "trees.num_trees", self.num_trees, "above 0")
        require(1 < self.num_leaves <= MOST_LEAVES, "trees.num_leaves", self.num_leaves, f"2 to {MOST_LEAVES}")
        require(self.learning_rate > 0, "trees.learning_rate", self.learning_rate, "above 0")
        for name in ("min_leaf_pairs", "early_stopping", "transfer_trees"):
            require(getattr(self, name) >= 0, f"trees.{name}", getattr(self, name), "0 or more")
        for name in ("feature_share", "pair_share"):
            require(0 < getattr(self, name) <= 1, f"trees.{name}", getattr(self, name), "above 0 and at most 1")


@dataclass(frozen=True)
class Place:
    """The files of one region: its name, features if there are any, and the paths that are not where they are looked for."""

    region: str
    node_feats_path: str | None
    units_path: str | None
    flows_path: str | None
    distance_path: str | None


@dataclass(frozen=True, kw_only=True)
class RegionConfig:
    """What stages 4 and 5 read. A path that is not given is looked for in <data_root>/<region>/; of several regions give all such paths or none.

    Args:
        node_feats_path: Table of features, one per region or one for all: geocode, 0..D-1.
        region: Name of the region; of several, each has a graph of its own and they share the model.
        log: Name of the OD model; its folder is <output_dir>/<log>.
        year: Year of the flows; flows_<year>.csv is preferred to flows.csv.
        data_root: Folder of the regions.
        units_path: Areal units; default <data_root>/<region>/units.gpkg.
        id_column: Column of the unit ids; default GEOID20, GEOID or geocode, whichever is there.
        flows_path: Flows: h_geocode, w_geocode, count; a column complete_block of 1 says that between units so joined an absent pair is a zero.
        flows_complete: Declare that every pair of units that is absent from the flows is a zero.
        distance_path: Distances in metres between units: square (first column and header are ids) or h_geocode, w_geocode, distance_m; default great circle.
        extra_feats: More tables of features per geocode, joined to the others by id.
        drop_unknown_units: Leave out flows that name units which are not in the units file, instead of refusing them.
        output_dir: Folder of the OD models.
        device: auto, cpu, cuda, cuda:N or mps.
    """

    node_feats_path: list[str]
    region: list[str]
    log: str = "default"
    year: int = 2020
    data_root: str = "data"
    units_path: list[str] = field(default_factory=list)
    id_column: str | None = None
    flows_path: list[str] = field(default_factory=list)
    flows_complete: bool = False
    distance_path: list[str] = field(default_factory=list)
    extra_feats: list[str] = field(default_factory=list)
    drop_unknown_units: bool = False
    output_dir: str = "outputs"
    device: str = "auto"

    def __post_init__(self) -> None:
        if len(set(self.region)) != len(self.region):
            raise InputError(f"--region {' '.join(self.region)} names a region twice; name each once")
        for name in ("node_feats_path", "units_path", "flows_path", "distance_path"):
            paths = getattr(self, name)
            if len(paths) not in (0, len(self.region)) and not (name == "node_feats_path" and len(paths) == 1):
                raise InputError(
                    f"--{name} names {len(paths)} files for {len(self.region)} regions ({' '.join(self.region)}); give one for each"
                )

    def places(self) -> list[Place]:
        """The regions with their files, in the order given."""
        count = len(self.region)
        features: list[str | None] = [*self.node_feats_path] * (count if len(self.node_feats_path) == 1 else 1)
        paths = [getattr(self, name) or [None] * count for name in ("units_path", "flows_path", "distance_path")]
        return [Place(*parts) for parts in zip(self.region, features or [None] * count, *paths, strict=True)]

    @property
    def name(self) -> str:
        """The regions' names in one word."""
        return "+".join(self.region)

    @property
    def model_dir(self) -> str:
        """Folder of the OD model."""
        return f"{self.output_dir}/{log_name(self.log)}"


@dataclass(frozen=True, kw_only=True)
class FlowTrainingConfig(RegionConfig):
    """Stage 4: train the flow model of one or several regions: graph attention network, bilinear decoder and LightGBM decoder.

    Args:
        max_epochs: Most passes over the training pairs.
        lr: Learning rate of Adam for the graph network and the bilinear decoder.
        weight_decay: Weight decay of Adam, decoupled from the gradient (Loshchilov and Hutter 2019); 0 is plain Adam, as published.
        sigma_lr: Learning rate of the noise scale of the balanced loss.
        embedding_size: Width of the graph network. Published: 512.
        num_hidden_layers: Hidden layers; the network has one more. Published: 2.
        batch_size: Pairs per step; every step sees the whole graph.
        warmup_epochs: Epochs over which the learning rate rises from a tenth.
        decay_epochs: Epochs after which the learning rate drops to a tenth, again and again; 0 is never.
        grad_norm: Largest norm of the gradient.
        evaluate_every: Epochs between two looks at the validation pairs.
        patience: Stop after this many epochs without a better validation score.
        select_by: Validation score that chooses the epoch.
        split: What is held out: origin (as published: every fifth origin), unit (pairs between new units only), block (the same by spatial blocks), pair (at random; shows memory, not skill).
        fold: Of the split by origin, which fifth is tested, 0 to 4: five runs test every origin once.
        universe: Pairs to train on: gt10 (flows above 10, as published), positive (all observed flows), full (zeros too, where the flows are complete).
        zeros_per_flow: Zero pairs that are drawn for each observed flow in the universe full; they are weighted, so that expectations stay right.
        loss: poisson, the likelihood of the counts; multinomial, that of the destinations of each origin and of its outflow; balanced_mse, as published, on log2 of the counts.
        area_feature: Add the logarithm of each unit's area to its features.
        num_components: Principal components to which the numbered columns (an image embedding) are reduced if there are more; 0 keeps them, as published.
        context_m: Radii in metres over which the named columns, such as the bands' means, are averaged around each unit, for the trees; none is the published model.
        transfer_context_m: The same for the trees that predict other cities.
        dropout: Share of the features that is hidden at random in training; half that share within the network. Published: 0.
        unit_terms: Give the bilinear decoder a term for the origin and one for the destination; the published one has none.
        pair_distance: Give the bilinear decoder a term for the pair's distance; the published one has none.
        dual_encoder: Two graph networks, one for units as origins and one for units as destinations. Published: one.
        controls: Also train what the scores are to be read against: distance alone, bands alone, images shuffled between units, an untrained encoder.
        population_path: Tables with the population per geocode, for the stratified split.
        population_column: Column of the population.
        split_path: Table geocode, split (train, valid, test) to use instead of a new split.
        trees: The LightGBM decoder.
        seed: Seed of everything random.
    """

    max_epochs: int = 100
    lr: float = 3e-3
    weight_decay: float = 0.3
    sigma_lr: float = 1e-2
    embedding_size: int = 128
    num_hidden_layers: int = 1
    batch_size: int = 2048
    warmup_epochs: int = 5
    decay_epochs: int = 0
    grad_norm: float = 1.0
    evaluate_every: int = 1
    patience: int = 30
    select_by: Literal["rmse", "mae", "cpc"] = "cpc"
    split: SplitName = "origin"
    fold: int = 0
    universe: UniverseName = "gt10"
    zeros_per_flow: float = 2.0
    loss: Literal["poisson", "multinomial", "balanced_mse"] = "poisson"
    area_feature: bool = True
    num_components: int = 8
    context_m: list[float] = field(default_factory=lambda: [500.0, 1500.0, 4000.0])
    transfer_context_m: list[float] = field(default_factory=lambda: [1000.0])
    dropout: float = 0.05
    unit_terms: bool = True
    pair_distance: bool = True
    dual_encoder: bool = False
    controls: bool = True
    population_path: list[str] = field(default_factory=list)
    population_column: str = "population"
    split_path: str | None = None
    trees: TreesConfig = field(default_factory=TreesConfig)
    seed: int = 42

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_epochs", "lr", "sigma_lr", "embedding_size", "batch_size", "grad_norm", "evaluate_every", "patience"):
            require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        for name in ("num_hidden_layers", "warmup_epochs", "decay_epochs", "seed", "num_components", "weight_decay", "zeros_per_flow"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "0 or more and below 1")
        for name in ("context_m", "transfer_context_m"):
            require(all(radius > 0 for radius in getattr(self, name)), name, getattr(self, name), "above 0")
        require(0 <= self.fold < FOLDS, "fold", self.fold, f"0 to {FOLDS - 1}")
        drawn = self.split == "origin" and self.split_path is None
        require(drawn or self.fold == 0, "fold", self.fold, "left out unless a split by origin is drawn")
        check_zeros(self.loss, [self.universe])


def check_zeros(loss: str, universes: Sequence[str]) -> None:
    """Refuses a loss that zeros are not for.

    Raises:
        InputError: The loss takes logarithms of counts and a universe holds zeros.
    """
    if loss == "balanced_mse" and "full" in universes:
        raise InputError(
            "--loss balanced_mse takes the logarithm of counts and the universe full holds zeros; use --loss poisson or multinomial"
        )


@dataclass(frozen=True, kw_only=True)
class FlowTestConfig(RegionConfig):
    """Stage 5: predict the flows of another region with a trained flow model; scores where flows are known.

    Args:
        decoders: What predicts; the bilinear decoder alone is several times faster on a whole matrix.
        all_pairs: Predict every pair of units, not only those with an observed flow; always so without flows.
        top_k: Of the predicted pairs of each origin write only the k largest; 0 writes all.
        min_flow: Write only predictions of at least so many commuters.
        origin_totals_path: Table of known outflows per geocode, or of population with --origin_totals share: predictions of each origin are scaled to it.
        origin_totals_column: Column of that table.
        origin_totals: outflow: each origin's predictions sum to the value; share: outflows are proportional to it and their sum is the predicted one.
        table_format: Format of the prediction tables.
        embedding_size: Width of the graph network; checked against the model if given.
        num_hidden_layers: Hidden layers; checked against the model if given.
        max_epochs: Accepted because the published command names it; testing trains nothing.
        lr: Accepted because the published command names it; testing trains nothing.
    """

    decoders: list[DecoderName] = field(default_factory=lambda: list(DECODERS))
    all_pairs: bool = False
    top_k: int = 0
    min_flow: float = 0.0
    origin_totals_path: str | None = None
    origin_totals_column: str = "outflow"
    origin_totals: Literal["outflow", "share"] = "outflow"
    table_format: Literal["csv", "parquet"] = "csv"
    embedding_size: int | None = None
    num_hidden_layers: int | None = None
    max_epochs: int | None = None
    lr: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.region) > 1:
            raise InputError(f"--region {' '.join(self.region)} names {len(self.region)} regions; test one at a time")
        require(len(self.decoders) > 0, "decoders", "none", f"among {', '.join(DECODERS)}")
        for name in ("top_k", "min_flow"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(FlowTrainingConfig):
    """Score models on every combination of split and universe, over several seeds, beside their controls.

    Args:
        splits: What is held out; city holds out --test_region.
        universes: Pairs that are trained and scored on.
        seeds: Number of repetitions, each with another split and other random numbers; the first is --seed.
        test_region: Those of --region that are held out whole in the split city, and left out of every other.
        baselines: Further predictors: gravity, radiation, deep_gravity, gmel.
        breakdowns: Also write the scores by origin, by distance, by volume, and the calibration.
    """

    splits: list[str] = field(default_factory=lambda: ["origin"])
    universes: list[UniverseName] = field(default_factory=lambda: ["gt10"])
    seeds: int = 3
    test_region: list[str] = field(default_factory=list)
    baselines: list[str] = field(default_factory=list)
    breakdowns: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.seeds > 0, "seeds", self.seeds, "above 0")
        require(self.fold == 0, "fold", self.fold, "left out: evaluate draws another split for each of its --seeds")
        for name, known in (
            ("splits", ("origin", "unit", "block", "city", "pair")),
            ("universes", ("gt10", "positive", "full")),
            ("baselines", ("gravity", "radiation", "deep_gravity", "gmel")),
            ("test_region", tuple(self.region)),
        ):
            for value in getattr(self, name):
                require(value in known, name, value, f"among {', '.join(known)}")
        check_zeros(self.loss, self.universes)
        if not set(self.region) - set(self.test_region):
            raise InputError(
                f"--test_region {' '.join(self.test_region)} holds out every region of --region; name another in --region to train on"
            )
        if ("city" in self.splits) != bool(self.test_region):
            raise InputError("--splits city and --test_region go together: name the regions to hold out whole")


@dataclass(frozen=True, kw_only=True)
class ImportConfig(RegionConfig):
    """Turn published weights into a flow model that stage 5 reads; give the source region's features and files as to stage 4.

    Args:
        network_path: Published weights of the graph network and the bilinear decoder (.pth); without them only the trees' text is written.
        lightgbm_path: Published LightGBM decoder: a pickle, which is searched for LightGBM's text and not unpickled, or that text.
        split_path: Table geocode, split (train, valid, test) that the weights were trained with; without it every unit counts as trained on.
        node_feats_path: Table of features of the source region, as the weights were trained on: geocode, 0..D-1.
        region: Name of the source region.
    """

    node_feats_path: list[str] = field(default_factory=list)
    region: list[str] = field(default_factory=list)
    network_path: str | None = None
    lightgbm_path: str | None = None
    split_path: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.network_path or self.lightgbm_path), "network_path", None, "given, or --lightgbm_path, or both")
        if self.network_path:
            require(len(self.region) == 1, "region", " ".join(self.region) or None, "one region, the source of --network_path")
            require(len(self.node_feats_path) == 1, "node_feats_path", None, "given with --network_path")


@dataclass(frozen=True, kw_only=True)
class ResultsConfig:
    """Print every score of a flow model as one table.

    Args:
        log: Name of the OD model; its folder is <output_dir>/<log>.
        output_dir: Folder of the OD models.
        data_root: Folder of the regions; a generated metro's law.csv there adds the score of the law's own mean, called best reachable, which hardly any predictor beats.
    """

    log: str = "default"
    output_dir: str = "outputs"
    data_root: str = "data"

    @property
    def model_dir(self) -> str:
        """Folder of the OD model."""
        return f"{self.output_dir}/{log_name(self.log)}"


@dataclass(frozen=True, kw_only=True)
class FoldsConfig:
    """Join five models of stage 4 that differ in --fold alone: every flow predicted by the model that did not see its origin, scores as mean and deviation.

    Args:
        logs: Names of the models, one for each fold.
        log: Name of what is written: <output_dir>/<log>/.
        output_dir: Folder of the OD models.
    """

    logs: list[str]
    log: str
    output_dir: str = "outputs"

    def __post_init__(self) -> None:
        require(len(self.logs) > 1, "logs", " ".join(self.logs) or "(none)", "the names of two models or more")
        require(len(set(self.logs)) == len(self.logs), "logs", " ".join(self.logs), "different names")
        require(self.log not in self.logs, "log", self.log, "another name than those of --logs")


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """Collect the scores of models trained in one region and tested in the others as tables: a row per target, a column per source (fig. 5).

    Args:
        regions: The regions, in the order of rows and columns.
        tags: Sensors, as in the models' names <region>_<tag>_<year>.
        year: Year, as in the models' names.
        output_dir: Folder of the OD models.
        universe: Pairs that are scored.
        score: Score that is collected: a key of metrics.json, such as cpc, rmse, mae.
    """

    regions: list[str] = field(default_factory=lambda: [f"M{number}" for number in range(1, 11)])
    tags: list[str] = field(default_factory=lambda: ["s2", "l8"])
    year: int = 2020
    output_dir: str = "outputs"
    universe: UniverseName = "gt10"
    score: str = "cpc"

    def __post_init__(self) -> None:
        for name in ("regions", "tags"):
            values = getattr(self, name)
            require(bool(values) and len(set(values)) == len(values), name, " ".join(values) or "(none)", "names, each once")
