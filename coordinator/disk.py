"""Does the disk take what is to come, and still hold what was written? Looked at beside the work.

What fails on a full disk fails where it is tried and is tried again there; this says it once, in
words, on the terminal and in /readyz, also while nothing else would write.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

from fedreid.audit import verify
from fedreid.errors import FedreidError, StorageError
from fedreid.files import free_bytes, write_bytes
from fedreid.limits import DISK_WATCH_S, MIB, SPOOL_KEPT_FREE_BYTES
from fedreid.work import off_loop

_PROBE = ".probe"


def check_disk(folder: Path) -> None:
    """Check that a folder's disk takes a write and has what must stay free.

    Raises:
        StorageError: it is full, read-only or fails.
    """
    write_bytes(folder / _PROBE, b"still there\n", mode=0o600)
    free = free_bytes(folder)
    if free < SPOOL_KEPT_FREE_BYTES:
        raise StorageError(
            f"The disk of {folder} has {free // MIB} MiB left",
            why=f"{SPOOL_KEPT_FREE_BYTES // MIB} MiB are kept for the journal and the audit log",
            next_step="Free some space; everything goes on by itself.",
        )


async def look_back(audit: Path, *, say: Callable[[str], None]) -> None:
    """Walk the audit log's whole chain once, beside the work: it may be long."""
    try:
        await off_loop(verify, audit)
    except FedreidError as error:
        say(str(error))


async def watch_disk(
    folder: Path, *, say: Callable[[str], None], tell: Callable[[str], None]
) -> None:
    """Look from time to time, for ever; ``tell`` is given the problem, or nothing if there is none.

    ``say`` hears of each problem once, and when it is over.
    """
    told = ""
    while True:
        problem = ""
        try:
            await off_loop(check_disk, folder)
        except FedreidError as error:
            problem = str(error)
        tell(problem)
        if problem != told:
            say(problem or f"the disk of {folder} takes writes again")
            told = problem
        await asyncio.sleep(DISK_WATCH_S)
