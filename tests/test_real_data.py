"""A smoke test on real imagery, tracts and flows, where they are at hand (IMAGERY2FLOW_DATA, or ../shared/data beside the project)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely

from imagery2flow.imagery.land_cover import count_land_cover
from imagery2flow.imagery.units import read_units
from imagery2flow.run.stage import Ledger
from tests.spoiling import ROOT
from tests.test_end_to_end import run_here

DATA = Path(os.environ.get("IMAGERY2FLOW_DATA", ROOT.parent / "shared" / "data")).resolve()
IDS = {"geocode": str, "h_geocode": str, "w_geocode": str}

needs = pytest.mark.skipif(
    not (DATA / "staten_island").is_dir(), reason=f"no real sample in {DATA}; set IMAGERY2FLOW_DATA to its folder to run this test"
)


def flags_of_flows(city: str) -> str:
    return f"--region {city} --units_path {DATA}/{city}/units.gpkg --flows_path {DATA}/{city}/flows.csv --year 2015 --device cpu"


@needs
def test_staten_island_goes_through_all_five_stages(tmp_path):
    source = DATA / "staten_island"
    said = run_here(
        tmp_path,
        "img_preprocessing.py",
        f"--input_tif_path {source}/scene_median_toa.tif --shp_path {source}/units.gpkg --region staten_island --year 2010 --tag l5",
    ).stderr
    assert "in: 110 units; out: 110 patches; left out: nothing" in said
    patches = tmp_path / "data/staten_island/l5_2010"
    manifest = pd.read_csv(patches / "manifest.csv", dtype=IDS)
    assert sorted(manifest.geocode) == sorted(gpd.read_file(source / "units.gpkg").GEOID)
    run_here(
        tmp_path,
        "train_img_encoder.py",
        f"--data_path {patches} --bands red nir thermal --total_epoch 2 --batch_size 64 --view_size 32 --log si --device cpu",
    )
    history = pd.read_csv(tmp_path / "ckpt/si_img_2_metrics.csv")
    assert (history.loss < history.chance).all()
    run_here(tmp_path, "get_img_embedding.py", f"--data_path {patches} --log si --output_path si.parquet --device cpu")
    assert pd.read_parquet(tmp_path / "si.parquet").index.tolist() == sorted(manifest.geocode)
    features = f"--node_feats_path si.parquet --log si {flags_of_flows('staten_island')}"
    population = f"--population_path {source}/features_acs_osm.csv --population_column demo_00"
    run_here(tmp_path, "train_ODPrediction.py", f"{features} {population} --max_epochs 20 --embedding_size 32")
    scores = json.loads((tmp_path / "outputs/si/metrics.json").read_text())
    assert scores["lightgbm"]["positive"]["num_pairs"] > 1000
    # What two epochs teach is worth little, but red, near infrared and thermal brightness alone beat a constant.
    assert max(scores[name]["gt10"]["cpc"] for name in ("bilinear", "lightgbm")) > 0.6
    said = run_here(tmp_path, "test_ODPrediction.py", f"{features} --all_pairs").stderr
    table = pd.read_csv(tmp_path / "outputs/si/staten_island_2015/predictions_lightgbm.csv", dtype=IDS)
    assert len(table) == 110 * 110
    assert table["count"].notna().sum() == 8172
    assert "belong to units that the model was trained or chosen on" in said


@needs
def test_san_franciscos_ids_keep_their_leading_zero_through_stage_4(tmp_path):
    source = DATA / "san_francisco"
    said = run_here(
        tmp_path,
        "train_ODPrediction.py",
        f"--node_feats_path {source}/features_acs_osm.csv --log sf {flags_of_flows('san_francisco')} --max_epochs 10 --embedding_size 32 --controls false",
    ).stderr
    assert "in: 196 units, 196 embeddings, 25,724 flows" in said
    table = pd.read_csv(tmp_path / "outputs/sf/predictions_bilinear.csv", dtype=IDS)
    assert len(table) == 25_724
    assert table.h_geocode.str.fullmatch(r"06075\d{6}").all()
    scores = json.loads((tmp_path / "outputs/sf/metrics.json").read_text())
    assert scores["lightgbm"]["gt10"]["cpc"] > scores["constant"]["gt10"]["cpc"]


@needs
def test_raleighs_tracts_on_a_real_map_equal_a_loop_over_pixels():
    path, units = DATA / "raleigh" / "landcover_1996.tif", read_units(DATA / "raleigh" / "units.gpkg", None, Ledger("test", quiet=True))
    table = count_land_cover(units, [path], Ledger("test", quiet=True)).set_index("geocode")
    assert list(table) == [f"class_{code}" for code in range(1, 8)] + ["nodata_m2"] and len(table) == 26
    with rasterio.open(path) as raster:
        codes, grid = raster.read(1), raster.transform
    columns, rows = np.meshgrid(np.arange(-50, codes.shape[1] + 50), np.arange(-120, codes.shape[0] + 120))
    x, y = grid * (columns.ravel() + 0.5, rows.ravel() + 0.5)
    there = np.pad(codes, ((120, 120), (50, 50))).ravel()  # 0 beyond the map
    for geocode, shape in units.geometry.items():
        numbers = np.bincount(there[shapely.contains_xy(shape, x, y)], minlength=8)
        np.testing.assert_allclose(table.loc[geocode], numbers[[*range(1, 8), 0]] * 28.5**2, atol=0.01)
        assert table.loc[geocode].sum() == pytest.approx(shape.area, rel=0.01)
