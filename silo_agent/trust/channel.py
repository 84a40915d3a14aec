"""How does the agent speak to its coordinator? Over mutual TLS, dialled outwards.

While it takes part it holds a :class:`Line`, whose calls go out on the newest identity's channel.
Every failure of a call leaves here as an error of our tree. What the coordinator could not do
(its disk, its state) is a :class:`ConnectionFailed` to an agent: it waits and asks again.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Self, cast

import grpc
import grpc.aio

from fedreid import __version__
from fedreid.errors import ConnectionFailed, FedreidError, TrustError, UpdateRefused
from fedreid.limits import (
    CALL_S,
    KEEPALIVE_ANSWER_S,
    KEEPALIVE_S,
    KEY_GRACE_S,
    MESSAGE_BYTES,
    PING_ANSWER_S,
    RECONNECT_MAX_S,
    RELIEVED_BYTES,
)
from fedreid.pki.identity import Identity
from fedreid.v1 import federation_pb2 as pb
from fedreid.v1 import federation_pb2_grpc
from fedreid.versions import check_versions
from fedreid.wire.chunks import parser, serialiser
from fedreid.wire.failures import Answer, failure_of
from fedreid.wire.manifest import ENCODINGS, encoding_to_wire
from silo_agent.config import AgentConfig, Folders, identities

if TYPE_CHECKING:
    from fedreid.v1.federation_pb2_grpc import FederationAsyncStub

_SERVICE = "/fedreid.v1.Federation"
_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", int(KEEPALIVE_S * 1000)),
    ("grpc.keepalive_timeout_ms", int(KEEPALIVE_ANSWER_S * 1000)),
    ("grpc.http2.ping_timeout_ms", int(PING_ANSWER_S * 1000)),
    ("grpc.enable_retries", 0),  # the agent's own loop retries, with offsets
)


@asynccontextmanager
async def connected(address: str, identity: Identity) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the coordinator, verified against the identity's authorities."""
    async with _channel(address, identity) as channel:
        yield channel


async def greeted(folders: Folders, config: AgentConfig) -> pb.HelloResponse:
    """Say hello once, with the identity that this silo takes part with.

    Raises:
        IdentityMissing, IdentityBroken: it has no usable identity.
        FedreidError: see :func:`calling`.
    """
    identity = identities(folders, config).load()
    async with Line(config.coordinator, identity) as line:
        return await line.greet()


class Line:
    """The connection to the coordinator, which changes its identity without dropping a call."""

    def __init__(self, address: str, identity: Identity) -> None:
        self.address = address
        self.identity = identity
        """With which new calls are made."""
        self.channel = _channel(address, identity)
        """Of that identity."""
        self._stub = _stub(self.channel)
        self._draining: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._draining:
            task.cancel()
        await asyncio.gather(*self._draining, return_exceptions=True)
        await self.channel.close()

    @property
    def stub(self) -> "FederationAsyncStub":
        """The calls of a silo; each goes out on the channel that is the newest when it is made."""
        return cast("FederationAsyncStub", _Newest(self))

    async def greet(self) -> pb.HelloResponse:
        """Say who is there; see :func:`calling` for errors."""
        return await _greet(self.address, self._stub)

    async def change(self, identity: Identity) -> None:
        """Make new calls with another identity, once a call with it has succeeded.

        Calls that are under way end by themselves on the channel that they began on. See
        :func:`calling` for errors; after one of them the line is as it was.
        """
        channel = _channel(self.address, identity)
        try:
            stub = _stub(channel)
            await _greet(self.address, stub)
        except BaseException:
            await channel.close()
            raise
        self._drain()
        self.identity, self.channel, self._stub = identity, channel, stub

    def relieve(self, sent_bytes: int) -> None:
        """Dial again after so large an update that the connection is not worth its buffers.

        Both ends keep buffers with a connection that are as large as what it has carried at once,
        and the coordinator has hundreds of them.
        """
        if sent_bytes > RELIEVED_BYTES:
            self.dial_again()

    def dial_again(self) -> None:
        """Make new calls on a new connection."""
        self._drain()
        self.channel = _channel(self.address, self.identity)
        self._stub = _stub(self.channel)

    def _drain(self) -> None:
        draining = asyncio.create_task(self.channel.close(grace=KEY_GRACE_S))
        self._draining.add(draining)
        draining.add_done_callback(self._draining.discard)


class _Newest:
    """A stub that is looked up anew for each call."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._line._stub, name)


@contextmanager
def calling(address: str) -> Iterator[None]:
    """Turn a failed call of the block into an error of our tree.

    Raises:
        TrustError: the coordinator does not let this silo in.
        UpdateRefused: it refuses this update.
        ConnectionFailed: anything that time or the coordinator's operators can mend.
    """
    try:
        yield
    except grpc.aio.AioRpcError as failed:
        error = failure_of(failed, address)
        if isinstance(error, TrustError | UpdateRefused | ConnectionFailed):
            raise error from failed
        raise _theirs(address, error) from failed


def pauses_s() -> Iterator[float]:
    """Ever longer pauses between attempts, with jitter, up to the limit."""
    pause_s = 0.5
    while True:
        yield pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, hides nothing
        pause_s = min(2 * pause_s, RECONNECT_MAX_S)


def _channel(address: str, identity: Identity) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(
        identity.authorities_pem, identity.key_pem, identity.certificate_pem
    )
    return grpc.aio.secure_channel(address, credentials, options=_OPTIONS)


def _stub(channel: grpc.aio.Channel) -> "FederationAsyncStub":
    """The generated calls, but chunks are written and read by hand; see :class:`Answer`."""
    stub = federation_pb2_grpc.FederationStub(channel)
    stub.FetchModel = channel.unary_stream(
        f"{_SERVICE}/FetchModel",
        request_serializer=pb.FetchModelRequest.SerializeToString,
        response_deserializer=parser(pb.FetchModelResponse.FromString),
    )
    send = channel.stream_unary(
        f"{_SERVICE}/SendUpload",
        request_serializer=serialiser(pb.SendUploadRequest.SerializeToString),
        response_deserializer=pb.SendUploadResponse.FromString,
    )
    stub.SendUpload = cast("Any", lambda messages: Answer(send(messages)))
    return stub


async def _greet(address: str, stub: "FederationAsyncStub") -> pb.HelloResponse:
    hello = pb.HelloRequest(
        agent_version=__version__, encodings=[encoding_to_wire(e) for e in ENCODINGS]
    )
    with calling(address):
        greeting = await stub.Hello(hello, timeout=CALL_S)
    check_versions(agent=__version__, coordinator=greeting.coordinator_version)
    return greeting


def _theirs(address: str, error: FedreidError) -> ConnectionFailed:
    return ConnectionFailed(
        f"The coordinator at {address} could not answer: {error.what}",
        why=error.why,
        next_step="Its operators have to act; the agent tries again by itself.",
    )
