import numpy as np
import pandas as pd
import pytest

from imagery2flow.cities import indexes, scores
from imagery2flow.run.errors import InputError, TableError
from imagery2flow.run.stage import Ledger

NAN = float("nan")


@pytest.fixture
def ledger():
    return Ledger("cities", quiet=True)


def test_two_rows_that_fit_one_name_are_refused(ledger):
    table = pd.DataFrame({"green": [1.0, 2.0]}, index=["Georgetown (GEO)", "Georgia (GEO)"])
    assert indexes.true_values(table, "green", pd.Series({"t": "Georgia (GEO)"}), "city", ledger).to_dict() == {"t": 2.0}
    with pytest.raises(InputError, match="GEO fits 2 rows of --labels_path"):
        indexes.true_values(table, "green", pd.Series({"t": "GEO"}), "city", ledger)


def test_the_column_of_keys_may_say_what_its_codes_are(tmp_path, ledger):
    (tmp_path / "labels.csv").write_text("city(IATA),green\nALA,1\n")
    assert indexes.read_indexes(str(tmp_path / "labels.csv"), "city", ledger).index.tolist() == ["ALA"]


def test_true_values_are_joined_by_key_and_missing_ones_are_listed(ledger):
    table = pd.DataFrame({"green": [1.5, NAN, 9.0]}, index=["ALA", "Bern", "Riga"])
    keys = pd.Series({"1": "Almaty (ALA)", "2": "Bern", "3": "Oslo", "4": "Almaty (ALA)", "5": None})
    assert indexes.true_values(table, "green", keys, "city", ledger).to_dict() == {"1": 1.5, "4": 1.5}
    assert ledger.left_out == {
        "tiles without a key to the rows of --labels_path": ["5"],
        "cities or tiles without a value of green in --labels_path": ["Bern", "Oslo"],
        "rows of --labels_path without a tile to score green": ["Riga"],
    }


def test_faults_of_the_table_of_indexes_are_sentences(tmp_path, ledger):
    path = tmp_path / "labels.csv"
    path.write_text("city,green,kind\n001,1,warm\n001,2,cold\n")
    with pytest.raises(TableError, match=r"no column place, but city, green, kind; .*--labels_key"):
        indexes.read_indexes(str(path), "place", ledger)
    with pytest.raises(TableError, match=r"more than once \(001\)"):
        indexes.read_indexes(str(path), "city", ledger)
    path.write_text("city,green,kind\n001,1,warm\n")
    table = indexes.read_indexes(str(path), "city", ledger)
    keys = pd.Series({"t": "001"})
    assert indexes.true_values(table, "green", keys, "city", ledger).tolist() == [1]
    with pytest.raises(InputError, match="no column blue, but green, kind"):
        indexes.true_values(table, "blue", keys, "city", ledger)
    with pytest.raises(InputError, match=r"column kind .* holds text"):
        indexes.true_values(table, "kind", keys, "city", ledger)
    with pytest.raises(InputError, match=r"no value of green for any of the tiles \(002 against 001\)"):
        indexes.true_values(table, "green", pd.Series({"t": "002"}), "city", ledger)


def test_a_table_of_tiles_is_joined_by_id(tmp_path, ledger):
    path = tmp_path / "labels.csv"
    path.write_text("geocode,green\n01,1\n02,3\n")
    table = indexes.read_indexes(str(path), "geocode", ledger)
    assert indexes.true_values(table, "green", pd.Series({"02": "02", "01": "01"}), "geocode", ledger).to_dict() == {"02": 3, "01": 1}


@pytest.fixture
def predicted():
    """Three cities, of which two have one true value: grouping by the value would make them one."""
    return pd.DataFrame(
        {
            "city": ["a", "a", "b", "b", "c"],
            "observed": [1.0, 1.0, 1.0, 1.0, 4.0],
            "predicted": [1.0, 3.0, 0.0, 1.0, 5.0],
            "mean": 2.0,
        }
    )


def test_cities_are_grouped_by_name_not_by_value(predicted):
    table = indexes.city_table(predicted).set_index("city")
    assert table.tiles.to_dict() == {"a": 2, "b": 2, "c": 1}
    assert table.predicted_mean.to_dict() == {"a": 2, "b": 0.5, "c": 5}
    np.testing.assert_allclose(table.predicted_std, [np.sqrt(2), np.sqrt(0.5), NAN])
    assert table.training_mean.tolist() == [2, 2, 2]


def test_scores_stand_beside_the_mean_predictor(predicted):
    table = indexes.score_rows(predicted).set_index(["over", "predictor"])
    assert table.number.tolist() == [5, 5, 3, 3]
    observed, mean = np.array([1.0, 1, 4]), np.array([2, 0.5, 5])
    assert table.r2["cities", "model"] == pytest.approx(scores.r2(observed, mean))
    assert table.rmse["tiles", "training mean"] == pytest.approx(np.sqrt((4 * 1 + 4) / 5))
    assert table.r2["tiles", "training mean"] <= 0  # of the training tiles, not of these
    assert np.isnan(table.spearman["tiles", "training mean"])
    assert table.note.tolist() == ["", "the predicted values are all equal: no Spearman"] * 2


def test_a_constant_target_has_a_reason_instead_of_a_score(predicted):
    table = indexes.score_rows(predicted.assign(observed=2.0))
    assert table.r2.isna().all() and table.spearman.isna().all() and table.rmse.notna().all()
    assert (table.note == "the observed values are all equal: no R2, no Spearman").all()
