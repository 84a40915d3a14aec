"""Does each encoding give back what it promises? bf16 is held against its slow twin."""

import io
import math
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from fedreid.limits import MIB
from fedreid.plan import Encoding
from fedreid.wire.encoding import decode, encode, payload_bytes
from fedreid.wire.tensors import FloatArray, Layout, TensorFile, TensorSpec, write_model

floats = some.floats(width=32, allow_nan=True, allow_infinity=True)
bit_patterns = some.integers(0, 2**32 - 1)


def slow_bf16(bits: int) -> int:
    """The slow twin: of the two neighbours with 16 low zero bits, the nearer; of equals, the even.

    IEEE 754's order of bit patterns is the order of magnitudes, so integers decide.
    """
    sign, magnitude = bits & 0x8000_0000, bits & 0x7FFF_FFFF
    if magnitude > 0x7F80_0000:
        return 0x7FC0  # every NaN becomes the one quiet NaN
    below = magnitude >> 16 << 16
    above = below + 0x1_0000
    if magnitude - below < above - magnitude:
        nearest = below
    elif magnitude - below > above - magnitude:
        nearest = above
    else:
        nearest = below if (below >> 16) % 2 == 0 else above
    return (sign | nearest) >> 16


def from_bits(bits: list[int]) -> FloatArray:
    return np.array(bits, dtype="<u4").view(np.float32)


def encoded(folder: Path, tensors: dict[str, FloatArray], encoding: Encoding) -> bytes:
    path = folder / "model.safetensors"
    with path.open("wb") as stream:
        write_model(stream, tensors)
    out = io.BytesIO()
    with TensorFile(path) as file:
        encode(file, file.layout, encoding, out)
    return out.getvalue()


def decoded(folder: Path, payload: bytes, layout: Layout, encoding: Encoding) -> TensorFile:
    path = folder / "decoded.safetensors"
    with path.open("wb") as stream:
        decode(io.BytesIO(payload), layout, encoding, stream)
    return TensorFile(path)


def layout_of(tensors: dict[str, FloatArray]) -> Layout:
    return Layout.of(TensorSpec(name, values.shape) for name, values in tensors.items())


def halves(payload: bytes) -> npt.NDArray[np.uint16]:
    return np.frombuffer(payload, "<u2")


@given(bits=some.lists(bit_patterns, max_size=30))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bf16_rounds_every_bit_pattern_as_the_slow_twin_does(
    tmp_path: Path, bits: list[int]
) -> None:
    payload = encoded(tmp_path, {"w": from_bits(bits)}, "bf16")
    assert halves(payload).tolist() == [slow_bf16(pattern) for pattern in bits]


def test_bf16_rounds_ties_to_the_even_neighbour(tmp_path: Path) -> None:
    ties = [0x3F80_8000, 0x3F81_8000, 0xBF80_8000, 0xBF81_8000, 0x0000_8000, 0x0001_8000]
    payload = encoded(tmp_path, {"w": from_bits(ties)}, "bf16")
    assert halves(payload).tolist() == [0x3F80, 0x3F82, 0xBF80, 0xBF82, 0x0000, 0x0002]


def test_bf16_keeps_infinities_and_signed_zeros_and_turns_no_nan_into_a_number(
    tmp_path: Path,
) -> None:
    bits = [0x7F80_0000, 0xFF80_0000, 0, 0x8000_0000, 0x7F80_0001, 0xFFFF_FFFF, 0x7FFF_FFFF]
    payload = encoded(tmp_path, {"w": from_bits(bits)}, "bf16")
    assert halves(payload)[:4].tolist() == [0x7F80, 0xFF80, 0, 0x8000]
    layout = Layout.of([TensorSpec("w", (len(bits),))])
    with decoded(tmp_path, payload, layout, "bf16") as file:
        assert np.isnan(file.read("w")[4:]).all()


@given(values=some.lists(some.floats(2.0**-126, 1e6, width=32), min_size=1, max_size=30))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bf16_is_off_by_at_most_one_part_in_256(tmp_path: Path, values: list[float]) -> None:
    tensors = {"w": np.array(values, dtype=np.float32)}
    payload = encoded(tmp_path, tensors, "bf16")
    with decoded(tmp_path, payload, layout_of(tensors), "bf16") as file:
        error = np.abs(file.read("w").astype(np.float64) - tensors["w"])
    assert (error <= 2.0**-8 * tensors["w"].astype(np.float64)).all()


@given(values=some.lists(floats, min_size=1, max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_running_statistics_stay_exact_in_bf16(tmp_path: Path, values: list[float]) -> None:
    statistics = np.array(values, dtype=np.float32)
    tensors = {"bn.running_mean": statistics, "bn.running_var": statistics, "bn.weight": statistics}
    payload = encoded(tmp_path, tensors, "bf16")
    with decoded(tmp_path, payload, layout_of(tensors), "bf16") as file:
        assert file.read("bn.running_mean").tobytes() == statistics.tobytes()
        assert file.read("bn.running_var").tobytes() == statistics.tobytes()


@given(bits=some.lists(bit_patterns, max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bf16_of_a_decoded_model_is_the_same_payload(tmp_path: Path, bits: list[int]) -> None:
    tensors = {"w": from_bits(bits), "s.running_var": from_bits(bits)}
    payload = encoded(tmp_path, tensors, "bf16")
    with decoded(tmp_path, payload, layout_of(tensors), "bf16") as file:
        again = io.BytesIO()
        encode(file, file.layout, "bf16", again)
    assert again.getvalue() == payload


@given(bits=some.lists(bit_patterns, max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_fp32_gives_back_the_same_file(tmp_path: Path, bits: list[int]) -> None:
    tensors = {"w": from_bits(bits), "scalar": np.array(1.5, dtype=np.float32)}
    payload = encoded(tmp_path, tensors, "fp32")
    with decoded(tmp_path, payload, layout_of(tensors), "fp32") as file:
        assert file.path.read_bytes() == (tmp_path / "model.safetensors").read_bytes()


@pytest.mark.parametrize("encoding", ["fp32", "bf16"])
def test_payload_bytes_is_what_encode_writes(tmp_path: Path, encoding: Encoding) -> None:
    tensors = {
        "conv.weight": np.ones((3, 5), dtype=np.float32),
        "bn.running_mean": np.ones(7, dtype=np.float32),
        "scalar": np.ones((), dtype=np.float32),
        "empty": np.ones((0, 4), dtype=np.float32),
    }
    payload = encoded(tmp_path, tensors, encoding)
    assert len(payload) == payload_bytes(layout_of(tensors), encoding)
    assert len(payload) == {"fp32": 4 * 23, "bf16": 2 * 16 + 4 * 7}[encoding]


@pytest.mark.parametrize("encoding", ["fp32", "bf16"])
def test_a_tensor_larger_than_a_block_goes_through_whole(
    tmp_path: Path, encoding: Encoding
) -> None:
    elements = MIB // 4 * 2 + 3
    values = np.arange(elements, dtype=np.float32)
    values.view(np.uint32)[:] &= 0xFFFF_0000  # exact in both encodings
    tensors = {"a.running_mean": values, "w": values}
    payload = encoded(tmp_path, tensors, encoding)
    with decoded(tmp_path, payload, layout_of(tensors), encoding) as file:
        assert file.read("w").tobytes() == values.tobytes()
        assert file.read("a.running_mean").tobytes() == values.tobytes()


def test_some_tensors_of_a_file_are_encoded_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as stream:
        write_model(stream, {n: np.full(2, i, np.float32) for i, n in enumerate("abc")})
    out = io.BytesIO()
    with TensorFile(path) as file:
        encode(file, file.layout.only(["a", "c"]), "fp32", out)
    assert struct.unpack("<4f", out.getvalue()) == (0, 0, 2, 2)


def test_values_beyond_the_range_of_bf16_become_infinite_and_are_refused_later(
    tmp_path: Path,
) -> None:
    largest = float(np.finfo(np.float32).max)
    tensors = {"w": np.array([largest], dtype=np.float32)}
    payload = encoded(tmp_path, tensors, "bf16")
    with decoded(tmp_path, payload, layout_of(tensors), "bf16") as file:
        assert math.isinf(file.read("w")[0])
