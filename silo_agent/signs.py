"""What do operators and the coordinator hear of a silo's work while it goes on? Signs of life."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import grpc.aio

from fedreid.jobs import Progress
from fedreid.limits import CALL_S, HEARTBEAT_S
from fedreid.v1 import federation_pb2 as pb
from silo_agent import metrics
from silo_agent.contact import Contact

if TYPE_CHECKING:
    from fedreid.v1.federation_pb2_grpc import FederationAsyncStub


class RoundLost(Exception):
    """The round that was being trained for is over."""


class Signs:
    """What is done right now, told to whoever waits for it."""

    def __init__(
        self,
        contact: Contact,
        say: Callable[[str], None],
        show: Callable[[str, float], None],
    ) -> None:
        self._contact = contact
        self._say = say
        self._show = show
        self._told = ""
        self.doing("waiting", 0.0)

    def tell(self, line: str) -> None:
        """Say something new; the same thing twice is said once."""
        if line != self._told:
            self._say(line)
            self._told = line

    def doing(self, phase: metrics.Phase, share: float) -> None:
        """Note what the next heartbeat says, and show it."""
        self._progress = (phase, share)
        metrics.note_phase(phase)
        self._show(phase, share)

    def note_progress(self, progress: Progress) -> None:
        """How far the training process has come."""
        phase: metrics.Phase = "evaluating" if progress.phase == "evaluating" else "training"
        self.doing(phase, progress.done / max(progress.total, 1))

    @contextlib.asynccontextmanager
    async def heartbeats(
        self, stub: "FederationAsyncStub", run: str, number: int
    ) -> AsyncIterator[None]:
        """Send signs of life while the block works.

        Raises:
            RoundLost: the round is over; the block is ended.
        """
        work = asyncio.current_task()
        assert work is not None
        lost = False

        async def beat() -> None:
            nonlocal lost
            while True:
                await asyncio.sleep(HEARTBEAT_S)
                phase, progress = self._progress
                request = pb.HeartbeatRequest(run=run, round=number, phase=phase, progress=progress)
                try:
                    answer = await stub.Heartbeat(request, timeout=CALL_S)
                except grpc.aio.AioRpcError as error:
                    self._contact.missed()
                    self.tell(f"training goes on; the coordinator is away ({error.code().name})")
                    continue
                self._contact.heard()
                if run and not answer.wanted:
                    lost = True
                    work.cancel()
                    return

        beats = asyncio.create_task(beat())
        try:
            yield
        except asyncio.CancelledError:
            if lost:
                work.uncancel()
                raise RoundLost from None
            raise
        finally:
            beats.cancel()
