"""Every message of a whole round at the agent's edge, parsed, and each byte accounted for.

Between the real agent and the real coordinator stands a gRPC proxy of the test's own that holds
a server certificate of the federation and the silo's identity, so it sees what TLS hides.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from google.protobuf.message import Message

from benchmark.federation import LocalFederation
from coordinator.config import load_authority
from coordinator.folders import Folders as CoordinatorFolders
from coordinator.trust.tls import server_credentials
from fedreid.names import FederationName, Principal, Role
from fedreid.pki.certificates import key_to_pem, new_key, to_pem
from fedreid.pki.identity import Identity, IdentityStore
from fedreid.v1 import federation_pb2 as pb
from fedreid.v1 import tensors_pb2
from fedreid.wire.tensors import TensorFile
from silo_agent.config import Folders
from silo_agent.learning.state import FEDERATED, read_classifier
from silo_agent.outbox import UPDATE_FILE, Outbox
from tests.federation.conftest import Founding, write_plan
from tests.federation.test_learning import finished

pytestmark = pytest.mark.timeout(300)
_SERVICE = "/fedreid.v1.Federation/"
_SENT: dict[str, type[Message]] = {
    "Hello": pb.HelloRequest,
    "NextTask": pb.NextTaskRequest,
    "Heartbeat": pb.HeartbeatRequest,
    "FetchModel": pb.FetchModelRequest,
    "OpenUpload": pb.OpenUploadRequest,
    "SendUpload": pb.SendUploadRequest,
    "ReportEvaluation": pb.ReportEvaluationRequest,
}
_STREAMS_UP, _STREAMS_DOWN = {"SendUpload"}, {"FetchModel"}


class Tap(grpc.GenericRpcHandler):
    """Passes raw messages on to the coordinator and keeps those of the agent."""

    def __init__(self, onward: grpc.aio.Channel) -> None:
        self.sent: dict[str, list[bytes]] = defaultdict(list)
        self._onward: Any = onward  # raw bytes both ways: no serialisers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """A handler that treats messages as bytes."""
        method = handler_call_details.method
        name = method.rpartition("/")[2]
        if name in _STREAMS_UP:
            return grpc.stream_unary_rpc_method_handler(self._streamed_up(method, name))
        if name in _STREAMS_DOWN:
            return grpc.unary_stream_rpc_method_handler(self._streamed_down(method, name))
        return grpc.unary_unary_rpc_method_handler(self._unary(method, name))

    def _unary(self, method: str, name: str) -> Any:
        async def call(request: bytes, context: Any) -> bytes:
            self.sent[name].append(request)
            return await _relayed(self._onward.unary_unary(method)(request), context)

        return call

    def _streamed_up(self, method: str, name: str) -> Any:
        async def call(requests: AsyncIterator[bytes], context: Any) -> bytes:
            async def passed_on() -> AsyncIterator[bytes]:
                async for request in requests:
                    self.sent[name].append(request)
                    yield request

            return await _relayed(self._onward.stream_unary(method)(passed_on()), context)

        return call

    def _streamed_down(self, method: str, name: str) -> Any:
        async def call(request: bytes, context: Any) -> AsyncIterator[bytes]:
            self.sent[name].append(request)
            async for answer in self._onward.unary_stream(method)(request):
                yield answer

        return call


async def _relayed(call: Any, context: Any) -> bytes:
    try:
        answer: bytes = await call
    except grpc.aio.AioRpcError as error:
        await context.abort(error.code(), error.details(), error.trailing_metadata())
        raise
    return answer


@contextlib.asynccontextmanager
async def tapped(local: LocalFederation, silo: str) -> AsyncIterator[tuple[Tap, int]]:
    """A tap in front of the coordinator, and its port."""
    authority = load_authority(CoordinatorFolders(local.data))
    key = new_key()
    principal = Principal(
        federation=FederationName("harbour"), role=Role.COORDINATOR, name="coordinator"
    )
    leaf = authority.issue(
        principal, key.public_key(), now_s=_now_s(), life_s=3600, hostnames=["localhost"]
    )
    server_identity = Identity(
        key_pem=key_to_pem(key),
        certificate_pem=to_pem(leaf),
        authorities_pem=authority.certificate_pem,
    )
    mine = IdentityStore(Folders(local.agent_data(silo)).identity).load()
    credentials = grpc.ssl_channel_credentials(
        mine.authorities_pem, mine.key_pem, mine.certificate_pem
    )
    async with grpc.aio.secure_channel(local.endpoint, credentials) as onward:
        tap = Tap(onward)
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((tap,))
        port = server.add_secure_port("127.0.0.1:0", server_credentials(server_identity))
        await server.start()
        yield tap, port
        await server.stop(None)


def _now_s() -> float:
    import time

    return time.time()


def test_a_round_sends_backbone_tensors_and_a_few_numbers_only(
    found: Founding, tmp_path: Path
) -> None:
    local = found()
    watched, other = local.silos
    local.start_run(write_plan(tmp_path / "plan.toml", rounds=1))
    local.join_without_training(other)
    local.command(*local.join_arguments(watched), "--enrol-only")
    tap = asyncio.run(_watch(local, watched))
    messages = {
        name: [_SENT[name].FromString(raw) for raw in raws] for name, raws in tap.sent.items()
    }
    assert set(messages) <= set(_SENT)
    for name, parsed in messages.items():
        for message, raw in zip(parsed, tap.sent[name], strict=True):
            assert message.SerializeToString() == raw  # nothing unknown rides along
    _check_upload(local, watched, messages)
    _check_numbers(messages, len(list((local.silos[watched] / "bounding_box_train").iterdir())))
    _check_secrets(local, watched, b"".join(raw for raws in tap.sent.values() for raw in raws))


async def _watch(local: LocalFederation, silo: str) -> Tap:
    """Let the real agent take part through a tap until the run is over."""
    async with tapped(local, silo) as (tap, port):
        config = local.agent_data(silo) / "agent.toml"
        config.write_text(config.read_text().replace(local.endpoint, f"localhost:{port}"))
        agent = local.start_agent(silo)
        await asyncio.to_thread(local.wait_until, finished, timeout_s=200.0)
        await asyncio.to_thread(agent.stop)
    return tap


def _check_upload(local: LocalFederation, silo: str, messages: dict[str, list[Any]]) -> None:
    """The payload is the shared backbone to the byte, and nothing else."""
    (opening,) = messages["OpenUpload"]
    manifest: tensors_pb2.Manifest = opening.manifest
    outbox = Outbox(Folders(local.agent_data(silo)))
    last = outbox.last()
    assert last is not None
    with TensorFile(outbox.folder(last) / UPDATE_FILE) as update:
        expected = b"".join(update.read(name).tobytes() for name in update.layout.names)
        assert [t.name for t in manifest.tensors] == list(update.layout.names)
    first, *chunks = messages["SendUpload"]
    assert first.upload_id and not first.chunk.data
    assert b"".join(message.chunk.data for message in chunks) == expected
    assert manifest.byte_count == len(expected)
    overhead = sum(message.ByteSize() for message in chunks) - len(expected)
    assert overhead <= 32 * len(chunks)
    names = " ".join(tensor.name for tensor in manifest.tensors)
    assert "classifier" not in names and "fc." not in names


def _check_numbers(messages: dict[str, list[Any]], images: int) -> None:
    """What goes beside the tensors is the numbers of the contract, and they are small."""
    (opening,) = messages["OpenUpload"]
    assert opening.report.num_images == images
    small = [m for name in messages if name != "SendUpload" for m in messages[name]]
    assert all(m.ByteSize() < 32 * 1024 for m in small)
    kinds = {e.model for m in messages["ReportEvaluation"] for e in m.evaluations}
    assert kinds == {pb.MODEL_KIND_GLOBAL, pb.MODEL_KIND_LOCAL, pb.MODEL_KIND_STANDALONE}


def _check_secrets(local: LocalFederation, silo: str, sent: bytes) -> None:
    """No image, file name or classifier row occurs in what was sent."""
    images = sorted(local.silos[silo].rglob("*.jpg"))
    for image in images:
        data = image.read_bytes()
        assert image.stem.encode() not in sent
        assert data[len(data) // 2 : len(data) // 2 + 24] not in sent
    outbox = Outbox(Folders(local.agent_data(silo)))
    last = outbox.last()
    assert last is not None
    classifier = read_classifier(outbox.folder(last) / "private" / FEDERATED)
    assert classifier is not None
    for row in classifier.weight:
        assert row[:8].astype(np.float32).tobytes() not in sent
    assert str(local.root).encode() not in sent
