"""A generated metro: imagery that shows land use, and flows that follow a known law of it.

The law (an unconstrained gravity law with exponential decay): the flow from o to d is a Poisson number with the mean

    T_od = G * R_o * J_d * exp(-d_od / D)

with R the residents and J the jobs of a unit, each the sum over its pixels of a density; d the distance between centroids, and for
a unit with itself half the radius of a circle of its area. Each pixel has a land use (water, park, houses, blocks of flats, industry, offices) and
a density of building; both decide the resident and job density, the reflectance in three bands and the texture. So everything in the
law can be seen from above, and ``law.csv`` holds the mean of every pair; what the flows deviate from it is chance.

Writes ``<output_dir>/<region>/``: scene.tif (30 m, red, nir, swir1, reflectance x 10000), land_use.tif (classes by the paper's numbers), units.gpkg,
flows.csv, population.csv, law.csv.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import shapely
from rasterio.features import rasterize
from rasterio.transform import Affine, from_origin
from scipy.ndimage import gaussian_filter
from scipy.stats import poisson

from imagery2flow.run.config import SyntheticConfig
from imagery2flow.run.earth import SQUARE_METRES_PER_KM2
from imagery2flow.run.files import check_output_folder, replacing
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import write_table

GSD_M = 30.0
PIXEL_KM2 = GSD_M**2 / SQUARE_METRES_PER_KM2
BANDS = ("red", "nir", "swir1")
STATE = "01"  # ids begin with 0, as those of ten states do; the county follows from the seed
DECAY_M = 4000.0  # D of the law
GRAVITY = 1.1e-5  # G of the law: commuters per resident and job
SMALLEST_UNIT_PIXELS = 40
LOT_SPREAD = (0.5, 1.5)  # buildings cover this times the density of a lot


@dataclass(frozen=True)
class LandUse:
    """A land use: its class, reflectance (x 10000) of its ground and of its buildings, building size in pixels, and people per km2 where fully built."""

    name: str
    code: int  # of the paper's land use (fig. 4c): 2 commercial, 3 industrial, 4 recreational, 5 and 6 residential; 0, nodata, for water, which it lacks
    ground: tuple[int, int, int]
    building: tuple[int, int, int]
    building_px: int
    residents_per_km2: float
    jobs_per_km2: float


WATER, PARK, HOUSES, FLATS, INDUSTRY, OFFICES = LAND_USES = (
    LandUse("water", 0, (300, 150, 80), (300, 150, 80), 1, 0, 0),
    LandUse("park", 4, (500, 3600, 1700), (700, 3000, 1800), 3, 0, 60),
    LandUse("houses", 6, (700, 3000, 1900), (2500, 2300, 2000), 1, 6500, 400),
    LandUse("flats", 5, (900, 2100, 1700), (1900, 1700, 3300), 2, 26000, 2500),
    LandUse("industry", 3, (1500, 1700, 2300), (3600, 3300, 3400), 6, 200, 9000),
    LandUse("offices", 2, (1000, 1100, 1500), (1300, 2300, 1100), 4, 2500, 45000),
)


@dataclass(frozen=True)
class Landscape:
    """The pixels of a metro: land use number, density of building 0..1, and the resulting people per pixel; [size, size] each."""

    land_use: np.ndarray
    density: np.ndarray
    residents: np.ndarray
    jobs: np.ndarray


def generate_metro(config: SyntheticConfig, ledger: Ledger) -> Path:
    """Generates a metro and returns the path of its ``run.json``.

    Raises:
        InputError: The output folder cannot be made.
    """
    check_output_folder(Path(config.output_dir) / config.region, "--output_dir")
    random = np.random.default_rng(config.seed)
    folder = Path(config.output_dir) / config.region
    folder.mkdir(parents=True, exist_ok=True)
    transform = from_origin(400_000.0, 4_500_000.0, GSD_M, GSD_M)
    crs = f"EPSG:{32600 + config.utm_zone}"
    land = make_landscape(config.size_px, random)
    write_raster(folder / "scene.tif", draw_scene(land, random), BANDS, transform, crs)
    classes = np.array([kind.code for kind in LAND_USES], dtype=np.uint8)[land.land_use]
    write_raster(folder / "land_use.tif", classes[None], ("land_use",), transform, crs)
    units = make_units(config, land, transform, crs, random)
    residents, jobs = people_per_unit(units, land, transform)
    law = flow_law(units, residents, jobs)
    law["count"] = random.poisson(law["mean"])
    flows = law[law["count"] > 0][["h_geocode", "w_geocode", "count"]]
    with replacing(folder / "units.gpkg") as temporary:
        units.reset_index().to_file(temporary, driver="GPKG", layer="tracts")
    write_table(folder / "flows.csv", flows)
    write_table(folder / "law.csv", law)
    population = pd.DataFrame({"geocode": units.index, "population": residents.round().astype(int)})
    write_table(folder / "population.csv", population)
    ledger.went_out.update({"units": len(units), "flows": len(flows), "flows above 10": int((flows["count"] > 10).sum())})
    ledger.note(f"scene.tif, land_use.tif, units.gpkg, flows.csv, population.csv and law.csv are in {folder}")
    return folder / "synthetic_run.json"


def smooth_field(size: int, scale_px: float, random: np.random.Generator) -> np.ndarray:
    """Gaussian random field of zero mean and unit deviation: [size, size]."""
    field = gaussian_filter(random.standard_normal((size, size)), scale_px, mode="wrap")
    return (field - field.mean()) / field.std()


def make_landscape(size: int, random: np.random.Generator) -> Landscape:
    """Lays out a metro: a centre and subcentres, a river, parks, and the density that falls off from the centres."""
    row, column = np.mgrid[0:size, 0:size] / size  # 0..1
    centres = np.concatenate([[[0.5, 0.5]], random.uniform(0.15, 0.85, (4, 2))])
    weight = np.array([1.0, 0.55, 0.5, 0.45, 0.4])
    pull = np.zeros((size, size))
    for (y, x), strength in zip(centres, weight, strict=True):
        pull = np.maximum(pull, strength * np.exp(-np.hypot(row - y, column - x) / 0.16))
    density = np.clip(0.15 + 0.85 * pull + 0.12 * smooth_field(size, size / 24, random), 0.05, 1.0)
    use = np.full((size, size), 2)  # houses
    use[density + 0.12 * smooth_field(size, size / 40, random) > 0.5] = 3  # flats
    use[(smooth_field(size, size / 32, random) > 1.15) & (density < 0.75)] = 4  # industry
    use[density + 0.15 * smooth_field(size, size / 45, random) > 0.72] = 5  # offices
    use[smooth_field(size, size / 40, random) > 1.35] = 1  # parks
    river = 0.62 + 0.06 * np.sin(4 * column + random.uniform(0, 6)) + 0.02 * np.sin(11 * column)
    use[np.abs(row - river) < 0.012] = 0
    built = np.where(use == 0, 0.0, density)
    residents = np.array([kind.residents_per_km2 for kind in LAND_USES])[use] * built * PIXEL_KM2
    jobs = np.array([kind.jobs_per_km2 for kind in LAND_USES])[use] * built * PIXEL_KM2
    return Landscape(use, built, residents, jobs)


def draw_scene(land: Landscape, random: np.random.Generator) -> np.ndarray:
    """Paints the landscape: lots of the land use's building size, each covered by buildings to about the density. [3, size, size], uint16."""
    size = len(land.land_use)
    ground = np.array([kind.ground for kind in LAND_USES], dtype=np.float64)[land.land_use]  # [size, size, 3]
    building = np.array([kind.building for kind in LAND_USES], dtype=np.float64)[land.land_use]
    covered = np.zeros((size, size))
    for number, kind in enumerate(LAND_USES):
        cells = -(-size // kind.building_px)
        lots = random.uniform(*LOT_SPREAD, (cells, cells)).repeat(kind.building_px, axis=0).repeat(kind.building_px, axis=1)[:size, :size]
        covered = np.where(land.land_use == number, land.density * lots, covered)
    image = ground + (building - ground) * covered[..., None]
    image *= 1 + 0.04 * random.standard_normal((size, size, 1)) + 0.02 * random.standard_normal(image.shape)
    return np.clip(np.rint(image), 1, 10_000).astype(np.uint16).transpose(2, 0, 1)


def write_raster(path: Path, image: np.ndarray, names: tuple[str, ...], transform: Affine, crs: str) -> None:
    """Writes a tiled GeoTIFF of named bands [num_bands, size, size]."""
    bands, height, width = image.shape
    profile = {
        "driver": "GTiff",
        "count": bands,
        "height": height,
        "width": width,
        "dtype": image.dtype,
        "crs": crs,
        "transform": transform,
    }
    profile |= {"nodata": 0, "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
    with replacing(path) as temporary, rasterio.open(temporary, "w", **profile) as scene:
        scene.write(image)
        scene.descriptions = names


def make_units(config: SyntheticConfig, land: Landscape, transform: Affine, crs: str, random: np.random.Generator) -> gpd.GeoDataFrame:
    """Voronoi cells, small where many people live or work, large outside, as census tracts are; index ``geocode``."""
    activity = (land.residents + 0.3 * land.jobs + 0.1 * land.residents.mean()).reshape(-1)
    side = config.size_px * GSD_M
    left, top = transform.c, transform.f
    points = spread_points(activity / activity.sum(), config, random)
    rows, columns = np.divmod(points, config.size_px)
    x, y = left + (columns + random.random(len(points))) * GSD_M, top - (rows + random.random(len(points))) * GSD_M
    extent = shapely.box(left, top - side, left + side, top)
    cells = shapely.get_parts(shapely.voronoi_polygons(shapely.multipoints(np.stack([x, y], axis=1)), extend_to=extent))
    cells = shapely.intersection(cells, extent)
    # From the top left, so that ids do not depend on the library's order of cells.
    centre = shapely.centroid(cells)
    order = np.lexsort((shapely.get_x(centre), -shapely.get_y(centre)))
    geocodes = [f"{STATE}{config.seed % 1000:03d}{number:06d}" for number in range(100, 100 * (len(cells) + 1), 100)]
    return gpd.GeoDataFrame(index=pd.Index(geocodes, name="GEOID20"), geometry=cells[order], crs=crs)


def spread_points(probability: np.ndarray, config: SyntheticConfig, random: np.random.Generator) -> np.ndarray:
    """Draws pixels by probability, none nearer than a few pixels to another: [num_units] of positions."""
    chosen: list[int] = []
    nearest = np.sqrt(SMALLEST_UNIT_PIXELS)
    for candidate in random.choice(len(probability), 50 * config.num_units, p=probability):
        row, column = divmod(int(candidate), config.size_px)
        taken = np.array(chosen, dtype=np.int64)
        if not len(taken) or np.hypot(taken // config.size_px - row, taken % config.size_px - column).min() > nearest:
            chosen.append(int(candidate))
        if len(chosen) == config.num_units:
            break
    assert len(chosen) == config.num_units, "the scene is too small for so many units"
    return np.array(chosen)


def people_per_unit(units: gpd.GeoDataFrame, land: Landscape, transform: Affine) -> tuple[np.ndarray, np.ndarray]:
    """Residents and jobs of every unit: [num_units] each."""
    owner = rasterize(
        zip(units.geometry, range(1, len(units) + 1), strict=True), out_shape=land.land_use.shape, transform=transform, dtype="int32"
    )
    residents = np.bincount(owner.reshape(-1), land.residents.reshape(-1), minlength=len(units) + 1)[1:]
    jobs = np.bincount(owner.reshape(-1), land.jobs.reshape(-1), minlength=len(units) + 1)[1:]
    return residents, jobs


def flow_law(units: gpd.GeoDataFrame, residents: np.ndarray, jobs: np.ndarray) -> pd.DataFrame:
    """Mean flow of every pair of units: h_geocode, w_geocode, mean."""
    centroid = units.centroid
    x, y = centroid.x.to_numpy(), centroid.y.to_numpy()
    distance_m = np.hypot(x[:, None] - x, y[:, None] - y)
    np.fill_diagonal(distance_m, 0.5 * np.sqrt(units.area / np.pi))
    mean = GRAVITY * residents[:, None] * jobs[None, :] * np.exp(-distance_m / DECAY_M)
    ids = units.index.to_numpy(object)
    return pd.DataFrame({"h_geocode": ids.repeat(len(ids)), "w_geocode": np.tile(ids, len(ids)), "mean": mean.reshape(-1)})


def best_prediction(mean: np.ndarray, minimum: float) -> np.ndarray:
    """Expected flow of pairs that are known to lie above a minimum: E[X | X > minimum] of Poisson numbers of the law's mean, [num_pairs].

    A score on observed flows above 10 gives away that they are above 10. No prediction has a smaller expected squared error; CPC has its best
    expectation elsewhere, so that a predictor may come out a little above the mean's.
    """
    # E[X; X > k] = mean * P(X > k - 1) for a Poisson number X.
    above, from_one_below = poisson.sf(minimum, mean), poisson.sf(minimum - 1, mean)
    return np.where(above > 0, mean * from_one_below / np.maximum(above, np.finfo(float).tiny), minimum + 1)
