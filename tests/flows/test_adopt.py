"""A generated folder in the published layout, brought to where the stages look, and read by them."""

import json
import pickle
from pathlib import Path

import lightgbm
import numpy as np
import pandas as pd
import pytest
import torch

import test_ODPrediction
from imagery2flow.__main__ import main
from imagery2flow.flows.region import load_region
from imagery2flow.flows.splits import read_split
from imagery2flow.flows.table import read_flows
from imagery2flow.imagery.units import read_units
from imagery2flow.run.stage import Ledger
from tests.flows.conftest import NUM_UNITS, draw_features, draw_flows, grid_units, training_config
from tests.flows.test_published import NUM_COLUMNS, draw_weights

IDS = tuple(f"0603700{number:04d}" for number in range(NUM_UNITS))  # of California: numbers lose the leading zero
BEYOND = IDS[-1]  # a tract that is no node
CAR = 1.4


def quiet():
    return Ledger("test", quiet=True)


def as_numbers(table, *columns):
    return table.astype(dict.fromkeys(columns, "int64"))


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The folder; one of the tables holds ids as numbers."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "old"
    for folder in ("Nid/M2", "CensusTract2020", "LODES", "M2_LA/CensusTracts"):
        (root / folder).mkdir(parents=True)
    units = grid_units().assign(GEOID20=IDS)
    units.to_file(root / "M2_LA/CensusTracts/tl_2020_tract20_M2.shp")
    nodes = IDS[:-1]
    mapping = pd.DataFrame({"geocode": nodes, "node_id": range(len(nodes))})
    as_numbers(mapping, "geocode").to_csv(root / "CensusTract2020/nodeid_geocode_mapping_M2.csv", index=False)
    centre = np.array([(point.x, point.y) for point in units.centroid])[:-1]
    straight = np.linalg.norm(centre[:, None] - centre, axis=2)
    metres = np.where((straight > 0) & (straight < 1_100), CAR * straight, 0.0)
    metres[0, 1] = np.nan
    pd.DataFrame(metres, index=nodes, columns=nodes).to_csv(root / "CensusTract2020/adjacency_matrix_bycar_m_M2.csv")
    new_id = dict(zip(draw_features().index, IDS, strict=True))
    flows = draw_flows(draw_features()).query("count > 10")
    flows = flows.assign(h_geocode=flows.h_geocode.map(new_id), w_geocode=flows.w_geocode.map(new_id))
    flows = flows[(flows.h_geocode != BEYOND) & (flows.w_geocode != BEYOND)].assign(dis_m=9_999.0)
    flows[["w_geocode", "h_geocode", "count", "dis_m"]].to_csv(root / "LODES/CommutingFlow_M2_2020gt10.csv", index=False)
    for number, split in enumerate(("train", "valid", "test")):
        pd.DataFrame({"geocode": nodes[number::3]}).to_csv(root / f"Nid/M2/{split}_nids_M2.csv", index=False)
    return root


def adopt(*flags):
    return main(["adopt", "--published", "old", "--region", "M2", *flags])


def refused(capsys, *flags):
    assert adopt(*flags) == 2
    return capsys.readouterr().err.splitlines()[-1]


def adopted(name):
    return pd.read_csv(Path("data/M2") / name, dtype={"h_geocode": str, "w_geocode": str, "geocode": str})


def test_the_stages_read_what_was_adopted(published):
    assert adopt() == 0
    units = read_units("data/M2/units.gpkg", None, quiet())
    assert tuple(units.index) == IDS[:-1]
    flows = read_flows("data/M2/flows_2020.csv", IDS[:-1], False, quiet())
    source = pd.read_csv(published / "LODES/CommutingFlow_M2_2020gt10.csv", dtype=str).sort_values(["h_geocode", "w_geocode"])
    assert list(flows.to_frame().h_geocode) == list(source.h_geocode) and list(flows.count) == list(source["count"].astype(float))
    split = read_split("data/M2/split.csv", "origin", IDS[:-1], quiet())
    assert list(split.label[:4]) == ["train", "valid", "test", "train"] and not (split.label == "").any()
    draw_features().set_axis(pd.Index(IDS, name="geocode")).to_csv("features.csv")
    config = training_config(region=["M2"], node_feats_path=["features.csv"], distance_path=["data/M2/distances.csv"])
    graph = load_region(config, quiet(), flows_required=True).graph
    origin, destination = graph.edge
    given = graph.table_m[origin, destination]
    assert np.isnan(graph.table_m[0, 1]) and graph.table_m[1, 0] == CAR * 1_000
    assert set(given[~np.isnan(given)].round()) == {CAR * 1_000}


def test_the_ledger_says_what_was_mended_and_left_out(published):
    assert adopt() == 0
    ledger = json.loads(Path("data/M2/adopt_run.json").read_text())["ledger"]
    assert ledger["left_out"] == {"tracts that are no nodes": [BEYOND]}
    assert ledger["out"]["units"] == ledger["out"]["split"] == NUM_UNITS - 1
    assert any("29 ids had lost their leading zero (6037000000" in note for note in ledger["notes"])


def test_distances_beside_the_flows_are_taken_where_neighbours_have_none(published):
    assert adopt("--pair_distances") == 0
    table = adopted("distances.csv").set_index(["h_geocode", "w_geocode"]).distance_m
    flows = adopted("flows_2020.csv").set_index(["h_geocode", "w_geocode"]).index
    assert table.index.is_unique and set(flows) <= set(table.index)
    assert table[IDS[1], IDS[0]] == CAR * 1_000  # the matrix goes before
    assert set(table.round()) == {CAR * 1_000, 9_999.0}


def test_published_folder_and_weights_lead_to_scores(published):
    assert adopt("--pair_distances") == 0
    torch.save({"state_dict": draw_weights()}, "network.pth")
    columns = np.random.default_rng(0).random((400, NUM_COLUMNS))
    Path("trees.txt").write_bytes(pickle.dumps(lightgbm.LGBMRegressor(n_estimators=6, verbose=-1).fit(columns, columns[:, 0])))
    draw_features().set_axis(pd.Index(IDS, name="geocode")).to_csv("features.csv")
    region = [
        "--region",
        "M2",
        "--node_feats_path",
        "features.csv",
        "--distance_path",
        "data/M2/distances.csv",
        "--log",
        "M2_old",
        "--device",
        "cpu",
    ]
    weights = ["--network_path", "network.pth", "--lightgbm_path", "trees.txt", "--split_path", "data/M2/split.csv"]
    assert main(["import_published", *weights, *region]) == 0
    assert test_ODPrediction.main(region) == 0
    assert set(json.loads(Path("outputs/M2_old/M2_2020/metrics.json").read_text())) == {"bilinear", "lightgbm", "constant"}


def test_what_is_not_there_is_said(published, capsys):
    (published / "Nid/M2/valid_nids_M2.csv").unlink()
    (published / "M2_LA/CensusTracts/tl_2020_tract20_M2.shp").unlink()
    assert adopt() == 0
    told = capsys.readouterr().err
    assert "valid_nids_M2.csv is not there" in told and "no units.gpkg is written" in told
    assert sorted(path.name for path in Path("data/M2").iterdir()) == ["adopt_run.json", "distances.csv", "flows_2020.csv"]


def test_faults_are_one_sentence(published, capsys):
    nid = published / "Nid/M2/test_nids_M2.csv"
    nid.write_text(nid.read_text() + f"{IDS[0]}\n")
    assert f"1 units occur more than once ({IDS[0]})" in refused(capsys)
    nid.write_text("geocode\nA1\n")
    assert "1 ids are no census tracts (A1)" in refused(capsys)
    nid.write_text("GEOID\n06037000001\n")
    assert "need the columns geocode, but have GEOID" in refused(capsys)
    matrix = published / "CensusTract2020/adjacency_matrix_bycar_m_M2.csv"
    whole = matrix.read_text()
    matrix.write_text(whole.replace("1400.0", "far", 1))
    assert "hold what is no number" in refused(capsys)
    matrix.write_text("\n".join(whole.splitlines()[:-1]))
    assert "other ids in the rows than in the columns" in refused(capsys)
    assert main(["adopt", "--published", "old", "--region", "M9"]) == 2
    assert "has neither LODES, CensusTract2020 nor Nid of the region M9" in capsys.readouterr().err
    assert not list(Path("data").rglob("*.csv"))
