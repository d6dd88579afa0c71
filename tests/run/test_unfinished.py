import os
from pathlib import Path

import pytest

from imagery2flow.run import files
from imagery2flow.run.errors import InputError
from imagery2flow.run.unfinished import kept_parts, publish, unfinished_folders


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def stopped(output: Path, follows_from: object, part: str, error: BaseException) -> Path:
    """A run that makes one part and ends with an error."""
    with pytest.raises(type(error)), kept_parts(output, follows_from) as folder:
        (folder / part).write_text(part)
        raise error
    return folder


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("disk full"), ZeroDivisionError()])
def test_parts_of_a_stopped_run_are_met_again_by_the_same_run_only(tmp_path, error):
    output = tmp_path / "out"
    first = stopped(output, {"size": 3}, "a", error)
    assert names(first) == ["a"] and unfinished_folders(output) == [first]
    with kept_parts(output, {"size": 3}) as again:
        assert again == first and names(again) == ["a"]
    assert names(tmp_path) == []
    stopped(output, {"size": 3}, "a", error)
    with kept_parts(output, {"size": 4}) as other:
        assert names(other) == [] and unfinished_folders(output) == [other]


def test_refused_input_leaves_nothing(tmp_path):
    stopped(tmp_path / "out", 1, "a", InputError("no"))
    assert names(tmp_path) == []


def test_a_name_with_the_signs_of_patterns_stands_for_itself(tmp_path):
    stopped(tmp_path / "out", 1, "a", KeyboardInterrupt())
    assert unfinished_folders(tmp_path / "o*t") == []
    stopped(tmp_path / "o[u]t", 1, "a", KeyboardInterrupt())
    assert len(unfinished_folders(tmp_path / "o[u]t")) == 1


def test_who_still_writes_does_not_bring_an_abandoned_folder_back(tmp_path):
    folder = stopped(tmp_path / "out", 1, "a", InputError("no"))
    with pytest.raises(FileNotFoundError):
        (folder / "late.tif").touch()


@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_is_published_without_half_files_its_last_file_last_and_on_the_disk_before(tmp_path, monkeypatch, is_there):
    parts, folder, events = tmp_path / "parts", tmp_path / "out", []
    parts.mkdir()
    for name in ("a.csv", "b.tif", ".c.tif.machine.1.tif"):
        (parts / name).write_text("new")
    (parts / ".journal").mkdir()
    if is_there:
        folder.mkdir()
        for name in ("a.csv", "old.tif"):
            (folder / name).write_text("old")
    replace, sync = Path.replace, os.fsync
    monkeypatch.setattr(
        Path, "replace", lambda path, target: events.append((path.name, (folder / "a.csv").exists())) or replace(path, target)
    )
    monkeypatch.setattr(files.os, "fsync", lambda number: events.append("sync") or sync(number))
    publish(parts, folder, last="a.csv")
    assert names(folder) == (["a.csv", "b.tif", "old.tif"] if is_there else ["a.csv", "b.tif"])
    assert (folder / "a.csv").read_text() == "new"
    # The earlier a.csv is gone before the first file of the new run comes.
    moves = [("b.tif", False), "sync", ("a.csv", False)] if is_there else [("parts", False)]
    assert events == ["sync", "sync", *moves, "sync"]
