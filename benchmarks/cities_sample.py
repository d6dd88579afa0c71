#!/usr/bin/env python
"""Which borough is this tile of? What SimCLR features, supervised training and the mean of each band tell, on real imagery.

    make evaluate-cities DATA=../shared/data          or          python benchmarks/cities_sample.py --data ../shared/data

The five boroughs of New York, cut into 682 tiles of 32 x 32 pixels of 30 m, stand in for five cities. They are no cities: they lie side by side under one sky and
were seen on the same days, so that what tells real cities apart (haze, season, sensor) is not there, and what remains is how they are built. Tiles are divided by blocks
of 4 x 4 tiles, 60 % for training, 20 % for validation and 20 % for test in each borough, once per seed; no block stands in two of them.

Each method learns from the training tiles; what it can choose (the strength of a probe's penalty, the epoch) is chosen by the validation tiles.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
from rasterio.transform import from_origin
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import get_img_embedding  # noqa: E402
import train_img_encoder  # noqa: E402
from imagery2flow.__main__ import main as command  # noqa: E402
from imagery2flow.cities.scores import all_class_scores  # noqa: E402
from imagery2flow.flows.results import markdown  # noqa: E402
from imagery2flow.imagery.sites import SceneFile, deal  # noqa: E402
from imagery2flow.run.stage import source_commit  # noqa: E402
from imagery2flow.run.tables import read_table, write_table  # noqa: E402

TILES = "borough_tiles/nyc_borough_tiles_32px.npz"
SIZE, GSD_M, TILES_PER_BLOCK = 32, 30.0, 4
SHARES = (0.6, 0.2, 0.2)
PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)  # C of the probe: the smaller, the stronger
TOP_K, CALIBRATION_BINS = 2, 15


def write_tiles(source: Path, folder: Path, seed: int) -> None:
    """Writes the tiles as stage 1 would, with borough, block and split of each in the manifest."""
    stored = np.load(source, allow_pickle=False)
    images, places, boroughs = stored["x"], stored["row_col"], stored["classes"][stored["y"]]
    folder.mkdir(parents=True, exist_ok=True)
    blocks = [f"{row // (SIZE * TILES_PER_BLOCK):02d}-{column // (SIZE * TILES_PER_BLOCK):02d}" for row, column in places]
    ids = [f"r{row // SIZE:04d}c{column // SIZE:04d}" for row, column in places]
    files = [SceneFile(Path(geocode), str(borough), block) for geocode, borough, block in zip(ids, boroughs, blocks, strict=True)]
    profile = {
        "driver": "GTiff",
        "width": SIZE,
        "height": SIZE,
        "count": images.shape[1],
        "dtype": images.dtype,
        "nodata": 0,
        "crs": "EPSG:32618",
    }
    for geocode, image, (row, column) in zip(ids, images, places, strict=True):
        transform = from_origin(column * GSD_M, -row * GSD_M, GSD_M, GSD_M)  # from the mosaic's corner
        with rasterio.open(folder / f"l5_2010_{geocode}.tif", "w", transform=transform, **profile) as tile:
            tile.write(image)
    manifest = pd.DataFrame({"geocode": ids, "status": "written", "path": [f"l5_2010_{geocode}.tif" for geocode in ids]})
    manifest["city"], manifest["site"], manifest["split"] = boroughs, blocks, deal(files, "sites", SHARES, seed)
    write_table(folder / "manifest.csv", manifest)


def run(stage: object, *words: object) -> None:
    """Runs a stage or a command in this process."""
    status = stage.main([str(word) for word in words]) if hasattr(stage, "main") else command([str(word) for word in words])
    if status:
        sys.exit(status)


def probe(features: np.ndarray, manifest: pd.DataFrame, names: list[str]) -> np.ndarray:
    """Probabilities of the boroughs of all tiles from a logistic regression on standardised features, whose penalty validation chooses."""
    borough = manifest.city.to_numpy()
    train, validation = (manifest.split.to_numpy() == name for name in ("train", "validation"))
    found = []
    for penalty in PENALTIES:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, class_weight="balanced", max_iter=3000))
        model.fit(features[train], borough[train])
        found.append((model.score(features[validation], borough[validation]), model))
    best = max(found, key=lambda pair: pair[0])[1]
    assert list(best.classes_) == names
    return np.asarray(best.predict_proba(features))


def one_seed(flags: argparse.Namespace, seed: int) -> pd.DataFrame:
    """Test scores of every method with one division of the tiles."""
    folder = flags.out / f"seed{seed}"
    tiles, models = folder / "tiles", folder / "ckpt"
    write_tiles(flags.data / TILES, tiles, seed)
    common = ["--data_path", tiles, "--view_size", SIZE, "--batch_size", 128, "--seed", seed, "--model_path", models]
    run(train_img_encoder, *common, "--total_epoch", flags.epochs, "--cos", "true", "--log", "simclr")
    supervised = ["--objective", "classify", "--label_column", "city", "--total_epoch", flags.epochs_supervised, "--cos", "true"]
    simclr = models / f"simclr_img_{flags.epochs}.pth"
    run(train_img_encoder, *common, *supervised, "--log", "scratch")
    run(train_img_encoder, *common, *supervised, "--log", "tuned", "--init", simclr, "--lr", 1e-4)
    run(get_img_embedding, "--data_path", tiles, "--ckpt", simclr, "--output_path", folder / "vectors.csv")
    manifest = read_table(tiles / "manifest.csv", "manifest", ("geocode",)).set_index("geocode").sort_index()
    names = sorted(manifest.city.unique())
    vectors, untrained = (
        read_table(folder / name, "vectors", ("geocode",)).set_index("geocode").loc[manifest.index]
        for name in ("vectors.csv", "vectors_untrained.csv")
    )
    bands = vectors[[name for name in vectors if not name.isdigit()]].to_numpy()
    encoded = vectors[[name for name in vectors if name.isdigit()]].to_numpy()
    probabilities = {
        "band mean and deviation, probe": probe(bands, manifest, names),
        "untrained ResNet-18, probe": probe(untrained.to_numpy(), manifest, names),
        "SimCLR ResNet-18, probe": probe(encoded, manifest, names),
        "SimCLR with bands, probe": probe(np.hstack([encoded, bands]), manifest, names),
    }
    for name, log in (("supervised ResNet-18", "scratch"), ("supervised, from SimCLR", "tuned")):
        best = models / f"{log}_img_{flags.epochs_supervised}_best.pth"
        run(get_img_embedding, "--predict", "true", "--data_path", tiles, "--ckpt", best, "--output_path", folder / f"{log}.csv")
        table = read_table(folder / f"{log}.csv", "predictions", ("geocode",)).set_index("geocode").loc[manifest.index]
        probabilities[name] = table[[f"probability_{borough}" for borough in names]].to_numpy()
    test = manifest.split.to_numpy() == "test"
    true = np.array([names.index(borough) for borough in manifest.city[test]])
    majority = np.tile((np.array(names) == manifest.city[manifest.split == "train"].mode()[0]).astype(float), (len(test), 1))
    everything = {"most frequent borough": majority, **probabilities}
    rows = [all_class_scores(values[test], true, TOP_K, CALIBRATION_BINS) | {"method": name} for name, values in everything.items()]
    run(None, "cities", "--data_path", tiles, "--predictions_path", folder / "tuned.csv", "--embeddings_path", folder / "vectors.csv",
        "--tiles_per_city", 0, "--top_k", TOP_K, "--output_dir", folder / "cities")  # fmt: skip
    return pd.DataFrame(rows).assign(seed=seed, tiles=int(test.sum()))


def main() -> None:
    """Runs all seeds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the real sample")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "cities_sample")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=40, help="epochs of SimCLR")
    parser.add_argument("--epochs_supervised", type=int, default=20)
    flags = parser.parse_args()
    if not (flags.data / TILES).is_file():
        sys.exit(f"--data {flags.data} has no file {TILES}; name the folder of the real sample")
    table = pd.concat([one_seed(flags, seed) for seed in range(1, flags.seeds + 1)])
    write_table(flags.out / "scores.csv", table)
    shown = [name for name in ("accuracy", f"top_{TOP_K}_accuracy", "macro_f1", "ece") if name in table]
    by_method = table.groupby("method", sort=False)[shown]
    mean, std = by_method.mean(), by_method.std()
    cells = {name: [f"{m:.3f} ± {s:.3f}" for m, s in zip(mean[name], std[name], strict=True)] for name in shown}
    print(
        f"\nFive boroughs as five 'cities', a stand-in; {flags.seeds} seeds, about {table.tiles.mean():.0f} test tiles each, commit {source_commit()}\n"
    )
    print(markdown(pd.DataFrame({"method": mean.index, **cells})))


if __name__ == "__main__":
    main()
