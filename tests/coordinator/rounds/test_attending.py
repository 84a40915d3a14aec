"""Do silos that all have something to do begin no faster than models can be fetched?"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from coordinator.rounds.attending import Attending
from coordinator.rounds.turns import Turns
from fedreid.contract import EvaluateTask, Task, WaitTask
from fedreid.limits import BEGINNING_S, LEAST_WAIT_S, LONG_POLL_S, WAKING_AT_ONCE
from fedreid.names import SiloName
from tests.fedreid.wire.test_messages import EVALUATE
from tests.simulation.loop import played

CROWD = [SiloName(f"silo-{number:03d}") for number in range(100)]
NOTHING = WaitTask(reason="collecting updates")


class Port:
    """A coordinator's tasks, for silos that ask, and then fetch for a while."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tasks: dict[str, EvaluateTask | WaitTask] = dict.fromkeys(CROWD, EVALUATE)
        self.downloads = Turns(lambda: 2)
        self.begun_s: list[float] = []
        self.most_waiting = 0
        monkeypatch.setattr(Attending, "_task", lambda _, silo: self.tasks[silo])
        anything: Any = SimpleNamespace(
            changed=asyncio.Event(), seen=lambda silo: None, monotonic_s=lambda: self.now_s
        )
        self.attending = Attending(
            current=anything,
            models=anything,
            registry=anything,
            presence=anything,
            downloads=self.downloads,
            clock=anything,
        )

    @property
    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    async def ask(self, silo: SiloName, wait_s: float = LONG_POLL_S) -> Task:
        """Ask for a task; what was given."""
        given = await self.attending.next_task(silo, wait_s)
        self.begun_s.append(self.now_s)
        return given

    async def take_part(self, silo: SiloName, fetching_s: float) -> None:
        """Ask until there is something to do, and fetch the model."""
        while isinstance(await self.ask(silo), WaitTask):
            pass
        async with self.downloads.turn():
            self.most_waiting = max(self.most_waiting, self.downloads.waiting)
            await asyncio.sleep(fetching_s)

    @asynccontextmanager
    async def crowded(self) -> AsyncIterator[None]:
        """So many wait for a turn that nobody else may begin."""
        fetching = [asyncio.create_task(self._fetch_for_ever()) for _ in range(2 + WAKING_AT_ONCE)]
        await asyncio.sleep(0.01)
        yield
        for task in fetching:
            task.cancel()
        await asyncio.gather(*fetching, return_exceptions=True)

    async def _fetch_for_ever(self) -> None:
        async with self.downloads.turn():
            await asyncio.Event().wait()


@pytest.fixture
def lived(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Port], Any]], None]:
    """Live through a story in virtual time."""

    def live(story: Callable[[Port], Coroutine[Any, Any, None]]) -> None:
        async def all_of_it() -> None:
            await story(Port(monkeypatch))

        played(all_of_it)

    return live


Lived = Callable[[Callable[[Port], Any]], None]


def test_a_few_begin_at_once_and_a_crowd_a_few_at_a_time(lived: Lived) -> None:
    async def story(port: Port) -> None:
        await asyncio.gather(*(port.ask(silo) for silo in CROWD[:WAKING_AT_ONCE]))
        assert set(port.begun_s) == {0.0}
        await asyncio.gather(*(port.ask(silo) for silo in CROWD))
        begun_s = sorted(port.begun_s)
        for first, behind in zip(begun_s, begun_s[WAKING_AT_ONCE:], strict=False):
            assert behind - first > 0.99 * BEGINNING_S

    lived(story)


def test_where_fetching_takes_long_few_wait_for_a_turn_and_all_come_to_theirs(
    lived: Lived,
) -> None:
    async def story(port: Port) -> None:
        await asyncio.gather(*(port.take_part(silo, fetching_s=3.0) for silo in CROWD))
        assert port.now_s == pytest.approx(3.0 * len(CROWD) / 2, rel=0.05)  # no turn stays empty
        assert port.most_waiting <= 3 * WAKING_AT_ONCE

    lived(story)


@pytest.mark.parametrize("wait_s", [0.0, 7.0])
def test_who_may_not_begin_is_told_so_when_the_poll_ends(lived: Lived, wait_s: float) -> None:
    async def story(port: Port) -> None:
        async with port.crowded():
            began_s = port.now_s
            given = await port.ask(CROWD[0], wait_s)
            assert isinstance(given, WaitTask) and "waits for its turn" in given.reason
            assert port.now_s - began_s == pytest.approx(max(wait_s, LEAST_WAIT_S))
        assert await port.ask(CROWD[0], wait_s) is EVALUATE

    lived(story)


def test_what_is_done_is_what_there_is_to_do_when_a_silo_may_begin(lived: Lived) -> None:
    async def story(port: Port) -> None:
        async with port.crowded():
            asking = asyncio.create_task(port.ask(CROWD[0]))
            await asyncio.sleep(1.0)
            port.tasks[CROWD[0]] = NOTHING
        assert await asking == NOTHING  # the round has ended meanwhile
        assert port.now_s == pytest.approx(LONG_POLL_S, rel=0.01)

    lived(story)
