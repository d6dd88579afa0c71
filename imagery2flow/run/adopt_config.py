"""The settings of ``python -m imagery2flow adopt``; see ``run.config`` for how settings work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from imagery2flow.run.config import require


@dataclass(frozen=True, kw_only=True)
class AdoptConfig:
    """Bring a region of a folder in the published layout (Nid, CensusTract2020, LODES) to where the stages look for it.

    Args:
        published: The folder with Nid, CensusTract2020 and LODES in it.
        region: Name of the region there and here: M1.
        year: Year of the flows.
        data_root: Folder under which <region>/units.gpkg, flows_<year>.csv, split.csv and distances.csv are written.
        fold: Name of the split in train_nids_<fold>.csv; default the region's.
        units_path: Areal units; default the shapefile tl_*_<region>.shp in a folder CensusTracts of the published folder.
        pair_distances: Also take the distances that stand beside the flows, which the published trees read. Pairs without a flow have none: fit for the universe gt10 only.
    """

    published: str
    region: str
    year: int = 2020
    data_root: str = "data"
    fold: str | None = None
    units_path: str | None = None
    pair_distances: bool = False

    def __post_init__(self) -> None:
        for name in ("region", "fold"):
            value = getattr(self, name)
            is_name = value is None or (value not in ("", ".", "..") and not set(value) & set("/\\\0*?["))
            require(is_name, name, value, "a name without slashes and wildcards")

    @property
    def folder(self) -> Path:
        """Folder of the region."""
        return Path(self.data_root) / self.region
