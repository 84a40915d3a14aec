"""How does a payload get from a file through chunks into a file, and go on after a break?"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

import blake3
import google_crc32c

from fedreid import faults
from fedreid.errors import Refusal, StorageError, UpdateRefused, storage_errors
from fedreid.files import read_into, remove_file
from fedreid.limits import (
    CHUNK_BYTES,
    FIRST_CHUNK_BYTES,
    LEAST_CHUNK_BYTES,
    SENT_CHUNK_BYTES,
    SLOW_CHUNK_S,
)
from fedreid.names import Digest
from fedreid.spares import ZEROS, Spares
from fedreid.wire.chunks import AnyChunk, Chunk, ChunkMessage
from fedreid.work import off_loop

Read: TypeAlias = Callable[[int, int], Awaitable[ChunkMessage]]
"""Gives a chunk of a payload, by its offset and size in bytes."""


async def send_chunks(read: Read, *, size: int, offset: int) -> AsyncIterator[ChunkMessage]:
    """The payload of ``size`` bytes that ``read`` reads, from ``offset`` on.

    Chunks grow while the line takes them fast, and shrink where it is slow: a chunk is what a
    break loses, and what the other side waits for before it takes the sender for dead.
    """
    clock_s = asyncio.get_running_loop().time
    chunk_bytes = FIRST_CHUNK_BYTES
    while offset < size:
        message = await read(offset, min(chunk_bytes, size - offset))
        given_s = clock_s()
        yield message
        chunk_bytes = _next_size(chunk_bytes, clock_s() - given_s)
        offset += len(message.chunk.data)


def reading(path: Path, start: int) -> Read:
    """Reads the payload that lies in ``path`` at ``start``."""

    async def read(offset: int, count: int) -> ChunkMessage:
        return await off_loop(_read_chunk, path, start, offset, count)

    return read


def reading_alone(path: Path, start: int) -> Read:
    """The same for a program with nothing else to do meanwhile: the event loop itself reads.

    A thread of the pool would take a sixth of an agent's CPU time of a round for itself.
    """

    async def read(offset: int, count: int) -> ChunkMessage:
        return _read_chunk(path, start, offset, count)

    return read


def _read_chunk(path: Path, start: int, offset: int, count: int) -> ChunkMessage:
    with storage_errors("read", path), path.open("rb", buffering=0) as stream:
        data = os.pread(stream.fileno(), count, start + offset)
    if not data:
        raise StorageError(f"The file {path} has become shorter while it was sent")
    return ChunkMessage(Chunk(offset=offset, crc32c=google_crc32c.value(data), data=data))


def _next_size(chunk_bytes: int, took_s: float) -> int:
    if took_s > SLOW_CHUNK_S:
        return max(chunk_bytes // 2, LEAST_CHUNK_BYTES)
    return min(chunk_bytes * 2, SENT_CHUNK_BYTES) if took_s < SLOW_CHUNK_S / 4 else chunk_bytes


class PartialFile:
    """A payload on its way into a file: resumable by offset, and durable where that is asked for.

    The file begins with ``prefix``, which is not part of the payload (the header that makes an
    fp32 payload a canonical model file). What an earlier attempt left is kept and hashed again;
    the digest over the whole decides in the end, so a torn write can't survive.

    A spare may be written over, so how much has come is not how long the file is: up to its last
    byte that is not zero (see :func:`bytes_held`).
    """

    def __init__(
        self, path: Path, *, prefix: bytes, size: int, spares: Spares | None = None
    ) -> None:
        self.path = path
        self._prefix = prefix
        self._size = size
        self._payload_hasher = blake3.blake3()
        self._file_hasher = blake3.blake3(prefix)
        self.offset = 0
        with storage_errors("write", path):
            zeros = (
                spares is not None and not path.exists() and spares.take(len(prefix) + size, path)
            )
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                self._take_up(0 if zeros else _content_end(self._descriptor))
            except BaseException:
                os.close(self._descriptor)
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the descriptor; the bytes so far stay for the next attempt."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def write(self, chunk: AnyChunk) -> None:
        """Take the next chunk.

        Raises:
            UpdateRefused: a wrong offset, size or checksum.
            StorageError: the disk is full or fails.
        """
        data = chunk.data
        if not 0 < len(data) <= CHUNK_BYTES:
            raise UpdateRefused(Refusal.CHUNK, f"A chunk has {len(data)} bytes")
        if chunk.offset != self.offset:
            raise UpdateRefused(
                Refusal.CHUNK, f"A chunk begins at {chunk.offset}, not at {self.offset}"
            )
        if self.offset + len(data) > self._size:
            raise UpdateRefused(
                Refusal.BYTE_COUNT, f"The payload is longer than the {self._size} bytes announced"
            )
        if google_crc32c.value(data) != chunk.crc32c:
            raise UpdateRefused(Refusal.CHUNK, f"The chunk at {chunk.offset} has a wrong checksum")
        self._put(data, len(self._prefix) + self.offset)
        self._hash(data)
        self.offset += len(data)

    @property
    def file_digest(self) -> Digest:
        """Of the file so far, its prefix included."""
        return Digest((self._file_hasher if self._prefix else self._payload_hasher).hexdigest())

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` with what has come of the payload, from ``offset`` on."""
        read_into(self._descriptor, self.path, len(self._prefix) + offset, view)

    def finish(self, digest: Digest) -> None:
        """Check length and digest of what has come.

        Raises:
            UpdateRefused: truncated, or another digest; the partial file is removed.
        """
        if self.offset != self._size:
            raise UpdateRefused(
                Refusal.BYTE_COUNT, f"The payload ends after {self.offset} of {self._size} bytes"
            )
        if self._payload_hasher.hexdigest() != digest:
            self.discard()
            raise UpdateRefused(Refusal.DIGEST, "The payload has another digest than announced")

    def sync(self) -> None:
        """Make the bytes durable; the name is the caller's to sync.

        Raises:
            StorageError: the disk is full or fails.
        """
        with storage_errors("write", self.path), faults.step("payload.sync"):
            os.fsync(self._descriptor)

    def discard(self) -> None:
        """Remove the file."""
        self.close()
        remove_file(self.path)

    def _take_up(self, held: int) -> None:
        start = len(self._prefix)
        is_other = held > 0 and os.pread(self._descriptor, start, 0) != self._prefix
        if is_other or os.fstat(self._descriptor).st_size > start + self._size:
            os.ftruncate(self._descriptor, 0)
            held = 0
        if held <= start:
            self._put(self._prefix, 0)
            return
        for position in range(start, held, CHUNK_BYTES):
            data = bytearray(min(CHUNK_BYTES, held - position))
            read_into(self._descriptor, self.path, position, memoryview(data))
            self._hash(data)
        self.offset = held - start

    def _hash(self, data: bytes | bytearray) -> None:
        self._payload_hasher.update(data)
        if self._prefix:
            self._file_hasher.update(data)

    def _put(self, data: bytes, position: int) -> None:
        with storage_errors("write", self.path):
            while data:
                count = os.pwrite(self._descriptor, data, position)
                data, position = data[count:], position + count


def bytes_held(part: Path, start: int) -> int:
    """Bytes of a payload that earlier attempts have left in ``part``, where it begins at ``start``.

    Up to the last that is not zero: what else is there may be a spare's. A payload that ends in
    zeros is thought to be shorter by as many, which come once more.
    """
    if not part.exists():
        return 0
    with storage_errors("read", part), part.open("rb", buffering=0) as stream:
        return max(0, _content_end(stream.fileno()) - start)


def _content_end(descriptor: int) -> int:
    """Where the last byte that is not zero ends."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - len(ZEROS))
        block = os.pread(descriptor, end - start, start)
        if block != ZEROS[: len(block)]:  # many times as fast as to strip them
            return start + len(block.rstrip(b"\0"))
        end = start
    return 0
