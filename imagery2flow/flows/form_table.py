"""``python -m imagery2flow urban_form``: urban form and distance decay of regions as one table, one row per region.

The columns are those of ``COLUMNS``; what they mean stands in ``flows.urban_form``, ``flows.distance_decay`` and ``flows.rank_size``. Jobs
are the commuters who work in a unit, and commuters are those of the flows, within the region and of the chosen universe: neither counts
whoever crosses its border.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from imagery2flow.flows import urban_form
from imagery2flow.flows.distance_decay import EXPONENTIAL, TRUNCATED, fit_distance_decay, trip_lengths
from imagery2flow.flows.graph import build_graph
from imagery2flow.flows.rank_size import rank_size_slope
from imagery2flow.flows.region import find_flows, find_units
from imagery2flow.flows.splits import read_population
from imagery2flow.flows.table import FlowTable, read_flows
from imagery2flow.imagery.units import read_units
from imagery2flow.run.earth import METRES_PER_KM
from imagery2flow.run.errors import InputError, MissingInputError
from imagery2flow.run.flow_config import Place
from imagery2flow.run.form_config import UrbanFormConfig
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import check_table_suffix, write_table

COLUMNS = (
    "region",
    "num_units",
    "area_km2",
    "perimeter_km",
    "bcsi",
    "polsby_popper",
    "moment_of_inertia_compactness",
    "residents",
    "population_density_per_km2",
    "weighted_population_density_per_km2",
    "universe",
    "jobs",
    "job_rank_size_slope",
    "job_centre",
    "jobs_within_5_km_share",
    "job_centralisation",
    "commuters_fitted",
    "commuters_left_out",  # of the fit: 0 km when rounded, else below 1 km
    "mean_distance_km",
    "lambda_per_km",
    "ks_d",
    "ks_d_below",
    "akaike_weight_exponential",  # within the published bounds of exponents
    "truncated_exponent",  # without them; 0 is an exponential
    "note",
)
WHOLE_NUMBERS = ("num_units", "residents", "jobs", "commuters_fitted", "commuters_left_out")


def write_form(config: UrbanFormConfig, ledger: Ledger) -> Path:
    """Writes one row per region; returns the path of the run file.

    Raises:
        InputError: The units of a region are missing or cannot be used, or a table has faults.
    """
    check_table_suffix(config.output_path, "--output_path")
    rows = [region_form(config, place, population_path, ledger) for place, population_path in config.places()]
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype(dict.fromkeys(WHOLE_NUMBERS, "Int64"))
    write_table(Path(config.output_path), table)
    ledger.went_out["regions"] = len(table)
    return Path(f"{config.output_path}.run.json")


def region_form(config: UrbanFormConfig, place: Place, population_path: str | None, ledger: Ledger) -> dict[str, Any]:
    """One row of the table; what cannot be known is absent, and the note says why.

    Raises:
        InputError: The units are missing or cannot be used, or a table has faults.
    """
    units_path = find_units(config, place)
    units = read_units(units_path, config.id_column, ledger)
    ledger.take_in("units", len(units))
    kinds = sorted(set(units.geom_type) - {"Polygon", "MultiPolygon"})
    if kinds:
        raise InputError(f"urban form needs polygons but the units {units_path} hold {', '.join(kinds)}; give the tracts themselves")
    metric = urban_form.equal_area(units.geometry)
    notes: list[str] = []
    row = {"region": place.region, "universe": config.universe, **outline_columns(metric, notes)}
    row |= population_columns(config, place, population_path, metric, ledger, notes)
    row |= flow_columns(config, place, units, metric, ledger, notes)
    if notes:
        row["note"] = "; ".join(notes)
        ledger.note(f"{place.region}: {row['note']}")
    return row


def outline_columns(metric: gpd.GeoSeries, notes: list[str]) -> dict[str, Any]:
    """Size and shape of a region whose units are in an equal-area projection."""
    outline = urban_form.dissolve(metric)
    if not shapely.contains(outline, outline.centroid):
        notes.append("the centroid, from which BCSI is measured, lies outside the outline")
    return {
        "num_units": len(metric),
        "area_km2": urban_form.unit_areas_km2(metric).sum(),
        "perimeter_km": outline.length / METRES_PER_KM,
        "bcsi": urban_form.boyce_clark(outline),
        "polsby_popper": urban_form.polsby_popper(outline),
        "moment_of_inertia_compactness": urban_form.moment_compactness(outline),
    }


def population_columns(
    config: UrbanFormConfig, place: Place, population_path: str | None, metric: gpd.GeoSeries, ledger: Ledger, notes: list[str]
) -> dict[str, Any]:
    """Residents and densities; none without a table of the population."""
    path = Path(population_path or Path(config.data_root) / place.region / "population.csv")
    if population_path is None and not path.is_file():
        notes.append(f"no population: {path} is not there")
        return {}
    residents = read_population(str(path), config.population_column, list(metric.index), ledger)
    unknown = metric.index[np.isnan(residents)]
    ledger.leave_out("units without a known population, also out of the area of the density", unknown)
    if len(unknown):
        notes.append(f"units of unknown population: {len(unknown):,}")
    plain, weighted = urban_form.population_density(residents, urban_form.unit_areas_km2(metric))
    return {
        "residents": np.nansum(residents).round() if len(unknown) < len(metric) else None,
        "population_density_per_km2": plain,
        "weighted_population_density_per_km2": weighted,
    }


def flow_columns(
    config: UrbanFormConfig, place: Place, units: gpd.GeoDataFrame, metric: gpd.GeoSeries, ledger: Ledger, notes: list[str]
) -> dict[str, Any]:
    """Jobs and distance decay; none without flows."""
    try:
        path = find_flows(config, place, True, ledger)
    except MissingInputError as absent:
        notes.append(f"no flows: {absent}")
        return {}
    assert path is not None
    flows = read_flows(path, tuple(units.index), config.drop_unknown_units, ledger).universe(config.universe)
    if not len(flows):
        notes.append(f"no flow of the universe {config.universe} in {path}")
        return {}
    return job_columns(flows, metric) | decay_columns(config, flows, units)


def job_columns(flows: FlowTable, metric: gpd.GeoSeries) -> dict[str, Any]:
    """How the jobs of a region concentrate."""
    jobs = np.bincount(flows.destination, flows.count, minlength=len(metric))
    area_km2 = urban_form.unit_areas_km2(metric)
    centre = urban_form.densest(jobs, area_km2)
    centroids = metric.centroid
    distance_m = centroids.distance(centroids.iloc[centre]).to_numpy()
    return {
        "jobs": jobs.sum(),
        "job_rank_size_slope": rank_size_slope(jobs),
        "job_centre": metric.index[centre],
        "jobs_within_5_km_share": urban_form.share_within(jobs, distance_m),
        "job_centralisation": urban_form.centralisation(jobs, area_km2, distance_m),
    }


def decay_columns(config: UrbanFormConfig, flows: FlowTable, units: gpd.GeoDataFrame) -> dict[str, Any]:
    """The distance decay of a region, by the great-circle distances that its flow model has too."""
    graph = build_graph(units, None, Ledger("urban_form", quiet=True))  # who is next to whom does not matter here
    lengths = trip_lengths(graph.distance_m(flows.origin, flows.destination), flows.count, config.round_km)
    decay, free = fit_distance_decay(lengths), fit_distance_decay(lengths, smallest_exponent=None)
    columns = {
        "commuters_fitted": decay.num_commuters,
        "commuters_left_out": decay.num_left_out,
        "mean_distance_km": decay.mean_km,
        "lambda_per_km": decay.lambda_per_km,
        "ks_d": decay.ks_d,
        "ks_d_below": decay.ks_d_below,
    }
    if decay.laws:
        columns["akaike_weight_exponential"] = decay.laws[EXPONENTIAL].akaike_weight
        columns["truncated_exponent"] = free.laws[TRUNCATED].exponent
    return columns
