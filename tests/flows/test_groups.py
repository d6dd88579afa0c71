import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from imagery2flow.flows.breakdown import by_origin
from imagery2flow.flows.groups import distance_groups, intensity_groups, known_pairs, label_groups, population_groups
from imagery2flow.flows.metrics import ScoredPairs, cpc
from imagery2flow.run.earth import great_circle_m

NAN = float("nan")


def pairs(observed, predicted, distance_km=None):
    observed, predicted = np.array(observed, float), np.array(predicted, float)
    distance_m = 1_000 * (np.ones(len(observed)) if distance_km is None else np.array(distance_km, float))
    return ScoredPairs(observed, predicted, distance_m, distance_m == 0)


def origins(**cpcs):
    """A table of by_origin with 100 commuters in all out of each unit."""
    return pd.DataFrame({"geocode": list(cpcs), "observed": 60.0, "predicted": 40.0, "cpc": list(cpcs.values())})


def test_a_bin_holds_its_upper_limit_and_the_first_also_zero():
    table = distance_groups(pairs([1] * 7, [1] * 7, [0, 0.1, 10, 10.1, 50, 50.1, 300]))
    assert table.group.tolist() == ["0-10", "10-20", "20-30", "30-40", "40-50", "above 50"]
    assert table.num.tolist() == [3, 1, 0, 0, 1, 2]
    table = intensity_groups(pairs([0, 11, 20, 21, 100, 101], [5] * 6))
    assert table.group.tolist() == ["0-20", "20-40", "40-60", "60-80", "80-100", "above 100"]
    assert table.num.tolist() == [3, 1, 0, 0, 1, 1]


def test_each_flow_counts_once_in_the_mean_and_with_its_commuters_in_the_pooled_cpc():
    # 2 min / sum: 20/30 and 20/20 in the first bin, 200/300 in the last
    table = intensity_groups(pairs([10, 10, 200], [20, 10, 100]))
    first, last = table.iloc[0], table.iloc[5]
    assert first["mean"] == pytest.approx((2 / 3 + 1) / 2)
    assert first["std"] == pytest.approx(np.std([2 / 3, 1], ddof=1))
    assert first.pooled == pytest.approx(40 / 50)
    assert (last["mean"], last.pooled) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert np.isnan(last["std"])
    assert table.iloc[1:5][["mean", "std", "pooled"]].isna().all(axis=None)


def test_a_flow_of_nobody_that_nobody_predicted_has_no_cpc():
    table = intensity_groups(pairs([0, 0], [0, 5]))
    assert table.num.tolist() == [1, 0, 0, 0, 0, 0]
    assert table["mean"][0] == 0


@given(st.lists(st.tuples(st.sampled_from([0, 1, 20, 40, 99, 500]), st.sampled_from([0.0, 0.5, 30.0, 400.0])), min_size=1, max_size=30))
def test_groups_of_flows_are_those_of_pandas(rows):
    scored = pairs(*zip(*rows, strict=True))
    table = intensity_groups(scored)
    total = scored.observed + scored.predicted
    frame = pd.DataFrame(
        {
            "o": scored.observed,
            "p": scored.predicted,
            "cpc": 2 * np.minimum(scored.observed, scored.predicted) / np.where(total, total, NAN),
        }
    )
    cut = pd.cut(frame.o, [0, 20, 40, 60, 80, 100, np.inf], include_lowest=True)
    grouped = frame.groupby(cut, observed=False)
    assert table.num.tolist() == grouped.cpc.count().tolist()
    np.testing.assert_allclose(table["mean"], grouped.cpc.mean())
    np.testing.assert_allclose(table["std"], grouped.cpc.std(), atol=1e-12)
    np.testing.assert_allclose(table.pooled, [cpc(part.o.to_numpy(), part.p.to_numpy()) for _, part in grouped])


def test_deciles_are_those_of_qcut_with_1_the_most_populous():
    generator = np.random.default_rng(0)
    population = pd.Series(generator.permutation(973) + 5, index=[f"u{n}" for n in range(973)])
    scores = pd.Series(generator.random(973), index=population.index)
    chosen = origins(**scores[:500].to_dict())
    expected = scores[:500].groupby(10 - pd.qcut(population[:500], 10, labels=False)).agg(["count", "mean", "std"])
    table = population_groups(chosen, population)
    assert table.group.tolist() == [str(n) for n in range(1, 11)]
    np.testing.assert_allclose(table[["num", "mean", "std"]], expected)
    assert population[chosen.geocode[0:500]].groupby(10 - pd.qcut(population[:500], 10, labels=False)).mean().is_monotonic_decreasing


def test_equal_populations_stay_together_and_leave_deciles_empty():
    table = population_groups(origins(a=0.1, b=0.2, c=0.3, d=0.9), pd.Series({"a": 7, "b": 7, "c": 7, "d": 8}), 4)
    # Quartiles of 7, 7, 7, 8 are 7, 7, 7.25: all of 7 lie in the lowest
    assert table.num.tolist() == [1, 0, 0, 3]
    np.testing.assert_allclose(table["mean"], [0.9, NAN, NAN, 0.2])
    np.testing.assert_allclose(table["std"], [NAN, NAN, NAN, 0.1])


def test_origins_of_unknown_population_are_a_row_of_their_own():
    table = population_groups(origins(a=0.1, b=0.2, c=0.3), pd.Series({"a": 5.0, "b": NAN}), 2)
    assert table.group.tolist() == ["1", "2", "unknown"]
    assert table.num.tolist() == [0, 1, 2]
    assert population_groups(origins(a=0.5), pd.Series(dtype=float), 2).num.tolist() == [0, 0, 1]


def test_no_origin_has_ten_empty_deciles():
    table = population_groups(by_origin(np.array([], dtype=object), pairs([], [])), pd.Series({"a": 5}))
    assert table.num.tolist() == [0] * 10
    assert table[["mean", "std", "pooled"]].isna().all(axis=None)


def test_labels_come_by_name_or_in_the_order_given():
    label = pd.Series({"a": "wood", "b": "town", "c": "wood", "d": np.nan, "x": "sea"})
    scores = origins(a=0.2, b=0.6, c=0.4, d=0.8, e=1.0)
    table = label_groups(scores, label)
    assert table.group.tolist() == ["town", "wood", "other"]
    assert table.num.tolist() == [1, 2, 2]
    np.testing.assert_allclose(table["mean"], [0.6, 0.3, 0.9])
    table = label_groups(scores, label, ["wood", "sea"])
    assert (table.group.tolist(), table.num.tolist()) == (["wood", "sea", "other"], [2, 0, 3])
    assert label_groups(scores[:1], label).group.tolist() == ["wood"]


def test_the_pooled_cpc_of_a_group_of_origins_is_that_of_all_its_flows():
    ids = np.array(["a", "a", "b", "c"], dtype=object)
    scored = pairs([10, 300, 5, 40], [20, 100, 5, 10])
    table = label_groups(by_origin(ids, scored), pd.Series({"a": "x", "b": "x", "c": "y"}))
    np.testing.assert_allclose(
        table.pooled, [cpc(scored.observed[:3], scored.predicted[:3]), cpc(scored.observed[3:], scored.predicted[3:])]
    )


def test_pairs_of_known_flow_have_the_distance_of_their_centroids():
    units = gpd.GeoSeries([shapely.box(5e5 + x, 45e5, 5e5 + x + 100, 45e5 + 100) for x in (0, 3_000)], index=["01", "02"], crs=32618)
    table = pd.DataFrame(
        {"h_geocode": ["01", "02", "02"], "w_geocode": ["02", "02", "01"], "count": [5.0, 7.0, np.nan], "prediction": [6.0, 8, 9]}
    )
    ids, found = known_pairs(table, units)
    assert ids.tolist() == ["01", "02"]
    assert (found.observed.tolist(), found.predicted.tolist(), found.same_unit.tolist()) == ([5, 7], [6, 8], [False, True])
    centroid = units.centroid.to_crs(4326)
    assert found.distance_m == pytest.approx([great_circle_m(*centroid.iloc[0].coords[0], *centroid.iloc[1].coords[0]), 0])
    assert found.distance_m[0] == pytest.approx(3_000, rel=0.005)
    assert len(known_pairs(table.assign(count=np.nan), units)[1]) == 0
    with pytest.raises(KeyError, match="99"):
        known_pairs(table.assign(w_geocode="99"), units)
