"""Does who holds a round's base get the next model from differences, and who does not in fp32?"""

import asyncio
import io
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast

import blake3
import google_crc32c
import numpy as np
import pytest

from coordinator.learning.jobs import EncodeJob
from coordinator.learning.worker import write_payload
from fedreid.audit import AuditLog
from fedreid.clock import SystemClock
from fedreid.contract import Release, ReleasePayload
from fedreid.errors import SignatureRefused
from fedreid.files import digest_of
from fedreid.names import Digest, RoundNumber, RunName
from fedreid.pki.signing import new_signing_key_pem, public_bytes, sign, signing_key
from fedreid.plan import Encoding
from fedreid.v1 import federation_pb2 as pb
from fedreid.v1 import tensors_pb2
from fedreid.wire.encoding import encode
from fedreid.wire.manifest import Manifest, encoding_from_wire
from fedreid.wire.messages import release_to_wire
from fedreid.wire.tensors import TensorFile, layout_of, save_tensors
from silo_agent.config import Folders, Membership
from silo_agent.held import Held
from silo_agent.models import ModelCache

KEY = signing_key(new_signing_key_pem())
MEMBERSHIP = Membership(federation="harbour", silo="north", model_key=public_bytes(KEY))
DELTAS: tuple[Encoding, ...] = ("int8_delta", "int8_delta_zstd")


@dataclass
class Published:
    """A model, its release, and the payloads in which it is there."""

    path: Path
    release: Release
    payloads: dict[Encoding, bytes]


@dataclass
class FakeCoordinator:
    """A stub that serves what is on its shelf, as the real one does."""

    shelf: dict[str, Published] = field(default_factory=dict)
    asked: list[tuple[str, Encoding]] = field(default_factory=list)
    """Of every request, the model's digest and the encoding."""
    cancelled: int = 0

    def FetchModel(self, request: pb.FetchModelRequest) -> "Call":  # noqa: N802
        """Release, then chunks if the encoding is there."""
        encoding = encoding_from_wire(request.encoding)
        self.asked.append((request.model_digest, encoding))
        return Call(self, self._parts(self.shelf[request.model_digest], encoding))

    async def _parts(
        self, model: Published, encoding: Encoding
    ) -> AsyncIterator[pb.FetchModelResponse]:
        given: Encoding = encoding if encoding in model.payloads else "fp32"
        payload = model.payloads[given]
        statement = release_to_wire(model.release).SerializeToString(deterministic=True)
        manifest = Manifest(
            layout=layout_of(model.path),
            encoding=given,
            byte_count=len(payload),
            payload_digest=Digest(blake3.blake3(payload).hexdigest()),
        )
        yield pb.FetchModelResponse(
            release=pb.SignedRelease(
                release=statement, signature=sign(KEY, statement), manifest=manifest.to_wire()
            )
        )
        if given == encoding:
            crc = google_crc32c.value(payload)
            chunk = tensors_pb2.Chunk(offset=0, data=payload, crc32c=crc)
            yield pb.FetchModelResponse(chunk=chunk)

    def publish(self, path: Path, version: int, base: str, *, encoding: Encoding) -> str:
        """Put a model on the shelf, in fp32 and in the payload that lies beside it."""
        payloads: dict[Encoding, bytes] = {"fp32": path.read_bytes()[_header(path) :]}
        beside = path.with_suffix(f".{encoding}")
        if beside.exists():
            payloads[encoding] = beside.read_bytes()
        stated = tuple(
            ReleasePayload(
                encoding=each,
                payload_digest=Digest(blake3.blake3(data).hexdigest()),
                byte_count=len(data),
            )
            for each, data in payloads.items()
        )
        release = Release(
            federation="harbour", run=RunName("spring"), round=RoundNumber(version - 1),
            version=version, model_digest=digest_of(path), base_digest=Digest(base),
            layout_digest=layout_of(path).digest(), payloads=stated,
        )  # fmt: skip
        self.shelf[release.model_digest] = Published(path, release, payloads)
        return release.model_digest


@dataclass
class Call:
    """What a stub gives for a stream."""

    coordinator: FakeCoordinator
    parts: AsyncIterator[pb.FetchModelResponse]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> pb.FetchModelResponse:
        return await anext(self.parts)

    def cancel(self) -> None:
        """Count it."""
        self.coordinator.cancelled += 1


def _header(path: Path) -> int:
    with TensorFile(path) as file:
        return file.data_offset


def model(folder: Path, seed: int) -> Path:
    draws = np.random.default_rng(seed)
    path = folder / f"model-{seed}.safetensors"
    save_tensors(
        path,
        {
            "a.weight": draws.normal(size=(40, 80)).astype(np.float32),
            "bn.running_var": draws.uniform(size=5).astype(np.float32),
        },
    )
    return path


@dataclass
class Run:
    """Two models of a run: the start weights, and what the first round made of them."""

    coordinator: FakeCoordinator
    first: str
    second: str
    encoding: Encoding


@pytest.fixture(params=DELTAS)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """The second model is there as differences from the first."""
    encoding: Encoding = request.param
    coordinator = FakeCoordinator()
    start, made = model(tmp_path, 0), model(tmp_path, 1)
    out = str(made.with_suffix(f".{encoding}"))
    job = EncodeJob(model=str(made), encoding=encoding, base=str(start), out=out)
    write_payload(job, lambda progress: None)
    first = coordinator.publish(start, 1, "", encoding=encoding)
    second = coordinator.publish(made, 2, first, encoding=encoding)
    return Run(coordinator, first, second, encoding)


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    """An empty cache."""
    folders = Folders(tmp_path / "agent")
    folders.root.mkdir()
    return ModelCache(folders, MEMBERSHIP, AuditLog(folders.audit, SystemClock()))


def fetched(cache: ModelCache, run: Run, digest: str) -> Held:
    async def ensure() -> Held:
        stub = cast(Any, run.coordinator)
        return await cache.ensure(stub, "a:1", Digest(digest), run.encoding)

    return asyncio.run(ensure())


def test_who_holds_the_base_gets_the_published_bits_from_a_quarter_of_the_bytes(
    cache: ModelCache, run: Run
) -> None:
    fetched(cache, run, run.first)
    held = fetched(cache, run, run.second)
    published = run.coordinator.shelf[run.second]
    assert Path(held.path).read_bytes() == published.path.read_bytes()
    assert held.file_digest == held.digest == run.second
    assert len(published.payloads[run.encoding]) < 0.3 * len(published.payloads["fp32"])
    assert run.coordinator.asked[-1] == (run.second, run.encoding)
    asked = len(run.coordinator.asked)
    assert fetched(cache, run, run.second) == held
    assert len(run.coordinator.asked) == asked


def test_start_weights_are_differences_from_nothing_and_come_in_fp32(
    cache: ModelCache, run: Run
) -> None:
    held = fetched(cache, run, run.first)
    assert held.file_digest == run.first
    assert run.coordinator.asked == [(run.first, run.encoding), (run.first, "fp32")]


def test_a_newcomer_takes_fp32_and_goes_on_from_it(cache: ModelCache, run: Run) -> None:
    held = fetched(cache, run, run.second)
    assert held.file_digest == run.second
    assert run.coordinator.asked == [(run.second, run.encoding), (run.second, "fp32")]
    assert run.coordinator.cancelled == 1  # before a byte of the differences was taken


def test_a_base_that_the_disk_has_damaged_is_no_base(cache: ModelCache, run: Run) -> None:
    path = Path(fetched(cache, run, run.first).path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert fetched(cache, run, run.second).file_digest == run.second
    assert run.coordinator.asked[-1] == (run.second, "fp32")


def test_a_base_that_was_rounded_on_its_way_is_no_base(cache: ModelCache, run: Run) -> None:
    start = run.coordinator.shelf[run.first]
    out = io.BytesIO()
    with TensorFile(start.path) as file:
        encode(file, file.layout, "bf16", out)
    start.path.with_suffix(".bf16").write_bytes(out.getvalue())
    run.coordinator.publish(start.path, 1, "", encoding="bf16")
    bf16 = Run(run.coordinator, run.first, run.second, "bf16")
    assert fetched(cache, bf16, run.first).file_digest != run.first
    assert fetched(cache, run, run.second).file_digest == run.second
    assert run.coordinator.asked[-1] == (run.second, "fp32")


def test_differences_that_do_not_make_the_signed_model_are_refused(
    cache: ModelCache, run: Run, tmp_path: Path
) -> None:
    other = model(tmp_path, 2)
    out = str(other.with_suffix(f".{run.encoding}"))
    base = str(run.coordinator.shelf[run.first].path)
    job = EncodeJob(model=str(other), encoding=run.encoding, base=base, out=out)
    write_payload(job, lambda progress: None)
    lying = run.coordinator.shelf[run.second].path
    lying.with_suffix(f".{run.encoding}").write_bytes(Path(out).read_bytes())
    run.coordinator.publish(lying, 2, run.first, encoding=run.encoding)
    fetched(cache, run, run.first)
    with pytest.raises(SignatureRefused, match="not the ones that were signed"):
        fetched(cache, run, run.second)
