"""How does a message that holds nothing but a chunk cross with its bytes copied only once?

The contract is protobuf's, and what is written here any protobuf reads. But the generated classes
copy a chunk's bytes at each step: into the chunk, into the message, into its serialised form, and
back. So such a message is written by hand, its few bytes before the data, and what has come is
cut out of it. Whatever does not look exactly like that is left to the generated class.

``FetchModelResponse`` and ``SendUploadRequest`` both hold their chunk in field 2.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

from fedreid.v1 import tensors_pb2

_CHUNK_FIELD = 0x12  # field 2 of the message, with a length
_OFFSET_FIELD = 0x08  # field 1 of the chunk, a varint
_CHECKSUM_FIELD = 0x15  # field 2, four bytes
_DATA_FIELD = 0x1A  # field 3, with a length
_CHECKSUM = struct.Struct("<I")
_VARINT_BYTES = 10
_LARGEST = 2**64 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A piece of a payload; the fields of the generated class."""

    offset: int
    crc32c: int
    data: bytes

    def to_wire(self) -> tensors_pb2.Chunk:
        """The generated class, for messages that hold more than a chunk."""
        return tensors_pb2.Chunk(offset=self.offset, crc32c=self.crc32c, data=self.data)


AnyChunk: TypeAlias = Chunk | tensors_pb2.Chunk
"""However it was read."""


@dataclass(frozen=True)
class ChunkMessage:
    """A message with a chunk and nothing else, as both generated classes show it."""

    chunk: Chunk

    def HasField(self, name: str) -> bool:  # noqa: N802 - the name of the generated classes
        """Whether a part of the message is there."""
        return name == "chunk"

    @property
    def upload_id(self) -> Literal[""]:
        """Only the first message of an upload names it."""
        return ""

    @cached_property
    def serialised(self) -> bytes:
        """The message on the wire; written once, to however many it is sent."""
        chunk = self.chunk
        head = b"".join(
            (
                bytes((_OFFSET_FIELD,)),
                _varint(chunk.offset),
                bytes((_CHECKSUM_FIELD,)),
                _CHECKSUM.pack(chunk.crc32c),
                bytes((_DATA_FIELD,)),
                _varint(len(chunk.data)),
            )
        )
        size = _varint(len(head) + len(chunk.data))
        return b"".join((bytes((_CHUNK_FIELD,)), size, head, chunk.data))


def serialiser(generated: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Writes chunk messages by hand, and others as ``generated`` does."""

    def serialise(message: Any) -> bytes:
        return message.serialised if isinstance(message, ChunkMessage) else generated(message)

    return serialise


def parser(generated: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Reads chunk messages by hand, and others as ``generated`` does."""

    def parse(message: bytes) -> Any:
        chunk = _only_chunk(message)
        return generated(message) if chunk is None else ChunkMessage(chunk)

    return parse


def _only_chunk(message: bytes) -> Chunk | None:
    """The chunk of a message as ``ChunkMessage.serialised`` writes it; None of any other."""
    try:
        if message[0] != _CHUNK_FIELD:
            return None
        size, at = _read_varint(message, 1)
        if at + size != len(message):
            return None
        offset = checksum = 0
        if message[at] == _OFFSET_FIELD:  # protobuf leaves out what is 0
            offset, at = _read_varint(message, at + 1)
        if message[at] == _CHECKSUM_FIELD:
            (checksum,) = _CHECKSUM.unpack_from(message, at + 1)
            at += 1 + _CHECKSUM.size
        if message[at] != _DATA_FIELD:
            return None
        size, at = _read_varint(message, at + 1)
    except (IndexError, ValueError, struct.error):
        return None
    if at + size != len(message):
        return None
    return Chunk(offset=offset, crc32c=checksum, data=message[at:])


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """A varint and where it ends; ValueError for one that protobuf would refuse or cut."""
    value = 0
    for place in range(_VARINT_BYTES):
        byte = message[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            if value > _LARGEST:
                break
            return value, at + place + 1
    raise ValueError("no varint")
