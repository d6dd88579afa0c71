"""Trees of cities: which images they hold, and how these are divided for training, validation and test."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagery2flow.imagery.sites import SceneFile, divide, find_scenes
from imagery2flow.run.errors import InputError, MissingInputError
from tests.imagery.helpers import quiet


def files_of(*names: str) -> list[SceneFile]:
    return [SceneFile(Path(name), *name.split("/")[:2]) for name in names]


def sizes(files: list[SceneFile], width: int = 5, height: int = 4) -> list:
    return [SimpleNamespace(width=width, height=height)] * len(files)


def test_images_of_a_tree_are_found_and_others_are_named(tmp_path):
    names = ["B/s1/x.jpg", "A/s1/x.TIF", "A/loose.tif", "A/s1/deep/x.tif", "A/s1/readme.md", "A/.hidden/x.tif"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    ledger = quiet()
    assert [(file.city, file.site, file.path.name) for file in find_scenes(tmp_path, ledger)] == [
        ("A", "s1", "x.TIF"),
        ("B", "s1", "x.jpg"),
    ]
    assert ledger.left_out == {
        "files that are no images": ["A/s1/readme.md"],
        "images not at <city>/<site>/<image>": ["A/loose.tif", "A/s1/deep/x.tif"],
    }


def test_a_folder_without_cities_is_refused(tmp_path):
    (tmp_path / "scene.tif").touch()
    with pytest.raises(MissingInputError, match=r"without images at <city>/<site>/<image> \(1 images lie elsewhere in it\)"):
        find_scenes(tmp_path, quiet())


def test_the_published_split_halves_the_last_site():
    files = files_of("A/1/x.tif", "A/2/x.tif", "A/2/y.tif")
    parts = divide(files, sizes(files), "last_site", [0.6, 0.2, 0.2], 0)
    assert [(part.prefix, part.column, part.width, part.split) for part in parts] == [
        ("A-1-x-", 0, 5, "train"),
        ("A-2-x-half1-", 0, 2, "test"),
        ("A-2-x-half2-", 2, 3, "validation"),
        ("A-2-y-half1-", 0, 2, "test"),
        ("A-2-y-half2-", 2, 3, "validation"),
    ]


def test_a_city_of_one_site_cannot_be_split_by_its_last():
    files = files_of("A/1/x.tif", "A/2/x.tif", "B/1/x.tif", "B/1/y.tif")
    with pytest.raises(InputError, match=r"1 cities have too few sites \(B\), but the last site is not trained on.*--split scenes"):
        divide(files, sizes(files), "last_site", [0.6, 0.2, 0.2], 0)


@pytest.mark.parametrize("pair", [("a-b/c/x.tif", "a/b-c/x.tif"), ("a/b/x.tif", "a/b/x.jpg")])
def test_scenes_whose_tiles_would_share_ids_are_refused(pair):
    files = files_of(*pair)
    with pytest.raises(InputError, match="scenes would give tiles one id"):
        divide(files, sizes(files), "none", [0.6, 0.2, 0.2], 0)


@given(st.integers(3, 40), st.integers(0, 2**20), st.sampled_from([(0.6, 0.2, 0.2), (0.8, 0.1, 0.1), (0.5, 0.0, 0.5), (1.0, 0.0, 0.0)]))
def test_dealing_is_complete_close_to_the_shares_and_the_same_again(num_scenes, seed, shares):
    files = files_of(*(f"{city}/s/{number:02d}.tif" for city in "AB" for number in range(num_scenes)))
    parts = divide(files, sizes(files), "scenes", shares, seed)
    assert parts == divide(files, sizes(files), "scenes", shares, seed)
    for city in "AB":
        counts = Counter(part.split for part in parts if part.city == city)
        assert sum(counts.values()) == num_scenes
        for split, share in zip(("train", "validation", "test"), shares, strict=True):
            assert (counts[split] > 0) == (share > 0)
            assert abs(counts[split] - share * num_scenes) < 2.5


def test_scenes_of_one_site_stay_together():
    files = files_of(*(f"A/{site}/{number}.tif" for site in range(6) for number in range(3)))
    parts = divide(files, sizes(files), "sites", [0.5, 0.25, 0.25], 1)
    by_site = {(part.site, part.split) for part in parts}
    assert len(by_site) == 6
    assert Counter(split for _, split in by_site) == {"train": 3, "validation": 1, "test": 2} or Counter(split for _, split in by_site) == {
        "train": 3,
        "validation": 2,
        "test": 1,
    }


def test_too_few_sites_to_deal_are_refused_by_city():
    files = files_of("A/1/x.tif", "A/2/x.tif", "B/1/x.tif", "B/2/x.tif", "B/3/x.tif")
    with pytest.raises(InputError, match=r"1 cities have too few sites \(A\), but --split_shares asks for 3 splits of each city's sites"):
        divide(files, sizes(files), "sites", [0.6, 0.2, 0.2], 0)
    assert len(divide(files, sizes(files), "sites", [0.5, 0.0, 0.5], 0)) == 5
