"""How does the agent come to a published model that it can trust?

A model is taken only with a release that the federation's coordinator signed, whose version has
not gone back, and whose bytes have the digest that the release names. Parts of a download that
broke off are kept and gone on with. The bytes are not synced: what a power cut takes of them is
noticed by the digest, and fetched again.
"""

from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from fedreid import faults
from fedreid.audit import AuditLog
from fedreid.contract import Release
from fedreid.digests import KnownDigests
from fedreid.errors import (
    ConnectionFailed,
    SignatureRefused,
    StorageError,
    UpdateRefused,
    storage_errors,
)
from fedreid.files import digest_of, move_file, remove_file, replacing, write_bytes
from fedreid.names import Digest
from fedreid.pki.signing import verify
from fedreid.plan import Encoding, is_difference
from fedreid.v1 import federation_pb2
from fedreid.wire.encoding import decode
from fedreid.wire.manifest import Manifest, encoding_to_wire
from fedreid.wire.messages import release_from_wire
from fedreid.wire.stream import PartialFile, bytes_held
from fedreid.wire.tensors import TensorFile, data_offset_of
from fedreid.work import off_loop
from silo_agent.config import Folders, Membership
from silo_agent.held import NEWEST_NOTE, Held, find_held, read_note
from silo_agent.trust.channel import calling

if TYPE_CHECKING:
    from fedreid.v1.federation_pb2_grpc import FederationAsyncStub


class Newest(msgspec.Struct, frozen=True, kw_only=True):
    """The highest version that was ever taken."""

    version: int = 0
    digest: str = ""


class ModelCache:
    """Verified models of this silo's federation."""

    def __init__(self, folders: Folders, membership: Membership, audit: AuditLog) -> None:
        self._folders = folders
        self._folder = folders.models
        self._membership = membership
        self._audit = audit
        self._digests = KnownDigests()

    async def ensure(
        self, stub: "FederationAsyncStub", address: str, digest: Digest, encoding: Encoding
    ) -> Held:
        """The model with this digest, fetched if it is not there yet.

        In fp32 where it is not to be had in this encoding: because it was not published in it, or
        because the model that differences are from is not here.

        Raises:
            SignatureRefused: unsigned, of another federation, older than one already taken, or
                other bytes than the release names.
            ConnectionFailed: the download broke off; what came is kept.
        """
        choices: tuple[Encoding, ...] = (encoding, "fp32")
        for choice in dict.fromkeys(choices):
            held = await off_loop(self._held, digest, choice)
            held = held or await self._fetch(stub, address, digest, choice)
            if held is not None:
                return held
        raise ConnectionFailed("The coordinator sent no model")

    def find_whole(self, digest: str) -> Held | None:
        """The model with this digest, in whichever encoding it came, if it lies here undamaged."""
        return self._whole(find_held(self._folders, digest))

    def remove_others(self, *kept: str) -> None:
        """Delete every model but these."""
        for path in self._folder.iterdir():
            if path.is_file() and not path.name.startswith((*kept, NEWEST_NOTE)):
                self._folders.spares.retire(path)

    def _held(self, digest: Digest, encoding: Encoding) -> Held | None:
        """The model if it lies here as it was taken; a damaged one is fetched again."""
        return self._whole(read_note(self._note_path(digest, encoding)))

    def _whole(self, held: Held | None) -> Held | None:
        if held is None or not self._digests.is_whole(Path(held.path), held.file_digest):
            return None
        return held

    async def _fetch(
        self, stub: "FederationAsyncStub", address: str, digest: Digest, encoding: Encoding
    ) -> Held | None:
        part = self._folder / f"{digest}.{encoding}.part"
        offset = await off_loop(_held_bytes, part, encoding)
        request = federation_pb2.FetchModelRequest(
            model_digest=digest, encoding=encoding_to_wire(encoding), offset=offset
        )
        with calling(address):
            parts = stub.FetchModel(request)
            first = await anext(aiter(parts), None)
            if first is None or not first.HasField("release"):
                raise ConnectionFailed("The coordinator sent no model")
            release, manifest = self._verified(first.release, digest, encoding)
            base = await off_loop(self._base, release, encoding)
            if manifest.encoding != encoding or (base is None and is_difference(encoding)):
                parts.cancel()
                return None
            file = await off_loop(
                PartialFile,
                part,
                prefix=manifest.prefix,
                size=manifest.byte_count,
                spares=self._folders.spares,
            )
            try:
                if file.offset != offset:
                    raise ConnectionFailed("The part of a model on disk was changed meanwhile")
                async for message in parts:
                    with faults.step("download.chunk.write"):  # no thread: see reading_alone
                        file.write(message.chunk)
                with faults.step("download.finish"):
                    await off_loop(file.finish, manifest.payload_digest)
            except UpdateRefused as error:
                file.discard()
                raise ConnectionFailed("A model arrived damaged", why=str(error)) from error
            finally:
                file.close()
        return await off_loop(self._keep, part, release, manifest, file.file_digest, base)

    def _base(self, release: Release, encoding: Encoding) -> Path | None:
        """The model that a payload of differences is from, if it lies here to the last bit."""
        if not is_difference(encoding):
            return None
        held = self._held(release.base_digest, "fp32")
        exact = held is not None and held.file_digest == release.base_digest
        return Path(held.path) if held is not None and exact else None

    def _verified(
        self, signed: federation_pb2.SignedRelease, digest: Digest, encoding: Encoding
    ) -> tuple[Release, Manifest]:
        verify(self._membership.model_key, signed.release, signed.signature)
        release = release_from_wire(federation_pb2.Release.FromString(signed.release))
        manifest = Manifest.from_wire(signed.manifest)
        payload = release.payload(manifest.encoding)
        if release.federation != self._membership.federation or release.model_digest != digest:
            raise SignatureRefused("The release that came is for another model or federation")
        if (
            payload is None
            or manifest.encoding not in (encoding, "fp32")
            or manifest.layout.digest() != release.layout_digest
            or (payload.payload_digest, payload.byte_count)
            != (manifest.payload_digest, manifest.byte_count)
        ):
            raise SignatureRefused("The model's payload is not the one that was signed")
        newest = self.newest()
        replaced = release.version == newest.version and digest != newest.digest
        if release.version < newest.version or replaced:
            raise SignatureRefused(
                f"The coordinator sent {'another' if replaced else 'the'} model version "
                f"{release.version}, but version {newest.version} was already taken",
                why="it may have been restored from an old backup, or somebody replays old models",
                next_step=f"Ask its operators; remove {self._folder / NEWEST_NOTE} to accept it.",
            )
        return release, manifest

    def _keep(
        self,
        part: Path,
        release: Release,
        manifest: Manifest,
        file_digest: Digest,
        base: Path | None,
    ) -> Held:
        path = self._path(release.model_digest, manifest.encoding)
        as_it_lies = manifest.encoding == "fp32"  # then the part is the model's file
        if not as_it_lies:
            file_digest = self._unfolded(part, manifest, path, base)
        if manifest.encoding != "bf16" and file_digest != release.model_digest:
            remove_file(part if as_it_lies else path)
            raise SignatureRefused("The model's bytes are not the ones that were signed")
        held = Held(
            path=str(path),
            digest=release.model_digest,
            run=release.run,
            round=release.round,
            version=release.version,
            file_digest=file_digest,
        )
        self._audit.append(
            "model.taken",
            run=release.run,
            round=release.round,
            version=release.version,
            model_digest=release.model_digest,
            encoding=manifest.encoding,
        )
        newest = Newest(version=release.version, digest=release.model_digest)
        write_bytes(self._folder / NEWEST_NOTE, msgspec.json.encode(newest))
        write_bytes(
            self._note_path(release.model_digest, manifest.encoding), msgspec.json.encode(held)
        )
        self._digests.note(part if as_it_lies else path, file_digest)
        if as_it_lies:
            move_file(part, path)
        else:
            self._folders.spares.retire(part)
        return held

    def _unfolded(self, part: Path, manifest: Manifest, path: Path, base: Path | None) -> Digest:
        """Write a payload's values as a canonical file; its digest.

        Raises:
            ConnectionFailed: the payload is none of its encoding; it is removed.
        """
        over = self._folders.spares.find(manifest.layout.file_bytes)
        try:
            with (
                storage_errors("read", part),
                part.open("rb") as payload,
                replacing(path, over=over, synced=False) as out,
            ):
                _decode(payload, manifest, out, base)
        except UpdateRefused as error:
            remove_file(part)
            raise ConnectionFailed("A model can't be unfolded", why=str(error)) from error
        return digest_of(path)

    def newest(self) -> Newest:
        """The highest version that was ever taken; 0 before the first.

        Raises:
            StorageError: the note of it is damaged.
        """
        path = self._folder / NEWEST_NOTE
        if not path.exists():
            return Newest()
        try:
            with storage_errors("read", path):
                return msgspec.json.decode(path.read_bytes(), type=Newest)
        except msgspec.MsgspecError as error:
            raise StorageError(
                f"The file {path} is damaged",
                why=str(error),
                next_step="Restore it, or remove it to accept whatever version comes next.",
            ) from error

    def _note_path(self, digest: str, encoding: Encoding) -> Path:
        return self._path(digest, encoding).with_suffix(".json")

    def _path(self, digest: str, encoding: Encoding) -> Path:
        """Where a model lies: what came as differences is exact, and the same as came in fp32."""
        kept_as = "fp32" if is_difference(encoding) else encoding
        return self._folder / f"{digest}.{kept_as}.safetensors"


def _decode(payload: IO[bytes], manifest: Manifest, stream: IO[bytes], base: Path | None) -> None:
    if base is None:
        decode(payload, manifest.layout, manifest.encoding, stream)
        return
    with TensorFile(base) as file:
        decode(payload, manifest.layout, manifest.encoding, stream, file)


def _held_bytes(part: Path, encoding: Encoding) -> int:
    """Bytes of the payload that an earlier attempt has left."""
    if not part.exists():
        return 0
    return bytes_held(part, data_offset_of(part) if encoding == "fp32" else 0)
