import json
import os
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from imagery2flow.run.errors import InputError, MissingInputError
from imagery2flow.run.files import (
    content_hash,
    existing_file,
    give_second_name,
    load_tensors,
    replacing,
    save_figure,
    save_tensors,
    sha256,
    write_json,
)
from imagery2flow.run.tables import TableWriter, check_table_suffix, read_table, write_table

FLOWS = pd.DataFrame({"h_geocode": ["01", "02", "10"], "w_geocode": ["02", "02", "01"], "count": [3, 11, 250], "share": [0.1, 1 / 3, 2e-9]})
SUFFIXES = [".csv", ".csv.gz", ".parquet"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "a.csv"
    target.write_text("old")
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".csv")
    assert (target.read_text(), names(tmp_path)) == ("new", ["a.csv"])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_no_half_one(tmp_path, error):
    target = tmp_path / "a.csv"
    target.write_text("old")
    with pytest.raises(error), replacing(target) as temporary:
        temporary.write_text("ha")
        raise error
    assert (target.read_text(), names(tmp_path)) == ("old", ["a.csv"])


def test_an_error_before_anything_is_written_is_not_hidden(tmp_path):
    with pytest.raises(ValueError, match="mine"), replacing(tmp_path / "a.csv"):
        raise ValueError("mine")
    assert names(tmp_path) == []


def test_equal_content_gives_equal_json(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"b": 1, "a": [1.5, None, "é"]})
    write_json(tmp_path / "new" / "b.json", {"a": [1.5, None, "é"], "b": 1})
    assert (tmp_path / "new" / "a.json").read_bytes() == (tmp_path / "new" / "b.json").read_bytes()
    assert json.loads((tmp_path / "new" / "a.json").read_text(encoding="utf-8")) == {"a": [1.5, None, "é"], "b": 1}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_blocks_of_rows_give_the_table_that_one_write_gives(tmp_path, suffix):
    write_table(tmp_path / f"one{suffix}", FLOWS)
    with TableWriter(tmp_path / "new" / f"blocks{suffix}") as writer:
        for start in range(3):
            writer.write(FLOWS[start : start + 1])
    one, blocks = (
        read_table(path, "flows", ["h_geocode", "w_geocode"]) for path in (tmp_path / f"one{suffix}", tmp_path / "new" / f"blocks{suffix}")
    )
    pd.testing.assert_frame_equal(blocks, one)
    pd.testing.assert_frame_equal(blocks, FLOWS, check_dtype=False)
    if suffix == ".csv":
        assert (tmp_path / "new" / "blocks.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    assert names(tmp_path / "new") == [f"blocks{suffix}"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_error_between_blocks_leaves_nothing(tmp_path, suffix):
    with pytest.raises(ValueError, match="mine"), TableWriter(tmp_path / f"a{suffix}") as writer:
        writer.write(FLOWS)
        raise ValueError("mine")
    assert names(tmp_path) == []


def test_a_first_block_without_known_counts_does_not_fix_the_type(tmp_path):
    with TableWriter(tmp_path / "a.parquet") as writer:
        writer.write(pd.DataFrame({"h_geocode": ["01"], "count": [np.nan]}))
        writer.write(pd.DataFrame({"h_geocode": ["02"], "count": [3.0]}))
    assert pd.read_parquet(tmp_path / "a.parquet")["count"].tolist()[1] == 3.0


def test_an_index_is_written_where_it_is_asked_for(tmp_path):
    write_table(tmp_path / "a.csv", pd.DataFrame({"0": [0.5]}, index=pd.Index(["01"], name="geocode")), index=True)
    assert (tmp_path / "a.csv").read_text() == "geocode,0\n01,0.5\n"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_ids_keep_their_leading_zeros(tmp_path, suffix):
    write_table(tmp_path / f"a{suffix}", FLOWS)
    table = read_table(tmp_path / f"a{suffix}", "flows", ["h_geocode", "w_geocode"])
    assert table.h_geocode.tolist() == ["01", "02", "10"]
    assert table["count"].sum() == 264


@pytest.mark.parametrize("name", ["NA", "null", "nan", "None"])
def test_ids_that_look_like_missing_values_stay_text(tmp_path, name):
    (tmp_path / "a.csv").write_text(f"h_geocode,count\n{name},3\n01,\n")
    table = read_table(tmp_path / "a.csv", "flows", ["h_geocode"])
    assert table.h_geocode.tolist() == [name, "01"]
    assert table["count"].isna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b""),
        ("a.csv", b'a,b\n1,"2\n'),
        ("a.csv", b"a,b\n1,2\n1,2,3\n"),
        ("a.csv", "a,b\né,1\n".encode("latin-1")),
        ("a.csv.gz", b"no gzip"),
        ("a.parquet", b"no parquet"),
    ],
)
def test_a_file_that_is_no_table_is_an_input_error(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        InputError, match=rf"^flows {tmp_path / name} cannot be parsed as a table \(.+\); check that it is a CSV or Parquet file$"
    ):
        read_table(tmp_path / name, "flows", ["a"])


def test_a_truncated_gzip_table_is_an_input_error(tmp_path):
    write_table(tmp_path / "a.csv.gz", pd.DataFrame({"a": np.random.default_rng(0).random(5000)}))
    content = (tmp_path / "a.csv.gz").read_bytes()
    (tmp_path / "a.csv.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cannot be parsed as a table"):
        read_table(tmp_path / "a.csv.gz", "flows", [])


def test_tables_of_other_suffixes_are_refused(tmp_path):
    (tmp_path / "a.xlsx").write_text("")
    with pytest.raises(InputError, match=r"flows .*a.xlsx has an unknown suffix; name a file that ends in .csv, .csv.gz, .parquet"):
        read_table(tmp_path / "a.xlsx", "flows", [])
    with pytest.raises(InputError, match=r"--output_path a.xlsx must end in .csv, .csv.gz, .parquet"):
        check_table_suffix("a.xlsx", "--output_path")
    assert [check_table_suffix(f"a{suffix}", "--output_path") for suffix in SUFFIXES] == [None] * 3


def test_a_missing_file_is_refused_with_the_deepest_folder_that_exists(tmp_path):
    with pytest.raises(
        MissingInputError, match=rf"flows {tmp_path}/x/y.csv does not exist \(the deepest folder that does: {tmp_path}\); check"
    ):
        existing_file(tmp_path / "x" / "y.csv", "flows")
    with pytest.raises(MissingInputError, match="is a folder, not a file"):
        existing_file(tmp_path, "flows")


def test_tensors_come_back_as_they_were_saved(tmp_path):
    content = {
        "weights": {"a": torch.arange(6.0).reshape(2, 3)},
        "epoch": 3,
        "names": ["red", "nir"],
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    save_tensors(tmp_path / "new" / "a.pt", content)
    loaded = load_tensors(tmp_path / "new" / "a.pt", "encoder")
    assert torch.equal(loaded["weights"]["a"], content["weights"]["a"]) and torch.equal(loaded["half"], content["half"])
    assert (loaded["epoch"], loaded["names"]) == (3, ["red", "nir"])


def test_equal_tensors_give_equal_bytes_under_any_name(tmp_path):
    for name in ("a.pt", "another_name.pth"):
        save_tensors(tmp_path / name, {"a": torch.arange(5)})
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "another_name.pth").read_bytes()


class Harmful:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_checkpoint_does_not_run(tmp_path, save):
    save({"a": Harmful(tmp_path / "made")}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"encoder .*a.pt cannot be read as a file of weights"):
        load_tensors(tmp_path / "a.pt", "encoder")
    assert names(tmp_path) == ["a.pt"]


@pytest.mark.parametrize(
    "content", [b"", b"geocode,0,1\n1,2,3\n", b"PK\x03\x04 no archive", b".", b"habc\n", b"G", b"\x80\x04", bytes(range(256))]
)
def test_garbage_in_place_of_a_checkpoint_is_an_input_error(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"^encoder .*a.pt cannot be read as a file of weights \(.+\); name one that this project wrote$"):
        load_tensors(tmp_path / "a.pt", "encoder")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_checkpoint_is_an_input_error(tmp_path, share):
    save_tensors(tmp_path / "a.pt", {"a": torch.rand(2000)})
    content = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match="cannot be read as a file of weights"):
        load_tensors(tmp_path / "a.pt", "encoder")


def test_a_checkpoint_that_is_no_dictionary_is_refused(tmp_path):
    torch.save([1], tmp_path / "a.pt")
    with pytest.raises(InputError, match="holds a list instead of named tensors"):
        load_tensors(tmp_path / "a.pt", "encoder")


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_equal_figures_give_equal_bytes(tmp_path, suffix):
    for name in ("a", "b"):
        figure = Figure()
        figure.subplots().plot([1, 2], [3, 4])
        save_figure(tmp_path / f"{name}{suffix}", figure)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_the_hash_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_json_holds_no_number_that_strict_readers_refuse(tmp_path):
    path = tmp_path / "scores.json"
    write_json(path, {"a": [1.5, float("nan"), np.float64("nan")], "b": {"c": float("inf")}, "d": (-np.inf, None, True)})
    content = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert content == {"a": [1.5, None, None], "b": {"c": "inf"}, "d": ["-inf", None, True]}


@pytest.mark.parametrize("has_links", [True, False])
def test_a_second_name_holds_the_same_whatever_becomes_of_the_first(tmp_path, monkeypatch, has_links):
    def refuse(*_):
        raise PermissionError

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("one")
    second.write_text("before")
    for _ in range(2):  # a second time nothing is to be done, and nothing is left behind
        give_second_name(first, second)
        assert (names(tmp_path), second.read_text()) == (["a", "b"], "one")
    with replacing(first) as temporary:
        temporary.write_text("two")
    assert second.read_text() == "one"


def test_equal_content_has_one_hash_and_other_content_another():
    content = {"a": [1, 2.5, None, "x"], "b": torch.arange(4.0), "c": (np.int64(3), b"y", True)}
    same = {"c": [3, b"y", True], "b": np.arange(4, dtype=np.float32), "a": (1, 2.5, None, "x")}
    assert content_hash(content) == content_hash(same)
    others = [{**content, "a": [1, 2.5, None, "y"]}, {**content, "b": torch.arange(4.0).view(2, 2)}, {**content, "b": torch.arange(4)}]
    others += [{**content, "c": (3, b"y", 1)}, {**content, "a": [[1, 2.5], None, "x"]}, {**content, "b": torch.tensor([0.0, 1, 2, 4])}]
    assert len({content_hash(other) for other in [content, *others]}) == 7
