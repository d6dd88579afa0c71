"""The published recipe in ``configs/paper`` and the commands of the documents are what the stages accept."""

import dataclasses
import re
from pathlib import Path

import pytest

from imagery2flow.run import config
from imagery2flow.run.acquire_config import AcquireConfig
from imagery2flow.run.adopt_config import AdoptConfig
from imagery2flow.run.check_config import CheckConfig
from imagery2flow.run.cities_config import CitiesConfig
from imagery2flow.run.cli import build_parser, parse_config
from imagery2flow.run.config import EmbeddingConfig, EncoderConfig, PreprocessingConfig
from imagery2flow.run.distances_config import DistancesConfig
from imagery2flow.run.explain_config import ExplainConfig
from imagery2flow.run.flow_config import (
    EvaluateConfig,
    FlowTestConfig,
    FlowTrainingConfig,
    FoldsConfig,
    ImportConfig,
    ResultsConfig,
    TransferConfig,
)
from imagery2flow.run.form_config import UrbanFormConfig
from imagery2flow.run.land_cover_config import LandCoverConfig
from imagery2flow.run.report_config import ReportConfig
from imagery2flow.run.scene_map_config import SceneMapConfig
from imagery2flow.run.synthetic_cities_config import SyntheticCitiesConfig

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / "configs" / "paper"
STAGES = {
    "img_preprocessing": PreprocessingConfig,
    "train_img_encoder": EncoderConfig,
    "get_img_embedding": EmbeddingConfig,
    "train_ODPrediction": FlowTrainingConfig,
    "test_ODPrediction": FlowTestConfig,
    "runs/transfer_matrix": TransferConfig,
}
COMMANDS = {
    "synthetic": config.SyntheticConfig,
    "synthetic_cities": SyntheticCitiesConfig,
    "acquire": AcquireConfig,
    "adopt": AdoptConfig,
    "check": CheckConfig,
    "distances": DistancesConfig,
    "land_cover": LandCoverConfig,
    "urban_form": UrbanFormConfig,
    "import_published": ImportConfig,
    "evaluate": EvaluateConfig,
    "folds": FoldsConfig,
    "results": ResultsConfig,
    "flow_map": config.FlowMapConfig,
    "map": SceneMapConfig,
    "report": ReportConfig,
    "explain": ExplainConfig,
    "cities": CitiesConfig,
}


def read_recipe(stage, *flags):
    return parse_config(stage, STAGES[stage], ["--config", str(PAPER / f"{stage}.yaml"), *flags])


def test_the_encoder_is_trained_as_published():
    recipe = read_recipe("train_img_encoder", "--data_path", "patches")
    assert (recipe.resnet, recipe.bands, recipe.view_size) == ("vit_l_16", ["3"], 224)
    assert (recipe.batch_size, recipe.lr, recipe.total_epoch, recipe.schedule, recipe.cos) == (128, 1e-3, 120, [90, 110], False)
    assert (recipe.temperature, recipe.projection_dim) == (0.5, 128)
    views = recipe.views
    assert (views.crop_min_share, views.flip, views.turn) == (0.2, True, False)
    assert (views.rgb_jitter, views.rgb_jitter_probability, views.grey_probability) == (0.4, 0.8, 0.2)
    assert views.shift == views.gain == views.blur_probability == views.band_drop_probability == 0


def test_the_flow_model_is_trained_as_published():
    recipe = read_recipe("train_ODPrediction", "--node_feats_path", "t.csv", "--region", "M1")
    assert (recipe.embedding_size, recipe.num_hidden_layers, recipe.max_epochs) == (512, 2, 100)
    assert (recipe.lr, recipe.sigma_lr, recipe.warmup_epochs, recipe.decay_epochs, recipe.grad_norm) == (1e-5, 1e-2, 5, 40, 1.0)
    assert (recipe.evaluate_every, recipe.select_by, recipe.universe, recipe.loss) == (5, "rmse", "gt10", "balanced_mse")
    ours = (recipe.area_feature, recipe.unit_terms, recipe.pair_distance, recipe.num_components, recipe.dropout, recipe.weight_decay)
    assert not any((*ours, recipe.context_m, recipe.transfer_context_m, recipe.dual_encoder))
    assert recipe.split == "origin"
    assert recipe.controls is FlowTrainingConfig(node_feats_path=["t.csv"], region=["M1"]).controls
    trees = recipe.trees
    assert (trees.num_trees, trees.max_depth, trees.learning_rate, trees.objective) == (100, 2, 0.1, "l2")
    assert (trees.embeddings, trees.feature_share, trees.pair_share) == (True, 1.0, 1.0)
    assert not (trees.early_stopping or trees.unit_features or trees.potentials or trees.law or trees.transfer_trees)
    assert read_recipe("get_img_embedding", "--data_path", "p", "--output_path", "t.csv").band_statistics is False


def read_city_recipe(name, *flags):
    return parse_config(
        "train_img_encoder.py", EncoderConfig, ["--config", str(ROOT / "configs" / f"{name}.yaml"), "--data_path", "p", *flags]
    )


def test_cities_are_told_apart_as_published():
    recipe = read_city_recipe("dlslicer_resnet50")
    assert (recipe.objective, recipe.label_column, recipe.balanced) == ("classify", "city", True)
    assert (recipe.resnet, recipe.init, recipe.normalisation, recipe.view_size) == ("resnet50", "imagenet", "imagenet", 224)
    assert (recipe.lr, recipe.weight_decay, recipe.batch_size, recipe.total_epoch) == (1e-3, 0.0, 128, 100)
    assert (recipe.schedule, recipe.cos) == ([], False)


def test_indexes_are_learned_as_published():
    recipe = read_city_recipe("city_index", "--labels_path", "indexes.csv", "--target_column", "planet")
    assert (recipe.objective, recipe.target_column, recipe.target_scale, recipe.labels_key) == ("regress", ["planet"], 100.0, "city")
    assert (recipe.resnet, recipe.lr, recipe.batch_size, recipe.total_epoch, recipe.schedule) == ("resnet50", 1e-3, 128, 50, [])


@pytest.mark.parametrize("name", ["dlslicer_resnet50", "city_index"])
def test_tiles_of_cities_are_seen_whole_and_in_their_own_colours(name):
    views = read_city_recipe(name).views
    assert (views.crop_min_share, views.flip, views.turn) == (1.0, True, True)
    assert (
        views.shift
        == views.gain
        == views.blur_probability
        == views.band_drop_probability
        == views.rgb_jitter
        == views.grey_probability
        == 0
    )


def test_flags_override_the_recipe():
    assert read_recipe("train_img_encoder", "--data_path", "patches", "--resnet", "resnet18", "--views.turn").views.turn is True


def accepted_flags(command):
    """Flags of a stage, a command of the package, or a script in benchmarks/; None for anything else."""
    if command.startswith("benchmarks/"):
        return set(re.findall(r'add_argument\(\s*"(--\w+)"', (ROOT / command).read_text()))
    config_class = (STAGES | COMMANDS).get(command.removesuffix(".py"))
    return config_class and set(build_parser(command, config_class)._option_string_actions)


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "configs/paper/README.md",
        "runs/demo.sh",
        "docs/data.md",
        "docs/inputs.md",
        "docs/performance.md",
        "docs/earth_engine.md",
    ],
)
def test_every_flag_of_a_command_in_the_documents_exists(document):
    text = (ROOT / document).read_text().replace("\\\n", " ")
    found = 0
    for line in text.splitlines():
        command = re.search(r"(?:python|run|torchrun[^.]*) +(?:-m imagery2flow )?((?:benchmarks/|runs/)?\w+(?:\.py)?)", line)
        accepted = command and accepted_flags(command[1])
        if accepted:
            flags = re.findall(r"(?<!-)--\w[\w.]*", line[command.end() :])
            assert set(flags) <= accepted, f"{document}: {line.strip()}"
            found += len(flags)
    assert found


def modules_of_the_tree(text):
    """Modules that a tree of the package names, as folder/name."""
    modules, folder = set(), ""
    for line in text.split("\nimagery2flow/\n")[1].splitlines():
        if not line.startswith("  "):
            return modules
        heading = re.match(r"  (\w+/)", line)
        if heading:
            folder = heading[1]
        elif not line.startswith("    "):
            folder = ""
        modules |= {folder + name for name in re.findall(r"\w+\.py", line)}
    raise AssertionError("the tree has no end")


def test_the_tree_in_the_architecture_names_every_module_and_no_other():
    paths = [path.relative_to(ROOT / "imagery2flow") for path in (ROOT / "imagery2flow").rglob("*.py")]
    modules = {path.as_posix() for path in paths if path.name != "__init__.py"}
    assert modules_of_the_tree((ROOT / "docs/architecture.md").read_text()) == modules


def test_every_setting_of_the_recipe_is_a_field():
    for stage, config_class in STAGES.items():
        path = PAPER / f"{stage}.yaml"
        if path.is_file():
            fields = {field.name for field in dataclasses.fields(config_class)}
            assert set(re.findall(r"(?m)^(\w+):", path.read_text())) <= fields
