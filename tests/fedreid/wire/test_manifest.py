"""Does a manifest from outside bound everything that follows it?"""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fedreid.errors import FedreidError, Refusal, UpdateRefused
from fedreid.limits import MANIFEST_TENSORS, MESSAGE_BYTES, MODEL_BYTES, TENSOR_DIMENSIONS
from fedreid.names import Digest
from fedreid.plan import Encoding
from fedreid.v1 import tensors_pb2
from fedreid.wire.encoding import payload_bytes
from fedreid.wire.manifest import ENCODINGS, Manifest, encoding_from_wire, encoding_to_wire
from fedreid.wire.tensors import Layout, TensorSpec

DIGEST = Digest("0" * 64)


def manifest(*specs: TensorSpec, encoding: Encoding = "fp32") -> Manifest:
    layout = Layout.of(specs)
    size = payload_bytes(layout, encoding)
    return Manifest(layout=layout, encoding=encoding, byte_count=size, payload_digest=DIGEST)


def message(
    *tensors: tuple[str, list[int]],
    byte_count: int = 0,
    encoding: tensors_pb2.Encoding.ValueType = tensors_pb2.ENCODING_FP32,
    digest: str = DIGEST,
) -> tensors_pb2.Manifest:
    return tensors_pb2.Manifest(
        tensors=[tensors_pb2.TensorSpec(name=name, shape=shape) for name, shape in tensors],
        encoding=encoding,
        byte_count=byte_count,
        payload_digest=digest,
    )


def refusal(refused: tensors_pb2.Manifest) -> Refusal:
    with pytest.raises(UpdateRefused) as error:
        Manifest.from_wire(refused)
    return error.value.reason


@given(
    some.dictionaries(
        some.text(min_size=1, max_size=8),
        some.lists(some.integers(0, 50), max_size=4).map(tuple),
        max_size=8,
    ),
    some.sampled_from(ENCODINGS),
)
def test_a_manifest_comes_back_from_the_wire_as_it_was(
    shapes: dict[str, tuple[int, ...]], encoding: Encoding
) -> None:
    specs = [TensorSpec(name, shape) for name, shape in shapes.items()]
    sent = manifest(*specs, encoding=encoding)
    received = tensors_pb2.Manifest.FromString(sent.to_wire().SerializeToString())
    assert Manifest.from_wire(received) == sent


def test_unsorted_names_are_refused() -> None:
    assert refusal(message(("b", [1]), ("a", [1]), byte_count=8)) is Refusal.TENSOR_NAMES


def test_a_name_twice_is_refused_with_equal_and_with_other_shapes() -> None:
    assert refusal(message(("a", [1]), ("a", [1]), byte_count=8)) is Refusal.TENSOR_NAMES
    assert refusal(message(("a", [1]), ("a", [2]), byte_count=12)) is Refusal.TENSOR_NAMES


@pytest.mark.parametrize("name", ["", "n" * 257, "ß" * 129])
def test_a_name_that_is_empty_or_too_long_is_refused(name: str) -> None:
    assert refusal(message((name, [1]), byte_count=4)) is Refusal.TENSOR_NAMES


@pytest.mark.parametrize(
    "shape",
    [
        [2**32, 2**32],
        [2**63, 2],
        [2**64 - 1] * TENSOR_DIMENSIONS,
        [MODEL_BYTES // 4 + 1],
        [1] * (TENSOR_DIMENSIONS + 1),
    ],
)
@pytest.mark.parametrize("byte_count", [0, 4, 2**64 - 1])
def test_a_shape_whose_product_overflows_is_refused_whatever_size_is_stated(
    shape: list[int], byte_count: int
) -> None:
    assert refusal(message(("a", shape), byte_count=byte_count)) is Refusal.TENSOR_SHAPE


def test_shapes_that_overflow_only_together_are_refused() -> None:
    half = MODEL_BYTES // 8
    both = message(("a", [half]), ("b", [half + 1]), byte_count=MODEL_BYTES + 4)
    assert refusal(both) is Refusal.TENSOR_SHAPE


def test_a_zero_among_huge_sizes_makes_an_empty_tensor() -> None:
    taken = Manifest.from_wire(message(("a", [2**63, 0, 2**63])))
    assert taken.byte_count == 0


@pytest.mark.parametrize("byte_count", [0, 11, 13, 24, 2**64 - 1])
def test_a_byte_count_that_does_not_follow_from_the_shapes_is_refused(byte_count: int) -> None:
    assert refusal(message(("a", [3]), byte_count=byte_count)) is Refusal.BYTE_COUNT


def test_the_byte_count_is_the_encodings_own() -> None:
    half = message(("a", [3]), byte_count=6, encoding=tensors_pb2.ENCODING_BF16)
    assert Manifest.from_wire(half).encoding == "bf16"
    half.byte_count = 12
    assert refusal(half) is Refusal.BYTE_COUNT
    statistic = message(("a.running_var", [3]), byte_count=12, encoding=tensors_pb2.ENCODING_BF16)
    assert Manifest.from_wire(statistic).byte_count == 12


def test_differences_have_a_scale_for_each_channel_and_a_byte_for_each_value() -> None:
    delta = tensors_pb2.ENCODING_INT8_DELTA
    tensors = (("a", [4]), ("a.running_var", [2, 2]), ("b", [5, 3, 2]), ("c", [5, 0]))
    sent = message(*tensors, byte_count=4 * 4 + 4 * 4 + (5 * 4 + 30), encoding=delta)
    assert Manifest.from_wire(sent).encoding == "int8_delta"
    for lie in (0, sent.byte_count - 1, sent.byte_count + 1, 4 * 38):
        sent.byte_count = lie
        assert refusal(sent) is Refusal.BYTE_COUNT


def test_a_compressed_payload_is_bounded_by_what_it_unfolds_to() -> None:
    tensors = (("a", [4]), ("b", [512, 1024]))
    plain = 4 * 4 + 512 * 4 + 512 * 1024
    sent = message(*tensors, encoding=tensors_pb2.ENCODING_INT8_DELTA_ZSTD)
    for possible in (1, 1000, plain, plain + plain // 256):
        sent.byte_count = possible
        assert Manifest.from_wire(sent).byte_count == possible
    for lie in (0, plain + plain // 200, 4 * 512 * 1024, 2**64 - 1):
        sent.byte_count = lie
        assert refusal(sent) is Refusal.BYTE_COUNT


@pytest.mark.parametrize("value", [0, 5, 99, -1, 2**31 - 1])
def test_an_encoding_that_is_unknown_or_not_set_is_refused(value: int) -> None:
    sent = message(("a", [1]), byte_count=4)
    sent.encoding = value  # type: ignore[assignment]  # what a newer program may send
    assert refusal(sent) is Refusal.ENCODING


@pytest.mark.parametrize(
    "digest", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "0" * 63 + "\n", "../" * 22]
)
def test_a_payload_digest_that_is_none_is_refused(digest: str) -> None:
    assert refusal(message(("a", [1]), byte_count=4, digest=digest)) is Refusal.DIGEST


def test_a_million_tensors_are_refused_before_any_is_looked_at() -> None:
    sent = tensors_pb2.Manifest(encoding=tensors_pb2.ENCODING_FP32)
    spec = tensors_pb2.TensorSpec(name="a")
    for _ in range(20):
        sent.tensors.add().CopyFrom(spec)
    for _ in range(16):
        sent.MergeFrom(sent.FromString(sent.SerializeToString()))
    assert len(sent.tensors) > 1_000_000
    began = time.process_time()
    assert refusal(sent) is Refusal.MANIFEST
    assert time.process_time() - began < 0.1


def test_as_many_tensors_as_are_allowed_fit_a_message() -> None:
    # 60 letters: longer than any name of ResNet-152's state
    specs = [TensorSpec(f"{i:060d}", (512, 512, 3, 3)) for i in range(MANIFEST_TENSORS)]
    wire = tensors_pb2.Manifest(
        tensors=[tensors_pb2.TensorSpec(name=s.name, shape=s.shape) for s in specs]
    )
    assert wire.ByteSize() < MESSAGE_BYTES


def test_a_manifest_without_tensors_is_an_empty_payload() -> None:
    assert Manifest.from_wire(message()).layout.specs == ()


def test_encodings_map_one_to_one() -> None:
    for encoding in ENCODINGS:
        assert encoding_from_wire(encoding_to_wire(encoding)) == encoding
    known = {value.number for value in tensors_pb2.Encoding.DESCRIPTOR.values} - {0}
    assert {encoding_to_wire(encoding) for encoding in ENCODINGS} == known


@given(some.binary(max_size=300))
def test_any_bytes_that_parse_as_a_manifest_are_taken_or_refused(data: bytes) -> None:
    try:
        parsed = tensors_pb2.Manifest.FromString(data)
    except Exception:  # protobuf's own error, which gRPC answers
        return
    try:
        taken = Manifest.from_wire(parsed)
    except FedreidError as error:
        assert isinstance(error, UpdateRefused)
    else:
        assert taken.byte_count <= MODEL_BYTES
