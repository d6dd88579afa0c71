"""One server of stages for all tests of killed and stopped runs: what these read, and runs that nothing interrupts, are made once."""

from collections.abc import Iterator

import pytest

from tests.faults.processes import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("given"))
    done = found.run(found.given, "imagery2flow.__main__", "synthetic --output_dir . --region city --num_units 40 --size_px 100 --seed 1")
    assert done["status"] == 0
    yield found
    assert found.process.stdin is not None
    found.process.stdin.close()
    found.process.wait(timeout=60)
