"""The settings of ``python -m imagery2flow land_cover``; see ``run.config`` for how settings work."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LandCoverConfig:
    """Area of every class of land cover or land use in every unit.

    Args:
        units_path: Areal units: polygons with ids.
        raster_path: One or several rasters of class codes (tiles of a map), one band of whole numbers each; where several have a class, the first named counts.
        output_path: Table to write, CSV or Parquet: geocode, class_<code> in m2 for every class, nodata_m2.
        id_column: Column of the unit ids; default GEOID20, GEOID or geocode, whichever is there.
        raster_nodata: Code that means no class, besides the one that a raster declares.
        allow_remote: Also read rasters of any format that GDAL knows, by any of its names, and what they refer to outside their folder, on servers too; Python in a VRT never runs.
    """

    units_path: str
    raster_path: list[str]
    output_path: str
    id_column: str | None = None
    raster_nodata: int | None = None
    allow_remote: bool = False
