"""How does disk and CPU work stay off the event loop?

One small pool for the whole process: its threads bound both memory (a block per thread) and the
number of allocator arenas, which asyncio's own default of up to 32 threads would not.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_THREADS = 12  # uploads and downloads take eight at most, so that what else is asked for finds one
_pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="fedreid-work")


async def off_loop(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call ``function`` in the pool and wait for its result, even if cancelled meanwhile."""
    loop = asyncio.get_running_loop()
    return await to_the_end(loop.run_in_executor(_pool, lambda: function(*args, **kwargs)))


async def to_the_end(work: Awaitable[T]) -> T:
    """The result of ``work``; who is cancelled meanwhile waits for it all the same.

    A thread can't be stopped, and half of a change must not be left. So a cancelled caller goes
    on only when nothing happens behind its back any more: then it may close the file that was
    written, or give the lock to the next.
    """
    future = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait((future,))
        looked_at(future)
        raise


def looked_at(future: "asyncio.Future[Any]") -> None:
    """Look at how ``future`` ended, or asyncio would complain that nobody did."""
    if not future.cancelled():
        future.exception()
