"""How is the next batch made while the last one is worked with? In one thread, and in order."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def made_ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """``make(item)`` of each item; one is being made while the caller works with the one before.

    Never two at once and never out of order, so that a ``make`` that draws random numbers draws
    them as a plain loop would. What it raises is raised where its result was due.
    """
    with ThreadPoolExecutor(1) as maker:
        coming = None
        for item in items:
            ready, coming = coming, maker.submit(make, item)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()
