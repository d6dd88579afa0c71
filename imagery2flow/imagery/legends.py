"""What the codes of maps of land cover and land use mean, and the shares of their groups in units.

A legend is a table of groups and the codes that belong to each; a group's place in it decides ties.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from imagery2flow.imagery.land_cover import CODE
from imagery2flow.run.errors import TableError, shown

Legend = Mapping[str, tuple[int, ...]]

# National Land Cover Database (MRLC); 51 and 72 to 74 occur in Alaska only.
NLCD_GROUPS: Legend = {
    "open_space": (21,),
    "built_up": (22, 23, 24),
    "forest": (41, 42, 43),
    "cultivated": (81, 82),
    "wetlands": (90, 95),
    "water": (11,),
    "ice_snow": (12,),
    "barren": (31,),
    "shrub": (51, 52),
    "grassland": (71, 72, 73, 74),
}
# ESA WorldCover, 10 m, v100 (2020) and v200 (2021).
WORLDCOVER_GROUPS: Legend = {
    "tree_cover": (10,),
    "shrubland": (20,),
    "grassland": (30,),
    "cropland": (40,),
    "built_up": (50,),
    "bare": (60,),
    "snow_ice": (70,),
    "water": (80,),
    "herbaceous_wetland": (90,),
    "mangroves": (95,),
    "moss_lichen": (100,),
}
# Land use as the paper groups it.
LAND_USE_GROUPS: Legend = {"agriculture": (1,), "commercial": (2,), "industrial": (3,), "recreational": (4,), "residential": (5, 6)}


def group_areas(table: pd.DataFrame, groups: Legend) -> pd.DataFrame:
    """Area of every group in every unit.

    Args:
        table: ``geocode`` and ``class_<code>`` in m2, as ``land_cover.count_land_cover`` returns it.
        groups: The legend of its codes.

    Returns:
        Index ``geocode``, a column per group in the order of the legend, in m2; 0 where no unit has its codes.

    Raises:
        TableError: The table has no geocode, or a code that the legend lacks or has twice.
    """
    if "geocode" not in table:
        raise TableError(
            f"land cover has no column geocode; its columns are {shown(table.columns)}: give a table of the command land_cover"
        )
    known = [code for codes in groups.values() for code in codes]
    repeated = sorted({code for code in known if known.count(code) > 1})
    present = [int(column.removeprefix(CODE)) for column in table if column.startswith(CODE)]
    strange = sorted(set(present) - set(known))
    if repeated or strange:
        problem = f"has {shown(repeated)} in two groups" if repeated else f"lacks {shown(strange)}"
        raise TableError(f"the legend of {', '.join(groups)} {problem}; give the legend of this map, with every code once")
    areas = {name: table[[f"{CODE}{code}" for code in codes if code in present]].sum(axis=1) for name, codes in groups.items()}
    return pd.DataFrame(areas).set_axis(pd.Index(table["geocode"], name="geocode"))


def group_shares(table: pd.DataFrame, groups: Legend) -> pd.DataFrame:
    """Share of every group in the area of a unit that has a class, 0 to 1; NaN where a unit has none.

    Args and errors as for ``group_areas``.

    Returns:
        Index ``geocode``, a column per group in the order of the legend; rows add up to 1.
    """
    areas = group_areas(table, groups)
    known_m2 = areas.sum(axis=1)
    return areas.div(known_m2.where(known_m2 > 0), axis=0)


def dominant_group(table: pd.DataFrame, groups: Legend) -> pd.Series:
    """The group with the largest area in each unit, of equal ones the first in the legend; None where a unit has no class.

    Args and errors as for ``group_areas``.

    Returns:
        Index ``geocode``; names of groups.
    """
    areas = group_areas(table, groups)
    return areas.idxmax(axis=1).astype(object).where(areas.sum(axis=1) > 0, None).rename("group")
