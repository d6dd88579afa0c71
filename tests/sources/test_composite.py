"""A composite that breaks and is continued, and imagery that is there already."""

import json
import os
import platform
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely

from imagery2flow.__main__ import main
from imagery2flow.sources import composite
from tests.sources.catalogue import LEFT_M, SIDE, TOP_M, UNITS_M, sentinel2

FLAGS = "--bands red --block 256"  # 270 x 270 pixels: four blocks
NO_PROCESS = 2**22 + 1  # more than Linux numbers
KILLED_AT_THE_THIRD_BLOCK = """
import os, signal, sys
from imagery2flow.__main__ import main
from imagery2flow.sources import composite
real, calls = composite.composite, []
def third_time(*given):
    calls.append(given)
    if len(calls) == 3:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    return real(*given)
composite.composite = third_time
sys.exit(main(sys.argv[2:]))
"""


def arguments(flags=FLAGS):
    return ["acquire", "--region", "here", "--what", "imagery", "--addresses", "mirror.yaml", *flags.split()]


def acquire(flags=FLAGS):
    return main(arguments(flags))


def refused(capsys, flags=FLAGS):
    assert acquire(flags) == 2
    return capsys.readouterr().err.splitlines()[-1]


def written():
    with rasterio.open("data/here/s2_2020.tif") as dataset:
        return dataset.read()


def names():
    """What lies in the region's folder, hidden files too."""
    return {path.name for path in Path("data/here").iterdir()}


def kept():
    """Finished blocks."""
    return sorted(Path("data/here/.s2_2020_blocks").glob("*.npz"))


def notes():
    return json.loads(max(Path("data/here").glob("acquire*_run.json"), key=lambda path: path.stat().st_mtime_ns).read_text())["ledger"][
        "notes"
    ]


@pytest.fixture
def three_images(catalogue):
    """Noise, in part of it cloudy; the last image has the left half only, and so lies in two of the four blocks."""
    random = np.random.default_rng(7)
    for number, columns in enumerate((SIDE, SIDE, 150)):
        mask = random.choice([4, 9], (SIDE // 2, columns // 2)).astype("uint8")
        catalogue.add(f"image{number}", sentinel2(random.integers(1, 60_000, (SIDE, columns)), mask, shape=(SIDE, columns)))
    return catalogue


@pytest.fixture
def whole(three_images):
    """Pixels and table of a run that nothing interrupts; nothing of it stays."""
    assert acquire() == 0
    pixels, table = written(), pd.read_csv("data/here/s2_2020_scenes.csv")
    for path in Path("data/here").glob("s2_2020*"):
        path.unlink()
    return pixels, table


@pytest.fixture
def made(monkeypatch):
    """Sizes of the blocks that are made from now on."""
    real, sizes = composite.composite, []
    monkeypatch.setattr(composite, "composite", lambda items, part, config: sizes.append(tuple(part.shape)) or real(items, part, config))
    return sizes


def check_equal(whole):
    assert np.array_equal(written(), whole[0])
    assert pd.read_csv("data/here/s2_2020_scenes.csv").equals(whole[1])
    assert names() == {"units.gpkg", "s2_2020.tif", "s2_2020_scenes.csv", "acquire_imagery_s2_2020_run.json"}


@pytest.mark.parametrize(("name", "status"), [("SIGKILL", -signal.SIGKILL), ("SIGTERM", 143)])
def test_a_killed_run_continues_and_its_pixels_are_those_of_a_whole_one(whole, made, name, status):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED_AT_THE_THIRD_BLOCK, name, *arguments()]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert ended.returncode == status and "Traceback" not in ended.stderr
    assert len(kept()) == 2 and not Path("data/here/s2_2020.tif").exists()
    if name == "SIGKILL":
        Path(f"data/here/.s2_2020.tif.{platform.node()}.{NO_PROCESS}.tif").write_bytes(b"half")
    assert acquire() == 0
    assert made == [(14, 256), (14, 14)]  # the last two
    assert "2 of 4 blocks were there from a call that did not come to its end" in notes()
    check_equal(whole)


@contextmanager
def files_of_at_most(num_bytes):
    """The system refuses to write more into any file, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_while_blocks_are_kept(whole, made, capfd):
    with files_of_at_most(100_000):  # a block of noise is larger
        assert acquire() == 2
    assert capfd.readouterr().err.splitlines()[-1].startswith("acquire: error: a disk is full ([Errno 27] File too large")
    assert kept() == [] and names() == {"units.gpkg", "acquire_imagery_s2_2020_run.json"}
    made.clear()
    assert acquire() == 0
    assert len(made) == 4
    check_equal(whole)


def test_a_full_disk_while_the_file_is_written(whole, made, capfd):
    with files_of_at_most(135_000):  # room for a block, but not for the file
        assert acquire() == 2
    sentence = capfd.readouterr().err.splitlines()[-1]
    assert (
        "data/here/s2_2020.tif cannot be written" in sentence and "see that its disk has room, and run the same command again" in sentence
    )
    assert len(kept()) == 4 and not list(Path("data/here").glob("*.tif")) and not list(Path("data/here").glob(".*.tif"))
    made.clear()
    assert acquire() == 0
    assert made == []
    check_equal(whole)


def test_what_gdal_does_not_say_is_seen(whole, monkeypatch, capsys):
    """A file that holds something else than was written, as after a full disk that GDAL keeps to itself."""
    real = composite.Blocks.read
    asked = []

    def other_at_second_reading(blocks, rows, columns):
        asked.append(rows)
        return real(blocks, rows, columns) + (len(asked) > 4)

    monkeypatch.setattr(composite.Blocks, "read", other_at_second_reading)
    assert "s2_2020.tif cannot be written (it does not hold what was written)" in refused(capsys)
    assert len(kept()) == 4 and not list(Path("data/here").glob("*.tif"))


def test_a_run_without_a_finished_block_leaves_no_folder(three_images, capsys):
    three_images.server.files["/image0/red.tif"] = b"damaged"
    assert "image image0 of earth_search cannot be read" in refused(capsys)
    assert names() == {"units.gpkg"}


@pytest.fixture
def broken(three_images, monkeypatch, capsys):
    """A run that broke after all blocks were made."""
    with monkeypatch.context() as patch:
        patch.setattr(composite, "write_imagery", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert acquire() == 130
    assert "stopped by Ctrl-C" in capsys.readouterr().err
    assert len(kept()) == 4
    return three_images


@pytest.mark.parametrize(
    ("flags", "num_made"),
    [
        ("--bands red --block 256", 0),
        ("--bands red --block 256 --max_cloud 50", 0),  # the same images
        ("--bands nir --block 256", 4),
        ("--bands red --block 512", 1),
        ("--bands red --block 256 --without image0", 4),
    ],
)
def test_blocks_of_other_settings_are_not_used(broken, made, flags, num_made):
    assert acquire(flags) == 0
    assert len(made) == num_made
    resumed = written()
    Path("data/here/s2_2020.tif").unlink()
    assert acquire(flags) == 0
    assert np.array_equal(written(), resumed) and ".s2_2020_blocks" not in names()


@pytest.mark.parametrize(
    ("change", "num_made"),
    [
        (lambda catalogue: catalogue.add("new", sentinel2(9)), 4),
        (lambda catalogue: catalogue.features[0]["properties"].update({"s2:processing_baseline": "05.00"}), 4),
        (lambda catalogue: catalogue.features[0]["assets"]["red"].update(href=catalogue.features[1]["assets"]["red"]["href"]), 4),
        (
            lambda catalogue: catalogue.features[0]["assets"]["red"].update(href=catalogue.features[0]["assets"]["red"]["href"] + "?sig=2"),
            0,
        ),
    ],
    ids=["another image", "another offset", "another file", "another signature"],
)
def test_blocks_of_other_images_are_not_used(broken, made, change, num_made):
    change(broken)
    broken.publish()
    assert acquire() == 0
    assert len(made) == num_made


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[: len(content) // 2], lambda content: b"", lambda content: content[:5000] + b"\1" * 9 + content[5009:]],
)
def test_a_damaged_block_is_made_again(whole, broken, made, damage):
    largest = max(kept(), key=lambda path: path.stat().st_size)
    largest.write_bytes(damage(largest.read_bytes()))
    assert acquire() == 0
    assert made == [(256, 256)]
    check_equal(whole)


def test_a_block_that_is_damaged_anywhere_counts_as_absent_or_as_whole(tmp_path):
    path, random = tmp_path / "block.npz", np.random.default_rng(0)
    np.savez_compressed(path, values=random.integers(1, 60_000, (2, 8, 8)), counts=np.arange(3))
    content, absent = path.read_bytes(), 0
    for _ in range(300):
        damaged = bytearray(content[: random.integers(len(content)) if random.random() < 0.2 else None])
        for place in random.integers(len(damaged), size=random.integers(1, 4)) if damaged else ():
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        counts = composite.read_counts(path)
        assert counts is None or counts.tolist() == [0, 1, 2]
        absent += counts is None
    assert 100 < absent < 300


def test_a_pickle_in_a_block_is_not_run(whole, broken, made):
    class Harm:
        def __reduce__(self):
            return Path.touch, (Path("harmed"),)

    np.savez(kept()[0], values=np.array([Harm()], dtype=object), counts=np.array([Harm()], dtype=object))
    assert acquire() == 0
    assert len(made) == 1 and not Path("harmed").exists()
    check_equal(whole)


def test_two_at_once_do_not_meet(three_images, monkeypatch):
    real = composite.Blocks.make

    def another_comes(blocks, ledger):
        command = [sys.executable, "-m", "imagery2flow", *arguments()]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
        assert ended.returncode == 2
        assert f"data/here/s2_2020.tif is being written by another run (process {os.getpid()} on " in ended.stderr
        return real(blocks, ledger)

    monkeypatch.setattr(composite.Blocks, "make", another_comes)
    assert acquire() == 0
    assert names() == {"units.gpkg", "s2_2020.tif", "s2_2020_scenes.csv", "acquire_imagery_s2_2020_run.json"}


def test_a_run_killed_at_its_very_end_leaves_nothing(three_images):
    assert acquire() == 0
    Path("data/here/.s2_2020_blocks").mkdir()
    Path("data/here/.s2_2020_blocks/left.npz").write_bytes(b"")
    assert acquire() == 0
    assert ".s2_2020_blocks" not in names()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--bands red nir", "made with --bands red, where red nir is asked for; give the settings of that file, or remove that file"),
        ("--bands red --season 05-01/08-31", "made with --season 06-01/09-30, where 05-01/08-31 is asked for"),
        ("--bands red --max_cloud 20", "made with --max_cloud 40.0, where 20.0 is asked for"),
        ("--bands red --catalogue planetary_computer", "made with --catalogue earth_search, where planetary_computer is asked for"),
        ("--bands red --without image0", "made with --without (none), where image0 is asked for"),
    ],
)
def test_imagery_of_other_settings_is_not_taken_for_what_is_asked(three_images, capsys, flags, says):
    assert acquire() == 0
    before, asked = Path("data/here/s2_2020.tif").read_bytes(), len(three_images.server.asked)
    for dry in ("", " --dry_run"):
        assert says in refused(capsys, flags + dry)
    assert Path("data/here/s2_2020.tif").read_bytes() == before and len(three_images.server.asked) == asked


def test_imagery_that_does_not_cover_the_units_is_refused(three_images, capsys):
    assert acquire() == 0
    beyond = shapely.box(LEFT_M + 203, TOP_M - 2897, LEFT_M + 2995, TOP_M - 207)
    gpd.GeoDataFrame({"geocode": ["a"]}, geometry=[beyond], crs=32616).to_file("data/here/units.gpkg")
    assert "s2_2020.tif is there and does not cover the units; remove that file, name another --region" in refused(capsys)


def test_imagery_of_ones_own_is_kept(three_images):
    assert acquire() == 0
    with rasterio.open("data/here/s2_2020.tif", "r+") as dataset:
        dataset.update_tags(**{composite.SETTINGS_TAG: ""})
    assert acquire("--bands nir") == 0


def test_a_file_that_is_no_imagery_is_named(three_images, capsys):
    Path("data/here/s2_2020.tif").write_bytes(b"text")
    assert "data/here/s2_2020.tif is there and cannot be read" in refused(capsys)


def test_without_the_packages_nothing_is_fetched(catalogue, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "odc.stac", None)
    sentence = refused(capsys, "")
    assert 'install them with: pip install "imagery2flow[acquire]", or leave imagery out of --what' in sentence
    assert catalogue.server.asked == []


def test_blocks_away_from_the_units_are_not_read(three_images, made, monkeypatch):
    monkeypatch.setattr(composite, "MARGIN_M", 0.0)
    left, bottom, right, top = UNITS_M
    corners = [shapely.box(left, top - 90, left + 90, top), shapely.box(right - 90, bottom, right, bottom + 90)]
    gpd.GeoDataFrame({"geocode": ["a", "b"]}, geometry=corners, crs="EPSG:32616").to_file("data/here/units.gpkg")
    assert acquire() == 0
    assert made == [(256, 256), (14, 14)], "the first and the last of four blocks"
    values = written()[0]
    assert values[:256, :256].any() and values[256:, 256:].any()
    assert not values[:256, 256:].any() and not values[256:, :256].any()
    shares = pd.read_csv("data/here/s2_2020_scenes.csv").set_index("item").valid_share
    assert shares.max() < 1 and shares["image2"] < shares["image0"]
