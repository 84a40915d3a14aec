"""How do many callers share one commit? What comes while one is under way waits, and goes together.

Everybody is answered only after the commit that holds what they brought. One who comes alone waits
for nobody; of a thousand silos that deliver at once, some dozens share a commit and its sync.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from fedreid.work import to_the_end

ItemT = TypeVar("ItemT")


@dataclass(slots=True, eq=False)
class _Brought(Generic[ItemT]):
    """What one caller has brought."""

    item: ItemT
    done: bool = False
    error: BaseException | None = None


class Together(Generic[ItemT]):
    """Commits what callers bring, in their order, all that is there at once."""

    def __init__(
        self, turn: asyncio.Lock, commit: Callable[[Sequence[ItemT]], Awaitable[None]]
    ) -> None:
        """``turn`` is held while ``commit`` runs, which is for one or more items."""
        self._turn = turn
        self._commit = commit
        self._waiting: list[_Brought[ItemT]] = []

    async def bring(self, item: ItemT) -> None:
        """Wait until the item is committed; whatever the commit raises, each of its callers hears.

        Who is cancelled before a commit has taken the item takes it back.
        """
        mine = _Brought(item)
        self._waiting.append(mine)
        try:
            async with self._turn:
                if not mine.done:
                    # A call may be ended while it is in here; journal and memory must not part.
                    await to_the_end(self._commit_all())
        finally:
            if mine in self._waiting:
                self._waiting.remove(mine)
        if mine.error is not None:
            raise mine.error

    async def _commit_all(self) -> None:
        taken, self._waiting = self._waiting, []
        try:
            await self._commit([brought.item for brought in taken])
        except BaseException as error:
            for brought in taken:
                brought.error = error
            raise
        finally:
            for brought in taken:
                brought.done = True
