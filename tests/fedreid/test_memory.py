"""Is freed memory kept for the next step, and given back after the job?"""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's habit")

_MIB = 1024 * 1024
_BLOCK_MIB = 64
_CHILD = f"""
import resource, sys
import numpy as np
from fedreid import memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() // {_MIB}

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    blocks = [np.ones({_BLOCK_MIB * _MIB // 8}) for _ in range(2)]

if sys.argv[1] == "kept":
    memory.keep_freed()
step()
before = faults()
step()
again, held = faults() - before, resident()
memory.give_back()
print(again, held - resident())
"""


def measured(how: str) -> tuple[int, int]:
    """Page faults of a second step, and MiB that giving back has freed."""
    out = subprocess.run(
        [sys.executable, "-c", _CHILD, how],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"},  # or a fault brings 512 pages
    ).stdout
    faults, freed_mib = out.split()
    return int(faults), int(freed_mib)


def test_a_step_finds_the_memory_of_the_last_one() -> None:
    pages = 2 * _BLOCK_MIB * _MIB // 4096
    kept, _ = measured("kept")
    lost, _ = measured("as it was")
    assert kept < pages // 100
    assert lost > pages // 2


def test_what_was_kept_is_given_back_after_the_job() -> None:
    _, freed_mib = measured("kept")
    assert freed_mib >= 2 * _BLOCK_MIB - 8
