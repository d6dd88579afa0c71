import json

import numpy as np
import pandas as pd
import pytest

from imagery2flow.flows.transfer import collect_transfer
from imagery2flow.run.errors import InputError, MissingInputError
from imagery2flow.run.files import sha256, write_json
from imagery2flow.run.flow_config import TransferConfig


def write_scores(folder, value, model=None):
    """What stages 4 and 5 leave: CPC of the trees ``value``, of the bilinear decoder .1 less."""
    folder.mkdir(parents=True, exist_ok=True)
    scores = {name: {"gt10": {"cpc": value - less}} for name, less in (("lightgbm", 0.0), ("bilinear", 0.1), ("constant", 0.2))}
    write_json(folder / "metrics.json", scores)
    if model is None:
        (folder / "od_model.pt").write_bytes(folder.name.encode())
    else:
        (folder / "run.json").write_text(json.dumps({"inputs_sha256": {"x/od_model.pt": sha256(model / "od_model.pt")}}))


@pytest.fixture
def outputs(tmp_path):
    """M1 was tested in itself and M2, M2 in itself and M1; M3 was not trained."""
    for source, own, other, elsewhere in (("M1", 0.9, "M2", 0.7), ("M2", 0.8, "M1", 0.6)):
        write_scores(tmp_path / f"{source}_s2_2020", own)
        write_scores(tmp_path / f"{source}_s2_2020" / f"{other}_2020", elsewhere, tmp_path / f"{source}_s2_2020")
    return tmp_path


def collect(outputs, ledger, **changes):
    config = TransferConfig(**({"regions": ["M1", "M2", "M3"], "tags": ["s2"], "output_dir": str(outputs)} | changes))
    assert collect_transfer(config, ledger) == outputs / "transfer_run.json"
    return pd.read_csv(outputs / "transfer_s2_2020_lightgbm_gt10_cpc.csv", index_col="target")


def test_a_row_per_target_a_column_per_source_and_nothing_where_nothing_was_tested(outputs, ledger, capsys):
    table = collect(outputs, ledger)
    expected = [[0.9, 0.6, np.nan], [0.7, 0.8, np.nan], [np.nan] * 3]
    pd.testing.assert_frame_equal(
        table, pd.DataFrame(expected, index=pd.Index(["M1", "M2", "M3"], name="target"), columns=["M1", "M2", "M3"])
    )
    bilinear = pd.read_csv(outputs / "transfer_s2_2020_bilinear_gt10_cpc.csv", index_col="target")
    np.testing.assert_allclose(bilinear.to_numpy(), table.to_numpy() - 0.1)
    assert ledger.left_out["models of s2 that are not trained yet"] == ["M3_s2_2020"]
    assert ledger.left_out["models of s2 that are not tested there yet, as source/target"] == ["M1/M3", "M2/M3"]
    assert ledger.went_out["s2, lightgbm: scores of 9"] == 4
    assert "0.900" in capsys.readouterr().out


def test_scores_of_an_earlier_model_are_left_out(outputs, ledger):
    (outputs / "M1_s2_2020/od_model.pt").write_bytes(b"trained again")
    table = collect(outputs, ledger)
    assert np.isnan(table.loc["M2", "M1"])
    assert table.loc["M1", "M2"] == 0.6


def test_no_model_at_all_is_an_error_that_names_what_is_looked_for(tmp_path, ledger):
    with pytest.raises(MissingInputError, match="holds no scores of models such as M1_s2_2020"):
        collect(tmp_path, ledger)


def test_a_score_that_there_is_not_is_named(outputs, ledger):
    with pytest.raises(InputError, match=r"--score r2 is not in .*metrics.json; there are cpc"):
        collect(outputs, ledger, score="r2")


@pytest.mark.parametrize("changes", [{"regions": []}, {"regions": ["M1", "M1"]}, {"tags": []}])
def test_names_must_be_given_once(changes):
    with pytest.raises(InputError, match="must be names, each once"):
        TransferConfig(**changes)
