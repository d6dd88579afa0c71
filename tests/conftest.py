"""What several folders of tests use: a scene and units, each written by one call, and a city that every stage has passed."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in the background of a shell; what the tests start would inherit it and never hear Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: processes beside each other that all use every core wait for each other most of the time.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import geopandas as gpd
import hypothesis
import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from affine import Affine
from rasterio.transform import from_origin

from imagery2flow.run.config import SyntheticConfig
from imagery2flow.run.stage import Ledger
from imagery2flow.sources.synthetic import generate_metro
from tests.spoiling import CKPT, FEATURES, FLAGS, POPULATION, call

if TYPE_CHECKING:
    from distributed import LocalCluster

# The same examples on every run, and no folder of past failures.
hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("repeatable")

WITHOUT_WATCHING = {  # a cluster looks at itself fifty times a second
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.worker.profile.enabled": False,
}
LEFT, TOP, GSD_M = 500_000.0, 4_500_000.0, 30.0  # metres; on the central meridian of the UTM zone


@pytest.fixture
def write_scene(tmp_path: Path) -> Callable[..., str]:
    """Writes values [num_bands, height, width] as a GeoTIFF of 30 m pixels below ``tmp_path`` and returns its path."""

    def write(
        values: np.ndarray,
        name: str = "scene.tif",
        names: Sequence[str] = (),
        mask: np.ndarray | None = None,
        crs: str | None = "EPSG:32618",
        transform: Affine | None = None,
        **profile,
    ) -> str:
        path = tmp_path / name
        size = {"count": values.shape[0], "height": values.shape[1], "width": values.shape[2], "dtype": values.dtype}
        place = {"crs": crs, "transform": transform or from_origin(LEFT, TOP, GSD_M, GSD_M)}
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", driver="GTiff", **size, **place, **profile) as scene:
            scene.write(values)
            if names:
                scene.descriptions = tuple(names)
            if mask is not None:
                scene.write_mask(mask)
        return str(path)

    return write


@pytest.fixture
def write_units(tmp_path: Path) -> Callable[..., str]:
    """Writes geometries by id as a GeoPackage below ``tmp_path`` and returns its path."""

    def write(shapes: Mapping, name: str = "units.gpkg", crs: object = "EPSG:32618", id_column: str = "GEOID20") -> str:
        path = tmp_path / name
        gpd.GeoDataFrame({id_column: list(shapes)}, geometry=list(shapes.values()), crs=crs).to_file(path)
        return str(path)

    return write


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tensors as small as these gain nothing from threads, and waiting for them is slow where tests run beside each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def good_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A city of 24 units with its scene, patches, flows, random features, an encoder and a flow model: all that the stages read."""
    folder = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        generate_metro(SyntheticConfig(output_dir="data", region="M1", num_units=24, size_px=100), Ledger("test", quiet=True))
        ids = pd.read_csv(POPULATION, dtype="str").geocode
        pd.DataFrame(np.random.default_rng(0).normal(size=(len(ids), 4)), index=ids, columns=list("0123")).to_csv(FEATURES)
        for stage, flags in FLAGS.items():
            own = {"img_preprocessing": " --output_tif_dir data", "train_img_encoder": " --log M1"}.get(stage, "")
            assert call(stage, flags + own) == 0
    yield folder
    shutil.rmtree(folder)  # the checkpoint is large


@pytest.fixture
def workplace(good_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the good folder to spoil, as the current folder; only the large checkpoint is not copied."""
    for name in ("data", "outputs"):
        shutil.copytree(good_folder / name, tmp_path / name)
    (tmp_path / CKPT).parent.mkdir()
    (tmp_path / CKPT).symlink_to(good_folder / CKPT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def cluster() -> Iterator["LocalCluster"]:
    """A dask cluster of two processes, which takes no time from the other tests while it waits."""
    import dask
    from distributed import LocalCluster

    with (
        dask.config.set(WITHOUT_WATCHING),
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as running,
    ):
        yield running
