"""Is a file the model that a federation's coordinator signed? Checked without asking anybody.

``coordinator model export OUT`` writes the model's canonical safetensors file and, as
``OUT.release``, the signed release with which it was published.
"""

from pathlib import Path

from google.protobuf.message import DecodeError

from fedreid.contract import Release
from fedreid.errors import SignatureRefused, StorageError, storage_errors
from fedreid.files import digest_of
from fedreid.limits import RELEASE_BYTES
from fedreid.pki.signing import verify
from fedreid.v1 import federation_pb2
from fedreid.wire.messages import release_from_wire

RELEASE_SUFFIX = ".release"


def release_of(model: Path) -> Path:
    """Where the signed release of an exported model lies."""
    return model.with_name(model.name + RELEASE_SUFFIX)


def check_released(model: Path, release: Path, *, model_key: bytes, federation: str) -> Release:
    """What the coordinator states of the model, once signature and bytes hold.

    ``federation`` may be empty: then only the key says whose model it is.

    Raises:
        StorageError: a file is missing, or is no release.
        SignatureRefused: signed by another key, of another federation, or of other bytes.
    """
    signed = _read(release)
    verify(model_key, signed.release, signed.signature)
    stated = release_from_wire(federation_pb2.Release.FromString(signed.release))
    if federation and stated.federation != federation:
        raise SignatureRefused(
            f"The model is of the federation {stated.federation!r}",
            why=f"the key is that of {federation!r}",
            next_step="Do not use it, and tell the coordinator's operators.",
        )
    if digest_of(model) != stated.model_digest:
        raise SignatureRefused(
            f"The bytes of {model} are not the ones that were signed",
            why=f"the release is for model {stated.version}, of round {stated.round} of "
            f"{stated.run}, with the digest {stated.model_digest}",
            next_step="Export the model again; a file that a silo has exported has no release.",
        )
    return stated


def _read(path: Path) -> federation_pb2.SignedRelease:
    if not path.exists():
        raise StorageError(
            f"There is no signed release {path}",
            next_step="Name it with --release; 'coordinator model export' writes it beside the "
            "model.",
        )
    with storage_errors("read", path), path.open("rb") as stream:
        data = stream.read(RELEASE_BYTES + 1)
    try:
        if not 0 < len(data) <= RELEASE_BYTES:
            raise DecodeError("its size is not that of a release")
        return federation_pb2.SignedRelease.FromString(data)
    except DecodeError as error:
        raise StorageError(
            f"The file {path} is no signed release",
            why=str(error),
            next_step="Export the model again: coordinator model export.",
        ) from error
