"""``python -m imagery2flow <command>``: everything that is not one of the five numbered stages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

from imagery2flow.run.acquire_config import AcquireConfig
from imagery2flow.run.adopt_config import AdoptConfig
from imagery2flow.run.check_config import CheckConfig
from imagery2flow.run.cities_config import CitiesConfig
from imagery2flow.run.cli import parse_config
from imagery2flow.run.config import FlowMapConfig, SyntheticConfig
from imagery2flow.run.distances_config import DistancesConfig
from imagery2flow.run.explain_config import ExplainConfig
from imagery2flow.run.flow_config import EvaluateConfig, FoldsConfig, ImportConfig, ResultsConfig
from imagery2flow.run.form_config import UrbanFormConfig
from imagery2flow.run.land_cover_config import LandCoverConfig
from imagery2flow.run.report_config import ReportConfig
from imagery2flow.run.scene_map_config import SceneMapConfig
from imagery2flow.run.stage import run_stage
from imagery2flow.run.synthetic_cities_config import SyntheticCitiesConfig


def synthetic(argv: Sequence[str]) -> int:
    """Generates a metro with known flows."""
    config = parse_config("python -m imagery2flow synthetic", SyntheticConfig, argv)
    from imagery2flow.sources.synthetic import generate_metro  # after parsing: --help answers at once

    return run_stage("synthetic", config, generate_metro)


def synthetic_cities(argv: Sequence[str]) -> int:
    """Generates cities, each with a look of its own, and indexes of them."""
    config = parse_config("python -m imagery2flow synthetic_cities", SyntheticCitiesConfig, argv)
    from imagery2flow.sources.synthetic_cities import generate_cities

    return run_stage("synthetic_cities", config, generate_cities)


def acquire(argv: Sequence[str]) -> int:
    """Fetches a region's tracts, flows, population, imagery and land cover from public sources."""
    config = parse_config("python -m imagery2flow acquire", AcquireConfig, argv)
    from imagery2flow.imagery.land_cover import count_land_cover
    from imagery2flow.imagery.units import read_units
    from imagery2flow.sources import acquire as work

    return run_stage("acquire", config, partial(work.acquire, read_units=read_units, count_land_cover=count_land_cover))


def adopt(argv: Sequence[str]) -> int:
    """Brings a region of a folder in the published layout to where the stages look."""
    config = parse_config("python -m imagery2flow adopt", AdoptConfig, argv)
    from imagery2flow.flows import adopt as work

    return run_stage("adopt", config, work.adopt)


def check(argv: Sequence[str]) -> int:
    """Looks at all inputs of a run before it starts, and lists every fault at once."""
    config = parse_config("python -m imagery2flow check", CheckConfig, argv)
    from imagery2flow.flows import check as work

    return run_stage("check", config, work.check)


def distances(argv: Sequence[str]) -> int:
    """Measures distances by road between neighbouring units."""
    config = parse_config("python -m imagery2flow distances", DistancesConfig, argv)
    from imagery2flow.flows.distances import write_distances

    return run_stage("distances", config, write_distances)


def land_cover(argv: Sequence[str]) -> int:
    """Measures the area of every class of land cover in every unit."""
    config = parse_config("python -m imagery2flow land_cover", LandCoverConfig, argv)
    from imagery2flow.imagery.land_cover import write_land_cover

    return run_stage("land_cover", config, write_land_cover)


def urban_form(argv: Sequence[str]) -> int:
    """Measures the shape, density, centrality and distance decay of regions."""
    config = parse_config("python -m imagery2flow urban_form", UrbanFormConfig, argv)
    from imagery2flow.flows.form_table import write_form

    return run_stage("urban_form", config, write_form)


def import_published(argv: Sequence[str]) -> int:
    """Turns published weights into a flow model."""
    config = parse_config("python -m imagery2flow import_published", ImportConfig, argv)
    from imagery2flow.flows import published

    return run_stage("import_published", config, published.import_published)


def results(argv: Sequence[str]) -> int:
    """Prints every score of a flow model as one table."""
    config = parse_config("python -m imagery2flow results", ResultsConfig, argv)
    from imagery2flow.flows.results import collect_results  # after parsing: --help answers at once

    return run_stage("results", config, collect_results)


def evaluate(argv: Sequence[str]) -> int:
    """Scores models on splits and universes over several seeds, beside their controls."""
    config = parse_config("python -m imagery2flow evaluate", EvaluateConfig, argv)
    from imagery2flow.flows import evaluate as work

    return run_stage("evaluate", config, work.evaluate)


def folds(argv: Sequence[str]) -> int:
    """Joins five models that were each tested on another fifth of the origins."""
    config = parse_config("python -m imagery2flow folds", FoldsConfig, argv)
    from imagery2flow.flows.folds import join_folds

    return run_stage("folds", config, join_folds)


def flow_map(argv: Sequence[str]) -> int:
    """Draws a region's imagery, observed and predicted flows."""
    config = parse_config("python -m imagery2flow flow_map", FlowMapConfig, argv)
    from imagery2flow.figures.maps import draw_map

    return run_stage("flow_map", config, draw_map)


def scene_map(argv: Sequence[str]) -> int:
    """Slides a window over a scene and maps what a model says of every place."""
    config = parse_config("python -m imagery2flow map", SceneMapConfig, argv)
    from imagery2flow.figures.scene_maps import write_scene_map

    return run_stage("map", config, write_scene_map)


def report(argv: Sequence[str]) -> int:
    """Makes one HTML file of a run: scores, figures, and an interactive map of its flows."""
    positional = bool(argv) and not argv[0].startswith("-")
    config = parse_config("python -m imagery2flow report", ReportConfig, ["--run_dir", *argv] if positional else argv)
    from imagery2flow.figures.report import write_report

    return run_stage("report", config, write_report)


def explain(argv: Sequence[str]) -> int:
    """Shows where in a tile a classifier or regressor finds what it says of it."""
    config = parse_config("python -m imagery2flow explain", ExplainConfig, argv)
    from imagery2flow.cities import explain as work
    from imagery2flow.figures.explanations import draw_explanations

    return run_stage("explain", config, partial(work.explain, draw=draw_explanations))


def cities(argv: Sequence[str]) -> int:
    """Scores how well cities are recognised, which look alike, and how well their indexes are predicted."""
    config = parse_config("python -m imagery2flow cities", CitiesConfig, argv)
    from imagery2flow.cities.identify import score_cities
    from imagery2flow.figures.city_scores import city_figures

    return run_stage("cities", config, partial(score_cities, draw_figures=city_figures))


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "synthetic": synthetic,
    "synthetic_cities": synthetic_cities,
    "acquire": acquire,
    "adopt": adopt,
    "check": check,
    "distances": distances,
    "land_cover": land_cover,
    "urban_form": urban_form,
    "import_published": import_published,
    "evaluate": evaluate,
    "folds": folds,
    "results": results,
    "flow_map": flow_map,
    "map": scene_map,
    "report": report,
    "explain": explain,
    "cities": cities,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Hands the rest of the command line to the named command; returns its exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments and arguments[0] in COMMANDS:
        return COMMANDS[arguments[0]](arguments[1:])
    asked_for_help = bool(arguments) and arguments[0] in ("-h", "--help")
    listing = "\n".join(f"  {name}: {command.__doc__}" for name, command in COMMANDS.items())
    print(f"usage: python -m imagery2flow <command> [flags]\n{listing}", file=sys.stdout if asked_for_help else sys.stderr)
    return 0 if asked_for_help else 2


if __name__ == "__main__":
    sys.exit(main())
