import dataclasses

import numpy as np
import pytest

from imagery2flow.flows.controls import BANDS, CONTROLS, DISTANCE, MODEL, SHUFFLED, UNTRAINED, as_seen, variants
from imagery2flow.flows.graph import RegionGraph
from imagery2flow.flows.learning import learn
from imagery2flow.flows.region import Region, is_image_column
from imagery2flow.flows.splits import draw_split
from imagery2flow.flows.table import FlowTable
from imagery2flow.run.device import CPU
from imagery2flow.run.flow_config import FlowTrainingConfig, TreesConfig
from imagery2flow.run.stage import Ledger

COLUMNS = ("1", "red_mean", "rent", "0", "red_std", "extra_0")
IMAGE, NAMED, NUMBERED, STATISTICS = [0, 1, 3, 4], [2, 5], [0, 3], [1, 4]
NUM_UNITS = 30


def town(seed=0, columns=COLUMNS, part=None):
    """Units on a line, two regions in turn by default, whose distances are whole kilometres; flows of a gravity law of the first column."""
    random = np.random.default_rng(seed)
    place = np.arange(NUM_UNITS)
    part = place % 2 if part is None else part
    table_m = 1_000.0 * abs(place[:, None] - place)
    ids = tuple(f"{number:03d}" for number in place)
    edge = np.concatenate([np.stack([place[:-2], place[2:]]), np.stack([place[2:], place[:-2]])], axis=1)
    graph = RegionGraph(ids, place * 0.01, np.zeros(NUM_UNITS), random.uniform(0.5, 2, NUM_UNITS), edge, table_m)
    features = random.normal(size=(NUM_UNITS, len(columns))).astype(np.float32)
    mass = np.exp(0.5 * features[:, 0])
    count = random.poisson(20 * mass[:, None] * mass * np.exp(-table_m / 6_000)) * (part[:, None] == part)
    origin, destination = np.nonzero(count)
    flows = FlowTable(ids, origin, destination, count[origin, destination].astype(float))
    names = tuple(f"town{number}" for number in range(part.max() + 1))
    numbered = sum(name.isdigit() for name in columns)
    return Region(names, graph, part, tuple(columns), features, flows, random.normal(size=(NUM_UNITS, numbered)).astype(np.float32))


def settings(**changes):
    trees = TreesConfig(num_trees=10, min_leaf_pairs=5, early_stopping=0, transfer_trees=5)
    small = {"max_epochs": 2, "embedding_size": 8, "num_hidden_layers": 0, "universe": "positive", "trees": trees}
    return FlowTrainingConfig(**{"region": ["town"], "node_feats_path": ["x"], **small, **changes})


def test_image_columns_are_the_encoders_and_the_bands():
    names = ["0", "511", "red_mean", "nir_std", "rent", "extra_0", "extra_rent_mean", "area", "mean"]
    assert [name for name in names if is_image_column(name)] == names[:4]


def test_shuffled_units_get_the_whole_image_of_another_unit_of_their_region_and_keep_the_rest():
    region = town()
    seen = as_seen(SHUFFLED, region, seed=1)
    np.testing.assert_array_equal(seen.embeddings[:, NAMED], region.embeddings[:, NAMED])
    for units in region.parts():
        owner = [np.flatnonzero((region.embeddings[:, IMAGE] == row).all(axis=1)) for row in seen.embeddings[units][:, IMAGE]]
        assert sorted(np.concatenate(owner)) == units.tolist()  # every image once, none of another region
        assert (np.concatenate(owner) != units).mean() > 0.5
    assert seen.columns == region.columns
    assert seen.flows is region.flows
    assert seen.graph is region.graph
    np.testing.assert_array_equal(region.embeddings, town().embeddings)  # the original is as it was


def test_shuffling_depends_on_the_seed_alone():
    region = town()
    first, again, other = (as_seen(SHUFFLED, region, seed).embeddings for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_an_untrained_encoder_replaces_the_numbered_columns_only():
    region = town()
    seen = as_seen(UNTRAINED, region, 0)
    np.testing.assert_array_equal(seen.embeddings[:, NUMBERED], region.untrained)
    others = STATISTICS + NAMED
    np.testing.assert_array_equal(seen.embeddings[:, others], region.embeddings[:, others])


def test_bands_alone_and_distance_alone_keep_their_columns():
    region = town()
    bands, distance = as_seen(BANDS, region, 0), as_seen(DISTANCE, region, 0)
    assert bands.columns == ("red_mean", "red_std")
    np.testing.assert_array_equal(bands.embeddings, region.embeddings[:, STATISTICS])
    assert distance.columns == ()
    assert distance.embeddings.shape == (NUM_UNITS, 0)
    assert as_seen(MODEL, region, 0) is region


def test_every_control_is_there_without_being_asked_for():
    found = variants(settings(), town(), Ledger("test", quiet=True))
    assert [variant.name for variant in found] == [MODEL, *CONTROLS]
    assert [variant.network for variant in found] == [True, False, False, True, True]
    rows = [variant.row("lightgbm") for variant in found]
    assert rows == ["lightgbm", DISTANCE, BANDS, f"lightgbm, {SHUFFLED}", f"lightgbm, {UNTRAINED}"]
    assert [variant.name for variant in variants(settings(controls=False), town(), Ledger("test", quiet=True))] == [MODEL]


def test_a_control_that_cannot_be_had_is_named_with_the_reason():
    ledger = Ledger("test", quiet=True)
    region = dataclasses.replace(town(columns=("rent", "jobs")), untrained=None)
    assert [variant.name for variant in variants(settings(), region, ledger)] == [MODEL, DISTANCE]
    assert [note.split(":")[0] for note in ledger.notes] == [f"no control with {name}" for name in (BANDS, SHUFFLED, UNTRAINED)]


@pytest.fixture(scope="module")
def fitted():
    """Predictions of every pair by each control, and the region as it sees it."""
    region = town(part=np.zeros(NUM_UNITS, np.int64))
    split, quiet = draw_split("origin", region, None, 0), Ledger("test", quiet=True)
    place = np.arange(NUM_UNITS)
    pairs = FlowTable(region.graph.geocodes, np.repeat(place, NUM_UNITS), np.tile(place, NUM_UNITS), np.zeros(NUM_UNITS**2))
    found = {}
    for variant in variants(settings(), region, quiet):
        record = learn(variant.config, variant.region, split, quiet, CPU, variant.network).record
        found[variant.name] = record.predict(record.embed(variant.region), pairs)
    return pairs, found


def test_predictions_of_distance_alone_depend_on_distance_alone(fitted):
    pairs, found = fitted
    assert set(found[DISTANCE]) == {"lightgbm"}
    distance = abs(pairs.origin - pairs.destination)
    values = found[DISTANCE]["lightgbm"]
    assert all(np.ptp(values[distance == steps]) == 0 for steps in range(NUM_UNITS))
    assert values[distance == 0].max() > values[distance == 20].max()  # it learned that flows fall off
    for name in (MODEL, BANDS):
        assert np.ptp(found[name]["lightgbm"][distance == 3]) > 0


def test_every_control_says_something_else(fitted):
    _, found = fitted
    values = [found[name]["lightgbm"] for name in (MODEL, *CONTROLS)]
    assert all(not np.allclose(left, right) for n, left in enumerate(values) for right in values[:n])
    assert {name: set(found[name]) for name in CONTROLS} == {
        DISTANCE: {"lightgbm"},
        BANDS: {"lightgbm"},
        SHUFFLED: {"bilinear", "lightgbm"},
        UNTRAINED: {"bilinear", "lightgbm"},
    }
