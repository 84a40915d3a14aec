"""Does what was begun off the event loop end before its caller goes on?"""

import asyncio
import threading

import pytest

from fedreid.work import off_loop, to_the_end


def test_the_result_of_a_function_comes_back() -> None:
    assert asyncio.run(off_loop(divmod, 7, 2)) == (3, 1)


def test_the_error_of_a_function_comes_back() -> None:
    with pytest.raises(ZeroDivisionError):
        asyncio.run(off_loop(divmod, 7, 0))


@pytest.mark.parametrize("failing", [False, True], ids=["well", "with an error"])
def test_a_cancelled_caller_goes_on_only_when_the_function_has_ended(failing: bool) -> None:
    begun, go = threading.Event(), threading.Event()
    ended: list[str] = []

    def slow() -> None:
        begun.set()
        assert go.wait(10)
        ended.append("function")
        if failing:
            raise ValueError

    async def caller() -> None:
        try:
            await off_loop(slow)
        finally:
            ended.append("caller")

    async def story() -> None:
        task = asyncio.create_task(caller())
        await asyncio.to_thread(begun.wait, 10)
        for _ in range(3):  # however often it is told
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == ["function", "caller"]

    asyncio.run(story())


def test_work_that_was_cancelled_itself_ends_its_caller() -> None:
    async def story() -> None:
        work: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(to_the_end(work))
        await asyncio.sleep(0)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())
