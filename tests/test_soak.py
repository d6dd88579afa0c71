"""Memory and open files while many small units pass through stages 1 and 3."""

import pytest

from .soak import Growth, Sample, growth_of, soak


def check(growth: Growth, most_bytes: int) -> None:
    assert growth.bytes_per_unit < most_bytes, growth
    assert growth.files_after <= growth.files_before + 2, growth


def test_memory_and_files_do_not_grow_with_3000_units(tmp_path):
    # Libraries and allocators still settle: 3,000 units at 5 KB are 15 MB.
    for growth in soak(tmp_path, 3_000, workers=2):
        check(growth, 5_000)


@pytest.mark.slow
def test_memory_and_files_do_not_grow_with_50000_units(tmp_path):
    for growth in soak(tmp_path, 50_000, workers=2):
        print(growth)
        check(growth, 1_000)


def test_growth_is_seen():
    steady = [Sample(passed, 10**8 + 10**6 * (passed % 2), 20) for passed in range(1_000)]
    leaking = [Sample(sample.passed, sample.num_bytes + 2_000 * sample.passed, 20 + sample.passed // 100) for sample in steady]
    assert abs(growth_of(1, 1_000, steady, 1.0).bytes_per_unit) < 20
    found = growth_of(1, 1_000, leaking, 1.0)
    assert found.bytes_per_unit == pytest.approx(2_000, abs=20)
    assert found.files_after > found.files_before
