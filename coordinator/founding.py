"""Which keys does a federation stand on, and how do they travel between machines?

The authority that every silo trusts and the key that signs models. ``init`` makes them; where a
data folder may be lost but its federation must not (Kubernetes), they are made before it and kept
beside it, as three files of a folder or of a Secret.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from fedreid.errors import IdentityBroken, TrustError, storage_errors
from fedreid.limits import SERVER_LIFE_S
from fedreid.names import FederationName, Principal, Role
from fedreid.pki.certificates import (
    Authority,
    create_authority,
    key_from_pem,
    key_to_pem,
    new_key,
    to_pem,
)
from fedreid.pki.identity import issued_by
from fedreid.pki.signing import new_signing_key_pem, signing_key

_CERTIFICATE, _KEY, _MODEL_KEY = "ca.crt", "ca.key", "model-key.pem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The keys of one federation."""

    authority: Authority
    model_key_pem: bytes

    def __repr__(self) -> str:  # a key must not reach a log by accident
        return "Keys(…)"

    def files(self) -> dict[str, bytes]:
        """Their files by name."""
        return {
            _CERTIFICATE: self.authority.certificate_pem,
            _KEY: key_to_pem(self.authority.key),
            _MODEL_KEY: self.model_key_pem,
        }


def new_keys(federation: FederationName, *, now_s: float) -> Keys:
    """Keys of a federation that is founded now."""
    return Keys(
        authority=create_authority(federation, now_s=now_s), model_key_pem=new_signing_key_pem()
    )


def keys_in(folder: Path) -> Keys:
    """The keys whose files lie in ``folder``.

    Raises:
        StorageError, IdentityBroken: a file is missing or damaged.
    """
    with storage_errors("read", folder):
        files = {name: (folder / name).read_bytes() for name in (_CERTIFICATE, _KEY, _MODEL_KEY)}
    return keys_from(files, str(folder))


def keys_from(files: Mapping[str, bytes], place: str) -> Keys:
    """The keys in files by name; ``place`` is where a person finds them.

    Raises:
        IdentityBroken: one is missing or damaged, or they do not fit together.
    """
    try:
        certificate = x509.load_pem_x509_certificate(files[_CERTIFICATE])
        key = key_from_pem(files[_KEY])
        signing_key(files[_MODEL_KEY])
        fit = certificate.public_key() == key.public_key() and issued_by(certificate, certificate)
        why = "" if fit else f"{_KEY} is not the key of {_CERTIFICATE}"
    except KeyError as error:
        why = f"{error} is missing"
    except (ValueError, TrustError) as error:
        why = str(error)
    if why:
        raise IdentityBroken(
            f"The federation's keys in {place} can't be used",
            why=why,
            next_step="Put all three files back from a backup: silos trust these and no others.",
        )
    return Keys(
        authority=Authority(certificate=certificate, key=key), model_key_pem=files[_MODEL_KEY]
    )


def admin_files(
    keys: Keys, federation: FederationName, name: str, *, now_s: float
) -> dict[str, bytes]:
    """A new administrator's identity, by the names of a TLS secret's files."""
    key = new_key()
    certificate = keys.authority.issue(
        Principal(federation=federation, role=Role.ADMIN, name=name),
        key.public_key(),
        now_s=now_s,
        life_s=SERVER_LIFE_S,
    )
    return {
        "tls.crt": to_pem(certificate),
        "tls.key": key_to_pem(key),
        "ca.crt": keys.authority.certificate_pem,
    }
