"""The settings of ``python -m imagery2flow urban_form``; see ``run.config`` for how settings work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from imagery2flow.run.errors import InputError
from imagery2flow.run.flow_config import Place


@dataclass(frozen=True, kw_only=True)
class UrbanFormConfig:
    """Urban form and distance decay of regions, one row each.

    A path that is not given is looked for in <data_root>/<region>/; of several regions give all such paths or none.

    Args:
        region: Names of the regions.
        output_path: Table to write, CSV or Parquet.
        data_root: Folder of the regions.
        year: Year of the flows; flows_<year>.csv is preferred to flows.csv.
        units_path: Areal units; default <data_root>/<region>/units.gpkg.
        id_column: Column of the unit ids; default GEOID20, GEOID or geocode, whichever is there.
        flows_path: Flows: h_geocode, w_geocode, count; a region without flows keeps empty cells.
        drop_unknown_units: Leave out flows that name units which are not in the units file, instead of refusing them.
        universe: Flows that make up jobs and distances: gt10 (above 10 commuters, as published) or positive (all).
        round_km: Round distances to whole km before the fit, as published; false takes them as they are, from 1 km on.
        population_path: Residents per geocode; default <data_root>/<region>/population.csv; a region without it keeps empty cells.
        population_column: Column of the population.
    """

    region: list[str]
    output_path: str
    data_root: str = "data"
    year: int = 2020
    units_path: list[str] = field(default_factory=list)
    id_column: str | None = None
    flows_path: list[str] = field(default_factory=list)
    drop_unknown_units: bool = False
    universe: Literal["gt10", "positive"] = "gt10"
    round_km: bool = True
    population_path: list[str] = field(default_factory=list)
    population_column: str = "population"

    def __post_init__(self) -> None:
        if len(set(self.region)) != len(self.region):
            raise InputError(f"--region {' '.join(self.region)} names a region twice; name each once")
        for name in ("units_path", "flows_path", "population_path"):
            paths = getattr(self, name)
            if len(paths) not in (0, len(self.region)):
                raise InputError(
                    f"--{name} names {len(paths)} files for {len(self.region)} regions ({' '.join(self.region)}); give one for each"
                )

    def places(self) -> list[tuple[Place, str | None]]:
        """The regions with their files and that of their population, in the order given."""
        units, flows, population = (
            getattr(self, name) or [None] * len(self.region) for name in ("units_path", "flows_path", "population_path")
        )
        places = [Place(name, "", units[number], flows[number], None) for number, name in enumerate(self.region)]
        return list(zip(places, population, strict=True))
