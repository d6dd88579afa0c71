import json

import numpy as np
import pandas as pd
import pytest
import rasterio

from imagery2flow.figures.study import Pictures, overview, read_study, read_vectors
from imagery2flow.flows.metrics import cpc
from imagery2flow.run.errors import InputError, MissingInputError, TableError
from imagery2flow.run.stage import Ledger
from tests.figures.runs import squares

SCORE = {"cpc": 0.5, "rmse": 2.0, "mae": 1.0, "num_pairs": 2}
FLOWS = pd.DataFrame({"h_geocode": ["00", "00", "01", "02"], "w_geocode": ["00", "01", "02", "00"], "count": [90.0, 4.0, 20.0, 30.0]})


def write_place(root, folder, region, year=2020, stage="test_ODPrediction", universe="gt10", flows=FLOWS):
    """What stage 4 or 5 leaves of a region: the trees predict twice the flow, the network half; the last two flows are held out."""
    folder.mkdir(parents=True, exist_ok=True)
    home = root / "data" / region
    home.mkdir(parents=True, exist_ok=True)
    squares(["00", "01", "02"]).to_file(home / "units.gpkg")
    held = {"split": ["train", "test", "test", "test"]} if stage == "train_ODPrediction" else {"scored": [False, True, True, True]}
    for decoder, factor in (("lightgbm", 2.0), ("bilinear", 0.5)):
        flows.assign(prediction=flows["count"] * factor, **held).to_csv(folder / f"predictions_{decoder}.csv", index=False)
    config = {"region": [region], "year": year, "log": folder.name, "data_root": str(root / "data"), "split": "origin"}
    config |= {"universe": universe, "node_feats_path": [str(home / "vectors.csv")]}
    (folder / "run.json").write_text(json.dumps({"stage": stage, "config": config, "ledger": {}, "inputs_sha256": {}}))
    (folder / "metrics.json").write_text(json.dumps({"lightgbm": {"gt10": SCORE}, "constant": {"gt10": SCORE}}))


@pytest.fixture
def model(tmp_path):
    """A model of M1 that was tested in M2, and in M1 ten years before."""
    folder = tmp_path / "outputs/M1_s2"
    write_place(tmp_path, folder, "M1", stage="train_ODPrediction")
    write_place(tmp_path, folder / "M2_2020", "M2")
    write_place(tmp_path, folder / "M1_2010", "M1", year=2010)
    return folder


@pytest.fixture
def ledger():
    return Ledger("test", quiet=True)


def test_the_models_own_region_is_first_and_other_years_stand_apart(model, ledger):
    study = read_study([model], ledger)
    assert list(study) == ["M1", "M1 2010", "M2"]
    assert study["M2"].units.index.tolist() == ["00", "01", "02"]
    assert {name: region.folder.name for name, region in study.items()} == {"M1": "M1", "M1 2010": "M1", "M2": "M2"}


def test_predictions_are_of_held_out_flows_of_the_models_universe(model, ledger):
    study = read_study([str(model)], ledger)
    for region in study.values():
        assert region.flows.to_dict("list") == FLOWS[FLOWS["count"] > 10].to_dict("list"), "4 commuters are not above 10"
        assert sorted(region.predictions) == ["LightGBM", "bilinear"]
        table = region.predictions["LightGBM"]
        assert list(zip(table.h_geocode, table.w_geocode, table["count"], table.prediction, strict=True)) == [
            ("01", "02", 20.0, 40.0),
            ("02", "00", 30.0, 60.0),
        ]


def test_the_overview_counts_what_the_figures_show(model, ledger):
    table = overview(read_study([model], ledger))
    assert table.to_dict("index")["M2"] == {"units": 3, "flows": 3, "held-out flows, bilinear": 2, "held-out flows, LightGBM": 2}


def test_origins_are_scored_by_their_own_flows(model, ledger):
    origins = read_study([model], ledger)["M1"].origins()["bilinear"]
    assert origins.geocode.tolist() == ["01", "02"]
    assert origins.cpc.tolist() == pytest.approx([cpc(np.array([20.0]), np.array([10.0])), 2 * 15 / 45])
    distance_m = read_study([model], ledger)["M1"].pairs()["bilinear"][1].distance_m
    assert distance_m == pytest.approx([1000, 2000], rel=5e-3), "neighbouring squares of 1 km, and one between"


def test_several_models_stand_beside_each_other_under_their_names(model, tmp_path, ledger):
    other = model.with_name("M1_l8")
    write_place(tmp_path, other, "M1", stage="train_ODPrediction")
    study = read_study([model, other], ledger)
    assert set(study["M1"].predictions) == {"LightGBM, M1_s2", "bilinear, M1_s2", "LightGBM, M1_l8", "bilinear, M1_l8"}
    assert set(study["M2"].predictions) == {"LightGBM, M1_s2", "bilinear, M1_s2"}
    assert set(study["M1"].scores) == {"M1_s2", "M1_l8"}


def test_models_of_different_universes_are_refused(model, tmp_path, ledger):
    other = model.with_name("M1_positive")
    write_place(tmp_path, other, "M1", stage="train_ODPrediction", universe="positive")
    with pytest.raises(InputError, match="trained on gt10, positive; show models of one universe"):
        read_study([model, other], ledger)
    with pytest.raises(InputError, match="no model is named"):
        read_study([], ledger)


def test_joined_folds_replace_the_single_split_of_the_own_region(model, ledger):
    folder = model.with_name("M1_s2_folds")
    folder.mkdir()
    FLOWS.assign(prediction=7.0, fold=0).to_csv(folder / "predictions_lightgbm.csv", index=False)
    study = read_study([model], ledger)
    assert study["M1"].predictions["LightGBM"].prediction.tolist() == [7.0] * 3
    assert len(study["M1"].predictions["bilinear"]) == 2, "those folds were not joined"
    assert study["M2"].predictions["LightGBM"].prediction.tolist() == [40.0, 60.0]


def test_tables_of_a_region_keep_ids_as_text_and_may_be_absent(model, tmp_path, ledger):
    region = read_study([model], ledger)["M1"]
    assert region.population() is None
    (tmp_path / "data/M1/population.csv").write_text("geocode,population\n01,5\n00,7\n")
    assert region.population().to_dict() == {"01": 5.0, "00": 7.0}
    (tmp_path / "data/M1/land_use.csv").write_text("GEOID,class_2\n01,5\n")
    with pytest.raises(TableError, match=r"land_use.csv has no column geocode; name the column of the ids so"):
        region.table("land_use.csv")


def test_vectors_are_the_numbered_columns(tmp_path):
    path = tmp_path / "vectors.csv"
    path.write_text("geocode,0,1,red_mean\n01,1,2,9\n00,3,4,9\n")
    assert read_vectors(path).to_dict("index") == {"01": {"0": 1, "1": 2}, "00": {"0": 3, "1": 4}}
    path.write_text("geocode,red_mean\n01,9\n")
    with pytest.raises(TableError, match=r"vectors.csv hold no numbered columns"):
        read_vectors(path)


def test_pictures_are_the_patches_of_the_vectors_and_blank_where_there_is_nothing(tmp_path, ledger):
    patches = tmp_path / "s2_2020"
    patches.mkdir()
    for geocode, value in (("00", 5), ("01", 6)):
        values = np.full((2, 3, 4), value, np.uint8)
        values[:, 0, 0] = 0
        profile = {"driver": "GTiff", "count": 2, "height": 3, "width": 4, "dtype": "uint8", "nodata": 0}
        with rasterio.open(patches / f"s2_2020_{geocode}.tif", "w", **profile) as patch:
            patch.write(values)
    features = tmp_path / "vectors.csv"
    with pytest.raises(MissingInputError, match=r"vectors.csv.run.json, which names the patches, does not exist"):
        Pictures(features, ledger)
    (tmp_path / "vectors.csv.run.json").write_text(json.dumps({"config": {"data_path": str(patches)}}))
    pictures = Pictures(features, ledger)
    assert pictures.geocodes == ["00", "01"]
    assert len(pictures) == 2
    assert pictures[1].shape == (2, 3, 4)
    assert np.isnan(pictures[1][:, 0, 0]).all()
    assert (pictures[1][:, 1:] == 6).all()
