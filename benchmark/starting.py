"""How long until a program that is started does its work?

Real processes over mutual TLS: a coordinator from its start until it says that it serves, an agent
that has enrolled from its start until the coordinator has greeted it. Joining is not in it, nor is
what a training process of its own imports later.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from benchmark.federation import LocalFederation, Program, terminable
from benchmark.transport import Spread, images_of_nobody
from fedreid.errors import RunError, UsageError

_SILO = "silo"
_START_S = 60.0
_LOOK_S = 0.01


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from a process's start to its first work, over all starts."""

    starts: int
    coordinator_seconds: Spread
    """Until it serves."""
    agent_seconds: Spread
    """Until the answer to its first Hello."""


def measure_starting(*, starts: int, tell: Callable[[str], None]) -> Started:
    """Start a coordinator and an agent, again and again.

    Raises:
        UsageError: no start at all.
        RunError: a program failed, or did not come so far in a minute.
    """
    if starts < 1:
        raise UsageError("A measurement needs a start")
    with tempfile.TemporaryDirectory(prefix="fedreid-starting-") as folder, terminable():
        root = Path(folder)
        images = images_of_nobody(root / "images")
        with LocalFederation(
            root / "federation", federation="starting", silos={_SILO: images}
        ) as local:
            local.initialise()
            local.command(*local.join_arguments(_SILO), "--enrol-only")
            local.coordinator.stop()
            coordinator, agent = [], []
            for number in range(1, starts + 1):
                local.coordinator.start()
                coordinator.append(_until(local.coordinator, "serving the federation"))
                agent.append(_until(local.start_agent(_SILO), "connected to the federation"))
                local.stop()
                tell(f"start {number} of {starts}")
    return Started(
        starts=starts,
        coordinator_seconds=Spread.of(coordinator),
        agent_seconds=Spread.of(agent),
    )


def rows(started: Started) -> Sequence[tuple[str, str]]:
    """The figures for a table."""
    return [
        (what, f"{each.median:.2f} ({each.least:.2f} to {each.most:.2f})")
        for what, each in (
            ("coordinator: s until it serves", started.coordinator_seconds),
            ("agent: s until its first Hello is answered", started.agent_seconds),
        )
    ]


def _until(program: Program, words: str) -> float:
    """Seconds until a program that was just started says so."""
    began_s = time.monotonic()
    while words not in program.log_of_this_start:
        took_s = time.monotonic() - began_s
        if program.exit_code() is not None or took_s > _START_S:
            raise RunError("A program did not start", why=program.log_of_this_start[-500:])
        time.sleep(_LOOK_S)
    return time.monotonic() - began_s
