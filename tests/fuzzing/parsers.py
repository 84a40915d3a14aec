"""What reads bytes from outside, and what may it answer? Each parser with good examples.

A reader either takes the bytes or raises an error of our tree of the kinds named here; what it
has taken must keep the promises that it makes to the code behind it.
"""

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import blake3
import google_crc32c
import numpy as np
import zstandard
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import DecodeError, Message

from coordinator.rounds.validation import check_manifest, check_values
from coordinator.service import _announcement
from fedreid.contract import EvaluateTask, Release, ReleasePayload, TrainTask, WaitTask
from fedreid.errors import (
    FedreidError,
    StorageError,
    TokenRefused,
    TrustError,
    UpdateRefused,
    UsageError,
)
from fedreid.limits import CHUNK_BYTES, DISTANCE_RANGE
from fedreid.names import Digest, Role, RoundNumber, RunName, SiloName, is_digest
from fedreid.pki import tokens
from fedreid.pki.certificates import holder_of, make_request, new_key, requested_key
from fedreid.plan import BackbonePlan, TrainingPlan, ValidationPlan, parse_plan
from fedreid.v1 import federation_pb2 as pb
from fedreid.v1 import tensors_pb2
from fedreid.wire.encoding import decode, is_compressed, payload_bytes
from fedreid.wire.manifest import ENCODINGS, Manifest
from fedreid.wire.messages import (
    evaluation_from_wire,
    release_from_wire,
    release_to_wire,
    task_from_wire,
    task_to_wire,
)
from fedreid.wire.stream import PartialFile
from fedreid.wire.tensors import Layout, TensorFile, TensorSpec, save_tensors
from tests.fuzzing.mutations import Mutator
from tests.parties import Federation

TENSORS = {
    "bn.running_mean": np.zeros(4, dtype=np.float32),
    "bn.running_var": np.ones(4, dtype=np.float32),
    "bn.weight": np.ones(4, dtype=np.float32),
    "bn.bias": np.zeros(4, dtype=np.float32),
    "conv.weight": np.linspace(-1, 1, 4 * 3 * 9, dtype=np.float32).reshape(4, 3, 3, 3),
    "neck.bias": np.full(16, 0.5, dtype=np.float32),
}
LAYOUT = Layout.of(TensorSpec(name, values.shape) for name, values in TENSORS.items())
PAYLOAD = b"".join(TENSORS[name].tobytes() for name in LAYOUT.names)
DIGEST = Digest("ab" * 32)
SILO = SiloName("north")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parser:
    """Something that reads bytes from outside."""

    mutate: Callable[[Mutator], bytes]
    read: Callable[[bytes], None]
    """Reads, and asserts what it promises."""
    refusals: tuple[type[Exception], ...]


def announcement() -> pb.OpenUploadRequest:
    """An honest announcement of the tensors."""
    manifest = Manifest(
        layout=LAYOUT,
        encoding="fp32",
        byte_count=len(PAYLOAD),
        payload_digest=Digest(blake3.blake3(PAYLOAD).hexdigest()),
    )
    return pb.OpenUploadRequest(
        run="spring",
        round=1,
        base_digest=DIGEST,
        manifest=manifest.to_wire(),
        report=pb.UpdateReport(num_images=100, cosine_distance=0.5, train_loss=1.0, num_steps=4),
    )


def _read_announcement(data: bytes) -> None:
    told = _announcement(SILO, pb.OpenUploadRequest.FromString(data))
    check_manifest(told.manifest, LAYOUT, "pooled")
    assert told.manifest.layout == LAYOUT
    assert told.manifest.byte_count == payload_bytes(LAYOUT, told.manifest.encoding)
    assert is_digest(told.manifest.payload_digest)
    low, high = DISTANCE_RANGE
    assert low <= told.report.cosine_distance <= high and math.isfinite(told.report.train_loss)
    assert told.report.num_images > 0 and told.report.num_steps > 0
    assert len(told.upload_id) == 32


def _tasks() -> list[Message]:
    train = TrainTask(
        run=RunName("spring"), round=RoundNumber(1), base_digest=DIGEST, seed=7,
        backbone=BackbonePlan(), training=TrainingPlan(), learning_rate_factor=1.0, bn="pooled",
        upload_encoding="fp32", download_encoding="bf16", evaluate=True, standalone=False,
        remaining_s=60.0,
    )  # fmt: skip
    evaluate = EvaluateTask(
        run=RunName("spring"), round=RoundNumber(1), model_digest=DIGEST, backbone=BackbonePlan(),
        bn="local", download_encoding="fp32", threads=1,
    )  # fmt: skip
    return [task_to_wire(task) for task in (train, evaluate, WaitTask(reason="no run"))]


def _read_task(data: bytes) -> None:
    task = task_from_wire(pb.NextTaskResponse.FromString(data))
    if isinstance(task, TrainTask):
        assert is_digest(task.base_digest) and 0 <= task.learning_rate_factor < math.inf
        assert math.isfinite(task.training.learning_rate) and 32 <= task.backbone.height_px <= 1024
    elif isinstance(task, EvaluateTask):
        assert is_digest(task.model_digest)


def _read_evaluation(data: bytes) -> None:
    result = evaluation_from_wire(pb.Evaluation.FromString(data))
    assert all(0 <= ratio <= 1 for ratio in (result.rank1, result.rank5, result.map, result.minp))


def _releases() -> list[Message]:
    payload = ReleasePayload(encoding="fp32", payload_digest=DIGEST, byte_count=100)
    release = Release(
        federation="harbour", run=RunName("spring"), round=RoundNumber(1), version=2,
        model_digest=DIGEST, base_digest=DIGEST, layout_digest=DIGEST, payloads=(payload,),
    )  # fmt: skip
    return [release_to_wire(release)]


def _read_release(data: bytes) -> None:
    release = release_from_wire(pb.Release.FromString(data))
    assert all(payload.encoding in ENCODINGS for payload in release.payloads)


def _chunks() -> list[Message]:
    third = len(PAYLOAD) // 3
    return [
        tensors_pb2.Chunk(offset=at, data=data, crc32c=google_crc32c.value(data))
        for at in range(0, len(PAYLOAD), third)
        if (data := PAYLOAD[at : at + third])
    ]


def _mutated_chunk(mutator: Mutator) -> bytes:
    """A changed chunk, now and then with the checksum of what it now holds, or a good one."""
    if mutator.random.random() < 0.1:
        return mutator.random.choice(_chunks()).SerializeToString()
    data = mutator.message_of(_chunks())
    if mutator.random.random() < 0.5:
        return data
    try:
        chunk = tensors_pb2.Chunk.FromString(data)
    except DecodeError:
        return data
    chunk.crc32c = google_crc32c.value(chunk.data)
    return chunk.SerializeToString()


_STARTS = set(range(0, len(PAYLOAD), len(PAYLOAD) // 3))
"""Where one of the good chunks begins."""


def _chunk_reader(folder: Path) -> Callable[[bytes], None]:
    """One upload that goes on and on: what is taken must be the payload's next bytes."""
    path = folder / "upload.part"

    def read(data: bytes) -> None:
        chunk = tensors_pb2.Chunk.FromString(data)
        with PartialFile(path, prefix=b"head", size=len(PAYLOAD)) as file:
            before = file.offset
            try:
                file.write(chunk)
            finally:
                assert file.offset <= len(PAYLOAD)
                # How much has come is told by the last byte that is not zero.
                assert not path.read_bytes()[len(b"head") + file.offset :].strip(b"\0")
            assert chunk.offset == before and 0 < len(chunk.data) <= CHUNK_BYTES
            assert google_crc32c.value(chunk.data) == chunk.crc32c
            if file.offset not in _STARTS:
                file.discard()  # no good chunk would ever fit again

    return read


def _value_reader(folder: Path) -> Callable[[bytes], None]:
    """Payloads of the right length with any values in them, as they come after the digest."""
    base = folder / "base.safetensors"
    save_tensors(base, TENSORS)
    ready = folder / "ready.safetensors"

    def read(data: bytes) -> None:
        encoding = ENCODINGS[len(data) % len(ENCODINGS)]
        size = payload_bytes(LAYOUT, encoding)
        payload = data[:size].ljust(size, b"\0")
        if is_compressed(encoding):  # else hardly any would come as far as the values
            plain = payload_bytes(LAYOUT, "int8_delta")
            payload = data[:size] if len(data) % 8 > 4 else zstandard.compress(payload[:plain])
        with ready.open("wb") as stream, TensorFile(base) as before:
            decode(io.BytesIO(payload), LAYOUT, encoding, stream, before)
        with TensorFile(ready) as update, TensorFile(base) as before:
            check_values(update, before, ValidationPlan())
            values = update.read_all()
        assert all(np.isfinite(tensor).all() for tensor in values.values())
        assert (values["bn.running_var"] >= 0).all()
        largest = max(float(np.abs(tensor).max()) for tensor in values.values())
        assert largest <= ValidationPlan().max_absolute_value

    return read


def _file_reader(folder: Path) -> Callable[[bytes], None]:
    path = folder / "model.safetensors"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        with TensorFile(path) as file:
            tensors = file.read_all()
        assert sum(tensor.nbytes for tensor in tensors.values()) <= len(data)

    return read


def _token_text() -> bytes:
    federation = Federation.founded(now_s=1_900_000_000.0)
    leaf = federation.leaf(Role.BOOTSTRAP, "north")
    token = tokens.JoinToken(
        silo="north", coordinator="localhost:443", secret=tokens.new_secret(), expires_at_s=1.0,
        bootstrap_key_pem=leaf.key_pem, bootstrap_certificate_pem=leaf.certificate_pem,
        authorities_pem=leaf.authorities_pem,
    )  # fmt: skip
    return token.encode().encode()


def _mutated_token(good: bytes) -> Callable[[Mutator], bytes]:
    """Tokens changed as they are, and changed within under a checksum that fits."""
    body = good.decode().removeprefix(tokens.PREFIX).rpartition(".")[0]
    raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))

    def mutate(mutator: Mutator) -> bytes:
        if mutator.random.random() < 0.3:
            return mutator.bytes_of([good])
        changed = base64.urlsafe_b64encode(mutator.bytes_of([raw])).decode().rstrip("=")
        return f"{tokens.PREFIX}{changed}.{tokens._checksum(changed)}".encode()

    return mutate


def _read_token(data: bytes) -> None:
    token = tokens.decode(data.decode("ascii", "replace"))
    assert isinstance(token.secret, str) and "secret" not in repr(token)


def _read_certificate(data: bytes) -> None:
    holder = holder_of(data)
    assert holder.principal.uri.startswith("spiffe://")


def _read_request(data: bytes) -> None:
    assert requested_key(data).curve.name == "secp256r1"


def _read_plan(data: bytes) -> None:
    plan = parse_plan(data.decode("utf-8", "replace"))
    assert plan.rounds >= 1 and math.isfinite(plan.quorum.deadline_s)


def _mutated_pem(good: bytes) -> Callable[[Mutator], bytes]:
    der = x509.load_pem_x509_certificate(good).public_bytes(Encoding.DER)

    def mutate(mutator: Mutator) -> bytes:
        body = base64.encodebytes(mutator.bytes_of([der]))
        return b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----\n"

    return mutate


PLAN = b"""
name = "spring"
rounds = 12
[backbone]
name = "resnet18"
height_px = 64
[training]
recipe = "bot"
learning_rate = 0.05
[aggregation]
weighting = "blend"
[quorum]
min_silos = 2
deadline_s = 60.0
[wire]
upload = "bf16"
"""


def _of_bytes(good: Sequence[bytes]) -> Callable[[Mutator], bytes]:
    return lambda mutator: mutator.bytes_of(good)


def _of_messages(good: Sequence[Message]) -> Callable[[Mutator], bytes]:
    return lambda mutator: mutator.message_of(good)


def parsers(folder: Path) -> dict[str, Parser]:
    """Everything that reads bytes from outside."""
    token = _token_text()
    leaf = Federation.founded(now_s=1_900_000_000.0).leaf(Role.SILO, "north").certificate_pem
    model = folder / "good.safetensors"
    save_tensors(model, TENSORS)
    halves = PAYLOAD[: payload_bytes(LAYOUT, "bf16")]
    evaluation = pb.Evaluation(model=pb.MODEL_KIND_GLOBAL, rank1=0.5, map=0.4, queries=10)
    return {
        "announcement": Parser(
            mutate=_of_messages([announcement()]),
            read=_read_announcement,
            refusals=(UpdateRefused, DecodeError),
        ),
        "chunk": Parser(
            mutate=_mutated_chunk,
            read=_chunk_reader(folder),
            refusals=(UpdateRefused, DecodeError),
        ),
        "values": Parser(
            mutate=_of_bytes([PAYLOAD, PAYLOAD + b"\0", halves, halves + b"\0"]),
            read=_value_reader(folder),
            refusals=(UpdateRefused,),
        ),
        "model file": Parser(
            mutate=_of_bytes([model.read_bytes()]),
            read=_file_reader(folder),
            refusals=(StorageError,),
        ),
        "evaluation": Parser(
            mutate=_of_messages([evaluation]),
            read=_read_evaluation,
            refusals=(UpdateRefused, DecodeError),
        ),
        "task": Parser(
            mutate=_of_messages(_tasks()),
            read=_read_task,
            refusals=(FedreidError, DecodeError),
        ),
        "release": Parser(
            mutate=_of_messages(_releases()),
            read=_read_release,
            refusals=(FedreidError, DecodeError),
        ),
        "token": Parser(mutate=_mutated_token(token), read=_read_token, refusals=(TokenRefused,)),
        "certificate": Parser(
            mutate=_mutated_pem(leaf), read=_read_certificate, refusals=(TrustError,)
        ),
        "certificate request": Parser(
            mutate=_of_bytes([make_request(new_key())]),
            read=_read_request,
            refusals=(TrustError,),
        ),
        "plan": Parser(
            mutate=_of_bytes([PLAN]),
            read=_read_plan,
            refusals=(UsageError,),
        ),
    }
