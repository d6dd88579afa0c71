"""The settings of ``python -m imagery2flow cities``; see ``run.config`` for how settings work."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from imagery2flow.run.config import require


@dataclass(frozen=True, kw_only=True)
class CitiesConfig:
    """How well cities are recognised, which cities look alike, and how well their indexes are predicted.

    Args:
        data_path: Folders of patches with a manifest.csv that says which city each tile lies in.
        predictions_path: Tables that get_img_embedding.py --predict wrote; CSV or Parquet. Of several, such as the folds of a protocol that
            leaves cities out, the test rows are joined.
        label_column: Column of the manifest with the name of the city.
        embeddings_path: Tables that get_img_embedding.py wrote, for the similarity of features; of their columns only the numbered ones count.
        labels_path: Table of the true indexes; CSV or Parquet.
        labels_key: Its column of cities, or geocode for a table of tiles. The code in the last parentheses of a city's name may stand for it,
            as in Almaty (ALA).
        target_column: Indexes to score; default all that were predicted.
        tiles_per_city: Most test tiles of a city that count, drawn by the seed; 0 for all.
        seed: Seed of that draw.
        top_k: A city is found if it is among so many most probable ones.
        calibration_bins: Number of bins of the probability for the calibration error.
        output_dir: Folder for tables and figures.
    """

    data_path: list[str]
    predictions_path: list[str]
    output_dir: str
    label_column: str = "city"
    embeddings_path: list[str] = field(default_factory=list)
    labels_path: str | None = None
    labels_key: str = "city"
    target_column: list[str] = field(default_factory=list)
    tiles_per_city: int = 500
    seed: int = 0
    top_k: int = 5
    calibration_bins: int = 15

    def __post_init__(self) -> None:
        for name in ("data_path", "predictions_path"):
            require(bool(getattr(self, name)), name, getattr(self, name), "one or more paths")
        for name, low in (("tiles_per_city", 0), ("seed", 0), ("top_k", 1), ("calibration_bins", 1)):
            require(getattr(self, name) >= low, name, getattr(self, name), f"{low} or more")

    @property
    def output(self) -> Path:
        """Folder of the results."""
        return Path(self.output_dir)
