"""Generated cities: each looks like itself at every site, and one index of theirs can be seen."""

import numpy as np
import pandas as pd
import pytest
import rasterio

from imagery2flow.run.stage import Ledger
from imagery2flow.run.synthetic_cities_config import SyntheticCitiesConfig
from imagery2flow.sources.synthetic_cities import draw_image, draw_looks, generate_cities


def generate(folder, **settings) -> Ledger:
    ledger = Ledger("test", quiet=True)
    generate_cities(SyntheticCitiesConfig(output_dir=str(folder), **{"num_cities": 3, "num_sites": 2, "size_px": 64, **settings}), ledger)
    return ledger


def test_a_tree_of_cities_is_written_with_a_table_of_indexes(tmp_path):
    ledger = generate(tmp_path, images_per_site=2)
    assert ledger.went_out == {"cities": 3, "images": 12}
    paths = sorted(str(path.relative_to(tmp_path / "raw")) for path in (tmp_path / "raw").rglob("*.tif"))
    assert len(paths) == 12
    assert paths[0] == "City 01 (C01)/site1/image1.tif"
    table = pd.read_csv(tmp_path / "indexes.csv")
    assert table.city.tolist() == ["C01", "C02", "C03"]
    assert sorted(table["random"]) == [0, 50, 100]
    with rasterio.open(tmp_path / "raw" / paths[0]) as image:
        assert (image.count, image.dtypes[0], image.width, image.crs.to_epsg()) == (3, "uint8", 64, 32618)
        assert image.descriptions == ("red", "green", "blue")
        assert image.read().min() > 0


def test_equal_seeds_give_equal_cities_and_others_do_not(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        generate(tmp_path / name, seed=seed)
    one, two, other = ((tmp_path / name / "raw/City 02 (C02)/site2/image1.tif").read_bytes() for name in "abc")
    assert one == two != other


def test_greenness_is_what_an_image_shows():
    random = np.random.default_rng(0)
    for look in draw_looks(5, random):
        image = draw_image(400, look, look.planted, random).astype(float)
        green = image[1] > 1.3 * image[0]  # trees; streets and roofs are as red as green, or redder
        streets = 1 - (1 - 2.5 / look.spacing_px) ** 2
        assert green.mean() == pytest.approx(look.planted * (1 - streets), abs=0.06)


def test_no_two_cities_share_a_street_grid_or_a_roof():
    looks = draw_looks(8, np.random.default_rng(3))
    for values in ([look.spacing_px for look in looks], [look.angle for look in looks], [look.roof[0] for look in looks]):
        assert np.diff(np.sort(values)).min() > 0.01 * (max(values) - min(values))
