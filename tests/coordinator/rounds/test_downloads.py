"""Is a model read once for all who fetch it, and never longer from memory than that takes?"""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from coordinator.rounds.downloads import SharedReads
from fedreid.errors import StorageError
from fedreid.limits import SHARED_CHUNKS, SHARED_S
from fedreid.wire import stream
from fedreid.wire.chunks import ChunkMessage
from tests.simulation.loop import played

START = 5
SIZE = 100


class Disk:
    """A file, and how often it is read."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "model"
        self.reads = 0

    def write(self, byte: bytes) -> None:
        self.path.write_bytes(b"front" + byte * SIZE)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A model of bytes, whose reads are counted."""
    made = Disk(tmp_path)
    read = stream._read_chunk

    def counted(*place: Any) -> ChunkMessage:
        made.reads += 1
        return read(*place)

    monkeypatch.setattr(stream, "_read_chunk", counted)
    made.write(b"a")
    return made


def test_what_many_ask_for_at_once_is_read_once_and_written_once(disk: Disk) -> None:
    shared = SharedReads()

    async def story() -> None:
        silos = [shared.reading(disk.path, START) for _ in range(5)]
        messages = await asyncio.gather(*(read(10, 20) for read in silos))
        messages.append(await silos[0](10, 20))
        assert {message.chunk.data for message in messages} == {b"a" * 20}
        assert len({id(message.serialised) for message in messages}) == 1
        assert disk.reads == 1
        assert (await silos[0](10, 21)).chunk.data == b"a" * 21  # another size is another chunk
        assert disk.reads == 2

    played(story)


def test_what_is_old_is_read_again_and_so_is_what_failed(disk: Disk) -> None:
    read = SharedReads().reading(disk.path, START)

    async def story() -> None:
        await read(0, 10)
        disk.write(b"b")
        assert (await read(0, 10)).chunk.data == b"a" * 10
        await asyncio.sleep(SHARED_S * 1.01)
        assert (await read(0, 10)).chunk.data == b"b" * 10
        disk.path.unlink()
        with pytest.raises(StorageError):
            await read(10, 10)
        disk.write(b"c")
        assert (await read(10, 10)).chunk.data == b"c" * 10

    played(story)


def test_only_so_many_are_kept_and_who_goes_takes_nothing_from_the_others(disk: Disk) -> None:
    shared = SharedReads()
    read = shared.reading(disk.path, START)

    async def story() -> None:
        going, staying = asyncio.ensure_future(read(0, 10)), asyncio.ensure_future(read(0, 10))
        await asyncio.sleep(0)
        going.cancel()
        assert (await staying).chunk.data == b"a" * 10
        for offset in range(SHARED_CHUNKS + 3):
            await read(offset, 1)
        assert len(shared._reads) == SHARED_CHUNKS

    played(story)
