"""Does systemd hear what it waits for? Against a real datagram socket."""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedreid.notify import Supervisor


@contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    """The socket that systemd would hold."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address)
        receiver.settimeout(10.0)
        yield receiver


async def _work(supervisor: Supervisor, heard: socket.socket, feeds: int) -> list[str]:
    messages = []
    async with supervisor.watching():
        for _ in range(1 + feeds):
            messages.append((await asyncio.to_thread(heard.recv, 4096)).decode())
    return messages


@pytest.mark.parametrize("abstract", [False, True])
def test_ready_then_the_watchdog_then_stopping(tmp_path: Path, abstract: bool) -> None:
    name = f"fedreid-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with listening("\0" + name if abstract else name) as heard:
        environment = {"NOTIFY_SOCKET": ("@" if abstract else "") + name, "WATCHDOG_USEC": "20000"}
        messages = asyncio.run(_work(Supervisor(environment), heard, feeds=3))
        assert messages == ["READY=1", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1"]
        last = heard.recv(4096)
        while last == b"WATCHDOG=1":
            last = heard.recv(4096)
        assert last == b"STOPPING=1"


def test_without_a_watchdog_none_is_fed(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with listening(address) as heard:
        for watchdog in ({}, {"WATCHDOG_USEC": "20000", "WATCHDOG_PID": "1"}):
            supervisor = Supervisor({"NOTIFY_SOCKET": address, **watchdog})
            assert asyncio.run(_work(supervisor, heard, feeds=0)) == ["READY=1"]
            assert heard.recv(4096) == b"STOPPING=1"


def test_what_is_said_last_is_the_status(tmp_path: Path) -> None:
    said: list[str] = []
    address = str(tmp_path / "notify")
    with listening(address) as heard:
        Supervisor({"NOTIFY_SOCKET": address}).heard(said.append)("round 3\nis open")
        assert heard.recv(4096) == b"STATUS=round 3 is open"
    assert said == ["round 3\nis open"]


def test_a_supervisor_that_is_away_or_none_at_all_stops_nothing(tmp_path: Path) -> None:
    async def work(supervisor: Supervisor) -> str:
        supervisor.heard(print)("a line")
        async with supervisor.watching():
            return "done"

    for environment in ({}, {"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "9"}):
        assert asyncio.run(work(Supervisor(environment))) == "done"
