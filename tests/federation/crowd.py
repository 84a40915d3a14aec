"""Who only holds the door? ``python -m tests.federation.crowd ADDRESS IDENTITY IDLE HALF_OPEN``.

Holds so many idle connections (TLS and HTTP/2 as they should be, every ping answered, never a
call) and so many half-open sockets (half a greeting, then silence), and opens each again as soon
as it is closed. Prints a line when all of them stand; ends when standard input is closed.
"""

import asyncio
import contextlib
import resource
import ssl
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from fedreid.pki.identity import IdentityStore
from tests.coordinator.trust import raw

_HALF_A_GREETING = b"\x16\x03\x01\x02\x00\x01\x00"
_AT_ONCE = 16
_FRAME_BYTES = 9
_SETTINGS, _PING, _GOAWAY, _ACK = 4, 6, 7, 1


class Crowd:
    """Connections of which some stand and some are on their way."""

    def __init__(self, address: str, context: ssl.SSLContext, *, idle: int, half_open: int) -> None:
        host, port = address.rsplit(":", 1)
        self._host, self._port = host, int(port)
        self._context = context
        self._dialling = asyncio.Semaphore(_AT_ONCE)
        self._size = (idle, half_open)
        self._count = 0
        self._told = False

    async def hold(self) -> None:
        """Hold all of them until cancelled."""
        idle, half_open = self._size
        await asyncio.gather(
            *(self._again(self._idle) for _ in range(idle)),
            *(self._again(self._half_open) for _ in range(half_open)),
        )

    async def _again(self, held: Callable[[], Awaitable[None]]) -> None:
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await held()

    @contextlib.contextmanager
    def _standing(self) -> Iterator[None]:
        """One more stands; the first time that all do is told."""
        self._count += 1
        if self._count == sum(self._size) and not self._told:
            self._told = True
            print(f"{self._size[0]} idle and {self._size[1]} half-open", flush=True)
        try:
            yield
        finally:
            self._count -= 1

    async def _half_open(self) -> None:
        async with self._dialling:
            reader, writer = await asyncio.open_connection(self._host, self._port)
        with self._standing(), contextlib.closing(writer):
            writer.write(_HALF_A_GREETING)
            await reader.read()

    async def _idle(self) -> None:
        async with self._dialling:
            reader, writer = await asyncio.open_connection(
                self._host, self._port, ssl=self._context, server_hostname=self._host
            )
            with contextlib.ExitStack() as broken:
                broken.callback(writer.close)
                writer.write(raw.PREFACE + raw.frame(_SETTINGS, 0, 0))
                await self._answered(reader, writer)  # the server's own greeting
                broken.pop_all()
        with self._standing(), contextlib.closing(writer):
            while await self._answered(reader, writer):
                pass

    async def _answered(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Take one frame and answer it; whether the connection goes on."""
        head = await reader.readexactly(_FRAME_BYTES)
        payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
        kind, flags = head[3], head[4]
        if kind in (_SETTINGS, _PING) and not flags & _ACK:
            writer.write(raw.frame(kind, _ACK, 0, payload if kind == _PING else b""))
        return kind != _GOAWAY


async def main() -> None:
    """Hold the door until standard input is closed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    address, identity, idle, half_open = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        context = raw.client_context(Path(folder), IdentityStore(Path(identity)).load())
    crowd = asyncio.create_task(
        Crowd(address, context, idle=int(idle), half_open=int(half_open)).hold()
    )
    closed = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    await asyncio.wait((crowd, closed), return_when=asyncio.FIRST_COMPLETED)
    crowd.cancel()


if __name__ == "__main__":
    asyncio.run(main())
