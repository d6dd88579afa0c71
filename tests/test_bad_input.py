"""Bad input, as the user meets it: one sentence with what, where, the value and the remedy; status 2; nothing half written."""

import subprocess
import sys

import pytest

from tests.everyday_faults import CASES
from tests.spoiling import FLAGS, ROOT, call, check_message, state_of

IN_A_PROCESS = (
    "img_preprocessing-a scene elsewhere",
    "train_ODPrediction-a dropout of one",
)


@pytest.mark.parametrize("name", CASES)
def test_bad_input_gives_one_sentence_and_status_2_and_writes_nothing(name, workplace, capfd):
    stage, item = CASES[name]
    for spoil in item.spoils:
        spoil()
    before = state_of(workplace)
    capfd.readouterr()
    status = call(stage, f"{FLAGS[stage]} {item.flags}")
    stderr = capfd.readouterr().err
    assert status == 2, stderr
    assert state_of(workplace) == before
    check_message(stderr, stage, item)


@pytest.mark.parametrize("name", IN_A_PROCESS)
def test_so_it_does_as_a_process_of_its_own(name, workplace):
    stage, item = CASES[name]
    for spoil in item.spoils:
        spoil()
    before = state_of(workplace)
    command = [sys.executable, str(ROOT / f"{stage}.py"), *FLAGS[stage].split(), *item.flags.split()]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 2, answer.stderr
    assert state_of(workplace) == before
    check_message(answer.stderr, stage, item)
