import json

import numpy as np
import pandas as pd
import pytest

from imagery2flow.cities import scores, similarity
from imagery2flow.cities.identify import score_cities
from imagery2flow.run.cities_config import CitiesConfig
from imagery2flow.run.errors import InputError
from imagery2flow.run.stage import Ledger

from .example import NAMES, Example


@pytest.fixture
def example(tmp_path):
    return Example(tmp_path)


def run(example, **settings):
    """The output folder, the results that figures would be drawn from, and the ledger."""
    config = CitiesConfig(**(example.write() | settings))
    ledger, seen = Ledger("cities", quiet=True), []
    run_file = score_cities(config, ledger, lambda results: seen.append(results) or {})
    assert run_file == config.output / "run.json"
    return config.output, seen[0], ledger


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_every_table_follows_from_the_test_rows(example, capsys):
    example.predictions["index.csv"] = example.regress()
    folder, _, ledger = run(example)
    test = example.predictions["classes.csv"][example.split == "test"]
    true = np.repeat(np.arange(4), 20)
    probabilities = test.drop(columns="split").to_numpy()
    found = metrics_of(folder)
    expected = scores.all_class_scores(probabilities, true, 5, 15)
    assert found["cities"] == pytest.approx(expected)
    confusion = pd.read_csv(folder / "confusion.csv", index_col="true_city")
    assert list(confusion) == list(confusion.index) == list(NAMES)
    assert (confusion.to_numpy() == scores.confusion_matrix(true, probabilities.argmax(axis=1), 4)).all()
    assert pd.read_csv(folder / "scores_by_class.csv").tiles.tolist() == [20] * 4
    assert pd.read_csv(folder / "calibration.csv").tiles.sum() == 80
    rows = pd.read_csv(folder / "index_scores.csv")
    assert rows.columns[0] == "target" and rows.number.tolist() == [80, 80, 4, 4]
    assert found["indexes"]["greenness"]["model over tiles"]["r2"] == pytest.approx(rows.r2[0])
    by_city = pd.read_csv(folder / "index_by_city.csv")
    np.testing.assert_allclose(by_city.observed, example.places[:, 0])
    assert ledger.left_out == {} and ledger.went_out["tiles of known cities scored"] == 80
    printed = capsys.readouterr().out
    assert f"accuracy                       {expected['accuracy']:.3f}" in printed and "training mean" in printed


def test_similarities_are_of_the_features_of_test_tiles(example):
    folder, results, _ = run(example)
    vectors = example.vectors[example.split == "test"].to_numpy()
    city = np.repeat(np.arange(4), 20)
    cosine = pd.read_csv(folder / "city_similarity_cosine.csv", index_col="city_name")
    np.testing.assert_allclose(cosine, similarity.cosine_similarity(similarity.city_means(vectors, city, 4)))
    frechet = pd.read_csv(folder / "city_similarity_frechet.csv", index_col="city_name")
    np.testing.assert_allclose(frechet, similarity.frechet_distances(similarity.fit_gaussians(vectors, city, 4)), atol=1e-9)
    shares = pd.read_csv(folder / "city_similarity_confusion.csv", index_col="city_name").to_numpy()
    np.testing.assert_allclose(shares, shares.T)
    assert list(results.maps) == ["confusion", "cosine", "frechet"]
    assert metrics_of(folder)["similarity"]["frechet"]["stress_of_map"] == pytest.approx(results.maps["frechet"].stress)


def test_the_order_of_rows_changes_no_byte(example):
    example.predictions["index.csv"] = example.regress()
    first, _, _ = run(example, tiles_per_city=7)
    before = {path.name: path.read_bytes() for path in first.glob("*.csv")} | {"metrics.json": (first / "metrics.json").read_bytes()}
    shuffled = Example(example.folder)
    shuffled.predictions["index.csv"] = example.regress()
    shuffled.manifest = shuffled.manifest.sample(frac=1, random_state=0)
    shuffled.labels = shuffled.labels[::-1]
    shuffled.predictions = {name: table.sample(frac=1, random_state=1) for name, table in shuffled.predictions.items()}
    shuffled.features = {name: table.sample(frac=1, random_state=2) for name, table in shuffled.features.items()}
    after, _, _ = run(shuffled, tiles_per_city=7)
    assert {name: (after / name).read_bytes() for name in before} == before


def test_a_drawn_number_of_tiles_counts_and_smaller_cities_are_named(example):
    few = (example.manifest.city == "Bern") & ~example.manifest.geocode.str.endswith("1")
    example.manifest = example.manifest[~few]
    folder, _, ledger = run(example, tiles_per_city=10)
    by_class = pd.read_csv(folder / "scores_by_class.csv", index_col="class")
    assert by_class.tiles.to_dict() == {"Aktau (AKT)": 10, "Bern": 4, "Cork (ORK)": 10, "Oslo (OSL)": 10}
    assert "1 cities have fewer than 10 tiles to test and give all: Bern (4)" in ledger.notes
    assert ledger.left_out["predictions of ids that are no tile with a city"]


def test_a_city_that_the_model_never_saw_is_told_by_what_it_looks_like(example):
    example.places[3] = example.places[1] + 0.1
    known = list(NAMES[:3])
    example.vectors.iloc[120:] = example.vectors.iloc[40:80].to_numpy() + 0.1
    example.predictions = {"classes.csv": example.classify(known)}
    example.features = {"features.csv": example.vectors}
    folder, _, ledger = run(example)
    assert metrics_of(folder)["cities"]["num_tiles"] == 60
    table = pd.read_csv(folder / "looks_like.csv")
    assert (table.city == "Oslo (OSL)").all() and table.tiles.tolist() == [20] * 3
    assert table.looks_like[0] == "Bern" and table.rank_by_cosine[0] == table.rank_by_frechet[0] == 1
    own = example.predictions["classes.csv"][(example.split == "test") & (example.manifest.city == "Oslo (OSL)").to_numpy()]
    assert table.mean_probability[0] == pytest.approx(own["probability_Bern"].mean())
    assert table.share_of_tiles_called_so.sum() == pytest.approx(1)
    assert len(ledger.left_out["tiles of cities that their model never saw: not in the scores, see looks_like.csv"]) == 20
    assert (pd.read_csv(folder / "city_similarity_cosine.csv").city_name == list(NAMES)).all()


def test_models_that_each_left_a_city_out_are_joined(example):
    """Every tile is for testing in the table of the model that never saw its city."""
    city = example.manifest.city.to_numpy()
    example.predictions = {
        f"fold{place}.csv": example.classify([other for other in NAMES if other != name], np.where(city == name, "test", "train"))
        for place, name in enumerate(NAMES)
    }
    example.predictions["index.csv"] = example.regress().assign(split="test")
    folder, _, ledger = run(example)
    table = pd.read_csv(folder / "looks_like.csv")
    assert table.groupby("city").size().to_dict() == dict.fromkeys(NAMES, 3)
    assert (table.city != table.looks_like).all()
    assert table.groupby("city").mean_probability.sum().tolist() == pytest.approx([1] * 4)
    assert metrics_of(folder)["cities"]["num_tiles"] == 0 and metrics_of(folder)["cities"]["accuracy"] is None
    assert not (folder / "confusion.csv").exists()
    assert any("no scores of recognition" in sentence for sentence in ledger.notes)
    assert pd.read_csv(folder / "index_scores.csv").number.tolist() == [160, 160, 4, 4]


def test_known_cities_without_test_tiles_are_compared_by_their_other_tiles(example):
    city = example.manifest.city.to_numpy()
    example.predictions = {"fold.csv": example.classify(NAMES[:3], np.where(city == NAMES[3], "test", "train"))}
    folder, _, ledger = run(example)
    table = pd.read_csv(folder / "looks_like.csv")
    assert table.cosine.notna().all() and table.frechet.notna().all()
    assert any(sentence.startswith("3 cities have no tile to test with features") for sentence in ledger.notes)


def test_ids_of_one_side_only_are_in_the_ledger(example):
    example.manifest = example.manifest[2:]
    example.predictions["classes.csv"] = example.predictions["classes.csv"][:-2]
    example.features["features.csv"] = example.features["features.csv"].drop(example.manifest.geocode.iloc[1:4:2])
    _, _, ledger = run(example)
    assert {reason: len(ids) for reason, ids in ledger.left_out.items()} == {
        "tiles without a prediction, in the manifest: written": 2,
        "predictions of ids that are no tile with a city": 2,
        "tiles to test without features": 2,
        "features of ids that are no tile with a city": 2,
    }


def test_a_class_without_test_tiles_counts_in_no_mean(example):
    keep = (example.manifest.city != "Bern").to_numpy()
    example.manifest = example.manifest[keep]
    folder, results, ledger = run(example)
    by_class = pd.read_csv(folder / "scores_by_class.csv", index_col="class")
    assert by_class.tiles["Bern"] == 0 and np.isnan(by_class.f1["Bern"])
    assert metrics_of(folder)["cities"]["macro_f1"] == pytest.approx(by_class.f1.mean())
    assert ledger.left_out["classes without a tile to test, which are in no mean over classes"] == ["Bern"]
    assert ledger.left_out["cities without a similarity by confusion"] == ["Bern"]
    assert "Bern" not in results.distances["confusion"]


@pytest.mark.parametrize("tiles_per_city", [2, 40])  # one test tile each, and twenty
def test_one_city_has_scores_but_no_map(tmp_path, tiles_per_city):
    folder, results, ledger = run(Example(tmp_path, names=["Bern"], tiles_per_city=tiles_per_city))
    assert metrics_of(folder)["cities"]["accuracy"] == 1
    assert results.maps == {} and sum("need 2" in sentence for sentence in ledger.notes) == 3


def test_cities_of_one_tile_each_have_every_table(tmp_path):
    folder, results, _ = run(Example(tmp_path, tiles_per_city=2))
    assert set(results.maps) == {"confusion", "cosine", "frechet"}
    assert np.isfinite(pd.read_csv(folder / "city_similarity_frechet.csv", index_col="city_name").to_numpy()).all()


def test_tables_of_indexes_alone_are_enough(example):
    example.predictions = {"index.csv": example.regress()}
    example.labels = example.labels.assign(city=["AKT", "Bern", "ORK", "Riga"])
    folder, _, ledger = run(example)
    assert set(metrics_of(folder)) == {"similarity", "indexes"}
    assert ledger.left_out["cities or tiles without a value of greenness in --labels_path"] == ["Oslo (OSL)"]
    assert pd.read_csv(folder / "index_by_city.csv").city.tolist() == list(NAMES[:3])


def test_a_constant_index_is_told_as_such(example):
    example.predictions = {"index.csv": example.regress()}
    example.labels = example.labels.assign(greenness=3.0)
    folder, _, _ = run(example)
    table = pd.read_csv(folder / "index_scores.csv")
    assert table.r2.isna().all() and table.note.str.contains("observed values are all equal").all()
    assert metrics_of(folder)["indexes"]["greenness"]["model over cities"]["r2"] is None


def test_what_an_earlier_run_left_is_removed(example):
    folder, _, _ = run(example)
    assert (folder / "city_similarity_cosine.csv").exists()
    (folder / "notes.txt").write_text("mine")
    (folder / "confusion.png").write_text("old")
    run(example, embeddings_path=[])
    assert not (folder / "city_similarity_cosine.csv").exists() and not (folder / "confusion.png").exists()
    assert (folder / "notes.txt").exists()


@pytest.mark.parametrize(
    ("change", "settings", "sentence"),
    [
        ("none", {"label_column": "place"}, "has no column place"),
        ("regress", {"labels_path": None}, r"hold indexes \(greenness\) but no --labels_path"),
        ("regress", {"target_column": ["blueness"]}, "--target_column blueness is predicted in no table"),
        ("train", {}, "hold no tile of split test"),
        ("twice", {}, "80 tiles have probabilities for testing in more than one table"),
        ("foreign", {}, "none of the 160 ids"),
        ("other features", {}, "--embeddings_path: none of the ids"),
    ],
)
def test_what_cannot_be_scored_is_a_sentence(example, change, settings, sentence):
    table = example.predictions["classes.csv"]
    if change == "regress":
        example.predictions["index.csv"] = example.regress()
    elif change == "train":
        example.predictions["classes.csv"] = table.assign(split="train")
    elif change == "twice":
        example.predictions["again.csv"] = table
    elif change == "foreign":
        example.predictions["classes.csv"] = table.rename(index=lambda name: f"x{name}")
    elif change == "other features":
        example.features["features.csv"] = example.features["features.csv"].rename(index=lambda name: f"x{name}")
    with pytest.raises(InputError, match=sentence):
        run(example, **settings)


def test_true_indexes_without_predicted_ones_are_refused(example, tmp_path):
    example.labels.to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(InputError, match="no table of --predictions_path holds predicted ones"):
        run(example, labels_path=str(tmp_path / "labels.csv"))


def test_faults_of_several_inputs_are_named_together(example):
    example.predictions["classes.csv"].iloc[3, 2] = np.nan
    example.features["features.csv"].iloc[5, 0] = np.inf
    with pytest.raises(InputError, match=r"2 faults(.|\n)*classes.csv(.|\n)*features.csv"):
        run(example)
