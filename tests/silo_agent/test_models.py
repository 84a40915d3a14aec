"""Is a model taken only from the federation's coordinator, never an older one, and bit by bit?"""

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import blake3
import google_crc32c
import grpc
import grpc.aio
import msgspec
import numpy as np
import pytest

import fedreid.spares
from fedreid.audit import AuditLog, read_audit
from fedreid.clock import SystemClock
from fedreid.contract import Release, ReleasePayload
from fedreid.errors import ConnectionFailed, FedreidError, SignatureRefused, StorageError
from fedreid.files import digest_of
from fedreid.names import Digest, RoundNumber, RunName
from fedreid.pki.signing import new_signing_key_pem, public_bytes, sign, signing_key
from fedreid.plan import Encoding
from fedreid.v1 import federation_pb2 as pb
from fedreid.v1 import tensors_pb2
from fedreid.wire.encoding import encode
from fedreid.wire.manifest import Manifest
from fedreid.wire.messages import release_to_wire
from fedreid.wire.tensors import FloatArray, Layout, TensorFile, TensorSpec, write_model
from silo_agent.config import Folders, Membership
from silo_agent.held import Held, newest_held
from silo_agent.models import ModelCache

KEY = signing_key(new_signing_key_pem())
MEMBERSHIP = Membership(federation="harbour", silo="north", model_key=public_bytes(KEY))
CLOCK = SystemClock()
CHUNK = 40
Change = Callable[["FakeCoordinator"], None]


def tensors(seed: int = 0) -> dict[str, FloatArray]:
    draws = np.random.default_rng(seed)
    return {
        "a.weight": draws.normal(size=(4, 8)).astype(np.float32),
        "b.weight": draws.normal(size=(8, 4)).astype(np.float32),
        "bn.running_var": draws.uniform(size=5).astype(np.float32),
    }


@dataclass
class FakeCoordinator:
    """A stub that serves one model, as honestly as its fields say."""

    canonical: bytes
    payload: bytes
    release: Release
    manifest: Manifest
    key: Any = KEY
    signature: bytes | None = None
    breaks_after: int | None = None
    """Chunks after which the line breaks."""
    damage: Callable[[tensors_pb2.Chunk], None] | None = None
    silent: bool = False
    offsets: list[int] = field(default_factory=list)
    """Of every request."""

    async def FetchModel(  # noqa: N802
        self, request: pb.FetchModelRequest
    ) -> AsyncIterator[pb.FetchModelResponse]:
        """Release, then chunks from the wanted offset."""
        self.offsets.append(request.offset)
        if self.silent:
            return
        statement = release_to_wire(self.release).SerializeToString(deterministic=True)
        signature = sign(self.key, statement) if self.signature is None else self.signature
        signed = pb.SignedRelease(
            release=statement, signature=signature, manifest=self.manifest.to_wire()
        )
        yield pb.FetchModelResponse(release=signed)
        for sent, offset in enumerate(range(request.offset, len(self.payload), CHUNK)):
            if sent == self.breaks_after:
                raise grpc.aio.AioRpcError(
                    grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "broke"
                )
            data = self.payload[offset : offset + CHUNK]
            chunk = tensors_pb2.Chunk(offset=offset, data=data, crc32c=google_crc32c.value(data))
            if self.damage is not None:
                self.damage(chunk)
            yield pb.FetchModelResponse(chunk=chunk)


def serving(
    folder: Path, *, version: int = 5, seed: int = 0, encoding: Encoding = "fp32"
) -> FakeCoordinator:
    """An honest coordinator."""
    path = folder / f"published-{seed}.safetensors"
    with path.open("wb") as stream:
        write_model(stream, tensors(seed))
    out = io.BytesIO()
    with TensorFile(path) as file:
        layout = file.layout
        encode(file, layout, encoding, out)
    payload = out.getvalue()
    digest = Digest(blake3.blake3(payload).hexdigest())
    return FakeCoordinator(
        canonical=path.read_bytes(),
        payload=payload,
        release=Release(
            federation="harbour",
            run=RunName("spring"),
            round=RoundNumber(3),
            version=version,
            model_digest=digest_of(path),
            base_digest=Digest(""),
            layout_digest=layout.digest(),
            payloads=(
                ReleasePayload(encoding=encoding, payload_digest=digest, byte_count=len(payload)),
            ),
        ),
        manifest=Manifest(
            layout=layout, encoding=encoding, byte_count=len(payload), payload_digest=digest
        ),
    )


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """An agent's data folder."""
    return Folders(tmp_path / "agent")


@pytest.fixture
def cache(folders: Folders) -> ModelCache:
    """An empty cache."""
    folders.root.mkdir()
    return ModelCache(folders, MEMBERSHIP, AuditLog(folders.audit, CLOCK))


def fetched(cache: ModelCache, stub: FakeCoordinator, encoding: Encoding = "fp32") -> Held:
    async def ensure() -> Held:
        return await cache.ensure(cast(Any, stub), "a:1", stub.release.model_digest, encoding)

    return asyncio.run(ensure())


def changed(stub: FakeCoordinator, **fields: Any) -> None:
    """Change what the release states."""
    values = {name: getattr(stub.release, name) for name in Release.__dataclass_fields__}
    stub.release = Release(**{**values, **fields})


def remanifested(stub: FakeCoordinator, **fields: Any) -> None:
    """Change what the manifest states."""
    values = {name: getattr(stub.manifest, name) for name in Manifest.__dataclass_fields__}
    stub.manifest = Manifest(**{**values, **fields})


def test_a_model_is_fetched_once_and_held_as_it_was_published(
    cache: ModelCache, tmp_path: Path
) -> None:
    stub = serving(tmp_path)
    held = fetched(cache, stub)
    assert Path(held.path).read_bytes() == stub.canonical
    assert (held.digest, held.round, held.version) == (stub.release.model_digest, 3, 5)
    assert fetched(cache, stub) == held
    assert stub.offsets == [0]


def test_a_model_held_is_known_after_a_restart(
    cache: ModelCache, folders: Folders, tmp_path: Path
) -> None:
    stub = serving(tmp_path)
    held = fetched(cache, stub)
    assert fetched(ModelCache(folders, MEMBERSHIP, AuditLog(folders.audit, CLOCK)), stub) == held
    assert stub.offsets == [0]


def test_a_model_in_bf16_is_decoded(cache: ModelCache, tmp_path: Path) -> None:
    stub = serving(tmp_path, encoding="bf16")
    with TensorFile(Path(fetched(cache, stub, "bf16").path)) as file:
        read = file.read_all()
    for name, values in tensors().items():
        np.testing.assert_allclose(read[name], values, rtol=2**-8)
    assert read["bn.running_var"].tobytes() == tensors()["bn.running_var"].tobytes()


@pytest.mark.parametrize("encoding", ["fp32", "bf16"])
def test_a_model_that_is_damaged_on_the_disk_is_fetched_again(
    cache: ModelCache, tmp_path: Path, encoding: Encoding
) -> None:
    stub = serving(tmp_path, encoding=encoding)
    held = fetched(cache, stub, encoding)
    whole = Path(held.path).read_bytes()
    Path(held.path).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert fetched(cache, stub, encoding) == held
    assert Path(held.path).read_bytes() == whole
    assert stub.offsets == [0, 0]
    fetched(cache, stub, encoding)
    assert stub.offsets == [0, 0]


def test_nothing_but_the_model_and_its_notes_stays(
    cache: ModelCache, folders: Folders, tmp_path: Path
) -> None:
    stub = serving(tmp_path)
    fetched(cache, stub)
    digest = stub.release.model_digest
    names = {path.name for path in folders.models.iterdir()}
    assert names == {f"{digest}.fp32.safetensors", f"{digest}.fp32.json", "newest.json"}


# Who says so


def foreign_key(stub: FakeCoordinator) -> None:
    stub.key = signing_key(new_signing_key_pem())


def unsigned(stub: FakeCoordinator) -> None:
    stub.signature = b""


def other_statement(stub: FakeCoordinator) -> None:
    stub.signature = sign(KEY, b"something else that was signed once")


def other_federation(stub: FakeCoordinator) -> None:
    changed(stub, federation="airport")


def other_payload(stub: FakeCoordinator) -> None:
    stub.payload = stub.payload[::-1]
    remanifested(stub, payload_digest=Digest(blake3.blake3(stub.payload).hexdigest()))


def no_such_payload(stub: FakeCoordinator) -> None:
    changed(stub, payloads=())


def renamed_tensors(stub: FakeCoordinator) -> None:
    specs = {"a.weight": "x.weight"}
    layout = stub.manifest.layout
    renamed = Layout.of(TensorSpec(specs.get(s.name, s.name), s.shape) for s in layout.specs)
    remanifested(stub, layout=renamed)


def swapped_shapes(stub: FakeCoordinator) -> None:
    layout = stub.manifest.layout
    remanifested(stub, layout=Layout.of(TensorSpec(s.name, s.shape[::-1]) for s in layout.specs))


UNTRUSTED = [
    foreign_key,
    unsigned,
    other_statement,
    other_federation,
    other_payload,
    no_such_payload,
]


@pytest.mark.parametrize("wrong", UNTRUSTED, ids=lambda change: change.__name__)
@pytest.mark.parametrize("encoding", ["fp32", "bf16"])
def test_a_model_that_the_coordinator_did_not_sign_so_is_refused_before_a_byte_is_taken(
    cache: ModelCache, folders: Folders, tmp_path: Path, wrong: Change, encoding: Encoding
) -> None:
    stub = serving(tmp_path, encoding=encoding)
    wrong(stub)
    with pytest.raises(SignatureRefused):
        fetched(cache, stub, encoding)
    assert list(folders.models.iterdir()) == []


def test_a_release_of_another_model_than_was_asked_for_is_refused(
    cache: ModelCache, tmp_path: Path
) -> None:
    stub, other = serving(tmp_path), serving(tmp_path, seed=1)

    async def ensure() -> Held:
        return await cache.ensure(cast(Any, other), "a:1", stub.release.model_digest, "fp32")

    with pytest.raises(SignatureRefused, match="another model"):
        asyncio.run(ensure())


@pytest.mark.parametrize("wrong", [renamed_tensors, swapped_shapes], ids=lambda c: c.__name__)
@pytest.mark.parametrize("encoding", ["fp32", "bf16"])
def test_the_signature_covers_names_and_shapes_in_every_encoding(
    cache: ModelCache, folders: Folders, tmp_path: Path, wrong: Change, encoding: Encoding
) -> None:
    stub = serving(tmp_path, encoding=encoding)
    wrong(stub)
    with pytest.raises(SignatureRefused):
        fetched(cache, stub, encoding)
    assert not list(folders.models.glob("*.safetensors"))


def test_a_payload_that_is_declared_to_be_in_another_encoding_is_refused(
    cache: ModelCache, folders: Folders, tmp_path: Path
) -> None:
    # read as bf16 the signed fp32 bytes are twice as many values, all of them nonsense
    stub = serving(tmp_path)
    layout = Layout.of([TensorSpec("a.weight", (len(stub.payload) // 2,))])
    remanifested(stub, layout=layout, encoding="bf16")
    with pytest.raises(SignatureRefused):
        fetched(cache, stub)
    assert not list(folders.models.glob("*.safetensors"))


def test_a_model_whose_digest_is_not_the_released_one_is_refused(
    cache: ModelCache, folders: Folders, tmp_path: Path
) -> None:
    stub = serving(tmp_path)
    changed(stub, model_digest=Digest("f" * 64))
    with pytest.raises(SignatureRefused, match="not the ones that were signed"):
        fetched(cache, stub)
    assert not list(folders.models.glob("*.safetensors"))


# Older versions


def test_an_older_version_than_one_already_taken_is_refused(
    cache: ModelCache, folders: Folders, tmp_path: Path
) -> None:
    fetched(cache, serving(tmp_path, version=6))
    older = serving(tmp_path, version=5, seed=1)
    with pytest.raises(SignatureRefused, match="version 6 was already taken"):
        fetched(cache, older)
    with pytest.raises(SignatureRefused):  # nor after a restart
        fetched(ModelCache(folders, MEMBERSHIP, AuditLog(folders.audit, CLOCK)), older)
    fetched(cache, serving(tmp_path, version=7, seed=2))


def test_another_model_under_a_version_already_taken_is_refused(
    cache: ModelCache, tmp_path: Path
) -> None:
    fetched(cache, serving(tmp_path, version=6))
    with pytest.raises(SignatureRefused):
        fetched(cache, serving(tmp_path, version=6, seed=1))


def test_a_model_in_a_second_encoding_is_no_step_back(cache: ModelCache, tmp_path: Path) -> None:
    fetched(cache, serving(tmp_path))
    fetched(cache, serving(tmp_path, encoding="bf16"), "bf16")


def test_a_refused_release_does_not_count_as_the_newest(cache: ModelCache, tmp_path: Path) -> None:
    forged = serving(tmp_path, version=10**6, seed=1)
    foreign_key(forged)
    with pytest.raises(SignatureRefused):
        fetched(cache, forged)
    fetched(cache, serving(tmp_path, version=1))


# Broken lines


@pytest.mark.parametrize("encoding", ["fp32", "bf16"])
def test_a_download_goes_on_where_the_line_broke(
    cache: ModelCache, folders: Folders, tmp_path: Path, encoding: Encoding
) -> None:
    stub = serving(tmp_path, encoding=encoding)
    stub.breaks_after = 2
    attempts = 0
    while True:
        attempts += 1
        try:
            held = fetched(
                ModelCache(folders, MEMBERSHIP, AuditLog(folders.audit, CLOCK)), stub, encoding
            )
        except ConnectionFailed:
            continue
        break
    assert stub.offsets == [CHUNK * 2 * n for n in range(attempts)]
    assert attempts > 1
    if encoding == "fp32":
        assert Path(held.path).read_bytes() == stub.canonical


def test_no_answer_at_all_is_a_connection_that_failed(cache: ModelCache, tmp_path: Path) -> None:
    stub = serving(tmp_path)
    stub.silent = True
    with pytest.raises(ConnectionFailed):
        fetched(cache, stub)


def flipped(chunk: tensors_pb2.Chunk) -> None:
    if chunk.offset == CHUNK:
        chunk.data = bytes([chunk.data[0] ^ 1]) + chunk.data[1:]


def misplaced(chunk: tensors_pb2.Chunk) -> None:
    if chunk.offset == CHUNK:
        chunk.offset += 1


def emptied(chunk: tensors_pb2.Chunk) -> None:
    chunk.data = b""


def flipped_with_its_checksum(chunk: tensors_pb2.Chunk) -> None:
    flipped(chunk)
    chunk.crc32c = google_crc32c.value(chunk.data)


@pytest.mark.parametrize(
    "damage",
    [flipped, misplaced, emptied, flipped_with_its_checksum],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_chunk_costs_another_attempt_and_nothing_else(
    cache: ModelCache, tmp_path: Path, damage: Callable[[tensors_pb2.Chunk], None]
) -> None:
    stub = serving(tmp_path)
    stub.damage = damage
    with pytest.raises(ConnectionFailed):
        fetched(cache, stub)
    stub.damage = None
    assert Path(fetched(cache, stub).path).read_bytes() == stub.canonical


def test_a_stream_that_ends_too_early_can_be_gone_on_with(
    cache: ModelCache, tmp_path: Path
) -> None:
    stub = serving(tmp_path)
    whole, stub.payload = stub.payload, stub.payload[: 3 * CHUNK]
    with pytest.raises(ConnectionFailed):
        fetched(cache, stub)
    stub.payload = whole
    assert Path(fetched(cache, stub).path).read_bytes() == stub.canonical


def test_what_a_crash_tore_on_disk_is_fetched_again(
    cache: ModelCache, folders: Folders, tmp_path: Path
) -> None:
    stub = serving(tmp_path)
    part = folders.models / f"{stub.release.model_digest}.fp32.part"
    whole = stub.canonical
    for left in (whole[:-9] + b"garbage", whole[:-9] + b"garbage..", whole + b"."):
        part.write_bytes(left)
        with pytest.raises(ConnectionFailed):
            fetched(cache, stub)
    assert Path(fetched(cache, stub).path).read_bytes() == stub.canonical


@pytest.mark.parametrize("more", [-100, 0, 1])
def test_zeros_where_bytes_never_came_count_as_nothing(
    cache: ModelCache, folders: Folders, tmp_path: Path, more: int
) -> None:
    stub = serving(tmp_path)
    part = folders.models / f"{stub.release.model_digest}.fp32.part"
    part.write_bytes(bytes(len(stub.canonical) + more))
    assert Path(fetched(cache, stub).path).read_bytes() == stub.canonical
    assert stub.offsets == [0]


def test_a_model_goes_over_the_room_of_the_one_before(
    cache: ModelCache, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fedreid.spares, "LEAST_SPARE_BYTES", 1)
    first, second = serving(tmp_path, version=5), serving(tmp_path, version=6, seed=1)
    before = Path(fetched(cache, first).path)
    inode = before.stat().st_ino
    cache.remove_others(second.release.model_digest)
    after = Path(fetched(cache, second).path)
    assert after.stat().st_ino == inode
    assert after.read_bytes() == second.canonical
    assert not before.exists()


# What lies on disk


def test_a_held_model_whose_file_is_gone_is_fetched_again(
    cache: ModelCache, tmp_path: Path
) -> None:
    stub = serving(tmp_path)
    held = fetched(cache, stub)
    Path(held.path).unlink()
    assert Path(fetched(cache, stub).path).read_bytes() == stub.canonical


@pytest.mark.parametrize("name", ["newest.json", "{digest}.fp32.json"])
def test_a_damaged_note_is_an_error_of_our_tree_or_mended(
    cache: ModelCache, folders: Folders, tmp_path: Path, name: str
) -> None:
    stub = serving(tmp_path)
    fetched(cache, stub)
    note = folders.models / name.format(digest=stub.release.model_digest)
    note.write_bytes(b"{")
    other = serving(tmp_path, seed=1) if name == "newest.json" else stub
    try:
        fetched(cache, other)
    except FedreidError as error:
        assert isinstance(error, StorageError)


def test_all_models_but_one_are_removed_and_the_newest_version_is_remembered(
    cache: ModelCache, folders: Folders, tmp_path: Path
) -> None:
    first, second = serving(tmp_path, version=1), serving(tmp_path, version=2, seed=1)
    fetched(cache, first)
    held = fetched(cache, second)
    cache.remove_others(Digest(held.digest))
    assert Path(held.path).exists()
    assert not list(folders.models.glob(f"{first.release.model_digest}*"))
    with pytest.raises(SignatureRefused):
        fetched(cache, first)


def test_the_newest_version_is_what_the_note_says(
    cache: ModelCache, folders: Folders, tmp_path: Path
) -> None:
    fetched(cache, serving(tmp_path, version=41))
    assert msgspec.json.decode((folders.models / "newest.json").read_bytes())["version"] == 41


def test_the_newest_model_of_a_run_is_found_without_the_coordinator_wherever_the_folder_lies(
    cache: ModelCache, folders: Folders, tmp_path: Path
) -> None:
    fetched(cache, serving(tmp_path, version=1))
    newest = fetched(cache, serving(tmp_path, version=2, seed=1))
    assert newest_held(folders, "spring") == newest
    assert newest_held(folders, "summer") is None
    moved = Folders(folders.root.rename(tmp_path / "moved"))
    found = newest_held(moved, "spring")
    assert found is not None and Path(found.path).is_relative_to(moved.root)
    Path(found.path).unlink()
    older = newest_held(moved, "spring")
    assert older is not None and older.version == 1


@pytest.mark.parametrize("encoding", ["fp32", "bf16"])
def test_a_model_that_was_taken_is_in_the_audit_log_once(
    folders: Folders, cache: ModelCache, encoding: Encoding
) -> None:
    stub = serving(folders.root, encoding=encoding)
    for _ in range(2):
        fetched(cache, stub, encoding)
    (line,) = read_audit(folders.audit)
    assert line.event == "model.taken"
    assert line.fields["model_digest"] == stub.release.model_digest
    assert line.fields["version"] == stub.release.version


def test_a_model_that_was_refused_is_not_in_the_audit_log(
    folders: Folders, cache: ModelCache
) -> None:
    stub = serving(folders.root)
    stub.signature = bytes(64)
    with pytest.raises(SignatureRefused):
        fetched(cache, stub)
    assert list(read_audit(folders.audit)) == []
