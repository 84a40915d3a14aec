"""Does a federation that runs for long stay as small as it was? Memory, files, log and disk."""

import os
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from benchmark.federation import LocalFederation, Program
from coordinator.folders import Folders
from fedreid.v1 import admin_pb2
from tests.federation.conftest import Founding, write_plan

_Number = TypeVar("_Number", int, float)
_MIB = 2**20
_ROUND_S = 10.0
"""Of a round, with some patience."""
_SAMPLES = 20
_GROWTH = 1.05
"""Of any process's memory, and of what lies on disk, from the first half to the second."""
_SLACK_FILES = 2
"""A connection that is renewed and a file that is written may fall on the same instant."""
_WAL_MIB = 5.0
"""SQLite folds its log into the journal at 1,000 pages of 4 KiB."""
_JOURNAL_BYTES = 8192
"""A round of three silos: its own row, its model's, and their indices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The most that the federation took since the sample before this one."""

    rounds: int
    resident_mib: dict[str, float]
    open_files: dict[str, int]
    wal_mib: float
    journal_bytes: int
    audit_bytes: int
    other_bytes: int
    """Everything else that lies in the data folders."""

    def and_then(self, later: "Sample") -> "Sample":
        """The most of both."""
        return Sample(
            rounds=later.rounds,
            resident_mib=_most(self.resident_mib, later.resident_mib),
            open_files=_most(self.open_files, later.open_files),
            wal_mib=max(self.wal_mib, later.wal_mib),
            journal_bytes=later.journal_bytes,
            audit_bytes=later.audit_bytes,
            other_bytes=max(self.other_bytes, later.other_bytes),
        )

    def __str__(self) -> str:
        memory = ", ".join(f"{name} {mib:.1f}" for name, mib in self.resident_mib.items())
        files = ", ".join(f"{name} {count}" for name, count in self.open_files.items())
        return (
            f"round {self.rounds}: MiB: {memory}; files: {files}; WAL {self.wal_mib:.2f} MiB, "
            f"journal {self.journal_bytes / 1e3:.0f} kB, audit {self.audit_bytes / 1e3:.0f} kB, "
            f"other {self.other_bytes / 1e6:.2f} MB"
        )


def _most(one: dict[str, _Number], other: dict[str, _Number]) -> dict[str, _Number]:
    names = {**one, **other}
    return {name: max(one.get(name, names[name]), other.get(name, names[name])) for name in names}


def sampled(local: LocalFederation, rounds: int) -> Sample:
    """Look at every process and file."""
    programs = {"coordinator": local.coordinator, **local.agents}
    every = {name: process for each in programs.items() for name, process in family(*each).items()}
    journal = Folders(local.data).journal
    wal = journal.with_name(f"{journal.name}-wal")
    walk = os.walk(local.root)  # which a folder that goes meanwhile does not stop
    paths = [Path(folder) / name for folder, _, names in walk for name in names]
    files = {path: size_of(path) for path in paths if path.suffix != ".log"}
    audit = sum(size for path, size in files.items() if path.parent.name == "audit")
    kept = sum(size for path, size in files.items() if path.name.startswith(journal.name))
    return Sample(
        rounds=rounds,
        resident_mib={name: p.memory_info().rss / _MIB for name, p in every.items()},
        open_files={name: p.num_fds() for name, p in every.items()},
        wal_mib=size_of(wal) / _MIB,
        journal_bytes=size_of(journal),
        audit_bytes=audit,
        other_bytes=sum(files.values()) - audit - kept,
    )


def family(name: str, program: Program) -> dict[str, psutil.Process]:
    """A program's process and its worker's."""
    parent = psutil.Process(program.pid)
    return {name: parent, **{f"{name}'s worker": child for child in parent.children()}}


def size_of(path: Path) -> int:
    """Of a file; of one that has just gone, none."""
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def soak(found: Founding, tmp_path: Path, rounds: int) -> list[Sample]:
    """Run so many rounds; what it took on the way."""
    local = found(silos=3)
    plan = write_plan(
        tmp_path / "plan.toml",
        rounds=rounds + 1,  # so that the last sample is of a federation at work
        backbone={"name": "shufflenet_v2_x0_5", "height_px": 32, "width_px": 16},
        quorum={"min_silos": 3, "deadline_s": 120.0, "phase_deadline_s": 60.0},
    )
    for silo in local.silos:
        local.join_without_training(silo)
    local.start_run(plan)
    samples: list[Sample] = []
    since: list[Sample] = []

    def look(_: object, run: admin_pb2.GetRunResponse) -> None:
        since.append(sampled(local, run.rounds_published))
        if run.rounds_published >= rounds * (len(samples) + 1) // _SAMPLES:
            samples.append(reduce(Sample.and_then, since))
            since.clear()
            print(samples[-1], flush=True)

    local.wait_until(
        lambda run: run.rounds_published >= rounds, timeout_s=rounds * _ROUND_S, tell=look
    )
    return samples


def check_flat(samples: list[Sample]) -> None:
    """The second half took no more than the first; the two logs grow by what a round is."""
    middle = len(samples) // 2
    first, second = (reduce(Sample.and_then, half) for half in (samples[:middle], samples[middle:]))
    journal, audit = second.journal_bytes / second.rounds, second.audit_bytes / second.rounds
    print(f"a round adds {journal:.0f} bytes to the journal and {audit:.0f} to all audit logs")
    print(f"first half:  {first}\nsecond half: {second}")
    assert second.resident_mib.keys() == first.resident_mib.keys()
    for name, mib in second.resident_mib.items():
        assert mib < _GROWTH * first.resident_mib[name], name
    for name, count in second.open_files.items():
        assert count <= first.open_files[name] + _SLACK_FILES, name
    assert second.wal_mib < _WAL_MIB
    assert journal < _JOURNAL_BYTES
    assert second.other_bytes < _GROWTH * first.other_bytes


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_rounds_leave_nothing_behind(found: Founding, tmp_path: Path) -> None:
    check_flat(soak(found, tmp_path, 100))


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_a_thousand_rounds_leave_nothing_behind(found: Founding, tmp_path: Path) -> None:
    check_flat(soak(found, tmp_path, 1000))
