"""The settings of ``python -m imagery2flow distances``; see ``run.config`` for how settings work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from imagery2flow.run.config import require


@dataclass(frozen=True, kw_only=True)
class DistancesConfig:
    """Distances by road between neighbouring units, as --distance_path of stages 4 and 5 reads them.

    Args:
        units_path: Areal units: polygons with ids.
        distance: osrm asks an OSRM server for the length of the fastest way by car; osm reckons the shortest way for cars on an extract of OpenStreetMap.
        output_path: Table to write, CSV or Parquet: h_geocode, w_geocode, distance_m.
        osrm_url: Address of the OSRM server: http://localhost:5000.
        osm_pbf: Extract of OpenStreetMap that covers the units and what lies between them: .osm.pbf or .osm.
        id_column: Column of the unit ids; default GEOID20, GEOID or geocode, whichever is there.
        snap_m: A unit whose centroid lies further than this from any road, in metres, has no distances.
    """

    units_path: str
    distance: Literal["osrm", "osm"]
    output_path: str
    osrm_url: str | None = None
    osm_pbf: str | None = None
    id_column: str | None = None
    snap_m: float = 5_000.0

    def __post_init__(self) -> None:
        needed, other = ("osrm_url", "osm_pbf") if self.distance == "osrm" else ("osm_pbf", "osrm_url")
        require(getattr(self, needed) is not None, needed, None, f"given with --distance {self.distance}")
        require(getattr(self, other) is None, other, getattr(self, other), f"left out with --distance {self.distance}")
        url = self.osrm_url
        require(url is None or url.startswith(("http://", "https://")), "osrm_url", url, "an address that begins with http:// or https://")
        require(self.snap_m > 0, "snap_m", self.snap_m, "above 0")
