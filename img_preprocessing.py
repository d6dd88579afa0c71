#!/usr/bin/env python
"""Stage 1: one image patch per areal unit.

    python img_preprocessing.py --input_tif_path scene.tif --shp_path tracts.gpkg --output_tif_dir data --region M1 --year 2020 --tag l8
    python img_preprocessing.py --input_tif_path city.jpg --mode grid --size 480 --stride 240 --output_tif_dir tiles --region city

Reads   one or several scenes; units with an id column and a CRS.
Writes  <output_tif_dir>/<region>/<tag>_<year>/: a GeoTIFF per unit, manifest.csv, stats.json, run.json.
Next    train_img_encoder.py
"""

import sys
from collections.abc import Sequence

from imagery2flow.run.cli import parse_config
from imagery2flow.run.config import PreprocessingConfig
from imagery2flow.run.stage import run_stage


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the flags, runs the stage, returns the exit status."""
    config = parse_config("img_preprocessing.py", PreprocessingConfig, argv)
    from imagery2flow.imagery.patches import cut_patches  # after parsing: --help answers at once

    return run_stage("img_preprocessing", config, cut_patches)


if __name__ == "__main__":
    sys.exit(main())
