"""Does everybody get a turn, in order, and does nobody keep one who does not use it?"""

import asyncio

import pytest

from coordinator.rounds import turns
from coordinator.rounds.turns import Turns
from fedreid.errors import LimitReached
from fedreid.limits import MIB, TURN_STALL_S
from tests.simulation.loop import played

STALLED_S = 50.0


class Line:
    """Transfers that note when each begins, moves and is over."""

    def __init__(self, count: int) -> None:
        self.turns = Turns(lambda: count)
        self.events: list[tuple[str, str]] = []
        self.most = 0
        self._at_once = 0

    async def transfer(self, name: str, *messages_s: float, size_bytes: int = MIB) -> None:
        """Move messages that take the silo so long each."""
        async with self.turns.turn() as turn:
            self.events.append((name, "begun"))
            for took_s in messages_s:
                async with turn.pace():
                    self._at_once += 1
                    self.most = max(self.most, self._at_once)
                    await asyncio.sleep(took_s)
                    self._at_once -= 1
                await turn.moved(size_bytes)
                self.events.append((name, "moved"))
        self.events.append((name, "over"))

    def order(self, what: str) -> list[str]:
        return [name for name, event in self.events if event == what]


def test_no_more_move_at_once_than_there_are_turns_and_all_move_in_the_order_they_came() -> None:
    line = Line(2)

    async def story() -> None:
        await asyncio.gather(*(line.transfer(f"{n:02d}", 0.1, 0.1) for n in range(20)))

    played(story)
    assert line.most == 2
    assert line.order("begun") == [f"{n:02d}" for n in range(20)]
    assert len(line.order("over")) == 20


def test_one_who_stalls_loses_its_turn_and_still_comes_to_its_end() -> None:
    line = Line(1)

    async def story() -> None:
        await asyncio.gather(
            line.transfer("stalls", STALLED_S), line.transfer("b", 0.1), line.transfer("c", 0.1)
        )

    played(story)
    assert line.order("over") == ["b", "c", "stalls"]


def test_a_slow_line_needs_no_turn_and_a_fast_one_again_does() -> None:
    line = Line(1)

    async def story() -> None:
        await asyncio.gather(
            line.transfer("slow", 5.0, 5.0, 0.1, 0.1), line.transfer("long", *([1.0] * 50))
        )

    played(story)
    begun = [event for event in line.events if event[0] == "slow"]
    before = line.events[: line.events.index(("long", "over"))]
    assert before.count(("slow", "moved")) == 2  # the third was fast: it waits for a turn
    assert begun[-1] == ("slow", "over")


def test_those_who_drip_hold_no_turn_however_often_they_send() -> None:
    line = Line(2)

    async def story() -> None:
        drips = [line.transfer(f"drip {n}", *([0.2] * 100), size_bytes=1) for n in range(4)]
        await asyncio.gather(*drips, line.transfer("honest", 0.1))

    played(story)
    begun = line.events.index(("honest", "begun"))
    assert line.order("over")[0] == "honest"
    dripped = line.events[:begun].count(("drip 0", "moved"))
    assert dripped * 0.2 <= 2 * TURN_STALL_S + 0.2  # two of them before it in line


def test_one_who_goes_while_waiting_takes_no_turn_along() -> None:
    line = Line(1)

    async def story() -> None:
        first = asyncio.create_task(line.transfer("a", 0.2))
        going = asyncio.create_task(line.transfer("b", 0.2))
        await asyncio.sleep(0.1)
        going.cancel()
        last = asyncio.create_task(line.transfer("c", 0.2))
        await asyncio.gather(first, last)
        assert going.cancelled()

    played(story)
    assert line.order("over") == ["a", "c"]


def test_one_who_goes_in_the_moment_it_gets_its_turn_passes_it_on() -> None:
    line = Line(1)

    async def story() -> None:
        async with line.turns.turn():
            going = asyncio.create_task(line.turns.take())
            await asyncio.sleep(0)
            last = asyncio.create_task(line.transfer("c", 0.1))
            await asyncio.sleep(0)
        going.cancel()  # its turn has come, and it has not gone on yet
        await last

    played(story)
    assert line.order("over") == ["c"]


def test_who_waits_too_long_is_told_to_ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_WAIT_S", 5.0)
    line = Line(1)

    async def story() -> None:
        holding = asyncio.create_task(line.transfer("a", *([1.0] * 50)))
        await asyncio.sleep(0.1)
        with pytest.raises(LimitReached, match="No turn came in 5 s"):
            await line.transfer("b", 0.1)
        await holding

    played(story)
    assert line.order("over") == ["a"]


def test_more_turns_take_effect_as_soon_as_one_is_given_back() -> None:
    count = 1
    line = Line(1)
    line.turns = Turns(lambda: count)

    async def story() -> None:
        nonlocal count
        waiting = [asyncio.create_task(line.transfer(f"{n}", 0.1)) for n in range(4)]
        await asyncio.sleep(0.05)
        count = 3
        await asyncio.gather(*waiting)

    played(story)
    assert line.most == 3
