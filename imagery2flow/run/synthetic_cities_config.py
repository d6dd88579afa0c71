"""The settings of the command that generates cities; see ``run.config`` for how settings work."""

from __future__ import annotations

from dataclasses import dataclass

from imagery2flow.run.config import require


@dataclass(frozen=True, kw_only=True)
class SyntheticCitiesConfig:
    """Generate cities, each with a look of its own, and indexes of them of which imagery shows one and not the other.

    Args:
        output_dir: Folder for raw/<city>/<site>/<image>.tif and indexes.csv.
        num_cities: Number of cities.
        num_sites: Sites of each.
        images_per_site: Images of each site.
        size_px: Side of an image in pixels of 2 m.
        seed: Seed of everything random.
        utm_zone: UTM zone (north) of the images' CRS.
    """

    output_dir: str = "data/cities"
    num_cities: int = 8
    num_sites: int = 3
    images_per_site: int = 1
    size_px: int = 384
    seed: int = 1
    utm_zone: int = 18

    def __post_init__(self) -> None:
        require(self.num_cities >= 2, "num_cities", self.num_cities, "2 or more")
        require(self.num_sites >= 1, "num_sites", self.num_sites, "1 or more")
        require(self.images_per_site >= 1, "images_per_site", self.images_per_site, "1 or more")
        require(self.size_px >= 32, "size_px", self.size_px, "32 or more")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        require(1 <= self.utm_zone <= 60, "utm_zone", self.utm_zone, "1 to 60")
