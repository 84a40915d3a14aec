"""What is done with one update's bytes while they come? Written down, hashed and checked.

An fp32 payload is checked block by block as it lies in the spool, so that nothing is left to read
when its last chunk has come. Other encodings are decoded then, and checked as a whole.
"""

from contextlib import ExitStack
from pathlib import Path

import numpy as np

from coordinator.rounds.validation import Inspection, check_values
from fedreid import faults
from fedreid.errors import UpdateRefused
from fedreid.files import digest_of, remove_file, replacing
from fedreid.names import Digest
from fedreid.plan import ValidationPlan
from fedreid.spares import Spares
from fedreid.wire.chunks import AnyChunk
from fedreid.wire.encoding import decode
from fedreid.wire.manifest import Manifest
from fedreid.wire.stream import PartialFile
from fedreid.wire.tensors import FloatArray, TensorFile, values_of


class _Come:
    """The values that have come; those of the last chunk are not read from the disk again."""

    def __init__(self, file: PartialFile, last: AnyChunk | None) -> None:
        self._file, self._last = file, last

    def values(self, offset: int, size: int) -> FloatArray:
        """The values in ``size`` bytes of the data section from ``offset`` bytes on."""
        last = self._last
        if last is not None and last.offset <= offset:
            at, count = offset - last.offset, size // np.dtype(np.float32).itemsize
            return np.frombuffer(last.data, np.float32, count=count, offset=at)
        return values_of(self._file, offset, size)


class Incoming:
    """One update on its way; methods block on the disk."""

    def __init__(
        self, part: Path, manifest: Manifest, base: Path, plan: ValidationPlan, spares: Spares
    ) -> None:
        """Go on with what an earlier attempt has left in ``part``, if anything.

        Raises:
            StorageError: the disk fails, or the base model is gone.
        """
        self._manifest = manifest
        self._base_path = base
        self._plan = plan
        self._spares = spares
        with ExitStack() as stack:
            self._file = stack.enter_context(
                PartialFile(part, prefix=manifest.prefix, size=manifest.byte_count, spares=spares)
            )
            self._base = stack.enter_context(TensorFile(base))
            self._open = stack.pop_all()
        self._inspection = Inspection(manifest.layout, self._base, plan)

    def close(self) -> None:
        """Release the descriptors; the bytes so far stay for the next attempt."""
        self._open.close()

    def write(self, chunk: AnyChunk) -> None:
        """Take the next chunk.

        Raises:
            UpdateRefused: a wrong offset, size or checksum.
            StorageError: the disk is full or fails.
        """
        with faults.step("upload.chunk.write"):
            self._file.write(chunk)
        self._inspect(chunk)

    def finish(self) -> None:
        """Make what has come whole durable.

        Raises:
            UpdateRefused: it is truncated, or has another digest than announced.
            StorageError: the disk is full or fails.
        """
        self._inspect()  # or a resumed upload to which nothing was added would not be
        with faults.step("upload.finalise"):
            self._file.finish(self._manifest.payload_digest)
            self._file.sync()

    def checked(self) -> tuple[Path, Digest]:
        """The canonical file of a finished update each of whose values may count, and its digest.

        Raises:
            UpdateRefused: a value, or the whole change, may not; the file is removed.
        """
        try:
            if self._manifest.encoding == "fp32":
                self._inspection.finish()
                return self._file.path, self._file.file_digest
            return self._decoded()
        except UpdateRefused:
            remove_file(self._file.path)
            raise

    def _inspect(self, chunk: AnyChunk | None = None) -> None:
        if self._manifest.encoding == "fp32":
            self._inspection.go_on(_Come(self._file, chunk), self._file.offset)

    def _decoded(self) -> tuple[Path, Digest]:
        part, manifest = self._file.path, self._manifest
        ready = part.with_suffix(".ready")
        try:
            with TensorFile(self._base_path) as base:
                over = self._spares.find(manifest.layout.file_bytes)
                with (
                    part.open("rb") as payload,
                    replacing(ready, mode=0o600, over=over) as stream,
                ):
                    decode(payload, manifest.layout, manifest.encoding, stream, base)
                self._spares.retire(part)
                with TensorFile(ready) as update:
                    check_values(update, base, self._plan)
        except UpdateRefused:
            remove_file(ready)
            raise
        return ready, digest_of(ready)
