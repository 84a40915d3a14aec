"""Does the proxy itself do to a line what a test asks for? Else tests through it prove nothing."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.federation.proxy import Line, Proxy

_WAIT_S = 20.0


class Echo:
    """Sends back what comes, and notes how each connection ended."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.ended = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)
        self.ended.set()


@pytest.fixture
def echo() -> Iterator[Echo]:
    """Somebody who answers."""
    echo = Echo()
    yield echo
    echo.close()


def dialled(proxy: Proxy) -> socket.socket:
    host, _, port = proxy.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=_WAIT_S)


def echoed(client: socket.socket, data: bytes) -> bytes:
    """Send and take back as much."""
    client.sendall(data)
    back = b""
    while len(back) < len(data) and (piece := client.recv(65536)):
        back += piece
    return back


def test_a_good_line_changes_nothing(echo: Echo) -> None:
    data = bytes(range(256)) * 1000
    with Proxy(echo.address) as proxy, dialled(proxy) as client:
        threading.Thread(target=client.sendall, args=(data,), daemon=True).start()
        back = b""
        while len(back) < len(data):
            back += client.recv(65536)
        assert back == data
        assert proxy.passed["up"] == len(data)


def test_latency_and_bandwidth_hold_in_each_direction(echo: Echo) -> None:
    line = Line(latency_s=0.1, bytes_per_s=20_000)
    with Proxy(echo.address, line=line) as proxy, dialled(proxy) as client:
        began_s = time.monotonic()
        assert echoed(client, b"x" * 20_000) == b"x" * 20_000
        assert time.monotonic() - began_s >= 2 * 0.1 + 0.75 * 20_000 / 20_000


def test_a_cut_comes_at_its_byte_and_breaks_both_ends(echo: Echo) -> None:
    with Proxy(echo.address) as proxy, dialled(proxy) as client:
        done = proxy.cut_after("up", 1000)
        assert echoed(client, b"x" * 999) == b"x" * 999
        assert not done.is_set()
        with pytest.raises(OSError, match="reset"):
            client.sendall(b"x")
            client.recv(1)
            client.recv(1)
        assert done.wait(_WAIT_S) and echo.ended.wait(_WAIT_S)
        with dialled(proxy) as again:
            assert echoed(again, b"back") == b"back"


def test_a_partition_lets_nothing_through_and_loses_nothing(echo: Echo) -> None:
    with Proxy(echo.address) as proxy, dialled(proxy) as client:
        assert echoed(client, b"a") == b"a"
        proxy.partition()
        threading.Timer(0.3, proxy.heal).start()
        began_s = time.monotonic()
        assert echoed(client, b"b") == b"b"
        assert time.monotonic() - began_s > 0.2


@pytest.mark.parametrize("side", ["agent", "coordinator"])
def test_half_open_is_one_side_that_hears_nothing(echo: Echo, side: str) -> None:
    with Proxy(echo.address) as proxy, dialled(proxy) as client:
        assert echoed(client, b"a") == b"a"
        proxy.forsake("agent" if side == "agent" else "coordinator")
        if side == "agent":
            with pytest.raises(OSError, match="reset"):
                client.recv(1)
            assert not echo.ended.is_set()
        else:
            assert echo.ended.wait(_WAIT_S)
            client.sendall(b"into the void")
            client.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.recv(1)
