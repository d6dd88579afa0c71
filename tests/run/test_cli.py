import subprocess
import sys
from pathlib import Path

import pytest

from imagery2flow.run.cli import parse_config
from imagery2flow.run.config import EncoderConfig, PreprocessingConfig, ViewConfig
from imagery2flow.run.flow_config import EvaluateConfig, FlowTestConfig, FlowTrainingConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture
def parse(tmp_path):
    """Parses flags, and YAML text through --config, into the settings of stage 2."""

    def call(*flags: str, yaml: str | None = None, config_class=EncoderConfig):
        argv = [*flags]
        if yaml is not None:
            (tmp_path / "settings.yaml").write_text(yaml)
            argv = ["--config", str(tmp_path / "settings.yaml"), *argv]
        return parse_config("stage.py", config_class, argv)

    return call


@pytest.fixture
def refuse(parse, capsys):
    """Returns the one line on standard error with which flags are refused."""

    def call(*flags: str, yaml: str | None = None, config_class=EncoderConfig) -> str:
        with pytest.raises(SystemExit) as ended:
            parse(*flags, yaml=yaml, config_class=config_class)
        printed = capsys.readouterr()
        assert (ended.value.code, printed.out) == (2, "")
        assert printed.err.startswith("stage.py: error: ")
        assert printed.err.count("\n") == 1
        assert printed.err.endswith("; see stage.py --help\n")
        return printed.err

    return call


def test_without_flags_the_defaults_stand(parse):
    assert parse("--data_path", "p") == EncoderConfig(data_path="p")


def test_the_published_flags_of_stage_2(parse):
    flags = "--data_path p --bands 3 --lr 0.01 --batch_size 64 --projection_dim 32 --resnet resnet50 --temperature 0.1 --total_epoch 7"
    found = parse(*flags.split(), "--model_path", "m", "--schedule", "3", "4", "--cos", "--log", "run")
    assert found == EncoderConfig(
        data_path="p",
        bands=["3"],
        lr=0.01,
        batch_size=64,
        projection_dim=32,
        resnet="resnet50",
        temperature=0.1,
        total_epoch=7,
        model_path="m",
        schedule=[3, 4],
        cos=True,
        log="run",
    )


@pytest.mark.parametrize(
    ("flags", "cos"), [(["--cos"], True), (["--cos", "true"], True), (["--cos=True"], True), (["--cos", "false"], False), ([], False)]
)
def test_a_switch_stands_alone_or_with_a_value(parse, flags, cos):
    assert parse("--data_path", "p", *flags).cos is cos


def test_a_flag_of_several_values_may_be_empty(parse):
    assert parse("--data_path", "p", "--schedule").schedule == []
    assert parse("--input_tif_path", "a", "b", "--shp_path", "u", config_class=PreprocessingConfig).input_tif_path == ["a", "b"]


def test_a_region_and_its_files_may_be_one_or_several(parse):
    flags = ["--node_feats_path", "a.csv", "--region", "M1"]
    one = parse(*flags, config_class=FlowTrainingConfig)
    assert (one.region, one.node_feats_path, one.units_path, one.context_m) == (["M1"], ["a.csv"], [], [500.0, 1500.0, 4000.0])
    several = parse(*flags, "01", "--flows_path", "f", "7", "--context_m", "300", "1e3", config_class=FlowTrainingConfig)
    assert (several.region, several.flows_path, several.context_m) == (["M1", "01"], ["f", "7"], [300.0, 1000.0])
    assert parse(*flags, "--context_m", config_class=FlowTrainingConfig).context_m == []
    assert parse(*flags, yaml="region: M3\nunits_path: u.gpkg\n", config_class=FlowTestConfig).region == ["M1"]  # flags override


def test_one_region_in_yaml_is_a_list_of_one(parse):
    found = parse(yaml="region: 7\nnode_feats_path: n.csv\nunits_path: u.gpkg\ncontext_m: 5\n", config_class=FlowTrainingConfig)
    assert (found.region, found.node_feats_path, found.units_path, found.context_m) == (["7"], ["n.csv"], ["u.gpkg"], [5.0])


def test_a_region_must_be_named(refuse):
    assert "region" in refuse("--node_feats_path", "a.csv", config_class=FlowTrainingConfig)
    assert "--region" in refuse("--node_feats_path", "a.csv", "--region", config_class=FlowTrainingConfig)


def test_lists_of_choices_are_checked(parse, refuse):
    flags = ["--node_feats_path", "a.csv", "--region", "M1"]
    assert parse(*flags, "--universes", "gt10", "full", config_class=EvaluateConfig).universes == ["gt10", "full"]
    assert "some" in refuse(*flags, "--universes", "some", config_class=EvaluateConfig)
    assert "town" in refuse(*flags, "--splits", "town", config_class=EvaluateConfig)


def test_flags_of_nested_settings(parse):
    views = parse("--data_path", "p", "--views.gain", "0.3", "--views.turn", "false").views
    assert views == ViewConfig(gain=0.3, turn=False)


def test_flags_override_yaml_and_yaml_overrides_defaults(parse):
    yaml = "data_path: y\nlr: 1e-4\nschedule: [5, 6]\ncos: true\nviews:\n  gain: 0.2\n  shift: 0.3\n"
    found = parse("--lr", "0.5", "--views.gain", "0.4", yaml=yaml)
    assert found == EncoderConfig(data_path="y", lr=0.5, schedule=[5, 6], cos=True, views=ViewConfig(gain=0.4, shift=0.3))
    assert parse(yaml=yaml).lr == 1e-4


def test_names_and_ids_in_flags_stay_text(parse):
    flags = "--input_tif_path a --shp_path 12 --region 01 --id_column 007 --tag 1e5 --bands 1 nir"
    found = parse(*flags.split(), config_class=PreprocessingConfig)
    assert (found.shp_path, found.region, found.id_column, found.tag, found.bands) == ("12", "01", "007", "1e5", ["1", "nir"])


def test_one_value_in_yaml_is_a_list_of_one(parse):
    found = parse("--data_path", "p", yaml="schedule: 5\nbands: red\n")
    assert (found.schedule, found.bands) == ([5], ["red"])


def test_the_published_count_of_bands_may_be_a_number_in_yaml(parse):
    assert parse("--data_path", "p", yaml="bands: [3]\n").bands == ["3"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--nonsense", "1"], "--nonsense"),
        (["--total", "3"], "--total"),  # an abbreviation: a later flag could make it ambiguous
        (["stray"], "stray"),
        (["--lr", "fast"], "lr"),
        (["--batch_size", "1.5"], "batch_size"),
        (["--batch_size", "1"], "--batch_size 1 must be 2 or more"),
        (["--schedule", "3", "x"], "schedule"),
        (["--cos", "maybe"], "cos"),
        (["--resnet", "resnet9"], "resnet9"),
        (["--views.gain", "3"], "--views.gain 3.0 must be between 0 and 1"),
        (["--views.gian", "0.3"], "--views.gian"),
        (["--lr", "nan"], "nan"),
    ],
)
def test_a_wrong_flag_is_refused_in_one_line(refuse, flags, said):
    assert said in refuse("--data_path", "p", *flags)


def test_a_missing_required_flag_is_named(refuse):
    assert "data_path" in refuse()


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("schedul: [1]\n", "schedul"),
        ("views:\n  gian: 0.2\n", "gian"),
        ("lr: fast\n", "lr"),
        ("lr: [\n", "config"),
        ("- a\n", "config"),
        ("views: 3\n", "views"),
    ],
)
def test_a_wrong_yaml_file_is_refused_in_one_line(refuse, yaml, said):
    assert said in refuse("--data_path", "p", yaml=yaml)


def test_a_yaml_file_that_is_not_there_is_named(refuse):
    assert "/nowhere/settings.yaml" in refuse("--data_path", "p", "--config", "/nowhere/settings.yaml")


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_config("stage.py", EncoderConfig, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    assert "--total_epoch TOTAL_EPOCH Passes over the patches." in text
    assert "--views.flip [{true,false}] Flip left-right with probability 1/2." in text


def test_a_script_refuses_without_a_traceback():
    command = [sys.executable, str(ROOT / "img_preprocessing.py"), "--input_tif_path", "none.tif", "--nonsense"]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 2
    assert answer.stderr.startswith("img_preprocessing.py: error: ")
    assert answer.stderr.count("\n") == 1


def test_a_missing_scene_is_one_line_and_status_2(tmp_path):
    command = [sys.executable, str(ROOT / "img_preprocessing.py"), "--input_tif_path", "none.tif", "--mode", "grid"]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stderr == "img_preprocessing: error: scene none.tif does not exist; check the path given to --input_tif_path\n"
    assert list(tmp_path.iterdir()) == []


def test_a_value_in_place_of_a_group_is_refused_under_the_groups_name(refuse):
    assert "trees 5 must be a group of settings" in refuse(
        "--node_feats_path", "t.csv", "--region", "M1", yaml="trees: 5\n", config_class=FlowTrainingConfig
    )


def test_the_settings_file_is_named_in_either_form_of_the_flag(refuse, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text("schedul: [1]\n")
    for flags in (["--config", str(path)], [f"--config={path}"]):
        assert f"error: --config {path}: " in refuse("--data_path", "p", *flags)


def test_a_wrong_item_of_a_list_is_named_like_any_wrong_value(refuse):
    said = refuse("--node_feats_path", "a.csv", "--region", "M2", "--decoders", "bilinear", "tree", config_class=FlowTestConfig)
    assert "--decoders tree must be one of 'bilinear', 'lightgbm'" in said
    said = refuse("--node_feats_path", "a.csv", "--region", "M2", "--context_m", "5", "x", config_class=FlowTrainingConfig)
    assert "--context_m x must be a number" in said
