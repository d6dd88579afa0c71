#!/usr/bin/env python
"""Times every stage beside a reference in the same run, and shows how the work grows with its size.

    make bench DATA=../shared/data          or          python benchmarks/bench.py --data ../shared/data

Ours and the reference take turns; times are medians. About 25 minutes on 2 cores; run nothing beside it. --only names parts, --quick runs everything
at toy sizes in seconds, without data, to see that nothing is broken: its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
warnings.filterwarnings("ignore")  # of libraries, between the lines of the tables

from bench_cities import scene_map, tiles  # noqa: E402
from bench_encoder import embeddings, nt_xent, simclr, views  # noqa: E402
from bench_flows import balanced_mse, od_epoch, prediction, start_up  # noqa: E402
from bench_imagery import clip_city, clip_large  # noqa: E402
from growth import HEADERS, Growth, growth  # noqa: E402
from timing import ROW_HEADERS, Row, Settings, machine, print_table  # noqa: E402

from imagery2flow.run.stage import source_commit  # noqa: E402

PARTS: tuple[Callable[[Settings], list[Row]], ...] = (
    clip_city, clip_large, views, simclr, nt_xent, embeddings, od_epoch, balanced_mse, prediction, tiles, scene_map, start_up,
)  # fmt: skip
GROWTH = "growth"
Line = TypeVar("Line", Row, Growth)
NAMES = [*(part.__name__ for part in PARTS), GROWTH]


def main() -> None:
    """Runs what is asked for and prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the real sample; with --quick none is needed")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=f"parts to run: {', '.join(NAMES)}")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each way")
    parser.add_argument("--quick", action="store_true", help="toy sizes; the numbers mean nothing")
    parser.add_argument(
        "--scratch", type=Path, help="folder for what is generated (1.5 GB), kept for the next run; default a temporary one"
    )
    flags = parser.parse_args()
    if not flags.quick and (flags.data is None or not (flags.data / "nyc").is_dir()):
        sys.exit(f"--data {flags.data} has no folder nyc; name the folder of the real sample, or try --quick")
    with tempfile.TemporaryDirectory() as temporary:
        scratch = (flags.scratch or Path(temporary)).absolute() / ("quick" if flags.quick else "full")
        scratch.mkdir(parents=True, exist_ok=True)
        settings = Settings(None if flags.quick else flags.data.absolute(), scratch, 1 if flags.quick else flags.repeats, flags.quick)
        rows = [row for part in PARTS if part.__name__ in flags.only for row in say(part, settings)]
        grown: list[Growth] = say(growth, settings) if GROWTH in flags.only else []
    print(f"\n{datetime.date.today()}, commit {source_commit()}, {machine()}\n")
    if flags.quick:
        print("Toy sizes: the numbers mean nothing.\n")
    print_table(ROW_HEADERS, [row.cells() for row in rows])
    if grown:
        print("\nGrowth: 2 per doubling is linear\n")
        print_table(HEADERS, [line.cells() for line in grown])


def say(part: Callable[[Settings], list[Line]], settings: Settings) -> list[Line]:
    """Runs a part, and shows its lines at once, for the whole takes long."""
    print(f"{datetime.datetime.now():%H:%M:%S} {part.__name__}", file=sys.stderr, flush=True)
    lines = part(settings)
    for line in lines:
        print("  " + " | ".join(line.cells()), file=sys.stderr, flush=True)
    return lines


if __name__ == "__main__":
    main()
