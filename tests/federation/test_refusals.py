"""Every update that must not count is refused over the real port, each with its typed reason.

Two silos under the test's control are invited to one round. One of them sends nothing, so that
the round stays open while the other tries each row of the table.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import blake3
import google_crc32c
import grpc
import numpy as np
import pytest
import zstandard

from fedreid.contract import TrainTask
from fedreid.errors import Refusal, UpdateRefused
from fedreid.limits import (
    CHUNK_BYTES,
    MANIFEST_TENSORS,
    MIB,
    TENSOR_DIMENSIONS,
    TENSOR_NAME_BYTES,
)
from fedreid.v1 import federation_pb2 as pb
from fedreid.v1 import tensors_pb2
from tests.federation.conftest import Founding, write_plan
from tests.federation.rogue import Rogue, Tensors, announcement, chunks_of, payload_of

pytestmark = pytest.mark.timeout(300)
Announce = Callable[[pb.OpenUploadRequest], None]
Chunks = list[tensors_pb2.Chunk]
Break = Callable[[Chunks], Chunks]
Spoil = Callable[[Tensors], Tensors]
Fold = Callable[[Tensors], bytes]


# Announcements


def first(request: pb.OpenUploadRequest, **changes: object) -> tensors_pb2.TensorSpec:
    """The first tensor of the manifest, changed."""
    spec = request.manifest.tensors[0]
    for field, value in changes.items():
        if field == "shape":
            del spec.shape[:]
            spec.shape.extend(value)  # type: ignore[arg-type]
        else:
            setattr(spec, field, value)
    return spec


def naming(name: str) -> Announce:
    return lambda request: setattr(first(request), "name", name)


def shaping(*shape: int) -> Announce:
    def change(request: pb.OpenUploadRequest) -> None:
        first(request, shape=shape)

    return change


def manifest(field: str, value: object) -> Announce:
    return lambda request: setattr(request.manifest, field, value)


def report(field: str, value: float) -> Announce:
    return lambda request: setattr(request.report, field, value)


def swap(request: pb.OpenUploadRequest) -> None:
    specs = list(request.manifest.tensors)
    del request.manifest.tensors[:]
    request.manifest.tensors.extend([specs[1], specs[0], *specs[2:]])


def drop(request: pb.OpenUploadRequest) -> None:
    values = int(np.prod(request.manifest.tensors[0].shape, dtype=np.int64))
    del request.manifest.tensors[0]
    request.manifest.byte_count -= 4 * values


def empty(request: pb.OpenUploadRequest) -> None:
    del request.manifest.tensors[:]
    request.manifest.byte_count = 0


def twice(request: pb.OpenUploadRequest) -> None:
    request.manifest.tensors.insert(0, request.manifest.tensors[0])


def more(count: int, name: str = "") -> Announce:
    """Further tensors of no values, ``count`` of them."""

    def change(request: pb.OpenUploadRequest) -> None:
        names = [f"{name}{n:07d}" if name else "" for n in range(count)]
        extra = tensors_pb2.Manifest(
            tensors=[tensors_pb2.TensorSpec(name=text, shape=[0] if name else []) for text in names]
        )
        request.manifest.MergeFrom(extra)

    return change


HUGE = 2**62
LIES: list[tuple[str, Refusal, Announce]] = [
    ("another name", Refusal.TENSOR_NAMES, naming("a")),
    ("an empty name", Refusal.TENSOR_NAMES, naming("")),
    ("a name without end", Refusal.TENSOR_NAMES, naming("!" * (TENSOR_NAME_BYTES + 1)),
    ),
    ("a path for a name", Refusal.TENSOR_NAMES, naming("../../a")),
    ("another order", Refusal.TENSOR_NAMES, swap),
    ("a missing tensor", Refusal.TENSOR_NAMES, drop),
    ("no tensor", Refusal.TENSOR_NAMES, empty),
    ("an extra tensor", Refusal.TENSOR_NAMES, more(1, "zz")),
    ("a tensor twice", Refusal.TENSOR_NAMES, twice),
    ("one tensor too many", Refusal.MANIFEST, more(MANIFEST_TENSORS + 1, "zz"),
    ),
    ("a million tensors", Refusal.MANIFEST, more(1_000_000)),
    ("a size that reads as -1", Refusal.TENSOR_SHAPE, shaping(2**64 - 1)),
    ("an overflowing product", Refusal.TENSOR_SHAPE, shaping(HUGE, HUGE)),
    ("a product that wraps to 0", Refusal.TENSOR_SHAPE, shaping(2**32, 2**32)),
    ("one size of 2^62", Refusal.TENSOR_SHAPE, shaping(HUGE)),
    ("too many dimensions", Refusal.TENSOR_SHAPE, shaping(*[1] * (TENSOR_DIMENSIONS + 1)),
    ),
    ("a million dimensions", Refusal.TENSOR_SHAPE, shaping(*[1] * 1_000_000)
    ),
    ("no encoding", Refusal.ENCODING, manifest("encoding", 0)),
    ("an unknown encoding", Refusal.ENCODING, manifest("encoding", 77)),
    ("a count too high", Refusal.BYTE_COUNT, manifest("byte_count", 2**63)),
    ("a count of 0", Refusal.BYTE_COUNT, manifest("byte_count", 0)),
    ("another type of number", Refusal.BYTE_COUNT, manifest("encoding", 2)),
    ("no digest", Refusal.DIGEST, manifest("payload_digest", "")),
    ("a path for a digest", Refusal.DIGEST, manifest("payload_digest", "../" * 21 + "a")),
    ("a digest in capitals", Refusal.DIGEST, manifest("payload_digest", "A" * 64)),
    ("a distance of NaN", Refusal.WEIGHT, report("cosine_distance", np.nan)),
    ("an infinite distance", Refusal.WEIGHT, report("cosine_distance", np.inf)),
    ("a distance above 2", Refusal.WEIGHT, report("cosine_distance", 2.001)),
    ("a negative distance", Refusal.WEIGHT, report("cosine_distance", -1e-9)),
    ("no images", Refusal.WEIGHT, report("num_images", 0)),
    ("2^62 images", Refusal.WEIGHT, report("num_images", HUGE)),
    ("no steps", Refusal.WEIGHT, report("num_steps", 0)),
    ("2^62 steps", Refusal.WEIGHT, report("num_steps", HUGE)),
    ("a loss of NaN", Refusal.REPORT, report("train_loss", np.nan)),
]  # fmt: skip


# Payloads on their way


def at(number: int, **fields: object) -> Break:
    """The chunks up to ``number``, that one with other fields: what is refused comes last, or the
    stream may end while the rest is being written, and the reason with it."""

    def change(chunks: Chunks) -> Chunks:
        for field, value in fields.items():
            setattr(chunks[number], field, value)
        return chunks[: number + 1]

    return change


def lengthened(chunks: Chunks) -> Chunks:
    last = chunks[-1]
    return [*chunks, *_moved(chunks_of(bytes(8)), last.offset + len(last.data))]


def _moved(chunks: Chunks, by: int) -> Chunks:
    for chunk in chunks:
        chunk.offset += by
    return chunks


def oversized(chunks: Chunks) -> Chunks:
    data = bytes(CHUNK_BYTES + 1)
    return [tensors_pb2.Chunk(offset=0, data=data, crc32c=google_crc32c.value(data))]


def flipped(chunks: Chunks) -> Chunks:
    """Other bytes than were digested, each chunk with a good checksum."""
    payload = bytearray(b"".join(chunk.data for chunk in chunks))
    payload[100] ^= 1
    return chunks_of(bytes(payload))


BREAKS: list[tuple[str, Refusal, Break]] = [
    ("a wrong checksum", Refusal.CHUNK, at(0, crc32c=1)),
    ("an empty chunk", Refusal.CHUNK, at(0, data=b"")),
    ("a chunk above 1 MiB", Refusal.CHUNK, oversized),
    ("a first chunk not at 0", Refusal.CHUNK, lambda c: c[1:2]),
    ("a gap", Refusal.CHUNK, lambda c: [c[0], c[2]]),
    ("an offset twice", Refusal.CHUNK, lambda c: [c[0], c[0]]),
    ("overlapping chunks", Refusal.CHUNK, at(1, offset=CHUNK_BYTES - 4)),
    ("an offset beyond 2^63", Refusal.CHUNK, at(1, offset=2**63)),
    ("an end too early", Refusal.BYTE_COUNT, lambda c: c[:-1]),
    ("a payload too long", Refusal.BYTE_COUNT, lengthened),
    ("another payload", Refusal.DIGEST, flipped),
]


# Payloads that arrive


def values(value: float, part: str = "weight") -> Spoil:
    """One value of the first tensor whose name ends so."""

    def change(tensors: Tensors) -> Tensors:
        name = next(name for name in sorted(tensors) if name.endswith(part))
        spoilt = tensors[name].copy()
        spoilt.flat[-1] = value
        return {**tensors, name: spoilt}

    return change


def scaled(factor: float) -> Spoil:
    return lambda tensors: {
        n: v if "running" in n else v * np.float32(factor) for n, v in tensors.items()
    }


CONTENT: list[tuple[str, Refusal, Spoil]] = [
    ("NaN", Refusal.NOT_FINITE, values(np.nan)),
    ("infinity", Refusal.NOT_FINITE, values(np.inf)),
    ("minus infinity", Refusal.NOT_FINITE, values(-np.inf)),
    ("NaN for a mean", Refusal.NOT_FINITE, values(np.nan, "running_mean")),
    ("1e38", Refusal.NORM, values(1e38)),
    ("1e38 for a variance", Refusal.NORM, values(1e38, "running_var")),
    ("a negative variance", Refusal.NEGATIVE_VARIANCE, values(-1e-6, "running_var")),
    ("a change of 20 norms", Refusal.NORM, scaled(-19.0)),
]  # fmt: skip


# Payloads that unfold to something else


def folded(data: bytes) -> bytes:
    return zstandard.compress(data)


def unfolded(tensors: Tensors) -> bytes:
    """What an honest ``int8_delta`` payload holds, of an update that changes nothing."""
    parts = []
    for name in sorted(tensors):
        values = tensors[name]
        if values.ndim > 1:
            parts.append(bytes(4 * len(values)) + bytes(values.size))
        else:
            parts.append(values.tobytes())
    return b"".join(parts)


def scale_of(value: float) -> Fold:
    """The first matrix's first scale."""

    def change(tensors: Tensors) -> bytes:
        names = sorted(tensors)
        first = next(i for i, name in enumerate(names) if tensors[name].ndim > 1)
        at = sum(tensors[name].nbytes for name in names[:first])
        payload = bytearray(unfolded(tensors))
        payload[at : at + 4] = np.float32(value).tobytes()
        number = at + 4 * len(tensors[names[first]])
        payload[number : number + 1] = b"\x7f"
        return folded(bytes(payload))

    return change


FOLDS: list[tuple[str, Refusal, Fold]] = [
    ("a bomb", Refusal.ENCODING, lambda tensors: folded(bytes(512 * MIB))),
    ("no zstd at all", Refusal.ENCODING, lambda tensors: bytes(1000)),
    ("zstd cut off", Refusal.ENCODING, lambda tensors: folded(unfolded(tensors))[:-9]),
    ("a byte too few", Refusal.ENCODING, lambda tensors: folded(unfolded(tensors)[:-1])),
    ("a byte too many", Refusal.ENCODING, lambda tensors: folded(unfolded(tensors) + b"1")),
    ("a scale of NaN", Refusal.NOT_FINITE, scale_of(np.nan)),
    ("an infinite scale", Refusal.NOT_FINITE, scale_of(np.inf)),
    ("a scale of 1e38", Refusal.NOT_FINITE, scale_of(1e38)),
    ("a scale of 1e7", Refusal.NORM, scale_of(1e7)),
]  # fmt: skip


async def refused(sending: Awaitable[object]) -> str:
    """The typed reason of what is awaited; what came instead otherwise."""
    try:
        await sending
    except UpdateRefused as error:
        return error.reason.value
    return "accepted"


async def announce(rogue: Rogue, task: TrainTask, tensors: Tensors, change: Announce) -> str:
    request = announcement(task, tensors)
    change(request)
    return await refused(rogue.open(task, request))


async def send(rogue: Rogue, task: TrainTask, tensors: Tensors, change: Break) -> str:
    """Send chunks that are not as they should be, of an upload that begins anew."""
    fresh = {**tensors, min(tensors): tensors[min(tensors)] + np.float32(fresh_step())}
    opening = await rogue.open(task, announcement(task, fresh))
    assert opening.offset == 0
    return await refused(rogue.send(opening.upload_id, change(chunks_of(payload_of(fresh)))))


_steps = iter(range(1, 1000))


def fresh_step() -> float:
    """A change of its own for each upload: the same one would go on where the last broke off."""
    return next(_steps) * 1e-4


async def fold(rogue: Rogue, task: TrainTask, tensors: Tensors, made: Fold) -> str:
    """Announce and send a payload of differences, compressed or not."""
    payload = made(tensors)
    request = announcement(task, tensors)
    request.manifest.encoding = tensors_pb2.ENCODING_INT8_DELTA_ZSTD
    request.manifest.byte_count = len(payload)
    request.manifest.payload_digest = blake3.blake3(payload).hexdigest()
    opening = await rogue.open(task, request)
    return await refused(rogue.send(opening.upload_id, chunks_of(payload)))


async def tried(rogue: Rogue, quiet: Rogue) -> dict[str, str]:
    """What became of every row."""
    found: dict[str, str] = {}
    async with quiet.connected(), rogue.connected():
        task = await rogue.next_round(0)
        tensors = await rogue.base(task)
        for what, _, lie in LIES:
            found[what] = await announce(rogue, task, tensors, lie)
        for what, _, broken in BREAKS:
            found[what] = await send(rogue, task, tensors, broken)
        for what, _, spoil in CONTENT:
            spoilt = spoil(tensors)
            opening = await rogue.open(task, announcement(task, spoilt))
            sending = rogue.send(opening.upload_id, chunks_of(payload_of(spoilt)))
            found[what] = await refused(sending)
        for what, _, made in FOLDS:
            found[what] = await fold(rogue, task, tensors, made)
        found["a message above 4 MiB"] = await too_large(rogue, task, tensors)
        found["an honest update"] = await send(rogue, task, tensors, lambda chunks: chunks)
        found["another after it"] = str((await rogue.open(task, announcement(task, tensors))).state)
    return found


async def too_large(rogue: Rogue, task: TrainTask, tensors: Tensors) -> str:
    """gRPC's own limit, before any of our code sees the message."""
    request = announcement(task, tensors)
    more(1_000_000, "zz")(request)
    try:
        await rogue.stub.OpenUpload(request)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "accepted"


def test_every_row_is_refused_for_its_reason_and_an_honest_update_still_counts(
    found: Founding, tmp_path: Path
) -> None:
    local = found()
    rogue, quiet = (Rogue(local, silo) for silo in local.silos)
    for silo in (rogue, quiet):
        asyncio.run(silo.enrol())
    local.start_run(
        write_plan(
            tmp_path / "plan.toml",
            rounds=1,
            backbone={"name": "mobilenet_v3_small", "height_px": 64, "width_px": 32},
            quorum={"min_silos": 2, "deadline_s": 600.0, "phase_deadline_s": 60.0},
            wire={"upload": "int8_delta_zstd"},
        )
    )
    rows = [(what, reason.value) for what, reason, _ in [*LIES, *BREAKS, *CONTENT, *FOLDS]]
    expected = dict(rows)
    assert len(expected) == len(rows) > 50
    assert asyncio.run(tried(rogue, quiet)) == {
        **expected,
        "a message above 4 MiB": "RESOURCE_EXHAUSTED",
        "an honest update": "accepted",
        "another after it": str(pb.UPLOAD_STATE_ACCEPTED),
    }
