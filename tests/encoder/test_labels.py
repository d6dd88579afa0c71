import numpy as np
import pandas as pd
import pytest

from imagery2flow.encoder.labels import read_labels, training_patches
from imagery2flow.imagery.sites import SPLITS
from imagery2flow.run.config import LabelConfig
from imagery2flow.run.errors import InputError, MissingInputError, TableError

CITIES = ("Almaty (ALA)", "Bogota (BOG)", "007", "Cairo")


def write_manifest(folder, **columns):
    """Three patches of each city: one of each split."""
    folder.mkdir(exist_ok=True)
    rows = [
        {"geocode": f"{number}{split}", "status": "written", "path": f"{number}{split}.tif", "city": city, "split": split}
        for number, city in enumerate(CITIES)
        for split in SPLITS
    ]
    table = pd.DataFrame(rows).assign(**columns)
    table.to_csv(folder / "manifest.csv", index=False)
    return table


@pytest.fixture
def folder(tmp_path):
    write_manifest(tmp_path)
    return tmp_path


def write_indexes(folder, text):
    path = folder / "indexes.csv"
    path.write_text(text)
    return str(path)


INDEXES = "city(IATA),overall,planet\nALA,1,0.5\nBOG,40,\n007,7,2.5\nCAI,3,1\n"


def labels_of(folder, ledger, seed=0, target_scale=None, **settings):
    ids = pd.read_csv(folder / "manifest.csv", dtype=str).geocode.tolist()
    return read_labels(LabelConfig(**settings), str(folder), sorted(ids), seed, target_scale, ledger)


def test_classes_come_from_the_manifest_as_text_sorted_with_the_split_of_each_patch(folder, ledger):
    labels = labels_of(folder, ledger, label_column="city")
    assert labels.outputs.kind == "classes"
    assert labels.outputs.names == ("007", "Almaty (ALA)", "Bogota (BOG)", "Cairo")
    assert labels.ids("train") == ["0train", "1train", "2train", "3train"]
    assert {name: len(ids) for name, ids in labels.splits.items()} == {"train": 4, "validation": 4, "test": 4}
    assert labels.codes(["2train", "0test", "3validation"]).tolist() == [0, 1, 3]
    assert labels.groups.loc["2test"] == "007"


def test_rows_of_units_without_a_patch_do_not_count(folder, ledger):
    manifest = write_manifest(folder)
    pd.concat([manifest, manifest[:2].assign(status="outside", city="Quito")]).to_csv(folder / "manifest.csv", index=False)
    labels = read_labels(LabelConfig(label_column="city"), str(folder), sorted(manifest.geocode), 0, None, ledger)
    assert "Quito" not in labels.outputs.names and len(labels.split) == 12


def test_targets_are_joined_by_the_code_in_the_citys_name_and_scaled_by_the_training_patches(folder, ledger):
    path = write_indexes(folder, INDEXES)
    labels = labels_of(folder, ledger, target_column=["overall", "planet"], labels_path=path, labels_key="city")
    assert ledger.left_out == {f"city not in table {path}, with all patches": ["Cairo"]}  # CAI is no code of "Cairo"
    assert labels.outputs.names == ("overall", "planet")
    assert labels.outputs.mean == pytest.approx((16.0, 1.5))  # by hand: (1 + 40 + 7) / 3, and (.5 + 2.5) / 2
    assert labels.outputs.std == pytest.approx((np.sqrt((15**2 + 24**2 + 9**2) / 3), 1.0))
    expected = [[(40 - 16) / labels.outputs.std[0], np.nan], [(7 - 16) / labels.outputs.std[0], 1.0]]
    np.testing.assert_allclose(labels.scaled_targets(["1train", "2test"]), expected)
    assert labels.groups is None


def test_published_targets_are_divided_and_the_mean_stays_known(folder, ledger):
    path = write_indexes(folder, INDEXES)
    labels = labels_of(folder, ledger, target_scale=100.0, target_column=["overall"], labels_path=path, labels_key="city")
    assert labels.scaled_targets(["1train"]) == pytest.approx(0.4)
    assert labels.outputs.mean == pytest.approx((16.0,))


def test_a_constant_target_has_deviation_1(folder, ledger):
    path = write_indexes(folder, "city,overall\n" + "".join(f"{city},0.1\n" for city in CITIES))
    labels = labels_of(folder, ledger, target_column=["overall"], labels_path=path, labels_key="city")
    assert labels.outputs.std == (1.0,)
    assert labels.outputs.mean == pytest.approx((0.1,))


def test_a_table_by_geocode_labels_single_patches(folder, ledger):
    path = write_indexes(folder, "geocode,kind\n0train,a\n1train,b\n0test,b\n0validation,\n")
    labels = labels_of(folder, ledger, label_column="kind", labels_path=path)
    assert labels.outputs.names == ("a", "b")
    assert labels.split.to_dict() == {"0train": "train", "1train": "train", "0test": "test"}
    assert ledger.left_out["patches without a label"] == ["0validation"]
    assert len(ledger.left_out[f"geocode not in table {path}, with all patches"]) == 8


@pytest.mark.parametrize("has_split", [True, False])
def test_held_out_cities_are_tested_and_never_seen(folder, ledger, has_split):
    manifest = write_manifest(folder) if has_split else write_manifest(folder, split="").drop(columns="split")
    manifest.to_csv(folder / "manifest.csv", index=False)
    path = write_indexes(folder, "city,overall\n" + "".join(f"{city},{number}\n" for number, city in enumerate(CITIES)))
    city_of = manifest.set_index("geocode").city
    tested = []
    for fold in (1, 2, 3):
        settings = {
            "target_column": ["overall"],
            "labels_path": path,
            "labels_key": "city",
            "held_out_column": "city",
            "folds": 3,
            "fold": fold,
        }
        labels = labels_of(folder, ledger, **settings)
        test, seen = (set(city_of[ids]) for ids in (labels.ids("test"), labels.ids("train") + labels.ids("validation")))
        assert test == set(labels.outputs.held_out)
        assert not test & seen and test | seen == set(CITIES)
        assert len(labels.ids("test")) == 3 * len(test)  # all their patches
        assert len(labels.ids("train")) == (1 if has_split else 3) * (4 - len(test))
        tested += sorted(test)
        assert labels.outputs.mean == pytest.approx((np.mean([CITIES.index(city) for city in seen]),))
    assert sorted(tested) == sorted(CITIES)  # each in one fold
    assert ("patches without a split (or of the split test, but of groups that are not held out)" in ledger.left_out) == has_split


def test_the_seed_decides_which_cities_are_held_out(folder, ledger):
    settings = {"label_column": "path", "held_out_column": "city", "folds": 4}
    drawn = {labels_of(folder, ledger, seed, **settings).outputs.held_out for seed in range(12)}
    assert len(drawn) > 1


def test_a_class_that_training_lacks_is_listed(folder, ledger):
    manifest = write_manifest(folder)
    manifest.loc[manifest.geocode == "3train", "city"] = "Bogota (BOG)"
    manifest.to_csv(folder / "manifest.csv", index=False)
    labels = labels_of(folder, ledger, label_column="city")
    assert "Cairo" not in labels.outputs.names
    assert ledger.left_out == {
        "classes without a training patch, which the model never sees": ["Cairo"],
        "validation patches of such classes": ["3validation"],
    }
    assert "3test" in labels.ids("test")


@pytest.mark.parametrize(
    ("settings", "table", "sentence"),
    [
        ({"label_column": "town"}, None, r"manifest.csv has no column town \(but geocode, .*; name another with --label_column"),
        ({"label_column": "town", "labels_key": "city"}, INDEXES, "neither .*indexes.csv nor manifest.csv has a column town"),
        ({"label_column": "status"}, None, r"one class of status only \(written\)"),
        ({"target_column": ["overall"], "labels_key": "city"}, "city,overall\nALA,high\nBOG,2\n", r"1 values that are no numbers \(high\)"),
        ({"target_column": ["overall"], "labels_key": "city"}, "city,overall\nALA,inf\nBOG,2\n", "infinite values, of 3 patches"),
        (
            {"target_column": ["overall"], "labels_key": "city"},
            "city,overall\nALA,\nBOG,\n",
            "no patch of the split train has a value of overall",
        ),
        (
            {"target_column": ["overall", "planet"], "labels_key": "city"},
            "city,overall,planet\nALA,1,\nBOG,2,\n",
            "no patch of the split train has a value of planet; leave it out of --target_column",
        ),
        ({"target_column": ["overall"], "labels_key": "city"}, "city,overall\nROM,1\nOSL,2\n", "no row for any of the 4 values of city"),
        (
            {"target_column": ["overall"], "labels_key": "city"},
            "city,overall\nALA,1\nALA,2\n",
            r"1 values of city in more than one row \(ALA\)",
        ),
        ({"target_column": ["overall"], "labels_key": "town"}, INDEXES, "manifest.csv has no column town .*--labels_key"),
        ({"target_column": ["overall"], "labels_key": "site"}, "city,overall\nALA,1\n", "has no column site"),
        ({"label_column": "city", "held_out_column": "town"}, None, "manifest.csv has no column town .*--held_out_column"),
        ({"label_column": "city", "held_out_column": "city", "folds": 5}, None, "has 4 groups with a label but --folds is 5"),
    ],
)
def test_faults_are_one_sentence_with_the_remedy(folder, ledger, settings, table, sentence):
    path = {} if table is None else {"labels_path": write_indexes(folder, table)}
    with pytest.raises(TableError, match=sentence) as error:
        labels_of(folder, ledger, **settings, **path)
    assert "\n" not in str(error.value)


def test_all_faults_are_named_at_once(folder, ledger):
    path = write_indexes(folder, "city,overall,planet\nALA,high,inf\nBOG,2,3\n")
    write_manifest(folder, split="training")
    with pytest.raises(TableError) as error:
        labels_of(folder, ledger, target_column=["overall", "planet", "profit"], labels_path=path, labels_key="city")
    assert len(error.value.sentences) == 4
    assert all(word in str(error.value) for word in ("high", "infinite", "profit", "training"))


def test_without_a_split_the_remedy_is_named(folder, ledger):
    write_manifest(folder).drop(columns="split").to_csv(folder / "manifest.csv", index=False)
    with pytest.raises(InputError, match=r"has no column split, .*img_preprocessing.py --split"):
        labels_of(folder, ledger, label_column="city")
    (folder / "manifest.csv").rename(folder / "other.csv")
    with pytest.raises(MissingInputError, match=r"has no manifest.csv, .*--split"):
        read_labels(LabelConfig(label_column="city"), str(folder), ["0train"], 0, None, ledger)


def test_simclr_learns_from_training_patches_only_and_says_so(folder, ledger):
    ids = ["0test", "0train", "1train", "1validation"]
    assert training_patches(str(folder), ids, ledger) == ["0train", "1train"]
    assert "learns from the 2 patches of train, not from the other 2" in ledger.notes[0]
    with pytest.raises(InputError, match="no patch of the split train"):
        training_patches(str(folder), ["0test"], ledger)


@pytest.mark.parametrize("change", ["without column", "empty column", "without manifest"])
def test_without_a_split_simclr_learns_from_all(folder, ledger, change):
    table = write_manifest(folder, **({"split": ""} if change == "empty column" else {}))
    if change == "without column":
        table.drop(columns="split").to_csv(folder / "manifest.csv", index=False)
    elif change == "without manifest":
        (folder / "manifest.csv").unlink()
    assert training_patches(str(folder), ["0test", "0train"], ledger) == ["0test", "0train"]
    assert not ledger.notes


def test_the_hash_tells_other_labels_and_not_another_place_of_the_table(folder, ledger, tmp_path):
    settings = {"target_column": ["overall"], "labels_key": "city"}
    first = labels_of(folder, ledger, labels_path=write_indexes(folder, INDEXES), **settings).sha256
    (tmp_path / "elsewhere").mkdir()
    moved = labels_of(folder, ledger, labels_path=write_indexes(tmp_path / "elsewhere", INDEXES), **settings).sha256
    other = labels_of(folder, ledger, labels_path=write_indexes(folder, INDEXES.replace("40", "41")), **settings).sha256
    assert first == moved != other
