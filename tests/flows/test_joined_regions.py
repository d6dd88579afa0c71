import dataclasses

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely

from imagery2flow.flows.controls import UNTRAINED, as_seen
from imagery2flow.flows.graph import RegionGraph
from imagery2flow.flows.region import Region, is_image_column, join_regions, load_region
from imagery2flow.flows.table import FlowTable
from imagery2flow.flows.training import train_flows
from imagery2flow.run.errors import InputError, TableError
from imagery2flow.run.flow_config import FlowTrainingConfig, TreesConfig
from imagery2flow.run.stage import Ledger

COLUMNS = ("0", "red_mean", "1")


def town(name, ids, seed=0, columns=COLUMNS, table=False, block=None):
    """A region in memory with random flows, every column drawn by its name, and an untrained encoder's columns."""
    random = np.random.default_rng(seed)
    count = len(ids)
    edge = np.stack([np.arange(count - 1), np.arange(1, count)])
    edge = np.concatenate([edge, edge[::-1]], axis=1)
    graph = RegionGraph(
        tuple(ids),
        random.uniform(0, 1, count),
        random.uniform(0, 1, count),
        random.uniform(1, 2, count),
        edge[:, np.lexsort(edge[::-1])],
        random.uniform(10, 20, (count, count)) if table else None,
    )
    origin, destination = np.nonzero(random.random((count, count)) < 0.5)
    flows = FlowTable(tuple(ids), origin, destination, random.integers(1, 99, len(origin)).astype(float), block)
    trained, untrained = ({column: random.normal(size=count).astype(np.float32) for column in COLUMNS} for _ in range(2))
    return Region(
        (name,),
        graph,
        np.zeros(count, np.int64),
        tuple(columns),
        np.stack([trained[column] for column in columns], axis=1),
        flows,
        np.stack([untrained[column] for column in columns if column.isdigit()], axis=1),
    )


@pytest.fixture
def pair():
    """Two regions whose sorted ids interleave, the second with another order of columns."""
    first = town("a", ["10", "30", "50"], seed=1, block=np.array([0, 0, -1]))
    return first, town("b", ["20", "40", "60", "70"], seed=2, columns=("1", "0", "red_mean"), table=True, block=np.array([1, -1, 0, 0]))


def flows_by_id(flows):
    ids = flows.geocodes
    return {(ids[o], ids[d]): y for o, d, y in zip(flows.origin, flows.destination, flows.count, strict=True)}


def edges_by_id(graph):
    return {(graph.geocodes[a], graph.geocodes[b]) for a, b in graph.edge.T}


def test_every_unit_keeps_what_is_its_own(pair):
    joined = join_regions(pair)
    assert joined.graph.geocodes == ("10", "20", "30", "40", "50", "60", "70")
    assert joined.names == ("a", "b")
    assert joined.name == "a+b"
    assert joined.part.tolist() == [0, 1, 0, 1, 0, 1, 1]
    assert joined.columns == COLUMNS
    for number, region in enumerate(pair):
        units = joined.parts()[number]
        assert tuple(joined.graph.geocodes[unit] for unit in units) == region.graph.geocodes
        for name in ("longitude", "latitude", "area_km2"):
            np.testing.assert_array_equal(getattr(joined.graph, name)[units], getattr(region.graph, name))
        for place, column in enumerate(COLUMNS):
            np.testing.assert_array_equal(joined.embeddings[units, place], region.embeddings[:, region.columns.index(column)])


def test_flows_and_edges_are_those_of_the_regions_and_none_leads_across(pair):
    joined = join_regions(pair)
    assert flows_by_id(joined.flows) == flows_by_id(pair[0].flows) | flows_by_id(pair[1].flows)
    assert edges_by_id(joined.graph) == edges_by_id(pair[0].graph) | edges_by_id(pair[1].graph)
    for ends in (joined.graph.edge, np.stack([joined.flows.origin, joined.flows.destination])):
        assert (joined.part[ends[0]] == joined.part[ends[1]]).all()
        assert (np.diff(ends[0] * 7 + ends[1]) > 0).all()  # sorted, none twice


def test_distances_within_a_region_are_its_own_be_they_of_a_table_or_not(pair):
    joined = join_regions(pair)
    for number, region in enumerate(pair):
        units, count = joined.parts()[number], len(region.part)
        origin, destination = np.repeat(np.arange(count), count), np.tile(np.arange(count), count)
        np.testing.assert_allclose(
            joined.graph.distance_m(units[origin], units[destination]), region.graph.distance_m(origin, destination), rtol=1e-12
        )


def test_complete_blocks_stay_apart(pair):
    joined = join_regions(pair)
    full = set(flows_by_id(joined.flows.universe("full")))
    assert full == set(flows_by_id(pair[0].flows.universe("full"))) | set(flows_by_id(pair[1].flows.universe("full")))
    sample = dataclasses.replace(pair[1], flows=dataclasses.replace(pair[1].flows, block=None))
    assert set(flows_by_id(join_regions([pair[0], sample]).flows.universe("full"))) == set(flows_by_id(pair[0].flows.universe("full")))


def test_the_columns_of_an_untrained_encoder_follow_their_names(pair):
    seen = as_seen(UNTRAINED, join_regions(pair), 0)
    for number, region in enumerate(pair):
        own = as_seen(UNTRAINED, region, 0)
        for place, column in enumerate(COLUMNS):
            np.testing.assert_array_equal(seen.embeddings[seen.parts()[number], place], own.embeddings[:, region.columns.index(column)])


def test_the_order_of_the_regions_changes_the_numbers_of_the_parts_only(pair):
    one, other = join_regions(pair), join_regions(pair[::-1])
    assert one.graph.geocodes == other.graph.geocodes
    assert flows_by_id(one.flows) == flows_by_id(other.flows)
    np.testing.assert_array_equal(one.graph.edge, other.graph.edge)
    np.testing.assert_array_equal(one.embeddings, other.embeddings[:, [other.columns.index(name) for name in one.columns]])
    np.testing.assert_array_equal(one.part, 1 - other.part)


def test_one_region_is_itself_and_without_flows_in_one_there_are_none(pair):
    assert join_regions(pair[:1]) is pair[0]
    assert join_regions([pair[0], dataclasses.replace(pair[1], flows=None)]).flows is None
    assert join_regions([pair[0], dataclasses.replace(pair[1], untrained=None)]).untrained is None


def test_shared_ids_and_other_columns_are_refused_by_name(pair):
    with pytest.raises(InputError, match=r"a b share 1 ids of units \(50\)"):
        join_regions([pair[0], town("b", ["50", "60"])])
    with pytest.raises(TableError, match="a and b differ in the columns red_mean"):
        join_regions([pair[0], town("b", ["60", "70"], columns=("0", "1"))])


def write_town(root, name, prefix, seed=0):
    """Sixteen squares of a kilometre with flows and features under ``root``."""
    folder, random = root / "data" / name, np.random.default_rng(seed)
    folder.mkdir(parents=True)
    ids = [f"{prefix}{number:03d}" for number in range(16)]
    squares = [shapely.box(x, y, x + 1_000, y + 1_000) for y in range(0, 4_000, 1_000) for x in range(500_000, 504_000, 1_000)]
    gpd.GeoDataFrame({"GEOID20": ids}, geometry=squares, crs="EPSG:32618").to_file(folder / "units.gpkg")
    origin, destination = np.divmod(np.arange(256), 16)
    flows = {"h_geocode": np.array(ids)[origin], "w_geocode": np.array(ids)[destination], "count": 1 + random.poisson(30, 256)}
    pd.DataFrame(flows).to_csv(folder / "flows.csv", index=False)
    features = pd.DataFrame({"geocode": ids, "0": random.normal(size=16), "1": random.normal(size=16)})
    features.to_csv(root / f"{name}.csv", index=False)
    pd.DataFrame({"geocode": ids, "0": random.normal(size=16), "rent_mean": random.normal(size=16)}).to_csv(
        root / f"{name}_more.csv", index=False
    )
    return features


def settings(**changes):
    trees = TreesConfig(num_trees=10, min_leaf_pairs=5, early_stopping=3)
    small = {"max_epochs": 2, "embedding_size": 8, "trees": trees, "controls": False, "device": "cpu"}
    return FlowTrainingConfig(**{"region": ["town", "city"], "node_feats_path": ["town.csv", "city.csv"], **small, **changes})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_town(tmp_path, "town", "07", seed=0)
    write_town(tmp_path, "city", "03", seed=1)
    return tmp_path


def test_two_regions_train_one_model(folder):
    train_flows(settings(), Ledger("test", quiet=True))
    split = pd.read_csv("outputs/default/split.csv", dtype=str).set_index("geocode").split
    for prefix in ("03", "07"):  # each region is split on its own
        assert split[split.index.str.startswith(prefix)].value_counts().min() >= 2
    table = pd.read_csv("outputs/default/predictions_bilinear.csv", dtype={"h_geocode": str, "w_geocode": str})
    assert len(table) == 512
    assert (table.h_geocode.str[:2] == table.w_geocode.str[:2]).all()


def test_one_table_of_features_may_serve_both_regions(folder):
    both = pd.concat([pd.read_csv(f"{name}.csv", dtype={"geocode": str}) for name in ("town", "city")])
    both.to_csv("both.csv", index=False)
    apart, together = (
        load_region(settings(**changes), Ledger("test", quiet=True), True) for changes in ({}, {"node_feats_path": ["both.csv"]})
    )
    assert apart.graph.geocodes == together.graph.geocodes
    np.testing.assert_array_equal(apart.embeddings, together.embeddings)


def test_extra_features_are_joined_by_id_and_are_not_taken_for_images(folder):
    for name in ("town", "city"):
        table = pd.read_csv(f"{name}_more.csv", dtype={"geocode": str}).sample(frac=1, random_state=0)
        table.iloc[:-1].to_csv(f"{name}_more.csv", index=False)  # rows in any order, one unit missing
    ledger = Ledger("test", quiet=True)
    more = pd.concat([pd.read_csv(f"{name}_more.csv", dtype={"geocode": str}) for name in ("town", "city")])
    more.to_csv("more.csv", index=False)
    region = load_region(settings(extra_feats=["more.csv"]), ledger, True)
    assert len(region.part) == 30
    assert sum(len(ids) for reason, ids in ledger.left_out.items() if reason == "units without an embedding") == 2
    assert [column for column in region.columns if is_image_column(column)] == ["0", "1"]
    extra = [place for place, column in enumerate(region.columns) if not is_image_column(column)]
    expected = more.set_index("geocode").loc[list(region.graph.geocodes)]
    np.testing.assert_array_equal(region.embeddings[:, extra], expected.to_numpy(np.float32))


def test_the_untrained_table_beside_the_features_is_read_by_id(folder):
    for name, seed in (("town", 3), ("city", 4)):
        table = pd.read_csv(f"{name}.csv", dtype={"geocode": str})
        table[["1", "0"]] = np.random.default_rng(seed).normal(size=(16, 2))
        table[["1", "geocode", "0"]].sample(frac=1, random_state=0).to_csv(f"{name}_untrained.csv", index=False)
    region = load_region(settings(), Ledger("test", quiet=True), True)
    both = pd.concat([pd.read_csv(f"{name}_untrained.csv", dtype={"geocode": str}) for name in ("town", "city")]).set_index("geocode")
    np.testing.assert_array_equal(region.untrained, both.loc[list(region.graph.geocodes), ["0", "1"]].to_numpy(np.float32))
    both.drop(index="07000").reset_index().to_csv("town_untrained.csv", index=False)
    with pytest.raises(TableError, match=r"town_untrained\.csv have other ids or columns than town\.csv"):
        load_region(settings(), Ledger("test", quiet=True), True)


def test_a_region_named_twice_and_too_few_files_are_refused():
    with pytest.raises(InputError, match="town town names a region twice"):
        settings(region=["town", "town"])
    with pytest.raises(InputError, match="--flows_path names 1 files for 2 regions"):
        settings(flows_path=["flows.csv"])
