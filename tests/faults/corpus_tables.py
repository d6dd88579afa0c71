"""Bad tables, models and run files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from tests.faults.checking import run_of
from tests.faults.making import (
    Fault,
    edit_tensors,
    flip_bits,
    folder_for,
    gzip_bomb,
    pickled_bomb,
    put_bytes,
    recode,
    refused,
    right,
    ring,
    torch_bomb,
)
from tests.spoiling import CKPT, FEATURES, FLOWS, ID, MODEL, NEXT_ID, TREES, copy_file, edit, later, put, write

MODEL_STAGE, TEST, EMBED, TRAIN = "train_ODPrediction", "test_ODPrediction", "get_img_embedding", "train_img_encoder"
IMPORT, RESULTS, MAP = "import_published", "results", "flow_map"
RUN = "outputs/M1/run.json"
PARQUET = "table.parquet"
NO_TABLE = "cannot be parsed as a table"


def flows_as_they_are() -> None:
    """As many flows, of as many commuters, as the file of the good folder holds."""
    table = pd.read_csv("good_flows.csv", dtype="str")
    assert run_of(RUN)["ledger"]["in"]["flows"] == len(table)
    told = pd.read_csv("outputs/M1/predictions_bilinear.csv", dtype={"h_geocode": "str", "w_geocode": "str"})
    expected = table.assign(count=table["count"].astype(float)).set_index(["h_geocode", "w_geocode"])["count"]
    found = told.set_index(["h_geocode", "w_geocode"])["count"]
    assert len(found) and found.equals(expected.reindex(found.index))


keep_flows = copy_file(FLOWS, "good_flows.csv")


def two_units_less() -> None:
    left_out = run_of(RUN)["ledger"]["left_out"]
    assert left_out["units without an embedding"] == [ID, NEXT_ID]
    table = pd.read_csv("outputs/M1/predictions_bilinear.csv", dtype="str")
    assert not {ID, NEXT_ID} & {*table.h_geocode, *table.w_geocode}


def foreign_embedding_is_left_out() -> None:
    assert run_of(RUN)["ledger"]["left_out"]["embeddings of units that are not in the units file"] == ["x"]


def finite_predictions() -> None:
    table = pd.read_csv("outputs/M1/predictions_bilinear.csv")
    assert len(table) and np.isfinite(table.prediction).all() and (table.prediction >= 0).all()


@later
def to_parquet(source: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    text = dict.fromkeys(("geocode", "h_geocode", "w_geocode"), "str")
    change(pd.read_csv(source, dtype=text)).to_parquet(PARQUET)


@later
def repeat_column(path: str, column: str) -> None:
    """Writes a column of other numbers under a name that is there already."""
    table = pd.read_csv(path, dtype="str")
    pd.concat([table, table[[column]].assign(**{column: "1"})], axis=1).to_csv(path, index=False)


@later
def swap_trees() -> None:
    text = Path(TREES).read_text()
    Path(TREES).write_text(text.replace("leaf_value=", "leaf_value=9", 1))


def nested(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(**{"0": [[1.0, 2.0]] * len(table)})


# fmt: off
FLOW_TABLES = [
    right("a mark of UTF-8 before the text", MODEL_STAGE, "", "the same flows", flows_as_they_are, keep_flows, recode(FLOWS, str, "utf-8-sig")),
    right("line ends of Windows", MODEL_STAGE, "", "the same flows", flows_as_they_are, keep_flows, recode(FLOWS, lambda t: t.replace("\n", "\r\n"))),
    right("ids as categories", MODEL_STAGE, f"--flows_path {PARQUET}", "the same flows", flows_as_they_are, keep_flows,
          to_parquet(FLOWS, lambda t: t.astype({"h_geocode": "category", "w_geocode": "category"}))),
    refused("UTF-16", MODEL_STAGE, "", f"flows {FLOWS} {NO_TABLE} ... utf-8", recode(FLOWS, str, "utf-16")),
    refused("Latin-1", MODEL_STAGE, "", f"flows {FLOWS} {NO_TABLE} ... utf-8", put("data/M1/flows.csv", "h_geocode", "é"), recode(FLOWS, str, "latin-1")),
    refused("semicolons", MODEL_STAGE, "", f"flows {FLOWS}: columns h_geocode, w_geocode, count are missing", recode(FLOWS, lambda t: t.replace(",", ";"))),
    refused("a line break in an id", MODEL_STAGE, "", f"flows {FLOWS}: 1 ids of h_geocode are not among the 24 units", put(FLOWS, "h_geocode", "a\nb")),
    refused("a row of too many cells", MODEL_STAGE, "", f"flows {FLOWS} {NO_TABLE}", recode(FLOWS, lambda t: t + "1,2,3,4,5,6,7,8,9\n")),
    refused("bytes of 0", MODEL_STAGE, "", "1 ids of h_geocode are not among the 24 units (\\x00\\x00)", recode(FLOWS, lambda t: t.replace(ID, "\0\0", 1))),
    refused("10^12 commuters", MODEL_STAGE, "", f"flows {FLOWS}: 1 counts are above a billion (line 2: 1000000000000)", put(FLOWS, "count", "1000000000000")),
    refused("minus infinity", MODEL_STAGE, "", f"flows {FLOWS}: 2 faults: ... (line 2: -inf)", put(FLOWS, "count", "-inf")),
    refused("NaN", MODEL_STAGE, "", f"flows {FLOWS}: 1 counts are missing (line 2: nan)", put(FLOWS, "count", "NaN")),
    refused("commas in thousands", MODEL_STAGE, "", f"flows {FLOWS}: 1 counts are no numbers (line 2: 1,234)", put(FLOWS, "count", "1,234")),
    refused("a formula as count", MODEL_STAGE, "", "1 counts are no numbers (line 2: =1+1)", put(FLOWS, "count", "=1+1")),
    refused("a path as id", MODEL_STAGE, "", "1 ids of h_geocode are not among the 24 units (../../x)", put(FLOWS, "h_geocode", "../../x")),
    refused("a second column of counts", MODEL_STAGE, "", f"flows {FLOWS}: 1 names stand above more than one column (count)", repeat_column(FLOWS, "count")),
    refused("a header and no row", MODEL_STAGE, "", "region M1 has 0 units with flows ... fewer than 2", edit(FLOWS, lambda t: t[:0])),
    refused("Parquet that is cut short", MODEL_STAGE, f"--flows_path {PARQUET}", f"flows {PARQUET} {NO_TABLE}", to_parquet(FLOWS, lambda t: t), flip_bits(PARQUET, 10**7)),
    refused("CSV that is called Parquet", MODEL_STAGE, f"--flows_path {PARQUET}", f"flows {PARQUET} {NO_TABLE}", copy_file(FLOWS, PARQUET)),
    refused("a spreadsheet", MODEL_STAGE, "--flows_path flows.xlsx", "flows flows.xlsx has an unknown suffix", copy_file(FLOWS, "flows.xlsx")),
    refused("gzip that unpacks to gigabytes", MODEL_STAGE, "--flows_path flows.csv.gz", "flows flows.csv.gz unpacks to more than 1,073,741,824 bytes", gzip_bomb("flows.csv.gz")),
    refused("a folder in place of flows", MODEL_STAGE, f"--flows_path {FLOWS}", f"flows {FLOWS} is a folder, not a file", folder_for(FLOWS)),
    refused("a ring of links in place of flows", MODEL_STAGE, f"--flows_path {FLOWS}", f"flows {FLOWS} does not exist", ring(FLOWS)),
]
FEATURE_TABLES = [
    right("units without an embedding", MODEL_STAGE, "", "left out with their flows, and said", two_units_less, edit(FEATURES, lambda t: t[2:])),
    right("an embedding of a unit that is not there", MODEL_STAGE, "", "left out, and said", foreign_embedding_is_left_out,
          edit(FEATURES, lambda t: pd.concat([t, t[:1].assign(geocode="x")]))),
    right("columns of one value", MODEL_STAGE, "", "predictions are finite", finite_predictions, edit(FEATURES, lambda t: t.assign(**{"0": "1", "1": "1", "2": "1", "3": "1"}))),
    refused("a second column of a name", MODEL_STAGE, "", f"features {FEATURES}: 1 names stand above more than one column (0)", repeat_column(FEATURES, "0")),
    refused("lists in cells", MODEL_STAGE, f"--node_feats_path {PARQUET}", f"features {PARQUET}: columns 0 are not numbers", to_parquet(FEATURES, nested)),
    refused("features of no bytes", MODEL_STAGE, "", f"features {FEATURES} {NO_TABLE}", put_bytes(FEATURES, b"")),
    refused("features of one unit", MODEL_STAGE, "", "region M1 has 1 units with flows ... fewer than 2", edit(FEATURES, lambda t: t[:1])),
    refused("numbers beyond float32", MODEL_STAGE, "", "missing, infinite or too large values", put(FEATURES, "1", "1e300")),
    refused("a run file beside them that is no JSON", MODEL_STAGE, "", f"{FEATURES}.run.json cannot be read as JSON", write(f"{FEATURES}.run.json", "{")),
    refused("a run file beside them that is a list", TEST, "", f"{FEATURES}.run.json holds a list instead of named values", write(f"{FEATURES}.run.json", "[]")),
    refused("a formula as id", TEST, "", "none of its 24 ids", edit(FEATURES, lambda t: t.assign(geocode="=" + t.geocode))),
    refused("ids of lost zeros with a decimal point", TEST, "", "have lost their leading zeros (1001000100.0",
            edit(FEATURES, lambda t: t.assign(geocode=t.geocode.str.lstrip("0") + ".0"))),
]
MODELS = [
    refused("a pickle that runs a program", EMBED, "--ckpt bomb.pth", "encoder checkpoint bomb.pth cannot be read", pickled_bomb("bomb.pth")),
    refused("a checkpoint that runs a program", EMBED, "--ckpt bomb.pth", "encoder checkpoint bomb.pth cannot be read", torch_bomb("bomb.pth")),
    refused("a checkpoint that runs a program, to resume from", TRAIN, "--resume", "ckpt/new_img_1.pth cannot be read", torch_bomb("ckpt/new_img_1.pth")),
    refused("a flow model that runs a program", TEST, "", f"OD model {MODEL} cannot be read", torch_bomb(MODEL)),
    refused("trees that run a program", IMPORT, "--lightgbm_path bomb.pkl", "LightGBM decoder bomb.pkl holds no model in LightGBM's text", pickled_bomb("bomb.pkl")),
    refused("a network that runs a program", IMPORT, f"--network_path bomb.pth --region M1 --node_feats_path {FEATURES}", "network bomb.pth cannot be read",
            pickled_bomb("bomb.pth")),
    refused("trees that were changed", TEST, "", f"LightGBM decoder {TREES} is damaged or of another model", swap_trees()),
    refused("a pickle in place of trees", TEST, "", f"LightGBM decoder {TREES} is damaged or of another model", pickled_bomb(TREES)),
    refused("flipped bits in a checkpoint", EMBED, "--ckpt bad.pth", "encoder checkpoint bad.pth", copy_file(CKPT, "bad.pth"), flip_bits("bad.pth", 10_000)),
    refused("a checkpoint of another backbone", EMBED, "--ckpt bad.pth", "encoder checkpoint bad.pth is damaged: its content is not what its checksum says",
            copy_file(CKPT, "bad.pth"), edit_tensors("bad.pth", lambda c: {**c, "config": {**c["config"], "resnet": "resnet50"}})),
    refused("a checkpoint without its settings", EMBED, "--ckpt bad.pth", "encoder checkpoint bad.pth is damaged",
            copy_file(CKPT, "bad.pth"), edit_tensors("bad.pth", lambda c: {name: value for name, value in c.items() if name != "config"})),
    refused("a flow model without its scaling", TEST, "", f"OD model {MODEL} is damaged", edit_tensors(MODEL, lambda c: {n: v for n, v in c.items() if n != "scaling"})),
    refused("a flow model of another width", TEST, "", f"OD model {MODEL} is damaged",
            edit_tensors(MODEL, lambda c: {**c, "config": {**c["config"], "embedding_size": 16}})),
    refused("a model of no bytes", TEST, "", f"OD model {MODEL} cannot be read", put_bytes(MODEL, b"")),
    refused("a folder in place of a model", TEST, "", f"OD model {MODEL} does not exist", folder_for(MODEL)),
    refused("a run file that is no JSON", RESULTS, "", f"{RUN} cannot be read as JSON", write(RUN, "{")),
    refused("scores that are no JSON", RESULTS, "", "metrics.json cannot be read as JSON", write("outputs/M1/metrics.json", "nothing")),
    refused("predictions that are infinite", MAP, "", "1 values of prediction are no numbers of commuters (inf)",
            put("outputs/M1/M1_2020/predictions_bilinear.csv", "prediction", "inf")),
]
# fmt: on
FAULTS: list[Fault] = FLOW_TABLES + FEATURE_TABLES + MODELS
