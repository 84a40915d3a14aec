"""What does a piece of work cost? Wall time, CPU time and memory of the process that does it.

On a machine that does other work as well, wall times of two loops compare badly and CPU times
compare well: a loop that waits for its turn spends none.
"""

import resource
import statistics
import time
from collections.abc import Callable, Sequence

from fedreid.jobs import Progress, Report

_MAXRSS_BYTES = 1024
"""Linux's unit of resident memory."""


class Spent(Report, frozen=True, kw_only=True):
    """What it took."""

    wall_s: float
    cpu_s: float
    """Of all threads, and of child processes that have ended."""
    peak_mb: float
    """Resident, since the process began."""


def spent_on(work: Callable[[], object]) -> Spent:
    """Do the work, and tell what it took."""
    began_s, before_s = time.perf_counter(), _cpu_s()
    work()
    return Spent(
        wall_s=time.perf_counter() - began_s,
        cpu_s=_cpu_s() - before_s,
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES / 1e6,
    )


def median_of(times: Sequence[Spent], what: str) -> float:
    """The median of one of its figures."""
    return float(statistics.median(getattr(one, what) for one in times))


def unheard(progress: Progress) -> None:
    """Take no notice of progress: what is timed tells none."""


def _cpu_s() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
