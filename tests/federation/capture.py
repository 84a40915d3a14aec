"""How does a test see every byte between an agent and its coordinator, outside TLS and inside?

Between the real agent and the real coordinator stand a TCP relay, which sees what anybody on the
way sees, and behind it a gRPC proxy that holds a server certificate of the federation and the
silo's identity, so it sees what TLS hides.
"""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from benchmark.federation import LocalFederation
from coordinator.config import load_authority
from coordinator.folders import Folders as CoordinatorFolders
from coordinator.trust.tls import server_credentials
from fedreid.names import FederationName, Principal, Role
from fedreid.pki.certificates import key_to_pem, new_key, to_pem
from fedreid.pki.identity import Identity, IdentityStore
from silo_agent.config import Folders

_BLOCK_BYTES = 64 * 1024
_STREAMS_UP, _STREAMS_DOWN = {"SendUpload"}, {"FetchModel"}


class Relay:
    """Passes TCP connections on and keeps what the dialling side sends."""

    def __init__(self, port: int) -> None:
        self.sent = bytearray()
        self._onward_port = port

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        """The port to dial instead."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", self._onward_port)
        await asyncio.gather(
            self._pass_on(reader, onward_writer, self.sent),
            self._pass_on(onward_reader, writer, bytearray()),
        )

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(_BLOCK_BYTES):
                kept += data
                writer.write(data)
                await writer.drain()
        writer.close()


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

            onward = self._onward.stream_unary(method)(passed_on())
            await onward.initial_metadata()  # by which the silo hears that it may send
            await context.send_initial_metadata(())
            return await _relayed(onward, context)

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
        await context.abort(error.code(), error.details(), tuple(error.trailing_metadata() or ()))
        raise
    return answer


@contextlib.asynccontextmanager
async def tapped(local: LocalFederation, silo: str) -> AsyncIterator[tuple[Tap, Relay, int]]:
    """A tap in front of the coordinator, a relay in front of that, and the relay's port."""
    authority = load_authority(CoordinatorFolders(local.data))
    key = new_key()
    principal = Principal(
        federation=FederationName("harbour"), role=Role.COORDINATOR, name="coordinator"
    )
    leaf = authority.issue(
        principal, key.public_key(), now_s=time.time(), life_s=3600, hostnames=["localhost"]
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
        relay = Relay(port)
        async with relay.listening() as dialled:
            yield tap, relay, dialled
        await server.stop(None)
