import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
from rasterio.features import rasterize
from scipy.stats import poisson

from imagery2flow.run.config import SyntheticConfig
from imagery2flow.run.errors import InputError
from imagery2flow.run.stage import Ledger
from imagery2flow.sources import synthetic
from imagery2flow.sources.synthetic import DECAY_M, GRAVITY, LAND_USES, best_prediction, generate_metro

IDS = {"h_geocode": str, "w_geocode": str, "geocode": str}
FILES = {"scene.tif", "land_use.tif", "units.gpkg", "flows.csv", "population.csv", "law.csv"}


def make(folder, **changes):
    """A small metro; returns its folder."""
    config = SyntheticConfig(**{"output_dir": str(folder), "num_units": 40, "size_px": 120, "seed": 5, **changes})
    generate_metro(config, Ledger("test", quiet=True))
    return folder / config.region


@pytest.fixture(scope="module")
def metro(tmp_path_factory):
    return make(tmp_path_factory.mktemp("metro"))


def table(metro, name):
    return pd.read_csv(metro / f"{name}.csv", dtype=IDS)


def test_the_same_seed_gives_the_same_city_and_another_seed_another(metro, tmp_path):
    again, other = make(tmp_path / "again"), make(tmp_path / "other", seed=6)
    assert {path.name for path in metro.iterdir()} == FILES
    for name in ("scene.tif", "land_use.tif", "flows.csv", "population.csv", "law.csv"):
        assert (again / name).read_bytes() == (metro / name).read_bytes()
        assert (other / name).read_bytes() != (metro / name).read_bytes()
    ids = [set(gpd.read_file(folder / "units.gpkg").GEOID20) for folder in (metro, again, other)]
    assert ids[0] == ids[1]
    assert not ids[0] & ids[2]  # ids tell metros apart


def test_the_scene_names_its_bands_and_lies_in_the_utm_zone(metro, tmp_path):
    with rasterio.open(metro / "scene.tif") as scene:
        assert (scene.descriptions, scene.crs.to_epsg(), scene.res) == (("red", "nir", "swir1"), 32618, (30.0, 30.0))
        assert scene.read().min() >= 1  # 0 is nodata, and the scene has none
    with rasterio.open(make(tmp_path, utm_zone=11) / "scene.tif") as scene:
        assert scene.crs.to_epsg() == 32611


def test_the_land_use_has_the_numbers_of_the_paper_and_explains_the_scene(metro):
    with rasterio.open(metro / "land_use.tif") as classes, rasterio.open(metro / "scene.tif") as scene:
        assert (classes.transform, classes.crs, classes.nodata, classes.dtypes) == (scene.transform, scene.crs, 0, ("uint8",))
        number, near_infrared = classes.read(1), scene.read(2)
    assert set(np.unique(number)) <= {0, 2, 3, 4, 5, 6}
    assert near_infrared[number == 0].max() < near_infrared[number == 4].min(), "water is darker than any park"


def test_units_tile_the_scene_and_their_ids_are_text_that_begins_with_0(metro):
    units = gpd.read_file(metro / "units.gpkg")
    assert len(units) == units.GEOID20.nunique() == 40
    assert units.GEOID20.str.fullmatch(r"0\d{10}").all()
    assert units.is_valid.all()
    assert units.area.sum() == pytest.approx((120 * 30.0) ** 2)
    assert units.union_all().area == pytest.approx(units.area.sum())  # no overlap


def test_the_law_by_hand(metro):
    """Residents and jobs pixel by pixel, distance pair by pair."""
    config = SyntheticConfig(num_units=40, size_px=120, seed=5)
    land = synthetic.make_landscape(config.size_px, np.random.default_rng(config.seed))
    units = gpd.read_file(metro / "units.gpkg").set_index("GEOID20")
    with rasterio.open(metro / "scene.tif") as scene:
        owner = rasterize(zip(units.geometry, range(len(units)), strict=True), scene.shape, transform=scene.transform, dtype="int16")
    residents, jobs = np.zeros(len(units)), np.zeros(len(units))
    for unit, use, density in zip(owner.flat, land.land_use.flat, land.density.flat, strict=True):
        residents[unit] += LAND_USES[use].residents_per_km2 * density * 0.03 * 0.03
        jobs[unit] += LAND_USES[use].jobs_per_km2 * density * 0.03 * 0.03
    law = table(metro, "law").set_index(["h_geocode", "w_geocode"])["mean"]
    ids = list(units.index)
    for o, d in [(0, 1), (1, 0), (3, 3), (7, 30), (39, 12)]:
        a, b = units.geometry.iloc[o], units.geometry.iloc[d]
        distance_m = a.centroid.distance(b.centroid) if o != d else 0.5 * (a.area / np.pi) ** 0.5
        expected = GRAVITY * residents[o] * jobs[d] * np.exp(-distance_m / DECAY_M)
        assert law[ids[o], ids[d]] == pytest.approx(expected, rel=1e-9)
    population = table(metro, "population").set_index("geocode").population
    assert population[ids].tolist() == residents.round().astype(int).tolist()


def test_flows_are_the_positive_ones_of_poisson_numbers_of_the_law(metro):
    law, flows = table(metro, "law"), table(metro, "flows")
    assert len(law) == 40 * 40
    assert flows["count"].min() >= 1
    pd.testing.assert_frame_equal(flows, law.loc[law["count"] > 0, ["h_geocode", "w_geocode", "count"]].reset_index(drop=True))
    standardised = (law["count"] - law["mean"]).sum() / np.sqrt(law["mean"].sum())
    assert abs(standardised) < 4
    dispersion = ((law["count"] - law["mean"]) ** 2)[law["mean"] > 1] / law["mean"][law["mean"] > 1]
    assert dispersion.mean() == pytest.approx(1, abs=0.3)


def test_the_image_tells_land_uses_apart():
    land = synthetic.make_landscape(240, np.random.default_rng(0))
    image = synthetic.draw_scene(land, np.random.default_rng(1)).astype(float)
    means = np.array([[image[band][land.land_use == use].mean() for band in range(3)] for use in range(len(LAND_USES))])
    assert np.bincount(land.land_use.reshape(-1), minlength=len(LAND_USES)).min() > 100
    for use, mean in enumerate(means):
        others = np.delete(means, use, axis=0)
        assert np.abs(others - mean).max(axis=1).min() > 200  # reflectance x 10000, in at least one band


@pytest.mark.parametrize("minimum", [0, 10])
@pytest.mark.parametrize("mean", [0.05, 1.0, 9.5, 40.0])
def test_the_best_prediction_is_the_mean_of_the_poisson_numbers_above_the_minimum(mean, minimum):
    numbers = np.arange(minimum + 1, 400)
    weights = poisson.pmf(numbers, mean)
    expected = (numbers * weights).sum() / weights.sum()
    assert best_prediction(np.array([mean]), minimum)[0] == pytest.approx(expected, rel=1e-6)


def test_the_best_prediction_stays_finite_for_pairs_that_the_law_all_but_excludes():
    assert best_prediction(np.array([0.0, 1e-200]), 10).tolist() == [11.0, 11.0]


def test_a_file_in_place_of_the_output_folder_is_refused(tmp_path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(InputError, match=r"--output_dir .*data/M1 cannot be a folder, because .*data is a file; name another"):
        generate_metro(SyntheticConfig(output_dir=str(tmp_path / "data"), region="M1"), Ledger("test", quiet=True))
