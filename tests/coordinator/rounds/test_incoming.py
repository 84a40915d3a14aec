"""Is an update checked whole, however its bytes came, and judged only once its digest holds?"""

import dataclasses
import itertools
from pathlib import Path

import blake3
import google_crc32c
import numpy as np
import pytest

from coordinator.rounds.incoming import Incoming
from coordinator.rounds.validation import Inspection
from fedreid.errors import Refusal, UpdateRefused
from fedreid.files import digest_of
from fedreid.names import Digest
from fedreid.plan import ValidationPlan
from fedreid.spares import Spares
from fedreid.wire.chunks import Chunk
from fedreid.wire.encoding import encode
from fedreid.wire.manifest import Manifest
from fedreid.wire.tensors import FloatArray, TensorFile, load_tensors, save_tensors

Model = dict[str, FloatArray]
_CHUNK = 100_000  # neither a multiple of a block nor of a tensor


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model of small and large tensors."""
    path = tmp_path / "base.safetensors"
    save_tensors(path, model())
    return path


def model() -> Model:
    rng = np.random.default_rng(3)
    return {
        "bn.running_mean": np.zeros(64, np.float32),
        "bn.running_var": np.ones(64, np.float32),
        "bn.weight": rng.standard_normal(64, np.float32),
        "conv.weight": rng.standard_normal(100_000, np.float32),
        "fc.weight": rng.standard_normal((10, 7), np.float32),
    }


def payload_of(tensors: Model) -> bytes:
    return b"".join(tensors[name].tobytes() for name in sorted(tensors))


def manifest_of(base: Path, payload: bytes) -> Manifest:
    with TensorFile(base) as file:
        return Manifest(
            layout=file.layout,
            encoding="fp32",
            byte_count=len(payload),
            payload_digest=Digest(blake3.blake3(payload).hexdigest()),
        )


def coming(base: Path, payload: bytes) -> Incoming:
    part = base.with_name("silo.part")
    spares = Spares(part.parent / "spare", kept=0)
    return Incoming(part, manifest_of(base, payload), base, ValidationPlan(), spares)


def send(incoming: Incoming, payload: bytes, begin: int = 0, end: int | None = None) -> None:
    payload = payload[:end]
    for at in range(begin, len(payload), _CHUNK):
        data = payload[at : at + _CHUNK]
        incoming.write(Chunk(offset=at, crc32c=google_crc32c.value(data), data=data))


def test_an_update_becomes_a_canonical_file_with_its_digest(base: Path) -> None:
    trained = {name: values + np.float32(0.01) for name, values in model().items()}
    incoming = coming(base, payload_of(trained))
    send(incoming, payload_of(trained))
    incoming.finish()
    path, digest = incoming.checked()
    incoming.close()
    assert digest == digest_of(path)
    read = load_tensors(path)
    assert all(np.array_equal(read[name], values) for name, values in trained.items())


@pytest.mark.parametrize(
    ("name", "place", "value", "reason"),
    [
        ("bn.running_mean", 0, np.nan, Refusal.NOT_FINITE),
        ("bn.running_var", 63, -1.0, Refusal.NEGATIVE_VARIANCE),
        ("conv.weight", 99_999, np.inf, Refusal.NOT_FINITE),
        ("conv.weight", 1, 1e9, Refusal.NORM),
        ("fc.weight", 0, 1e5, Refusal.NORM),
    ],
)
@pytest.mark.parametrize("broken_at", [None, 2 * _CHUNK])
def test_a_value_that_may_not_count_is_found_wherever_it_lies(
    base: Path, name: str, place: int, value: float, reason: Refusal, broken_at: int | None
) -> None:
    trained = model()
    trained[name].reshape(-1)[place] = value
    payload = payload_of(trained)
    incoming = coming(base, payload)
    if broken_at is not None:
        send(incoming, payload, end=broken_at)
        incoming.close()
        incoming = coming(base, payload)
    send(incoming, payload, begin=broken_at or 0)
    incoming.finish()
    with pytest.raises(UpdateRefused) as refused:
        incoming.checked()
    incoming.close()
    assert refused.value.reason is reason
    assert not base.with_name("silo.part").exists()


def test_an_upload_that_had_come_whole_before_is_checked_too(base: Path) -> None:
    trained = model()
    trained["fc.weight"][0, 0] = np.nan
    payload = payload_of(trained)
    incoming = coming(base, payload)
    send(incoming, payload)
    incoming.close()
    again = coming(base, payload)
    again.finish()
    with pytest.raises(UpdateRefused) as refused:
        again.checked()
    again.close()
    assert refused.value.reason is Refusal.NOT_FINITE


def test_what_a_crash_tore_is_told_as_a_broken_line_not_as_the_silos_doing(base: Path) -> None:
    payload = payload_of(model())
    incoming = coming(base, payload)
    send(incoming, payload, end=2 * _CHUNK)
    incoming.close()
    with base.with_name("silo.part").open("r+b") as stream:
        stream.seek(-4000, 2)
        stream.write(b"\xff" * 4000)  # NaN
    again = coming(base, payload)
    send(again, payload, begin=2 * _CHUNK)
    with pytest.raises(UpdateRefused) as refused:
        again.finish()
    again.close()
    assert refused.value.reason is Refusal.DIGEST


def test_values_are_read_once_and_in_order(base: Path) -> None:
    """So that memory and time follow what has come."""
    spans: list[tuple[int, int]] = []

    class Recording:
        def __init__(self, file: TensorFile) -> None:
            self._file = file

        def values(self, offset: int, size: int) -> FloatArray:
            spans.append((offset, offset + size))
            return self._file.values(offset, size)

    with TensorFile(base) as file:
        inspection = Inspection(file.layout, file, ValidationPlan())
        size = file.layout.size_bytes
        for come in (10, size // 3, size // 3 + 1, size):
            inspection.go_on(Recording(file), come)
        inspection.finish()
    assert spans[0][0] == 0 and spans[-1][1] == size
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))


def test_an_encoded_update_is_unfolded_over_the_room_of_an_earlier_one(
    base: Path, tmp_path: Path
) -> None:
    earlier, spares = tmp_path / "earlier", Spares(tmp_path / "spare", kept=2)
    earlier.write_bytes(base.read_bytes())
    inode = earlier.stat().st_ino
    spares.retire(earlier)
    with TensorFile(base) as file, (tmp_path / "payload").open("wb") as stream:
        encode(file, file.layout, "bf16", stream)
    payload = (tmp_path / "payload").read_bytes()
    manifest = dataclasses.replace(manifest_of(base, payload), encoding="bf16")
    part = tmp_path / "silo.part"
    incoming = Incoming(part, manifest, base, ValidationPlan(), spares)
    send(incoming, payload)
    incoming.finish()
    incoming.close()
    ready, digest = incoming.checked()
    assert ready.stat().st_ino == inode
    assert digest == digest_of(ready)
    unfolded, given = load_tensors(ready), model()
    assert all(np.allclose(unfolded[name], given[name], rtol=2**-8) for name in given)
    assert [spare.stat().st_size for spare in (tmp_path / "spare").iterdir()] == [len(payload)]
    assert not part.exists()


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_what_came_is_checked_wherever_chunks_are_cut(base: Path, shift: int) -> None:
    """Also between the bytes of a value, as an upload that goes on after a break may be."""
    trained = model()
    trained["fc.weight"][-1, -1] = np.inf
    payload = payload_of(trained)
    incoming = coming(base, payload)
    send(incoming, payload, end=shift)
    send(incoming, payload, begin=shift)
    incoming.finish()
    with pytest.raises(UpdateRefused) as refused:
        incoming.checked()
    incoming.close()
    assert refused.value.reason is Refusal.NOT_FINITE
