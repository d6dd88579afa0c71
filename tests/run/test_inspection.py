import pytest

from imagery2flow.run.errors import Faults, InputError, MissingInputError
from imagery2flow.run.inspection import Finding, Inspection, SeveralFaults
from imagery2flow.run.stage import Ledger


@pytest.fixture
def inspection():
    return Inspection(Ledger("test", quiet=True))


def fail(sentence, kind=InputError):
    raise kind(sentence)


def fail_twice(where="table t.csv"):
    faults = Faults(where)
    faults.add("1 count is negative; mend it")
    faults.add("2 ids repeat; rename them")
    faults.raise_if_any()


def test_what_a_reader_returns_is_returned(inspection):
    assert inspection.look("a.csv", int, "12", base=8) == 10
    inspection.raise_if_any()
    assert inspection.findings == []


def test_one_fault_is_raised_as_it_came(inspection):
    assert inspection.look("a.csv", fail, "a.csv does not exist; name another", MissingInputError) is None
    with pytest.raises(MissingInputError, match=r"^a.csv does not exist; name another$"):
        inspection.raise_if_any()


def test_the_faults_of_several_inputs_are_one_error_in_the_order_in_which_they_were_looked_at(inspection):
    inspection.look("b.csv", fail, "b.csv is empty; fill it")
    inspection.look("c.csv", int, "3")
    inspection.look("t.csv", fail_twice)
    with pytest.raises(SeveralFaults) as error:
        inspection.raise_if_any()
    assert str(error.value).splitlines() == [
        "2 faults were found; mend all of them before the next run:",
        "  - b.csv is empty; fill it",
        "  - table t.csv: 2 faults: 1 count is negative; mend it; 2 ids repeat; rename them",
    ]


def test_each_fault_of_a_table_is_a_finding_of_its_own(inspection):
    inspection.look("t.csv", fail_twice)
    assert inspection.findings == [
        Finding("t.csv", "fault", "1 count is negative; mend it"),
        Finding("t.csv", "fault", "2 ids repeat; rename them"),
    ]


def test_several_faults_from_within_keep_their_own_subjects(inspection):
    def region():
        inner = Inspection(Ledger("test", quiet=True))
        inner.look("a.csv", fail, "a; mend it")
        inner.look("b.csv", fail, "b; mend it")
        inner.raise_if_any()

    inspection.look("region", region)
    inspection.look("c.csv", fail, "c; mend it")
    assert [(finding.subject, finding.sentence) for finding in inspection.findings] == [
        ("a.csv", "a; mend it"),
        ("b.csv", "b; mend it"),
        ("c.csv", "c; mend it"),
    ]
    with pytest.raises(SeveralFaults, match=r"^3 faults"):
        inspection.raise_if_any()


def test_a_file_that_two_regions_share_is_named_once(inspection):
    for _ in range(2):
        inspection.look("a.csv", fail, "a; mend it")
        inspection.look("b.csv", inspection.ledger.note, "1 was mended")
    assert len(inspection.errors) == 1
    assert inspection.as_text().splitlines() == ["a.csv", "  fault    a; mend it", "b.csv", "  warning  1 was mended"]


def test_what_a_reader_notes_or_leaves_out_is_a_warning_about_its_file(inspection):
    def read(ids):
        inspection.ledger.leave_out("without geometry", ids)
        inspection.ledger.note("1 was mended")

    inspection.ledger.leave_out("without geometry", ["0"])
    inspection.look("units.gpkg", read, ["1", "2"])
    assert inspection.findings == [
        Finding("units.gpkg", "warning", "1 was mended"),
        Finding("units.gpkg", "warning", "2 left out: without geometry (1, 2)"),
    ]


def test_a_defect_of_ours_is_not_kept(inspection):
    with pytest.raises(ZeroDivisionError):
        inspection.look("a.csv", lambda: 1 / 0)
