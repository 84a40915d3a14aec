"""Is a release taken only from the federation's coordinator, and only as it was signed?"""

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as some

from fedreid.errors import SignatureRefused, TrustError
from fedreid.pki.certificates import key_to_pem, new_key
from fedreid.pki.signing import new_signing_key_pem, public_bytes, sign, signing_key, verify

KEY = signing_key(new_signing_key_pem())
PUBLIC = public_bytes(KEY)
RELEASE = b"a serialised release"
SIGNATURE = sign(KEY, RELEASE)


def refused(public: bytes, release: bytes, signature: bytes) -> None:
    with pytest.raises(SignatureRefused):
        verify(public, release, signature)


@given(some.binary(max_size=200))
def test_what_was_signed_is_taken(release: bytes) -> None:
    verify(PUBLIC, release, sign(KEY, release))


@given(some.integers(0, len(RELEASE) - 1), some.integers(1, 255))
def test_a_release_with_one_byte_changed_is_refused(place: int, change: int) -> None:
    changed = bytearray(RELEASE)
    changed[place] ^= change
    refused(PUBLIC, bytes(changed), SIGNATURE)


@given(some.integers(0, len(SIGNATURE) - 1), some.integers(1, 255))
def test_a_signature_with_one_byte_changed_is_refused(place: int, change: int) -> None:
    changed = bytearray(SIGNATURE)
    changed[place] ^= change
    refused(PUBLIC, RELEASE, bytes(changed))


@pytest.mark.parametrize(
    "signature",
    [b"", b"\0" * 64, SIGNATURE[:-1], SIGNATURE + b"\0"],
    ids=["none", "zeros", "shorter", "longer"],
)
def test_what_is_no_signature_is_refused(signature: bytes) -> None:
    refused(PUBLIC, RELEASE, signature)


def test_the_signature_of_another_coordinator_is_refused() -> None:
    other = signing_key(new_signing_key_pem())
    refused(PUBLIC, RELEASE, sign(other, RELEASE))
    refused(public_bytes(other), RELEASE, SIGNATURE)


@pytest.mark.parametrize(
    "public",
    [b"", b"short", PUBLIC + b"\0", b"\0" * 32],
    ids=["none", "shorter", "longer", "zeros"],
)
def test_what_is_no_public_key_refuses_everything(public: bytes) -> None:
    refused(public, RELEASE, SIGNATURE)


def test_a_signature_made_for_another_purpose_is_refused() -> None:
    refused(PUBLIC, RELEASE, KEY.sign(RELEASE))


def test_the_signed_bytes_are_what_the_contract_documents() -> None:
    KEY.public_key().verify(SIGNATURE, b"fedreid release v1\0" + RELEASE)


def test_a_signing_key_comes_back_from_its_pem() -> None:
    pem = new_signing_key_pem()
    assert isinstance(signing_key(pem), Ed25519PrivateKey)
    assert public_bytes(signing_key(pem)) == public_bytes(signing_key(pem))
    assert len(public_bytes(signing_key(pem))) == 32


def test_what_is_no_signing_key_is_an_error_of_our_tree() -> None:
    locked = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    for pem in (key_to_pem(new_key()), b"", b"no key", locked):
        with pytest.raises(TrustError):
            signing_key(pem)
