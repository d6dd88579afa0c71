#!/usr/bin/env python
"""The tables of fig. 5: how well the model of each metropolitan area predicts each other one, for both sensors and both decoders.

    python runs/transfer_matrix.py --output_dir outputs/paper

Reads   <output_dir>/<region>_<tag>_<year>/metrics.json and <output_dir>/<region>_<tag>_<year>/<other>_<year>/metrics.json, as runs/reproduce.sh leaves them.
Writes  <output_dir>/transfer_<tag>_<year>_<decoder>_gt10_cpc.csv: a row per target, a column per source; transfer_run.json.
"""

import sys
from collections.abc import Sequence

from imagery2flow.run.cli import parse_config
from imagery2flow.run.flow_config import TransferConfig
from imagery2flow.run.stage import run_stage


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the flags, collects the scores, returns the exit status."""
    config = parse_config("runs/transfer_matrix.py", TransferConfig, argv)
    from imagery2flow.flows.transfer import collect_transfer  # after parsing: --help answers at once

    return run_stage("transfer", config, collect_transfer)


if __name__ == "__main__":
    sys.exit(main())
