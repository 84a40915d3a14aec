"""What does a process take of the machine? Read from /proc, by whoever started it."""

import os
import re
from pathlib import Path

import msgspec

_TICKS = os.sysconf("SC_CLK_TCK")


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """What a process has taken so far, and holds now."""

    peak_mb: float
    """Largest resident memory that it ever had (VmHWM)."""
    threads: int
    open_files: int
    cpu_s: float


def footprint(pid: int) -> Footprint:
    """Of a running process; ProcessLookupError or FileNotFoundError if it has ended."""
    folder = Path(f"/proc/{pid}")
    status = (folder / "status").read_text()
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    return Footprint(
        peak_mb=int(_found(r"VmHWM:\s+(\d+) kB", status)) / 1024,
        threads=int(_found(r"Threads:\s+(\d+)", status)),
        open_files=len(list((folder / "fd").iterdir())),
        cpu_s=(int(fields[11]) + int(fields[12])) / _TICKS,
    )


def children_of(pid: int) -> list[int]:
    """The processes that a process has started and that still run."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else "0"
