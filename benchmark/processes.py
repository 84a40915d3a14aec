"""What have processes cost? CPU seconds and peak memory, as Linux counts them below /proc."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_UTIME, _CSTIME = 13, 17
"""The first and the last of four fields: its own user and system time, and its dead children's."""


def cpu_seconds(pid: int) -> float:
    """Of a process and its children, living and dead, user and system."""
    return sum(_own_cpu_seconds(each) for each in (pid, *children(pid)))


def peak_mb(pid: int) -> float:
    """The largest resident memory that a process ever had, in MiB; 0 for one that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text("utf-8")
    except OSError:
        return 0.0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return 0.0 if found is None else int(found[1]) / 1024


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


def _own_cpu_seconds(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8")
    except OSError:
        return 0.0
    fields = ("- " * 2 + text.rpartition(")")[2]).split()  # a command's name may hold spaces
    return sum(int(value) for value in fields[_UTIME:_CSTIME]) / _TICKS_PER_S
