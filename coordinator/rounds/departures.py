"""How does a silo end its part, or is kept out, so that from then on nothing of it counts?"""

from collections.abc import Awaitable, Callable
from contextlib import suppress

from coordinator.rounds.current import Current
from coordinator.rounds.machine import SiloGone
from coordinator.rounds.presence import Presence
from coordinator.trust.registry import Registry
from fedreid import faults
from fedreid.errors import FedreidError
from fedreid.names import SiloName
from fedreid.work import off_loop, to_the_end


class Departures:
    """Takes silos out: of the registry, of their calls, and of the round."""

    def __init__(
        self,
        *,
        current: Current,
        registry: Registry,
        presence: Presence,
        end_calls: Callable[[str], Awaitable[None]],
    ) -> None:
        self._current = current
        self._registry = registry
        self._presence = presence
        self._end_calls = end_calls

    async def silo_gone(self, silo: SiloName, state: str, reason: str = "") -> None:
        """A silo leaves or is kept out: from now on nothing of it counts."""
        try:
            await to_the_end(self._shut_out(silo, state, reason))
            await self._end_calls(silo)
        finally:  # who asked may have given up waiting
            if not self._registry.active(silo):
                await to_the_end(self._current.apply(SiloGone(silo=silo)))
        self._presence.gone(silo)
        await self._current.note("silo.gone", silo=silo)

    async def _shut_out(self, silo: SiloName, state: str, reason: str) -> None:
        with faults.step("silo.gone.commit"):
            await off_loop(self._registry.set_state, silo, state, reason)
        with suppress(FedreidError):  # then it is owed; the silo is out all the same
            await self._current.note(f"silo.{state}", silo=silo, reason=reason)
