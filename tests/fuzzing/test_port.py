"""What does the running coordinator do with tampered uploads and calls of an enrolled silo?

It refuses each with a reason, counts none, grows by nothing, and goes on to serve the others. The
update that is tampered with holds a NaN in its last tensor: whatever is done to it on its way, if
ever it counted, a bad update would have been let in.
"""

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import blake3
import google_crc32c
import grpc
import grpc.aio
import numpy as np
import pytest

from fedreid.errors import Refusal
from fedreid.names import Digest
from fedreid.pki.identity import Identity
from fedreid.v1 import admin_pb2, admin_pb2_grpc, federation_pb2_grpc, tensors_pb2
from fedreid.v1 import federation_pb2 as pb
from fedreid.wire.failures import _KINDS
from fedreid.wire.manifest import Manifest
from tests.coordinator.trust import raw
from tests.coordinator.trust.callers import CALL_S
from tests.coordinator.trust.planted import RUN, plant
from tests.coordinator.trust.real_process import RealProcess
from tests.fuzzing.mutations import Mutator
from tests.fuzzing.parsers import LAYOUT, PAYLOAD, TENSORS

QUORUM = "min_silos = 1\ndeadline_s = 3600.0"
CHUNK = 200
POISONED = PAYLOAD[:-4] + np.float32("nan").tobytes()
MEMORY_MB = 64
OWN_STATUSES = {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNIMPLEMENTED}
"""What gRPC answers before anybody of ours is asked."""
_SENT_TOO_LATE = "execute_batch"
"""Of gRPC's client, where a call was answered while it was sending: it tells no answer then."""
SERVICE = "/fedreid.v1.Federation/"
ENCODINGS = [tensors_pb2.ENCODING_FP32, tensors_pb2.ENCODING_BF16]


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[RealProcess]:
    """A coordinator's data folder, ready to serve."""
    yield RealProcess(tmp_path / "coordinator")


class Tamperer:
    """An enrolled silo that sends what its seed tells it to."""

    def __init__(self, channel: grpc.aio.Channel, digest: Digest, seed: int) -> None:
        self._channel: Any = channel
        self._digest = digest
        self._mutator = Mutator(seed)
        self.outcomes: Counter[str] = Counter()

    async def tamper(self, count: int) -> None:
        """Send so many tampered uploads and calls."""
        ways: tuple[Callable[[], Awaitable[Any]], ...] = (
            self._announcement, self._chunks, self._chunks, self._order, self._call,
        )  # fmt: skip
        for _ in range(count):
            await self._note(self._mutator.random.choice(ways)())

    async def _note(self, call: Awaitable[Any]) -> None:
        """Wait for what is answered; a refusal must say why."""
        try:
            await call
            self.outcomes["answered"] += 1
        except grpc.aio.AioRpcError as refused:
            told = {str(key): str(value) for key, value in refused.trailing_metadata() or ()}
            code = told.get("fedreid-code", "")
            if _SENT_TOO_LATE in (refused.debug_error_string() or ""):
                self.outcomes["ended first"] += 1
                return
            if refused.code() not in OWN_STATUSES:
                assert code in _KINDS, refused
            reason = told.get("fedreid-reason", "")
            if code == "update_refused":
                assert Refusal(reason)
            self.outcomes[f"{code} {reason}".strip() or refused.code().name] += 1

    def announced(self) -> pb.OpenUploadRequest:
        """The poisoned update, honestly announced."""
        return announcement(self._digest, POISONED)

    async def _announcement(self) -> None:
        data = self._mutator.message_of([self.announced()])
        await self._channel.unary_unary(SERVICE + "OpenUpload")(data, timeout=CALL_S)

    async def _opened(self) -> list[bytes]:
        """The messages of a whole upload that was opened."""
        stub = federation_pb2_grpc.FederationStub(self._channel)
        opening = await stub.OpenUpload(self.announced(), timeout=CALL_S)
        assert opening.state == pb.UPLOAD_STATE_SEND, "the poisoned update counts"
        messages = messages_of(opening.upload_id, POISONED, opening.offset)
        return [message.SerializeToString() for message in messages]

    async def _chunks(self) -> None:
        """One message of an upload is changed."""
        messages = await self._opened()
        place = self._mutator.random.randrange(len(messages))
        changed = pb.SendUploadRequest.FromString(messages[place])
        messages[place] = self._mutator.message_of([changed])
        await self._send(messages)

    async def _order(self) -> None:
        """Messages of an upload are lost, doubled, or out of order; or all is as it should be."""
        messages = await self._opened()
        for _ in range(self._mutator.random.randrange(3)):
            place = self._mutator.random.randrange(len(messages))
            other = self._mutator.random.randrange(len(messages))
            match self._mutator.random.choice(("lose", "double", "swap")):
                case "lose" if len(messages) > 1:
                    del messages[place]
                    break
                case "double":
                    messages.insert(place, messages[other])
                case "swap":
                    messages[place], messages[other] = messages[other], messages[place]
        await self._send(messages)

    async def _send(self, messages: list[bytes]) -> None:
        async def sent() -> AsyncIterator[bytes]:
            for message in messages:
                yield message

        answer = await self._channel.stream_unary(SERVICE + "SendUpload")(sent(), timeout=CALL_S)
        state = pb.SendUploadResponse.FromString(answer).state
        assert state == pb.UPLOAD_STATE_STALE, "a poisoned update was accepted"

    async def _call(self) -> None:
        """Another call with a changed message."""
        good: tuple[tuple[str, Any], ...] = (
            ("Hello", pb.HelloRequest(agent_version="1", encodings=ENCODINGS)),
            ("NextTask", pb.NextTaskRequest(authorities_digest="0" * 64)),
            ("Heartbeat", pb.HeartbeatRequest(run=RUN, round=1, phase="training", progress=0.5)),
            ("ReportEvaluation", evaluations()),
            ("FetchModel", pb.FetchModelRequest(model_digest=self._digest, encoding=ENCODINGS[0])),
        )
        name, message = self._mutator.random.choice(good)
        data = self._mutator.message_of([message])
        if name == "NextTask":  # a long wait would only take long
            data = self._mutator.bytes_of([message.SerializeToString()])
        if name == "FetchModel":
            async for _ in self._channel.unary_stream(SERVICE + name)(data, timeout=CALL_S):
                pass
        else:
            await self._channel.unary_unary(SERVICE + name)(data, timeout=CALL_S)


def evaluations() -> pb.ReportEvaluationRequest:
    """An honest report."""
    evaluation = pb.Evaluation(model=pb.MODEL_KIND_GLOBAL, rank1=0.5, map=0.4, queries=10)
    return pb.ReportEvaluationRequest(run=RUN, round=1, evaluations=[evaluation])


def announcement(base: Digest, payload: bytes) -> pb.OpenUploadRequest:
    """An honest announcement of a payload."""
    manifest = Manifest(
        layout=LAYOUT,
        encoding="fp32",
        byte_count=len(payload),
        payload_digest=Digest(blake3.blake3(payload).hexdigest()),
    )
    return pb.OpenUploadRequest(
        run=RUN,
        round=1,
        base_digest=base,
        manifest=manifest.to_wire(),
        report=pb.UpdateReport(num_images=100, cosine_distance=0.5, train_loss=1.0, num_steps=4),
    )


def messages_of(upload_id: str, payload: bytes, offset: int) -> list[pb.SendUploadRequest]:
    """The messages of an honest upload."""
    messages = [pb.SendUploadRequest(upload_id=upload_id)]
    for at in range(offset, len(payload), CHUNK):
        data = payload[at : at + CHUNK]
        chunk = tensors_pb2.Chunk(offset=at, data=data, crc32c=google_crc32c.value(data))
        messages.append(pb.SendUploadRequest(chunk=chunk))
    return messages


def garble(address: str, folder: Path, identity: Identity, seed: int, count: int) -> Counter[str]:
    """Connections on which HTTP/2 itself is tampered with; how they ended."""
    context = raw.client_context(folder, identity)
    mutator = Mutator(seed)
    request = raw.message(pb.HelloRequest(agent_version="1").SerializeToString())
    outcomes: Counter[str] = Counter()
    for _ in range(count):
        with raw.connected(address, context) as connection:
            connection.spoken.settimeout(0.05)
            try:
                good = connection.packed(SERVICE + "Hello", request)
                connection.spoken.sendall(mutator.bytes_of([good]))
                while not connection.statuses:
                    connection.read()
                outcomes[next(iter(connection.statuses.values())).name] += 1
            except TimeoutError:
                outcomes["waits for more"] += 1
            except (*raw.REFUSED, ValueError) as ended:
                outcomes[type(ended).__name__] += 1
    return outcomes


async def survived(coordinator: RealProcess, tmp_path: Path, seed: int, count: int) -> None:
    """Tamper with so many uploads and calls; the coordinator must be as good as new."""
    digest = plant(coordinator.folders, TENSORS, QUORUM)
    async with coordinator.serving():
        bad, honest = await coordinator.enrolled("bad"), await coordinator.enrolled("honest")
        async with coordinator.channel(bad) as channel, coordinator.channel(honest) as other:
            stub = federation_pb2_grpc.FederationStub(other)
            await stub.Hello(pb.HelloRequest())
            await federation_pb2_grpc.FederationStub(channel).Hello(pb.HelloRequest())
            while not (await stub.NextTask(pb.NextTaskRequest(wait_s=CALL_S))).HasField("train"):
                pass
            tamperer = Tamperer(channel, digest, seed)
            await tamperer.tamper(count // 10)  # whatever is built once is built now
            before_mb = coordinator.memory_mb()
            await tamperer.tamper(count)
            garbled = await asyncio.to_thread(
                garble, coordinator.address, tmp_path / "bad", bad, seed, count // 10
            )
            added_mb = coordinator.memory_mb() - before_mb
            print(
                f"seed {seed}: {dict(tamperer.outcomes)}; garbled {dict(garbled)}; "
                f"memory {before_mb:.1f} {added_mb:+.1f} MB"
            )
            assert added_mb < MEMORY_MB
            await the_honest_one_counts_alone(coordinator, stub, digest)
    assert "Traceback" not in coordinator.program.log


async def the_honest_one_counts_alone(coordinator: RealProcess, stub: Any, digest: Digest) -> None:
    """An update as it should be is taken, and is the round's only one."""
    opening = await stub.OpenUpload(announcement(digest, PAYLOAD))
    answer = await stub.SendUpload(iter(messages_of(opening.upload_id, PAYLOAD, opening.offset)))
    assert answer.state == pb.UPLOAD_STATE_ACCEPTED
    async with coordinator.channel(coordinator.admin) as channel:
        run = await admin_pb2_grpc.AdminStub(channel).GetRun(admin_pb2.GetRunRequest())
    assert [part.silo for part in run.round.participants] == ["honest"]


def test_tampered_uploads_and_calls_are_refused_with_reasons(
    coordinator: RealProcess, tmp_path: Path
) -> None:
    asyncio.run(survived(coordinator, tmp_path, seed=7, count=400))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_very_many_tampered_uploads_and_calls_are_refused_with_reasons(
    coordinator: RealProcess, tmp_path: Path
) -> None:
    asyncio.run(survived(coordinator, tmp_path, seed=secrets.randbits(32), count=10_000))
