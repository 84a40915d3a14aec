"""How does asyncio run in virtual time, and how does a program in it die at once?

Nothing waits: where all tasks sleep, the clock moves to the next timer. What happens at the same
instant happens in one order, so a schedule replays exactly. A :class:`Program` is whatever runs in
one process elsewhere; once killed none of its code goes on, not even a ``finally``.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from random import Random
from typing import Any, TypeVar

T = TypeVar("T")

_QUICK_S, _SLOW_S = 0.01, 0.5
"""How long work off the loop takes: mostly little, now and then long."""
_SLOW = 0.02


class Killed(BaseException):
    """The program that runs this was killed in this moment."""


class Program:
    """One life of a program, from its start to its end."""

    def __init__(self) -> None:
        self.alive = True
        self.context: Context = copy_context()
        self.context.run(_running.set, self)

    def start(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Let it do something of its own."""
        return asyncio.get_running_loop().create_task(work, context=self.context.copy())


_running: ContextVar[Program | None] = ContextVar("running", default=None)


def running() -> Program | None:
    """The program whose code this is; None outside of all."""
    return _running.get()


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop without files, sockets or waiting."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self._random = random
        self._now_s = 0.0
        self._selector = self
        self._clock_resolution = 1e-6
        self._tasks: list[asyncio.Task[Any]] = []
        self.set_task_factory(self._new_task)
        self.set_exception_handler(lambda loop, context: None)

    def time(self) -> float:
        """Seconds since the schedule began."""
        return self._now_s

    def select(self, timeout: float | None) -> tuple[()]:
        """Let the time pass until the next timer; asked as a selector would be."""
        assert timeout is not None, "nothing is left that could ever happen"
        self._now_s += timeout
        return ()

    def _process_events(self, events: object) -> None:
        """There are none but timers."""

    def _write_to_self(self) -> None:
        """Nobody waits who would have to be woken."""

    def run_in_executor(  # type: ignore[override]
        self, executor: object, function: Callable[..., T], *args: Any
    ) -> Any:
        """Call ``function`` a little later, all at once."""
        future = self.create_future()
        delay_s = self._random.random() * (_SLOW_S if self._random.random() < _SLOW else _QUICK_S)
        self.call_later(delay_s, _perform, future, function, args)
        return future

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Context | None = None
    ) -> Any:
        """As ever, but for a program that is dead nothing is called."""
        handle = super().call_soon(callback, *args, context=context)
        if _is_dead(handle):
            handle.cancel()
        return handle

    def kill(self, program: Program) -> None:
        """End a program: nothing of it is called any more."""
        program.alive = False
        for handle in (*self._ready, *self._scheduled):  # type: ignore[attr-defined]
            if _is_dead(handle):
                handle.cancel()

    def end(self) -> None:
        """Drop what is left, so that no destructor has anything to say later."""
        for task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                with contextlib.suppress(BaseException):
                    task.get_coro().close()
        self._tasks.clear()
        self.close()

    def _new_task(self, loop: Any, work: Any, **how: Any) -> "asyncio.Task[Any]":
        """A task that is kept: the destructor of a dead program's must not run in between."""
        task = asyncio.Task(work, loop=loop, **how)
        self._tasks.append(task)
        return task


def _perform(future: "asyncio.Future[T]", function: Callable[..., T], args: Any) -> None:
    try:
        result = function(*args)
    except Killed:
        return
    except BaseException as error:
        if not future.cancelled():
            future.set_exception(error)
    else:
        if not future.cancelled():
            future.set_result(result)


def _is_dead(handle: Any) -> bool:
    program = handle._context.get(_running)
    return program is not None and not program.alive


def played(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Play a story in virtual time."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(Random(0))) as runner:
        runner.run(story())
