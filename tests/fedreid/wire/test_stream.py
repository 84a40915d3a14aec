"""Does a payload arrive whole, go on after a break, and never end as something else?"""

import asyncio
import itertools
import os
from pathlib import Path

import blake3
import google_crc32c
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

import fedreid.spares
from fedreid.errors import Refusal, StorageError, UpdateRefused
from fedreid.limits import (
    CHUNK_BYTES,
    FIRST_CHUNK_BYTES,
    KIB,
    LEAST_CHUNK_BYTES,
    MESSAGE_IDLE_S,
    SENT_CHUNK_BYTES,
)
from fedreid.names import Digest
from fedreid.spares import Spares
from fedreid.v1 import tensors_pb2
from fedreid.wire.chunks import Chunk
from fedreid.wire.stream import PartialFile, bytes_held, reading, send_chunks

PAYLOAD = bytes(range(256)) * 4
PREFIX = b"header--"


def chunk(offset: int, data: bytes, *, crc: int | None = None) -> tensors_pb2.Chunk:
    checksum = google_crc32c.value(data) if crc is None else crc
    return tensors_pb2.Chunk(offset=offset, data=data, crc32c=checksum)


def digest(data: bytes = PAYLOAD) -> Digest:
    return Digest(blake3.blake3(data).hexdigest())


def part(path: Path, *, prefix: bytes = PREFIX, size: int = len(PAYLOAD)) -> PartialFile:
    return PartialFile(path, prefix=prefix, size=size)


def reason_of(file: PartialFile, sent: tensors_pb2.Chunk) -> Refusal:
    with pytest.raises(UpdateRefused) as refused:
        file.write(sent)
    return refused.value.reason


def told(payload: bytes) -> int:
    """How much of what has come can be told from a spare's zeros."""
    return len(payload.rstrip(b"\0"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a payload arrives."""
    return tmp_path / "silo.part"


def test_a_payload_arrives_behind_its_prefix(path: Path) -> None:
    with part(path) as file:
        file.write(chunk(0, PAYLOAD[:300]))
        file.write(chunk(300, PAYLOAD[300:]))
        file.finish(digest())
    assert path.read_bytes() == PREFIX + PAYLOAD


def test_the_file_of_a_payload_is_private(path: Path) -> None:
    part(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


@given(
    cuts=some.lists(some.integers(1, len(PAYLOAD) - 1), max_size=6, unique=True).map(sorted),
    breaks=some.sets(some.integers(0, 6)),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_a_payload_goes_on_at_its_offset_after_any_breaks(
    tmp_path: Path, cuts: list[int], breaks: set[int]
) -> None:
    path = tmp_path / "cut.part"
    path.unlink(missing_ok=True)
    file = part(path)
    edges = [0, *cuts, len(PAYLOAD)]
    for index, (begin, end) in enumerate(itertools.pairwise(edges)):
        if index in breaks:
            file.close()
            file = part(path)
            assert file.offset == bytes_held(path, len(PREFIX)) == told(PAYLOAD[:begin])
        file.write(chunk(file.offset, PAYLOAD[file.offset : end]))
    file.finish(digest())
    file.close()
    assert path.read_bytes() == PREFIX + PAYLOAD


def test_a_hole_where_bytes_never_came_is_filled(path: Path) -> None:
    path.write_bytes(PREFIX + PAYLOAD[:100] + b"\0" * 28)
    with part(path) as file:
        assert file.offset == 100
        file.write(chunk(100, PAYLOAD[100:]))
        file.finish(digest())
    assert path.read_bytes() == PREFIX + PAYLOAD


def test_a_chunk_that_a_crash_tore_is_found_by_the_digest(path: Path) -> None:
    path.write_bytes(PREFIX + PAYLOAD[:100] + b"\0" * 28 + PAYLOAD[128:200])
    with part(path) as file:
        assert file.offset == 200
        file.write(chunk(200, PAYLOAD[200:]))
        with pytest.raises(UpdateRefused) as refused:
            file.finish(digest())
    assert refused.value.reason is Refusal.DIGEST
    assert not path.exists()


def a_spare(spares: Spares, folder: Path, size: int) -> None:
    old = folder / "old"
    old.write_bytes(b"x" * size)
    spares.retire(old)


def test_a_payload_goes_over_a_spare_and_on_in_it_after_any_break(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fedreid.spares, "LEAST_SPARE_BYTES", 1)
    spares = Spares(tmp_path / "spare", kept=1)
    a_spare(spares, tmp_path, len(PREFIX + PAYLOAD))
    with PartialFile(path, prefix=PREFIX, size=len(PAYLOAD), spares=spares) as file:
        assert file.offset == 0
        file.write(chunk(0, PAYLOAD[:100]))
    assert path.read_bytes() == PREFIX + PAYLOAD[:100] + bytes(len(PAYLOAD) - 100)
    with PartialFile(path, prefix=PREFIX, size=len(PAYLOAD), spares=spares) as file:
        assert file.offset == bytes_held(path, len(PREFIX)) == 100
        file.write(chunk(100, PAYLOAD[100:]))
        file.finish(digest())
    assert path.read_bytes() == PREFIX + PAYLOAD


def test_a_spare_of_which_nothing_was_written_over_begins_at_the_beginning(
    path: Path,
) -> None:
    path.write_bytes(bytes(len(PREFIX + PAYLOAD)))  # killed between taking it and the prefix
    with part(path) as file:
        assert file.offset == bytes_held(path, len(PREFIX)) == 0
        file.write(chunk(0, PAYLOAD))
        file.finish(digest())
    assert path.read_bytes() == PREFIX + PAYLOAD


def test_a_finished_file_is_taken_up_as_finished(path: Path) -> None:
    path.write_bytes(PREFIX + PAYLOAD)
    with part(path) as file:
        assert file.offset == len(PAYLOAD)
        file.finish(digest())


@pytest.mark.parametrize(
    "left",
    [
        b"",
        b"head",
        b"another-" + PAYLOAD[:50],
        PREFIX + PAYLOAD + b"x",
    ],
    ids=["nothing", "half a prefix", "another prefix", "too much"],
)
def test_what_does_not_fit_the_announcement_is_started_anew(path: Path, left: bytes) -> None:
    path.write_bytes(left)
    with part(path) as file:
        assert file.offset == 0
        file.write(chunk(0, PAYLOAD))
        file.finish(digest())
    assert path.read_bytes() == PREFIX + PAYLOAD


def test_another_prefix_of_the_same_length_starts_the_payload_anew(path: Path) -> None:
    with part(path) as file:
        file.write(chunk(0, PAYLOAD[:500]))
    with part(path, prefix=b"HEADER--") as file:
        assert file.offset == 0
    assert path.read_bytes() == b"HEADER--"


@pytest.mark.parametrize("offset", [0, 99, 101, 2**64 - 1])
def test_a_chunk_at_a_wrong_offset_is_refused(path: Path, offset: int) -> None:
    with part(path) as file:
        file.write(chunk(0, PAYLOAD[:100]))
        assert reason_of(file, chunk(offset, b"x")) is Refusal.CHUNK
        file.write(chunk(100, PAYLOAD[100:]))
        file.finish(digest())


def test_a_chunk_with_a_wrong_checksum_is_refused_and_leaves_nothing(path: Path) -> None:
    with part(path) as file:
        assert reason_of(file, chunk(0, PAYLOAD[:100], crc=7)) is Refusal.CHUNK
        assert file.offset == 0
    assert path.read_bytes() == PREFIX


def test_an_empty_chunk_is_refused(path: Path) -> None:
    with part(path) as file:
        assert reason_of(file, chunk(0, b"")) is Refusal.CHUNK


def test_a_chunk_above_the_limit_is_refused(path: Path) -> None:
    with part(path, size=2 * CHUNK_BYTES) as file:
        assert reason_of(file, chunk(0, b"\0" * (CHUNK_BYTES + 1))) is Refusal.CHUNK
        file.write(chunk(0, b"\0" * CHUNK_BYTES))


def test_more_than_was_announced_is_refused_before_it_is_written(path: Path) -> None:
    with part(path) as file:
        file.write(chunk(0, PAYLOAD[:-1]))
        assert reason_of(file, chunk(len(PAYLOAD) - 1, b"xy")) is Refusal.BYTE_COUNT
    assert path.stat().st_size == len(PREFIX) + len(PAYLOAD) - 1


def test_a_payload_that_ends_early_is_refused_and_can_go_on(path: Path) -> None:
    with part(path) as file:
        file.write(chunk(0, PAYLOAD[:10]))
        with pytest.raises(UpdateRefused) as refused:
            file.finish(digest())
    assert refused.value.reason is Refusal.BYTE_COUNT
    with part(path) as file:
        assert file.offset == 10


def test_a_payload_with_another_digest_is_refused_and_removed(path: Path) -> None:
    with part(path) as file:
        file.write(chunk(0, PAYLOAD))
        with pytest.raises(UpdateRefused) as refused:
            file.finish(digest(b"other"))
    assert refused.value.reason is Refusal.DIGEST
    assert not path.exists()


def test_the_prefix_is_not_part_of_the_digest(path: Path) -> None:
    with part(path, prefix=b"") as file:
        file.write(chunk(0, PAYLOAD))
        file.finish(digest())
    assert path.read_bytes() == PAYLOAD


def test_an_empty_payload_is_complete_from_the_start(path: Path) -> None:
    with part(path, size=0) as file:
        assert reason_of(file, chunk(0, b"x")) is Refusal.BYTE_COUNT
        file.finish(digest(b""))


def test_closing_twice_is_harmless_and_writing_then_fails(path: Path) -> None:
    file = part(path)
    file.close()
    file.close()
    with pytest.raises(StorageError):
        file.write(chunk(0, b"x"))


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        part(tmp_path / "missing" / "silo.part")


def test_a_full_disk_is_a_storage_error_and_the_next_attempt_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = os.pwrite

    def half_then_full(descriptor: int, data: bytes, position: int) -> int:
        if len(data) <= 50:
            raise OSError(28, "No space left on device")
        return really(descriptor, data[:50], position)

    with part(path) as file:
        file.write(chunk(0, PAYLOAD[:100]))
        monkeypatch.setattr(os, "pwrite", half_then_full)
        with pytest.raises(StorageError, match="the disk is full"):
            file.write(chunk(100, PAYLOAD[100:200]))
        monkeypatch.undo()
        assert file.offset == 100
        file.write(chunk(100, PAYLOAD[100:200]))
    with part(path) as file:
        file.write(chunk(file.offset, PAYLOAD[file.offset :]))
        file.finish(digest())
    assert path.read_bytes() == PREFIX + PAYLOAD


def sent(
    path: Path, *, start: int, size: int, offset: int, bytes_per_s: float = 1e9
) -> list[Chunk]:
    """All chunks of a payload, over a line that takes so much in each second of a made-up clock."""
    chunks: list[Chunk] = []

    async def send() -> None:
        loop, taken_s = asyncio.get_running_loop(), 0.0
        loop.time = lambda: taken_s  # type: ignore[method-assign]
        async for message in send_chunks(reading(path, start), size=size, offset=offset):
            chunks.append(message.chunk)
            taken_s += len(message.chunk.data) / bytes_per_s

    asyncio.run(send())
    return chunks


def test_chunks_are_read_from_any_offset_and_none_is_above_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "payload"
    payload = os.urandom(2 * CHUNK_BYTES + 17)
    path.write_bytes(b"front" + payload + b"behind")
    for offset in (0, 1, CHUNK_BYTES, len(payload) - 1, len(payload), len(payload) + 5):
        chunks = sent(path, start=5, size=len(payload), offset=offset)
        assert b"".join(c.data for c in chunks) == payload[offset:]
        assert all(len(c.data) <= CHUNK_BYTES for c in chunks)
        assert all(google_crc32c.value(c.data) == c.crc32c for c in chunks)
        ends = [c.offset + len(c.data) for c in chunks]
        assert [c.offset for c in chunks] == [offset, *ends][: len(chunks)]


def test_a_file_that_became_shorter_while_it_was_sent_is_a_storage_error(tmp_path: Path) -> None:
    path = tmp_path / "payload"
    path.write_bytes(b"x" * 10)
    with pytest.raises(StorageError, match="shorter"):
        sent(path, start=0, size=11, offset=0)


@pytest.mark.parametrize(
    ("bytes_per_s", "largest", "last"),
    [
        (1e9, SENT_CHUNK_BYTES, SENT_CHUNK_BYTES),
        (1e5, 128 * KIB, 128 * KIB),
        (8e3, FIRST_CHUNK_BYTES, LEAST_CHUNK_BYTES),
        (100, FIRST_CHUNK_BYTES, LEAST_CHUNK_BYTES),
    ],
    ids=["8 Gbit/s", "800 kbit/s", "64 kbit/s", "0.8 kbit/s"],
)
def test_chunks_are_as_large_as_the_line_takes_in_a_few_seconds(
    tmp_path: Path, bytes_per_s: float, largest: int, last: int
) -> None:
    path = tmp_path / "payload"
    path.write_bytes(os.urandom(6 * CHUNK_BYTES))
    chunks = sent(path, start=0, size=6 * CHUNK_BYTES, offset=0, bytes_per_s=bytes_per_s)
    sizes = [len(chunk.data) for chunk in chunks[:-1]]
    assert max(sizes) == largest and sizes[-1] == last
    if bytes_per_s >= 8e3:
        assert max(sizes) / bytes_per_s < MESSAGE_IDLE_S / 4
