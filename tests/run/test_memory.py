import os

import numpy as np
import pytest
import torch

from imagery2flow.run import memory
from imagery2flow.run.errors import InputError
from imagery2flow.run.memory import allocator, fits_device, free_memory

CPU = torch.device("cpu")


@pytest.mark.parametrize(("placement", "in_file"), [("host", False), ("device", False), ("disk", True), ("auto", False)])
def test_arrays_lie_where_they_are_wanted(tmp_path, placement, in_file):
    array = allocator(placement, tmp_path / "new")((3, 4), np.dtype("uint16"))
    assert array.shape == (3, 4) and array.dtype == np.uint16
    assert isinstance(array, np.memmap) == in_file
    array[:] = 65_535
    assert int(array.sum()) == 12 * 65_535


def test_what_does_not_fit_goes_into_a_file_that_nobody_sees(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    small, large = (allocator("auto", tmp_path)((count,), np.dtype("uint8")) for count in (500, 501))
    assert not isinstance(small, np.memmap) and isinstance(large, np.memmap)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_array_needs_no_file(tmp_path):
    assert allocator("disk", tmp_path)((0, 3), np.dtype("uint8")).shape == (0, 3)


def test_free_memory_is_what_the_system_says(monkeypatch, tmp_path):
    assert 10**8 < free_memory(CPU) < 10**14
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:       2000 kB\nMemAvailable:   1234 kB\n")
    monkeypatch.setattr(memory, "MEMORY_FILE", file)
    assert free_memory(CPU) == 1234 * 1024


@pytest.mark.parametrize(
    ("placement", "num_bytes", "fits"), [("auto", 300, True), ("auto", 301, False), ("device", 9999, True), ("host", 1, False)]
)
def test_pixels_stay_on_a_device_where_they_fit(monkeypatch, placement, num_bytes, fits):
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    assert fits_device(num_bytes, placement, torch.device("cuda")) == fits
    assert fits_device(num_bytes, placement, CPU)


def test_processes_of_one_machine_share_its_memory(monkeypatch):
    alone = free_memory(CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert free_memory(CPU) == pytest.approx(alone / 8, rel=0.2)


def test_a_full_disk_is_said_in_one_sentence_before_anything_is_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        InputError, match=rf"the disk of {tmp_path} has no room for 3.0 GB of pixels \(No space left on device\); make room"
    ):
        allocator("disk", tmp_path)((1000, 3), np.dtype("V1000000"))
    assert list(tmp_path.iterdir()) == []
