import numpy as np
import pytest

from imagery2flow.imagery.journal import JOURNAL, BandSums, CutResult, ManifestRow, note_in_journal, open_journal, read_journal
from imagery2flow.run.files import sha256


def make_result(folder, geocode, content=b"pixels"):
    """A unit whose patch is written."""
    path = folder / f"{geocode}.tif"
    path.write_bytes(content)
    sums = BandSums(3, np.array([[1 / 3, 2.0], [1e300, 0.1], [0.0, -1.5], [7.0, 2**53 + 1.0]]))
    return CutResult(row(geocode, "written", path.name, np.int64(3)), sums, sha256(path))


def row(geocode, status, path=None, column_offset=None):
    return ManifestRow(geocode, status, path, "scene.tif", column_offset, None, None, None, 1 / 3)


def write(folder, *results):
    with open_journal(folder) as journal:
        for result in results:
            note_in_journal(journal, result)


def test_what_was_noted_comes_back_to_the_bit(tmp_path):
    outside = CutResult(row("b", "outside every scene"), None)
    write(tmp_path, make_result(tmp_path, "a"), outside)
    found = {result.row.geocode: result for result in read_journal(tmp_path)}
    assert found["b"] == outside
    assert found["a"].row == row("a", "written", "a.tif", 3)
    np.testing.assert_array_equal(found["a"].sums.values, make_result(tmp_path, "a").sums.values)


def test_a_unit_that_was_noted_twice_counts_once(tmp_path):
    write(tmp_path, make_result(tmp_path, "a"))
    write(tmp_path, make_result(tmp_path, "a"))
    assert len(read_journal(tmp_path)) == 1


@pytest.mark.parametrize("damage", ["cut off", "zeros", "patch gone", "patch cut off", "patch of other content"])
def test_what_is_not_whole_is_not_done(tmp_path, damage):
    write(tmp_path, make_result(tmp_path, "a"), make_result(tmp_path, "b"))
    (line_file,) = (tmp_path / JOURNAL).iterdir()
    whole, patch = line_file.read_bytes(), tmp_path / "b.tif"
    if damage == "cut off":
        line_file.write_bytes(whole[:-5])
    elif damage == "zeros":
        line_file.write_bytes(whole[: len(whole) // 2 + 1].ljust(len(whole), b"\0"))
    elif damage == "patch gone":
        patch.unlink()
    else:
        patch.write_bytes(b"pix" if damage == "patch cut off" else b"Pixels")
    assert [result.row.geocode for result in read_journal(tmp_path)] == ["a"]


def test_there_is_nothing_done_without_a_journal(tmp_path):
    assert read_journal(tmp_path) == []
