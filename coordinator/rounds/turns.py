"""Who may move a model or an update now, when very many silos want to at once?

So many transfers have a turn; the others wait in the order in which they came. A turn is held as
long as the silo keeps pace. One whose line is slow, that stops or sends next to nothing, loses its
turn within TURN_STALL_S to the next, and goes on without: it takes little of the coordinator. As
soon as it is fast again it waits for a turn like everybody.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fedreid.errors import LimitReached
from fedreid.limits import TURN_BYTES_PER_S, TURN_STALL_S, TURN_WAIT_S


class Turns:
    """The turns of transfers one way."""

    def __init__(self, count: Callable[[], int]) -> None:
        """``count`` says how many there are; it may change."""
        self._count = count
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many wait for a turn."""
        return len(self._waiting)

    @asynccontextmanager
    async def turn(self) -> "AsyncIterator[Turn]":
        """A turn for one transfer; waits until there is one.

        Raises:
            LimitReached: there was none in TURN_WAIT_S.
        """
        turn = Turn(self)
        await self.take()
        try:
            yield turn
        finally:
            turn.over()

    async def take(self) -> None:
        """Wait for a turn; see :meth:`turn`."""
        if self._taken < self._count() and not self._waiting:
            self._taken += 1
            return
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        try:
            async with asyncio.timeout(TURN_WAIT_S):
                await mine
        except BaseException as error:
            if mine.done() and not mine.cancelled():
                self.give()  # it came in the moment in which nobody waited any more
            else:
                self._waiting.remove(mine)
            if isinstance(error, TimeoutError):
                raise LimitReached(
                    f"No turn came in {TURN_WAIT_S:g} s", why="too many silos send or fetch at once"
                ) from error
            raise

    def give(self) -> None:
        """Pass a turn on to whoever has waited longest."""
        self._taken -= 1
        while self._waiting and self._taken < self._count():
            following = self._waiting.popleft()
            if not following.done():
                self._taken += 1
                following.set_result(None)


class Turn:
    """One transfer's turn, which it may lose and take again."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._held = True
        self._slack_s = TURN_STALL_S
        """How much longer the line may take than one of TURN_BYTES_PER_S."""
        self._took_s = 0.0
        self._stalled: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def pace(self) -> AsyncIterator[None]:
        """The block waits for the silo, for as long as that takes."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        self._stalled = loop.call_later(self._slack_s, self._lose)
        yield
        self._stalled.cancel()
        self._took_s = loop.time() - began_s

    async def moved(self, size_bytes: int) -> None:
        """So many bytes came through while the last block waited.

        By bytes, not by messages: one who sends a byte every now and then moves nothing.
        """
        slack_s = self._slack_s + size_bytes / TURN_BYTES_PER_S - self._took_s
        self._slack_s = min(TURN_STALL_S, max(0.0, slack_s))
        if not self._slack_s:
            self._lose()
        elif not self._held and self._slack_s > TURN_STALL_S / 2:
            await self._turns.take()
            self._held = True

    def over(self) -> None:
        """Nothing more is moved."""
        if self._stalled is not None:
            self._stalled.cancel()
        self._lose()

    def _lose(self) -> None:
        if self._held:
            self._held = False
            self._turns.give()
