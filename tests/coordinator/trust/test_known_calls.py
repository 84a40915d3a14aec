"""Does a call that nobody serves do any harm, whatever its name is?"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc.aio._server import Server

from fedreid.pki.identity import Identity
from tests.coordinator.trust import raw
from tests.coordinator.trust.assembled import Assembled, lived
from tests.coordinator.trust.test_access import HELLO

NAMES = {
    "no text": b"/fedreid.v1.Federation/\xff\xfe",
    "cut text": b"/\xe6\xbc",
    "text": b"/fedreid.v1.Federation/Steal",
    "no service": b"/",
    "no slash": b"Hello",
    "nothing": b"",
    "long": b"/" + b"x" * 120,
}


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Assembled]:
    """A coordinator's data folder, ready to serve."""
    yield Assembled(tmp_path / "coordinator")


def knock(address: str, folder: Path, identity: Identity, name: bytes) -> str:
    """Call something of that name, with gRPC's manners but for the name; how it ends."""
    context = raw.client_context(folder, identity)
    with raw.connected(address, context) as connection:
        stand_in = "/" + "s" * 30
        request = connection.packed(stand_in, raw.message(b"")).replace(
            bytes([len(stand_in)]) + stand_in.encode(), bytes([len(name)]) + name
        )
        shorter = len(stand_in) - len(name)
        size = int.from_bytes(request[:3], "big") - shorter
        connection.spoken.sendall(size.to_bytes(3, "big") + request[3:])
        try:
            return connection.status(1).name
        except ConnectionError:
            return "reset"


def test_a_call_of_any_name_is_refused_and_the_next_is_served(
    coordinator: Assembled, tmp_path: Path
) -> None:
    async def story(_: Assembled) -> None:
        silo = await coordinator.enrolled("north")
        for number, (kind, name) in enumerate(NAMES.items()):
            folder = tmp_path / str(number)
            how = await asyncio.to_thread(knock, coordinator.address, folder, silo, name)
            assert how in ("UNIMPLEMENTED", "reset"), kind
            async with coordinator.channel(silo) as channel:
                assert await HELLO.make(channel) is grpc.StatusCode.OK, kind

    lived(coordinator, story)


def test_many_unknown_calls_at_once_are_each_refused(coordinator: Assembled) -> None:
    async def story(_: Assembled) -> None:
        silo = await coordinator.enrolled("north")
        async with coordinator.channel(silo) as channel:
            unknown: Any = channel.unary_unary("/x/Y")
            calls = [unknown(b"") for _ in range(200)]
            statuses = {await call.code() for call in calls}
            assert statuses == {grpc.StatusCode.UNIMPLEMENTED}
            assert await HELLO.make(channel) is grpc.StatusCode.OK

    lived(coordinator, story)


def test_a_server_that_ends_by_itself_ends_the_service(
    coordinator: Assembled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that lives on without its port would look healthy and serve nobody."""

    async def ended(server: object, timeout: float | None = None) -> bool:
        raise RuntimeError("the port is gone")

    monkeypatch.setattr(Server, "wait_for_termination", ended)

    async def story() -> None:
        async with coordinator.serving(), asyncio.timeout(10):
            await asyncio.Event().wait()

    with pytest.raises((RuntimeError, TimeoutError)) as over:
        asyncio.run(story())
    assert "the port is gone" in repr(over.value)
