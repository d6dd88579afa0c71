"""What Linux says of processes: memory and open files."""

from pathlib import Path


def status_bytes(pid: int | str, field: str) -> int:
    """A size from /proc/<pid>/status, in bytes; 0 for a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:")), 0)


def resident_bytes(pid: int | str = "self") -> int:
    """Memory that a process holds."""
    return status_bytes(pid, "VmRSS")


def peak_bytes() -> int:
    """The largest memory that this process held since ``forget_peak``."""
    return status_bytes("self", "VmHWM")


def forget_peak() -> None:
    """Begins anew to look for the largest memory of this process."""
    Path("/proc/self/clear_refs").write_text("5")


def open_files(pid: int | str = "self") -> int:
    """Files, pipes and sockets that a process has open."""
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except (FileNotFoundError, ProcessLookupError):
        return 0


def children(pid: int) -> list[int]:
    """Processes that a process began, and those that they began."""
    try:
        own = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return own + [grandchild for child in own for grandchild in children(child)]
