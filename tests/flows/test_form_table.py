import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest

from imagery2flow.__main__ import main
from imagery2flow.flows.distance_decay import TRUNCATED, fit_distance_decay, trip_lengths
from imagery2flow.flows.form_table import COLUMNS, write_form
from imagery2flow.flows.graph import build_graph
from imagery2flow.flows.rank_size import rank_size_slope
from imagery2flow.flows.table import read_flows
from imagery2flow.flows.urban_form import boyce_clark
from imagery2flow.run.errors import InputError, MissingInputError, TableError
from imagery2flow.run.form_config import UrbanFormConfig
from imagery2flow.run.stage import Ledger
from tests.flows.conftest import COLUMNS as GRID_COLUMNS
from tests.flows.conftest import GEOCODES, ROWS, SIDE_M, grid_units, write_region

QUIET = Ledger("test", quiet=True)


@pytest.fixture
def here(town, monkeypatch):
    monkeypatch.chdir(town)
    return town


def form(ledger=QUIET, **changes):
    config = UrbanFormConfig(**{"region": ["town"], "output_path": "form.csv", **changes})
    write_form(config, ledger)
    return pd.read_csv("form.csv", dtype={"job_centre": str}).set_index("region")


def test_the_row_of_a_grid_is_that_of_its_rectangle(here):
    row = form().loc["town"]
    width, height = GRID_COLUMNS * SIDE_M / 1000, ROWS * SIDE_M / 1000
    # UTM squares at the central meridian are .04 % smaller on the map than on the ellipsoid, in length.
    assert row.num_units == len(GEOCODES)
    assert row.area_km2 == pytest.approx(width * height, rel=2e-3)
    assert row.perimeter_km == pytest.approx(2 * (width + height), rel=1e-3)
    assert row.polsby_popper == pytest.approx(4 * np.pi * width * height / (2 * (width + height)) ** 2, rel=1e-3)
    assert row.moment_of_inertia_compactness == pytest.approx(width * height * 6 / np.pi / (width**2 + height**2), rel=1e-3)
    residents = pd.read_csv("data/town/population.csv").population
    assert row.residents == residents.sum()
    assert row.population_density_per_km2 == pytest.approx(residents.sum() / (width * height), rel=2e-3)
    assert row.weighted_population_density_per_km2 == pytest.approx((residents**2).sum() / residents.sum(), rel=2e-3)
    assert pd.isna(row.note)
    assert tuple(pd.read_csv("form.csv", nrows=0)) == COLUMNS


@pytest.mark.parametrize(("universe", "minimum"), [("gt10", 10), ("positive", 0)])
def test_jobs_and_decay_are_those_of_the_flows_of_the_universe(here, universe, minimum):
    row = form(universe=universe).loc["town"]
    flows = pd.read_csv("data/town/flows.csv", dtype={"h_geocode": str, "w_geocode": str}).query("count > @minimum")
    jobs = flows.groupby("w_geocode")["count"].sum().reindex(GEOCODES, fill_value=0)
    assert row.jobs == jobs.sum()
    assert row.job_rank_size_slope == pytest.approx(rank_size_slope(jobs.to_numpy(float)))
    assert row.job_centre == jobs.idxmax()  # squares of one area
    place = {name: np.array([number % GRID_COLUMNS, number // GRID_COLUMNS]) for number, name in enumerate(GEOCODES)}
    near = [name for name in GEOCODES if np.hypot(*(place[name] - place[row.job_centre])) < 4.99]
    assert row.jobs_within_5_km_share == pytest.approx(jobs[near].sum() / jobs.sum(), abs=0.03)
    km = np.array([np.hypot(*(place[h] - place[w])) for h, w in zip(flows.h_geocode, flows.w_geocode, strict=True)])
    kept = np.rint(km) > 0
    mean_km = np.average(np.rint(km)[kept], weights=flows["count"][kept])
    assert row.commuters_fitted == flows["count"][kept].sum()
    assert row.commuters_left_out == flows["count"][~kept].sum()
    assert row.mean_distance_km == pytest.approx(mean_km)
    assert row.lambda_per_km == pytest.approx(1 / (mean_km - 1))
    assert row.universe == universe


def test_exact_distances_and_the_free_exponent_are_those_of_the_fit(here):
    row = form(round_km=False).loc["town"]
    units = grid_units().set_index("GEOID20")
    flows = read_flows("data/town/flows.csv", GEOCODES, False, QUIET).universe("gt10")
    lengths = trip_lengths(build_graph(units, None, QUIET).distance_m(flows.origin, flows.destination), flows.count, rounded=False)
    decay = fit_distance_decay(lengths)
    assert row.lambda_per_km == pytest.approx(decay.lambda_per_km)
    assert row.truncated_exponent == pytest.approx(fit_distance_decay(lengths, None).laws[TRUNCATED].exponent)


def test_a_region_without_flows_or_population_keeps_its_row_and_says_so(here):
    write_region(here, "bare", west=600_000.0)
    for name in ("flows.csv", "population.csv"):
        (here / "data" / "bare" / name).unlink()
    ledger = Ledger("test", quiet=True)
    table = form(ledger, region=["town", "bare"])
    bare = table.loc["bare"]
    absent = ["residents", "population_density_per_km2", "jobs", "job_rank_size_slope", "job_centre", "lambda_per_km", "commuters_fitted"]
    assert bare[absent].isna().all() and table.loc["town", absent].notna().all()
    assert bare.bcsi == pytest.approx(table.loc["town"].bcsi, rel=0.02)  # off the central meridian its grid is turned against the rays
    assert bare.note == (
        "no population: data/bare/population.csv is not there; "
        "no flows: region bare has neither flows_2020.csv nor flows.csv in data/bare; put one there or name the flows with --flows_path"
    )
    assert ledger.notes == [f"bare: {bare.note}"]
    assert (ledger.came_in["units"], ledger.went_out["regions"]) == (60, 2)


def test_flows_of_too_few_commuters_and_units_of_unknown_population_are_told(here):
    flows = pd.read_csv("data/town/flows.csv", dtype=str).assign(count=5)
    flows.to_csv("data/town/flows.csv", index=False)
    pd.read_csv("data/town/population.csv", dtype=str)[:-2].to_csv("data/town/population.csv", index=False)
    ledger = Ledger("test", quiet=True)
    row = form(ledger).loc["town"]
    assert row.note == "units of unknown population: 2; no flow of the universe gt10 in data/town/flows.csv"
    assert pd.isna(row.jobs) and pd.isna(row.lambda_per_km)
    ((reason, ids),) = ledger.left_out.items()
    assert reason == "units without a known population, also out of the area of the density" and ids == list(GEOCODES[-2:])
    residents = pd.read_csv("data/town/population.csv").population
    assert row.population_density_per_km2 == pytest.approx(residents.sum() / 28, rel=2e-3)


def test_one_unit_whose_residents_work_at_home_has_a_shape_and_no_decay(here, write_units):
    unit = grid_units().iloc[[0]]
    path = write_units(dict(zip(unit.GEOID20, unit.geometry, strict=True)), crs=unit.crs)
    Path("one.csv").write_text(f"h_geocode,w_geocode,count\n{GEOCODES[0]},{GEOCODES[0]},70\n")
    row = form(units_path=[path], flows_path=["one.csv"]).loc["town"]
    assert row.bcsi == pytest.approx(boyce_clark(unit.geometry.iloc[0]), rel=1e-2)  # the projection turns it a little
    assert (row.jobs, row.jobs_within_5_km_share, row.job_centralisation) == (70, 1, 0)
    assert (row.commuters_fitted, row.commuters_left_out) == (0, 70)
    assert row[["lambda_per_km", "ks_d", "akaike_weight_exponential", "job_rank_size_slope"]].isna().all()


def test_the_order_of_rows_changes_nothing(here, tmp_path_factory, monkeypatch):
    form()
    expected = Path("form.csv").read_bytes()
    other = tmp_path_factory.mktemp("shuffled")
    write_region(other, shuffle=3)
    monkeypatch.chdir(other)
    form()
    assert Path("form.csv").read_bytes() == expected


def test_what_is_missing_is_told_in_one_sentence(here):
    with pytest.raises(MissingInputError, match=r"region far has no units.gpkg in data/far"):
        form(region=["far"])
    with pytest.raises(MissingInputError, match=r"flows gone.csv does not exist"):
        form(flows_path=["gone.csv"])
    with pytest.raises(TableError, match=r"needs the columns geocode and people"):
        form(population_column="people")
    with pytest.raises(InputError, match=r"--units_path names 1 files for 2 regions \(town far\); give one for each"):
        form(region=["town", "far"], units_path=["u.gpkg"])
    with pytest.raises(InputError, match=r"--region town town names a region twice"):
        form(region=["town", "town"])
    with pytest.raises(InputError, match=r"--output_path form.txt must end in .csv"):
        form(output_path="form.txt")
    assert not Path("form.csv").exists()


def test_the_command_writes_the_table_and_its_run_file(here):
    assert main(["urban_form", "--region", "town", "--output_path", "form.parquet"]) == 0
    assert pd.read_parquet("form.parquet").region.tolist() == ["town"]
    run = json.loads(Path("form.parquet.run.json").read_text())
    assert sorted(run["inputs_sha256"]) == ["data/town/flows.csv", "data/town/population.csv", "data/town/units.gpkg"]


def test_points_are_refused(here):
    units = grid_units()
    gpd.GeoDataFrame({"GEOID20": units.GEOID20}, geometry=units.centroid, crs=units.crs).to_file("points.gpkg")
    with pytest.raises(InputError, match=r"needs polygons but the units points.gpkg hold Point"):
        form(units_path=["points.gpkg"])
