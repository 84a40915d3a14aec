"""What does one of very many agents do? It speaks the whole protocol, and learns nothing.

Its certificate, channel, calls, signatures and digests are a real agent's; it keeps no file, and
its update is the base model plus a constant of its own. Each unary call is timed where it is
made. How long a poll for a task takes says when there was one, so polls are only counted.
"""

import asyncio
import contextlib
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import blake3
import google_crc32c
import numpy as np

from fedreid.contract import (
    EvaluateTask,
    EvaluationResult,
    Release,
    TrainTask,
    UpdateReport,
    WaitTask,
)
from fedreid.errors import ConnectionFailed, FedreidError, SignatureRefused
from fedreid.limits import CALL_S, HEARTBEAT_S, LONG_POLL_S, SENT_CHUNK_BYTES
from fedreid.names import Digest, SiloName
from fedreid.pki.certificates import authorities_digest
from fedreid.pki.identity import Identity
from fedreid.pki.signing import verify
from fedreid.seeds import derive_seed
from fedreid.v1 import federation_pb2 as pb
from fedreid.v1 import tensors_pb2
from fedreid.wire.manifest import Manifest, encoding_to_wire
from fedreid.wire.messages import (
    evaluation_to_wire,
    release_from_wire,
    report_to_wire,
    task_from_wire,
)
from fedreid.wire.tensors import FloatArray, Layout
from silo_agent.trust.channel import Line, calling, pauses_s

if TYPE_CHECKING:
    from fedreid.v1.federation_pb2_grpc import FederationAsyncStub

AnswerT = TypeVar("AnswerT")
_STEP = 1e-3
_FIGURES = EvaluationResult(
    model="global", rank1=0.5, rank5=0.5, rank10=0.5, map=0.5, minp=0.5, queries=100
)


@dataclass(slots=True)
class Measured:
    """What the agents of one process have seen; they all write here."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """How long each unary call took, by its name, at its caller."""
    errors: Counter[str] = field(default_factory=Counter)
    polls: int = 0
    models: int = 0
    updates: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A model that came whole, and signed."""

    release: Release
    layout: Layout
    values: FloatArray
    """Of all tensors, end to end."""


@dataclass(slots=True)
class Shelf:
    """Where the agents of one process keep one copy of the newest model for all of them."""

    newest: Base | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """What every agent of a process knows of its federation."""

    address: str
    name: str
    model_key: bytes


class LightAgent:
    """One silo of many."""

    def __init__(
        self,
        federation: Federation,
        silo: SiloName,
        identity: Identity,
        measured: Measured,
        shelf: Shelf,
    ) -> None:
        self._federation = federation
        self._silo = silo
        self._authorities = authorities_digest(identity.authorities_pem)
        self._line = Line(federation.address, identity)
        self._measured = measured
        self._shelf = shelf
        self._newest = (0, "")

    @property
    def _stub(self) -> "FederationAsyncStub":
        return self._line.stub

    async def connect(self) -> None:
        """Open the connection, and greet: the one call that begins with a handshake.

        Raises:
            FedreidError: as :func:`calling` says.
        """
        async with asyncio.timeout(CALL_S):
            await self._line.channel.channel_ready()
        await self._timed("Hello", self._line.greet())

    async def take_part(self) -> None:
        """Do task after task until the run is over; whatever fails is counted and tried again."""
        async with self._line:
            pauses = pauses_s()
            while True:
                try:
                    if await self._do(await self._next()):
                        return
                    pauses = pauses_s()
                except FedreidError as error:
                    self._measured.errors[f"{error.code}: {error.what[:80]}"] += 1
                    await asyncio.sleep(next(pauses))

    async def _next(self) -> TrainTask | EvaluateTask | WaitTask:
        version, digest = self._newest
        request = pb.NextTaskRequest(
            wait_s=LONG_POLL_S,
            authorities_digest=self._authorities,
            newest_version=version,
            newest_digest=digest,
        )
        self._measured.polls += 1
        with calling(self._federation.address):
            answer = await self._stub.NextTask(request, timeout=LONG_POLL_S + CALL_S)
        task = task_from_wire(answer)
        assert isinstance(task, TrainTask | EvaluateTask | WaitTask), "no certificate is due here"
        return task

    async def _do(self, task: TrainTask | EvaluateTask | WaitTask) -> bool:
        """Do a task; whether it was the last."""
        if isinstance(task, WaitTask):
            return task.run_finished
        if isinstance(task, EvaluateTask):
            await self._fetch(task.model_digest, task)
            await self._report(task.run, task.round)
            return True  # a real one would now wait for another run
        async with self._heartbeats(task):
            base = await self._fetch(task.base_digest, task)
            await self._deliver(task, base)
        if task.evaluate:
            await self._report(task.run, base.release.round)
        self._line.relieve(base.layout.size_bytes)
        return False

    async def _fetch(self, digest: Digest, task: TrainTask | EvaluateTask) -> Base:
        """Fetch a model and check signature and digest of what came, as a real agent does."""
        request = pb.FetchModelRequest(
            model_digest=digest, encoding=encoding_to_wire(task.download_encoding)
        )
        hasher, kept = blake3.blake3(), bytearray()
        with calling(self._federation.address):
            parts = self._stub.FetchModel(request)
            first = await anext(aiter(parts), None)
            if first is None or not first.HasField("release"):
                raise ConnectionFailed("The coordinator sent no model")
            release = self._verified(first.release, digest)
            shelved = self._shelf.newest
            async for message in parts:
                if google_crc32c.value(message.chunk.data) != message.chunk.crc32c:
                    raise ConnectionFailed("A chunk of a model arrived damaged")
                hasher.update(message.chunk.data)
                if shelved is None or shelved.release.model_digest != digest:
                    kept += message.chunk.data
        payload = release.payload("fp32")
        if payload is None or payload.payload_digest != hasher.hexdigest():
            raise SignatureRefused("The model's payload is not the one that was signed")
        self._newest = (release.version, digest)
        self._measured.models += 1
        if shelved is None or shelved.release.model_digest != digest:
            layout = Manifest.from_wire(first.release.manifest).layout
            values = np.frombuffer(bytes(kept), np.float32)
            shelved = self._shelf.newest = Base(release=release, layout=layout, values=values)
        return shelved

    def _verified(self, signed: pb.SignedRelease, digest: Digest) -> Release:
        verify(self._federation.model_key, signed.release, signed.signature)
        release = release_from_wire(pb.Release.FromString(signed.release))
        if (release.federation, release.model_digest) != (self._federation.name, digest):
            raise SignatureRefused("The release that came is for another model or federation")
        return release

    async def _deliver(self, task: TrainTask, base: Base) -> None:
        share = derive_seed(task.seed, self._silo, task.round) % 1000 / 1000
        step = np.float32(_STEP * (0.5 + share))
        manifest = Manifest(
            layout=base.layout,
            encoding="fp32",
            byte_count=base.layout.size_bytes,
            payload_digest=Digest(blake3.blake3(_payload(base, step)).hexdigest()),
        )
        report = UpdateReport(
            num_images=100, cosine_distance=0.1 + share, train_loss=1.0, num_steps=4
        )
        request = pb.OpenUploadRequest(
            run=task.run,
            round=task.round,
            base_digest=task.base_digest,
            manifest=manifest.to_wire(),
            report=report_to_wire(report),
        )
        opening = await self._timed("OpenUpload", self._stub.OpenUpload(request, timeout=CALL_S))
        if opening.state == pb.UPLOAD_STATE_SEND:
            with calling(self._federation.address):
                turn = asyncio.Event()
                call = self._stub.SendUpload(_messages(opening, base, step, turn))
                await call.initial_metadata()
                turn.set()
                answer = await call
            state = answer.state
        else:
            state = opening.state
        if state == pb.UPLOAD_STATE_ACCEPTED:
            self._measured.updates += 1
        else:
            self._measured.errors["an update came too late"] += 1

    async def _report(self, run: str, number: int) -> None:
        request = pb.ReportEvaluationRequest(
            run=run, round=number, evaluations=[evaluation_to_wire(_FIGURES)]
        )
        await self._timed("ReportEvaluation", self._stub.ReportEvaluation(request, timeout=CALL_S))

    @contextlib.asynccontextmanager
    async def _heartbeats(self, task: TrainTask) -> AsyncIterator[None]:
        """Signs of life while the block works, the first at random within the usual pause."""

        async def beat() -> None:
            await asyncio.sleep(HEARTBEAT_S * random.random())  # noqa: S311 - spreads load
            while True:
                request = pb.HeartbeatRequest(run=task.run, round=task.round, phase="training")
                await self._timed("Heartbeat", self._stub.Heartbeat(request, timeout=CALL_S))
                await asyncio.sleep(HEARTBEAT_S)

        beating = asyncio.create_task(beat())
        try:
            yield
        finally:
            beating.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await beating

    async def _timed(self, name: str, call: Awaitable[AnswerT]) -> AnswerT:
        began_s = time.perf_counter()
        with calling(self._federation.address):
            answer = await call
        self._measured.seconds[name].append(time.perf_counter() - began_s)
        return answer


def _payload(base: Base, step: np.float32) -> memoryview:
    return (base.values + step).view(np.uint8).data


async def _messages(
    opening: pb.OpenUploadResponse, base: Base, step: np.float32, turn: asyncio.Event
) -> AsyncIterator[pb.SendUploadRequest]:
    yield pb.SendUploadRequest(upload_id=opening.upload_id)
    await turn.wait()
    payload = _payload(base, step)  # again: five hundred of them at once are no light agents
    for offset in range(opening.offset, len(payload), SENT_CHUNK_BYTES):
        data = bytes(payload[offset : offset + SENT_CHUNK_BYTES])
        chunk = tensors_pb2.Chunk(offset=offset, crc32c=google_crc32c.value(data), data=data)
        yield pb.SendUploadRequest(chunk=chunk)
