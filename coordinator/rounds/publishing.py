"""How does a finished model become the federation's model, and how is it handed out?

A model lies in ``models/DIGEST.safetensors``, which it becomes by one rename; the signed release
that makes it the newest is committed to the journal together with the round's end. Between the two
a crash leaves a file that nobody refers to, and the same step done again gives the same file: what
the round has made stays in its own folder until the round has ended.
"""

import functools
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.folders import Folders
from coordinator.rounds.downloads import SharedReads
from coordinator.rounds.journal import Journal, ModelRow
from fedreid import faults
from fedreid.contract import Release, ReleasePayload
from fedreid.digests import KnownDigests
from fedreid.errors import RunError, StorageError, UsageError
from fedreid.files import link_file, remove_file, replacing
from fedreid.limits import MODELS_KEPT
from fedreid.names import Digest, FederationName, RoundNumber, RunName
from fedreid.pki.signing import sign
from fedreid.plan import Encoding, is_difference
from fedreid.v1 import federation_pb2
from fedreid.wire.chunks import ChunkMessage
from fedreid.wire.encoding import encode, is_payload_size
from fedreid.wire.manifest import Manifest
from fedreid.wire.messages import release_from_wire, release_to_wire
from fedreid.wire.stream import send_chunks
from fedreid.wire.tensors import Layout, TensorFile

_SEE_MODELS = "See: coordinator model list."
_KNOWN = 8  # models of the round: its own, and its clusters'


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """Where what lies in a model's file."""

    layout: Layout
    data_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a model comes from."""

    run: RunName
    round: RoundNumber
    base_digest: Digest
    place: int = 0
    """Among the models that are committed together; the last one is the global model."""


class Models:
    """The published models; methods block on the disk unless they are coroutines."""

    def __init__(
        self,
        folders: Folders,
        journal: Journal,
        federation: FederationName,
        key: Ed25519PrivateKey,
        *,
        kept: int = MODELS_KEPT,
    ) -> None:
        """Those of so many rounds are ``kept`` beside the newest one's."""
        self._folder = folders.models
        self._spares = folders.spares
        self._kept = kept
        self._journal = journal
        self._federation = federation
        self._key = key
        # Every silo asks for the same few in each round; a digest says what lies in its file.
        self._shape = functools.lru_cache(_KNOWN)(self._read_shape)
        self._told = functools.lru_cache(_KNOWN)(self._tell)
        self.digests = KnownDigests()
        """Of models, and of the round's files that become one."""
        self._shared = SharedReads()

    def path(self, digest: Digest) -> Path:
        """The canonical file of a published model."""
        return self._folder / f"{digest}.safetensors"

    def encoded_path(self, digest: Digest, encoding: Encoding) -> Path:
        """The payload of a published model in an encoding other than fp32."""
        return self._folder / f"{digest}.{encoding}"

    def layout(self, digest: Digest) -> Layout:
        """Names and shapes of a published model."""
        return self._shape(digest).layout

    def _read_shape(self, digest: Digest) -> "_Shape":
        with TensorFile(self.path(digest)) as file:
            return _Shape(layout=file.layout, data_offset=file.data_offset)

    def place(self, staged: Path, origin: Origin, encodings: tuple[Encoding, ...]) -> ModelRow:
        """Give a finished model its name and sign it as the federation's next version.

        Beside ``staged`` lie its payloads in other encodings. All of them stay where they are, so
        that the same can be done again after a crash.
        """
        digest = self.digests.of(staged)
        with faults.step("publish.rename"):
            for encoding in encodings:
                if encoding != "fp32":
                    payload = staged.with_suffix(f".{encoding}")
                    link_file(payload, self.encoded_path(digest, encoding))
            link_file(staged, self.path(digest))
        return self._release(digest, origin, encodings)

    def _release(self, digest: Digest, origin: Origin, encodings: tuple[Encoding, ...]) -> ModelRow:
        newest = self._journal.newest_model()
        version = (1 if newest is None else newest.version + 1) + origin.place
        release = Release(
            federation=self._federation,
            run=origin.run,
            round=origin.round,
            version=version,
            model_digest=digest,
            base_digest=origin.base_digest,
            layout_digest=self.layout(digest).digest(),
            payloads=tuple(self._payload(digest, encoding) for encoding in encodings),
        )
        return self._signed(release)

    def _signed(self, release: Release) -> ModelRow:
        statement = release_to_wire(release).SerializeToString(deterministic=True)
        with faults.step("publish.sign"):
            signature = sign(self._key, statement)
        return ModelRow(
            version=release.version,
            digest=release.model_digest,
            run=release.run,
            round=release.round,
            release=statement,
            signature=signature,
        )

    def released_again(self, run: str, version: int) -> ModelRow:
        """An earlier model of a run, signed as the federation's next version.

        Raises:
            RunError: the run has no such model, it is the newest, or its file is gone.
        """
        rows = self._journal.models()
        row = next((row for row in rows if (row.run, row.version) == (run, version)), None)
        if row is None:
            raise RunError(f"The run {run} has no model {version}", next_step=_SEE_MODELS)
        if row.digest == rows[0].digest:
            raise RunError(f"The model {version} is the newest one already")
        if not self.path(Digest(row.digest)).exists():
            raise RunError(
                f"The file of model {version} is gone",
                why=f"the models of {self._kept} rounds are kept beside the newest one's",
                next_step="Choose a newer one: coordinator model list.",
            )
        return self._signed(replace(_stated(row), version=rows[0].version + 1))

    def released_beyond(self, version: int) -> list[ModelRow]:
        """The models of the newest round, signed anew with versions beyond this one, in order."""
        rows = self._journal.models()
        newest = {
            row.digest: row
            for row in reversed(rows)
            if (row.run, row.round) == (rows[0].run, rows[0].round)
        }
        ordered = sorted(newest.values(), key=lambda row: row.version)
        return [
            self._signed(replace(_stated(row), version=max(version, rows[0].version) + place))
            for place, row in enumerate(ordered, start=1)
        ]

    def signed_release(self, digest: Digest, encoding: Encoding) -> federation_pb2.SignedRelease:
        """What goes before a model's payload: in fp32, where it is not there in this encoding.

        Raises:
            UsageError: no such model.
            StorageError: its bytes are not the ones that were signed; they are not sent.
        """
        row = self._journal.model(digest)
        if row is None or not self.path(digest).exists():
            raise UsageError(f"There is no published model {digest[:12]}…")
        payload, signed = self._told(row, encoding)
        if is_difference(payload.encoding) and not self._is_whole(digest, payload):
            # Exact values don't give differences back, for what was rounded rounds to others.
            payload, signed = self._told(row, "fp32")
        if not is_difference(payload.encoding):
            self.check(digest, payload)
        return signed

    def _tell(
        self, row: ModelRow, encoding: Encoding
    ) -> tuple[ReleasePayload, federation_pb2.SignedRelease]:
        stated = _stated(row)
        payload = stated.payload(encoding) or stated.payload("fp32")
        assert payload is not None, "every model is published in fp32"
        manifest = Manifest(
            layout=self.layout(Digest(row.digest)),
            encoding=payload.encoding,
            byte_count=payload.byte_count,
            payload_digest=payload.payload_digest,
        )
        return payload, federation_pb2.SignedRelease(
            release=row.release, signature=row.signature, manifest=manifest.to_wire()
        )

    def _sendable(self, release: Release, encoding: Encoding) -> ReleasePayload:
        """The payload in this encoding, or else in fp32; its bytes are the ones that were signed.

        Exact values don't give differences back, for what was rounded rounds to others: where
        those are damaged, fp32 is sent.
        """
        payload = release.payload(encoding)
        if payload is not None and is_difference(encoding):
            if self._is_whole(release.model_digest, payload):
                return payload
            payload = None
        payload = payload or release.payload("fp32")
        assert payload is not None, "every model is published in fp32"
        self.check(release.model_digest, payload)
        return payload

    def check(self, digest: Digest, payload: ReleasePayload | None = None) -> None:
        """Check the bytes of a model on disk before they are used or sent.

        A payload in bf16 that is damaged is made again from the exact values.

        Raises:
            StorageError: the exact values are damaged or gone.
        """
        encoded = payload if payload is not None and payload.encoding != "fp32" else None
        if encoded is not None and self._is_whole(digest, encoded):
            return
        if not self.digests.has(self.path(digest), digest):
            raise StorageError(
                f"The published model {self.path(digest)} is damaged or gone",
                next_step="Put the file back from a backup, which mends it at once, or go back to "
                "an earlier model: coordinator model rollback VERSION.",
            )
        if encoded is not None:
            self._encode(digest, encoded.encoding)

    def damaged_payloads(self, digest: Digest) -> list[ReleasePayload]:
        """What of a model's payloads in other encodings is damaged or gone."""
        row = self._journal.model(digest)
        assert row is not None
        return [
            payload
            for payload in _stated(row).payloads
            if payload.encoding != "fp32" and not self._is_whole(digest, payload)
        ]

    def _is_whole(self, digest: Digest, payload: ReleasePayload) -> bool:
        return self.digests.has(self.encoded_path(digest, payload.encoding), payload.payload_digest)

    def _encode(self, digest: Digest, encoding: Encoding) -> None:
        with (
            TensorFile(self.path(digest)) as file,
            replacing(self.encoded_path(digest, encoding)) as out,
        ):
            encode(file, file.layout, encoding, out)

    def chunks(
        self, digest: Digest, encoding: Encoding, offset: int
    ) -> AsyncIterator[ChunkMessage]:
        """The payload of a published model from ``offset`` on."""
        path, start, size = self._payload_place(digest, encoding)
        return send_chunks(self._shared.reading(path, start), size=size, offset=offset)

    def newest_digest(self) -> Digest:
        """The model that was published last; empty if there is none."""
        row = self._journal.newest_model()
        return Digest("") if row is None else Digest(row.digest)

    def remove_old(self) -> None:
        """Remove the files of models of rounds beyond the newest ones that are kept."""
        rows = self._journal.models()
        rounds = list(dict.fromkeys((row.run, row.round) for row in rows))[: self._kept + 1]
        kept = {row.digest for row in rows if (row.run, row.round) in rounds}
        old = {row.digest for row in rows} - kept
        for path in sorted(self._folder.glob("[!.]*")):
            if path.name.partition(".")[0] in old:
                with faults.step("gc.unlink"):
                    self._spares.retire(path)

    def remove_unfinished(self) -> None:
        """Delete what writes that were cut off have left."""
        for path in self._folder.glob(".*.tmp"):
            remove_file(path)

    def _payload(self, digest: Digest, encoding: Encoding) -> ReleasePayload:
        path, start, size = self._payload_place(digest, encoding)
        return ReleasePayload(
            encoding=encoding, payload_digest=self.digests.of(path, start=start), byte_count=size
        )

    def _payload_place(self, digest: Digest, encoding: Encoding) -> tuple[Path, int, int]:
        shape = self._shape(digest)
        if encoding == "fp32":
            return self.path(digest), shape.data_offset, shape.layout.size_bytes
        path = self.encoded_path(digest, encoding)
        size = path.stat().st_size if path.exists() else 0
        if not is_payload_size(size, shape.layout, encoding):
            raise StorageError(f"The payload {path} is missing or truncated")
        return path, 0, size


def models_needed(journal: Journal) -> list[str]:
    """Digests of the models that the run can't go on without: of the newest round, and its bases'.

    The last one's movement, which the next round's checks compare with, needs its base.
    """
    rows, run = journal.models(), journal.newest_run()
    needed = [row.digest for row in rows if (row.run, row.round) == (rows[0].run, rows[0].round)]
    state = None if run is None else journal.newest_round(run.name)
    if state is not None:
        needed += [state.base_digest, state.previous_digest, *state.bases.values()]
    return list(dict.fromkeys(filter(None, needed)))


def _stated(row: ModelRow) -> Release:
    return release_from_wire(federation_pb2.Release.FromString(row.release))
