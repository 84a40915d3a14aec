"""Does the audit log hold what the journal holds, though a crash came between the two?"""

from pathlib import Path

import pytest
from msgspec.structs import replace

from coordinator.rounds.chronicle import make_up, note_event, note_opened
from coordinator.rounds.machine import (
    Abandoned,
    Aggregated,
    Event,
    Phase,
    RoundState,
    TimePassed,
    advance,
)
from fedreid.audit import AuditLog, read_audit
from tests.coordinator.rounds.states import BEGAN_S, DEADLINE_S, opened, rules, update
from tests.parties import FakeClock

EVENTS: tuple[Event, ...] = (
    update("north"),
    update("south"),
    Aggregated(
        weights={"north": 0.5, "south": 0.5},
        update_norm=1.0,
        update_norms={"north": 1.0, "south": 2.0},
        flags={"south": ("distance",)},
    ),
    Abandoned(reason="enough"),
)


@pytest.fixture
def audit(tmp_path: Path) -> AuditLog:
    return AuditLog(tmp_path / "audit", FakeClock())


def noted(tmp_path: Path) -> list[tuple[str, object]]:
    return [(x.event, x.fields.get("silo")) for x in read_audit(tmp_path / "audit")]


def states() -> list[RoundState]:
    """A round, after each of its events."""
    found = [opened("north", "south")]
    for event in EVENTS:
        found.append(advance(found[-1], event, rules(), BEGAN_S))
    return found


WHOLE = [
    ("round.opened", None),
    ("update.accepted", "north"),
    ("update.accepted", "south"),
    ("update.flagged", "south"),
    ("round.failed", None),
]


@pytest.mark.parametrize("cut_off_at", range(len(WHOLE)))
def test_the_line_that_a_crash_cut_off_is_made_up(
    audit: AuditLog, tmp_path: Path, cut_off_at: int
) -> None:
    seen = states()
    for place, state in enumerate(seen):
        if place == cut_off_at:
            make_up(audit, state)
        elif place == 0:
            note_opened(audit, state)
        else:
            note_event(audit, seen[place - 1], EVENTS[place - 1], state)
    assert noted(tmp_path) == WHOLE


def test_what_stands_in_the_log_is_not_written_again(audit: AuditLog, tmp_path: Path) -> None:
    last = states()[-1]
    for _ in range(2):
        make_up(audit, last)
        assert noted(tmp_path) == WHOLE


def test_lines_of_other_rounds_are_no_lines_of_this_one(audit: AuditLog, tmp_path: Path) -> None:
    ended = advance(opened("north", "south"), TimePassed(), rules(), BEGAN_S + DEADLINE_S)
    assert ended.phase is Phase.SKIPPED
    for state in (replace(ended, number=6), ended, replace(ended, run="autumn")):
        make_up(audit, state)
    assert noted(tmp_path) == [("round.opened", None), ("round.skipped", None)] * 3
