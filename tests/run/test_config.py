import dataclasses
import typing

import pytest
from docstring_parser import parse

from imagery2flow.run import acquire_config, config, flow_config
from imagery2flow.run.config import EmbeddingConfig, EncoderConfig, PreprocessingConfig, SyntheticConfig, ViewConfig, log_name
from imagery2flow.run.errors import InputError
from imagery2flow.run.flow_config import EvaluateConfig, FlowTestConfig, FlowTrainingConfig, RegionConfig, TreesConfig

VALUES = {**vars(config), **vars(flow_config), **vars(acquire_config)}.values()
# A Place is no group of settings, but what they say of one region.
CLASSES = [value for value in VALUES if isinstance(value, type) and dataclasses.is_dataclass(value) and value is not flow_config.Place]
SCENE = {"input_tif_path": ["scene.tif"], "shp_path": "units.gpkg"}
REGION = {"node_feats_path": ["n.csv"], "region": ["M1"]}
TWO = {"node_feats_path": ["n.csv"], "region": ["M1", "M2"]}
CLASSIFY = {"objective": "classify", "label_column": "city"}
REGRESS = {"objective": "regress", "target_column": ["overall"]}


@pytest.mark.parametrize("config_class", CLASSES)
def test_every_field_has_a_help_text_and_every_help_text_a_field(config_class):
    explained = {}
    for parent in reversed(config_class.__mro__):
        explained |= {parameter.arg_name: parameter.description for parameter in parse(parent.__doc__ or "").params}
    assert explained.keys() == {field.name for field in dataclasses.fields(config_class)}
    assert all(text and text.rstrip().endswith(".") for text in explained.values())


@pytest.mark.parametrize("config_class", CLASSES)
def test_settings_are_frozen_and_keyword_only(config_class):
    parameters = config_class.__dataclass_params__
    assert parameters.frozen
    assert all(field.kw_only for field in dataclasses.fields(config_class))
    assert typing.get_type_hints(config_class)


@pytest.mark.parametrize(
    ("config_class", "settings", "message"),
    [
        (PreprocessingConfig, {**SCENE, "size": 0}, "--size 0 must be a number of pixels above 0"),
        (PreprocessingConfig, {**SCENE, "stride": 0}, "--stride 0 must be"),
        (PreprocessingConfig, {**SCENE, "context_m": -1.0}, "--context_m -1.0 must be 0 or more metres"),
        (PreprocessingConfig, {**SCENE, "min_valid": 1.5}, "--min_valid 1.5 must be between 0 and 1"),
        (PreprocessingConfig, {**SCENE, "workers": -1}, "--workers -1 must be"),
        (PreprocessingConfig, {"input_tif_path": ["s.tif"]}, r"--shp_path \(none\) must be given for --mode zones"),
        (PreprocessingConfig, {**SCENE, "mode": "points", "context_m": 5.0}, "--context_m 5.0 must be left out unless --mode zones"),
        (EncoderConfig, {"data_path": "p", "lr": 0.0}, "--lr 0.0 must be above 0"),
        (EncoderConfig, {"data_path": "p", "batch_size": 1}, "--batch_size 1 must be 2 or more"),
        (EncoderConfig, {"data_path": "p", "temperature": 0.0}, "--temperature 0.0 must be above 0"),
        (EncoderConfig, {"data_path": "p", "total_epoch": 0}, "--total_epoch 0 must be above 0"),
        (EncoderConfig, {"data_path": "p", "weight_decay": -0.1}, "--weight_decay -0.1 must be 0 or more"),
        (EncoderConfig, {"data_path": "p", "view_size": 8}, "--view_size 8 must be 16 or more"),
        (EncoderConfig, {"data_path": "p", "view_size": 40, "resnet": "vit_l_16"}, "--view_size 40 must be a multiple of 16"),
        (EncoderConfig, {"data_path": "p", "objective": "classify"}, r"--label_column \(none\) must be given for --objective classify"),
        (EncoderConfig, {"data_path": "p", "objective": "regress"}, r"--target_column \(none\) must be given for --objective regress"),
        (
            EncoderConfig,
            {"data_path": "p", **CLASSIFY, "target_column": ["a"]},
            "--target_column a must be left out unless --objective regress",
        ),
        (
            EncoderConfig,
            {"data_path": "p", **CLASSIFY, "target_scale": 2.0},
            "--target_scale 2.0 must be left out unless --objective regress",
        ),
        (EncoderConfig, {"data_path": "p", "labels_path": "t.csv"}, "--labels_path t.csv must be left out unless --objective classify or"),
        (EncoderConfig, {"data_path": "p", **CLASSIFY, "folds": 1}, "--folds 1 must be 2 or more"),
        (EncoderConfig, {"data_path": "p", **CLASSIFY, "fold": 6}, "--fold 6 must be 1 to 5, the number of --folds"),
        (EncoderConfig, {"data_path": "p", **REGRESS, "target_scale": 0.0}, "--target_scale 0.0 must be above 0"),
        (EncoderConfig, {"data_path": "p", "objective": "regress", "target_column": ["a", "a"]}, "--target_column a a must be columns of"),
        (EncoderConfig, {"data_path": "p", "init": ""}, r"--init \(none\) must be scratch, imagenet, or the path"),
        (ViewConfig, {"crop_min_share": 0.0}, "--views.crop_min_share 0.0 must be above 0 and at most 1"),
        (ViewConfig, {"blur_probability": 1.1}, "--views.blur_probability 1.1 must be between 0 and 1"),
        (ViewConfig, {"gain": -0.1}, "--views.gain -0.1 must be between 0 and 1"),
        (EmbeddingConfig, {"data_path": "p", "output_path": "o.csv", "batch_size": 0}, "--batch_size 0 must be above 0"),
        (FlowTrainingConfig, {**REGION, "patience": 0}, "--patience 0 must be above 0"),
        (FlowTrainingConfig, {**REGION, "num_hidden_layers": -1}, "--num_hidden_layers -1 must be 0 or more"),
        (FlowTrainingConfig, {**REGION, "dropout": 1.0}, "--dropout 1.0 must be 0 or more and below 1"),
        (FlowTrainingConfig, {**REGION, "zeros_per_flow": -1.0}, "--zeros_per_flow -1.0 must be 0 or more"),
        (FlowTrainingConfig, {**REGION, "context_m": [500.0, 0.0]}, r"--context_m \[500.0, 0.0\] must be above 0"),
        (FlowTrainingConfig, {**REGION, "loss": "balanced_mse", "universe": "full"}, "--loss balanced_mse .* use --loss poisson or multi"),
        (FlowTrainingConfig, {**REGION, "region": ["M1", "M1"]}, "--region M1 M1 names a region twice"),
        (FlowTrainingConfig, {**TWO, "units_path": ["u.gpkg"]}, r"--units_path names 1 files for 2 regions \(M1 M2\); give one for each"),
        (FlowTrainingConfig, {**REGION, "flows_path": ["a", "b"]}, r"--flows_path names 2 files for 1 regions \(M1\)"),
        (RegionConfig, {**TWO, "node_feats_path": ["a", "b", "c"]}, "--node_feats_path names 3 files for 2 regions"),
        (TreesConfig, {"num_leaves": 1}, "--trees.num_leaves 1 must be 2 to 131072"),
        (TreesConfig, {"feature_share": 0.0}, "--trees.feature_share 0.0 must be above 0 and at most 1"),
        (TreesConfig, {"pair_share": 1.5}, "--trees.pair_share 1.5 must be above 0 and at most 1"),
        (FlowTestConfig, TWO, "--region M1 M2 names 2 regions; test one at a time"),
        (FlowTestConfig, {**REGION, "top_k": -1}, "--top_k -1 must be 0 or more"),
        (FlowTestConfig, {**REGION, "min_flow": -0.5}, "--min_flow -0.5 must be 0 or more"),
        (EvaluateConfig, {**REGION, "seeds": 0}, "--seeds 0 must be above 0"),
        (EvaluateConfig, {**REGION, "splits": ["town"]}, "--splits town must be among origin, unit, block, city, pair"),
        (EvaluateConfig, {**REGION, "universes": ["all"]}, "--universes all must be among gt10, positive, full"),
        (EvaluateConfig, {**REGION, "baselines": ["magic"]}, "--baselines magic must be among gravity, radiation, deep_gravity, gmel"),
        (EvaluateConfig, {**TWO, "splits": ["city"], "test_region": ["M3"]}, "--test_region M3 must be among M1, M2"),
        (EvaluateConfig, {**TWO, "splits": ["city"]}, "--splits city and --test_region go together"),
        (EvaluateConfig, {**TWO, "test_region": ["M2"]}, "--splits city and --test_region go together"),
        (EncoderConfig, {"data_path": "p", "seed": -1}, "--seed -1 must be 0 or more"),
        (FlowTrainingConfig, {**REGION, "seed": -1}, "--seed -1 must be 0 or more"),
        (SyntheticConfig, {"seed": -1}, "--seed -1 must be 0 or more"),
        (SyntheticConfig, {"utm_zone": 61}, "--utm_zone 61 must be 1 to 60"),
        (SyntheticConfig, {"num_units": 9}, "--num_units 9 must be 10 or more"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_value_and_rule(config_class, settings, message):
    with pytest.raises(InputError, match=f"^{message}"):
        config_class(**settings)


def test_the_grid_needs_no_units():
    assert PreprocessingConfig(input_tif_path=["s.tif"], mode="grid").shp_path is None


@pytest.mark.parametrize(
    ("log", "name"),
    [("M1_s2", "M1_s2"), ("log/M1_s2.log", "M1_s2"), ("M1_s2-log.txt", "M1_s2"), ("a/b.v2.txt", "b.v2"), ("catalog", "catalog")],
)
def test_the_name_of_a_run_comes_from_the_published_log_flag(log, name):
    assert log_name(log) == name


@pytest.mark.parametrize("log", ["", ".log", "-log.txt"])
def test_a_run_needs_a_name(log):
    with pytest.raises(InputError, match=r"^--log .*must be a name"):
        log_name(log)


def test_the_checkpoint_has_the_published_name():
    assert EncoderConfig(data_path="p", model_path="m", log="log/M1_l8.log", total_epoch=7).checkpoint == "m/M1_l8_img_7.pth"
    assert FlowTrainingConfig(**REGION, output_dir="out", log="M1_l8-log.txt").model_dir == "out/M1_l8"


def test_each_region_has_its_files_in_the_order_given():
    paths = {"units_path": ["u1", "u2"], "flows_path": ["f1", "f2"], "distance_path": ["d1", "d2"]}
    first, second = RegionConfig(node_feats_path=["a.csv", "b.csv"], region=["M1", "M2"], **paths).places()
    assert first == flow_config.Place("M1", "a.csv", "u1", "f1", "d1")
    assert second == flow_config.Place("M2", "b.csv", "u2", "f2", "d2")


def test_one_table_of_features_may_serve_all_regions_and_other_files_are_looked_for():
    config = RegionConfig(**TWO)
    assert config.places() == [flow_config.Place(name, "n.csv", None, None, None) for name in ("M1", "M2")]
    assert (config.name, RegionConfig(**REGION).name) == ("M1+M2", "M1")


def test_more_leaves_than_lightgbm_allows_are_refused():
    assert TreesConfig(num_leaves=131072).num_leaves == 131072
    for leaves in (1, 131073):
        with pytest.raises(InputError, match=f"--trees.num_leaves {leaves} must be 2 to 131072"):
            TreesConfig(num_leaves=leaves)
