import dataclasses
import re
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest

from imagery2flow.flows.region import find_flows, find_units, join_regions, load_region, read_embeddings
from imagery2flow.run.errors import InputError, MissingInputError, TableError
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
        (features(["0601", "0602"], [1.0, np.nan]), ".csv", "columns 0 hold missing or infinite values"),
        (features(["0601", "0602"], [1.0, -np.inf]), ".csv", "columns 0 hold missing or infinite values"),
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


def write_with_ids(name, seed, ending, west, columns):
    """A region whose ids have an ending, with columns of features in a given order."""
    write_region(Path(), name, seed=seed, west=west)
    units = gpd.read_file(f"data/{name}/units.gpkg")
    units.assign(GEOID20=units.GEOID20 + ending).to_file(f"data/{name}/units.gpkg")
    for path in (f"data/{name}/flows.csv", f"{name}.csv"):
        Path(path).write_text(re.sub(r"(0600\d{3})", rf"\g<1>{ending}", Path(path).read_text()))
    table = pd.read_csv(f"{name}.csv", dtype={"geocode": str})
    table[["geocode", *columns]].to_csv(f"{name}.csv", index=False)


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Settings of two regions whose ids interleave and whose columns stand in another order."""
    monkeypatch.chdir(tmp_path)
    write_with_ids("town", 0, "a", 500_000.0, ("0", "1", "2"))
    write_with_ids("village", 1, "b", 800_000.0, ("2", "0", "1"))
    return RegionConfig(node_feats_path=["town.csv", "village.csv"], region=["town", "village"])


def alone(name, ledger):
    return load_region(RegionConfig(node_feats_path=[f"{name}.csv"], region=[name]), ledger, flows_required=True)


def edges_of(graph):
    ids = np.array(graph.geocodes)
    return set(zip(ids[graph.edge[0]], ids[graph.edge[1]], graph.edge_distance_m().round(6), strict=True))


def test_several_regions_are_one_whose_parts_are_no_neighbours(two, ledger):
    both, parts = load_region(two, ledger, flows_required=True), [alone(name, ledger) for name in two.region]
    assert (both.names, both.name) == (("town", "village"), "town+village")
    assert both.part.tolist() == [0, 1] * 30
    assert list(both.graph.geocodes) == sorted(parts[0].graph.geocodes + parts[1].graph.geocodes)
    assert both.columns == ("0", "1", "2")
    assert edges_of(both.graph) == edges_of(parts[0].graph) | edges_of(parts[1].graph)
    for part, units in zip(parts, both.parts(), strict=True):
        assert [both.graph.geocodes[unit] for unit in units] == list(part.graph.geocodes)
        order = [part.columns.index(column) for column in both.columns]
        np.testing.assert_array_equal(both.embeddings[units], part.embeddings[:, order])
        for name in ("longitude", "latitude", "area_km2"):
            np.testing.assert_array_equal(getattr(both.graph, name)[units], getattr(part.graph, name))
    flows = pd.concat([part.flows.to_frame() for part in parts]).sort_values(["h_geocode", "w_geocode"], ignore_index=True)
    pd.testing.assert_frame_equal(both.flows.to_frame(), flows)


def test_the_order_of_regions_changes_nothing_but_their_numbers(two, ledger):
    turned = dataclasses.replace(two, region=two.region[::-1], node_feats_path=two.node_feats_path[::-1])
    first, second = (load_region(config, ledger, flows_required=True) for config in (two, turned))
    assert first.graph.geocodes == second.graph.geocodes
    np.testing.assert_array_equal(first.graph.edge, second.graph.edge)
    np.testing.assert_array_equal(first.part, 1 - second.part)
    pd.testing.assert_frame_equal(first.flows.to_frame(), second.flows.to_frame())
    assert second.columns == ("2", "0", "1")
    np.testing.assert_array_equal(first.embeddings, second.embeddings[:, [1, 2, 0]])


def test_a_table_of_distances_of_one_region_holds_for_it_alone(two, ledger):
    first, second = (alone(name, ledger) for name in two.region)
    table = np.full((30, 30), np.nan)
    table[0, 5] = 123.0
    both = join_regions([dataclasses.replace(first, graph=dataclasses.replace(first.graph, table_m=table)), second])
    place = both.parts()
    assert both.graph.distance_m(place[0][[0]], place[0][[5]]) == 123
    assert both.graph.distance_m(place[1][[0]], place[1][[5]]) == pytest.approx(second.graph.distance_m(np.array([0]), np.array([5])))


def test_complete_blocks_of_two_regions_stay_apart(two, ledger):
    block = np.where(np.arange(30) < 4, 0, -1)
    parts = [alone(name, ledger) for name in two.region]
    both = join_regions([dataclasses.replace(part, flows=dataclasses.replace(part.flows, block=block)) for part in parts])
    full = both.flows.universe("full")
    assert len(full) == 2 * 4 * 4
    assert (both.part[full.origin] == both.part[full.destination]).all()
    one = join_regions([dataclasses.replace(parts[0], flows=dataclasses.replace(parts[0].flows, block=block)), parts[1]])
    assert len(one.flows.universe("full")) == 4 * 4


def test_untrained_columns_follow_their_units_and_columns_into_the_joined_region(two, ledger):
    for name in two.region:
        table = pd.read_csv(f"{name}.csv", dtype={"geocode": str})
        table.assign(**{column: 100 + table[column] for column in ("0", "1", "2")}).to_csv(f"{name}_untrained.csv", index=False)
    both = load_region(two, ledger, flows_required=True)
    np.testing.assert_allclose(both.untrained, 100 + both.embeddings, rtol=1e-5)


def test_regions_that_share_ids_or_differ_in_columns_are_refused(two, ledger):
    town, village = (alone(name, ledger) for name in two.region)
    with pytest.raises(InputError, match=r"the regions town town share 30 ids of units \(0600000a, .*give each unit an id of its own"):
        join_regions([town, town])
    with pytest.raises(TableError, match=r"the features of town and village differ in the columns 2, POI; embed both with one encoder"):
        join_regions([town, dataclasses.replace(village, columns=("POI", "0", "1"))])
