"""Is the coordinator there, and if not, what is waited for and since when? Told once, not each try.

An agent reconnects for ever. Its operator reads one line when contact is lost and one when it is
back; a bar on the terminal and the figures say meanwhile what is waited for.
"""

from collections.abc import Callable

from fedreid.clock import Clock
from fedreid.console import instant
from fedreid.errors import ConnectionFailed, FedreidError, SiloSuspended
from fedreid.limits import RECONNECT_MAX_S
from silo_agent import metrics


class Contact:
    """What is known of the coordinator's being there, over all lines of an agent."""

    def __init__(
        self,
        clock: Clock,
        say: Callable[[str], None],
        show: Callable[[str, float], None] = lambda doing, share: None,
    ) -> None:
        self._clock = clock
        self._say = say
        self._show = show
        self._lost_s: float | None = None
        self._told: type[FedreidError] | None = None
        self._connected_before = False
        self.connected = False
        """A call was answered, and none has failed since."""

    def heard(self) -> None:
        """The coordinator has answered a call."""
        metrics.LAST_CONTACT.set(self._clock.now_s())
        self._note(connected=True)

    def missed(self, waiting: str = "") -> None:
        """A call that can wait was not answered, or the agent has hung up and is ``waiting``."""
        if waiting:
            self._show(waiting, 0.0)
        self._note(connected=False)

    def made(self) -> None:
        """A new line stands."""
        self.heard()
        if self._connected_before:
            metrics.RECONNECTS.inc()
        if self._lost_s is not None:
            away_s = max(0.0, self._clock.now_s() - self._lost_s)
            self._say(f"in touch again after {away_s:.0f} s, since {instant(self._lost_s)}")
        self._lost_s, self._told = None, None
        self._connected_before = True

    def lost(self, error: ConnectionFailed | SiloSuspended, *, pause_s: float) -> None:
        """The line broke, or none could be made; the next attempt comes after a pause."""
        now_s = self._clock.now_s()
        if self._lost_s is None:
            self._lost_s = now_s
        suspended = isinstance(error, SiloSuspended)
        awaited = "to be let in again" if suspended else "for the coordinator"
        if self._told is not type(error):
            self._say(
                f"{error} Waiting {awaited}, for as long as it takes: the next attempt comes in "
                f"{pause_s:.1f} s, later ones every {RECONNECT_MAX_S:g} s at most."
            )
            self._told = type(error)
        self._show(
            f"waiting {awaited} since {instant(self._lost_s)}, "
            f"next attempt {instant(now_s + pause_s)}",
            0.0,
        )
        self._note(connected=False)
        metrics.note_waiting("approval" if suspended else "coordinator")

    def _note(self, *, connected: bool) -> None:
        self.connected = connected
        metrics.CONNECTED.set(connected)
