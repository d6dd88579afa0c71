import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from imagery2flow.flows import record as record_module
from imagery2flow.flows.record import Embedder, FlowRecord, build_model, load_record, save_record, to_flow
from imagery2flow.flows.region import EncoderFile
from imagery2flow.flows.scaling import fit_scaling
from imagery2flow.flows.tree_decoder import Lesson, fit_home, fit_transfer
from imagery2flow.run.earth import great_circle_m
from imagery2flow.run.errors import InputError, MissingInputError, TableError
from imagery2flow.run.files import save_tensors
from imagery2flow.run.flow_config import TreesConfig

from .conftest import GEOCODES, NUM_UNITS, make_region, training_config

CPU = torch.device("cpu")
TREES_FILES = {"lightgbm.txt", "lightgbm_law.txt", "lightgbm_transfer.txt", "lightgbm_transfer_law.txt"}


@pytest.fixture(scope="module")
def region():
    return make_region()


@pytest.fixture(scope="module")
def record(region):
    """A network with random weights, and a few trees."""
    trees = TreesConfig(num_trees=5, early_stopping=0, transfer_trees=6)
    settings = training_config(trees=trees, universe="positive", transfer_context_m=[800.0])
    scaling, config = fit_scaling(region, True, 2), dataclasses.asdict(settings)
    torch.manual_seed(0)
    model = build_model(config, scaling)
    with torch.no_grad():
        model.offset.fill_(3.0)
    embedder = Embedder(model, scaling, CPU)
    origin, graph = region.flows.origin, region.graph
    lesson = Lesson(settings, embedder.see(region), region.flows.select(origin < 15), region.flows.select((origin >= 15) & (origin < 20)))
    return FlowRecord(
        embedder=embedder,
        home=fit_home(lesson),
        transfer=fit_transfer(lesson),
        config=config,
        region="town",
        split_kind="origin",
        split=dict.fromkeys(GEOCODES[:15], "train") | dict.fromkeys(GEOCODES[15:20], "valid") | dict.fromkeys(GEOCODES[20:], "test"),
        centroid=dict(zip(GEOCODES, zip(graph.longitude.tolist(), graph.latitude.tolist(), strict=True), strict=True)),
        constant={"gt10": 14.0, "positive": 6.0},
        flow_range=(1.0, 1e9),
    )


def elsewhere(region, degrees=5.0):
    """The same units in another place."""
    return dataclasses.replace(region, graph=dataclasses.replace(region.graph, longitude=region.graph.longitude + degrees))


def test_units_of_the_source_get_the_potentials_that_they_were_not_fitted_to_and_others_those_of_all(region, record):
    embedded = record.embed(region)
    potentials, found = record.home.potentials, embedded.inputs.potential
    features = record.home.unit_inputs.potential_features(embedded.seen)
    known = ~np.isnan(potentials.crossed)
    assert known[:15].all()
    assert not known[15:, 0].any()  # origins of the other pairs
    np.testing.assert_array_equal(found[known], potentials.crossed[known])
    np.testing.assert_allclose(found[~known], potentials.of(features)[~known])
    own = record.scaling.quantities(region)
    np.testing.assert_allclose(record.embed(elsewhere(region)).inputs.potential, record.transfer.potentials.of(own))
    none = dataclasses.replace(record, home=dataclasses.replace(record.home, potentials=None))
    assert none.embed(region).inputs.potential is None


def test_the_trees_of_the_source_are_for_its_units_and_the_others_for_any_other_region(region, record):
    assert record.embed(region).trees is record.home
    assert record.embed(elsewhere(region)).trees is record.transfer
    one_new = dataclasses.replace(region, flows=None, graph=dataclasses.replace(region.graph, geocodes=(*GEOCODES[:-1], "9999999")))
    assert record.embed(one_new).trees is record.transfer
    assert dataclasses.replace(record, transfer=None).embed(elsewhere(region)).trees is record.home
    for place in (region, elsewhere(region)):
        embedded = record.embed(place)
        found = record.predict(embedded, region.flows)["lightgbm"]
        distance = record.scaling.relative_distance(place, region.flows)
        np.testing.assert_array_equal(found, embedded.trees.predict(embedded.inputs, region.flows, distance))


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
            log_flow = record.embedder.model.decode(embedded.seen.hidden, torch.tensor([i]), torch.tensor([j]), distance).item()
        limited.append("low" if 2**log_flow < low else "high" if 2**log_flow > high else "neither")
        assert found["bilinear"][pair] == pytest.approx(min(max(2**log_flow, low), high), rel=1e-5)
    assert set(limited) == {"low", "high", "neither"}
    distance = record.scaling.relative_distance(region, region.flows)
    np.testing.assert_array_equal(found["lightgbm"], record.home.predict(embedded.inputs, region.flows, distance))


def test_a_decoder_that_is_not_asked_for_does_not_predict(region, record):
    embedded = record.embed(region)
    both = record.predict(embedded, region.flows)
    for name in ("bilinear", "lightgbm"):
        one = record.predict(embedded, region.flows, [name])
        assert set(one) == {name}
        np.testing.assert_array_equal(one[name], both[name])


@pytest.mark.parametrize("block", [7, 70, 10_000])
def test_the_rows_of_a_whole_matrix_are_the_pairs_one_by_one(region, record, monkeypatch, block):
    embedded = record.embed(region)
    origin, destination = np.repeat([4, 2, 9], NUM_UNITS), np.tile(np.arange(NUM_UNITS), 3)
    pairs = dataclasses.replace(region.flows, origin=origin, destination=destination, count=np.zeros(len(origin)))
    turned = np.random.default_rng(0).permutation(len(pairs))
    expected = record.predict(embedded, pairs.select(turned), ["bilinear"])["bilinear"]
    monkeypatch.setattr(record_module, "PAIRS_PER_BLOCK", block)
    np.testing.assert_allclose(record.predict(embedded, pairs, ["bilinear"])["bilinear"][turned], expected, rtol=1e-5)


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
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"od_model.pt", *TREES_FILES}
    assert torch.load(tmp_path / "model" / "od_model.pt", weights_only=True)["format"] == "imagery2flow-od-5"
    loaded = load_record(tmp_path / "model", CPU)
    for name in ("config", "region", "split_kind", "split", "centroid", "constant", "flow_range"):
        assert getattr(loaded, name) == getattr(record, name)
    for item in dataclasses.fields(record.scaling):
        np.testing.assert_array_equal(getattr(loaded.scaling, item.name), getattr(record.scaling, item.name))
    for place in (region, elsewhere(region)):
        before, after = (model.predict(model.embed(place), region.flows) for model in (record, loaded))
        for name in before:
            np.testing.assert_array_equal(after[name], before[name])


def test_trees_of_an_earlier_model_do_not_stay_in_its_folder(record, tmp_path):
    save_record(tmp_path, record)
    save_record(
        tmp_path,
        dataclasses.replace(record, transfer=None, home=dataclasses.replace(record.home, members=record.home.members[:1], weights=(1.0,))),
    )
    assert {path.name for path in tmp_path.iterdir()} == {"od_model.pt", "lightgbm.txt"}
    assert load_record(tmp_path, CPU).transfer is None


def test_other_columns_are_refused_by_name(region, record):
    other = dataclasses.replace(region, columns=("0", "1", "POI"))
    with pytest.raises(TableError, match=r"features of town have 3 columns but the model was trained on 3 \(missing: 2; unknown: POI\)"):
        record.embed(other)
    fewer = dataclasses.replace(region, columns=("0", "1"), embeddings=region.embeddings[:, :2])
    with pytest.raises(TableError, match=r"have 2 columns but the model was trained on 3 \(missing: 2; unknown: none\)"):
        record.embed(fewer)


def test_columns_in_another_order_are_joined_by_name(region, record):
    turned = dataclasses.replace(region, columns=("2", "0", "1"), embeddings=region.embeddings[:, [2, 0, 1]])
    assert torch.equal(record.embed(turned).seen.hidden, record.embed(region).seen.hidden)


def test_files_of_another_kind_are_refused(record, tmp_path):
    with pytest.raises(MissingInputError, match=r"OD model .*od_model.pt does not exist"):
        load_record(tmp_path / "gone", CPU)
    save_tensors(tmp_path / "od_model.pt", {"format": "imagery2flow-encoder-1"})
    with pytest.raises(InputError, match="its format is imagery2flow-encoder-1, not imagery2flow-od-5"):
        load_record(tmp_path, CPU)
    Path(tmp_path / "od_model.pt").write_text("no model")
    with pytest.raises(InputError, match="cannot be read as a file of weights"):
        load_record(tmp_path, CPU)
    save_record(tmp_path, record)
    for name in TREES_FILES:
        save_record(tmp_path, record)
        (tmp_path / name).unlink()
        with pytest.raises(MissingInputError, match=rf"{name} does not exist"):
            load_record(tmp_path, CPU)
        (tmp_path / name).write_text("tree\nend of trees\n")
        with pytest.raises(InputError, match=rf"{name} is damaged or of another model"):
            load_record(tmp_path, CPU)


def test_commuters_are_computed_in_double_precision_on_the_cpu():
    on_a_device_without_doubles = SimpleNamespace(cpu=lambda: torch.tensor([3.0, -1.0]))
    found = to_flow(on_a_device_without_doubles)
    assert (found.dtype, found.tolist()) == (np.float64, [8.0, 0.5])


@pytest.mark.parametrize("encoder", [None, EncoderFile("ckpt/M1_img_10.pth", "0f" * 32)])
def test_a_stored_model_knows_its_encoder(tmp_path, record, encoder):
    save_record(tmp_path, dataclasses.replace(record, encoder=encoder))
    assert load_record(tmp_path, CPU).encoder == encoder


def test_a_device_without_room_predicts_in_smaller_blocks(region, record, monkeypatch, capsys):
    embedded, pairs = record.embed(region), region.flows
    expected = record.predict(embedded, pairs, ["bilinear"])["bilinear"]
    inner, asked = FlowRecord.predict_in_blocks, []

    def small(found, hidden, pairs, distance, size):
        asked.append(size)
        if size > 100:
            raise torch.cuda.OutOfMemoryError("no room")
        return inner(found, hidden, pairs, distance, size)

    monkeypatch.setattr(FlowRecord, "predict_in_blocks", small)
    monkeypatch.setattr(record_module, "PAIRS_PER_BLOCK", 400)
    np.testing.assert_allclose(record.predict(embedded, pairs, ["bilinear"])["bilinear"], expected, rtol=1e-6)
    assert asked == [400, 200, 100]
    assert "the memory of cpu is full: going on with 100 pairs at once" in capsys.readouterr().err


def test_a_flow_that_is_no_number_is_refused_with_its_pair(region, record, monkeypatch):
    values = np.ones(len(region.flows))
    values[3] = np.inf
    monkeypatch.setattr(FlowRecord, "predict_bilinear", lambda *_: values)
    origin, destination = (GEOCODES[side[3]] for side in (region.flows.origin, region.flows.destination))
    with pytest.raises(InputError, match=rf"decoder bilinear predicts no number for 1 pairs \({origin} to {destination}\)"):
        record.predict(record.embed(region), region.flows)
