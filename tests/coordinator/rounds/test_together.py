"""Is everybody answered after the commit that holds what they brought, and by that one alone?"""

import asyncio
from collections.abc import Sequence

import pytest

from coordinator.rounds.together import Together
from fedreid.errors import StorageError


class Commits:
    """Commits that end when the test lets them."""

    def __init__(self) -> None:
        self.made: list[list[str]] = []
        self.may_end = asyncio.Semaphore(0)
        self.failing = False
        self.together = Together[str](asyncio.Lock(), self._commit)

    async def _commit(self, items: Sequence[str]) -> None:
        await self.may_end.acquire()
        if self.failing:
            raise StorageError("The disk is full")
        self.made.append(list(items))

    def bring(self, item: str) -> "asyncio.Task[None]":
        return asyncio.create_task(self.together.bring(item))


async def settled() -> None:
    """Let everybody go as far as they can."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_what_comes_during_a_commit_shares_the_next_one() -> None:
    async def story() -> None:
        commits = Commits()
        first = commits.bring("a")
        await settled()
        later = [commits.bring(item) for item in "bcd"]
        await settled()
        commits.may_end.release()
        await first
        await settled()
        assert commits.made == [["a"]] and not any(task.done() for task in later)
        commits.may_end.release()
        await asyncio.gather(*later)
        assert commits.made == [["a"], ["b", "c", "d"]]

    asyncio.run(story())


def test_whoever_shares_a_commit_that_fails_hears_of_it() -> None:
    async def story() -> None:
        commits = Commits()
        first = commits.bring("a")
        await settled()
        later = [commits.bring(item) for item in "bc"]
        await settled()
        commits.may_end.release()
        await first
        commits.failing = True
        commits.may_end.release()
        for task in later:
            with pytest.raises(StorageError):
                await task
        commits.failing = False
        last = commits.bring("d")
        commits.may_end.release()
        await last
        assert commits.made == [["a"], ["d"]]

    asyncio.run(story())


def test_who_goes_before_their_commit_began_takes_back_what_they_brought() -> None:
    async def story() -> None:
        commits = Commits()
        first = commits.bring("a")
        await settled()
        going, staying = commits.bring("b"), commits.bring("c")
        await settled()
        going.cancel()
        await settled()
        commits.may_end.release()
        commits.may_end.release()
        await asyncio.gather(first, staying)
        assert going.cancelled() and commits.made == [["a"], ["c"]]

    asyncio.run(story())


def test_who_goes_during_their_commit_goes_when_it_has_ended() -> None:
    async def story() -> None:
        commits = Commits()
        going = commits.bring("a")
        await settled()
        going.cancel()
        await settled()
        assert not going.done()
        commits.may_end.release()
        with pytest.raises(asyncio.CancelledError):
            await going
        assert commits.made == [["a"]]

    asyncio.run(story())
