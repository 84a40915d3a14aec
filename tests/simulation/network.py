"""How does a call get from a silo to the coordinator and back, if it does?

Requests and answers get lost, lines break in the middle, a coordinator may notice late that one
did, and what was sent once may arrive again much later.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from fedreid.errors import ConnectionFailed, FedreidError
from tests.simulation.loop import Killed, VirtualLoop
from tests.simulation.server import Call, Server

_LATENCY_S = 0.05
_HALF_OPEN_S = 20.0
_REPLAY_S = 30.0


@dataclass(slots=True, kw_only=True)
class Quality:
    """How probable is what in one call?"""

    lose_request: float = 0.0
    lose_answer: float = 0.0
    break_off: float = 0.0
    replay: float = 0.0


class Network:
    """All lines between silos and the coordinator."""

    def __init__(self, loop: VirtualLoop, random: Random, quality: Quality) -> None:
        self._loop = loop
        self._random = random
        self.quality = quality
        self.cut: set[str] = set()
        """Silos that a partition keeps away."""
        self.server: Server | None = None
        """The coordinator while it lives."""
        self.bugs: list[BaseException] = []
        """What a handler raised that is none of the product's errors."""
        self._waiting: dict[asyncio.Future[Any], str] = {}
        self._context = copy_context()
        """What is on its way outlives whoever has sent it."""

    async def call(self, silo: str, method: str, *requests: Any, timeout_s: float = 30.0) -> Any:
        """Make a call and wait for its answer.

        Raises:
            ConnectionFailed: the line failed; whether the call was served nobody knows.
            FedreidError: as the coordinator raised it.
        """
        await asyncio.sleep(self._random.random() * _LATENCY_S)
        chance = self._random.random
        if self.server is None or silo in self.cut or chance() < self.quality.lose_request:
            await asyncio.sleep(chance())
            raise ConnectionFailed("The coordinator can't be reached")
        reply: asyncio.Future[Any] = self._loop.create_future()
        call = self._deliver(self.server, silo, method, requests, reply)
        if chance() < self.quality.replay:
            self._later(_REPLAY_S, self._replay, silo, method, requests)
        if chance() < self.quality.break_off:
            self._later(1.0, self._break, reply, call)
        self._waiting[reply] = silo
        try:
            async with asyncio.timeout(timeout_s):
                return await reply
        except TimeoutError:
            self._give_up(call)
            raise ConnectionFailed("The coordinator did not answer") from None
        finally:
            self._waiting.pop(reply, None)

    def coordinator_died(self) -> None:
        """Tell everybody who waits for an answer."""
        self.server = None
        for reply in list(self._waiting):
            self._fail(reply)

    def silo_died(self, silo: str, calls: Sequence[Call]) -> None:
        """The coordinator notices sooner or later."""
        for call in calls:
            if call.silo == silo:
                self._later(_HALF_OPEN_S, self._give_up, call)

    def _later(self, within_s: float, callback: Callable[..., None], *args: Any) -> None:
        delay_s = self._random.random() * within_s
        self._loop.call_later(delay_s, callback, *args, context=self._context)

    def _deliver(
        self,
        server: Server,
        silo: str,
        method: str,
        requests: Sequence[Any],
        reply: "asyncio.Future[Any] | None",
    ) -> Call:
        call = Call(silo)
        call.task = server.start(server.answer(call, method, requests))
        call.task.add_done_callback(partial(self._answered, reply), context=self._context)
        return call

    def _answered(self, reply: "asyncio.Future[Any] | None", task: "asyncio.Task[Any]") -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, FedreidError | Killed):
            self.bugs.append(error)
        if reply is None or reply.done():
            return
        if task.cancelled() or self._random.random() < self.quality.lose_answer:
            self._fail(reply)
        elif error is None:
            reply.set_result(task.result())
        elif isinstance(error, FedreidError):
            reply.set_exception(error)
        else:
            self._fail(reply)

    def _replay(self, silo: str, method: str, requests: Sequence[Any]) -> None:
        if self.server is not None:
            self._deliver(self.server, silo, method, requests, None)

    def _break(self, reply: "asyncio.Future[Any]", call: Call) -> None:
        self._fail(reply)
        call.broken = True
        self._later(_HALF_OPEN_S, self._give_up, call)

    def _give_up(self, call: Call) -> None:
        if call.task is not None:
            call.task.cancel()

    def _fail(self, reply: "asyncio.Future[Any]") -> None:
        if not reply.done():
            reply.set_exception(ConnectionFailed("The line broke"))
