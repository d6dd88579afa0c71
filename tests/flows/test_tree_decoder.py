import dataclasses

import numpy as np
import pytest
import torch

from imagery2flow.flows import tree_decoder
from imagery2flow.flows.scaling import Scaling, fit_scaling
from imagery2flow.flows.tree_decoder import Lesson, Seen, UnitInputs, best_weights, fit_home, fit_transfer, load_decoder, save_decoder
from imagery2flow.run.errors import MissingInputError
from imagery2flow.run.flow_config import TreesConfig

from .conftest import NUM_UNITS, make_region, training_config

TREES = TreesConfig(num_trees=8, min_leaf_pairs=5, early_stopping=0, transfer_trees=6)
RADII_M, TRANSFER_RADII_M = [1500.0, 3000.0], [800.0]


@pytest.fixture(scope="module")
def region():
    return make_region()


@pytest.fixture(scope="module")
def seen(region):
    """A region with a network's embeddings."""
    return Seen(region, fit_scaling(region, True, 2), torch.rand(NUM_UNITS, 5, generator=torch.Generator().manual_seed(0)))


def lesson(seen, **changes):
    """Origins 0 to 14 train, 15 to 19 validate."""
    flows = seen.region.flows
    settings = {"trees": TREES, "universe": "positive", "context_m": RADII_M, "transfer_context_m": TRANSFER_RADII_M}
    config = training_config(**{**settings, **changes})
    return Lesson(config, seen, flows.select(flows.origin < 15), flows.select((flows.origin >= 15) & (flows.origin < 20)))


@pytest.mark.parametrize("embeddings", [True, False])
@pytest.mark.parametrize("unit_features", [True, False])
def test_the_trees_see_the_networks_embeddings_and_its_features_if_asked_for(seen, embeddings, unit_features):
    trees = TreesConfig(embeddings=embeddings, unit_features=unit_features)
    parts = [np.zeros((NUM_UNITS, 0))]
    parts += [seen.hidden.numpy()] if embeddings else []
    parts += [seen.scaling.features(seen.region), seen.scaling.surroundings(seen.region, RADII_M)] if unit_features else []
    found = UnitInputs(trees, tuple(RADII_M), False).columns(seen)
    np.testing.assert_array_equal(found, np.concatenate(parts, axis=1).astype(np.float32))


def test_potentials_are_predicted_from_the_unit_and_at_home_from_its_surroundings(seen):
    own, around = seen.scaling.quantities(seen.region), seen.scaling.surroundings(seen.region, RADII_M)
    narrow, wide = (UnitInputs(TREES, tuple(RADII_M), wide).potential_features(seen) for wide in (False, True))
    np.testing.assert_array_equal(narrow, own)
    np.testing.assert_array_equal(wide, np.concatenate([own, around], axis=1))


def test_each_decoder_has_its_surroundings_and_its_number_of_trees(seen):
    home, transfer = fit_home(lesson(seen)), fit_transfer(lesson(seen))
    assert (home.unit_inputs.context_m, transfer.unit_inputs.context_m) == (tuple(RADII_M), tuple(TRANSFER_RADII_M))
    assert (home.unit_inputs.wide_potentials, transfer.unit_inputs.wide_potentials) == (True, False)
    assert [trees.booster.num_trees() for trees in home.members] == [8, 8]
    assert [trees.booster.num_trees() for trees in transfer.members] == [6, 8]


def test_the_prediction_is_the_average_of_the_members(seen):
    decoder, pairs = dataclasses.replace(fit_home(lesson(seen)), weights=(0.3, 0.7)), seen.region.flows
    inputs, distance = decoder.unit_inputs.of_pairs(seen, decoder.potentials), seen.relative_distance(pairs)
    features, law = (trees.predict(inputs, pairs, distance) for trees in decoder.members)
    np.testing.assert_allclose(decoder.predict(inputs, pairs, distance), 0.3 * features + 0.7 * law)
    assert not np.allclose(features, law)
    alone = dataclasses.replace(decoder, weights=(1.0, 0.0))
    np.testing.assert_array_equal(alone.predict(inputs, pairs, distance), features)


def test_weights_are_those_of_the_highest_score_and_of_equal_ones_the_most_even():
    count = np.array([10.0, 20.0])
    # 3/4 of the first and 1/4 of the second are the counts.
    assert best_weights(count, [np.array([12.0, 16.0]), np.array([4.0, 32.0])]) == (0.75, 0.25)
    assert best_weights(count, [count, 3 * count]) == (1.0, 0.0)
    assert best_weights(count, [3 * count, count]) == (0.5, 0.5)  # the law never weighs more
    assert best_weights(count, [count, count]) == (0.5, 0.5)
    assert best_weights(count, [3 * count]) == (1.0,)


def test_the_validation_pairs_weigh_the_law_at_home_and_elsewhere_both_weigh_the_same(seen, monkeypatch):
    asked = []
    monkeypatch.setattr(tree_decoder, "best_weights", lambda count, predictions: asked.append((count, predictions)) or (0.9, 0.1))
    task = lesson(seen)
    assert fit_home(task).weights == (0.9, 0.1)
    ((count, predictions),) = asked
    np.testing.assert_array_equal(count, task.valid.count)
    assert [len(values) for values in predictions] == [len(task.valid)] * 2
    assert fit_transfer(task).weights == (0.5, 0.5)


@pytest.mark.parametrize("changes", [{"law": False}, {"potentials": False}])
def test_without_law_or_potentials_there_is_one_member(seen, changes):
    trees = dataclasses.replace(TREES, **changes)
    for decoder in (fit_home(lesson(seen, trees=trees)), fit_transfer(lesson(seen, trees=trees))):
        assert len(decoder.members) == 1
        assert decoder.weights == (1.0,)
        assert (decoder.potentials is None) == (not trees.potentials)


def test_the_trees_for_other_cities_learn_from_the_validation_pairs_and_those_at_home_with_early_stopping_only(seen, monkeypatch):
    sizes = []
    for name, place in (("fit_trees", 0), ("fit_again", 1), ("fit_law", 0)):
        original = getattr(tree_decoder, name)
        monkeypatch.setattr(
            tree_decoder, name, lambda *data, f=original, n=name, p=place: (sizes.append((n, len(data[p].count))), f(*data))[1]
        )
    task = lesson(seen)
    train, both = len(task.train), len(task.train) + len(task.valid)
    fit_transfer(task)
    assert sizes == [("fit_trees", both), ("fit_law", both)]
    sizes.clear()
    fit_home(task)
    assert sizes == [("fit_trees", train), ("fit_law", train)]
    sizes.clear()
    fit_home(lesson(seen, trees=dataclasses.replace(TREES, early_stopping=3)))
    assert sizes == [("fit_trees", train), ("fit_law", train), ("fit_again", both), ("fit_law", both)]


def test_units_that_potentials_were_fitted_to_get_those_of_the_others(seen):
    decoder = fit_transfer(lesson(seen))
    crossed, of_all = decoder.potentials.crossed, decoder.potentials.of(decoder.unit_inputs.potential_features(seen))
    found = decoder.unit_inputs.of_pairs(seen, decoder.potentials, crossed).potential
    known = ~np.isnan(crossed)
    assert known[:20].all()
    np.testing.assert_array_equal(found[known], crossed[known])
    np.testing.assert_array_equal(found[~known], of_all[~known])
    np.testing.assert_array_equal(decoder.unit_inputs.of_pairs(seen, decoder.potentials).potential, of_all)


def test_a_saved_decoder_comes_back(seen, tmp_path):
    decoder, pairs = fit_home(lesson(seen)), seen.region.flows
    loaded = load_decoder(tmp_path, save_decoder(tmp_path, "trees", decoder))
    assert {path.name for path in tmp_path.iterdir()} == {"trees.txt", "trees_law.txt"}
    assert loaded.unit_inputs == decoder.unit_inputs
    assert loaded.weights == decoder.weights
    distance = seen.relative_distance(pairs)
    before, after = (each.predict(each.unit_inputs.of_pairs(seen, each.potentials), pairs, distance) for each in (decoder, loaded))
    np.testing.assert_array_equal(after, before)
    assert save_decoder(tmp_path, "none", None) is load_decoder(tmp_path, None) is None


def test_a_name_in_the_model_leads_to_no_file_outside_its_folder(seen, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    stored = save_decoder(folder, "trees", fit_home(lesson(seen)))
    (folder / "trees.txt").rename(tmp_path / "trees.txt")
    stored["files"][0]["name"] = "../trees.txt"
    with pytest.raises(MissingInputError, match=r"model/trees.txt"):
        load_decoder(folder, stored)


def test_surroundings_are_reckoned_once_for_each_set_of_radii(seen, monkeypatch):
    asked = []
    original = Scaling.surroundings
    monkeypatch.setattr(Scaling, "surroundings", lambda self, region, radii_m: asked.append(radii_m) or original(self, region, radii_m))
    fresh = Seen(seen.region, seen.scaling, seen.hidden)
    fit_home(lesson(fresh, trees=dataclasses.replace(TREES, early_stopping=3)))
    fit_transfer(lesson(fresh))
    assert asked == [tuple(RADII_M), tuple(TRANSFER_RADII_M)]
