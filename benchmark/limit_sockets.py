"""What does ``limit.c`` do, where it can't be built? The same with Python's own TLS sockets.

``python -m benchmark.limit_sockets CERTIFICATE KEY SILOS DOWN_BYTES UP_BYTES``; a thread for each
end of each connection, which Python lets run side by side while OpenSSL encrypts.
"""

import contextlib
import socket
import ssl
import sys
import threading
import time
from dataclasses import dataclass, field

import numpy as np

_CHUNK = 1 << 20
_ITEM = 4


@dataclass(kw_only=True)
class _Round:
    """What the threads share."""

    silos: int
    down_bytes: int
    up_bytes: int
    begin: threading.Barrier = field(init=False)
    end: threading.Barrier = field(init=False)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.begin, self.end = threading.Barrier(self.silos + 1), threading.Barrier(self.silos + 1)
        self.model = np.zeros(max(self.down_bytes, self.up_bytes) // _ITEM, dtype=np.float32)
        self.sum = np.zeros(self.up_bytes // _ITEM)


def _take(line: ssl.SSLSocket, view: memoryview) -> None:
    done = 0
    while done < len(view):
        count = line.recv_into(view[done:])
        if not count:
            raise EOFError("the other end has closed the connection")
        done += count


def _serve(line: ssl.SSLSocket, state: _Round) -> None:
    chunk = np.zeros(_CHUNK // _ITEM, dtype=np.float32)
    down = state.model.view(np.uint8).data[: state.down_bytes]
    while True:
        state.begin.wait()
        for at in range(0, len(down), _CHUNK):
            line.sendall(down[at : at + _CHUNK])
        for at in range(0, len(state.sum), len(chunk)):
            part = chunk[: len(state.sum) - at]
            _take(line, part.view(np.uint8).data)
            with state.lock:
                state.sum[at : at + len(part)] += part * (1.0 / state.silos)
        state.end.wait()


def _train(address: tuple[str, int], state: _Round) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    own = np.zeros_like(state.model)
    view = own.view(np.uint8).data
    with (
        socket.create_connection(address) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as line,
    ):
        while True:
            _take(line, view[: state.down_bytes])
            own += np.float32(1e-3)
            for at in range(0, state.up_bytes, _CHUNK):
                line.sendall(view[at : min(at + _CHUNK, state.up_bytes)])


def main(certificate: str, key: str, silos: int, down_bytes: int, up_bytes: int) -> None:
    """Do one round for each line on standard input, and print its seconds."""
    state = _Round(silos=silos, down_bytes=down_bytes, up_bytes=up_bytes)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=silos))
        for _ in range(silos):
            address = listening.getsockname()
            threading.Thread(target=_train, args=(address, state), daemon=True).start()
            plain, _ = listening.accept()
            line = stack.enter_context(context.wrap_socket(plain, server_side=True))
            threading.Thread(target=_serve, args=(line, state), daemon=True).start()
        for _ in sys.stdin:
            state.sum[:] = 0.0
            began_s = time.perf_counter()
            state.begin.wait()
            state.end.wait()
            state.model[: len(state.sum)] = state.sum
            print(f"{time.perf_counter() - began_s:.6f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))
