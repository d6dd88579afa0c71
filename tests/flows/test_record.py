import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from imagery2flow.flows import record as record_module
from imagery2flow.flows.decoder import pair_features, predict_trees, train_trees
from imagery2flow.flows.graph import great_circle_m
from imagery2flow.flows.record import FlowRecord, build_model, fit_scaling, load_record, raw_features, save_record
from imagery2flow.flows.region import Region
from imagery2flow.run.config import TreesConfig
from imagery2flow.run.errors import InputError, MissingInputError, TableError
from imagery2flow.run.files import save_tensors

from .conftest import GEOCODES, NUM_UNITS, make_line_graph, make_region, training_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def region():
    return make_region()


@pytest.fixture(scope="module")
def record(region):
    """A model with random weights and five trees."""
    scaling, config = fit_scaling(region, True), dataclasses.asdict(training_config())
    torch.manual_seed(0)
    model = build_model(config, scaling)
    with torch.no_grad():
        model.offset.fill_(3.0)
        hidden = model.embed(scaling.graph_tensors(region, CPU)).numpy()
    data = (pair_features(hidden, region.flows, scaling.relative_distance(region, region.flows)), region.flows.count)
    trees = train_trees(data, data, TreesConfig(num_trees=5, early_stopping=0), 0, 1)
    split = dict.fromkeys(GEOCODES[:20], "train") | dict.fromkeys(GEOCODES[20:], "test")
    return FlowRecord(model, trees, scaling, config, "town", split, {"gt10": 14.0, "positive": 6.0}, 30.0)


def line_region(longitude, latitude):
    graph = make_line_graph(longitude, latitude)
    return Region("line", graph, ("0",), np.zeros((len(longitude), 1), dtype=np.float32), None)


def test_features_are_scaled_by_mean_and_deviation_and_end_with_the_logarithm_of_the_area(region):
    scaling = fit_scaling(region, True)
    tensors = scaling.graph_tensors(region, CPU)
    assert tensors.features.shape == (NUM_UNITS, 4)
    for column in range(3):
        values = [float(value) for value in region.embeddings[:, column]]
        mean = sum(values) / NUM_UNITS
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / NUM_UNITS)
        expected = [(value - mean) / deviation for value in values]
        assert tensors.features[:, column].tolist() == pytest.approx(expected, abs=1e-5)
    assert raw_features(region, True)[:, 3].tolist() == pytest.approx([0] * NUM_UNITS, abs=2e-3)  # log of 1 km2, but for the projection
    assert fit_scaling(region, False).graph_tensors(region, CPU).features.shape == (NUM_UNITS, 3)


def test_a_constant_feature_becomes_0(region):
    constant = dataclasses.replace(region, embeddings=np.full((NUM_UNITS, 3), 7.5, dtype=np.float32))
    features = fit_scaling(constant, False).graph_tensors(constant, CPU).features
    assert torch.equal(features, torch.zeros(NUM_UNITS, 3))


def test_edges_are_relative_to_the_longest_and_another_region_keeps_the_sources_scale(region):
    scaling = fit_scaling(region, True)
    weights = scaling.graph_tensors(region, CPU).edge_weight[:, 0]
    assert weights.max().item() == pytest.approx(1)
    assert weights.min().item() == pytest.approx(math.sqrt(0.5), rel=4e-3)  # side against diagonal
    other = make_region(seed=1)
    tensors = scaling.graph_tensors(other, CPU)
    expected = (other.embeddings - scaling.mean[:3]) / scaling.std[:3]
    np.testing.assert_allclose(tensors.features[:, :3].numpy(), expected, rtol=1e-5, atol=1e-6)
    twice_as_wide = dataclasses.replace(other.graph, longitude=2 * other.graph.longitude)
    weights = scaling.graph_tensors(dataclasses.replace(other, graph=twice_as_wide), CPU).edge_weight
    assert weights.max().item() == pytest.approx(math.sqrt(5 / 2), rel=4e-3)  # diagonals of 1 by 2 km against those of 1 by 1


def relative_distances(region):
    """All pairs, by the region's own scaling."""
    scaling = fit_scaling(region, False)
    origin, destination = (axis.reshape(-1) for axis in np.meshgrid(*[range(len(region.graph.geocodes))] * 2, indexing="ij"))
    return region.graph.distance_m(origin, destination) / scaling.distance_m


@pytest.mark.parametrize("seed", range(12))
def test_relative_distances_of_the_source_region_reach_1_and_no_further(seed):
    longitude, latitude = np.random.default_rng(seed).normal(size=(2, 25)) * [[0.4], [0.3]] + [[-74], [41]]
    assert relative_distances(line_region(longitude, latitude)).max() == pytest.approx(1, abs=1e-12)


def test_relative_distances_reach_1_whatever_the_direction_of_the_longest():
    # Two far ends of a thin line at 11.25 degrees, between two of eight directions, and units that stick out beyond them in those directions.
    angle = np.radians([11.25, 191.25, 0, 22.5, 180, 202.5])
    radius = 0.1 * np.array([1, 1, 0.985, 0.985, 0.985, 0.985])
    region = line_region(radius * np.cos(angle), radius * np.sin(angle))
    assert relative_distances(region).max() == pytest.approx(1, abs=1e-6)


def test_relative_distances_follow_a_table_of_distances():
    region = line_region([0.0, 0.1, 0.2, 0.15], [0.0, 0.0, 0.0, 0.01])
    table = np.full((4, 4), np.nan)
    table[1, 3] = 900_000.0  # by road far longer than from end to end
    region = dataclasses.replace(region, graph=dataclasses.replace(region.graph, table_m=table))
    assert relative_distances(region).max() == pytest.approx(1)


def test_predictions_of_both_decoders_by_pair(region, record):
    hidden = record.embed(region)
    limit = float(np.median(np.log2(record.predict(region, region.flows, hidden)["bilinear"])))
    record = dataclasses.replace(record, log2_limit=limit)
    found = record.predict(region, region.flows, hidden)
    farthest_m = max(
        great_circle_m(region.graph.longitude[i], region.graph.latitude[i], region.graph.longitude[j], region.graph.latitude[j])
        for i in range(NUM_UNITS)
        for j in range(NUM_UNITS)
    )
    limited = []
    for pair in range(0, len(region.flows), 40):
        i, j = int(region.flows.origin[pair]), int(region.flows.destination[pair])
        distance = torch.tensor([region.graph.distance_m(np.array([i]), np.array([j]))[0] / farthest_m], dtype=torch.float32)
        with torch.inference_mode():
            log_flow = record.model.decode(hidden, torch.tensor([i]), torch.tensor([j]), distance).item()
        limited.append(log_flow > limit)
        assert found["bilinear"][pair] == pytest.approx(2 ** min(log_flow, limit), rel=1e-5)
    assert 0 < sum(limited) < len(limited)
    distance = record.scaling.relative_distance(region, region.flows)
    np.testing.assert_array_equal(found["lightgbm"], predict_trees(record.trees, hidden.numpy(), region.flows, distance))


def test_blocks_of_pairs_predict_as_one(region, record, monkeypatch):
    hidden = record.embed(region)
    whole = record.predict(region, region.flows, hidden)
    monkeypatch.setattr(record_module, "PAIRS_PER_BLOCK", 17)
    for name, values in record.predict(region, region.flows, hidden).items():
        np.testing.assert_allclose(values, whole[name], rtol=1e-6)
    empty = record.predict(region, region.flows.select(np.zeros(0, int)), hidden)
    assert [len(values) for values in empty.values()] == [0, 0]


def test_a_saved_model_comes_back_whole(region, record, tmp_path):
    save_record(tmp_path / "model", record)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"od_model.pt", "lightgbm.txt"}
    assert torch.load(tmp_path / "model" / "od_model.pt", weights_only=True)["format"] == "imagery2flow-od-1"
    loaded = load_record(tmp_path / "model", CPU)
    for name in ("config", "region", "split", "constant", "log2_limit"):
        assert getattr(loaded, name) == getattr(record, name)
    for item in dataclasses.fields(record.scaling):
        np.testing.assert_array_equal(getattr(loaded.scaling, item.name), getattr(record.scaling, item.name))
    before, after = (model.predict(region, region.flows, model.embed(region)) for model in (record, loaded))
    for name in before:
        np.testing.assert_array_equal(after[name], before[name])


def test_other_columns_are_refused_by_name(region, record):
    other = dataclasses.replace(region, columns=("0", "1", "POI"))
    with pytest.raises(TableError, match=r"features of town have 3 columns but the model was trained on 3 \(missing: 2; unknown: POI\)"):
        record.embed(other)
    fewer = dataclasses.replace(region, columns=("0", "1"), embeddings=region.embeddings[:, :2])
    with pytest.raises(TableError, match=r"have 2 columns but the model was trained on 3 \(missing: 2; unknown: none\)"):
        record.embed(fewer)


def test_columns_in_another_order_are_joined_by_name(region, record):
    turned = dataclasses.replace(region, columns=("2", "0", "1"), embeddings=region.embeddings[:, [2, 0, 1]])
    assert torch.equal(record.embed(turned), record.embed(region))


def test_files_of_another_kind_are_refused(record, tmp_path):
    with pytest.raises(MissingInputError, match=r"OD model .*od_model.pt does not exist"):
        load_record(tmp_path / "gone", CPU)
    save_tensors(tmp_path / "od_model.pt", {"format": "imagery2flow-encoder-1"})
    with pytest.raises(InputError, match="its format is imagery2flow-encoder-1, not imagery2flow-od-1"):
        load_record(tmp_path, CPU)
    Path(tmp_path / "od_model.pt").write_text("no model")
    with pytest.raises(InputError, match="cannot be read as a file of weights"):
        load_record(tmp_path, CPU)
    save_record(tmp_path, record)
    (tmp_path / "lightgbm.txt").unlink()
    with pytest.raises(MissingInputError, match=r"lightgbm.txt does not exist"):
        load_record(tmp_path, CPU)
