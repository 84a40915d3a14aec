"""How does a test live with ``coordinator serve`` as a process of its own?"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from benchmark.federation import Program
from tests.coordinator.trust.assembled import Assembled

_START_S = 60.0


class RealProcess(Assembled):
    """A coordinator that is measured from outside, as operators see it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.program = Program(
            ("coordinator", "serve", "--data", str(folder), "--listen", "127.0.0.1:0",
             "--metrics", "127.0.0.1:0"),
            folder.with_suffix(".log"),
        )  # fmt: skip

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Run it for as long as the block lasts; then it must end by itself when asked."""
        self.program.start()
        try:
            async with asyncio.timeout(_START_S):
                while "health and metrics" not in self.program.log:
                    assert self.program.running(), self.program.log
                    await asyncio.sleep(0.05)
            self.address = self.folders.endpoint.read_text().strip()
            yield
            assert self.program.running(), self.program.log
        finally:
            self.program.stop()

    def memory_mb(self) -> float:
        """Its resident memory."""
        return psutil.Process(self.program.pid).memory_info().rss / 2**20

    def connections(self) -> int:
        """The sockets that it holds open."""
        return len(psutil.Process(self.program.pid).net_connections("tcp"))
