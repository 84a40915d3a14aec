"""What can one enrolled silo, or whoever stole its key, do to the others? It should be nothing.

The whole coordinator serves on the loopback; its journal begins with a run whose start weights
are in place, so that no worker process is needed.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import blake3
import google_crc32c
import grpc
import grpc.aio
import numpy as np
import pytest

from coordinator.rounds.journal import Journal
from fedreid.console import print_table
from fedreid.limits import CONCURRENT_TRANSFERS, SPOOL_KEPT_FREE_BYTES
from fedreid.names import Digest
from fedreid.v1 import federation_pb2 as pb
from fedreid.v1 import federation_pb2_grpc, tensors_pb2
from fedreid.wire.manifest import Manifest
from fedreid.wire.tensors import Layout, TensorSpec
from tests.coordinator.trust.assembled import Assembled, lived
from tests.coordinator.trust.callers import CALL_S
from tests.coordinator.trust.planted import plant

PATIENCE_S = 4.0
SILOS = CONCURRENT_TRANSFERS + 1
ELEMENTS = 6 * 1024 * 1024
"""24 MB: more than any window of HTTP/2 takes in unread."""


class Victim(Assembled):
    """A coordinator with a run under way."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        tensors = {"w": np.ones(ELEMENTS, dtype=np.float32)}
        self.layout = Layout.of([TensorSpec("w", (ELEMENTS,))])
        self.digest = plant(self.folders, tensors, f"min_silos = {SILOS}")

    @asynccontextmanager
    async def silo(self, name: str) -> AsyncIterator[Any]:
        """The calls of a silo that has just come."""
        async with self.channel(await self.enrolled(name)) as channel:
            stub = federation_pb2_grpc.FederationStub(channel)
            await stub.Hello(pb.HelloRequest(agent_version="1"))
            yield stub

    @asynccontextmanager
    async def round(self) -> AsyncIterator[list[Any]]:
        """As many silos as a round needs, when it has begun."""
        async with AsyncExitStack() as stack:
            stubs = [await stack.enter_async_context(self.silo(f"silo-{n}")) for n in range(SILOS)]
            answer = await stubs[0].NextTask(pb.NextTaskRequest(wait_s=CALL_S))
            assert answer.HasField("train")
            yield stubs

    def announcement(self, payload: bytes) -> pb.OpenUploadRequest:
        """An update with this payload."""
        digest = Digest(blake3.blake3(payload).hexdigest())
        manifest = Manifest(
            layout=self.layout,
            encoding="fp32",
            byte_count=self.layout.size_bytes,
            payload_digest=digest,
        )
        return pb.OpenUploadRequest(
            run="spring",
            round=1,
            base_digest=self.digest,
            manifest=manifest.to_wire(),
            report=pb.UpdateReport(num_images=1, cosine_distance=0.5, train_loss=1.0, num_steps=4),
        )


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Victim]:
    """A coordinator with a run under way."""
    yield Victim(tmp_path / "coordinator")


def chunk(data: bytes) -> tensors_pb2.Chunk:
    return tensors_pb2.Chunk(offset=0, data=data, crc32c=google_crc32c.value(data))


def test_a_silo_that_reads_nothing_of_its_downloads_keeps_nobody_from_theirs(
    coordinator: Victim,
) -> None:
    async def story(_: Assembled) -> None:
        request = pb.FetchModelRequest(
            model_digest=coordinator.digest, encoding=tensors_pb2.ENCODING_FP32
        )
        async with coordinator.silo("idle") as idle, coordinator.silo("good") as good:
            unread = [idle.FetchModel(request) for _ in range(CONCURRENT_TRANSFERS)]
            for call in unread:
                await call.read()
            async with asyncio.timeout(PATIENCE_S):
                received = [len(part.chunk.data) async for part in good.FetchModel(request)]
            assert sum(received) == coordinator.layout.size_bytes
            for call in unread:
                call.cancel()

    lived(coordinator, story)


def test_uploads_that_say_nothing_keep_nobody_from_theirs(coordinator: Victim) -> None:
    payload = np.full(ELEMENTS, 1.5, dtype=np.float32).tobytes()

    async def story(_: Assembled) -> None:
        async with coordinator.round() as (*idle, good):
            silent = []
            for stub in idle:
                opening = await stub.OpenUpload(coordinator.announcement(payload))
                upload = stub.SendUpload()
                await upload.write(
                    pb.SendUploadRequest(upload_id=opening.upload_id, chunk=chunk(payload[:9]))
                )
                silent.append(upload)
            while len(list(coordinator.folders.spool("spring", 1).iterdir())) < len(silent):
                await asyncio.sleep(0)  # until each of them is being received
            opening = await good.OpenUpload(coordinator.announcement(payload))
            upload = good.SendUpload()
            await upload.write(
                pb.SendUploadRequest(upload_id=opening.upload_id, chunk=chunk(payload[:9]))
            )
            await upload.done_writing()
            async with asyncio.timeout(PATIENCE_S):  # truncated: an answer is all that is wanted
                assert await upload.code() is grpc.StatusCode.INVALID_ARGUMENT
            for call in silent:
                call.cancel()

    lived(coordinator, story)


def test_a_silo_that_announces_ever_new_updates_fills_the_spool_with_one_alone(
    coordinator: Victim,
) -> None:
    async def story(_: Assembled) -> None:
        async with coordinator.round() as (stub, *_others):
            for attempt in range(5):
                payload = b"%d" % attempt * 100
                opening = await stub.OpenUpload(coordinator.announcement(payload))
                upload = stub.SendUpload()
                await upload.write(
                    pb.SendUploadRequest(upload_id=opening.upload_id, chunk=chunk(payload))
                )
                await upload.done_writing()
                assert await upload.code() is grpc.StatusCode.INVALID_ARGUMENT  # truncated
            assert len(list(coordinator.folders.spool("spring", 1).iterdir())) <= 1

    lived(coordinator, story)


def test_a_silo_sends_one_update_at_a_time(coordinator: Victim) -> None:
    payload = np.full(ELEMENTS, 1.5, dtype=np.float32).tobytes()

    async def story(_: Assembled) -> None:
        async with coordinator.round() as (stub, *_others):
            opening = await stub.OpenUpload(coordinator.announcement(payload))
            message = pb.SendUploadRequest(upload_id=opening.upload_id, chunk=chunk(payload[:9]))
            first = stub.SendUpload()
            await first.write(message)
            while not list(coordinator.folders.spool("spring", 1).iterdir()):
                await asyncio.sleep(0)  # until it is being received
            second = stub.SendUpload()
            await second.write(message)
            assert await second.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "under way" in await second.details()
            assert not first.done()
            first.cancel()

    lived(coordinator, story)


def test_an_update_is_sent_only_where_the_disk_has_room_for_it(
    coordinator: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = np.full(ELEMENTS, 1.5, dtype=np.float32).tobytes()
    room_for_one = SPOOL_KEPT_FREE_BYTES + len(payload)
    usage = shutil.disk_usage(coordinator.folders.root)._replace(free=room_for_one)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    async def story(_: Assembled) -> None:
        async with coordinator.round() as (first, second, *_others):
            opening = await first.OpenUpload(coordinator.announcement(payload))
            with pytest.raises(grpc.aio.AioRpcError) as refused:  # the room is promised already
                await second.OpenUpload(coordinator.announcement(payload))
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "disk is full" in str(refused.value.details())
            unopened = second.SendUpload()
            await unopened.write(
                pb.SendUploadRequest(upload_id=opening.upload_id, chunk=chunk(payload[:9]))
            )
            assert await unopened.code() is grpc.StatusCode.FAILED_PRECONDITION
            again = await first.OpenUpload(coordinator.announcement(payload))
            assert again.upload_id == opening.upload_id

    lived(coordinator, story)


@pytest.mark.parametrize(
    ("run", "number"),
    [("x" * 3_000_000, 1), ("made-up", 1), ("spring", 10**6), ("spring", 2**64 - 1)],
    ids=["huge name", "unknown run", "round to come", "round beyond integers"],
)
def test_figures_of_a_run_or_round_that_there_is_not_are_refused_and_not_stored(
    coordinator: Victim, run: str, number: int
) -> None:
    async def story(_: Assembled) -> None:
        report = pb.ReportEvaluationRequest(
            run=run, round=number, evaluations=[pb.Evaluation(model=pb.MODEL_KIND_GLOBAL)]
        )
        async with coordinator.silo("chatty") as stub:
            status = await stub.ReportEvaluation(report).code()
        assert status in {
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.FAILED_PRECONDITION,
            grpc.StatusCode.OK,  # taken notice of, and dropped
        }

    lived(coordinator, story)
    journal = Journal(coordinator.folders.journal)
    assert journal.evaluations(run) == []
    journal.close()


def test_what_a_silo_calls_itself_can_neither_break_nor_colour_the_operators_screen(
    coordinator: Victim, capsys: pytest.CaptureFixture[str]
) -> None:
    names: list[str] = []

    async def story(_: Assembled) -> None:
        async with coordinator.channel(await coordinator.enrolled("loud")) as channel:
            stub = federation_pb2_grpc.FederationStub(channel)
            await stub.Hello(pb.HelloRequest(agent_version="[/x]\x1b]0;owned\x07\x1b[31m"))
            names.extend(row.agent_version for row in await coordinator.silos())

    lived(coordinator, story)
    print_table("Silos", ("agent",), [names])
    assert "\x1b]" not in capsys.readouterr().out
