"""Legends, and the shares of their groups, by hand."""

import numpy as np
import pandas as pd
import pytest

from imagery2flow.imagery.legends import LAND_USE_GROUPS, NLCD_GROUPS, WORLDCOVER_GROUPS, dominant_group, group_areas, group_shares
from imagery2flow.run.errors import TableError


def table(**columns):
    return pd.DataFrame({"geocode": ["01", "02", "03"], **columns, "nodata_m2": [0.0, 500.0, 900.0]})


NLCD = table(class_11=[100.0, 0, 0], class_22=[200.0, 50, 0], class_24=[100.0, 0, 0], class_41=[0.0, 50, 0])


def test_shares_are_of_the_area_that_has_a_class():
    shares = group_shares(NLCD, NLCD_GROUPS)
    assert list(shares) == list(NLCD_GROUPS) and list(shares.index) == ["01", "02", "03"] and shares.index.name == "geocode"
    assert (shares.loc["01", ["built_up", "water", "forest"]] == [0.75, 0.25, 0]).all()
    assert (shares.loc["02", ["built_up", "water", "forest"]] == [0.5, 0, 0.5]).all()
    assert shares.loc["03"].isna().all()
    np.testing.assert_allclose(shares.loc[["01", "02"]].sum(axis=1), 1)
    assert group_areas(NLCD, NLCD_GROUPS).loc["01", "built_up"] == 300


def test_of_equal_groups_the_first_of_the_legend_dominates():
    assert dominant_group(NLCD, NLCD_GROUPS).to_dict() == {"01": "built_up", "02": "built_up", "03": None}
    turned = dict(reversed(NLCD_GROUPS.items()))
    assert dominant_group(NLCD, turned).to_dict() == {"01": "built_up", "02": "forest", "03": None}


def test_the_group_dominates_and_not_its_largest_class():
    found = dominant_group(table(class_5=[3.0, 0, 0], class_6=[3.0, 0, 9], class_1=[5.0, 1, 0]), LAND_USE_GROUPS)
    assert found.to_dict() == {"01": "residential", "02": "agriculture", "03": "residential"}


def test_rows_may_come_in_any_order():
    shares, turned = group_shares(NLCD, NLCD_GROUPS), group_shares(NLCD[::-1], NLCD_GROUPS)
    pd.testing.assert_frame_equal(turned.sort_index(), shares)
    pd.testing.assert_frame_equal(group_shares(NLCD[NLCD.columns[::-1]], NLCD_GROUPS), shares)


def test_codes_that_a_legend_lacks_are_refused():
    with pytest.raises(TableError, match=r"the legend of tree_cover, .* lacks 11, 22, 24, 41; give the legend of this map"):
        group_shares(NLCD, WORLDCOVER_GROUPS)
    with pytest.raises(TableError, match="has 11 in two groups"):
        group_shares(NLCD, NLCD_GROUPS | {"sea": (11,)})
    with pytest.raises(TableError, match="no column geocode"):
        group_shares(NLCD.set_index("geocode"), NLCD_GROUPS)


def test_legends_hold_the_published_codes():
    nlcd = [11, 12, 21, 22, 23, 24, 31, 41, 42, 43, 51, 52, 71, 72, 73, 74, 81, 82, 90, 95]
    assert sorted(code for codes in NLCD_GROUPS.values() for code in codes) == nlcd
    assert [codes[0] for codes in WORLDCOVER_GROUPS.values()] == [10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100]
    assert sorted(code for codes in LAND_USE_GROUPS.values() for code in codes) == [1, 2, 3, 4, 5, 6]
