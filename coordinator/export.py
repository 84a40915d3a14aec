"""How does a published model leave the coordinator as a file that others can check?"""

from pathlib import Path

from coordinator.client import admin_of
from fedreid.contract import Release
from fedreid.errors import ConnectionFailed, StorageError
from fedreid.files import digest_of, remove_file, replacing, write_bytes
from fedreid.v1 import admin_pb2, federation_pb2
from fedreid.wire.manifest import Manifest
from fedreid.wire.messages import release_from_wire
from fedreid.wire.released import release_of


def export_model(data: Path, coordinator: str | None, digest: str, out: Path) -> Release:
    """Write a model to ``out`` and its signed release to ``out`` + ``.release``.

    Raises:
        StorageError: what arrived is not the model that the release names.
        FedreidError: as the coordinator refused.
    """
    with admin_of(data, coordinator) as admin:
        parts = admin.ExportModel(admin_pb2.ExportModelRequest(model_digest=digest))
        first = next(parts, None)
        if first is None or not first.HasField("release"):
            raise ConnectionFailed("The coordinator sent no model")
        signed = first.release
        release = release_from_wire(federation_pb2.Release.FromString(signed.release))
        with replacing(out) as stream:
            stream.write(Manifest.from_wire(signed.manifest).layout.header())
            for part in parts:
                stream.write(part.chunk.data)
    if digest_of(out) != release.model_digest:
        remove_file(out)
        raise StorageError("The model arrived damaged", next_step="Export it again.")
    write_bytes(release_of(out), signed.SerializeToString())
    return release
