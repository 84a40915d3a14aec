"""How does a join token become a silo's certificate?"""

from dataclasses import dataclass

from coordinator.rounds.journal import Journal, SiloRow, TokenRow
from coordinator.trust.registry import ACTIVE, Registry
from fedreid.audit import AuditLog
from fedreid.clock import Clock
from fedreid.errors import TokenRefused, UsageError
from fedreid.limits import LEAF_LIFE_S, TOKEN_TTL_MAX_S
from fedreid.names import Principal, Role, SiloName
from fedreid.pki.certificates import (
    Authority,
    PublicKey,
    key_fingerprint,
    key_to_pem,
    new_key,
    requested_key,
    to_pem,
)
from fedreid.pki.tokens import JoinToken, new_secret, secret_hash


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """Mints tokens and redeems them; both methods block on the disk."""

    journal: Journal
    registry: Registry
    authority: Authority
    audit: AuditLog
    clock: Clock

    def create_token(self, silo: SiloName, *, ttl_s: float, coordinator: str) -> JoinToken:
        """A token for one silo, good for one key.

        Raises:
            UsageError: a life out of range.
        """
        if not 0 < ttl_s <= TOKEN_TTL_MAX_S:
            raise UsageError(
                f"A token can't live for {ttl_s:g} s",
                next_step=f"Choose a time of at most {TOKEN_TTL_MAX_S / 86400:g} days.",
            )
        now_s = self.clock.now_s()
        key = new_key()
        bootstrap = self.authority.issue(
            Principal(federation=self.registry.federation, role=Role.BOOTSTRAP, name=silo),
            key.public_key(),
            now_s=now_s,
            life_s=ttl_s,
        )
        token = JoinToken(
            silo=silo,
            coordinator=coordinator,
            secret=new_secret(),
            expires_at_s=now_s + ttl_s,
            bootstrap_key_pem=key_to_pem(key),
            bootstrap_certificate_pem=to_pem(bootstrap),
            authorities_pem=self.authority.certificate_pem,
        )
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
        again; another key is refused.

        Raises:
            TokenRefused: unknown, for another silo, expired, or bound to another key.
        """
        public_key = requested_key(request_der)
        fingerprint = key_fingerprint(public_key)
        with self.registry.changing:
            try:
                row = self._enrol(silo, secret, public_key)
            except TokenRefused as refused:
                self.audit.append(
                    "token.refused", silo=silo, key_fingerprint=fingerprint, reason=refused.what
                )
                raise
        self.audit.append("silo.enrolled", silo=silo, key_fingerprint=fingerprint)
        return row

    def _enrol(self, silo: SiloName, secret: str, public_key: PublicKey) -> SiloRow:
        fingerprint = key_fingerprint(public_key)
        token = self.journal.token(secret_hash(secret))
        if token is None or token.silo != silo:
            raise TokenRefused(
                "The coordinator does not know this join token",
                next_step="Ask for a new one: 'coordinator token create'.",
            )
        if token.key_fingerprint:
            return self._issued_before(token, fingerprint)
        if self.clock.now_s() >= token.expires_at_s:
            raise TokenRefused(
                "The join token has expired",
                next_step="Ask for a new one: 'coordinator token create'.",
            )
        row = self._issue(silo, public_key)
        self.journal.consume_token(
            TokenRow(
                secret_hash=token.secret_hash,
                silo=silo,
                expires_at_s=token.expires_at_s,
                key_fingerprint=fingerprint,
            ),
            row,
        )
        self.registry.remember(row)
        return row

    def _issued_before(self, token: TokenRow, fingerprint: str) -> SiloRow:
        row = next((r for r in self.registry.silos() if r.name == token.silo), None)
        same_key = row is not None and (fingerprint == token.key_fingerprint == row.key_fingerprint)
        if row is None or not same_key or row.state != ACTIVE:
            raise TokenRefused(
                "The join token was already used by another key",
                why="a token is good for one agent; if it was not you, it has leaked",
                next_step="Tell the coordinator's operators, and ask for a new token.",
            )
        return row

    def _issue(self, silo: SiloName, public_key: PublicKey) -> SiloRow:
        now_s = self.clock.now_s()
        certificate = self.authority.issue(
            Principal(federation=self.registry.federation, role=Role.SILO, name=silo),
            public_key,
            now_s=now_s,
            life_s=LEAF_LIFE_S,
        )
        return SiloRow(
            name=silo,
            state=ACTIVE,
            key_fingerprint=key_fingerprint(public_key),
            certificate_pem=to_pem(certificate),
            not_after_s=certificate.not_valid_after_utc.timestamp(),
        )
