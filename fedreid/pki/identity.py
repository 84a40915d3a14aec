"""Where does a party keep its key and certificates? A versioned folder, flipped by a link.

``FOLDER/v0001/{key.pem, certificate.pem, authorities.pem}`` and ``FOLDER/live -> v0001``. A new
version is complete and checked before the link is turned, so a crash leaves the old or the new.
"""

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from fedreid import faults
from fedreid.clock import Clock
from fedreid.errors import IdentityBroken, IdentityMissing, TrustError, storage_errors
from fedreid.files import (
    flip_folder,
    flip_link,
    make_folder,
    others_may_read,
    remove_folder,
    write_bytes,
)
from fedreid.limits import CLOCK_SKEW_S, IDENTITY_VERSIONS, RENEWAL_JITTER, RENEWAL_SHARE
from fedreid.names import Role
from fedreid.pki.certificates import Holder, holder_of, key_fingerprint, key_from_pem

_KEY = "key.pem"
_CERTIFICATE = "certificate.pem"
_AUTHORITIES = "authorities.pem"
_LIVE = "live"
_PRIVATE_FILE = 0o600
_PRIVATE_FOLDER = 0o700


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A private key, the certificate for it, and the authorities that the party trusts."""

    key_pem: bytes
    certificate_pem: bytes
    authorities_pem: bytes

    def __repr__(self) -> str:  # a key must not reach a log by accident
        return "Identity(…)"

    def holder(self) -> Holder:
        """Whom the certificate names."""
        return holder_of(self.certificate_pem)


class IdentityStore:
    """The versions of one party's identity in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def exists(self) -> bool:
        """Whether there is a live version."""
        return (self._folder / _LIVE).is_symlink()

    def save(self, identity: Identity) -> None:
        """Make ``identity`` the live version, durably; of the older ones the newest stay."""
        check_fits(identity, self._folder)
        make_folder(self._folder, mode=_PRIVATE_FOLDER)
        numbers = self._versions()
        name = f"v{max(numbers, default=0) + 1:04d}"
        built = self._folder / f".{name}"
        remove_folder(built)
        make_folder(built, mode=_PRIVATE_FOLDER)
        write_bytes(built / _KEY, identity.key_pem, mode=_PRIVATE_FILE)
        write_bytes(built / _CERTIFICATE, identity.certificate_pem)
        write_bytes(built / _AUTHORITIES, identity.authorities_pem)
        flip_folder(built, self._folder / name)
        with faults.step("identity.flip"):
            flip_link(self._folder / _LIVE, name)
        for number in numbers[: 1 - IDENTITY_VERSIONS]:
            remove_folder(self._folder / f"v{number:04d}")

    def load(self) -> Identity:
        """The live version.

        Raises:
            IdentityMissing: there is none.
            IdentityBroken: its files do not fit together or can be read by others.
        """
        live = self._folder / _LIVE
        if not live.is_symlink():
            raise IdentityMissing(f"There is no identity in {self._folder}")
        with storage_errors("read", live):
            exposed = others_may_read(live / _KEY)
        if exposed:
            raise IdentityBroken(
                f"The private key {live / _KEY} can be read by other users",
                next_step=f"Run: chmod 600 {live / _KEY}",
            )
        with storage_errors("read", live):
            identity = Identity(
                key_pem=(live / _KEY).read_bytes(),
                certificate_pem=(live / _CERTIFICATE).read_bytes(),
                authorities_pem=(live / _AUTHORITIES).read_bytes(),
            )
        check_fits(identity, live)
        return identity

    def _versions(self) -> list[int]:
        names = (path.name[1:] for path in self._folder.glob("v[0-9]*"))
        return sorted(int(name) for name in names if name.isdecimal())


def check_fits(identity: Identity, place: Path) -> None:
    """Check that key, certificate and authorities belong together.

    Raises:
        IdentityBroken: they do not.
    """
    try:
        holder = identity.holder()
        key = key_from_pem(identity.key_pem).public_key()
        authorities = x509.load_pem_x509_certificates(identity.authorities_pem)
        certificate = x509.load_pem_x509_certificate(identity.certificate_pem)
    except (TrustError, ValueError) as error:
        raise _broken(place, str(error)) from error
    if key_fingerprint(key) != holder.key_fingerprint:
        raise _broken(place, "the certificate is for another key")
    if not any(issued_by(authority, certificate) for authority in authorities):
        raise _broken(place, "none of the authorities issued the certificate")


JOIN_AGAIN = (
    "Ask the coordinator's operators for a new join token, then: silo-agent join --rejoin "
    "--token-file FILE. Local state stays."
)


def check_not_expired(identity: Identity, clock: Clock, *, remedy: str = JOIN_AGAIN) -> None:
    """Check that the certificate is still good; ``remedy`` says what a silo does if it is not.

    Raises:
        IdentityBroken: it has expired.
    """
    holder = identity.holder()
    if clock.now_s() < holder.not_after_s:
        return
    if holder.principal.role is not Role.SILO:
        raise IdentityBroken(
            f"The certificate of {holder.principal.name} has expired",
            why="the coordinator renews it while it serves, in its own data folder",
            next_step="Start the coordinator; copy the folder again to where it is used besides.",
        )
    raise IdentityBroken(
        f"The certificate of {holder.principal.name} has expired",
        why="it is renewed while its holder is connected; this one was away for too long",
        next_step=remedy,
    )


def renewal_due_s(holder: Holder, *, jitter: float) -> float:
    """When a certificate is to be renewed, seconds since the Unix epoch.

    ``jitter`` in 0..1 brings it forward. Its life counts from its issue, which is later than its
    start: a start is set back for sites whose clocks run behind.
    """
    issued_s = holder.not_before_s + CLOCK_SKEW_S
    life_s = holder.not_after_s - issued_s
    return issued_s + life_s * (RENEWAL_SHARE - RENEWAL_JITTER * jitter)


def issued_by(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Whether the authority's key has signed the certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception:
        return False
    return True


def _broken(place: Path, why: str) -> IdentityBroken:
    return IdentityBroken(
        f"The identity in {place} is damaged",
        why=why,
        next_step="Restore the folder from a backup, or join again with a new token.",
    )
