"""Do chunks that are written and read by hand and protobuf's own understand each other?"""

import google_crc32c
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as some

from fedreid.v1 import federation_pb2 as pb
from fedreid.v1 import tensors_pb2
from fedreid.wire.chunks import Chunk, ChunkMessage, parser, serialiser

GENERATED = (pb.FetchModelResponse, pb.SendUploadRequest)
Generated = type[pb.FetchModelResponse] | type[pb.SendUploadRequest]

offsets = some.one_of(some.integers(0, 300), some.integers(0, 2**64 - 1))
checksums = some.one_of(some.just(0), some.integers(0, 2**32 - 1))


@pytest.mark.parametrize("generated", GENERATED)
@given(offset=offsets, crc32c=checksums, data=some.binary(max_size=300))
def test_protobuf_reads_what_is_written_by_hand(
    generated: Generated, offset: int, crc32c: int, data: bytes
) -> None:
    chunk = Chunk(offset=offset, crc32c=crc32c, data=data)
    written = serialiser(generated.SerializeToString)(ChunkMessage(chunk))
    read = generated.FromString(written)
    assert read == generated(
        chunk=tensors_pb2.Chunk(offset=offset, crc32c=crc32c, data=data)
    ) and read.HasField("chunk")


@pytest.mark.parametrize("generated", GENERATED)
@given(offset=offsets, crc32c=checksums, data=some.binary(max_size=300))
def test_what_protobuf_writes_is_read_by_hand(
    generated: Generated, offset: int, crc32c: int, data: bytes
) -> None:
    written = generated(
        chunk=tensors_pb2.Chunk(offset=offset, crc32c=crc32c, data=data)
    ).SerializeToString()
    read = parser(generated.FromString)(written)
    assert read.HasField("chunk")
    assert (read.chunk.offset, read.chunk.crc32c, bytes(read.chunk.data)) == (offset, crc32c, data)
    assert isinstance(read, ChunkMessage) == bool(data)


@pytest.mark.parametrize("generated", GENERATED)
@given(message=some.binary(max_size=60))
def test_any_bytes_mean_to_both_the_same(generated: Generated, message: bytes) -> None:
    try:
        expected = generated.FromString(message)
    except DecodeError:
        with pytest.raises(DecodeError):
            parser(generated.FromString)(message)
        return
    read = parser(generated.FromString)(message)
    if isinstance(read, ChunkMessage):
        assert expected.HasField("chunk")
        assert read.chunk.offset == expected.chunk.offset
        assert read.chunk.crc32c == expected.chunk.crc32c
        assert read.chunk.data == expected.chunk.data
    else:
        assert read == expected


def test_other_messages_go_through_the_generated_class() -> None:
    first = pb.SendUploadRequest(upload_id="u")
    assert serialiser(pb.SendUploadRequest.SerializeToString)(first) == first.SerializeToString()
    assert parser(pb.SendUploadRequest.FromString)(first.SerializeToString()) == first


def test_a_name_beside_the_chunk_is_not_lost() -> None:
    data = b"values"
    chunk = tensors_pb2.Chunk(offset=8, crc32c=google_crc32c.value(data), data=data)
    both = pb.SendUploadRequest(upload_id="u", chunk=chunk)
    assert parser(pb.SendUploadRequest.FromString)(both.SerializeToString()) == both
