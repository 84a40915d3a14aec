"""How is the federation's certificate authority replaced without locking anybody out?

In four steps. ``prepare``: a new authority is trusted beside the old one, and every silo is told
to renew, by which it learns both; it acknowledges with each NextTask. ``activate``: the new one
issues, and every silo is told to renew again. ``drop``: the old one is trusted no longer. The
fourth step is the waiting: neither of the last two is taken while a silo would be locked out.
"""

import threading
from collections.abc import Iterable

from coordinator.rounds.journal import SiloRow
from coordinator.trust.authorities import ACTIVATED, PREPARED, Authorities
from coordinator.trust.keeping import Keeper
from coordinator.trust.registry import Registry
from fedreid.audit import AuditLog
from fedreid.clock import Clock
from fedreid.errors import UsageError
from fedreid.names import SiloName
from fedreid.pki.certificates import Holder, create_authority, holder_of


class RollOver:
    """Takes the steps, and says what silos still have to do."""

    def __init__(
        self,
        *,
        authorities: Authorities,
        registry: Registry,
        keeper: Keeper,
        audit: AuditLog,
        clock: Clock,
        external: bool = False,
    ) -> None:
        """``external``: the operators' own PKI replaces its authorities by itself."""
        self._external = external
        self._authorities = authorities
        self._registry = registry
        self._keeper = keeper
        self._audit = audit
        self._clock = clock
        self._one_at_a_time = threading.Lock()

    def awaited(self) -> list[str]:
        """The silos that the next step would lock out, sorted."""
        silos = [row for row in self._registry.silos() if self._registry.may_talk(row.name)]
        return awaited(
            self._authorities.step,
            silos,
            digest=self._authorities.digest,
            issuer_key_id=self._authorities.issuing.key_id,
        )

    def prepare(self) -> None:
        """Trust a new authority beside the old one; blocks on the disk.

        Raises:
            UsageError: a roll-over is under way.
        """
        with self._one_at_a_time:
            self._check_not_external()
            new = create_authority(self._registry.federation, now_s=self._clock.now_s())
            self._authorities.prepare(new)
            self._follow_up("ca.prepared")

    def activate(self, *, force: bool) -> None:
        """Let the new authority issue; blocks on the disk.

        Raises:
            UsageError: none was prepared, or silos do not trust it yet and there is no force.
        """
        with self._one_at_a_time:
            left_behind = self._left_behind(PREPARED, force)
            self._authorities.activate()
            self._follow_up("ca.activated", left_behind)

    def drop(self, *, force: bool) -> None:
        """Trust the old authority no longer; blocks on the disk.

        Raises:
            UsageError: the new one does not issue, or silos still use the old one and there is
                no force.
        """
        with self._one_at_a_time:
            left_behind = self._left_behind(ACTIVATED, force)
            self._authorities.drop()
            self._follow_up("ca.dropped", left_behind)

    def has_acknowledged(self, silo: SiloName, authorities_digest: str) -> bool:
        """Whether it is known already that a silo trusts these authorities."""
        return self._registry.known(silo).authorities_digest == authorities_digest

    def acknowledge(self, silo: SiloName, authorities_digest: str) -> None:
        """Note which authorities a silo says it trusts; blocks on the disk if that is new."""
        self._registry.acknowledge(silo, authorities_digest)

    def renewal_reason(self, holder: Holder, authorities_digest: str) -> str:
        """Why a silo has to renew now; empty if it need not.

        ``authorities_digest`` is empty for an agent that does not say whom it trusts.
        """
        if self._external:
            return ""
        if authorities_digest and authorities_digest != self._authorities.digest:
            return "the federation's certificate authorities have changed"
        if holder.issuer_key_id != self._authorities.issuing.key_id:
            return "the federation has a new certificate authority"
        return ""

    def _check_not_external(self) -> None:
        if self._external:
            raise UsageError(
                "This federation's authorities are those of its operators' own PKI",
                next_step="Replace the file client_authorities of coordinator.toml.",
            )

    def _left_behind(self, step: str, force: bool) -> list[str]:
        """Silos that a step takes no more notice of; none, unless it is forced."""
        self._check_not_external()
        left_behind = self.awaited() if self._authorities.step == step else []
        if left_behind and not force:
            raise UsageError(
                f"The silos {', '.join(left_behind)} would be locked out",
                why="their agents have not followed the last step yet",
                next_step="Wait until they have been connected for a moment, or take the step with "
                "--force: they then need a new token and join --rejoin.",
            )
        return left_behind

    def _follow_up(self, event: str, left_behind: Iterable[str] = ()) -> None:
        self._keeper.look()
        self._audit.append(
            event,
            authorities=[authority.key_id for authority in self._authorities.trusted],
            left_behind=list(left_behind),
        )


def awaited(step: str, silos: Iterable[SiloRow], *, digest: str, issuer_key_id: str) -> list[str]:
    """Of ``silos`` those that the step after ``step`` would lock out."""
    if step == PREPARED:
        return [row.name for row in silos if row.authorities_digest != digest]
    if step == ACTIVATED:
        return [row.name for row in silos if _issuer_key_id(row) != issuer_key_id]
    return []


def _issuer_key_id(row: SiloRow) -> str:
    return holder_of(row.certificate_pem).issuer_key_id if row.certificate_pem else ""
