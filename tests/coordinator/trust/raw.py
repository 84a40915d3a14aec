"""Who knocks without gRPC's manners? Connections, calls and pieces of calls, byte by byte.

Just enough of HTTP/2 to say what a test wants and to read what came of it. The client's table of
header fields has no room, so every header field of an answer comes in plain letters.
"""

import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from fedreid.pki.identity import Identity, IdentityStore

WAIT_S = 15.0
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_ACK = _END_STREAM = 0x1
_END_HEADERS = 0x4
_FRAME_BYTES = 9
_DATA_BYTES = 16_384
_STATUS = b"\x0bgrpc-status"
REFUSED = (ssl.SSLError, ConnectionError)
"""What a client sees of a handshake that the port refuses."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def message(body: bytes) -> bytes:
    """A message as gRPC frames it."""
    return struct.pack(">BI", 0, len(body)) + body


def client_context(
    folder: Path,
    caller: Identity | None,
    *,
    authorities_pem: bytes = b"",
    lowest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
    highest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> ssl.SSLContext:
    """A client's TLS settings; the identity is laid down in ``folder``, an empty one."""
    trusted = authorities_pem or (b"" if caller is None else caller.authorities_pem)
    context = ssl.create_default_context(cadata=trusted.decode())
    context.minimum_version, context.maximum_version = lowest, highest
    context.set_alpn_protocols(["h2"])
    if caller is not None:
        IdentityStore(folder).save(caller)
        context.load_cert_chain(folder / "live" / "certificate.pem", folder / "live" / "key.pem")
    return context


class Raw:
    """One connection over TLS that speaks HTTP/2 as it is told."""

    def __init__(self, spoken: ssl.SSLSocket) -> None:
        self.spoken = spoken
        self._got = b""
        self._next_stream = 1
        self.statuses: dict[int, grpc.StatusCode] = {}
        """What gRPC answered on each stream."""
        no_table = struct.pack(">HI", 0x1, 0)
        spoken.sendall(PREFACE + frame(_SETTINGS, 0, 0, no_table))

    def begin(self, path: str, data: bytes = b"", *, ended: bool = False) -> int:
        """Begin a call with some bytes of its body; the stream's number."""
        stream = self._next_stream
        self._next_stream += 2
        self.spoken.sendall(self._headers(path, stream))
        self.send(stream, data, ended=ended)
        return stream

    def packed(self, path: str, data: bytes) -> bytes:
        """The frames of a whole call, which nobody has sent yet."""
        stream = self._next_stream
        self._next_stream += 2
        return self._headers(path, stream) + frame(_DATA, _END_STREAM, stream, data)

    def _headers(self, path: str, stream: int) -> bytes:
        fields = {
            ":method": "POST", ":scheme": "https", ":path": path, ":authority": "127.0.0.1",
            "te": "trailers", "content-type": "application/grpc",
        }  # fmt: skip
        packed = b"".join(
            bytes([0, len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
            for name, value in fields.items()
        )
        return frame(_HEADERS, _END_HEADERS, stream, packed)

    def send(self, stream: int, data: bytes, *, ended: bool = False) -> None:
        """Send more of a call's body; the caller minds the window."""
        for start in range(0, max(len(data), 1), _DATA_BYTES):
            piece = data[start : start + _DATA_BYTES]
            last = ended and start + _DATA_BYTES >= len(data)
            if piece or last:
                self.spoken.sendall(frame(_DATA, _END_STREAM if last else 0, stream, piece))

    def call(self, path: str, body: bytes = b"") -> grpc.StatusCode:
        """Make a whole call; its status."""
        return self.status(self.begin(path, message(body), ended=True))

    def status(self, stream: int) -> grpc.StatusCode:
        """Read until the call on ``stream`` has ended.

        Raises:
            ConnectionError: the connection or stream ended without a status.
        """
        while stream not in self.statuses:
            self.read()
        return self.statuses[stream]

    def read(self) -> None:
        """Take what comes next, answering pings as a live client would."""
        piece = self.spoken.recv(65_536)
        if not piece:
            raise ConnectionResetError
        self._got += piece
        while len(self._got) >= _FRAME_BYTES:
            size = int.from_bytes(self._got[:3], "big")
            if len(self._got) < _FRAME_BYTES + size:
                return
            kind, flags, stream = struct.unpack(">BBI", self._got[3:_FRAME_BYTES])
            payload = self._got[_FRAME_BYTES : _FRAME_BYTES + size]
            self._got = self._got[_FRAME_BYTES + size :]
            self._take(kind, flags, stream, payload)

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _PING and not flags & _ACK:
            self.spoken.sendall(frame(_PING, _ACK, 0, payload))
        elif kind == _SETTINGS and not flags & _ACK:
            self.spoken.sendall(frame(_SETTINGS, _ACK, 0))
        elif kind == _HEADERS and _STATUS in payload:
            at = payload.index(_STATUS) + len(_STATUS)
            code = int(payload[at + 1 : at + 1 + payload[at]])
            self.statuses[stream] = next(s for s in grpc.StatusCode if s.value[0] == code)
        elif kind == _RST_STREAM and stream not in self.statuses:
            raise ConnectionResetError(f"the stream {stream} was reset")
        elif kind == _GOAWAY:
            raise ConnectionResetError("the server says good-bye")


@contextmanager
def connected(
    address: str, context: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> Iterator[Raw]:
    """A connection to the port; with a session it asks to resume that."""
    host, port = address.rsplit(":", 1)
    with (
        socket.create_connection((host, int(port)), timeout=WAIT_S) as plain,
        context.wrap_socket(plain, server_hostname=host, session=session) as spoken,
    ):
        yield Raw(spoken)
