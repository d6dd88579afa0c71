import pytest

from imagery2flow.run.errors import BandError, CRSError, Faults, InputError, MissingInputError, TableError, shown


def test_five_values_are_shown_and_the_rest_counted():
    assert shown([]) == ""
    assert shown(range(5)) == "0, 1, 2, 3, 4"
    assert shown(range(6)) == "0, 1, 2, 3, 4 and 1 more"
    assert shown(str(number) for number in range(2005)) == "0, 1, 2, 3, 4 and 2,000 more"


@pytest.mark.parametrize("kind", [MissingInputError, CRSError, BandError, TableError])
def test_every_error_of_the_user_is_an_input_error_and_a_value_error(kind):
    assert issubclass(kind, InputError) and issubclass(kind, ValueError)


def test_faults_are_raised_together():
    faults = Faults("units tracts.gpkg")
    faults.raise_if_any()
    faults.add("1 ids are empty; give every unit an id")
    with pytest.raises(TableError, match=r"^units tracts.gpkg: 1 ids are empty; give every unit an id$"):
        faults.raise_if_any()
    faults.add("2 ids repeat; rename them")
    with pytest.raises(
        TableError, match=r"^units tracts.gpkg: 2 faults: 1 ids are empty; give every unit an id; 2 ids repeat; rename them$"
    ):
        faults.raise_if_any()
