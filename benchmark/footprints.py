"""What do processes take of the machine? As Linux counts it, for whoever started them.

Drivers of peers import this in environments without ours: the standard library alone.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_FIRST, _LAST = 11, 14
"""Its own user time and its dead children's system time, among the fields of ``stat`` that come
after the command's name, which may hold spaces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a process has taken so far, and holds now."""

    peak_mb: float
    """Largest resident memory that it ever had (VmHWM), in MiB."""
    threads: int
    open_files: int
    cpu_s: float
    """User and system, without its children's."""


def footprint(pid: int) -> Footprint:
    """Of a running process; ProcessLookupError or FileNotFoundError if it has ended."""
    folder = Path(f"/proc/{pid}")
    status = (folder / "status").read_text("utf-8")
    times = _times(folder)
    return Footprint(
        peak_mb=_number(r"VmHWM:\s+(\d+) kB", status) / 1024,
        threads=_number(r"Threads:\s+(\d+)", status),
        open_files=len(list((folder / "fd").iterdir())),
        cpu_s=sum(times[:2]),
    )


def peak_mb(pid: int) -> float:
    """The largest resident memory that a process ever had, in MiB; 0 for one that has ended."""
    try:
        return footprint(pid).peak_mb
    except OSError:
        return 0.0


def cpu_seconds(pid: int) -> float:
    """Of a process and its children, living and dead, user and system."""
    total = 0.0
    for each in (pid, *children(pid)):
        try:
            total += sum(_times(Path(f"/proc/{each}")))
        except OSError:  # it has ended meanwhile
            continue
    return total


def children(pid: int) -> Iterator[int]:
    """A process's children and theirs."""
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = listed.read_text("ascii").split()
        except OSError:  # the thread has ended meanwhile
            continue
        for child in map(int, found):
            yield child
            yield from children(child)


def _times(folder: Path) -> list[float]:
    """Seconds of a process, user and system, then of its dead children."""
    fields = (folder / "stat").read_text("utf-8").rpartition(")")[2].split()
    return [int(value) / _TICKS_PER_S for value in fields[_FIRST : _LAST + 1]]


def _number(pattern: str, text: str) -> int:
    """A field of ``status``; 0 for a process that has ended and is not yet waited for."""
    found = re.search(pattern, text)
    return int(found[1]) if found else 0
