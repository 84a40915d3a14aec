"""How is something shown that changes? A picture on a terminal, else a line or a JSON object each.

Whoever watches wants to see a coordinator's restart, not to end with it: once a first look has
succeeded, the other side may be away for as long as it likes.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from rich.console import Group, RenderableType
from rich.live import Live

from fedreid.console import err, instant, out, print_json_line, say, text_of
from fedreid.errors import ConnectionFailed
from fedreid.limits import WATCH_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is seen at one moment, in the three ways of showing it."""

    line: str
    """Where the output goes to a file, pipe or journal."""
    tree: Any
    """For machines."""
    picture: RenderableType = ""
    """On a terminal."""
    ended: bool = False
    """Nothing will change any more."""


class Screen(AbstractContextManager["Screen"], ABC):
    """Where looks go; what has not changed is not shown again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return

    @abstractmethod
    def show(self, look: Look) -> None:
        """Show what is seen now."""

    @abstractmethod
    def lost(self, error: ConnectionFailed) -> None:
        """Nothing is seen now."""


def draws(*, as_json: bool) -> bool:
    """Whether looks are shown as pictures, so that others need not make any."""
    return out.is_terminal and not as_json


def watch(
    look: Callable[[], Look], *, as_json: bool, pause: Callable[[float], None] = time.sleep
) -> None:
    """Look again and again until there is nothing more to see, or somebody presses Ctrl-C.

    Raises:
        FedreidError: the very first look failed, or a later one by more than an absence.
    """
    seen = look()
    with _Terminal() if draws(as_json=as_json) else _Lines(as_json=as_json) as screen:
        screen.show(seen)
        while not seen.ended:
            pause(WATCH_S)
            try:
                seen = look()
            except ConnectionFailed as error:
                screen.lost(error)
            else:
                screen.show(seen)


class _Terminal(Screen):
    """A picture that is drawn over; the last one stays."""

    def __init__(self) -> None:
        self._live = Live(console=out, auto_refresh=False)
        self._picture: RenderableType = ""
        self._lost_s: float | None = None

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def show(self, look: Look) -> None:
        self._picture, self._lost_s = look.picture, None
        self._live.update(self._picture, refresh=True)

    def lost(self, error: ConnectionFailed) -> None:
        if self._lost_s is None:
            self._lost_s = time.time()
        away = text_of(f"no answer since {instant(self._lost_s)}, trying again: {error.what}")
        away.stylize("bold red")
        self._live.update(Group(self._picture, away), refresh=True)


class _Lines(Screen):
    """A line or a JSON object for each change; absences are told beside JSON, not in it."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._shown: Any = None
        self._lost = False

    def show(self, look: Look) -> None:
        if self._lost:
            self._say("in touch again")
        self._lost = False
        now = look.tree if self._as_json else look.line
        if now == self._shown:
            return
        self._shown = now
        if self._as_json:
            print_json_line(now)
        else:
            say(look.line)

    def lost(self, error: ConnectionFailed) -> None:
        if not self._lost:
            self._say(f"{error} Trying again.")
        self._lost = True

    def _say(self, line: str) -> None:
        if self._as_json:
            err.print(line, markup=False, soft_wrap=True)
        else:
            say(line)
