"""Are differences written as their slow twin says, and put back to the same bits by everybody?

The twin works value by value, with NumPy's float32 scalars for the roundings that are promised.
"""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from hypothesis.extra.numpy import arrays

from fedreid.errors import Refusal, UpdateRefused
from fedreid.limits import MIB, ZSTD_WINDOW_BYTES
from fedreid.plan import Encoding
from fedreid.wire.differences import Difference, quantise, said
from fedreid.wire.encoding import decode, encode, is_payload_size, payload_bytes
from fedreid.wire.tensors import FloatArray, Layout, TensorFile, layout_of, save_tensors

Tensors = dict[str, FloatArray]
DELTAS: tuple[Encoding, ...] = ("int8_delta", "int8_delta_zstd")
SOME_FILES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)

anything = some.floats(width=32, allow_nan=True, allow_infinity=True)
shapes = some.tuples(some.integers(1, 4), some.integers(1, 5))


def slow_channel(change: list[np.float32]) -> tuple[np.float32, list[int]]:
    """The slow twin: scale and numbers of one channel."""
    largest = np.float32(0)
    for value in change:
        if not math.isfinite(value):
            return np.float32(np.nan), [0] * len(change)
        largest = max(largest, abs(value))
    scale = np.float32(largest / np.float32(127))
    if largest < np.float32(127) * np.finfo(np.float32).tiny:
        return np.float32(0), [0] * len(change)
    return scale, [round(float(np.float32(value / scale))) for value in change]  # ties to even


def slow_change(scale: np.float32, number: int) -> np.float32:
    with np.errstate(all="ignore"):
        return np.float32(scale * np.float32(number))


def same_bits(left: FloatArray, right: FloatArray) -> bool:
    """Equal, where a NaN is a NaN."""
    return bool((left.view(np.uint32) == right.view(np.uint32))[~np.isnan(left)].all()) and bool(
        (np.isnan(left) == np.isnan(right)).all()
    )


@given(change_CN=arrays(np.float32, shapes, elements=anything))
def test_changes_become_the_numbers_of_the_slow_twin(change_CN: FloatArray) -> None:
    scales_C, numbers_CN = quantise(change_CN)
    for change, scale, numbers in zip(change_CN, scales_C, numbers_CN, strict=True):
        slow_scale, slow_numbers = slow_channel(list(change))
        assert same_bits(np.array([scale]), np.array([slow_scale]))
        assert numbers.tolist() == slow_numbers
        assert numbers.min() >= -127


@given(scale=anything, numbers=some.lists(some.integers(-128, 127), min_size=1, max_size=9))
def test_numbers_say_what_the_slow_twin_reads_whatever_was_sent(
    scale: float, numbers: list[int]
) -> None:
    scales_C = np.array([scale], np.float32)
    change_CN = said(scales_C, np.array([numbers], np.int8))
    slow = np.array([slow_change(scales_C[0], number) for number in numbers], np.float32)
    assert same_bits(change_CN[0], slow)


def test_the_largest_change_of_a_channel_is_said_as_127_and_halves_go_to_the_even_number() -> None:
    change_CN = np.array([[127, 0.5, 1.5, -2.5, -127], [0, 0, 0, 0, 0]], np.float32)
    scales_C, numbers_CN = quantise(change_CN)
    assert scales_C.tolist() == [1, 0]
    assert numbers_CN.tolist() == [[127, 0, 2, -2, -127], [0] * 5]


def tensors(seed: int) -> Tensors:
    rng = np.random.default_rng(seed)
    return {
        "a.bias": rng.standard_normal(6).astype(np.float32),
        "a.weight": rng.standard_normal((6, 5, 3, 3)).astype(np.float32),
        "bn.running_mean": rng.standard_normal((2, 3)).astype(np.float32),
        "empty": np.empty((4, 0), np.float32),
        "scalar": np.array(1.5, np.float32),
        "z.weight": rng.standard_normal((3, 4)).astype(np.float32),
    }


def written(folder: Path, name: str, values: Tensors) -> Path:
    path = folder / f"{name}.safetensors"
    save_tensors(path, values)
    return path


def encoded(
    model: Path, base: Path, encoding: Encoding, *, before: Path | None = None, after: Path | None
) -> bytes:
    out, left = io.BytesIO(), io.BytesIO()
    with TensorFile(model) as file, TensorFile(base) as from_:
        residual = None if before is None else TensorFile(before)
        encode(
            file, file.layout, encoding, out, Difference(base=from_, before=residual, after=left)
        )
    if after is not None:
        after.write_bytes(left.getvalue())
    return out.getvalue()


def decoded(payload: bytes, layout: Layout, encoding: Encoding, base: Path, out: Path) -> Path:
    with TensorFile(base) as file, out.open("wb") as stream:
        decode(io.BytesIO(payload), layout, encoding, stream, file)
    return out


@pytest.mark.parametrize("encoding", DELTAS)
def test_matrices_come_back_within_half_a_step_and_all_else_to_the_bit(
    tmp_path: Path, encoding: Encoding
) -> None:
    base, model = written(tmp_path, "base", tensors(0)), written(tmp_path, "model", tensors(1))
    payload = encoded(model, base, encoding, after=None)
    out = decoded(payload, layout_of(model), encoding, base, tmp_path / "out.safetensors")
    with TensorFile(out) as file:
        back = file.read_all()
    for name, wanted in tensors(1).items():
        if name not in ("a.weight", "z.weight"):
            assert back[name].tobytes() == wanted.tobytes()
            continue
        change_CN = (wanted - tensors(0)[name]).reshape(len(wanted), -1)
        steps_C = np.abs(change_CN).max(axis=1) / 127
        off_CN = np.abs(back[name] - wanted).reshape(len(wanted), -1)
        assert (off_CN <= 0.501 * steps_C[:, None]).all() and off_CN.max() > 0


@pytest.mark.parametrize("encoding", DELTAS)
def test_the_same_change_gives_the_same_bytes_and_a_size_that_the_layout_allows(
    tmp_path: Path, encoding: Encoding
) -> None:
    base, model = written(tmp_path, "base", tensors(0)), written(tmp_path, "model", tensors(1))
    payload = encoded(model, base, encoding, after=None)
    assert encoded(model, base, encoding, after=None) == payload
    assert is_payload_size(len(payload), layout_of(model), encoding)
    if encoding == "int8_delta":
        assert payload_bytes(layout_of(model), encoding) == len(payload)


@pytest.mark.parametrize("encoding", DELTAS)
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_finite_on_the_other_side(
    tmp_path: Path, encoding: Encoding, broken: float
) -> None:
    values = tensors(1)
    values["a.weight"][2, 0, 0, 0] = broken
    base, model = written(tmp_path, "base", tensors(0)), written(tmp_path, "model", values)
    payload = encoded(model, base, encoding, after=None)
    out = decoded(payload, layout_of(model), encoding, base, tmp_path / "out.safetensors")
    with TensorFile(out) as file:
        finite_C = np.isfinite(file.read("a.weight")).reshape(6, -1).all(axis=1)
    assert finite_C.tolist() == [True, True, False, True, True, True]


def test_with_error_feedback_the_changes_of_many_rounds_add_up_to_within_one_step(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(3)
    base = written(tmp_path, "base", {"w": np.zeros((4, 50), np.float32)})
    before: Path | None = None
    wanted, told = np.zeros((4, 50)), np.zeros((4, 50))
    for number in range(20):
        change = rng.standard_normal((4, 50)).astype(np.float32)
        model = written(tmp_path, "model", {"w": change})
        after = tmp_path / f"residual-{number}.safetensors"
        payload = encoded(model, base, "int8_delta", before=before, after=after)
        out = decoded(payload, layout_of(model), "int8_delta", base, tmp_path / "out.safetensors")
        with TensorFile(out) as file, TensorFile(after) as left:
            told += file.read("w")
            wanted += change
            assert np.allclose(told + left.read("w"), wanted, atol=1e-5)
        before = after
    step = 4.0 / 127
    assert np.abs(told - wanted).max() < step  # without it, some twenty roundings add up


def test_a_residual_of_other_tensors_adds_nothing(tmp_path: Path) -> None:
    base, model = written(tmp_path, "base", tensors(0)), written(tmp_path, "model", tensors(1))
    other = written(tmp_path, "other", {"a.weight": np.ones((6, 5), np.float32)})
    plain = encoded(model, base, "int8_delta", after=None)
    assert encoded(model, base, "int8_delta", before=other, after=None) == plain


def test_channels_of_tensors_larger_than_a_block_go_through_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"narrow": (MIB // 4, 2), "wide": (3, MIB // 4)}
    values = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    zero = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    base, model = written(tmp_path, "base", zero), written(tmp_path, "model", values)
    payload = encoded(model, base, "int8_delta", after=None)
    out = decoded(payload, layout_of(model), "int8_delta", base, tmp_path / "out.safetensors")
    with TensorFile(out) as file:
        for name, wanted in values.items():
            step_C = np.abs(wanted).max(axis=1) / 127
            assert (np.abs(file.read(name) - wanted) <= 0.501 * step_C[:, None]).all()


def compressed(tmp_path: Path) -> tuple[Path, bytes, bytes]:
    """A base, a payload from it, and what this unfolds to."""
    base, model = written(tmp_path, "base", tensors(0)), written(tmp_path, "model", tensors(1))
    plain = encoded(model, base, "int8_delta", after=None)
    return base, encoded(model, base, "int8_delta_zstd", after=None), plain


def zstd(data: bytes, **how: object) -> bytes:
    return zstandard.ZstdCompressor(**how).compress(data)  # type: ignore[arg-type]


def test_a_payload_that_unfolds_to_more_or_less_than_the_layout_says_is_refused(
    tmp_path: Path,
) -> None:
    base, payload, plain = compressed(tmp_path)
    size = len(plain)
    bomb = zstd(bytes(256 * MIB))
    assert len(bomb) < 64 * 1024
    wrong = {
        "truncated": payload[:-5],
        "half": payload[: len(payload) // 2],
        "cut in its head": payload[:3],
        "shorter": zstd(plain[:-1]),
        "longer": zstd(plain + b"\0"),
        "a bomb": bomb,
        "a second frame": payload + zstd(b"more"),
        "not compressed": plain,
        "garbage after it": payload + b"garbage",
        "another method": b"\x1f\x8b" + payload,
    }
    for what, sent in wrong.items():
        out = io.BytesIO()
        with TensorFile(base) as file, pytest.raises(UpdateRefused) as refused:
            decode(io.BytesIO(sent), file.layout, "int8_delta_zstd", out, file)
        assert refused.value.reason is Refusal.ENCODING, what
        assert len(out.getvalue()) <= len(file.layout.header()) + file.layout.size_bytes, what
    assert size == payload_bytes(file.layout, "int8_delta")


def test_a_payload_that_asks_for_much_memory_is_refused_before_it_gets_it(tmp_path: Path) -> None:
    base, _, plain = compressed(tmp_path)
    for window_log, refused in ((23, False), (24, True)):  # 8 MiB, 16 MiB
        wide = zstandard.ZstdCompressionParameters(window_log=window_log, write_content_size=False)
        unending = zstandard.ZstdCompressor(compression_params=wide).compressobj()
        payload = unending.compress(plain) + unending.flush()
        assert zstandard.get_frame_parameters(payload).window_size == 2**window_log
        assert refused == (2**window_log > ZSTD_WINDOW_BYTES)
        with TensorFile(base) as file:
            if not refused:
                decode(io.BytesIO(payload), file.layout, "int8_delta_zstd", io.BytesIO(), file)
                continue
            with pytest.raises(UpdateRefused):
                decode(io.BytesIO(payload), file.layout, "int8_delta_zstd", io.BytesIO(), file)


@given(data=some.binary(max_size=200))
@SOME_FILES
def test_any_bytes_as_a_compressed_payload_are_refused(tmp_path: Path, data: bytes) -> None:
    base = written(tmp_path, "base", tensors(0))
    with TensorFile(base) as file, pytest.raises(UpdateRefused):
        decode(io.BytesIO(data), file.layout, "int8_delta_zstd", io.BytesIO(), file)


def test_a_payload_is_put_onto_whatever_base_is_there(tmp_path: Path) -> None:
    """Nothing in it tells the base: who decodes it compares the model's digest."""
    base, model = written(tmp_path, "base", tensors(0)), written(tmp_path, "model", tensors(1))
    other = written(tmp_path, "other", tensors(2))
    payload = encoded(model, base, "int8_delta", after=None)
    layout = layout_of(model)
    right = decoded(payload, layout, "int8_delta", base, tmp_path / "right.safetensors")
    wrong = decoded(payload, layout, "int8_delta", other, tmp_path / "wrong.safetensors")
    assert right.read_bytes() != wrong.read_bytes()
