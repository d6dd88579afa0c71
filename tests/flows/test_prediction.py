import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from imagery2flow.flows import metrics, prediction
from imagery2flow.flows.outflow import RegionPredictor
from imagery2flow.flows.prediction import test_flows as predict_flows
from imagery2flow.flows.record import load_record
from imagery2flow.flows.results import read_scores
from imagery2flow.flows.training import train_flows
from imagery2flow.run.errors import InputError, MissingInputError, TableError
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import read_table

from .conftest import GEOCODES, NUM_UNITS, files_of, make_region, prediction_config, rename_ids, training_config, write_region

DECODERS = ("bilinear", "lightgbm")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a model of town, and village, another region 300 km to the east whose flows are unknown to the model."""
    folder = tmp_path_factory.mktemp("home")
    write_region(folder, "town")
    write_region(folder, "village", seed=1, west=800_000.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train_flows(training_config(universe="positive"), Ledger("test", quiet=True))
    rename_ids(folder, "village", "3600")  # another town has other ids
    return folder


@pytest.fixture
def here(home, monkeypatch):
    monkeypatch.chdir(home)
    return home


def run(region, year, ledger=None, **changes):
    """Stage 5; each test has a year, and so a folder, of its own. Returns that folder."""
    run_file = predict_flows(prediction_config(region, year=year, **changes), ledger or Ledger("test", quiet=True))
    assert run_file == Path(f"outputs/default/{region}_{year}/run.json")
    return run_file.parent


def read(path):
    return read_table(path, "predictions", ("h_geocode", "w_geocode"))


def scores_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_another_regions_flows_are_all_predicted_and_scored(here):
    folder = run("village", 2001)
    flows = read(here / "data/village/flows.csv")
    for decoder in DECODERS:
        table = read(folder / f"predictions_{decoder}.csv")
        assert table.columns.tolist() == ["h_geocode", "w_geocode", "count", "prediction", "scored"]
        assert table.scored.all()
        pd.testing.assert_frame_equal(table[["h_geocode", "w_geocode", "count"]], flows, check_dtype=False)
        assert set(scores_of(folder)[decoder]) == {"gt10", "positive"}
        for universe, minimum in (("gt10", 10), ("positive", 0)):
            pairs, found = table[table["count"] > minimum], scores_of(folder)[decoder][universe]
            expected = metrics.score(pairs["count"].to_numpy(float), pairs.prediction.to_numpy())
            assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert set(scores_of(folder)) == {"bilinear", "lightgbm", "constant"}
    assert not (read(folder / "predictions_bilinear.csv").prediction == read(folder / "predictions_lightgbm.csv").prediction).any()


def test_the_source_region_is_scored_on_its_test_origins_as_in_training(here):
    ledger = Ledger("test", quiet=True)
    folder = run("town", 2002, ledger)
    assert scores_of(folder) == scores_of(Path("outputs/default"))
    flows = read(here / "data/town/flows.csv")
    assert len(read(folder / "predictions_bilinear.csv")) == len(flows)
    split = read_table("outputs/default/split.csv", "split", ("geocode",)).set_index("geocode").split
    held_out = int((split[flows.h_geocode] == "test").sum())
    assert scores_of(folder)["bilinear"]["positive"]["num_pairs"] == held_out < len(flows)
    sentence = (
        f"{len(flows) - held_out:,} flows belong to units that the model was trained or chosen on; scores are of the other {held_out:,}"
    )
    assert sentence in ledger.notes
    for decoder in DECODERS:
        first, second = (read(path / f"predictions_{decoder}.csv").prediction for path in (folder, Path("outputs/default")))
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(("year", "table_format"), [(2021, "csv"), (2022, "parquet")])
def test_the_pairs_that_were_scored_are_marked(here, year, table_format):
    folder = run("town", year, all_pairs=True, table_format=table_format)
    split = read_table("outputs/default/split.csv", "split", ("geocode",)).set_index("geocode").split
    table = read(folder / f"predictions_bilinear.{table_format}")
    assert table.scored.tolist() == (table["count"].notna() & (table.h_geocode.map(split) == "test")).tolist()
    assert (table.scored & (table["count"] > 0)).sum() == scores_of(folder)["bilinear"]["positive"]["num_pairs"]


def test_a_region_without_flows_gets_every_pair_with_an_empty_count(here, monkeypatch):
    flows = here / "data/village/flows.csv"
    text = flows.read_text()
    flows.unlink()
    try:
        ledger = Ledger("test", quiet=True)
        folder = run("village", 2003, ledger)
    finally:
        flows.write_text(text)
    table = read(folder / "predictions_bilinear.csv")
    assert len(table) == NUM_UNITS**2
    assert table["count"].isna().all()
    assert table.prediction.notna().all()
    assert (folder / "predictions_bilinear.csv").read_text().splitlines()[1].startswith("3600000,3600000,,")
    assert not (folder / "metrics.json").exists()
    assert "no flows in data/village: predictions only, no scores" in ledger.notes


def test_all_pairs_holds_every_pair_once_with_the_known_counts(here):
    folder, observed_only = run("village", 2004, all_pairs=True), run("village", 2005)
    for decoder in DECODERS:
        table, observed = (read(path / f"predictions_{decoder}.csv") for path in (folder, observed_only))
        ids = [geocode.replace("0600", "3600") for geocode in GEOCODES]
        assert list(zip(table.h_geocode, table.w_geocode, strict=True)) == [(home, work) for home in ids for work in ids]
        known = table[table["count"].notna()].reset_index(drop=True)
        pd.testing.assert_frame_equal(
            known[["h_geocode", "w_geocode", "count"]], observed[["h_geocode", "w_geocode", "count"]], check_dtype=False
        )
        np.testing.assert_allclose(known.prediction, observed.prediction, rtol=1e-6)
    found, expected = (read_scores(path / "metrics.json") for path in (folder, observed_only))
    for decoder in (*DECODERS, "constant"):
        assert found[decoder]["positive"] == pytest.approx(expected[decoder]["positive"], rel=1e-6, nan_ok=True)


def test_blocks_of_pairs_write_the_same_tables(here, monkeypatch):
    whole = run("village", 2006, all_pairs=True)
    monkeypatch.setattr(prediction, "PAIRS_PER_BLOCK", 100)  # three origins at a time
    parts = run("village", 2007, all_pairs=True)
    for decoder in DECODERS:
        one, other = (read(folder / f"predictions_{decoder}.csv") for folder in (whole, parts))
        pd.testing.assert_frame_equal(one, other, rtol=1e-6)


def test_parquet_holds_what_csv_holds(here):
    text, binary = run("village", 2008, all_pairs=True), run("village", 2009, all_pairs=True, table_format="parquet")
    for decoder in DECODERS:
        one, other = read(text / f"predictions_{decoder}.csv"), pd.read_parquet(binary / f"predictions_{decoder}.parquet")
        pd.testing.assert_frame_equal(one, other, check_dtype=False, check_exact=True)


def test_a_known_zero_is_written_as_zero_and_not_as_unknown(here):
    flows = read(here / "data/village/flows.csv")
    zero = flows.iloc[[0]].assign(count=0)
    pd.concat([zero, flows.iloc[1:]]).to_csv("with_zero.csv", index=False)
    table = read(run("village", 2023, flows_path=["with_zero.csv"], all_pairs=True) / "predictions_bilinear.csv")
    found = table.merge(zero[["h_geocode", "w_geocode"]])
    assert found["count"].tolist() == [0]


def test_tables_of_an_earlier_run_in_the_other_format_do_not_stay_behind(here):
    folder = run("village", 2024)
    run("village", 2024, table_format="parquet")
    assert {path.name for path in folder.iterdir()} == {*(f"predictions_{name}.parquet" for name in DECODERS), "metrics.json"}


def test_one_decoder_alone_predicts_and_is_scored_if_so_asked(here):
    both, one = run("village", 2025, all_pairs=True), run("village", 2026, all_pairs=True, decoders=["bilinear"])
    assert {path.name for path in one.iterdir()} == {"predictions_bilinear.csv", "metrics.json"}
    assert (one / "predictions_bilinear.csv").read_bytes() == (both / "predictions_bilinear.csv").read_bytes()
    assert set(scores_of(one)) == {"bilinear", "constant"}
    with pytest.raises(InputError, match="--decoders none must be among bilinear, lightgbm"):
        run("village", 2026, decoders=[])


@pytest.mark.parametrize("decoder", DECODERS)
def test_whole_models_among_the_controls_are_scored_by_the_decoders_that_were_asked_for(here, monkeypatch, decoder):
    controls = Path("outputs/default/controls")
    for name in ("shuffled_images", "band_statistics"):
        shutil.copytree("outputs/default", controls / name, ignore=shutil.ignore_patterns("controls", "*_20*"))
    try:
        monkeypatch.setattr(prediction, "as_seen", lambda name, region, seed: region)
        scores = scores_of(run("village", 2027, decoders=[decoder]))
    finally:
        shutil.rmtree(controls)
    assert set(scores) == {decoder, f"{decoder}, shuffled images", "band statistics", "constant"}


def test_the_ledger_says_which_trees_predict(here):
    notes = {}
    for region in ("town", "village"):
        ledger = Ledger("test", quiet=True)
        run(region, 2028, ledger)
        notes[region] = [note for note in ledger.notes if note.startswith("LightGBM")]
    assert notes == {"town": [], "village": ["LightGBM: the trees for other regions than town"]}


def test_the_ledger_says_where_known_and_unknown_units_mix(here):
    """A part of the source region keeps its trees; with one unit more than the source has, a region is another."""
    record = load_record(Path("outputs/default"), torch.device("cpu"))
    notes = {}
    for name, geocodes in (("part", GEOCODES), ("mixed", (*GEOCODES[:-1], "9999999"))):
        region = dataclasses.replace(make_region(flows=False))
        region = dataclasses.replace(region, graph=dataclasses.replace(region.graph, geocodes=geocodes))
        source = dataclasses.replace(record, centroid=record.centroid | {"new": (0.0, 0.0)}) if name == "part" else record
        trees = source.home if name == "part" else source.transfer
        ledger = Ledger("test", quiet=True)
        prediction.note_decoder(RegionPredictor(source, SimpleNamespace(trees=trees)), region, ledger)
        notes[name] = ledger.notes
    assert notes["mixed"] == [
        f"LightGBM: the trees for other regions than town; {NUM_UNITS - 1} of its {NUM_UNITS} units are of the source region"
    ]
    assert notes["part"][0].startswith(f"LightGBM: the trees for town, of whose {NUM_UNITS + 1} units only these {NUM_UNITS} are here")


@pytest.mark.parametrize("trained_on_table", [False, True])
def test_distances_of_another_kind_than_the_models_are_refused(here, monkeypatch, trained_on_table):
    ids = [geocode.replace("0600", "3600") for geocode in GEOCODES]
    pd.DataFrame({"h_geocode": ids[:2], "w_geocode": ids[1:3], "distance_m": [900.0, 900.0]}).to_csv("roads.csv", index=False)
    record = load_record(Path("outputs/default"), torch.device("cpu"))
    record = dataclasses.replace(record, config=record.config | {"distance_path": ["roads.csv"] * trained_on_table})
    monkeypatch.setattr(prediction, "load_record", lambda folder, device: record)
    kinds = ["great-circle distances", "distances of a table"]
    table, other = kinds if trained_on_table else kinds[::-1]
    with pytest.raises(
        InputError, match=f"region village has {table} but the model outputs/default was trained on {other}; .*--distance_path"
    ):
        run("village", 2025, distance_path=[] if trained_on_table else ["roads.csv"])
    assert run("village", 2025, distance_path=["roads.csv"] if trained_on_table else []).is_dir()


def write_encoder(table, sha256):
    """What stage 3 leaves beside its table."""
    inputs = {"patches/manifest.csv": "00", "ckpt/M1_img_10.pth": sha256}
    Path(f"{table}.run.json").write_text(json.dumps({"inputs_sha256": inputs}))


def test_features_of_another_encoder_are_refused_even_if_the_columns_are_named_alike(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_region(tmp_path, "town")
    write_region(tmp_path, "village", seed=1, west=800_000.0)
    rename_ids(tmp_path, "village", "3600")
    write_encoder("town.csv", "a" * 64)
    train_flows(training_config(max_epochs=1), Ledger("test", quiet=True))
    ledger = Ledger("test", quiet=True)
    run("village", 2020, ledger)
    sentence = (
        "no village.csv.run.json tells which encoder made the features village.csv: that it is the same as another region's is not checked"
    )
    assert sentence in ledger.notes
    write_encoder("village.csv", "a" * 64)
    run("village", 2020)
    write_encoder("village.csv", "b" * 64)
    found, known = (rf"ckpt/M1_img_10.pth \(sha256 {letter * 8}\)" for letter in "ba")
    with pytest.raises(InputError, match=f"village.csv come from the encoder {found} but the model .* on those of {known}; embed village"):
        run("village", 2020)
    with pytest.raises(InputError, match=f"the features of town come from the encoder {known} and those of village from {found}"):
        train_flows(training_config(region=["town", "village"], node_feats_path=["town.csv", "village.csv"]), ledger)


def test_no_scores_of_an_earlier_run_stay_behind(here):
    folder = run("village", 2010)
    assert (folder / "metrics.json").exists()
    Path("none.csv").write_text("h_geocode,w_geocode,count\n")
    run("village", 2010, flows_path=["none.csv"])
    assert not (folder / "metrics.json").exists()


def test_the_same_run_writes_the_same_bytes_whatever_the_order_of_rows(tmp_path, monkeypatch):
    written = []
    for name, shuffle in (("sorted", None), ("shuffled", 4)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        write_region(tmp_path / name, "town")
        write_region(tmp_path / name, "village", seed=1, shuffle=shuffle)
        train_flows(training_config(max_epochs=1), Ledger("test", quiet=True))
        written.append(files_of(run("village", 2020, all_pairs=True)))
    assert written[0] == written[1]
    assert set(written[0]) == {"predictions_bilinear.csv", "predictions_lightgbm.csv", "metrics.json"}


def test_predictions_depend_on_the_imagery_of_the_units(here):
    folder = run("village", 2011)
    features = read_table("village.csv", "features", ("geocode",))
    features["0"] = features["0"].to_numpy()[::-1]
    features.to_csv("turned.csv", index=False)
    turned = run("village", 2012, node_feats_path=["turned.csv"])
    for decoder in DECODERS:
        one, other = (read(path / f"predictions_{decoder}.csv").prediction for path in (folder, turned))
        assert (one != other).mean() > 0.5


def test_other_features_than_the_models_are_refused(here):
    features = read_table("village.csv", "features", ("geocode",))
    features.drop(columns="2").to_csv("fewer.csv", index=False)
    with pytest.raises(
        TableError, match=r"features of village have 2 columns but the model was trained on 3 \(missing: 2; unknown: none\)"
    ):
        run("village", 2013, node_feats_path=["fewer.csv"])
    features.rename(columns={"2": "POI"}).to_csv("other.csv", index=False)
    with pytest.raises(TableError, match=r"missing: 2; unknown: POI"):
        run("village", 2013, node_feats_path=["other.csv"])
    assert not Path("outputs/default/village_2013").exists()


def test_flags_that_contradict_the_model_are_refused(here):
    run("village", 2014, embedding_size=8, num_hidden_layers=1)
    with pytest.raises(InputError, match="--embedding_size 9 but the model outputs/default has 8; leave the flag out"):
        run("village", 2015, embedding_size=9)
    with pytest.raises(InputError, match="--num_hidden_layers 2 but the model outputs/default has 1"):
        run("village", 2015, num_hidden_layers=2)


def test_published_flags_without_effect_are_accepted_and_named(here):
    ledger = Ledger("test", quiet=True)
    run("village", 2016, ledger, max_epochs=3, lr=0.1)
    assert "--max_epochs and --lr are without effect here: testing trains nothing" in ledger.notes


def test_a_missing_model_is_named(here):
    with pytest.raises(MissingInputError, match=r"OD model outputs/absent/od_model.pt does not exist"):
        run("village", 2017, log="absent")
