"""Which tiles are drawn, and what their cities are called in names of files."""

import pandas as pd
import pytest

from imagery2flow.cities.tile_choice import choose_tiles, draw_tiles, file_names, sheet_path
from imagery2flow.imagery.patch_files import PatchFiles
from imagery2flow.run.errors import InputError, TableError
from imagery2flow.run.explain_config import ExplainConfig
from imagery2flow.run.stage import Ledger


def config(**settings):
    return ExplainConfig(data_path="p", output_dir="o", **settings)


def folder_of(path, manifest):
    manifest.to_csv(path / "manifest.csv", index=False)
    paths = {geocode: path / f"{geocode}.tif" for geocode in sorted(manifest.geocode)}
    return PatchFiles(path, paths, dict.fromkeys(paths, 4), (1,), ("red",), True, "uint8")


def manifest(**columns):
    table = pd.DataFrame({"geocode": [f"t{number}" for number in range(8)], "status": "written", "path": "x"})
    return table.assign(**columns)


def test_tiles_of_the_test_split_are_drawn_by_city(tmp_path):
    split = ["train", "test", "test", "validation", "test", "test", "train", "train"]
    files = folder_of(tmp_path, manifest(city=["NA", "NA", "NA", "NA", "007", "007", "007", "Rome"], split=split))
    ledger = Ledger("test", quiet=True)
    assert choose_tiles(files, (), config(), ledger) == {"007": ["t4", "t5"], "NA": ["t1", "t2"]}
    assert ledger.left_out == {"cities without a tile of the split test": ["Rome"]}
    assert ledger.notes == ["2 cities have fewer than 10 tiles, and give all: 007 2, NA 2"]
    held_out = choose_tiles(files, ("007", "Rome"), config(), Ledger("test", quiet=True))  # the model saw none of their tiles
    assert held_out == {"007": ["t4", "t5", "t6"], "NA": ["t1", "t2"], "Rome": ["t7"]}


def test_tiles_without_a_city_are_counted_and_may_be_named(tmp_path):
    files = folder_of(tmp_path, manifest(city=["A", None] * 4))
    ledger = Ledger("test", quiet=True)
    assert choose_tiles(files, (), config(), ledger) == {"A": ["t0", "t2", "t4", "t6"]}
    assert ledger.left_out == {"tiles without a city, which none is drawn from": ["t1", "t3", "t5", "t7"]}
    named = choose_tiles(files, (), config(geocodes=["t3", "t2"]), Ledger("test", quiet=True))
    assert named == {"A": ["t2"], "all": ["t3"]}


def test_every_tile_of_a_city_is_drawn_equally_often():
    table = pd.DataFrame({"city": "A", "split": "test"}, index=[f"t{number}" for number in range(10)])
    ledger = Ledger("test", quiet=True)
    counts = dict.fromkeys(table.index, 0)
    for seed in range(400):
        drawn = draw_tiles(table, (), config(tiles_per_city=3, seed=seed), ledger)["A"]
        assert len(set(drawn)) == 3 and drawn == sorted(drawn)
        for geocode in drawn:
            counts[geocode] += 1
    assert all(80 < count < 160 for count in counts.values())  # 120 expected, standard deviation 9
    shuffled = draw_tiles(table.iloc[::-1], (), config(tiles_per_city=3, seed=1), ledger)
    assert shuffled == draw_tiles(table, (), config(tiles_per_city=3, seed=1), ledger)


def test_ids_that_cannot_name_files_are_refused(tmp_path):
    table = manifest()
    table.loc[3, "geocode"] = "../t3"
    with pytest.raises(TableError, match="cannot be part of a file name"):
        choose_tiles(folder_of(tmp_path, table), (), config(), Ledger("test", quiet=True))
    with pytest.raises(InputError, match=r"2 are no patches of .* \(a, b\)"):
        choose_tiles(folder_of(tmp_path, manifest()), (), config(geocodes=["a", "b"]), Ledger("test", quiet=True))


def test_names_of_cities_are_safe_in_names_of_files(tmp_path):
    cities = ["São Paulo (GRU)", "A/B", "A B", "a b", "../..", "", "x" * 300, "x" * 301, "A_B_2", "tab\tnew\nline"]
    names = file_names(cities)
    assert list(names) == cities
    assert [names[city] for city in cities[:6]] == ["São_Paulo_GRU", "A_B", "A_B_2", "a_b_3", "city", "city_2"]
    assert len({name.casefold() for name in names.values()}) == len(cities)
    assert names["A_B_2"] == "A_B_2_2"
    for name in names.values():
        path = sheet_path(tmp_path, name, 2)
        path.write_text("")
        assert path.parent == tmp_path and path.is_file()
