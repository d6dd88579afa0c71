#!/usr/bin/env python
"""All five stages on real imagery and flows: the encoder and the flow model of Manhattan, tested on three other places.

    make real DATA=../shared/data          or          python benchmarks/real_sample.py --data ../shared/data

Bronx and Staten Island have Manhattan's bands; Raleigh has another CRS and five bands, of which only red and NIR are also Manhattan's: there the
first run must end in an error about bands, and a second encoder on those two runs. Prints the table of docs/results.md; everything is
written below --out, and patches, encoders and vectors that are there already are not made again.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from imagery2flow.flows.results import as_markdown  # noqa: E402
from imagery2flow.run.stage import source_commit  # noqa: E402

STATUS_INPUT_ERROR = 2


@dataclass(frozen=True)
class City:
    """A city of the sample: its scene and what stage 1 calls the imagery."""

    name: str
    scene: str
    tag: str
    year: int


MANHATTAN = City("manhattan", "scene_median_toa.tif", "l5", 2010)
NEIGHBOURS = (City("bronx", "scene_median_toa.tif", "l5", 2010), City("staten_island", "scene_median_toa.tif", "l5", 2010))
RALEIGH = City("raleigh", "scene_landsat7_2000_dn.tif", "l7", 2000)
COMMON_BANDS = ("red", "nir")


class Sample:
    """The stages on the sample, by subprocess as a user runs them."""

    def __init__(self, data: Path, out: Path, epochs: int, seed: int) -> None:
        self.data, self.out, self.epochs, self.seed = data, out, epochs, seed

    def stage(self, script: str, *flags: object, expected: int = 0) -> str:
        """Runs a stage; returns what it wrote to standard error.

        Raises:
            SystemExit: Its exit status is not the expected one.
        """
        command = [sys.executable, "-W", "ignore", str(ROOT / script), *(str(flag) for flag in flags)]
        print("\n$ python", script, *command[4:], flush=True)
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            sys.stderr.write(line)
            said.append(line)
        if process.wait() != expected:
            sys.exit(f"{script} ended with status {process.returncode}, not {expected}")
        return "".join(said)

    def patches(self, city: City) -> Path:
        """Stage 1."""
        folder = self.out / city.name / f"{city.tag}_{city.year}"
        if not (folder / "run.json").is_file():
            source = self.data / city.name
            self.stage(
                "img_preprocessing.py", "--input_tif_path", source / city.scene, "--shp_path", source / "units.gpkg",
                "--output_tif_dir", self.out, "--region", city.name, "--tag", city.tag, "--year", city.year,
            )  # fmt: skip
        return folder

    def encoder(self, log: str, *bands: str) -> None:
        """Stage 2 on Manhattan, all bands unless named."""
        if not (self.out / "ckpt" / f"{log}_img_{self.epochs}_run.json").is_file():
            chosen = ("--bands", *bands) if bands else ()
            self.stage(
                "train_img_encoder.py", "--data_path", self.patches(MANHATTAN), *chosen, "--total_epoch", self.epochs, "--cos",
                "--model_path", self.out / "ckpt", "--log", log, "--seed", self.seed,
            )  # fmt: skip

    def vectors(self, city: City, log: str, *flags: str, expected: int = 0) -> tuple[Path, str]:
        """Stage 3; returns the table and what the stage said."""
        table = self.out / city.name / f"{log}.csv"
        said = self.stage(
            "get_img_embedding.py", "--data_path", self.patches(city), "--model_path", self.out / "ckpt", "--log", log,
            "--output_path", table, *flags, expected=expected,
        )  # fmt: skip
        return table, said

    def region_flags(self, city: City, log: str, table: Path) -> list[object]:
        """The flags that stages 4 and 5 share."""
        units = self.data / city.name / "units.gpkg"
        place = ["--region", city.name, "--units_path", units, "--flows_path", self.data / city.name / "flows.csv", "--year", 2015]
        return ["--log", log, "--node_feats_path", table, *place, "--output_dir", self.out / "outputs"]

    def train(self, log: str, table: Path) -> None:
        """Stage 4 on Manhattan."""
        population = self.data / MANHATTAN.name / "features_acs_osm.csv"
        self.stage(
            "train_ODPrediction.py", *self.region_flags(MANHATTAN, log, table), "--seed", self.seed,
            "--population_path", population, "--population_column", "demo_00",
        )  # fmt: skip

    def results(self, log: str) -> pd.DataFrame:
        """Every score of a model."""
        self.stage("imagery2flow/__main__.py", "results", "--output_dir", self.out / "outputs", "--log", log, "--data_root", self.out)
        return pd.read_csv(self.out / "outputs" / log / "results.csv").assign(bands=log.removeprefix("manhattan_").replace("_", ", "))


def main() -> None:
    """Runs everything and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the real sample")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "real_sample")
    parser.add_argument("--epochs", type=int, default=60, help="epochs of each encoder")
    parser.add_argument("--seed", type=int, default=42)
    flags = parser.parse_args()
    if not (flags.data / MANHATTAN.name).is_dir():
        sys.exit(f"--data {flags.data} has no folder {MANHATTAN.name}; name the folder of the real sample")
    sample = Sample(flags.data, flags.out, flags.epochs, flags.seed)

    everything, common = "manhattan_red_nir_thermal", "manhattan_red_nir"
    sample.encoder(everything)
    sample.train(everything, sample.vectors(MANHATTAN, everything)[0])
    for city in NEIGHBOURS:
        sample.stage("test_ODPrediction.py", *sample.region_flags(city, everything, sample.vectors(city, everything)[0]))
    _, refusal = sample.vectors(RALEIGH, everything, expected=STATUS_INPUT_ERROR)

    sample.encoder(common, *COMMON_BANDS)
    sample.train(common, sample.vectors(MANHATTAN, common)[0])
    # Raleigh's scene holds digital numbers of another sensor: each band is scaled by Raleigh's own statistics.
    table, _ = sample.vectors(RALEIGH, common, "--normalisation", "patches")
    sample.stage("test_ODPrediction.py", *sample.region_flags(RALEIGH, common, table))

    table = pd.concat([sample.results(everything), sample.results(common)], ignore_index=True)
    print(f"\n{datetime.date.today()}, commit {source_commit()}, python benchmarks/real_sample.py {' '.join(sys.argv[1:])}\n")
    print(as_markdown(table[["bands", *table.columns[:-1]]]))
    print(f"\nRaleigh with the encoder of red, nir, thermal: {refusal.strip().splitlines()[-1]}")


if __name__ == "__main__":
    main()
