"""Which silos belong to the federation, and may this certificate act now?"""

import threading

import msgspec

from coordinator.rounds.journal import Journal, SiloRow
from fedreid.clock import Clock
from fedreid.errors import AccessDenied
from fedreid.names import FederationName, Role
from fedreid.pki.certificates import Holder

ACTIVE = "active"
QUARANTINED = "quarantined"
LEFT = "left"
REVOKED = "revoked"


class Registry:
    """The registered silos, held in memory beside the journal, asked on every call and chunk."""

    def __init__(self, journal: Journal, federation: FederationName, clock: Clock) -> None:
        self._journal = journal
        self._federation = federation
        self._clock = clock
        self._silos = {row.name: row for row in journal.silos()}
        self.changing = threading.Lock()
        """Held by whoever changes a silo, so that journal and memory change in one order."""

    @property
    def federation(self) -> FederationName:
        """The federation's name."""
        return self._federation

    def silos(self) -> list[SiloRow]:
        """Every registered silo, by name."""
        return [self._silos[name] for name in sorted(self._silos)]

    def active(self, name: str) -> bool:
        """Whether the silo may take part."""
        row = self._silos.get(name)
        return row is not None and row.state == ACTIVE

    def check(self, holder: Holder) -> None:
        """Check that the holder of a certificate may act at this moment.

        TLS alone never revokes: an open connection outlives its certificate. So this is asked on
        every call and every chunk.

        Raises:
            AccessDenied: another federation's, expired, revoked, replaced, or never registered.
        """
        principal = holder.principal
        if principal.federation != self._federation:
            raise AccessDenied(f"The certificate is of another federation: {principal.federation}")
        now_s = self._clock.now_s()
        if not holder.not_before_s <= now_s < holder.not_after_s:
            raise AccessDenied(
                f"The certificate of {principal.name} has expired, or is not valid yet",
                why="it ended while the silo was away, or one of the clocks is wrong",
                next_step="Check the clocks; then ask for a new join token.",
            )
        if principal.role is Role.SILO:
            self._check_silo(holder)

    def remember(self, row: SiloRow) -> None:
        """Take up a silo that the journal has just stored."""
        self._silos[row.name] = row

    def set_state(self, name: str, state: str, reason: str = "") -> None:
        """Change a silo's state, in the journal first; blocks on the disk."""
        with self.changing:
            self._journal.set_silo_state(name, state, reason)
            self._silos[name] = msgspec.structs.replace(
                self._silos[name], state=state, reason=reason
            )

    def _check_silo(self, holder: Holder) -> None:
        row = self._silos.get(holder.principal.name)
        if row is None:
            raise AccessDenied(
                f"The silo {holder.principal.name} is not registered",
                next_step="Join with a token of this federation's coordinator.",
            )
        if row.state != ACTIVE:
            raise AccessDenied(
                f"The silo {row.name} has {row.state}"
                if row.state == LEFT
                else f"The silo {row.name} is {row.state}",
                why=row.reason,
                next_step="Ask the coordinator's operators.",
            )
        if row.key_fingerprint != holder.key_fingerprint:
            raise AccessDenied(
                f"The silo {row.name} has a newer key",
                why="somebody joined again under this name",
                next_step="Use the newest identity, or ask the coordinator's operators.",
            )
