"""From the moment that a revocation is answered: is nothing of that silo taken any more?

Silos upload, download, poll and call without a pause while one after the other is revoked. What
was taken is read from the server's side, where it is admitted, written and counted.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import grpc
import grpc.aio
import numpy as np
import pytest

from coordinator.rounds.intake import Intake
from coordinator.rounds.journal import Journal
from coordinator.trust.access import Access
from fedreid.limits import CHUNK_BYTES
from fedreid.pki.certificates import Holder
from fedreid.v1 import admin_pb2, admin_pb2_grpc, federation_pb2_grpc, tensors_pb2
from fedreid.v1 import federation_pb2 as pb
from fedreid.wire.stream import PartialFile
from tests.coordinator.trust.assembled import Assembled, lived
from tests.coordinator.trust.callers import CALL_S
from tests.coordinator.trust.test_abuse import ELEMENTS, Victim

DENIED = grpc.StatusCode.PERMISSION_DENIED
DENIALS_WANTED = 50
PAYLOAD = np.full(ELEMENTS, 1.5, dtype=np.float32).tobytes()


@dataclass
class Records:
    """What the server took, in order: kind and silo."""

    taken: list[tuple[str, str]] = field(default_factory=list)

    def after(self, place: int, silo: str) -> list[tuple[str, str]]:
        """What was taken of a silo since there were ``place`` records."""
        return [record for record in self.taken[place:] if record[1] == silo]


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> Records:
    """Records of everything that the coordinator takes from now on."""
    records = Records()
    admit, write, count = Access._admit, PartialFile.write, Intake._count

    def admitting(access: Access, holder: Holder, service: str) -> None:
        admit(access, holder, service)
        records.taken.append(("message", holder.principal.name))

    def writing(file: PartialFile, chunk: tensors_pb2.Chunk) -> None:
        write(file, chunk)
        records.taken.append(("chunk", file.path.name.rpartition("-")[0]))

    async def counting(intake: Intake, announcement: Any, incoming: Any) -> Any:
        standing = await count(intake, announcement, incoming)
        records.taken.append(("update", announcement.silo))
        return standing

    monkeypatch.setattr(Access, "_admit", admitting)
    monkeypatch.setattr(PartialFile, "write", writing)
    monkeypatch.setattr(Intake, "_count", counting)
    return records


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Victim]:
    """A coordinator with a run under way."""
    yield Victim(tmp_path / "coordinator")


class Busy:
    """A silo that does everything at once, again and again, until it is stopped."""

    def __init__(self, coordinator: Victim, stub: Any) -> None:
        self._coordinator = coordinator
        self._stub = stub
        self.statuses: list[grpc.StatusCode] = []
        self._tasks = [
            asyncio.create_task(self._again(what))
            for what in (self._upload, self._download, self._poll, self._hello)
        ]

    async def denied(self) -> None:
        """Wait until it was refused many times in a row."""
        while self.statuses[-DENIALS_WANTED:] != [DENIED] * DENIALS_WANTED:
            await asyncio.sleep(0)

    async def stop(self) -> None:
        """End it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _again(self, what: Any) -> None:
        while True:
            try:
                await what()
            except grpc.aio.AioRpcError as error:
                self.statuses.append(error.code())
            await asyncio.sleep(0)

    async def _hello(self) -> None:
        await self._stub.Hello(pb.HelloRequest())

    async def _poll(self) -> None:
        await self._stub.NextTask(pb.NextTaskRequest(wait_s=20))

    async def _download(self) -> None:
        request = pb.FetchModelRequest(
            model_digest=self._coordinator.digest, encoding=tensors_pb2.ENCODING_FP32
        )
        async for _ in self._stub.FetchModel(request):
            pass

    async def _upload(self) -> None:
        opening = await self._stub.OpenUpload(self._coordinator.announcement(PAYLOAD))
        await self._stub.SendUpload(self._endless(opening))

    async def _endless(self, opening: pb.OpenUploadResponse) -> AsyncIterator[pb.SendUploadRequest]:
        """All chunks but the last, and then silence, so that the upload stays under way."""
        yield pb.SendUploadRequest(upload_id=opening.upload_id)
        for offset in range(opening.offset, len(PAYLOAD) - CHUNK_BYTES, CHUNK_BYTES):
            data = PAYLOAD[offset : offset + CHUNK_BYTES]
            yield pb.SendUploadRequest(
                chunk=tensors_pb2.Chunk(offset=offset, data=data, crc32c=google_crc32c.value(data))
            )
        await asyncio.Event().wait()


def test_nothing_is_taken_of_a_silo_after_its_revocation_was_answered(
    coordinator: Victim, records: Records
) -> None:
    async def story(_: Assembled) -> None:
        async with coordinator.round() as stubs:
            busy = {f"silo-{n}": Busy(coordinator, stub) for n, stub in enumerate(stubs)}
            places = {}
            for silo, one in busy.items():
                while ("chunk", silo) not in records.taken:
                    await asyncio.sleep(0)
                await coordinator.revoke(silo)
                places[silo] = len(records.taken)
                await one.denied()
            for silo, place in places.items():
                assert records.after(place, silo) == []
            for one in busy.values():
                await one.stop()

    lived(coordinator, story)


async def whole(stub: Any, coordinator: Victim) -> Any:
    """Send a whole update; the call."""
    opening = await stub.OpenUpload(coordinator.announcement(PAYLOAD))
    call = stub.SendUpload()
    await call.write(pb.SendUploadRequest(upload_id=opening.upload_id))
    for offset in range(0, len(PAYLOAD), CHUNK_BYTES):
        data = PAYLOAD[offset : offset + CHUNK_BYTES]
        chunk = tensors_pb2.Chunk(offset=offset, data=data, crc32c=google_crc32c.value(data))
        await call.write(pb.SendUploadRequest(chunk=chunk))
    await call.done_writing()
    return call


async def participants(coordinator: Assembled) -> list[str]:
    """Whose updates count in the current round."""
    async with coordinator.channel(coordinator.admin) as channel:
        run = await admin_pb2_grpc.AdminStub(channel).GetRun(admin_pb2.GetRunRequest())
    return [part.silo for part in run.round.participants]


def test_an_update_that_was_accepted_counts_no_more_after_revocation(coordinator: Victim) -> None:
    async def story(_: Assembled) -> None:
        async with coordinator.round() as (first, second, *_others):
            for stub in (first, second):
                assert await (await whole(stub, coordinator)).code() is grpc.StatusCode.OK
            assert await participants(coordinator) == ["silo-0", "silo-1"]
            await coordinator.revoke("silo-0")
            assert await participants(coordinator) == ["silo-1"]

    lived(coordinator, story)


@pytest.mark.parametrize("moment", ["validating", "journalling"])
def test_an_update_that_is_being_accepted_does_not_count_when_revocation_is_answered(
    coordinator: Victim, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    begun, go = threading.Event(), threading.Event()

    def held(work: Any) -> Any:
        def wait(*args: Any, **kwargs: Any) -> Any:
            if not begun.is_set():
                begun.set()
                assert go.wait(CALL_S)
            return work(*args, **kwargs)

        return wait

    async def story(_: Assembled) -> None:
        async with coordinator.round() as (first, *_others):
            if moment == "validating":
                monkeypatch.setattr(Intake, "_admit", held(Intake._admit))
            else:
                monkeypatch.setattr(Journal, "save_round", held(Journal.save_round))
            call = await whole(first, coordinator)
            await asyncio.to_thread(begun.wait, CALL_S)
            revoking = asyncio.create_task(coordinator.revoke("silo-0"))
            while not any(row.state == "revoked" for row in await coordinator.silos()):
                await asyncio.sleep(0)
            assert not revoking.done()  # it waits for the end of what was begun
            go.set()
            await revoking
            assert await participants(coordinator) == []
            assert await call.code() is DENIED
            journal = Journal(coordinator.folders.journal)
            state = journal.newest_round("spring")
            assert state is not None and "silo-0" not in state.invited and not state.updates
            journal.close()

    lived(coordinator, story)


def test_a_download_that_nobody_reads_does_not_hold_a_revocation_up(
    coordinator: Victim, records: Records
) -> None:
    async def story(_: Assembled) -> None:
        identity = await coordinator.enrolled("north")
        async with coordinator.channel(identity) as channel:
            stub = federation_pb2_grpc.FederationStub(channel)
            call: Any = stub.FetchModel(
                pb.FetchModelRequest(
                    model_digest=coordinator.digest, encoding=tensors_pb2.ENCODING_FP32
                )
            )
            await call.read()
            place = await until_nothing_moves(records)
            await coordinator.revoke("north")
            with pytest.raises(grpc.aio.AioRpcError):
                while True:
                    await call.read()
            assert records.after(place, "north") == []
            assert await call.code() is DENIED

    lived(coordinator, story)


async def until_nothing_moves(records: Records) -> int:
    """Wait until the window of a download is full; the number of records then."""
    count = 0
    while len(records.taken) > count:
        count = len(records.taken)
        await asyncio.to_thread(threading.Event().wait, 0.2)
    return count


def test_two_revocations_at_once_both_take_effect(coordinator: Victim) -> None:
    async def story(_: Assembled) -> None:
        async with coordinator.round():
            await asyncio.gather(coordinator.revoke("silo-0"), coordinator.revoke("silo-1"))
            states = {row.name: row.state for row in await coordinator.silos()}
            assert states["silo-0"] == states["silo-1"] == "revoked"

    lived(coordinator, story)
