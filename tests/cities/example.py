"""Cities made by code: tiles whose features scatter around a place of their city, and a classifier that knows these places."""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

NAMES = ("Aktau (AKT)", "Bern", "Cork (ORK)", "Oslo (OSL)")


class Example:
    """Tables of a run, to be changed by a test before ``write``.

    Attributes:
        manifest: geocode, status, path, city, split; half of each city's tiles are for testing.
        predictions: By file name.
        features: By file name.
        labels: city, greenness: equal to the first feature of the city's place.
    """

    def __init__(self, folder: Path, names=NAMES, tiles_per_city=40, dim=6, spread=1.0, apart=1.5, seed=0):
        random = np.random.default_rng(seed)
        self.folder, self.names = folder, list(names)
        self.places = random.normal(size=(len(names), dim)) * apart
        city = np.repeat(np.arange(len(names)), tiles_per_city)
        vectors = self.places[city] + random.normal(size=(len(city), dim)) * spread
        number = np.tile(np.arange(tiles_per_city), len(names))
        ids = [f"{names[c]}-site{n % 2}-{n:04d}" for c, n in zip(city, number, strict=True)]
        self.split = np.where(number % 2 == 1, "test", "train")
        self.manifest = pd.DataFrame({"geocode": ids, "status": "written", "path": "", "city": np.array(names)[city], "split": self.split})
        self.vectors = pd.DataFrame(vectors, index=pd.Index(ids, name="geocode"), columns=[str(n) for n in range(dim)])
        self.features = {"features.csv": self.vectors.assign(red_mean=7.0)}
        self.labels = pd.DataFrame({"city": names, "greenness": self.places[:, 0]})
        self.predictions = {"classes.csv": self.classify(self.names)}

    def classify(self, known, split=None):
        """Probabilities of a model that knows some of the cities, as the distance to their places tells."""
        places = self.places[[self.names.index(name) for name in known]]
        score = np.exp(-0.5 * cdist(self.vectors.to_numpy(), places) ** 2)
        probabilities = score / score.sum(axis=1, keepdims=True)
        columns = [f"probability_{name}" for name in known]
        table = pd.DataFrame(probabilities, index=self.vectors.index, columns=columns)
        table.insert(0, "split", self.split if split is None else split)
        return table

    def regress(self, target="greenness"):
        """The first feature as the prediction, and the mean of the training tiles."""
        value = self.vectors["0"]
        mean = value[self.split == "train"].mean()
        return pd.DataFrame({"split": self.split, f"predicted_{target}": value, f"mean_{target}": mean}, index=value.index)

    def write(self) -> dict[str, object]:
        """Writes the tables, and gives the settings that name them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.manifest.to_csv(self.folder / "manifest.csv", index=False)
        for name, table in (self.predictions | self.features).items():
            (table.to_parquet if name.endswith(".parquet") else table.to_csv)(self.folder / name)
        settings = {
            "data_path": [str(self.folder)],
            "predictions_path": [str(self.folder / name) for name in self.predictions],
            "embeddings_path": [str(self.folder / name) for name in self.features],
            "output_dir": str(self.folder / "out"),
            "tiles_per_city": 0,
        }
        if any("predicted_" in column for table in self.predictions.values() for column in table):
            self.labels.to_csv(self.folder / "labels.csv", index=False)
            settings["labels_path"] = str(self.folder / "labels.csv")
        return settings
