"""Generated cities, each with a look of its own, as a tree ``<city>/<site>/<image>`` with a table of indexes.

A city has a street grid of its own spacing and direction, a colour of its roofs and a share of blocks that are planted with trees; its sites differ by chance.
The table ``indexes.csv`` has two indexes with a value per city: ``greenness``, 100 times the share of planted blocks, which every image shows, and ``random``,
which none shows. A method that is scored on cities that it never saw must find the first and not the second.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rasterio.transform import from_origin

from imagery2flow.run.files import check_output_folder
from imagery2flow.run.stage import Ledger
from imagery2flow.run.synthetic_cities_config import SyntheticCitiesConfig
from imagery2flow.run.tables import write_table
from imagery2flow.sources.synthetic import write_raster

GSD_M = 2.0
BANDS = ("red", "green", "blue")
STREET, TREES = np.array([95.0, 95.0, 100.0]), np.array([45.0, 90.0, 40.0])
SPACINGS_PX, STREET_PX = (10.0, 26.0), 2.5
SITE_SPREAD = 0.08  # how much the share of planted blocks differs between the sites of a city, at most
NOISE = 7.0  # standard deviation of a pixel's grey value
FREE_PIXELS = 1 << 8  # blocks beyond which the random field of a city repeats itself


@dataclass(frozen=True)
class Look:
    """What a city looks like.

    Attributes:
        spacing_px: From street to street.
        angle: Direction of the streets in radians.
        roof: Red, green and blue of the roofs, 0..255.
        planted: Share of blocks with trees, 0..1.
    """

    spacing_px: float
    angle: float
    roof: np.ndarray
    planted: float


def generate_cities(config: SyntheticCitiesConfig, ledger: Ledger) -> Path:
    """Generates cities and returns the path of the ``run.json``.

    Raises:
        InputError: The output folder cannot be made.
    """
    root = Path(config.output_dir)
    check_output_folder(root, "--output_dir")
    random = np.random.default_rng(config.seed)
    looks = {f"City {number:02d} ({code_for(number)})": look for number, look in enumerate(draw_looks(config.num_cities, random), start=1)}
    for city, look in looks.items():
        for site in range(1, config.num_sites + 1):
            planted = float(np.clip(look.planted + random.uniform(-SITE_SPREAD, SITE_SPREAD), 0, 1))
            for image in range(1, config.images_per_site + 1):
                folder = root / "raw" / city / f"site{site}"
                folder.mkdir(parents=True, exist_ok=True)
                transform = from_origin(300_000.0 + 20_000 * site, 4_500_000.0 + 20_000 * image, GSD_M, GSD_M)
                pixels = draw_image(config.size_px, look, planted, random)
                write_raster(folder / f"image{image}.tif", pixels, BANDS, transform, f"EPSG:{32600 + config.utm_zone}")
    table = pd.DataFrame({"city": [code_for(number) for number in range(1, config.num_cities + 1)]})
    table["greenness"] = [round(100 * look.planted, 1) for look in looks.values()]
    table["random"] = random.permutation(np.linspace(0, 100, config.num_cities)).round(1)
    write_table(root / "indexes.csv", table)
    ledger.went_out = {"cities": config.num_cities, "images": config.num_cities * config.num_sites * config.images_per_site}
    ledger.note(f"images are in {root / 'raw'}, the cities' indexes in {root / 'indexes.csv'}")
    return root / "synthetic_cities_run.json"


def code_for(number: int) -> str:
    """The code of a city, which stands in parentheses behind its name: C01."""
    return f"C{number:02d}"


def draw_looks(num_cities: int, random: np.random.Generator) -> list[Look]:
    """Looks that differ from each other in every respect, each respect in an order of its own."""
    steps = (np.arange(num_cities) + 0.5) / num_cities
    spacing = SPACINGS_PX[0] + (SPACINGS_PX[1] - SPACINGS_PX[0]) * random.permutation(steps)
    angle = np.pi / 2 * random.permutation(steps)
    warmth, planted = random.permutation(steps), 0.1 + 0.7 * random.permutation(steps)
    roofs = np.stack([120 + 80 * warmth, 120 + 20 * warmth, 150 - 50 * warmth], axis=1)
    return [Look(*values) for values in zip(spacing.tolist(), angle.tolist(), roofs, planted.tolist(), strict=True)]


def draw_image(size_px: int, look: Look, planted: float, random: np.random.Generator) -> np.ndarray:
    """One image [3, size_px, size_px] of uint8, without 0, which marks missing pixels."""
    row, column = np.mgrid[:size_px, :size_px] + random.uniform(0, 1000, (2, 1, 1))
    along = column * np.cos(look.angle) + row * np.sin(look.angle)
    across = row * np.cos(look.angle) - column * np.sin(look.angle)
    block = tuple(np.floor(part / look.spacing_px).astype(int) % FREE_PIXELS for part in (along, across))
    is_street = (along % look.spacing_px < STREET_PX) | (across % look.spacing_px < STREET_PX)
    is_planted = random.random((FREE_PIXELS, FREE_PIXELS))[block] < planted
    shade = random.normal(1, 0.12, (FREE_PIXELS, FREE_PIXELS))[block]  # roofs of one city differ in brightness
    image = np.where(is_planted[..., None], TREES, look.roof * shade[..., None])
    image = np.where(is_street[..., None], STREET, image) + random.normal(0, NOISE, (size_px, size_px, 3))
    return np.clip(np.rint(image), 1, 255).astype(np.uint8).transpose(2, 0, 1)
