import pytest

from imagery2flow.run.cities_config import CitiesConfig
from imagery2flow.run.cli import parse_config
from imagery2flow.run.errors import InputError

PATHS = {"data_path": ["tiles"], "predictions_path": ["p.csv"], "output_dir": "out"}


def test_one_or_several_paths_follow_a_flag():
    argv = ["--data_path", "a", "--predictions_path", "b", "c", "--output_dir", "out"]
    config = parse_config("cities", CitiesConfig, argv)
    assert (config.data_path, config.predictions_path, config.tiles_per_city) == (["a"], ["b", "c"], 500)


@pytest.mark.parametrize("setting", [{"tiles_per_city": -1}, {"seed": -1}, {"top_k": 0}, {"calibration_bins": 0}, {"data_path": []}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(InputError, match=next(iter(setting))):
        CitiesConfig(**(PATHS | setting))
