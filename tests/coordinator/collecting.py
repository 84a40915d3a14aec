"""A coordinator whose round wants the updates of two silos; no worker process is needed."""

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

from fedreid.audit import read_audit
from fedreid.limits import MIB
from fedreid.names import Digest
from fedreid.v1 import federation_pb2 as pb
from fedreid.v1 import federation_pb2_grpc, tensors_pb2
from fedreid.wire.failures import Answer
from fedreid.wire.manifest import Manifest
from fedreid.wire.tensors import Layout, TensorSpec
from tests.coordinator.trust.assembled import Assembled
from tests.coordinator.trust.planted import plant

ELEMENTS = MIB
"""4 MiB, sent in four pieces."""


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
            for offset in range(opening.offset, len(self.payload), MIB):
                data = self.payload[offset : offset + MIB]
                crc = google_crc32c.value(data)
                chunk = tensors_pb2.Chunk(offset=offset, data=data, crc32c=crc)
                yield pb.SendUploadRequest(chunk=chunk)

        answer: pb.SendUploadResponse = await Answer(stub.SendUpload(messages()))
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
