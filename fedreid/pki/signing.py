"""Who says that this is the federation's model? The coordinator's Ed25519 key, apart from the CA.

A signature covers the bytes of the release as they were sent, so that nothing has to be
serialised again to check it.
"""

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedreid.errors import SignatureRefused, TrustError

_CONTEXT = b"fedreid release v1\0"


def new_signing_key_pem() -> bytes:
    """A new signing key, PKCS #8 in PEM."""
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def signing_key(pem: bytes) -> Ed25519PrivateKey:
    """The signing key in ``pem``; TrustError if it is none."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TrustError("The model signing key can't be read", why=str(error)) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise TrustError("The model signing key is no Ed25519 key")
    return key


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """The raw 32 bytes by which others check signatures."""
    return key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def public_pem(key: Ed25519PrivateKey) -> bytes:
    """The public key in PEM, for a file by which others check models."""
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def public_from_pem(pem: bytes) -> bytes:
    """The raw 32 bytes of a public key in PEM; TrustError if it is none."""
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise TrustError("The model key can't be read", why=str(error)) from error
    if not isinstance(key, Ed25519PublicKey):
        raise TrustError("The model key is no Ed25519 public key")
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def sign(key: Ed25519PrivateKey, release: bytes) -> bytes:
    """The signature over a serialised release."""
    return key.sign(_CONTEXT + release)


def verify(public_key: bytes, release: bytes, signature: bytes) -> None:
    """Check a release.

    Raises:
        SignatureRefused: it was not signed by the federation's coordinator, or was changed.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, _CONTEXT + release)
    except (InvalidSignature, ValueError) as error:
        raise SignatureRefused(
            "The model's release is not signed by this federation's coordinator",
            next_step="Do not use it, and tell the coordinator's operators.",
        ) from error
