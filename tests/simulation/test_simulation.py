"""Do thousands of schedules of troubles keep every promise, and would they notice if one did not?

A schedule is a number. One that fails prints what happened and how to play it again::

    pytest tests/simulation -n 0 -k promises --seed 4711
"""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from coordinator.rounds.machine import Phase
from tests.simulation.memory import SteppedJournal
from tests.simulation.world import Outcome, play

_TOGETHER = 50
_REACHED = 120


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Schedules in portions, so that several processes can share them."""
    if "seeds" in metafunc.fixturenames:
        seed, count = (metafunc.config.getoption(name) for name in ("--seed", "--schedules"))
        portions = [range(at, min(at + _TOGETHER, count)) for at in range(0, count, _TOGETHER)]
        if seed is not None:
            portions = [range(seed, seed + 1)]
        metafunc.parametrize("seeds", portions, ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")


def told(outcome: Outcome) -> str:
    """What happened in a schedule that failed, and how to see it again."""
    again = f"pytest tests/simulation -n 0 -k promises --seed {outcome.seed}"
    return "\n".join((*outcome.trace, f"seed {outcome.seed}: {outcome.failure}", again))


def test_schedules_keep_the_promises(seeds: range) -> None:
    for seed in seeds:
        outcome = play(seed)
        assert not outcome.failure, told(outcome)


def test_schedules_reach_what_they_are_for() -> None:
    """A simulation in which nothing goes wrong would pass as well."""
    found: Counter[str] = Counter()
    for seed in range(_REACHED):
        outcome = play(seed)
        assert outcome.history is not None
        for line in outcome.trace:
            _, who, event, *_ = line.split()
            found[event if who == "coordinator" else " ".join(line.split()[2:4])] += 1
            found["power lost"] += "power lost" in line
        found.update(str(each.state.phase) for each in outcome.history.rounds)
        found["clusters"] += any(len(each.state.clusters) > 1 for each in outcome.history.rounds)
        found["seconds at silos"] += len(outcome.history.taken)
    for event in (
        "update.accepted", "update.refused", "update.flagged", "round.opened", "run.paused",
        "run.stopped", "run.finished", "model.rolled_back", "silo.revoked", "silo.suspended",
        "silo.quarantined", "silo.left", "silo.gone", "silo.resumed", "power lost", "clusters",
        "is killed", "is cut", "is set", "is full", "has no",
        Phase.PUBLISHED, Phase.SKIPPED, Phase.FAILED,
    ):  # fmt: skip
        assert found[event] > 0, f"{event} never happened in {_REACHED} schedules"
    assert found["is"] > _REACHED / 2, "the coordinator is hardly ever killed"


def test_a_seed_gives_the_same_schedule_again() -> None:
    for seed in range(10):
        first, second = play(seed), play(seed)
        assert first.trace == second.trace and len(first.trace) > 10


def test_a_seed_gives_the_same_schedule_in_another_process() -> None:
    """Neither the order of sets nor that of addresses may matter."""
    script = (
        "import hashlib\nfrom tests.simulation.world import play\n"
        "print(hashlib.sha256(repr([play(s).trace for s in range(8)]).encode()).hexdigest())"
    )
    here = hashlib.sha256(repr([play(seed).trace for seed in range(8)]).encode()).hexdigest()
    for salt in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", script],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": salt, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        assert there == here


def test_the_journal_in_memory_does_as_the_true_one() -> None:
    for seed in range(12):
        true = play(seed, lambda step, saw: SteppedJournal(Path(":memory:"), step, saw))
        assert true.trace == play(seed).trace
