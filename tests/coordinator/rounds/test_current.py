"""Do events reach journal, memory and log together, and wake only those whom they concern?"""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from coordinator.rounds.current import Current
from coordinator.rounds.journal import RUNNING, Journal, ModelRow, RunRow
from coordinator.rounds.machine import Phase
from fedreid.audit import AuditLog, read_audit
from tests.coordinator.rounds.states import BEGAN_S, opened, update
from tests.parties import FakeClock

PLAN = 'name = "spring"\nrounds = 9\n[quorum]\nmin_silos = 2\n'


class Collected:
    """A round that collects the updates of three silos."""

    def __init__(self, root: Path) -> None:
        self.journal = Journal(root / "journal.sqlite")
        run = RunRow(name="spring", plan_toml=PLAN, state=RUNNING, started_at_s=0.0)
        model = ModelRow(
            version=1, digest="b" * 64, run="spring", round=0, release=b"", signature=b""
        )
        self.journal.add_run(run, model)
        self.journal.save_round(opened("a", "b", "c"))
        self.audit = root / "audit"
        clock = FakeClock(now=BEGAN_S)
        self.current = Current(self.journal, AuditLog(self.audit, clock), clock)

    def play(self, story: Callable[[], Coroutine[Any, Any, None]]) -> None:
        asyncio.run(story())

    def accepted(self) -> list[str]:
        """As the log has them."""
        lines = read_audit(self.audit)
        return [str(line.fields["silo"]) for line in lines if line.event == "update.accepted"]


@pytest.fixture
def collected(tmp_path: Path) -> Collected:
    """A round that has just begun."""
    return Collected(tmp_path)


def test_an_update_wakes_nobody_who_waits_for_a_task_until_the_phase_ends(
    collected: Collected,
) -> None:
    async def story() -> None:
        changed = collected.current.changed
        await collected.current.apply(update("a"))
        await collected.current.apply(update("b"))
        assert not changed.is_set()
        await collected.current.apply(update("c"))
        assert changed.is_set()
        assert collected.current.round is not None
        assert collected.current.round.phase is Phase.AGGREGATING

    collected.play(story)


def test_a_silo_that_comes_wakes_who_gathers_and_not_those_who_wait_for_a_task(
    collected: Collected,
) -> None:
    async def story() -> None:
        changed, stirred = collected.current.changed, collected.current.stirred
        collected.current.stir()
        assert stirred.is_set() and not changed.is_set()
        stirred = collected.current.stirred
        collected.current.notify()
        assert stirred.is_set() and changed.is_set()

    collected.play(story)


def test_updates_that_come_together_share_a_commit_and_all_are_written_down(
    collected: Collected,
) -> None:
    async def story() -> None:
        before = collected.journal.commits
        await asyncio.gather(*(collected.current.apply(update(silo)) for silo in "cab"))
        assert collected.journal.commits - before == 1

    collected.play(story)
    assert collected.accepted() == ["c", "a", "b"]
    stored = collected.journal.newest_round("spring")
    assert stored == collected.current.round
    assert stored is not None and [u.silo for u in stored.updates] == ["a", "b", "c"]


def test_an_event_that_changes_nothing_costs_no_commit(collected: Collected) -> None:
    async def story() -> None:
        await collected.current.apply(update("a"))
        before = collected.journal.commits
        await asyncio.gather(
            collected.current.apply(update("a")), collected.current.apply(update("x"))
        )
        assert collected.journal.commits == before

    collected.play(story)
    assert collected.accepted() == ["a"]
