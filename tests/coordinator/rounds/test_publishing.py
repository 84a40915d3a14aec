"""Does a finished model become the federation's, whatever cut the step off before?"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordinator.folders import Folders
from coordinator.learning.jobs import EncodeJob
from coordinator.learning.worker import write_payload
from coordinator.rounds.journal import Journal, RunRow
from coordinator.rounds.publishing import Models, Origin
from fedreid.errors import RunError, StorageError
from fedreid.files import digest_of, make_folder, write_bytes
from fedreid.names import Digest, FederationName, RoundNumber, RunName
from fedreid.pki.signing import new_signing_key_pem, public_bytes, signing_key, verify
from fedreid.plan import Encoding
from fedreid.v1 import federation_pb2
from fedreid.wire.encoding import encode
from fedreid.wire.manifest import Manifest
from fedreid.wire.messages import release_from_wire
from fedreid.wire.tensors import TensorFile, save_tensors

KEY = signing_key(new_signing_key_pem())
ORIGIN = Origin(run=RunName("spring"), round=RoundNumber(1), base_digest=Digest("b" * 64))
BOTH: tuple[Encoding, ...] = ("fp32", "bf16")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def models(tmp_path: Path, journal: Journal) -> Models:
    return Models(Folders(tmp_path), journal, FederationName("harbour"), KEY)


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    """What a round has made: a model, and its payload in bf16."""
    path = make_folder(tmp_path / "work") / "aggregate.safetensors"
    save_tensors(path, {"weight": np.arange(8, dtype=np.float32)})
    with TensorFile(path) as file, path.with_suffix(".bf16").open("wb") as stream:
        encode(file, file.layout, "bf16", stream)
    return path


def test_a_model_is_placed_under_its_digest_and_signed(models: Models, staged: Path) -> None:
    row = models.place(staged, ORIGIN, BOTH)
    assert row.version == 1
    assert digest_of(models.path(Digest(row.digest))) == row.digest
    verify(public_bytes(KEY), row.release, row.signature)


@pytest.mark.parametrize("encodings", [("fp32",), BOTH])
def test_placing_is_done_again_after_a_crash_before_its_commit(
    models: Models, journal: Journal, staged: Path, encodings: tuple[Encoding, ...]
) -> None:
    first = models.place(staged, ORIGIN, encodings)
    again = models.place(staged, ORIGIN, encodings)  # the release was never committed
    assert again == first
    journal.add_run(RunRow(name="spring", plan_toml="", state="running", started_at_s=1.0), again)
    assert models.signed_release(Digest(again.digest), encodings[-1]).release == first.release
    assert models.place(staged, replace(ORIGIN, round=RoundNumber(2)), encodings).version == 2


def test_a_published_model_does_not_change_with_the_file_that_it_was_made_from(
    models: Models, staged: Path
) -> None:
    row = models.place(staged, ORIGIN, ("fp32",))
    write_bytes(staged, b"the next round's")
    assert digest_of(models.path(Digest(row.digest))) == row.digest


def test_what_writes_that_were_cut_off_have_left_is_removed(
    models: Models, staged: Path, tmp_path: Path
) -> None:
    row = models.place(staged, ORIGIN, ("fp32",))
    (tmp_path / "models" / ".half.tmp").write_bytes(b"half")
    models.remove_unfinished()
    assert [path.name for path in (tmp_path / "models").iterdir()] == [f"{row.digest}.safetensors"]


def test_models_beyond_those_that_are_kept_make_room_for_the_next(
    tmp_path: Path, journal: Journal, staged: Path
) -> None:
    folders = Folders(tmp_path)
    models = Models(folders, journal, FederationName("harbour"), KEY, kept=2)
    run = RunRow(name="spring", plan_toml="", state="running", started_at_s=1.0)
    digests = []
    for number in range(4):
        save_tensors(staged, {"weight": np.full(2**15, number, dtype=np.float32)})
        row = models.place(staged, replace(ORIGIN, round=RoundNumber(number)), ("fp32",))
        journal.add_models([row]) if number else journal.add_run(run, row)
        models.remove_old()
        staged.unlink()
        digests.append(Digest(row.digest))
    assert [models.path(digest).exists() for digest in digests] == [False, True, True, True]
    size = models.path(digests[-1]).stat().st_size
    spare = folders.spares.find(size)
    assert spare is not None and spare.read_bytes() == bytes(size)
    with pytest.raises(RunError, match="2 rounds are kept"):
        models.released_again(RunName("spring"), 1)


DELTA: tuple[Encoding, ...] = ("fp32", "int8_delta_zstd")


def published(models: Models, journal: Journal, staged: Path) -> Digest:
    """A round's model, with a payload of differences."""
    base = staged.with_name("base.safetensors")
    save_tensors(base, {"weight": np.zeros((2, 4), dtype=np.float32)})
    save_tensors(staged, {"weight": np.arange(8, dtype=np.float32).reshape(2, 4)})
    out = str(staged.with_suffix(".int8_delta_zstd"))
    job = EncodeJob(model=str(staged), encoding="int8_delta_zstd", base=str(base), out=out)
    write_payload(job, lambda progress: None)
    row = models.place(staged, ORIGIN, DELTA)
    journal.add_run(RunRow(name="spring", plan_toml="", state="running", started_at_s=1.0), row)
    return Digest(row.digest)


def sent_in(models: Models, digest: Digest, encoding: Encoding) -> Encoding:
    """What goes before a model's payload says of it."""
    manifest = Manifest.from_wire(models.signed_release(digest, encoding).manifest)
    stated = release_from_wire(
        federation_pb2.Release.FromString(models.signed_release(digest, encoding).release)
    ).payload(manifest.encoding)
    assert stated is not None
    assert (stated.payload_digest, stated.byte_count) == (
        manifest.payload_digest,
        manifest.byte_count,
    )
    return manifest.encoding


def test_differences_are_sent_as_they_were_signed(
    models: Models, journal: Journal, staged: Path
) -> None:
    digest = published(models, journal, staged)
    assert sent_in(models, digest, "int8_delta_zstd") == "int8_delta_zstd"
    assert models.damaged_payloads(digest) == []


@pytest.mark.parametrize("damage", [b"", b"damaged"])
def test_fp32_is_offered_for_differences_that_the_disk_has_lost(
    models: Models, journal: Journal, staged: Path, damage: bytes
) -> None:
    digest = published(models, journal, staged)
    payload = models.encoded_path(digest, "int8_delta_zstd")
    payload.unlink()
    if damage:
        payload.write_bytes(damage)
    assert sent_in(models, digest, "int8_delta_zstd") == "fp32"
    assert [each.encoding for each in models.damaged_payloads(digest)] == ["int8_delta_zstd"]


@pytest.mark.parametrize("encoding", ["bf16", "int8_delta"])
def test_fp32_is_offered_for_an_encoding_in_which_a_model_was_not_published(
    models: Models, journal: Journal, staged: Path, encoding: Encoding
) -> None:
    assert sent_in(models, published(models, journal, staged), encoding) == "fp32"


def test_a_model_that_was_asked_for_is_told_with_its_newest_release_ever_after(
    models: Models, journal: Journal, staged: Path
) -> None:
    row = models.place(staged, ORIGIN, BOTH)
    run = RunRow(name="spring", plan_toml="", state="running", started_at_s=1.0)
    journal.add_run(run, row)
    digest = Digest(row.digest)
    assert models.signed_release(digest, "fp32").release == row.release
    beyond = models.released_beyond(7)
    journal.add_models(beyond)
    assert models.signed_release(digest, "fp32").release == beyond[-1].release != row.release
    assert journal.newest_model() == beyond[-1]


def test_a_model_that_is_damaged_after_it_was_sent_is_not_sent_again(
    models: Models, journal: Journal, staged: Path
) -> None:
    row = models.place(staged, ORIGIN, ("fp32",))
    run = RunRow(name="spring", plan_toml="", state="running", started_at_s=1.0)
    journal.add_run(run, row)
    digest = Digest(row.digest)
    models.signed_release(digest, "fp32")
    path = models.path(digest)
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(StorageError, match="damaged or gone"):
        models.signed_release(digest, "fp32")


def test_a_digest_that_nobody_has_published_is_not_remembered(
    models: Models, journal: Journal, staged: Path
) -> None:
    row = models.place(staged, ORIGIN, ("fp32",))
    assert journal.model(row.digest) is None
    run = RunRow(name="spring", plan_toml="", state="running", started_at_s=1.0)
    journal.add_run(run, row)
    assert journal.model(row.digest) == row
