"""Are the files of an outside PKI read when they fit, and only then?"""

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from fedreid.errors import IdentityBroken, StorageError
from fedreid.names import Role
from fedreid.pki.certificates import key_to_pem, new_key
from fedreid.pki.files import IdentityFiles
from fedreid.pki.identity import Identity
from tests.parties import Federation

NAMES = ("tls.crt", "tls.key", "ca.crt")


@pytest.fixture
def silo(federation: Federation) -> Identity:
    """What the PKI has issued."""
    return federation.leaf(Role.SILO, "north")


@pytest.fixture
def secret(tmp_path: Path, silo: Identity) -> Path:
    """A folder as cert-manager mounts it."""
    for name, data in zip(
        NAMES, (silo.certificate_pem, silo.key_pem, silo.authorities_pem), strict=True
    ):
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_an_identity_is_read_as_it_was_issued(secret: Path, silo: Identity) -> None:
    assert IdentityFiles.in_folder(secret).load() == silo


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_was_replaced_changes_the_stamp_though_its_time_may_not(
    secret: Path, name: str
) -> None:
    files = IdentityFiles.in_folder(secret)
    before = files.stamp()
    assert files.stamp() == before
    fresh = secret / "fresh"
    fresh.write_bytes((secret / name).read_bytes())
    fresh.rename(secret / name)
    assert files.stamp() != before


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_an_error_of_our_tree(secret: Path, name: str) -> None:
    (secret / name).unlink()
    files = IdentityFiles.in_folder(secret)
    for read in (files.load, files.stamp):
        with pytest.raises(StorageError):
            read()


def rsa_key() -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("tls.key", lambda: key_to_pem(new_key())),  # replaced before its certificate was
        ("tls.key", rsa_key),
        ("tls.key", lambda: b""),
        ("tls.crt", lambda: b"half a certif"),
        ("ca.crt", lambda: b""),
    ],
)
def test_files_that_do_not_fit_together_are_not_taken(
    secret: Path, name: str, damage: Callable[[], bytes]
) -> None:
    (secret / name).write_bytes(damage())
    with pytest.raises(IdentityBroken):
        IdentityFiles.in_folder(secret).load()
