"""What does a silo do in a simulation? What an agent does, on a disk of its own, learning nothing.

It keeps what it has trained until a later round takes its place, believes no unsigned and no older
model, and sends again what was not answered. What it notes is what its audit log would hold.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import blake3
import google_crc32c
import numpy as np

from fedreid.contract import EvaluateTask, EvaluationResult, TrainTask, UpdateReport
from fedreid.errors import AccessDenied, FedreidError, SignatureRefused, UpdateRefused
from fedreid.limits import HEARTBEAT_S, LONG_POLL_S
from fedreid.names import Digest
from fedreid.pki.signing import verify
from fedreid.v1 import federation_pb2 as pb
from fedreid.v1 import tensors_pb2
from fedreid.wire.manifest import Manifest
from fedreid.wire.messages import (
    evaluation_to_wire,
    release_from_wire,
    report_to_wire,
    task_from_wire,
)
from tests.history import Taken, Update
from tests.simulation.loop import Program, VirtualLoop
from tests.simulation.network import Network
from tests.simulation.work import LAYOUT, made_of, payload_of

_CHUNK_BYTES = 6
_REPORT = UpdateReport(num_images=100, cosine_distance=0.1, train_loss=1.0, num_steps=4)
_FIGURES = EvaluationResult(
    model="global", rank1=0.5, rank5=0.6, rank10=0.7, map=0.4, minp=0.3, queries=8
)
_BAD = np.full(4, np.nan, dtype=np.float32)


@dataclass(slots=True)
class Kept:
    """What survives a silo's crash."""

    outbox: dict[tuple[str, int, str], bytes] = field(default_factory=dict)
    """The payload of each trained round, by run, number and base."""
    newest: int = 0
    """Highest version of a model that was taken."""
    models: set[str] = field(default_factory=set)
    sent: list[Update] = field(default_factory=list)
    accepted: list[Update] = field(default_factory=list)
    taken: list[Taken] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """How probable is what of a silo?"""

    straggles: float
    """Training takes longer than the round."""
    spoils: float
    """Its update holds values that are refused."""
    leaves: float
    """It leaves instead of training."""


class Silo:
    """One silo, over all its lives."""

    def __init__(
        self,
        name: str,
        *,
        loop: VirtualLoop,
        network: Network,
        random: Random,
        habits: Habits,
        model_key: bytes,
        tell: Callable[[str], None],
    ) -> None:
        self.name = name
        self.kept = Kept()
        self.program: Program | None = None
        self._loop = loop
        self._network = network
        self._random = random
        self.habits = habits
        self._model_key = model_key
        self._tell = tell

    def start(self) -> None:
        """Begin a life."""
        self.program = Program()
        self.program.start(self._live())

    def kill(self) -> None:
        """End it in the middle of whatever it does."""
        if self.program is not None:
            self._loop.kill(self.program)
            self.program = None
            server = self._network.server
            self._network.silo_died(self.name, server.calls if server is not None else ())

    async def _live(self) -> None:
        while True:
            try:
                await self._call("Hello", pb.HelloRequest(agent_version="1"))
                while True:
                    await self._next()
            except SignatureRefused as refused:
                self._network.bugs.append(refused)
                return
            except AccessDenied:
                await asyncio.sleep(5.0)  # its operators look into it
            except FedreidError:
                await asyncio.sleep(self._random.random() * 3.0)

    async def _next(self) -> None:
        request = pb.NextTaskRequest(wait_s=LONG_POLL_S)
        task = task_from_wire(await self._call("NextTask", request, timeout_s=LONG_POLL_S + 30.0))
        if isinstance(task, TrainTask):
            if self._random.random() < self.habits.leaves:
                await self._call("Leave", pb.LeaveRequest())
            await self._train(task)
        elif isinstance(task, EvaluateTask):
            await self._fetch(task.model_digest)
            await self._report(task.run, task.round)

    async def _train(self, task: TrainTask) -> None:
        place = (task.run, task.round, task.base_digest)
        await self._fetch(task.base_digest)
        if place not in self.kept.outbox:
            if not await self._worked(task):
                return
            self.kept.outbox[place] = self._trained(place)
        try:
            await self._upload(place)
        except UpdateRefused as refusal:
            self._tell(f"was refused: {refusal.reason.value}")
            await asyncio.sleep(1.0)
        for other in [key for key in self.kept.outbox if key[:2] < place[:2]]:
            del self.kept.outbox[other]

    async def _worked(self, task: TrainTask) -> bool:
        """Train, with signs of life; False if the round was lost meanwhile."""
        slow = self._random.random() < self.habits.straggles
        left_s = self._random.random() * (60.0 if slow else 6.0)
        while left_s > 0:
            await asyncio.sleep(min(left_s, HEARTBEAT_S))
            left_s -= HEARTBEAT_S
            request = pb.HeartbeatRequest(run=task.run, round=task.round, phase="training")
            try:
                answer = await self._call("Heartbeat", request)
            except FedreidError:
                continue
            if not answer.wanted:
                return False
        return True

    def _trained(self, place: tuple[str, int, str]) -> bytes:
        """The same bytes whenever the same round is trained again."""
        spoilt = made_of("spoilt", self.name, place)[0] - 1.0 < self.habits.spoils
        return payload_of(_BAD if spoilt else made_of("update", self.name, place))

    async def _upload(self, place: tuple[str, int, str]) -> None:
        run, number, base = place
        payload = self.kept.outbox[place]
        digest = Digest(blake3.blake3(payload).hexdigest())
        update = Update(silo=self.name, run=run, round=number, payload_digest=digest)
        self.kept.sent.append(update)
        manifest = Manifest(
            layout=LAYOUT, encoding="fp32", byte_count=len(payload), payload_digest=digest
        )
        request = pb.OpenUploadRequest(
            run=run,
            round=number,
            base_digest=base,
            manifest=manifest.to_wire(),
            report=report_to_wire(_REPORT),
        )
        answer = await self._call("OpenUpload", request)
        if answer.state == pb.UPLOAD_STATE_SEND:
            messages = _messages(answer.upload_id, payload, answer.offset)
            answer = await self._call("SendUpload", *messages, timeout_s=120.0)
        if answer.state == pb.UPLOAD_STATE_ACCEPTED:
            self.kept.accepted.append(update)
            self._tell(f"heard that round {number} counts it")
            await self._report(run, number - 1)

    async def _report(self, run: str, number: int) -> None:
        request = pb.ReportEvaluationRequest(
            run=run, round=number, evaluations=[evaluation_to_wire(_FIGURES)]
        )
        await self._call("ReportEvaluation", request)

    async def _fetch(self, digest: str) -> None:
        if digest in self.kept.models:
            return
        request = pb.FetchModelRequest(
            model_digest=digest, encoding=tensors_pb2.ENCODING_FP32, offset=0
        )
        first, *parts = await self._call("FetchModel", request, timeout_s=60.0)
        verify(self._model_key, first.release.release, first.release.signature)
        release = release_from_wire(pb.Release.FromString(first.release.release))
        data = LAYOUT.header() + b"".join(part.chunk.data for part in parts)
        if release.version < self.kept.newest or release.model_digest != digest:
            raise SignatureRefused(f"The model {release.version} is an older one, or another")
        if blake3.blake3(data).hexdigest() != digest:
            raise SignatureRefused("The model's bytes are not the ones that were signed")
        self.kept.taken.append(Taken(silo=self.name, version=release.version, digest=digest))
        self.kept.newest = release.version
        self.kept.models = {digest}
        self._tell(f"took model {release.version}")

    async def _call(self, method: str, *requests: Any, timeout_s: float = 30.0) -> Any:
        return await self._network.call(self.name, method, *requests, timeout_s=timeout_s)


def _messages(upload_id: str, payload: bytes, offset: int) -> Sequence[pb.SendUploadRequest]:
    messages = [pb.SendUploadRequest(upload_id=upload_id)]
    for at in range(offset, len(payload), _CHUNK_BYTES):
        data = payload[at : at + _CHUNK_BYTES]
        chunk = tensors_pb2.Chunk(offset=at, crc32c=google_crc32c.value(data), data=data)
        messages.append(pb.SendUploadRequest(chunk=chunk))
    return messages
