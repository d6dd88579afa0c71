"""How much memory there is, and arrays that live in files where it does not suffice."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from imagery2flow.run.errors import InputError

Placement = Literal["auto", "device", "host", "disk"]
Allocate = Callable[[tuple[int, ...], np.dtype], np.ndarray]
# Shares of the free memory that pixels may take; the rest is for the network, its gradients and the reader's copies.
HOST_SHARE, DEVICE_SHARE = 0.5, 0.3
MEMORY_FILE = Path("/proc/meminfo")


def free_memory(device: torch.device) -> int:
    """Bytes that a GPU, or main memory, can still give to this process; main memory is shared with the other processes of a run."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if MEMORY_FILE.is_file():  # Linux counts what its file cache can give back
        lines = dict(line.split(":", 1) for line in MEMORY_FILE.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024 // processes
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 // processes


def allocator(placement: Placement, folder: Path) -> Allocate:
    """Returns what allocates arrays: in main memory, or for ``disk``, and for ``auto`` where they are too large, in temporary files of a folder."""

    def allocate(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        too_large = placement == "auto" and num_bytes > HOST_SHARE * free_memory(torch.device("cpu"))
        if num_bytes == 0 or not (placement == "disk" or too_large):
            return np.empty(shape, dtype)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as stream:  # without a name: it is gone when its last reader is
            reserve(stream.fileno(), num_bytes, folder)
            return np.memmap(stream, dtype=dtype, mode="w+", shape=shape)

    return allocate


def reserve(file: int, num_bytes: int, folder: Path) -> None:
    """Takes the whole size from the disk at once: a disk that is full later would kill the process without a word.

    Raises:
        InputError: The disk is too full.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file, 0, num_bytes)
    except OSError as error:
        raise InputError(
            f"the disk of {folder} has no room for {num_bytes / 1e9:.1f} GB of pixels ({error.strerror}); make room, name another folder with --model_path, "
            "or keep them in main memory with --patches_on host"
        ) from error


def fits_device(num_bytes: int, placement: Placement, device: torch.device) -> bool:
    """Whether pixels are kept on the device."""
    if device.type == "cpu":
        return True
    return placement == "device" or (placement == "auto" and num_bytes <= DEVICE_SHARE * free_memory(device))
