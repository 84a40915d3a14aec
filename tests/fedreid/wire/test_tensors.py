"""Is a canonical tensor file what safetensors readers read, and is any other file refused?"""

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from hypothesis.extra import numpy as some_arrays

from fedreid.errors import Refusal, StorageError, UpdateRefused
from fedreid.limits import MANIFEST_TENSORS, MODEL_BYTES
from fedreid.wire.tensors import (
    FloatArray,
    Layout,
    TensorFile,
    TensorSpec,
    batch_norm_names,
    is_statistic,
    write_model,
)

Entries = dict[str, Any]

names = some.text('abAB.0_-ß€😀"\\\n\x1f ', min_size=1, max_size=20).filter(
    lambda name: name != "__metadata__"
)
arrays = some_arrays.arrays(
    np.float32, some_arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
)
models = some.dictionaries(names, arrays, max_size=5)


def model_bytes(tensors: dict[str, FloatArray]) -> bytes:
    stream = io.BytesIO()
    write_model(stream, tensors)
    return stream.getvalue()


def small_model() -> dict[str, FloatArray]:
    return {
        "conv.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "bn.bias": np.array([0.5, -0.5], dtype=np.float32),
    }


def raw_file(path: Path, entries: Any, data: bytes, *, length: int | None = None) -> Path:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(shape: list[Any], begin: int, end: int, dtype: str = "F32") -> Entries:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@given(models)
def test_the_safetensors_library_reads_what_write_model_wrote(
    tensors: dict[str, FloatArray],
) -> None:
    loaded = safetensors.numpy.load(model_bytes(tensors))
    assert loaded.keys() == tensors.keys()
    for name, values in tensors.items():
        assert loaded[name].dtype == np.float32
        assert loaded[name].shape == values.shape
        assert loaded[name].tobytes() == values.tobytes()


@given(tensors=models)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_canonical_file_is_read_back_bit_by_bit(
    tmp_path: Path, tensors: dict[str, FloatArray]
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(model_bytes(tensors))
    with TensorFile(path) as file:
        read = file.read_all()
    assert list(read) == sorted(tensors)
    for name, values in tensors.items():
        assert read[name].shape == values.shape
        assert read[name].tobytes() == values.tobytes()


def test_a_file_of_the_safetensors_library_with_the_same_tensors_is_the_same_file() -> None:
    tensors = small_model()
    assert safetensors.numpy.save(tensors) == model_bytes(tensors)


def test_tensors_are_written_by_name_whatever_order_they_came_in() -> None:
    tensors = small_model()
    backwards = dict(reversed(tensors.items()))
    assert model_bytes(tensors) == model_bytes(backwards)


def test_values_that_do_not_lie_contiguously_are_written_in_order() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert model_bytes({"w": values.T}) == model_bytes({"w": np.ascontiguousarray(values.T)})


def test_the_data_section_starts_aligned() -> None:
    for length in range(1, 12):
        layout = Layout.of([TensorSpec("n" * length, (1,))])
        assert len(layout.header()) % 8 == 0


def test_scalars_and_empty_tensors_keep_their_shape(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    tensors = {
        "scalar": np.array(3.5, dtype=np.float32),
        "empty": np.zeros((0, 7), dtype=np.float32),
        "last": np.zeros((2, 0), dtype=np.float32),
    }
    path.write_bytes(model_bytes(tensors))
    with TensorFile(path) as file:
        assert file.layout.size_bytes == 4
        assert file.read("scalar").shape == ()
        assert float(file.read("scalar")) == 3.5
        assert file.read("empty").shape == (0, 7)
        assert file.read("last").shape == (2, 0)


def test_a_model_without_tensors_is_a_file_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    path.write_bytes(model_bytes({}))
    with TensorFile(path) as file:
        assert file.layout.specs == ()


def test_a_missing_file_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Can't read"):
        TensorFile(tmp_path / "missing.safetensors")


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = model_bytes(small_model())
    path = tmp_path / "cut.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(StorageError):
            TensorFile(path)


def test_a_file_with_bytes_behind_its_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "long.safetensors"
    path.write_bytes(model_bytes(small_model()) + b"\0")
    with pytest.raises(StorageError, match="size does not fit"):
        TensorFile(path)


def test_a_file_that_shrinks_while_it_is_open_is_refused_when_read(tmp_path: Path) -> None:
    path = tmp_path / "shrinking.safetensors"
    path.write_bytes(model_bytes(small_model()))
    with TensorFile(path) as file:
        with path.open("r+b") as stream:
            stream.truncate(file.data_offset + 4)
        with pytest.raises(StorageError, match="ends too early"):
            file.read("conv.weight")


BAD_HEADERS: dict[str, tuple[Any, bytes]] = {
    "no JSON": (b"{", b""),
    "no UTF-8": (b'{"\xff":1}', b""),
    "a list": ([], b""),
    "a number": (b"7", b""),
    "an entry that is a list": ({"a": [1]}, b""),
    "no dtype": ({"a": {"shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, b"\0" * 4),
    "no offsets": ({"a": {"dtype": "F32", "shape": [1]}}, b"\0" * 4),
    "float16": ({"a": entry([2], 0, 4, "F16")}, b"\0" * 4),
    "a pickle's name": ({"__metadata__": {"format": "pt"}, "a": entry([1], 0, 4)}, b"\0" * 4),
    "a negative size": ({"a": entry([-1], 0, -4)}, b""),
    "an infinite size": (
        b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}',
        b"\0" * 4,
    ),
    "a size that is a fraction": ({"a": entry([1.5], 0, 4)}, b"\0" * 4),
    "a shape that is a text": ({"a": {**entry([], 0, 4), "shape": "1"}}, b"\0" * 4),
    "nine dimensions": ({"a": entry([1] * 9, 0, 4)}, b"\0" * 4),
    "an overflowing shape": ({"a": entry([2**62, 2**62], 0, 4)}, b"\0" * 4),
    "more than a model may have": ({"a": entry([MODEL_BYTES // 4 + 1], 0, 4)}, b"\0" * 4),
    "an empty name": ({"": entry([1], 0, 4)}, b"\0" * 4),
    "a name that is too long": ({"n" * 257: entry([1], 0, 4)}, b"\0" * 4),
    "a name that is no Unicode": (
        b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"\0" * 4,
    ),
    "a gap": ({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, b"\0" * 12),
    "an overlap": ({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, b"\0" * 8),
    "data in another order": ({"a": entry([1], 4, 8), "b": entry([1], 0, 4)}, b"\0" * 8),
    "names in another order": ({"b": entry([1], 4, 8), "a": entry([1], 0, 4)}, b"\0" * 8),
    "a name twice": (
        b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]},'
        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"\0" * 4,
    ),
    "very deep nesting": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b""),
}


@pytest.mark.parametrize("what", BAD_HEADERS)
def test_a_header_that_is_not_canonical_is_a_storage_error(tmp_path: Path, what: str) -> None:
    entries, data = BAD_HEADERS[what]
    with pytest.raises(StorageError):
        TensorFile(raw_file(tmp_path / "bad.safetensors", entries, data))


def test_a_header_of_too_many_tensors_is_a_storage_error(tmp_path: Path) -> None:
    entries = {f"t{i:06d}": entry([0], 0, 0) for i in range(MANIFEST_TENSORS + 1)}
    with pytest.raises(StorageError):
        TensorFile(raw_file(tmp_path / "many.safetensors", entries, b""))


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 33 * 1024 * 1024])
def test_an_oversized_header_length_is_refused_before_it_is_read(
    tmp_path: Path, length: int
) -> None:
    path = raw_file(tmp_path / "huge.safetensors", {}, b"", length=length)
    with pytest.raises(StorageError, match="header is too long"):
        TensorFile(path)


@given(data=some.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_file_holds_it_is_read_or_refused_as_storage(
    tmp_path: Path, data: bytes
) -> None:
    path = tmp_path / "any.safetensors"
    path.write_bytes(struct.pack("<Q", len(data)) + data)
    try:
        TensorFile(path).close()
    except StorageError:
        return


def test_a_refused_file_leaves_no_descriptor_open(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "bad.safetensors", {"a": 1}, b"")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with pytest.raises(StorageError):
            TensorFile(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_an_unknown_tensor_is_a_key_error(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(model_bytes(small_model()))
    with TensorFile(path) as file, pytest.raises(KeyError):
        file.read("other")


def refused_layout(make: Callable[[], Layout]) -> Refusal:
    with pytest.raises(UpdateRefused) as refused:
        make()
    return refused.value.reason


def test_a_layout_refuses_names_twice_and_sizes_out_of_bounds() -> None:
    spec = TensorSpec("a", (2,))
    assert refused_layout(lambda: Layout.of([spec, TensorSpec("a", (3,))])) is Refusal.TENSOR_NAMES
    assert refused_layout(lambda: Layout.of([TensorSpec("", (1,))])) is Refusal.TENSOR_NAMES
    # 256 bytes are the limit, not 256 letters
    long = TensorSpec("ß" * 129, (1,))
    assert refused_layout(lambda: Layout.of([long])) is Refusal.TENSOR_NAMES
    assert Layout.of([TensorSpec("ß" * 128, (1,))]).names == ("ß" * 128,)
    half = MODEL_BYTES // 8
    two = [TensorSpec("a", (half,)), TensorSpec("b", (half + 1,))]
    assert refused_layout(lambda: Layout.of(two)) is Refusal.TENSOR_SHAPE
    assert Layout.of([two[0], TensorSpec("b", (half,))]).size_bytes == MODEL_BYTES


def test_only_keeps_the_order_and_ignores_names_that_are_not_there() -> None:
    layout = Layout.of([TensorSpec(name, (1,)) for name in "dcba"])
    assert layout.only(["c", "a", "zzz"]).names == ("a", "c")


def test_batch_norm_names_are_the_four_beside_each_running_mean() -> None:
    layer = ["bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"]
    others = ["conv.weight", "fc.bias", "bn10.weight", "weight", "bn2.running_var"]
    assert batch_norm_names(layer + others) == frozenset(layer)
    assert batch_norm_names(["running_mean", "weight"]) == {"running_mean", "weight"}
    assert batch_norm_names(others) == frozenset()


def test_statistics_are_running_means_and_variances_alone() -> None:
    assert is_statistic("bn.running_mean")
    assert is_statistic("bn.running_var")
    assert not is_statistic("bn.weight")
    assert not is_statistic("running_mean.weight")
