"""How does a join token become a silo's certificate, and a certificate the next one?"""

from dataclasses import dataclass

from msgspec.structs import replace

from coordinator.rounds.journal import Journal, SiloRow, TokenRow
from coordinator.trust.authorities import Authorities
from coordinator.trust.registry import ACTIVE, KEPT_OUT, PENDING, Registry
from fedreid import faults
from fedreid.audit import AuditLog
from fedreid.clock import Clock
from fedreid.errors import AccessDenied, TokenRefused, UsageError
from fedreid.limits import APPROVAL_S, LEAF_LIFE_S, TOKEN_TTL_MAX_S
from fedreid.names import Principal, Role, SiloName
from fedreid.pki.certificates import (
    Holder,
    PublicKey,
    holder_of,
    key_fingerprint,
    key_to_pem,
    new_key,
    requested_key,
    short_fingerprint,
    to_pem,
)
from fedreid.pki.tokens import JoinToken, new_secret, secret_hash


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """Mints tokens, redeems them and renews certificates; every method blocks on the disk."""

    journal: Journal
    registry: Registry
    authorities: Authorities
    audit: AuditLog
    clock: Clock
    leaf_life_s: float = LEAF_LIFE_S
    approval: bool = False
    """A new key waits for a person before it gets a certificate."""
    external: bool = False
    """The operators' own PKI issues the certificates, and nothing is issued here."""

    def create_token(self, silo: SiloName, *, ttl_s: float, coordinator: str) -> JoinToken:
        """A token for one silo, good for one key.

        Raises:
            UsageError: a life out of range, or the silo is kept out.
            AccessDenied: the operators' own PKI issues the certificates.
        """
        self._check_issuing()
        if not 0 < ttl_s <= TOKEN_TTL_MAX_S:
            raise UsageError(
                f"A token can't live for {ttl_s:g} s",
                next_step=f"Choose a time of at most {TOKEN_TTL_MAX_S / 86400:g} days.",
            )
        now_s = self.clock.now_s()
        key = new_key()
        bootstrap = self.authorities.issuing.issue(
            Principal(federation=self.registry.federation, role=Role.BOOTSTRAP, name=silo),
            key.public_key(),
            now_s=now_s,
            # Asking on while a person has yet to approve needs it beyond the token's own end.
            life_s=ttl_s + (APPROVAL_S if self.approval else 0.0),
        )
        token = JoinToken(
            silo=silo,
            coordinator=coordinator,
            secret=new_secret(),
            expires_at_s=now_s + ttl_s,
            bootstrap_key_pem=key_to_pem(key),
            bootstrap_certificate_pem=to_pem(bootstrap),
            authorities_pem=self.authorities.bundle_pem,
        )
        with self.registry.changing:
            self._check_not_kept_out(silo)
            self.journal.add_token(
                TokenRow(
                    secret_hash=secret_hash(token.secret),
                    silo=silo,
                    expires_at_s=token.expires_at_s,
                )
            )
        self.audit.append("token.created", silo=silo, expires_at_s=token.expires_at_s)
        return token

    def enrol(self, silo: SiloName, secret: str, request_der: bytes) -> SiloRow:
        """Issue the certificate for the first key that uses the token.

        The same key again gets the same certificate, so that a lost answer can be asked for
        again; another key is refused. Where a person has to approve, the silo is PENDING and has
        no certificate until then.

        Raises:
            TokenRefused: unknown, for another silo, expired, or bound to another key.
            AccessDenied: the operators' own PKI issues the certificates.
        """
        self._check_issuing()
        public_key = requested_key(request_der)
        with self.registry.changing:
            try:
                return self._enrol(silo, secret, public_key)
            except TokenRefused as refused:
                self.audit.append(
                    "token.refused",
                    silo=silo,
                    key_fingerprint=key_fingerprint(public_key),
                    reason=refused.what,
                )
                raise

    def renew(self, holder: Holder, request_der: bytes) -> bytes:
        """A certificate, PEM, for a silo's new key, asked for with its newest one.

        Both keys are let in until the new one was used. The same new key again gets the same
        certificate; another one takes its place as long as it was not used.

        Raises:
            AccessDenied: not asked with the newest key, no new key, or not issued here at all.
        """
        self._check_issuing()
        public_key = requested_key(request_der)
        fingerprint = key_fingerprint(public_key)
        name = SiloName(holder.principal.name)
        with self.registry.changing:
            row = self.registry.known(name)
            if holder.key_fingerprint != row.key_fingerprint:
                raise AccessDenied(
                    f"The silo {name} has a newer key", next_step="Renew with the newest identity."
                )
            if fingerprint in (row.key_fingerprint, row.previous_key_fingerprint):
                raise AccessDenied(
                    "A renewed certificate is for a new key", next_step="Make one, and ask again."
                )
            if fingerprint == row.next_key_fingerprint and self._is_good(row.next_certificate_pem):
                return row.next_certificate_pem
            issued = self._certificate(name, public_key)
            with faults.step("silo.renew.commit"):
                self.registry.store(
                    replace(row, next_key_fingerprint=fingerprint, next_certificate_pem=issued)
                )
        self.audit.append("silo.renewed", silo=name, key_fingerprint=fingerprint)
        return issued

    def approve(self, name: str, fingerprint: str, *, by: str) -> None:
        """Let a silo in whose key awaits approval.

        Raises:
            UsageError: it does not await any, or its key has another fingerprint.
        """
        with self.registry.changing:
            row = self.registry.known(name)
            if row.state != PENDING:
                raise UsageError(f"The silo {name} is {row.state}: it awaits no approval")
            if fingerprint.strip().upper() != short_fingerprint(row.key_fingerprint):
                self.audit.append("silo.approval_refused", silo=name, by=by)
                raise UsageError(
                    "The key that awaits approval has another fingerprint",
                    why="it was mistyped, or somebody else holds the silo's token",
                    next_step="Compare it with what the silo's own screen shows; if they differ: "
                    f"coordinator silo revoke {name}.",
                )
            self.registry.store(replace(row, state=ACTIVE, reason=""))
        self.audit.append("silo.approved", silo=name, key_fingerprint=row.key_fingerprint, by=by)

    def register(self, name: SiloName, *, by: str) -> None:
        """Let a silo in that the operators' own PKI vouches for, whatever its key.

        Raises:
            UsageError: silos join with tokens here, or this one is kept out.
        """
        if not self.external:
            raise UsageError(
                "Silos join this federation with tokens",
                next_step=f"Make one: coordinator token create --silo {name}.",
            )
        with self.registry.changing:
            self._check_not_kept_out(name)
            self.registry.store(SiloRow(name=name, state=ACTIVE))
        self.audit.append("silo.registered", silo=name, by=by)

    def _enrol(self, silo: SiloName, secret: str, public_key: PublicKey) -> SiloRow:
        fingerprint = key_fingerprint(public_key)
        token = self.journal.token(secret_hash(secret))
        if token is None or token.silo != silo:
            raise TokenRefused(
                "The coordinator does not know this join token",
                next_step="Ask for a new one: 'coordinator token create'.",
            )
        if token.key_fingerprint:
            return self._asked_again(token, public_key)
        if self.clock.now_s() >= token.expires_at_s:
            raise TokenRefused(
                "The join token has expired",
                next_step="Ask for a new one: 'coordinator token create'.",
            )
        row = SiloRow(name=silo, state=PENDING, key_fingerprint=fingerprint)
        if not self.approval:
            row = self._certified(row, public_key)
        with faults.step("token.consume.commit"):
            self.journal.consume_token(replace(token, key_fingerprint=fingerprint), row)
        self.registry.remember(row)
        self.audit.append(
            "silo.awaits_approval" if self.approval else "silo.enrolled",
            silo=silo,
            key_fingerprint=fingerprint,
        )
        return row

    def _asked_again(self, token: TokenRow, public_key: PublicKey) -> SiloRow:
        fingerprint = key_fingerprint(public_key)
        row = self.registry.silo(token.silo)
        same_key = row is not None and (fingerprint == token.key_fingerprint == row.key_fingerprint)
        if row is None or not same_key or row.state not in (ACTIVE, PENDING):
            raise TokenRefused(
                "The join token was already used by another key",
                reused=fingerprint != token.key_fingerprint,
                why="a token is good for one agent; if it was not you, it has leaked",
                next_step="Tell the coordinator's operators, and ask for a new token.",
            )
        if row.state == ACTIVE and not row.certificate_pem:  # it was approved meanwhile
            row = self._certified(row, public_key)
            self.registry.store(row)
            self.audit.append("silo.enrolled", silo=row.name, key_fingerprint=fingerprint)
        return row

    def _certified(self, row: SiloRow, public_key: PublicKey) -> SiloRow:
        certificate_pem = self._certificate(SiloName(row.name), public_key)
        return replace(
            row,
            state=ACTIVE,
            certificate_pem=certificate_pem,
            not_after_s=holder_of(certificate_pem).not_after_s,
        )

    def _certificate(self, silo: SiloName, public_key: PublicKey) -> bytes:
        certificate = self.authorities.issuing.issue(
            Principal(federation=self.registry.federation, role=Role.SILO, name=silo),
            public_key,
            now_s=self.clock.now_s(),
            life_s=self.leaf_life_s,
        )
        return to_pem(certificate)

    def _is_good(self, certificate_pem: bytes) -> bool:
        holder = holder_of(certificate_pem)
        return (
            self.clock.now_s() < holder.not_after_s
            and holder.issuer_key_id == self.authorities.issuing.key_id
        )

    def _check_issuing(self) -> None:
        if self.external:
            raise AccessDenied(
                "This federation's certificates come from its operators' own PKI",
                next_step="Get one from there; the silo joins with --identity FOLDER after "
                "'coordinator silo register NAME'.",
            )

    def _check_not_kept_out(self, name: SiloName) -> None:
        row = self.registry.silo(name)
        if row is not None and row.state in KEPT_OUT:
            raise UsageError(
                f"The silo {name} is {row.state}",
                why=row.reason,
                next_step=f"Let it in again first: coordinator silo resume {name}.",
            )
