"""Which silos are there right now, and what are they doing? Kept in memory only."""

from dataclasses import dataclass, replace

from fedreid.clock import Clock
from fedreid.limits import PRESENCE_S
from fedreid.names import SiloName


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """The last sign of life of a silo."""

    seen_s: float = 0.0
    phase: str = ""
    progress: float = 0.0
    agent_version: str = ""
    away: bool = False
    """It has said that it will be silent for a time."""


class Presence:
    """The last sign of life of each silo."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._sightings: dict[SiloName, Sighting] = {}
        self._heard_s: dict[SiloName, float] = {}
        """By the monotonic clock: setting the other one brings nobody back."""

    def seen(self, silo: SiloName, *, agent_version: str | None = None) -> None:
        """The silo has called."""
        sighting = replace(self.of(silo), seen_s=self._clock.now_s(), away=False)
        if agent_version is not None:
            sighting = replace(sighting, agent_version=agent_version)
        self._sightings[silo] = sighting
        self._heard_s[silo] = self._clock.monotonic_s()

    def working(self, silo: SiloName, phase: str, progress: float) -> None:
        """The silo has said what it does."""
        self.seen(silo)
        self._sightings[silo] = replace(self.of(silo), phase=phase, progress=progress)

    def away(self, silo: SiloName) -> None:
        """The silo will be silent until it calls again: nobody need wait for it."""
        self._sightings[silo] = replace(self.of(silo), away=True, phase="waiting", progress=0.0)

    def gone(self, silo: SiloName) -> None:
        """The silo has left or was revoked."""
        self._sightings.pop(silo, None)
        self._heard_s.pop(silo, None)

    def of(self, silo: SiloName) -> Sighting:
        """The last sign of life of a silo; all empty if it has given none."""
        return self._sightings.get(silo, Sighting())

    def present(self) -> list[SiloName]:
        """The silos heard of within the limit, sorted."""
        since_s = self._clock.monotonic_s() - PRESENCE_S
        return sorted(
            silo
            for silo, heard_s in self._heard_s.items()
            if heard_s >= since_s and not self.of(silo).away
        )
