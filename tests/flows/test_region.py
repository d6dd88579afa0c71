import numpy as np
import pandas as pd
import pytest

from imagery2flow.flows.region import find_flows, find_units, load_region, read_embeddings
from imagery2flow.run.errors import MissingInputError, TableError
from imagery2flow.run.flow_config import RegionConfig

from .conftest import GEOCODES, draw_features, draw_flows, write_region

UNITS = pd.Index(["0601", "0602", "0603"])


@pytest.fixture
def town(tmp_path, monkeypatch):
    """The region's files, below the working directory."""
    write_region(tmp_path)
    monkeypatch.chdir(tmp_path)
    return RegionConfig(node_feats_path=["town.csv"], region=["town"])


@pytest.fixture
def read(tmp_path, ledger):
    """Writes a table of features and reads it."""

    def write_and_read(table, suffix=".csv"):
        path = tmp_path / f"features{suffix}"
        table.to_parquet(path) if suffix == ".parquet" else table.to_csv(path, index=table.index.name is not None)
        return read_embeddings(str(path), UNITS, ledger)

    return write_and_read


def features(ids, values=None, **columns):
    return pd.DataFrame({"geocode": ids, "0": range(len(ids)) if values is None else values, **columns})


def test_units_embeddings_and_flows_are_joined_by_id(town, ledger):
    region = load_region(town, ledger, flows_required=True)
    assert region.name == "town"
    assert region.graph.geocodes == region.flows.geocodes == GEOCODES
    assert region.columns == ("0", "1", "2")
    np.testing.assert_array_equal(region.embeddings, draw_features().to_numpy())
    pd.testing.assert_frame_equal(region.flows.to_frame(), draw_flows(draw_features()), check_dtype=False)
    assert ledger.came_in == {"units": 30, "embeddings": 30, "flows": len(region.flows)}
    assert ledger.left_out == {}
    assert len(ledger.inputs) == 3


def test_units_without_an_embedding_leave_with_their_flows_and_are_counted(town, ledger):
    table = pd.read_csv("town.csv", dtype={"geocode": str})
    table[table.geocode != GEOCODES[7]].to_csv("town.csv", index=False)
    region = load_region(town, ledger, flows_required=True)
    assert region.graph.geocodes == tuple(geocode for geocode in GEOCODES if geocode != GEOCODES[7])
    np.testing.assert_array_equal(region.embeddings, draw_features().drop(GEOCODES[7]).to_numpy())
    whole = draw_flows(draw_features())
    gone = (whole.h_geocode == GEOCODES[7]) | (whole.w_geocode == GEOCODES[7])
    pd.testing.assert_frame_equal(region.flows.to_frame(), whole[~gone].reset_index(drop=True), check_dtype=False)
    assert ledger.left_out["units without an embedding"] == [GEOCODES[7]]
    assert ledger.left_out["flows of units without an embedding"] == list(whole[gone].h_geocode + ">" + whole[gone].w_geocode)


def test_embeddings_of_other_units_are_left_out_and_counted(read, ledger):
    table = read(features(["0601", "9901", "0602"]))
    assert table.index.tolist() == ["0601", "0602"]
    assert table["0"].tolist() == [0, 2]
    assert ledger.left_out == {"embeddings of units that are not in the units file": ["9901"], "units without an embedding": ["0603"]}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_order_of_rows_and_the_index_do_not_matter(read, suffix):
    rows = features(["0603", "0601", "0602"], [3.0, 1.0, 2.0])
    for table in (rows, rows.set_index("geocode")):
        found = read(table, suffix)
        assert found.index.tolist() == ["0601", "0602", "0603"]
        assert found["0"].tolist() == [1.0, 2.0, 3.0]


def test_columns_named_by_numbers_are_those_named_by_text(read):
    numbered = features(["0601", "0602", "0603"]).set_index("geocode").rename(columns={"0": 0})  # as pandas writes an array to Parquet
    assert list(read(numbered, ".parquet").columns) == list(read(features(["0601", "0602", "0603"])).columns)


@pytest.mark.parametrize(
    ("table", "suffix", "sentence"),
    [
        (features(["0601"]).rename(columns={"geocode": "GEOID"}), ".csv", "have no column geocode, but GEOID, 0"),
        (features([601, 602]), ".parquet", r"geocode holds numbers \(601\), so that leading zeros are lost"),
        (features(["601", "602"]), ".csv", r"2 ids of geocode have lost their leading zeros \(601, 602\)"),
        (features(["0601", "0601"]), ".csv", r"1 ids occur more than once \(0601\)"),
        (features(["0601", None]), ".csv", "1 ids are empty"),
        (features(["0601"], ["park"]), ".csv", "columns 0 are not numbers"),
        (features(["0601", "0602"], [1.0, np.nan]), ".csv", "columns 0 hold missing, infinite or too large values"),
        (
            features(["0601", "0602"], [1.0, 1e39]),
            ".csv",
            r"columns 0 hold missing, infinite or too large values \(above 3.4e38\), in the rows of 0602",
        ),
        (
            features(["0601", "0602"], pd.array([1, None], dtype="Int64")),
            ".parquet",
            "columns 0 hold missing, infinite or too large values",
        ),
        (features(["0601", "0602"], [1.0, -np.inf]), ".csv", "columns 0 hold missing, infinite or too large values"),
        (features(["0601"])[["geocode"]], ".csv", "the table has 1 rows and 0 columns of features"),
        (features(["0601"])[:0].astype({"geocode": str, "0": float}), ".parquet", "the table has 0 rows and 1 columns of features"),
        (features(["4801", "4802"]), ".csv", r"none of its 2 ids \(4801, 4802\) is among the 3 units \(0601, 0602, 0603\)"),
    ],
)
def test_each_fault_of_the_features_is_named(read, table, suffix, sentence):
    with pytest.raises(TableError, match=sentence) as error:
        read(table, suffix)
    assert f"features{suffix}" in str(error.value)
    assert "faults:" not in str(error.value)


def test_all_faults_of_the_features_are_named_at_once(read):
    table = features(["0601", "0601", None], [1.0, np.nan, 2.0], name=["a", "b", "c"])
    with pytest.raises(TableError, match=r"4 faults: .*more than once.* are empty.* columns name are not numbers.* columns 0 hold missing"):
        read(table)


def first_place(**settings):
    """Settings, and the files of their only region."""
    config = RegionConfig(**{"node_feats_path": ["town.csv"], "region": ["town"], **settings})
    return config, config.places()[0]


def test_the_flows_of_the_year_come_first(town, ledger):
    config, place = first_place()
    folder = find_units(config, place).parent
    assert find_units(config, place) == folder / "units.gpkg"
    assert find_flows(config, place, True, ledger) == folder / "flows.csv"
    (folder / "flows_2020.csv").touch()
    assert find_flows(config, place, True, ledger) == folder / "flows_2020.csv"
    assert find_flows(*first_place(year=2010), True, ledger) == folder / "flows.csv"
    named = first_place(region=["elsewhere"], flows_path=["f.parquet"], units_path=["u.shp"])
    assert (str(find_flows(*named, True, ledger)), str(find_units(*named))) == ("f.parquet", "u.shp")


def test_missing_files_are_named_with_their_flag(town, ledger):
    elsewhere = first_place(region=["elsewhere"])
    with pytest.raises(MissingInputError, match=r"region elsewhere has no units.gpkg in data/elsewhere; .*--units_path"):
        find_units(*elsewhere)
    with pytest.raises(MissingInputError, match=r"neither flows_2020.csv nor flows.csv in data/elsewhere; .*--flows_path"):
        find_flows(*elsewhere, True, ledger)
    assert find_flows(*elsewhere, False, ledger) is None
    assert ledger.notes == ["no flows in data/elsewhere: predictions only, no scores"]
    with pytest.raises(MissingInputError, match=r"features gone.csv does not exist"):
        load_region(RegionConfig(node_feats_path=["gone.csv"], region=["town"]), ledger, False)


def test_the_untrained_encoders_table_beside_the_features_is_joined_by_id_and_counted_apart(town, ledger):
    other = draw_features(seed=9)
    other.reset_index().sample(frac=1, random_state=0)[["2", "geocode", "0", "1"]].to_csv("town_untrained.csv", index=False)
    region = load_region(town, ledger, flows_required=True)
    np.testing.assert_allclose(region.untrained, other.to_numpy(), rtol=1e-6)
    np.testing.assert_array_equal(region.embeddings, draw_features().to_numpy())
    assert ledger.came_in["embeddings"] == 30


def test_an_untrained_encoders_table_of_other_units_is_refused(town, ledger):
    draw_features().drop(GEOCODES[3]).reset_index().to_csv("town_untrained.csv", index=False)
    with pytest.raises(TableError, match=r"features town_untrained.csv have other ids or columns than town.csv; make both with"):
        load_region(town, ledger, flows_required=True)
