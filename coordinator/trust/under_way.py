"""Which calls are under way, how many may one caller have, and how are they ended?"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

from fedreid.errors import LimitReached
from fedreid.limits import CALLS_PER_CALLER
from fedreid.names import Principal, Role
from fedreid.work import looked_at


@dataclass(slots=True, eq=False)
class UnderWay:
    """One call that was admitted."""

    principal: Principal
    task: asyncio.Task[Any]
    ended: bool = False
    """Somebody ended it; it was not its caller who gave up."""
    handled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when its handler does nothing any more; telling the caller may take longer."""
    sending: asyncio.Future[None] | None = None
    """The message that gRPC is sending, once there was one."""

    async def send(self, message: Awaitable[None]) -> None:
        """Wait until a message is sent; it stays on its way if the wait ends sooner."""
        self.sending = asyncio.ensure_future(message)
        self.sending.add_done_callback(looked_at)  # a caller may go while it is on its way
        await asyncio.shield(self.sending)

    async def sent(self) -> None:
        """Wait until nothing is on its way: only then can gRPC send a status.

        A caller that reads nothing is waited for until it goes; it spends its own calls.
        """
        if self.sending is not None:
            await asyncio.wait((self.sending,))


class CallsUnderWay:
    """Every call that was admitted and is not over."""

    def __init__(self) -> None:
        self._calls: dict[Principal, set[UnderWay]] = defaultdict(set)

    def begin(self, principal: Principal) -> UnderWay:
        """List the call that the current task serves.

        Raises:
            LimitReached: the caller has as many under way as anybody may have.
        """
        task = asyncio.current_task()
        assert task is not None
        count = len(self._calls[principal])
        if count >= CALLS_PER_CALLER:
            raise LimitReached(
                f"{principal.name} has {count} calls under way",
                why=f"nobody may have more than {CALLS_PER_CALLER} at once",
                next_step="Wait until one of them has ended.",
            )
        call = UnderWay(principal=principal, task=task)
        self._calls[principal].add(call)
        return call

    def over(self, call: UnderWay) -> None:
        """Forget a call that is over."""
        self._calls[call.principal].discard(call)
        if not self._calls[call.principal]:
            del self._calls[call.principal]

    async def end(self, silo: str) -> None:
        """End every call of a silo but the one that asks for it; wait until none does anything."""
        ended = [
            call
            for principal, calls in self._calls.items()
            if principal.name == silo and principal.role is not Role.ADMIN
            for call in calls
            if call.task is not asyncio.current_task()
        ]
        for call in ended:
            call.ended = True
            call.task.cancel()
        for call in ended:
            await call.handled.wait()
