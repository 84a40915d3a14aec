"""What is held open at the port, for how long, and how much of it?

The whole coordinator serves; limits that would take a test too long are made short.
"""

import asyncio
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from coordinator import server
from coordinator.trust import port
from fedreid.limits import CONNECTIONS, FILES_KEPT_FREE, FILES_PER_CONNECTION, HANDSHAKE_S
from fedreid.pki.identity import Identity
from tests.coordinator.trust import raw
from tests.coordinator.trust.assembled import Assembled, lived

SHORT_S = 0.5
SLACK_S = 5.0
CLIENT_HELLO_BEGUN = b"\x16\x03\x01\x02\x00\x01\x00"


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Assembled]:
    """A coordinator's data folder, ready to serve."""
    yield Assembled(tmp_path / "coordinator")


def dialled(coordinator: Assembled) -> socket.socket:
    host, number = coordinator.address.rsplit(":", 1)
    return socket.create_connection((host, int(number)), timeout=raw.WAIT_S)


def closed_after_s(connection: socket.socket) -> float:
    """How long it took the port to close a connection."""
    began_s = time.monotonic()
    while connection.recv(4096):
        pass
    return time.monotonic() - began_s


# Handshakes that are never finished


@pytest.mark.parametrize("sent", [b"", CLIENT_HELLO_BEGUN], ids=["nothing", "half a greeting"])
def test_a_half_open_socket_is_closed_when_its_time_is_over(
    coordinator: Assembled, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(port, "HANDSHAKE_S", SHORT_S)

    def knock() -> float:
        with dialled(coordinator) as connection:
            connection.sendall(sent)
            return closed_after_s(connection)

    async def story(_: Assembled) -> None:
        took_s = await asyncio.to_thread(knock)
        assert SHORT_S * 0.8 < took_s < SHORT_S + SLACK_S

    lived(coordinator, story)


def test_who_finishes_tls_but_never_speaks_http_2_is_closed_too(
    coordinator: Assembled, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(port, "HANDSHAKE_S", SHORT_S)

    def knock(identity: Identity) -> float:
        context = raw.client_context(tmp_path / "caller", identity)
        with (
            dialled(coordinator) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as spoken,
        ):
            return closed_after_s(spoken)

    async def story(_: Assembled) -> None:
        silo = await coordinator.enrolled("north")
        took_s = await asyncio.to_thread(knock, silo)
        assert took_s < SHORT_S + SLACK_S

    lived(coordinator, story)


# Connections without a call


def test_an_idle_connection_is_closed_though_it_answers_every_ping(
    coordinator: Assembled, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(port, "CONNECTION_IDLE_S", SHORT_S)

    def idle(identity: Identity) -> None:
        context = raw.client_context(tmp_path / "caller", identity)
        with raw.connected(coordinator.address, context) as connection:
            while True:
                connection.read()

    async def story(_: Assembled) -> None:
        silo = await coordinator.enrolled("north")
        async with asyncio.timeout(SHORT_S + SLACK_S):
            with pytest.raises(ConnectionResetError):
                await asyncio.to_thread(idle, silo)

    lived(coordinator, story)


# All of them together


def test_connections_beyond_the_limit_are_closed_at_once_and_room_comes_back(
    coordinator: Assembled, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 20
    monkeypatch.setattr(server, "room_for_connections", lambda: limit)

    def crowd() -> None:
        with ExitStack() as stack:
            for _ in range(limit):
                stack.enter_context(dialled(coordinator))
            with dialled(coordinator) as one_more:
                assert closed_after_s(one_more) < HANDSHAKE_S / 2

    async def story(_: Assembled) -> None:
        await asyncio.to_thread(crowd)
        await coordinator.silos()  # an honest caller, as soon as the crowd has gone

    lived(coordinator, story)


@contextmanager
def files_limited(soft: int) -> Iterator[None]:
    """A soft limit of open files as a service manager might set it."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))


def test_a_low_soft_limit_of_files_is_raised_as_far_as_it_may_be() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS * FILES_PER_CONNECTION + FILES_KEPT_FREE
    raised = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    with files_limited(1024 if raised > 1024 else raised):
        assert port.room_for_connections() == port.connections_of(raised)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (raised, hard)


@pytest.mark.parametrize(
    ("files", "connections"),
    [
        (resource.RLIM_INFINITY, CONNECTIONS),
        (1_000_000, CONNECTIONS),
        (1024, (1024 - FILES_KEPT_FREE) // FILES_PER_CONNECTION),
        (256, 1),
    ],
)
def test_connections_leave_files_for_everything_else(files: int, connections: int) -> None:
    assert port.connections_of(files) == connections


def test_too_few_files_for_all_connections_are_told() -> None:
    assert port.connections_told(CONNECTIONS) == ""
    assert "at most 170 connections" in port.connections_told(170)
    assert "LimitNOFILE" in port.connections_told(170)
