"""How is a model read once, although all silos fetch it?

They begin together and keep about the same pace. So the chunks that were read last are kept for
some seconds, as they go onto the wire, for whoever comes to the same place next.
"""

import asyncio
from pathlib import Path

from fedreid.limits import SHARED_CHUNKS, SHARED_S
from fedreid.wire.chunks import ChunkMessage
from fedreid.wire.stream import Read, reading
from fedreid.work import looked_at

_Place = tuple[Path, int, int]
"""A chunk by its file, offset and size."""


class SharedReads:
    """The chunks that were read last, for all who fetch the same model."""

    def __init__(self) -> None:
        self._reads: dict[_Place, tuple[float, asyncio.Future[ChunkMessage]]] = {}

    def reading(self, path: Path, start: int) -> Read:
        """Reads the payload that lies in ``path`` at ``start``."""
        alone = reading(path, start)

        async def read(offset: int, count: int) -> ChunkMessage:
            place, now_s = (path, offset, count), asyncio.get_running_loop().time()
            since_s, found = self._reads.pop(place, (now_s, None))
            if found is None or now_s - since_s > SHARED_S or _failed(found):
                since_s, found = now_s, asyncio.ensure_future(alone(offset, count))
                found.add_done_callback(looked_at)
            self._reads[place] = since_s, found  # as the newest
            while len(self._reads) > SHARED_CHUNKS:
                del self._reads[next(iter(self._reads))]
            return await asyncio.shield(found)  # who goes leaves it to the others

        return read


def _failed(read: "asyncio.Future[ChunkMessage]") -> bool:
    return read.done() and (read.cancelled() or read.exception() is not None)
