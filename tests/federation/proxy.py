"""What lies between a silo and its coordinator? A TCP relay whose line a test makes bad at will.

It runs in a thread of the test; TLS passes through it untouched. ``up`` is from agent to
coordinator, ``down`` is back. Nothing here knows gRPC: what it does, real networks do.
"""

import asyncio
import contextlib
import math
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Self

Way = Literal["up", "down"]
Side = Literal["agent", "coordinator"]

_READ_BYTES = 16 * 1024
_QUEUED_BYTES = 64 * 1024
"""On the way in each direction before the sender has to wait: a router's buffer."""
_CATCHING_UP_S = 0.2
"""By so much a line may be ahead of its pace after it has been behind it."""
_NARROW_BYTES = 16 * 1024
"""Of the sockets' own buffers where the line is slow, or they would swallow a whole upload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What a way through the proxy is like."""

    latency_s: float = 0.0
    bytes_per_s: float = math.inf


class Proxy:
    """Relays connections to one address, until left."""

    def __init__(
        self, target: str, *, line: Line | None = None, listens: str = "127.0.0.1"
    ) -> None:
        self._listens = listens
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self.line: dict[Way, Line] = {"up": line or Line(), "down": line or Line()}
        """Looked at for each piece: may be changed at any time."""
        self.passed: dict[Way, int] = {"up": 0, "down": 0}
        """Bytes so far."""
        self.connections = 0
        """Made so far."""
        self._narrow = line is not None and line.bytes_per_s < math.inf
        self._links: set[_Link] = set()
        self._traps: dict[Way, tuple[int, Callable[[], None]]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")

    def __enter__(self) -> Self:
        self._open = asyncio.Event()
        self._open.set()
        self._thread.start()
        listener = socket.create_server((self._listens, 0))
        self._narrowed(listener)
        named = "localhost" if self._listens == "127.0.0.1" else self._listens
        self.address = f"{named}:{listener.getsockname()[1]}"
        started = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._relay, sock=listener), self._loop
        )
        self._server = started.result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def partition(self) -> None:
        """Let nothing through, not even an end, until healed; nobody is told."""
        self._call(self.part)

    def part(self, heals_after_s: float | None = None) -> None:
        """:meth:`partition`, for what is done in the proxy's own thread; may heal by itself."""
        self._open.clear()
        if heals_after_s is not None:
            self._loop.call_later(heals_after_s, self._open.set)

    def heal(self) -> None:
        """Let through again, what has been waiting first."""
        self._call(self._open.set)

    def cut(self) -> None:
        """Break every connection off, at both ends; what is on its way is lost."""
        self._call(self._cut)

    def forsake(self, side: Side) -> None:
        """Half-open: that side is gone or sees a break, and the other hears nothing of it."""
        self._call(lambda: self.leave(side))

    def leave(self, side: Side) -> None:
        """:meth:`forsake`, for what is done in the proxy's own thread."""
        for link in list(self._links):
            link.forsake(side)

    def when_passed(self, way: Way, size_bytes: int, then: Callable[[], None]) -> threading.Event:
        """Do something as soon as so many more bytes have gone a way; the event says that it is."""
        done = threading.Event()

        def fire() -> None:
            then()
            done.set()

        self._call(lambda: self._traps.update({way: (self.passed[way] + size_bytes, fire)}))
        return done

    def cut_after(self, way: Way, size_bytes: int) -> threading.Event:
        """Cut once, when so many more bytes have gone a way."""
        return self.when_passed(way, size_bytes, self._cut)

    def note(self, way: Way, size_bytes: int) -> None:
        """Bytes have gone through."""
        self.passed[way] += size_bytes
        due_bytes, fire = self._traps.get(way, (math.inf, None))
        if fire is not None and self.passed[way] >= due_bytes:
            del self._traps[way]
            fire()

    async def passable(self) -> None:
        """Wait for the end of a partition."""
        await self._open.wait()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await self.passable()
        self._narrowed(writer.get_extra_info("socket"))
        upstream = socket.socket()
        self._narrowed(upstream)
        upstream.setblocking(False)
        try:
            await self._loop.sock_connect(upstream, self._target)
        except OSError:
            upstream.close()
            writer.transport.abort()
            return
        link = _Link(self, (reader, writer), await asyncio.open_connection(sock=upstream))
        self._links.add(link)
        try:
            await link.relay()
        except asyncio.CancelledError:
            return  # the proxy stops; asyncio would complain of a cancelled relay
        finally:
            self._links.discard(link)

    def _cut(self) -> None:
        for link in list(self._links):
            link.cut()

    async def _stop(self) -> None:
        self._server.close()
        self._cut()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _narrowed(self, sock: socket.socket) -> None:
        if self._narrow:
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, _NARROW_BYTES)

    def _call(self, function: Callable[[], object]) -> None:
        """Call in the proxy's thread, and wait until it is done."""

        async def call() -> None:
            function()

        asyncio.run_coroutine_threadsafe(call(), self._loop).result()


Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Link:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, agent: Ends, coordinator: Ends) -> None:
        self._proxy = proxy
        self._agent, self._coordinator = agent, coordinator
        self._forsaken = False

    async def relay(self) -> None:
        """Pass bytes until both ways have ended."""
        await asyncio.gather(
            self._pass("up", self._agent[0], self._coordinator[1]),
            self._pass("down", self._coordinator[0], self._agent[1]),
        )
        if not self._forsaken:
            self.cut()

    def cut(self) -> None:
        """Break off at both ends, as a firewall does that resets."""
        for _, writer in (self._agent, self._coordinator):
            _reset(writer)

    def forsake(self, side: Side) -> None:
        """Break off at one end; the other hears nothing, and what it says goes nowhere."""
        self._forsaken = True
        _reset((self._agent if side == "agent" else self._coordinator)[1])

    async def _pass(
        self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUED_BYTES // _READ_BYTES)
        writing = asyncio.create_task(self._write(way, pieces, writer))
        with contextlib.suppress(OSError):
            while data := await reader.read(_READ_BYTES):
                now_s = asyncio.get_running_loop().time()
                await pieces.put((now_s + self._proxy.line[way].latency_s, data))
        await pieces.put((0.0, b""))
        await writing

    async def _write(
        self,
        way: Way,
        pieces: "asyncio.Queue[tuple[float, bytes]]",
        writer: asyncio.StreamWriter,
    ) -> None:
        loop = asyncio.get_running_loop()
        free_s = 0.0
        while True:
            due_s, data = await pieces.get()
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            await self._proxy.passable()
            if self._forsaken or writer.transport.is_closing():
                if not data:
                    return
                continue
            if not data:
                with contextlib.suppress(OSError):
                    writer.write_eof()
                return
            for part in _parts(data, self._proxy.line[way].bytes_per_s):
                late_s = loop.time() - _CATCHING_UP_S  # a busy machine sleeps too long
                free_s = max(free_s, late_s) + len(part) / self._proxy.line[way].bytes_per_s
                await asyncio.sleep(max(0.0, free_s - loop.time()))
                with contextlib.suppress(OSError):
                    writer.write(part)
                    await writer.drain()
                self._proxy.note(way, len(part))


def _parts(data: bytes, bytes_per_s: float) -> Iterator[bytes]:
    """On a slow line packets come one by one."""
    step = len(data) if bytes_per_s == math.inf else 1400
    for at in range(0, len(data), step):
        yield data[at : at + step]


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):  # closed already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
