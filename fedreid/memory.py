"""How does a process that learns hold its memory? It keeps what it frees until the job is done.

A training step frees hundreds of megabytes of feature maps, and the next one asks for the same
again. The C library would hand them back to the kernel in between, which then has to clear every
page anew: a quarter to a third of a step's CPU time. So such a process keeps them, and gives them
back at the end of each job. (The programs that speak gRPC want the opposite: fedreid.launch.)
"""

import ctypes
import sys
from typing import Any

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = -1


def keep_freed() -> None:
    """From now on keep freed memory; nothing happens where the C library is not glibc."""
    library = _glibc()
    if library is not None:
        library.mallopt(_M_MMAP_MAX, 0)  # blocks mapped one by one are unmapped one by one
        library.mallopt(_M_TRIM_THRESHOLD, _NEVER)


def give_back() -> None:
    """Hand all freed memory back to the machine."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> Any:
    """The C library if it is glibc: others have no such functions, and no such habit."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
