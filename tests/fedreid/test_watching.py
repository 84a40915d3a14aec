"""Is each change told once, and is an absence waited out while a mistake is not?"""

import json
from collections.abc import Callable

import pytest

from fedreid.errors import AccessDenied, ConnectionFailed
from fedreid.limits import WATCH_S
from fedreid.watching import Look, watch

AWAY = ConnectionFailed("The coordinator can't be reached")


def seen(number: int, *, ended: bool = False) -> Look:
    return Look(line=f"round {number}", tree={"round": number}, ended=ended)


def playing(*found: Look | Exception) -> Callable[[], Look]:
    left = iter(found)

    def look() -> Look:
        now = next(left)
        if isinstance(now, Exception):
            raise now
        return now

    return look


PLAY = (seen(1), seen(1), AWAY, AWAY, seen(1), seen(2), seen(2, ended=True))


def test_each_change_and_each_absence_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    pauses: list[float] = []
    watch(playing(*PLAY), as_json=False, pause=pauses.append)
    assert capsys.readouterr().out.splitlines() == [
        "round 1",
        "The coordinator can't be reached. Trying again.",
        "in touch again",
        "round 2",
    ]
    assert pauses == [WATCH_S] * (len(PLAY) - 1)


def test_each_change_is_an_object_and_nothing_else_is(capsys: pytest.CaptureFixture[str]) -> None:
    watch(playing(*PLAY), as_json=True, pause=lambda s: None)
    told = capsys.readouterr()
    assert [json.loads(line) for line in told.out.splitlines()] == [{"round": 1}, {"round": 2}]
    assert told.err.splitlines()[-1] == "in touch again"


def test_what_fails_at_the_first_look_is_told_at_once() -> None:
    with pytest.raises(ConnectionFailed):
        watch(playing(AWAY), as_json=False, pause=lambda s: None)


def test_what_waiting_does_not_mend_ends_the_watching() -> None:
    with pytest.raises(AccessDenied):
        watch(playing(seen(1), AccessDenied("no")), as_json=False, pause=lambda s: None)
