"""Imagery from a STAC catalogue of this machine: made images, served over HTTP, read by the code that reads the real ones."""

import json
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from affine import Affine
from rasterio.warp import transform, transform_bounds

from imagery2flow.__main__ import main
from imagery2flow.imagery.scene import open_scene
from imagery2flow.run.acquire_config import AcquireConfig
from imagery2flow.sources import composite, signing, stac
from tests.sources.catalogue import CLOUD, LEFT_M, NAMES_ELSEWHERE, SHADOW, SIDE, TOP_M, UNITS_M, VEGETATION, image, sentinel2
from tests.sources.conftest import Fault


def acquire(flags=""):
    return main(["acquire", "--region", "here", "--what", "imagery", "--addresses", "mirror.yaml", *flags.split()])


def refused(capsys, flags=""):
    assert acquire(flags) == 2
    assert not list(Path("data/here").glob("*.tif"))
    return capsys.readouterr().err.splitlines()[-1]


def written(name="s2_2020"):
    with rasterio.open(f"data/here/{name}.tif") as dataset:
        return dataset.read()


def ledger():
    return json.loads(max(Path("data/here").glob("acquire*_run.json"), key=lambda path: path.stat().st_mtime_ns).read_text())["ledger"]


def test_the_file_is_a_scene_that_the_stages_read(catalogue):
    catalogue.add("one", sentinel2(3000))
    assert acquire() == 0
    scene = open_scene("data/here/s2_2020.tif")
    assert scene.band_names == ("blue", "green", "red", "nir") and scene.nodata == (0,) and scene.dtype == "uint16"
    assert scene.crs.to_epsg() == 32616 and (scene.width, scene.height) == (270, 270)
    assert scene.transform == Affine(10, 0, LEFT_M + 200, 0, -10, TOP_M - 200)
    with rasterio.open("data/here/s2_2020.tif") as dataset:
        assert dataset.compression.name == "deflate" and dataset.profile["tiled"] and dataset.overviews(1) == [2]
    assert [list(np.unique(band)) for band in written()] == [[4000], [5000], [3000], [6000]]


def test_bands_come_in_the_order_asked(catalogue):
    catalogue.add("one", sentinel2(3000))
    assert acquire("--bands nir blue") == 0
    assert open_scene("data/here/s2_2020.tif").band_names == ("nir", "blue")
    assert written()[:, 0, 0].tolist() == [6000, 4000]
    assert not any("red.tif" in path for path in catalogue.server.paths())


def test_clouds_do_not_reach_the_median_and_cloud_of_all_dates_is_nodata(catalogue):
    """Three dates of 100, 200, 600: the median of those that are clear, by hand."""
    masks = np.full((3, SIDE // 2, SIDE // 2), VEGETATION, dtype="uint8")
    masks[2, 20:30, 20:30] = CLOUD  # pixels 40 to 60 of the image, 20 to 40 of the composite
    masks[:, 30:40, 20:30] = [[[CLOUD]], [[SHADOW]], [[0]]]
    for number, red in enumerate((100, 200, 600)):
        catalogue.add(f"date{number}", sentinel2(red, masks[number]), day=f"2020-0{number + 6}-15")
    assert acquire() == 0
    values = written()
    expected = np.full((270, 270), 200)
    expected[20:40, 20:40] = 150
    expected[40:60, 20:40] = 0
    assert np.array_equal(values[2], expected)
    assert ((values == 0).all(axis=0) == (expected == 0)).all()
    table = pd.read_csv("data/here/s2_2020_scenes.csv")
    assert list(table.columns) == ["item", "datetime", "cloud_cover", "platform", "valid_share"]
    assert list(table.item) == ["date0", "date1", "date2"]
    assert np.allclose(table.valid_share, 1 - np.array([400, 400, 800]) / 270**2)


@pytest.mark.parametrize("mask", [0, 1, 2, 3, 8, 9, 10])
def test_classes_that_are_not_the_ground(catalogue, mask):
    catalogue.add("unclear", sentinel2(9000, mask))
    catalogue.add("clear", sentinel2(500, np.resize([4, 5, 6, 7, 11], (SIDE // 2, SIDE // 2))))
    assert acquire("--bands red") == 0
    assert (written() == 500).all()
    assert ledger()["left_out"] == {"images without a clear pixel of the region": ["unclear"]}
    assert ledger()["in"]["images found"] == 2 and ledger()["out"]["images used"] == 1


def test_baselines_are_brought_to_one_scale(catalogue):
    """One reflectance of .2, and one near 0 in the lowest pixel, in every form in which it is delivered."""
    for name, red, properties in (
        ("old", 2000, {"s2__processing_baseline": "02.14"}),
        ("new", 3000, {"s2__processing_baseline": "05.11"}),
        ("done", 2000, {"s2__processing_baseline": "05.11", "earthsearch__boa_offset_applied": True}),
        ("not", 3000, {"s2__processing_baseline": "04.00", "earthsearch__boa_offset_applied": False}),
    ):
        catalogue.add(name, sentinel2(red), **properties)
        path = Path("data/here/s2_2020.tif")
        path.unlink(missing_ok=True)
        assert acquire(f"--bands red --without {' '.join(item['id'] for item in catalogue.features[:-1])}") == 0
        assert (written() == 2000).all(), name
    catalogue.add("dark", sentinel2(400), s2__processing_baseline="05.11")
    path.unlink()
    assert acquire("--bands red --without old new done not") == 0
    assert (written() == 1).all()  # dark, but known
    assert any("of 1 of 1 images after an offset of -1000" in note for note in ledger()["notes"])


def test_landsat_becomes_reflectance(catalogue):
    """DN 14,545 is .2 (x 10,000: 1,999.875); on Landsat's own grid, whose edges lie between multiples of 30 m."""
    names = ("blue", "green", "red", "nir08", "swir16", "swir22")
    arrays = {
        name: np.full((110, 110), number, dtype="uint16") for name, number in zip(names, (7273, 14545, 43636, 65535, 1, 7274), strict=True)
    }
    qa = np.full((110, 110), 21824, dtype="uint16")  # clear: bit 6, and low confidences
    for bit in range(5):
        qa[50, 40 + bit] |= 1 << bit
    arrays["red"][60, 60] = 0
    properties = {"collection": "landsat-c2-l2", "gsd_m": 30, "left": LEFT_M - 5, "top": TOP_M + 15, "platform": "landsat-9"}
    catalogue.add("ours", {**arrays, "qa_pixel": qa}, **properties)
    catalogue.add("coarse", {**arrays, "qa_pixel": qa}, **{**properties, "landsat__collection_category": "T2"})
    catalogue.add("other", {**arrays, "qa_pixel": qa}, **{**properties, "platform": "landsat-7"})
    assert acquire("--sensor l8") == 0
    scene, values = open_scene("data/here/l8_2020.tif"), written("l8_2020")
    assert scene.band_names == ("blue", "green", "red", "nir", "swir1", "swir2") and scene.transform.c % 30 == 15
    assert values[:, -1, -1].tolist() == [1, 2000, 10000, 16022, 1, 1]
    row, column = (round((TOP_M + 15 - scene.transform.f) / 30), round((scene.transform.c - LEFT_M + 5) / 30))
    missing = {(r + row, c + column) for r, c in np.argwhere(values[0] == 0)}
    assert missing == {(50, 40 + bit) for bit in range(5)} | {(60, 60)}
    assert ledger()["left_out"] == {"images of another satellite": ["other"], "images of tier 2, whose position is less exact": ["coarse"]}


def test_blocks_are_never_larger_than_asked_and_change_nothing(catalogue, monkeypatch):
    random = np.random.default_rng(5)
    for number, columns in enumerate((150, 200, SIDE)):
        mask = random.choice([VEGETATION, CLOUD], (SIDE // 2, columns // 2)).astype("uint8")
        catalogue.add(f"image{number}", sentinel2(random.integers(1, 5000, (SIDE, columns)), mask, shape=(SIDE, columns)))
    sizes = []
    real = composite.composite
    monkeypatch.setattr(composite, "composite", lambda items, part, config: sizes.append(tuple(part.shape)) or real(items, part, config))
    assert acquire("--bands red --block 256") == 0
    assert sorted(sizes) == [(14, 14), (14, 256), (256, 14), (256, 256)]
    small, table = written(), pd.read_csv("data/here/s2_2020_scenes.csv")
    for path in Path("data/here").glob("s2_2020*"):
        path.unlink()
    assert acquire("--bands red --block 512") == 0
    assert sizes[4:] == [(270, 270)]
    assert np.array_equal(written(), small) and pd.read_csv("data/here/s2_2020_scenes.csv").equals(table)


def test_the_median_is_that_of_numpy(catalogue):
    random = np.random.default_rng(6)
    reds = random.integers(1, 5000, (4, SIDE, SIDE)).astype("uint16")
    masks = random.choice([VEGETATION, CLOUD], (4, SIDE // 2, SIDE // 2)).astype("uint8")
    for number in range(4):
        catalogue.add(f"image{number}", sentinel2(reds[number], masks[number]))
    assert acquire("--bands red") == 0
    clear = np.where(masks.repeat(2, axis=1).repeat(2, axis=2) == VEGETATION, reds, np.nan)[:, 20:290, 20:290]
    known = ~np.isnan(clear).all(axis=0)
    assert np.array_equal(written()[0][known], np.floor(np.nanmedian(clear[:, known], axis=0)))
    assert (written()[0][~known] == 0).all() and 0 < known.mean() < 1


def test_an_image_of_the_next_zone_fills_what_the_first_does_not_cover(catalogue):
    """Its pixels say in which of its columns they lie, and land where the projection says, to one pixel."""
    catalogue.add("west", sentinel2(3000, shape=(SIDE, 150)))
    left, bottom, right, top = transform_bounds("EPSG:32616", "EPSG:32617", LEFT_M, TOP_M - 3000, LEFT_M + 3000, TOP_M)
    left, top, shape = left // 10 * 10 - 200, top // 10 * 10 + 200, (int(top - bottom) // 20 * 2 + 60, int(right - left) // 20 * 2 + 60)
    columns = np.broadcast_to(5000 + np.arange(shape[1]), shape)
    mask = np.full((shape[0] // 2, shape[1] // 2), VEGETATION, dtype="uint8")
    catalogue.add("east", sentinel2(columns, mask, shape=shape), day="2020-08-01", crs="EPSG:32617", left=left, top=top)
    assert acquire("--bands red") == 0
    x, y = np.meshgrid(LEFT_M + 205 + 10 * np.arange(130, 270), TOP_M - 205 - 10 * np.arange(270))
    x_east, _ = transform("EPSG:32616", "EPSG:32617", x.ravel(), y.ravel())
    expected = 5000 + np.floor((np.array(x_east) - left) / 10).reshape(x.shape)
    error = np.abs(written()[0, :, 130:] - expected)
    assert error.max() <= 1 and (error == 0).mean() > 0.95
    table = pd.read_csv("data/here/s2_2020_scenes.csv")
    assert np.allclose(table.valid_share, [130 / 270, 1])


def test_an_image_that_is_not_used_is_named_with_the_reason(catalogue):
    catalogue.add("clear", sentinel2(500))
    catalogue.add("cloudy", sentinel2(500), eo__cloud_cover=40.5)
    catalogue.add("limit", sentinel2(500), eo__cloud_cover=40.0)
    catalogue.add("beside", sentinel2(500), left=LEFT_M + 20_000)
    catalogue.add("bare", {"red": sentinel2(500)["red"]})
    assert acquire("--bands red") == 0
    assert ledger()["left_out"] == {
        "images with more than 40 percent of cloud": ["cloudy"],
        "images beside the units": ["beside"],
        "images without mask": ["bare"],
    }
    assert list(pd.read_csv("data/here/s2_2020_scenes.csv").item) == ["clear", "limit"]


def test_the_question_names_collection_place_and_season(catalogue):
    catalogue.add("clear", sentinel2(500))
    assert acquire("--season 03-02/05-31 --year 2021 --bands red") == 0
    asked = next(path for path in catalogue.server.paths() if path.startswith("/stac/search"))
    assert "collections=sentinel-2-l2a" in asked and "datetime=2021-03-02T00%3A00%3A00Z%2F2021-05-31T23%3A59%3A59Z" in asked
    west, south, east, north = transform_bounds("EPSG:32616", "EPSG:4326", *UNITS_M)
    bbox = asked.partition("bbox=")[2].partition("&")[0].split("%2C")
    assert np.allclose([float(side) for side in bbox], [west, south, east, north], atol=1e-5)


def test_names_of_the_other_catalogue(catalogue):
    catalogue.add("one", {NAMES_ELSEWHERE[name]: values for name, values in sentinel2(3000).items()}, platform="Sentinel-2A")
    assert acquire() == 0
    assert written()[:, 0, 0].tolist() == [4000, 5000, 3000, 6000]


def test_what_is_there_is_not_fetched(catalogue):
    catalogue.add("one", sentinel2(3000))
    assert acquire() == 0
    asked, before = len(catalogue.server.asked), Path("data/here/s2_2020.tif").read_bytes()
    assert acquire() == 0
    assert len(catalogue.server.asked) == asked and Path("data/here/s2_2020.tif").read_bytes() == before
    assert any("s2_2020.tif is there: not fetched" in note for note in ledger()["notes"])


def test_a_dry_run_lists_images_and_size(catalogue, capsys):
    catalogue.add("one", sentinel2(3000), eo__cloud_cover=12.34)
    catalogue.add("two", sentinel2(3000), eo__cloud_cover=99)
    assert acquire("--dry_run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "s2_2020.tif: 270 x 270 pixels of 10 m (EPSG:32616), blue, green, red, nir, out of 1 images:",
        "  2020-07-01  cloud  12.3 %  one",
        "left out: 1 images with more than 40 percent of cloud",
    ]
    assert not any(path.endswith(".tif") for path in catalogue.server.paths()) and not Path("data/here/s2_2020.tif").exists()


def test_a_server_that_stumbles_changes_nothing(catalogue):
    catalogue.add("one", sentinel2(3000))
    path = "/one/red.tif"
    catalogue.server.faults[path] = [Fault(status=503), Fault(status=500)]
    catalogue.server.faults["/stac"] = [Fault(status=502)]
    assert acquire("--bands red") == 0
    assert (written() == 3000).all() and not catalogue.server.faults[path]


def test_an_image_that_cannot_be_read_is_named_and_can_be_left_out(catalogue, capsys):
    catalogue.add("good", sentinel2(3000))
    catalogue.add("gone", sentinel2(5000))
    del catalogue.server.files["/gone/scl.tif"]
    sentence = refused(capsys, "--bands red")
    assert "image gone of earth_search cannot be read" in sentence and "leave the image out with --without" in sentence
    assert "404" in sentence and sum(path == "/gone/scl.tif" for _, path, _ in catalogue.server.asked) <= 2
    assert acquire("--bands red --without gone") == 0
    assert (written() == 3000).all() and ledger()["left_out"] == {"images named by --without": ["gone"]}


def test_landsat_of_earth_search_costs(catalogue, capsys):
    arrays = {name: np.full((110, 110), 9000, dtype="uint16") for name in ("red", "qa_pixel")}
    catalogue.add("ours", arrays, collection="landsat-c2-l2", gsd_m=30, platform="landsat-5")
    catalogue.server.faults["/ours/red.tif"] = [Fault(status=403)] * 99
    assert "--catalogue planetary_computer has it for nothing" in refused(capsys, "--sensor l5 --bands red")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("", "earth_search has no image of --sensor s2 over region here in 06-01/09-30 of 2020 that may be used (1 found and left out"),
        ("--sensor l7", "earth_search has no image of --sensor l7"),
    ],
)
def test_nothing_to_combine_is_one_sentence(catalogue, capsys, flags, says):
    catalogue.add("cloudy", sentinel2(500), eo__cloud_cover=90)
    assert says in refused(capsys, flags)


def test_a_catalogue_that_is_none_is_one_sentence(catalogue, capsys):
    catalogue.server.files["/stac"] = b"<html>hello</html>"
    assert "--catalogue earth_search at http" in (sentence := refused(capsys)) and "cannot be searched" in sentence


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--season summer", "--season summer must be a first and a later last day of 2020, such as 06-01/09-30"),
        ("--season 11-01/02-28", "--season 11-01/02-28 must be a first and a later last day"),
        ("--season 06-01/06-31", "--season 06-01/06-31 must be"),
        ("--max_cloud 101", "--max_cloud 101.0 must be 0 to 100 percent"),
        ("--bands red swir1", "--bands red swir1 must be some of blue, green, red, nir, each once"),
        ("--bands red red", "each once"),
        ("--block 100", "--block 100 must be a multiple of 256"),
    ],
)
def test_settings_out_of_range(catalogue, capsys, flags, says):
    with pytest.raises(SystemExit) as ended:
        acquire(flags)
    assert ended.value.code == 2 and says in capsys.readouterr().err


def test_days_of_the_season():
    assert AcquireConfig(region="x", year=2020, season="02-01/02-29").season_days == (date(2020, 2, 1), date(2020, 2, 29))


@pytest.mark.parametrize("path", ["/one/red.tif", "/one/scl.tif"])
@pytest.mark.parametrize("sends", [0, 100, 20_000])
def test_a_connection_that_breaks_changes_nothing(catalogue, path, sends):
    catalogue.add("one", sentinel2(3000))
    catalogue.server.faults[path] = [Fault(), Fault(sends=sends), Fault(sends=sends)]
    assert acquire("--bands red") == 0
    assert (written() == 3000).all()


def test_a_catalogue_without_end_is_left(catalogue, capsys, monkeypatch):
    """The link to the next page leads to the same page."""
    monkeypatch.setattr(stac, "MOST_IMAGES", 5)
    catalogue.add("one", sentinel2(3000))
    path = "/stac/search"
    answer = json.loads(catalogue.server.files[path])
    answer["links"] = [{"rel": "next", "href": f"{catalogue.server.url}{path}", "type": "application/geo+json", "method": "GET"}]
    catalogue.server.files[path] = json.dumps(answer).encode()
    assert "names 5 images or more; give a shorter --season or a smaller region" in refused(capsys)
    assert len([asked for asked in catalogue.server.paths() if asked.startswith(path)]) <= 6


def test_bands_of_another_size_or_system_land_where_they_lie(catalogue):
    """Red at half the resolution, the mask in the neighbouring zone: files decide, not what the item says of them."""
    rows = np.repeat(np.arange(1000, 1000 + SIDE // 2), 2)
    arrays = sentinel2(3000)
    arrays["red"] = np.broadcast_to(rows[::2, None], (SIDE // 2, SIDE // 2)).astype("uint16")
    catalogue.add("one", arrays)
    left, bottom, right, top = transform_bounds("EPSG:32616", "EPSG:32617", LEFT_M, TOP_M - 10 * SIDE, LEFT_M + 10 * SIDE, TOP_M)
    shape = (int(top - bottom) // 20 + 20, int(right - left) // 20 + 20)
    mask = np.full(shape, VEGETATION, dtype="uint8")
    catalogue.server.files["/one/scl.tif"] = image(mask, "EPSG:32617", left // 20 * 20 - 100, top // 20 * 20 + 100, 20)
    assert acquire("--bands red nir") == 0
    assert np.array_equal(written()[0], np.broadcast_to(rows[20:290, None], (270, 270)))
    assert (written()[1] == 6000).all()


@pytest.fixture
def planetary_computer(catalogue, monkeypatch):
    """The catalogue as the Planetary Computer's: what it names needs tokens, which it gives."""
    catalogue.add("one", sentinel2(3000))
    url = catalogue.server.url
    Path("mirror.yaml").write_text(f"planetary_computer: {url}/stac\nplanetary_computer_token: {url}/token\n")
    monkeypatch.setattr(signing, "STORAGE", url.removeprefix("http://"))
    catalogue.server.files["/token/127/one"] = b'{"msft:expiry": "2099-01-01T00:00:00Z", "token": "sig=abc"}'
    return catalogue.server


def test_the_planetary_computer_signs_at_the_address_of_the_table(planetary_computer):
    assert acquire("--bands red --catalogue planetary_computer") == 0
    assert (written() == 3000).all() and planetary_computer.paths().count("/token/127/one") == 1
    assert all("sig=abc" in path for path in planetary_computer.paths() if path.endswith(".tif"))


@pytest.mark.parametrize("fault", [Fault(status=404), Fault(content=b"<html>"), Fault(content=b"{}")], ids=["404", "web page", "no token"])
def test_a_token_that_is_none_is_one_sentence(planetary_computer, capsys, fault):
    planetary_computer.faults["/token/127/one"] = [fault] * 99
    sentence = refused(capsys, "--bands red --catalogue planetary_computer")
    assert "image one of planetary_computer cannot be read (its address cannot be signed: " in sentence
