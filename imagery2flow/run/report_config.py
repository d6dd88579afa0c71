"""The settings of ``python -m imagery2flow report``; see ``run.config`` for how settings work."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from imagery2flow.run.config import require


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """One file for a browser that shows a run of stage 4 or 5: scores, settings, and an interactive map of its flows.

    Args:
        run_dir: Folder that stage 4 or 5 wrote; also without the flag, as the first argument.
        output_path: HTML file to write; default report.html in the run's folder.
        data_root: Folder of the regions; default that of the run.
        units_path: Areal units, one file per region; default those of the run.
        id_column: Column of the unit ids; default that of the run.
        columns_path: More tables with a column geocode, whose numbers the map can show; CSV or Parquet.
        largest_flows: Most pairs of units that the file holds; of more the largest. Totals and scores are of all pairs.
    """

    run_dir: str
    output_path: str | None = None
    data_root: str | None = None
    units_path: list[str] = field(default_factory=list)
    id_column: str | None = None
    columns_path: list[str] = field(default_factory=list)
    largest_flows: int = 400_000

    def __post_init__(self) -> None:
        require(self.largest_flows > 0, "largest_flows", self.largest_flows, "1 or more")
        require(self.output.suffix in (".html", ".htm"), "output_path", self.output, "a file that ends in .html")

    @property
    def output(self) -> Path:
        """The file to write."""
        return Path(self.run_dir) / "report.html" if self.output_path is None else Path(self.output_path)
