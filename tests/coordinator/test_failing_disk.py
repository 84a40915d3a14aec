"""Is an update kept, counted once and written down, whatever the disk refuses meanwhile?

The whole coordinator serves on the loopback; the system calls that would fail are made to fail,
which needs no right to mount a disk.
"""

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import blake3
import google_crc32c
import grpc
import grpc.aio
import numpy as np
import pytest

from coordinator import disk
from coordinator.disk import watch_disk
from coordinator.rounds.journal import Journal
from fedreid.audit import AuditLog, read_audit
from fedreid.errors import StorageError, storage_errors
from fedreid.limits import CHUNK_BYTES
from fedreid.names import Digest
from fedreid.v1 import federation_pb2 as pb
from fedreid.v1 import federation_pb2_grpc, tensors_pb2
from fedreid.wire import stream
from fedreid.wire.manifest import Manifest
from fedreid.wire.tensors import Layout, TensorSpec
from tests.coordinator.trust.assembled import Assembled, lived
from tests.coordinator.trust.planted import plant

ELEMENTS = CHUNK_BYTES
"""Four chunks."""
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


class Collecting(Assembled):
    """A coordinator with a run under way that wants two silos."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.layout = Layout.of([TensorSpec("w", (ELEMENTS,))])
        tensors = {"w": np.ones(ELEMENTS, dtype=np.float32)}
        self.digest = plant(self.folders, tensors, "min_silos = 2\ndeadline_s = 600.0")
        self.payload = np.full(ELEMENTS, 1.5, dtype=np.float32).tobytes()

    @asynccontextmanager
    async def silo(self) -> AsyncIterator[Any]:
        """The calls of one of two silos, when their round has begun."""
        async with AsyncExitStack() as stack:
            stubs = []
            for name in ("north", "south"):
                channel = await stack.enter_async_context(self.channel(await self.enrolled(name)))
                stubs.append(federation_pb2_grpc.FederationStub(channel))
                await stubs[-1].Hello(pb.HelloRequest(agent_version="1"))
            answer = await stubs[0].NextTask(pb.NextTaskRequest(wait_s=20.0))
            assert answer.HasField("train")
            yield stubs[0]

    async def open(self, stub: Any) -> pb.OpenUploadResponse:
        manifest = Manifest(
            layout=self.layout,
            encoding="fp32",
            byte_count=self.layout.size_bytes,
            payload_digest=Digest(blake3.blake3(self.payload).hexdigest()),
        )
        request = pb.OpenUploadRequest(
            run="spring",
            round=1,
            base_digest=self.digest,
            manifest=manifest.to_wire(),
            report=pb.UpdateReport(num_images=1, cosine_distance=0.5, train_loss=1.0, num_steps=4),
        )
        answer: pb.OpenUploadResponse = await stub.OpenUpload(request)
        return answer

    async def send(self, stub: Any, opening: pb.OpenUploadResponse) -> pb.SendUploadResponse:
        async def messages() -> AsyncIterator[pb.SendUploadRequest]:
            yield pb.SendUploadRequest(upload_id=opening.upload_id)
            for offset in range(opening.offset, len(self.payload), CHUNK_BYTES):
                data = self.payload[offset : offset + CHUNK_BYTES]
                crc = google_crc32c.value(data)
                chunk = tensors_pb2.Chunk(offset=offset, data=data, crc32c=crc)
                yield pb.SendUploadRequest(chunk=chunk)

        answer: pb.SendUploadResponse = await stub.SendUpload(messages())
        return answer

    async def refused(self, stub: Any, opening: pb.OpenUploadResponse) -> str:
        """What the coordinator says of an upload that it can't take now."""
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await self.send(stub, opening)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        return str(refused.value.details())

    def accepted_in_audit(self) -> list[str]:
        lines = read_audit(self.folders.audit)
        return [str(line.fields["silo"]) for line in lines if line.event == "update.accepted"]


@pytest.fixture
def coordinator(tmp_path: Path) -> Collecting:
    """A coordinator whose round wants updates."""
    return Collecting(tmp_path / "coordinator")


@pytest.mark.parametrize(("code", "reason"), zip(CODES, REASONS, strict=True), ids=REASONS)
def test_an_upload_that_the_disk_refuses_goes_on_where_it_stood(
    coordinator: Collecting, monkeypatch: pytest.MonkeyPatch, code: int, reason: str
) -> None:
    disk_call = FailingDisk(code, os.pwrite)
    written: list[int] = []

    def pwrite(descriptor: int, data: bytes, position: int) -> int:
        disk_call.failing = disk_call.failing or (position > 2 * CHUNK_BYTES and not written[2:])
        count = disk_call(descriptor, data[: len(data) // 2 + 1], position)
        written.append(position)
        return int(count)

    monkeypatch.setattr(stream.os, "pwrite", pwrite)

    async def story(_: Assembled) -> None:
        async with coordinator.silo() as stub:
            opening = await coordinator.open(stub)
            written.clear()
            disk_call.failing = True
            assert reason in await coordinator.refused(stub, opening)
            disk_call.failing = False
            written.extend([0, 0, 0])
            opening = await coordinator.open(stub)
            assert (await coordinator.send(stub, opening)).state == pb.UPLOAD_STATE_ACCEPTED
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
    usage = disk.shutil.disk_usage(tmp_path)._replace(free=1)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match="0 MiB left"):
        disk.check_disk(tmp_path)
