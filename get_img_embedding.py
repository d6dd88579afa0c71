#!/usr/bin/env python
"""Stage 3: one vector per patch with a trained encoder, or what a model that was trained with labels predicts of each.

    python get_img_embedding.py --data_path data/M1/l8_2020 --model_path ckpt --log M1_l8 --output_path data/M1/M1_l8.csv
    python get_img_embedding.py --data_path data/M2/l8_2020 --ckpt ckpt/M1_l8_img_120.pth --output_path data/M2/M1_l8.csv   # another city
    python get_img_embedding.py --data_path data/cities/rgb_2020 --ckpt ckpt/cities_img_120_best.pth --predict --output_path predictions.parquet

Reads   the patches of stage 1, the checkpoint of stage 2.
Writes  --output_path: geocode, 0..D-1 (CSV or Parquet), and <output_path>.run.json; with --predict geocode, split, probability_<class>
        or predicted_<target> and mean_<target>.
Next    train_ODPrediction.py, test_ODPrediction.py
"""

import sys
from collections.abc import Sequence

from imagery2flow.run.cli import parse_config
from imagery2flow.run.config import EmbeddingConfig
from imagery2flow.run.stage import run_stage


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the flags, runs the stage, returns the exit status."""
    config = parse_config("get_img_embedding.py", EmbeddingConfig, argv)
    from imagery2flow.encoder.embeddings import make_embeddings  # after parsing: --help answers at once

    return run_stage("get_img_embedding", config, make_embeddings)


if __name__ == "__main__":
    sys.exit(main())
