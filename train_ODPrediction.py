#!/usr/bin/env python
"""Stage 4: train the flow model of one region: graph attention network, bilinear decoder, LightGBM decoder.

    python train_ODPrediction.py --region M1 --node_feats_path data/M1/M1_l8.csv --log M1_l8
    python train_ODPrediction.py --config configs/paper/train_ODPrediction.yaml --region M1 --node_feats_path data/M1/M1_l8.csv --log M1_l8

Reads   the embeddings of stage 3; <data_root>/<region>/units.gpkg and flows.csv (or --units_path, --flows_path).
Writes  <output_dir>/<log>/: od_model.pt, lightgbm*.txt, split.csv, training.csv, predictions_*.csv, metrics.json, run.json.
Next    test_ODPrediction.py
"""

import sys
from collections.abc import Sequence

from imagery2flow.run.cli import parse_config
from imagery2flow.run.flow_config import FlowTrainingConfig
from imagery2flow.run.stage import run_stage


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the flags, runs the stage, returns the exit status."""
    config = parse_config("train_ODPrediction.py", FlowTrainingConfig, argv)
    from imagery2flow.flows.training import train_flows  # after parsing: --help answers at once

    return run_stage("train_ODPrediction", config, train_flows)


if __name__ == "__main__":
    sys.exit(main())
