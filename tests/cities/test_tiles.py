import numpy as np
import pandas as pd
import pytest

from imagery2flow.cities import tiles
from imagery2flow.run.errors import InputError, MissingInputError, TableError
from imagery2flow.run.stage import Ledger


@pytest.fixture
def ledger():
    return Ledger("cities", quiet=True)


def write(path, **columns):
    pd.DataFrame(columns).to_csv(path, index=False)
    return str(path)


def manifest(folder, **columns):
    folder.mkdir(exist_ok=True)
    write(folder / "manifest.csv", **columns)
    return str(folder)


def test_tiles_of_several_folders_keep_ids_and_cities_as_text(tmp_path, ledger):
    one = manifest(tmp_path / "one", geocode=["02", "01"], status="written", city=["007", "NA"])
    two = manifest(tmp_path / "two", geocode=["03", "04"], status=["written", "all nodata"], city=["007", None])
    found = tiles.read_tiles([one, two], "city", None, ledger)
    assert found.city.to_dict() == {"01": "NA", "02": "007", "03": "007"}
    assert ledger.left_out == {"tiles without a value in the column city": ["04"]}
    assert ledger.came_in == {"tiles": 4} and len(ledger.inputs) == 2


def test_faults_of_manifests_are_sentences(tmp_path, ledger):
    with pytest.raises(MissingInputError, match="does not exist"):
        tiles.read_tiles([str(tmp_path / "nowhere")], "city", None, ledger)
    folder = manifest(tmp_path / "one", geocode=["1", "1"], status="written", city="a")
    with pytest.raises(InputError, match=r"has no column place, but geocode, status, city; .* --mode grid"):
        tiles.read_tiles([folder], "place", None, ledger)
    with pytest.raises(TableError, match=r"1 ids are there more than once \(1\)"):
        tiles.read_tiles([folder], "city", None, ledger)


GOOD = {"geocode": ["b", "a"], "split": ["test", "train"], "probability_x": [0.25, 0.5], "probability_y": [0.75, 0.5]}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_predictions_are_sorted_by_id_and_counted_by_split(tmp_path, ledger, suffix):
    path = tmp_path / f"predictions.{suffix}"
    table = pd.DataFrame(GOOD | {"note": "kept out"}).set_index("geocode")
    (table.to_csv if suffix == "csv" else table.to_parquet)(path)
    found = tiles.read_predictions(str(path), ledger)
    assert list(found) == ["split", "probability_x", "probability_y"] and list(found.index) == ["a", "b"]
    assert ledger.notes == [f"predictions {path}: 1 train, 1 test"]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"split": None}, "no column split"),
        ({"probability_x": None, "probability_y": None}, "no column probability_<class> or predicted_<target>"),
        ({"geocode": None}, "no column geocode"),
        ({"geocode": ["a", "a"]}, "more than once"),
        ({"geocode": ["a", None]}, "1 rows have no id"),
        ({"split": ["test", "Test"]}, r"1 rows have a split other than train, validation, test, unknown \(Test\)"),
        ({"probability_x": [0.25, None]}, r"1 rows hold an empty cell or a value that is not finite or beyond 1e\+100 \(a\)"),
        ({"probability_x": [0.25, "much"]}, "columns probability_x hold text"),
        ({"probability_x": [0.25, 0.4]}, r"probabilities of 1 rows are below 0 or do not sum to 1 \(a\)"),
        ({"probability_x": [1.25, 0.5], "probability_y": [-0.25, 0.5]}, r"below 0 or do not sum to 1 \(b\)"),
        ({"predicted_green": [1.0, 2.0]}, "no column mean_green"),
    ],
)
def test_faults_of_predictions_are_sentences(tmp_path, ledger, changed, sentence):
    columns = {name: value for name, value in (GOOD | changed).items() if value is not None}
    with pytest.raises(TableError, match=sentence):
        tiles.read_predictions(write(tmp_path / "predictions.csv", **columns), ledger)


def test_ids_that_are_numbers_are_refused(tmp_path, ledger):
    path = tmp_path / "predictions.parquet"
    pd.DataFrame(GOOD | {"geocode": [1, 2]}).to_parquet(path)
    with pytest.raises(TableError, match="ids are numbers"):
        tiles.read_predictions(str(path), ledger)


def predicted(ids, splits, **columns):
    return pd.DataFrame({"split": splits} | columns, index=pd.Index(ids, name="geocode"))


def known_tiles(**city):
    return pd.DataFrame({"status": "written", "city": city})


def test_test_rows_of_several_models_are_joined_and_classes_that_one_does_not_know_are_empty(ledger):
    found = tiles.join_classes(
        [
            predicted(["1", "2"], ["test", "train"], probability_b=[0.9, 0.5], probability_a=[0.1, 0.5]),
            predicted(["1", "2"], ["validation", "test"], probability_a=[0.0, 0.2], probability_c=[1.0, 0.8]),
            predicted(["1"], ["test"], predicted_green=[3.0], mean_green=[2.0]),
        ],
        known_tiles(**{"1": "a", "2": "b"}),
        ledger,
    )
    assert list(found) == ["a", "b", "c"] and list(found.index) == ["1", "2"]
    np.testing.assert_equal(found.to_numpy(), [[0.1, 0.9, np.nan], [0.2, np.nan, 0.8]])
    assert ledger.left_out == {}


def test_unknown_tiles_count_only_in_cities_that_are_no_class(ledger):
    table = predicted(["1", "2", "3"], ["unknown", "unknown", "train"], probability_a=[1.0, 1.0, 1.0])
    found = tiles.join_classes([table], known_tiles(**{"1": "a", "2": "new", "3": "new"}), ledger)
    assert list(found.index) == ["2"]
    assert list(ledger.left_out.values()) == [["1"]]


def test_a_tile_for_testing_in_two_tables_is_refused_if_they_predict_the_same(ledger):
    classes = predicted(["1"], ["test"], probability_a=[1.0])
    green = predicted(["1"], ["test"], predicted_green=[3.0], mean_green=[2.0])
    blue = predicted(["1"], ["test"], predicted_blue=[5.0], mean_blue=[2.0])
    city = known_tiles(**{"1": "a"})
    assert {name: table.to_numpy().tolist() for name, table in tiles.join_targets([classes, green, blue], city).items()} == {
        "green": [[3, 2]],
        "blue": [[5, 2]],
    }
    with pytest.raises(TableError, match=r"1 tiles have probabilities for testing in more than one table \(1\)"):
        tiles.join_classes([classes, classes], city, ledger)
    with pytest.raises(TableError, match="predictions of green"):
        tiles.join_targets([green, green], city)


def test_ids_on_one_side_only_are_listed_and_none_in_common_is_refused(ledger):
    table = predicted(["1", "9"], ["test", "test"], probability_a=[1.0, 1.0])
    city = known_tiles(**{"1": "a", "2": "a", "3": "b"})
    city.loc["3", "status"] = "all nodata"
    tiles.note_missing([table, table], city, ledger)
    assert ledger.left_out == {
        "predictions of ids that are no tile with a city": ["9"],
        "tiles without a prediction, in the manifest: all nodata": ["3"],
        "tiles without a prediction, in the manifest: written": ["2"],
    }
    with pytest.raises(TableError, match=r"none of the 1 ids \(9\) is among the 3 tiles"):
        tiles.note_missing([table.loc[["9"]]], city, ledger)


def test_a_draw_follows_from_the_city_and_the_seed_alone():
    city = pd.Series({f"{name}{n:02d}": name for name in "abc" for n in range(20)})
    drawn = tiles.draw_tiles(city, 5, seed=0)
    assert city.loc[drawn].value_counts().to_dict() == {"a": 5, "b": 5, "c": 5} and drawn.is_monotonic_increasing
    shuffled = city.sample(frac=1, random_state=1)
    assert (tiles.draw_tiles(shuffled, 5, seed=0) == drawn).all()
    alone = tiles.draw_tiles(city[city == "b"], 5, seed=0)
    assert set(alone) <= set(drawn)
    assert set(tiles.draw_tiles(city, 5, seed=1)) != set(drawn)
    assert len(tiles.draw_tiles(city, 50, seed=0)) == len(tiles.draw_tiles(city, 0, seed=0)) == 60
    assert len(tiles.draw_tiles(city[:0], 5, seed=0)) == 0


def test_a_draw_is_uniform():
    city = pd.Series("a", index=[f"{n}" for n in range(10)])
    hits = pd.concat([pd.Series(1, tiles.draw_tiles(city, 5, seed)) for seed in range(400)]).groupby(level=0).sum()
    assert len(hits) == 10 and abs(hits - 200).max() < 5 * 10  # a standard deviation is 10


def test_features_are_the_numbered_columns_in_their_order(tmp_path, ledger):
    path = write(tmp_path / "features.csv", geocode=["b", "a"], **{"10": [1, 2], "2": [3, 4], "red_mean": [5, 6]})
    found = tiles.read_features([path], ledger)
    assert list(found) == ["2", "10"] and found.to_numpy().tolist() == [[4, 2], [3, 1]]
    assert tiles.read_features([], ledger) is None


def test_faults_of_features_are_sentences(tmp_path, ledger):
    good = write(tmp_path / "good.csv", geocode=["a"], **{"0": [1.0], "1": [1.0]})
    with pytest.raises(TableError, match="no numbered columns"):
        tiles.read_features([write(tmp_path / "bands.csv", geocode=["a"], red_mean=[1.0])], ledger)
    with pytest.raises(TableError, match=r"1 numbered columns but .* has 2"):
        tiles.read_features([good, write(tmp_path / "short.csv", geocode=["b"], **{"0": [1.0]})], ledger)
    with pytest.raises(TableError, match=r"not finite or beyond 1e\+100 \(b\)"):
        tiles.read_features([write(tmp_path / "bad.csv", geocode=["a", "b"], **{"0": [1.0, 1e200]})], ledger)
    with pytest.raises(TableError, match="more than once"):
        tiles.read_features([good, good], ledger)
