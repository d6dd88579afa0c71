"""Published weights as a flow model: the same numbers as the published formulas, and nothing of a pickle is run."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import lightgbm
import numpy as np
import pandas as pd
import pytest
import torch

from imagery2flow.__main__ import main
from imagery2flow.flows.attention import GraphTensors, attend
from imagery2flow.flows.decoder import load_trees
from imagery2flow.flows.model import FlowModel
from imagery2flow.flows.prediction import test_flows as predict_flows
from imagery2flow.flows.published import TREES_FILE, read_network, read_trees_text, to_own_names
from imagery2flow.flows.record import load_record
from imagery2flow.flows.region import load_region
from imagery2flow.run.errors import InputError
from imagery2flow.run.stage import Ledger
from tests.flows.conftest import GEOCODES, MODEL, NUM_FEATURES, files_of, prediction_config, read

WIDTH, NUM_LAYERS = 4, 3
NUM_COLUMNS = 2 * WIDTH + 1
SLOPE = 0.01


def quiet():
    return Ledger("test", quiet=True)


def draw_weights(in_dim=NUM_FEATURES, seed=0):
    """Weights by their published names."""
    random = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(NUM_LAYERS):
        width = in_dim if layer == 0 else WIDTH
        shapes = {"fcV": (1, 1), "fcW": (WIDTH, width), "fcU": (WIDTH, width), "attn_fc": (1, 2 * WIDTH + 1)}
        weights |= {f"gat.layers.{layer}.{part}.weight": torch.randn(shape, generator=random) for part, shape in shapes.items()}
    weights["bilinear.weight"] = 0.3 * torch.randn((1, WIDTH, WIDTH), generator=random) + 0.1
    weights["bilinear.bias"] = torch.tensor([0.7])
    return weights | {"criterion.noise_sigma": torch.tensor(0.2)}


def published_layer(hidden, edge, weight, parts):
    """The published formula, unit by unit."""
    slope, projection, residual, attention = (np.asarray(parts[name]) for name in ("fcV", "fcW", "fcU", "attn_fc"))
    output = []
    for unit in range(len(hidden)):
        scores, messages = [], []
        for number in np.flatnonzero(edge[1] == unit):
            neighbour = projection @ hidden[edge[0, number]]
            score = attention[0] @ np.concatenate([neighbour, projection @ hidden[unit], slope[0] * weight[number]])
            scores.append(np.exp(score if score > 0 else SLOPE * score))
            messages.append(neighbour)
        gathered = sum(score * message for score, message in zip(scores, messages, strict=True)) / sum(scores)
        output.append(np.maximum(gathered + residual @ hidden[unit], 0.0))
    return np.array(output)


def published_embedding(features, edge, weight, weights):
    hidden = features
    for layer in range(NUM_LAYERS):
        parts = {part: weights[f"gat.layers.{layer}.{part}.weight"] for part in ("fcV", "fcW", "fcU", "attn_fc")}
        hidden = published_layer(hidden, edge, weight, parts)
    return hidden


@pytest.fixture
def files(town, monkeypatch):
    """A town, network.pth as the published code saves it, and trees.txt, a pickle of a regressor, both with random content."""
    monkeypatch.chdir(town)
    torch.save({"state_dict": draw_weights(), "epoch": 3, "rmse": np.float64(16.5), "mae": np.float32(9.0)}, "network.pth")
    random = np.random.default_rng(0)
    columns = random.random((400, NUM_COLUMNS))
    trees = lightgbm.LGBMRegressor(n_estimators=6, max_depth=2, verbose=-1).fit(columns, 20 * columns[:, -1] + columns[:, 0])
    Path("trees.txt").write_bytes(pickle.dumps(trees))
    return trees


NETWORK = ["--network_path", "network.pth", "--region", "town", "--node_feats_path", "town.csv", "--device", "cpu"]
TREES = ["--lightgbm_path", "trees.txt"]


def refused(capsys, *flags):
    assert main(["import_published", *flags]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_layers_equal_the_published_formula(files):
    weights = {name: value.double() for name, value in read_network("network.pth", quiet()).items()}
    random = np.random.default_rng(1)
    edge = np.array([[0, 1, 2, 3, 1, 0, 4], [1, 0, 1, 1, 2, 3, 4]])  # not symmetric: neighbour and unit are told apart
    features, weight = random.normal(size=(5, NUM_FEATURES)), random.random(edge.shape[1])
    model = FlowModel(NUM_FEATURES, WIDTH, NUM_LAYERS - 1, 0.0, unit_terms=False, pair_distance=False).double()
    model.load_state_dict(to_own_names(weights))
    graph = GraphTensors(torch.tensor(features), torch.tensor(edge), torch.tensor(weight[:, None]))
    parts = {part: weights[f"gat.layers.0.{part}.weight"] for part in ("fcV", "fcW", "fcU", "attn_fc")}
    alone = torch.relu(attend(model.layers[0], graph.features, graph)).detach().numpy()
    np.testing.assert_allclose(alone, published_layer(features, edge, weight, parts), rtol=1e-6)
    general = torch.relu(model.layers[0](graph.features, graph.edge, graph.edge_weight)).detach().numpy()  # as on a GPU
    np.testing.assert_allclose(general, alone, rtol=1e-6)
    np.testing.assert_allclose(model.embed(graph).detach().numpy(), published_embedding(features, edge, weight, weights), rtol=1e-6)


def test_the_imported_model_predicts_by_the_published_formulas(files):
    assert main(["import_published", *NETWORK, *TREES]) == 0
    predict_flows(prediction_config("town"), quiet())
    region = load_region(prediction_config("town"), quiet(), flows_required=True)
    weights = {name: value.double().numpy() for name, value in draw_weights().items()}
    features = (region.embeddings - region.embeddings.mean(axis=0)) / region.embeddings.std(axis=0)
    length = region.graph.edge_distance_m()
    hidden = published_embedding(features.astype(np.float64), region.graph.edge, length / length.max(), weights)
    index = pd.Index(GEOCODES)
    for decoder in ("bilinear", "lightgbm"):
        table = read(MODEL / "town_2020" / f"predictions_{decoder}.csv")
        origin, destination = index.get_indexer(table.h_geocode), index.get_indexer(table.w_geocode)
        if decoder == "bilinear":
            log_flow = (
                np.einsum("pi,ij,pj->p", hidden[origin], weights["bilinear.weight"][0], hidden[destination]) + weights["bilinear.bias"]
            )
            expected = 2 ** np.maximum(np.maximum(log_flow, 0.0), 1.0)
            assert (expected == 2).any() and (expected > 2).any()
        else:
            relative = region.graph.distance_m(origin, destination) / load_record(MODEL, torch.device("cpu")).scaling.distance_m
            expected = np.maximum(files.predict(np.column_stack([hidden[origin], hidden[destination], relative])), 0.0)
        np.testing.assert_allclose(table.prediction, expected, rtol=1e-3)


def test_a_network_without_trees_decodes_alone(files):
    assert main(["import_published", *NETWORK]) == 0
    predict_flows(prediction_config("town"), quiet())
    assert (MODEL / "town_2020" / "predictions_bilinear.csv").exists()
    assert not (MODEL / "town_2020" / "predictions_lightgbm.csv").exists()
    with pytest.raises(InputError, match="has no decoder lightgbm; use --decoders bilinear"):
        predict_flows(prediction_config("town", decoders=["lightgbm"]), quiet())


def test_trees_alone_are_written_as_text(files, capsys):
    assert main(["import_published", *TREES]) == 0
    booster = load_trees(MODEL / TREES_FILE)
    columns = np.random.default_rng(5).random((50, NUM_COLUMNS))
    np.testing.assert_array_equal(booster.predict(columns), files.predict(columns))
    assert "6 trees that read 9 features" in capsys.readouterr().err


def test_origins_that_were_held_out_are_scored(files, capsys):
    split = pd.DataFrame({"geocode": GEOCODES, "split": ["train", "valid", "test"] * 10})
    split.to_csv("split.csv", index=False)
    assert main(["import_published", *NETWORK, *TREES, "--split_path", "split.csv"]) == 0
    predict_flows(prediction_config("town"), quiet())
    table = read(MODEL / "town_2020" / "predictions_lightgbm.csv")
    assert set(table.h_geocode[table.scored]) == set(GEOCODES[2::3])
    scores = json.loads((MODEL / "town_2020" / "metrics.json").read_text())
    assert set(scores) == {"bilinear", "lightgbm", "constant"}


def test_a_model_that_is_there_is_left_as_it_is(files, capsys):
    assert main(["import_published", *NETWORK]) == 0
    before = files_of(MODEL)
    assert "holds a flow model already" in refused(capsys, *NETWORK, *TREES)
    assert files_of(MODEL) == before


class Harm:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return Path("harm").write_text, ("done",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_nothing_of_a_pickle_is_run(files, protocol):
    Path("trees.txt").write_bytes(pickle.dumps([Harm(), files, Harm()], protocol=protocol))
    assert read_trees_text("trees.txt", quiet()) == files.booster_.model_to_string()
    assert not Path("harm").exists()
    pickle.loads(Path("trees.txt").read_bytes())
    assert Path("harm").exists()  # unpickling would have run it


def test_a_network_that_would_run_code_is_refused(files, capsys):
    torch.save({"state_dict": draw_weights(), "more": Harm()}, "network.pth")
    assert "network network.pth cannot be read as a file of weights" in refused(capsys, *NETWORK)
    assert not Path("harm").exists()


def test_trees_that_are_none_are_refused(files):
    whole = Path("trees.txt").read_bytes()
    damaged = whole.replace(b"Tree=3\n", b"Tree=3\nx=1\n")
    two = whole + whole.replace(b"learning_rate: 0.1", b"learning_rate: 0.2")
    for content, says in (
        (b"no trees", "holds no model"),
        (damaged, "is damaged"),
        (two, "holds 2 models"),
        (whole[:900], "holds no model"),
    ):
        Path("trees.txt").write_bytes(content)
        with pytest.raises(InputError, match=says):
            read_trees_text("trees.txt", quiet())


def test_parts_that_do_not_fit_are_refused(files, capsys):
    torch.save(draw_weights(in_dim=7), "network.pth")
    assert "reads 7 features but town.csv has 3" in refused(capsys, *NETWORK)
    torch.save({name: value for name, value in draw_weights().items() if "layers.1.fcU" not in name}, "network.pth")
    assert "missing: gat.layers.1.fcU.weight; unknown: none" in refused(capsys, *NETWORK)
    weights = draw_weights()
    weights["bilinear.weight"] = torch.zeros(1, 6, 6)
    torch.save(weights, "network.pth")
    assert "weights whose shapes do not fit each other" in refused(capsys, *NETWORK)


def test_trees_of_another_network_are_refused(files, capsys):
    columns = np.random.default_rng(0).random((100, 5))
    Path("trees.txt").write_bytes(pickle.dumps(lightgbm.LGBMRegressor(n_estimators=2, verbose=-1).fit(columns, columns[:, 0])))
    assert "reads 5 features, but two embeddings by network.pth and a distance are 9" in refused(capsys, *NETWORK, *TREES)


def test_settings_that_say_too_little_are_refused(files, capsys):
    for flags in ([], NETWORK[:2], NETWORK[:4]):
        with pytest.raises(SystemExit) as end:
            main(["import_published", *flags])
        assert end.value.code == 2
