"""Which silos belong to the federation, and may this certificate act now?

The states of a silo::

    pending      its key awaits a person's approval         no call
    active       it takes part                              every call of a silo
    quarantined  its updates looked wrong                   every call, but it is not invited
    suspended    kept out by a person, for a time           no call
    left         it went by itself                          no call, until it joins again
    revoked      its identity was withdrawn                 no call, until it joins again
"""

import threading
from collections.abc import Callable

from msgspec.structs import replace

from coordinator.rounds.journal import Journal, SiloRow
from fedreid.clock import Clock
from fedreid.errors import AccessDenied, Denial, SiloSuspended, UsageError
from fedreid.limits import CLOCK_SKEW_S, KEY_GRACE_S
from fedreid.names import FederationName, Role
from fedreid.pki.certificates import Holder

ACTIVE = "active"
PENDING = "pending"
SUSPENDED = "suspended"
QUARANTINED = "quarantined"
LEFT = "left"
REVOKED = "revoked"

_MAY_TALK = frozenset({ACTIVE, QUARANTINED})
KEPT_OUT = frozenset({SUSPENDED, QUARANTINED})
"""States that a person ends with ``silo resume``, and that joining again does not end."""


class Registry:
    """The registered silos, held in memory beside the journal, asked on every call and chunk."""

    def __init__(
        self,
        journal: Journal,
        federation: FederationName,
        clock: Clock,
        *,
        issued_here: Callable[[Holder], bool] = lambda holder: True,
        external: bool = False,
    ) -> None:
        """The silos of a journal.

        ``issued_here`` says whether an authority of the coordinator that is trusted now has issued
        a certificate: TLS asks only when a connection begins. With ``external`` an outside PKI
        vouches for silos and their keys, and the coordinator's own for none.
        """
        self._journal = journal
        self._federation = federation
        self._clock = clock
        self._issued_here = issued_here
        self._external = external
        self._restored = journal.restored
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

    def silo(self, name: str) -> SiloRow | None:
        """A registered silo."""
        return self._silos.get(name)

    def known(self, name: str) -> SiloRow:
        """A registered silo that a person named.

        Raises:
            UsageError: there is none of this name.
        """
        row = self._silos.get(name)
        if row is None:
            raise UsageError(f"There is no silo {name!r}", next_step="See: coordinator silo list.")
        return row

    def active(self, name: str) -> bool:
        """Whether the silo takes part: it is invited, and its updates count."""
        row = self._silos.get(name)
        return row is not None and row.state == ACTIVE

    def count_active(self) -> int:
        """How many silos take part."""
        return sum(row.state == ACTIVE for row in list(self._silos.values()))

    def may_talk(self, name: str) -> bool:
        """Whether the silo may call at all; more silos may than take part."""
        row = self._silos.get(name)
        return row is not None and row.state in _MAY_TALK

    def check(self, holder: Holder) -> None:
        """Check that the holder of a certificate may act at this moment.

        TLS alone never revokes: an open connection outlives its certificate. So this is asked on
        every call and every chunk.

        Raises:
            AccessDenied: another federation's, expired, revoked, replaced, never registered, or of
                an authority that is trusted no longer.
        """
        principal = holder.principal
        if principal.federation != self._federation:
            raise AccessDenied(
                f"The certificate is of another federation: {principal.federation}",
                reason=Denial.FEDERATION,
            )
        now_s = self._clock.now_s()
        if not holder.not_before_s <= now_s < holder.not_after_s:
            raise AccessDenied(
                f"The certificate of {principal.name} has expired, or is not valid yet",
                reason=Denial.EXPIRED,
                why="it ended while the silo was away, or one of the clocks is wrong",
                next_step="Check the clocks; then ask for a new join token, and: silo-agent join "
                "--rejoin --token-file FILE.",
            )
        if not self._external and not self._issued_here(holder):
            raise AccessDenied(
                f"The certificate of {principal.name} is of an authority that is trusted no longer",
                reason=Denial.AUTHORITY,
                next_step="Use the newest identity, or join again with a new token.",
            )
        if principal.role is Role.SILO:
            self._check_silo(holder, now_s)

    def store(self, row: SiloRow, *, drop_tokens: bool = False) -> None:
        """Take up a silo's new row, in the journal first; the caller holds ``changing``."""
        self._journal.save_silo(row, drop_tokens=drop_tokens)
        self._silos[row.name] = row

    def remember(self, row: SiloRow) -> None:
        """Take up a silo that the journal has just stored."""
        self._silos[row.name] = row

    def set_state(self, name: str, state: str, reason: str = "") -> None:
        """Change a silo's state, in the journal first; blocks on the disk.

        A silo that is kept out has no use for the tokens that it still holds.
        """
        with self.changing:
            row = replace(self._silos[name], state=state, reason=reason)
            self.store(row, drop_tokens=state != ACTIVE)

    def first_use(self, holder: Holder) -> bool:
        """Whether the silo calls with a renewed key that it has not used before."""
        row = self._silos.get(holder.principal.name)
        if holder.principal.role is not Role.SILO or row is None:
            return False
        renewed = bool(row.next_key_fingerprint) and (
            row.next_key_fingerprint == holder.key_fingerprint
        )
        return renewed or self._forgotten(row, holder)

    def note_first_use(self, holder: Holder) -> None:
        """From now on the renewed key is the silo's, and the one before it ends; blocks."""
        with self.changing:
            if not self.first_use(holder):
                return
            row = self._silos[holder.principal.name]
            self.store(
                replace(
                    row,
                    key_fingerprint=holder.key_fingerprint,
                    # None for one that the journal has forgotten: nobody asks for it again.
                    certificate_pem=b""
                    if self._forgotten(row, holder)
                    else row.next_certificate_pem,
                    not_after_s=holder.not_after_s,
                    next_key_fingerprint="",
                    next_certificate_pem=b"",
                    previous_key_fingerprint=row.key_fingerprint,
                    previous_until_s=self._clock.now_s() + KEY_GRACE_S,
                )
            )

    def acknowledge(self, name: str, authorities_digest: str) -> None:
        """Note which authorities a silo says it trusts; blocks on the disk if that is new."""
        with self.changing:
            row = self._silos[name]
            if row.authorities_digest != authorities_digest:
                self.store(replace(row, authorities_digest=authorities_digest))

    def _check_silo(self, holder: Holder, now_s: float) -> None:
        row = self._silos.get(holder.principal.name)
        if row is None:
            raise AccessDenied(
                f"The silo {holder.principal.name} is not registered",
                reason=Denial.NOT_REGISTERED,
                next_step="Join with a token of this federation's coordinator, or ask its "
                "operators to register this silo.",
            )
        if row.state == SUSPENDED:
            raise SiloSuspended(
                f"The silo {row.name} is suspended",
                reason=Denial.STATE,
                why=row.reason,
                next_step="The coordinator's operators let it in again: coordinator silo resume.",
            )
        if row.state not in _MAY_TALK:
            raise AccessDenied(
                f"The silo {row.name} has {row.state}"
                if row.state == LEFT
                else f"The silo {row.name} is {row.state}",
                reason=Denial.STATE,
                why=row.reason,
                next_step="Ask the coordinator's operators.",
            )
        self._check_key(row, holder, now_s)

    def _check_key(self, row: SiloRow, holder: Holder, now_s: float) -> None:
        if self._external:
            if self._issued_here(holder):
                raise AccessDenied(
                    f"The certificate of {row.name} is of the coordinator's own authority",
                    reason=Denial.AUTHORITY,
                    why="in this federation the operators' own PKI vouches for silos",
                    next_step="Use the certificate of that PKI.",
                )
            return
        known = {row.key_fingerprint, row.next_key_fingerprint}
        if now_s < row.previous_until_s:
            known.add(row.previous_key_fingerprint)
        if holder.key_fingerprint not in known and not self._forgotten(row, holder):
            raise AccessDenied(
                f"The silo {row.name} has a newer key",
                reason=Denial.KEY,
                why="its identity was renewed, or somebody joined again under this name",
                next_step="Use the newest identity, or ask the coordinator's operators.",
            )

    def _forgotten(self, row: SiloRow, holder: Holder) -> bool:
        """Whether the key was certified here after the backup that the journal comes from.

        The silo has renewed its identity since; without this every silo would be locked out of a
        coordinator that was restored. Only a newer certificate than the one known is believed.
        """
        if self._restored is None or not self._issued_here(holder):
            return False
        backed_up_s, restored_s = self._restored
        return (
            holder.key_fingerprint != row.key_fingerprint
            and holder.key_fingerprint != row.next_key_fingerprint
            and backed_up_s - 1.0 <= holder.not_before_s + CLOCK_SKEW_S < restored_s
            and holder.not_after_s > row.not_after_s
        )
