import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from imagery2flow.flows import record as record_module
from imagery2flow.flows.decoder import TreeData, fit_trees
from imagery2flow.flows.graph import great_circle_m
from imagery2flow.flows.potentials import fit_potentials
from imagery2flow.flows.record import Embedder, FlowRecord, build_model, load_record, save_record, to_flow
from imagery2flow.flows.region import EncoderFile
from imagery2flow.flows.scaling import fit_scaling
from imagery2flow.run.errors import InputError, MissingInputError, TableError
from imagery2flow.run.files import save_tensors
from imagery2flow.run.flow_config import TreesConfig

from .conftest import GEOCODES, NUM_UNITS, make_region, training_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def region():
    return make_region()


@pytest.fixture(scope="module")
def record(region):
    """A model with random weights, potentials and five trees."""
    scaling, config = fit_scaling(region, True, 2, (1500.0,)), dataclasses.asdict(training_config())
    torch.manual_seed(0)
    model = build_model(config, scaling)
    with torch.no_grad():
        model.offset.fill_(3.0)
    potentials = fit_potentials(scaling.features(region), region.flows.select(region.flows.origin < 20), np.random.default_rng(0))
    embedder = Embedder(model, scaling, potentials, TreesConfig(), CPU)
    inputs = embedder.embed(region, potentials.crossed).inputs
    data = TreeData(inputs.columns(region.flows, scaling.relative_distance(region, region.flows)), region.flows.count)
    graph = region.graph
    return FlowRecord(
        embedder=embedder,
        trees=fit_trees(data, data, None, TreesConfig(num_trees=5, early_stopping=0), 0, 1),
        config=config,
        region="town",
        split_kind="origin",
        split=dict.fromkeys(GEOCODES[:15], "train") | dict.fromkeys(GEOCODES[15:20], "valid") | dict.fromkeys(GEOCODES[20:], "test"),
        centroid=dict(zip(GEOCODES, zip(graph.longitude.tolist(), graph.latitude.tolist(), strict=True), strict=True)),
        constant={"gt10": 14.0, "positive": 6.0},
        flow_range=(1.0, 1e9),
    )


@pytest.mark.parametrize("embeddings", [True, False])
@pytest.mark.parametrize("unit_features", [True, False])
def test_the_trees_see_the_networks_embeddings_and_its_features_if_asked_for(region, record, embeddings, unit_features):
    embedder = dataclasses.replace(record.embedder, trees=TreesConfig(embeddings=embeddings, unit_features=unit_features))
    embedded = embedder.embed(region)
    parts = [np.zeros((NUM_UNITS, 0))]
    parts += [embedded.hidden.numpy()] if embeddings else []
    own, around = (values.astype(np.float32) for values in (record.scaling.features(region), record.scaling.surroundings(region)))
    parts += [own, around] if unit_features else []
    np.testing.assert_array_equal(embedded.inputs.unit, np.concatenate(parts, axis=1))


def test_units_of_the_source_get_the_potentials_that_they_were_not_fitted_to_and_others_those_of_all(region, record):
    potentials, features = record.embedder.potentials, record.scaling.features(region).astype(np.float32).astype(np.float64)
    found = record.embed(region).inputs.potential
    known = ~np.isnan(potentials.crossed)
    assert known[:20].all()
    assert not known[20:, 0].any()  # origins of the test pairs
    np.testing.assert_array_equal(found[known], potentials.crossed[known])
    np.testing.assert_allclose(found[~known], potentials.of(features)[~known])
    elsewhere = dataclasses.replace(region, graph=dataclasses.replace(region.graph, longitude=region.graph.longitude + 5.0))
    np.testing.assert_allclose(record.embed(elsewhere).inputs.potential, potentials.of(features))
    np.testing.assert_allclose(record.embedder.embed(region).inputs.potential, potentials.of(features))
    none = dataclasses.replace(record, embedder=dataclasses.replace(record.embedder, potentials=None))
    assert none.embed(region).inputs.potential is None


def test_a_unit_is_known_by_its_id_and_place(region, record):
    graph = region.graph
    assert record.known_units(graph).all()
    moved = graph.latitude + np.where(np.arange(NUM_UNITS) < 7, 1e-4, 0.5)  # 11 m or 56 km
    assert record.known_units(dataclasses.replace(graph, latitude=moved)).tolist() == [True] * 7 + [False] * 23
    renamed = dataclasses.replace(graph, geocodes=(*GEOCODES[:-1], "9999999"))
    assert record.known_units(renamed).tolist() == [True] * 29 + [False]


@pytest.mark.parametrize("kind", ["origin", "unit", "block", "pair"])
def test_a_pair_was_learned_from_by_its_origin_or_by_either_end(region, record, kind):
    learned = dataclasses.replace(record, split_kind=kind).has_learned(region.graph, region.flows)
    for pair in range(0, len(region.flows), 7):
        origin, destination = int(region.flows.origin[pair]), int(region.flows.destination[pair])
        seen = origin < 20 or (kind != "origin" and destination < 20)
        assert learned[pair] == seen
    assert set(learned) == {True, False}
    elsewhere = dataclasses.replace(region.graph, longitude=region.graph.longitude + 5.0)
    assert not dataclasses.replace(record, split_kind=kind).has_learned(elsewhere, region.flows).any()


def test_without_a_network_the_trees_alone_predict(region, record, tmp_path):
    alone = dataclasses.replace(record, embedder=dataclasses.replace(record.embedder, model=None))
    save_record(tmp_path, alone)
    loaded = load_record(tmp_path, CPU)
    assert loaded.embedder.model is None
    found = loaded.predict(loaded.embed(region), region.flows)
    assert set(found) == {"lightgbm"}
    np.testing.assert_array_equal(found["lightgbm"], record.predict(record.embed(region), region.flows)["lightgbm"])


def test_predictions_of_both_decoders_by_pair(region, record):
    embedded = record.embed(region)
    low, high = np.quantile(record.predict(embedded, region.flows)["bilinear"], [0.3, 0.7])
    record = dataclasses.replace(record, flow_range=(low, high))
    found = record.predict(embedded, region.flows)
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
            log_flow = record.embedder.model.decode(embedded.hidden, torch.tensor([i]), torch.tensor([j]), distance).item()
        limited.append("low" if 2**log_flow < low else "high" if 2**log_flow > high else "neither")
        assert found["bilinear"][pair] == pytest.approx(min(max(2**log_flow, low), high), rel=1e-5)
    assert set(limited) == {"low", "high", "neither"}
    distance = record.scaling.relative_distance(region, region.flows)
    np.testing.assert_array_equal(found["lightgbm"], record.trees.predict(embedded.inputs, region.flows, distance))


def test_blocks_of_pairs_predict_as_one(region, record, monkeypatch):
    embedded = record.embed(region)
    whole = record.predict(embedded, region.flows)
    monkeypatch.setattr(record_module, "PAIRS_PER_BLOCK", 17)
    for name, values in record.predict(embedded, region.flows).items():
        np.testing.assert_allclose(values, whole[name], rtol=1e-6)
    empty = record.predict(embedded, region.flows.select(np.zeros(0, int)))
    assert [len(values) for values in empty.values()] == [0, 0]


def test_a_saved_model_comes_back_whole(region, record, tmp_path):
    save_record(tmp_path / "model", record)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"od_model.pt", "lightgbm.txt"}
    assert torch.load(tmp_path / "model" / "od_model.pt", weights_only=True)["format"] == "imagery2flow-od-4"
    loaded = load_record(tmp_path / "model", CPU)
    for name in ("config", "region", "split_kind", "split", "centroid", "constant", "flow_range"):
        assert getattr(loaded, name) == getattr(record, name)
    for item in dataclasses.fields(record.scaling):
        np.testing.assert_array_equal(getattr(loaded.scaling, item.name), getattr(record.scaling, item.name))
    np.testing.assert_array_equal(loaded.embedder.potentials.crossed, record.embedder.potentials.crossed)
    np.testing.assert_array_equal(loaded.trees.columns, record.trees.columns)
    before, after = (model.predict(model.embed(region), region.flows) for model in (record, loaded))
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
    assert torch.equal(record.embed(turned).hidden, record.embed(region).hidden)


def test_files_of_another_kind_are_refused(record, tmp_path):
    with pytest.raises(MissingInputError, match=r"OD model .*od_model.pt does not exist"):
        load_record(tmp_path / "gone", CPU)
    save_tensors(tmp_path / "od_model.pt", {"format": "imagery2flow-encoder-1"})
    with pytest.raises(InputError, match="its format is imagery2flow-encoder-1, not imagery2flow-od-4"):
        load_record(tmp_path, CPU)
    Path(tmp_path / "od_model.pt").write_text("no model")
    with pytest.raises(InputError, match="cannot be read as a file of weights"):
        load_record(tmp_path, CPU)
    save_record(tmp_path, record)
    (tmp_path / "lightgbm.txt").unlink()
    with pytest.raises(MissingInputError, match=r"lightgbm.txt does not exist"):
        load_record(tmp_path, CPU)


def test_commuters_are_computed_in_double_precision_on_the_cpu():
    on_a_device_without_doubles = SimpleNamespace(cpu=lambda: torch.tensor([3.0, -1.0]))
    found = to_flow(on_a_device_without_doubles)
    assert (found.dtype, found.tolist()) == (np.float64, [8.0, 0.5])


@pytest.mark.parametrize("encoder", [None, EncoderFile("ckpt/M1_img_10.pth", "0f" * 32)])
def test_a_stored_model_knows_its_encoder(tmp_path, record, encoder):
    save_record(tmp_path, dataclasses.replace(record, encoder=encoder))
    assert load_record(tmp_path, CPU).encoder == encoder
