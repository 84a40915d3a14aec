"""How much may one caller have under way, and is anything taken before it is asked who sends it?"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from coordinator.rounds.journal import Journal
from coordinator.trust import access
from coordinator.trust.registry import REVOKED, Registry
from fedreid.errors import ConnectionFailed, LimitReached
from fedreid.limits import CALLS_PER_CALLER, MESSAGE_BYTES, MIB
from fedreid.names import Role
from fedreid.pki.identity import Identity
from fedreid.v1 import federation_pb2, federation_pb2_grpc, tensors_pb2
from silo_agent.trust.channel import calling
from tests.coordinator.trust import raw
from tests.coordinator.trust.callers import CALL_S
from tests.coordinator.trust.test_access import HELLO, House, told
from tests.parties import Federation

POLL = federation_pb2.NextTaskRequest(wait_s=20)
HALF_A_MESSAGE = raw.message(bytes(1000))[:100]


@pytest.fixture
def house(federation: Federation, registry: Registry, journal: Journal) -> House:
    """A server and its callers."""
    return House(federation, registry, journal)


class Waiting:
    """Answers long polls when told to, and counts them."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.begun = asyncio.Semaphore(0)

    async def NextTask(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Wait."""
        self.begun.release()
        await self.go.wait()
        return federation_pb2.NextTaskResponse()


@asynccontextmanager
async def polling(house: House, caller: Identity, waiting: Waiting) -> AsyncIterator[list[Any]]:
    """As many long polls of one silo as it may have, each on a connection of its own."""
    async with AsyncExitStack() as stack:
        polls = []
        for _ in range(CALLS_PER_CALLER):
            channel = await stack.enter_async_context(house.channel(caller))
            polls.append(federation_pb2_grpc.FederationStub(channel).NextTask(POLL))
            await waiting.begun.acquire()
        yield polls


def test_a_silo_has_only_so_many_calls_under_way_however_many_connections_it_opens(
    house: House,
) -> None:
    caller, other = house.registered("north"), house.registered("south")
    waiting = Waiting()

    async def story(house: House) -> None:
        async with (
            polling(house, caller, waiting) as polls,
            house.channel(caller) as channel,
            house.channel(other) as others,
        ):
            stub = federation_pb2_grpc.FederationStub(channel)
            with pytest.raises(LimitReached, match="more than 8 at once"), calling("a:1"):
                await stub.Hello(federation_pb2.HelloRequest())
            assert await HELLO.make(channel) is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await HELLO.make(others) is grpc.StatusCode.OK
            waiting.go.set()
            for poll in polls:
                await poll
            assert await HELLO.make(channel) is grpc.StatusCode.OK

    told(house, story, Federation=waiting)


def test_a_stolen_token_of_a_silo_takes_none_of_the_silos_own_calls(house: House) -> None:
    caller = house.registered("north")
    bootstrap = house.federation.leaf(Role.BOOTSTRAP, "north")
    waiting = Waiting()

    async def story(house: House) -> None:
        async with polling(house, caller, waiting), house.channel(bootstrap) as channel:
            enrol: Any = channel.unary_unary("/fedreid.v1.Enrolment/Enrol")
            await enrol(b"", timeout=CALL_S)

    told(house, story, Federation=waiting)


def test_a_limit_reached_is_worth_another_attempt() -> None:
    assert issubclass(LimitReached, ConnectionFailed) and LimitReached.retryable


# Before the body has come


def test_who_may_not_call_is_refused_before_the_body_of_its_call_has_come(
    house: House, tmp_path: Path
) -> None:
    caller = house.registered("north", state=REVOKED)
    context = raw.client_context(tmp_path / "caller", caller)

    def knock() -> grpc.StatusCode:
        with raw.connected(house.address, context) as connection:
            return connection.status(connection.begin(HELLO.path, HALF_A_MESSAGE))

    async def story(house: House) -> None:
        assert await asyncio.to_thread(knock) is grpc.StatusCode.PERMISSION_DENIED

    told(house, story)


def test_calls_whose_body_never_comes_count_as_under_way_and_end(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "MESSAGE_IDLE_S", 1.0)
    context = raw.client_context(tmp_path / "caller", house.registered("north"))

    def knock() -> None:
        with raw.connected(house.address, context) as connection:
            halves = [connection.begin(HELLO.path, HALF_A_MESSAGE) for _ in range(CALLS_PER_CALLER)]
            assert connection.call(HELLO.path) is grpc.StatusCode.RESOURCE_EXHAUSTED
            for half in halves:
                assert connection.status(half) is grpc.StatusCode.UNAVAILABLE
            assert connection.call(HELLO.path) is grpc.StatusCode.OK

    async def story(house: House) -> None:
        await asyncio.to_thread(knock)
        assert house.reached == [HELLO.path]

    told(house, story)


def test_an_upload_that_drips_slower_than_a_message_a_minute_is_ended(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "MESSAGE_IDLE_S", 1.0)
    context = raw.client_context(tmp_path / "caller", house.registered("north"))

    def drip() -> grpc.StatusCode:
        with raw.connected(house.address, context) as connection:
            stream = connection.begin("/fedreid.v1.Federation/SendUpload")
            connection.spoken.settimeout(0.05)
            for byte in raw.message(bytes(10_000)):
                connection.send(stream, bytes([byte]))
                try:
                    connection.read()
                except TimeoutError:
                    continue
                if stream in connection.statuses:
                    break
            return connection.statuses[stream]

    async def story(house: House) -> None:
        assert await asyncio.to_thread(drip) is grpc.StatusCode.UNAVAILABLE

    told(house, story)


class Generous:
    """Sends more than anybody's window takes in."""

    async def FetchModel(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Send."""
        for _ in range(64):
            yield federation_pb2.FetchModelResponse(chunk=tensors_pb2.Chunk(data=bytes(MIB)))


def test_downloads_that_nobody_reads_stay_their_silos_own_burden(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "MESSAGE_IDLE_S", 2.0)  # all are begun by then
    caller, other = house.registered("north"), house.registered("south")

    async def story(house: House) -> None:
        still = ("grpc.http2.bdp_probe", 0)  # or a window that grows would take in all there is
        async with house.channel(caller, still) as channel, house.channel(other) as others:
            stub = federation_pb2_grpc.FederationStub(channel)
            request = federation_pb2.FetchModelRequest()
            unread: list[Any] = [stub.FetchModel(request) for _ in range(CALLS_PER_CALLER)]
            for call in unread:
                await call.read()
            async with asyncio.timeout(CALL_S):
                while await HELLO.make(channel) is grpc.StatusCode.OK:
                    await asyncio.sleep(0)
            await asyncio.sleep(2.5)  # each has been idle for longer than it may by now
            assert await HELLO.make(channel) is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await HELLO.make(others) is grpc.StatusCode.OK
            with pytest.raises(grpc.aio.AioRpcError):
                while True:
                    await unread[0].read()
            assert await unread[0].code() is grpc.StatusCode.UNAVAILABLE  # told now, why it ended
            for call in unread[1:]:
                call.cancel()
            async with asyncio.timeout(CALL_S):
                while await HELLO.make(channel) is not grpc.StatusCode.OK:
                    await asyncio.sleep(0)

    told(house, story, Federation=Generous())


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"\xff\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
        (b"\x0a\x05abc", grpc.StatusCode.INVALID_ARGUMENT),
        (bytes(MESSAGE_BYTES + 1), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
    ids=["no protobuf", "cut off", "too large"],
)
def test_a_message_that_is_none_is_refused_with_a_reason(
    house: House, body: bytes, status: grpc.StatusCode
) -> None:
    caller = house.registered("north")

    async def story(house: House) -> None:
        async with house.channel(caller) as channel:
            hello: Any = channel.unary_unary(HELLO.path)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await hello(body, timeout=CALL_S)
            assert refused.value.code() is status
            assert await HELLO.make(channel) is grpc.StatusCode.OK
        assert house.reached == [HELLO.path]

    told(house, story)


def test_a_call_without_a_message_is_refused(house: House) -> None:
    caller = house.registered("north")

    async def nothing() -> AsyncIterator[bytes]:
        for message in list[bytes]():
            yield message

    async def story(house: House) -> None:
        async with house.channel(caller) as channel:
            hello: Any = channel.stream_unary(HELLO.path)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await hello(nothing(), timeout=CALL_S)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert house.reached == []

    told(house, story)


# Sessions


def test_a_resumed_tls_session_may_make_no_call(house: House, tmp_path: Path) -> None:
    context = raw.client_context(tmp_path / "caller", house.registered("north"))

    def knock() -> None:
        with raw.connected(house.address, context) as connection:
            assert connection.call(HELLO.path) is grpc.StatusCode.OK
            session = connection.spoken.session
        with raw.connected(house.address, context, session) as connection:
            assert connection.call(HELLO.path) is grpc.StatusCode.PERMISSION_DENIED
            assert connection.spoken.session_reused  # or the test would show nothing
        with raw.connected(house.address, context) as connection:
            assert connection.call(HELLO.path) is grpc.StatusCode.OK

    async def story(house: House) -> None:
        await asyncio.to_thread(knock)
        assert house.reached == [HELLO.path] * 2

    told(house, story)
