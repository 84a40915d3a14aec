"""Is an exported model told from every other file, without asking the coordinator?"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fedreid.contract import Release
from fedreid.errors import FedreidError, SignatureRefused, StorageError, TrustError
from fedreid.files import digest_of
from fedreid.names import Digest, RoundNumber, RunName
from fedreid.pki.signing import (
    new_signing_key_pem,
    public_bytes,
    public_from_pem,
    public_pem,
    sign,
    signing_key,
)
from fedreid.v1 import federation_pb2
from fedreid.wire.messages import release_to_wire
from fedreid.wire.released import check_released, release_of
from fedreid.wire.tensors import save_tensors

KEY = signing_key(new_signing_key_pem())
OTHER_KEY = signing_key(new_signing_key_pem())


@dataclass(frozen=True)
class Exported:
    """A model as ``coordinator model export`` writes it."""

    model: Path
    release: Release

    def check(self, *, federation: str = "harbour") -> Release:
        """As somebody who knows the federation's key."""
        return check_released(
            self.model,
            release_of(self.model),
            model_key=public_bytes(KEY),
            federation=federation,
        )


@pytest.fixture
def exported(tmp_path: Path) -> Exported:
    """A model with its signed release beside it."""
    model = tmp_path / "model.safetensors"
    save_tensors(model, {"a.weight": np.arange(8, dtype=np.float32)})
    release = Release(
        federation="harbour",
        run=RunName("spring"),
        round=RoundNumber(3),
        version=5,
        model_digest=digest_of(model),
        base_digest=Digest(""),
        layout_digest=Digest("a" * 64),
        payloads=(),
    )
    statement = release_to_wire(release).SerializeToString()
    signed = federation_pb2.SignedRelease(release=statement, signature=sign(KEY, statement))
    release_of(model).write_bytes(signed.SerializeToString())
    return Exported(model, release)


def test_an_exported_model_is_the_one_that_was_signed(exported: Exported) -> None:
    assert exported.check() == exported.release
    assert exported.check(federation="") == exported.release


def test_every_changed_byte_of_the_model_is_noticed(exported: Exported) -> None:
    data = exported.model.read_bytes()
    for place in range(len(data)):
        exported.model.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(SignatureRefused, match="not the ones that were signed"):
            exported.check()


def test_no_changed_byte_of_the_release_gives_another_statement(exported: Exported) -> None:
    path = release_of(exported.model)
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises((SignatureRefused, StorageError)):
            exported.check()


def test_another_key_than_the_federations_does_not_fit(exported: Exported) -> None:
    with pytest.raises(SignatureRefused, match="not signed by this federation's coordinator"):
        check_released(
            exported.model,
            release_of(exported.model),
            model_key=public_bytes(OTHER_KEY),
            federation="harbour",
        )


def test_a_model_of_another_federation_is_named(exported: Exported) -> None:
    with pytest.raises(SignatureRefused, match="of the federation 'harbour'"):
        exported.check(federation="station")


def removed(path: Path) -> None:
    path.unlink()


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def overgrown(path: Path) -> None:
    path.write_bytes(bytes(5 * 2**20))


def garbled(path: Path) -> None:
    path.write_bytes(b"\xff" * 100)


@pytest.mark.parametrize("damage", [removed, emptied, overgrown, garbled])
def test_a_release_that_is_none_says_how_to_get_one(
    exported: Exported, damage: Callable[[Path], None]
) -> None:
    damage(release_of(exported.model))
    with pytest.raises(StorageError, match="coordinator model export"):
        exported.check()


def test_a_model_that_is_not_there_is_told_as_such(exported: Exported) -> None:
    exported.model.unlink()
    with pytest.raises(FedreidError, match=r"model\.safetensors"):
        exported.check()


def test_a_key_goes_through_a_file_unchanged() -> None:
    assert public_from_pem(public_pem(KEY)) == public_bytes(KEY)


@pytest.mark.parametrize("text", [b"", b"no key", new_signing_key_pem()])
def test_what_is_no_public_key_is_refused(text: bytes) -> None:
    with pytest.raises(TrustError, match="model key"):
        public_from_pem(text)
