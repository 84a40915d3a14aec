"""What can a silo with a valid identity send? Anything: a client without the agent's manners."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import blake3
import google_crc32c
import numpy as np

from benchmark.federation import LocalFederation
from fedreid.audit import AuditLog
from fedreid.clock import SystemClock
from fedreid.contract import Task, TrainTask
from fedreid.limits import MIB
from fedreid.pki import tokens
from fedreid.pki.identity import IdentityStore
from fedreid.v1 import federation_pb2 as pb
from fedreid.v1 import federation_pb2_grpc, tensors_pb2
from fedreid.wire.messages import task_from_wire
from fedreid.wire.tensors import FloatArray, TensorFile
from silo_agent.config import Folders, load_membership
from silo_agent.models import ModelCache
from silo_agent.trust.channel import calling, connected
from silo_agent.trust.join import enrol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fedreid.v1.federation_pb2_grpc import FederationAsyncStub

Tensors = dict[str, FloatArray]


class Rogue:
    """A silo of a federation, under a test's control."""

    def __init__(self, local: LocalFederation, silo: str) -> None:
        self.name = silo
        self._folders = Folders(local.agent_data(silo))
        self._token = tokens.read(local.token(silo))
        self.address = local.endpoint
        self.stub: FederationAsyncStub

    async def enrol(self) -> None:
        """Become the silo."""
        await enrol(self._folders, self._token, self.address, SystemClock(), lambda line: None)

    @asynccontextmanager
    async def connected(self) -> "AsyncIterator[Rogue]":
        """Connect with the silo's identity."""
        identity = IdentityStore(self._folders.identity).load()
        async with connected(self.address, identity) as channel:
            self.stub = federation_pb2_grpc.FederationStub(channel)
            with calling(self.address):
                await self.stub.Hello(pb.HelloRequest(agent_version="rogue"))
            yield self

    async def next_task(self, wait_s: float) -> Task:
        """What the silo is told to do."""
        with calling(self.address):
            answer = await self.stub.NextTask(pb.NextTaskRequest(wait_s=wait_s))
        return task_from_wire(answer)

    async def next_round(self, after: int) -> TrainTask:
        """The silo's task in a round later than ``after``."""
        while True:
            task = await self.next_task(5.0)
            if isinstance(task, TrainTask) and task.round > after:
                return task
            await asyncio.sleep(0)

    async def base(self, task: TrainTask) -> Tensors:
        """The round's base model."""
        audit = AuditLog(self._folders.audit, SystemClock())
        cache = ModelCache(self._folders, load_membership(self._folders), audit)
        held = await cache.ensure(self.stub, self.address, task.base_digest, task.download_encoding)
        with TensorFile(Path(held.path)) as file:
            return file.read_all()

    async def open(self, task: TrainTask, request: pb.OpenUploadRequest) -> pb.OpenUploadResponse:
        """Announce an update."""
        with calling(self.address):
            return await self.stub.OpenUpload(request)

    async def send(self, upload_id: str, chunks: list[tensors_pb2.Chunk]) -> pb.SendUploadResponse:
        """Send chunks, in one call, whatever they are."""

        def messages() -> Iterator[pb.SendUploadRequest]:
            yield pb.SendUploadRequest(upload_id=upload_id)
            for chunk in chunks:
                yield pb.SendUploadRequest(chunk=chunk)

        with calling(self.address):
            return await self.stub.SendUpload(messages())


def announcement(
    task: TrainTask,
    tensors: Mapping[str, FloatArray],
    *,
    num_images: int = 100,
    cosine_distance: float = 0.5,
) -> pb.OpenUploadRequest:
    """An honest announcement of ``tensors``."""
    payload = payload_of(tensors)
    return pb.OpenUploadRequest(
        run=task.run,
        round=task.round,
        base_digest=task.base_digest,
        manifest=tensors_pb2.Manifest(
            tensors=[
                tensors_pb2.TensorSpec(name=name, shape=tensors[name].shape)
                for name in sorted(tensors)
            ],
            encoding=tensors_pb2.ENCODING_FP32,
            byte_count=len(payload),
            payload_digest=blake3.blake3(payload).hexdigest(),
        ),
        report=pb.UpdateReport(
            num_images=num_images, cosine_distance=cosine_distance, train_loss=1.0, num_steps=4
        ),
    )


def payload_of(tensors: Mapping[str, FloatArray]) -> bytes:
    """The fp32 payload."""
    return b"".join(np.ascontiguousarray(tensors[name]).tobytes() for name in sorted(tensors))


def chunks_of(payload: bytes, *, start: int = 0) -> list[tensors_pb2.Chunk]:
    """The payload from ``start`` in chunks as they may be."""
    return [
        tensors_pb2.Chunk(
            offset=offset,
            crc32c=google_crc32c.value(payload[offset : offset + MIB]),
            data=payload[offset : offset + MIB],
        )
        for offset in range(start, len(payload), MIB)
    ]
