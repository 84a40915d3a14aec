"""Is an update kept, counted once and written down, whatever the disk refuses meanwhile?

The whole coordinator serves on the loopback; the system calls that would fail are made to fail,
which needs no right to mount a disk.
"""

import asyncio
import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from coordinator import disk
from coordinator.disk import watch_disk
from coordinator.rounds.journal import Journal
from fedreid.audit import AuditLog
from fedreid.errors import StorageError, storage_errors
from fedreid.limits import MIB
from fedreid.v1 import federation_pb2 as pb
from tests.coordinator.collecting import Collecting
from tests.coordinator.trust.assembled import Assembled, lived

CODES = [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT]
REASONS = ["disk is full", "read-only", "I/O error", "quota is used up"]


class FailingDisk:
    """A system call that fails while it is told to."""

    def __init__(self, code: int, real: Any) -> None:
        self.code = code
        self.failing = False
        self._real = real

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if self.failing:
            raise OSError(self.code, os.strerror(self.code))
        return self._real(*arguments, **named)


@pytest.fixture
def coordinator(tmp_path: Path) -> Collecting:
    """A coordinator whose round wants updates."""
    return Collecting(tmp_path / "coordinator")


@pytest.mark.parametrize(("code", "reason"), zip(CODES, REASONS, strict=True), ids=REASONS)
def test_an_upload_that_the_disk_refuses_goes_on_where_it_stood(
    coordinator: Collecting, monkeypatch: pytest.MonkeyPatch, code: int, reason: str
) -> None:
    write = FailingDisk(code, os.pwrite)
    positions: list[int] = []

    def pwrite(descriptor: int, data: bytes, position: int) -> int:
        """Take half of what is given, as a disk does that is about to be full."""
        write.failing = position > 2 * MIB and reason not in seen
        count: int = write(descriptor, data[: len(data) // 2 + 1], position)
        positions.append(position)
        return count

    seen: list[str] = []
    monkeypatch.setattr(os, "pwrite", pwrite)

    async def story(_: Assembled) -> None:
        async with coordinator.silo() as stub:
            opening = await coordinator.open(stub)
            assert opening.offset == 0
            assert reason in await coordinator.refused(stub, opening)
            seen.append(reason)
            positions.clear()
            opening = await coordinator.open(stub)
            assert opening.offset > MIB
            assert (await coordinator.send(stub, opening)).state == pb.UPLOAD_STATE_ACCEPTED
            assert min(positions) > MIB
        assert coordinator.accepted_in_audit() == ["north"]

    lived(coordinator, story)


def test_an_update_that_the_journal_does_not_take_is_taken_when_it_comes_again(
    coordinator: Collecting, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = FailingDisk(errno.ENOSPC, Journal.save_round)

    def save_round(journal: Journal, *arguments: Any) -> None:
        with storage_errors("write", coordinator.folders.journal):
            save(journal, *arguments)

    monkeypatch.setattr(Journal, "save_round", save_round)

    async def story(_: Assembled) -> None:
        async with coordinator.silo() as stub:
            save.failing = True
            opening = await coordinator.open(stub)
            assert "disk is full" in await coordinator.refused(stub, opening)
            save.failing = False
            opening = await coordinator.open(stub)
            assert opening.state == pb.UPLOAD_STATE_SEND
            assert (await coordinator.send(stub, opening)).state == pb.UPLOAD_STATE_ACCEPTED
        assert coordinator.accepted_in_audit() == ["north"]

    lived(coordinator, story)


def test_an_update_that_counts_but_could_not_be_written_down_is_written_down_later(
    coordinator: Collecting, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = FailingDisk(errno.ENOSPC, AuditLog._write)

    def _write(log: AuditLog, *arguments: Any) -> Any:
        return write(log, *arguments)

    monkeypatch.setattr(AuditLog, "_write", _write)

    async def story(_: Assembled) -> None:
        async with coordinator.silo() as stub:
            write.failing = True
            opening = await coordinator.open(stub)
            assert "disk is full" in await coordinator.refused(stub, opening)
            assert (await coordinator.open(stub)).state == pb.UPLOAD_STATE_ACCEPTED
            assert coordinator.accepted_in_audit() == []
            write.failing = False
            while not coordinator.accepted_in_audit():
                await asyncio.sleep(0)  # until the conductor has tried again
        assert coordinator.accepted_in_audit() == ["north"]

    lived(coordinator, story)


def test_a_problem_of_the_disk_is_said_once_and_told_until_it_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = FailingDisk(errno.EROFS, os.fsync)
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(disk, "DISK_WATCH_S", 0.0)
    said: list[str] = []
    problems: asyncio.Queue[str] = asyncio.Queue()

    async def story() -> None:
        watching = asyncio.create_task(
            watch_disk(tmp_path, say=said.append, tell=problems.put_nowait)
        )
        assert await problems.get() == ""
        sync.failing = True
        while not (problem := await problems.get()):
            pass
        assert "read-only. Remount it writable" in problem
        assert await problems.get() == problem
        sync.failing = False
        while await problems.get():
            pass
        watching.cancel()

    asyncio.run(story())
    assert len(said) == 2
    assert "read-only" in said[0] and "takes writes again" in said[1]


def test_a_disk_with_too_little_left_is_a_problem_before_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match="0 MiB left"):
        disk.check_disk(tmp_path)
