#!/usr/bin/env python
"""Stage 5: predict the flows of another region with the model of stage 4; scores where its flows are known.

    python test_ODPrediction.py --region M2 --node_feats_path data/M2/M1_l8.csv --log M1_l8
    python test_ODPrediction.py --region M2 --node_feats_path data/M2/M1_l8.csv --log M1_l8 --all_pairs --table_format parquet

Reads   <output_dir>/<log>/ of stage 4; embeddings of the region, made with the source region's encoder; <data_root>/<region>/units.gpkg
        and, if there are any, flows.csv (or --units_path, --flows_path).
Writes  <output_dir>/<log>/<region>_<year>/: predictions_bilinear, predictions_lightgbm, metrics.json, run.json.
"""

import sys
from collections.abc import Sequence

from imagery2flow.run.cli import parse_config
from imagery2flow.run.flow_config import FlowTestConfig
from imagery2flow.run.stage import run_stage


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the flags, runs the stage, returns the exit status."""
    config = parse_config("test_ODPrediction.py", FlowTestConfig, argv)
    from imagery2flow.flows.prediction import test_flows  # after parsing: --help answers at once

    return run_stage("test_ODPrediction", config, test_flows)


if __name__ == "__main__":
    sys.exit(main())
