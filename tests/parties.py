"""Who takes part in a test? A federation's authority, leaves good and bad, a clock moved by hand.

:class:`Federation` issues what the product issues. :func:`forge` makes what the product would
never issue but an attacker, or another authority, might.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedreid.names import FederationName, Principal, Role
from fedreid.pki.certificates import Authority, create_authority, key_to_pem, new_key, to_pem
from fedreid.pki.identity import Identity

FEDERATION = FederationName("harbour")
HOUR_S = 3600.0


@dataclass(slots=True)
class FakeClock:
    """A clock that stands still until a test moves it."""

    now: float = 1_900_000_000.0
    monotonic: float = field(default=1000.0)

    def now_s(self) -> float:
        """Seconds since the Unix epoch."""
        return self.now

    def monotonic_s(self) -> float:
        """Seconds since some fixed point."""
        return self.monotonic

    def move(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        self.monotonic += seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """A federation's name and authority."""

    name: FederationName
    authority: Authority
    now_s: float

    @classmethod
    def founded(cls, *, now_s: float, name: FederationName = FEDERATION) -> "Federation":
        """A new federation."""
        return cls(name=name, authority=create_authority(name, now_s=now_s), now_s=now_s)

    def leaf(
        self,
        role: Role,
        name: str,
        *,
        life_s: float = HOUR_S,
        hostnames: Sequence[str] = (),
        federation: FederationName | None = None,
    ) -> Identity:
        """An identity as the product issues it."""
        key = new_key()
        principal = Principal(federation=federation or self.name, role=role, name=name)
        certificate = self.authority.issue(
            principal, key.public_key(), now_s=self.now_s, life_s=life_s, hostnames=hostnames
        )
        return self.identity(key, certificate)

    def server(self) -> Identity:
        """The coordinator's identity on the loopback."""
        return self.leaf(Role.COORDINATOR, "coordinator", hostnames=("127.0.0.1", "localhost"))

    def identity(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> Identity:
        """Key and certificate with this federation's authority beside them."""
        return Identity(
            key_pem=key_to_pem(key),
            certificate_pem=to_pem(certificate),
            authorities_pem=self.authority.certificate_pem,
        )


def forge(
    federation: Federation,
    *,
    uris: Sequence[str],
    common_name: str = "",
    starts_s: float = -HOUR_S,
    ends_s: float = HOUR_S,
    key: ec.EllipticCurvePrivateKey | None = None,
) -> Identity:
    """A client certificate of the federation's authority with any names and times.

    ``starts_s`` and ``ends_s`` count from the federation's founding.
    """
    key = key or new_key()
    names = [x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)] if common_name else []
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(names))
        .issuer_name(federation.authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_instant(federation.now_s + starts_s))
        .not_valid_after(_instant(federation.now_s + ends_s))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    )
    if uris:
        alternative = [x509.UniformResourceIdentifier(uri) for uri in uris]
        builder = builder.add_extension(x509.SubjectAlternativeName(alternative), critical=False)
    return federation.identity(key, builder.sign(federation.authority.key, hashes.SHA256()))


def _instant(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
