"""What is a named set of tensors, and how does it lie in a file?

A model or update on disk is a safetensors file in one canonical form: names sorted, float32,
no gaps, no metadata. Its data section is then also the ``fp32`` payload on the wire, so that
files are streamed as they lie, and the BLAKE3 digest of the whole file names the model.
"""

import functools
import json
import math
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self

import blake3
import numpy as np
import numpy.typing as npt

from fedreid.errors import Refusal, StorageError, UpdateRefused, storage_errors
from fedreid.files import read_into, replacing
from fedreid.limits import (
    MANIFEST_TENSORS,
    MIB,
    MODEL_BYTES,
    TENSOR_DIMENSIONS,
    TENSOR_NAME_BYTES,
)
from fedreid.names import Digest

FloatArray = npt.NDArray[np.float32]

_ITEM_BYTES = 4
_HEADER_LENGTH = struct.Struct("<Q")
_HEADER_MAX_BYTES = 32 * MIB
_ALIGNMENT = 8
_KNOWN = 8  # layouts, of which a federation has one: every update of a round has the same


@dataclass(frozen=True, slots=True, order=True)
class TensorSpec:
    """Name and shape of one float32 tensor."""

    name: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of the decoded values."""
        return self.elements * _ITEM_BYTES


@dataclass(frozen=True)
class Layout:
    """An ordered set of tensors laid end to end."""

    specs: tuple[TensorSpec, ...]  # no slots: what follows from it is worked out once

    @classmethod
    def of(cls, specs: Iterable[TensorSpec]) -> "Layout":
        """The canonical layout: sorted by name, within the limits.

        Raises:
            UpdateRefused: too many tensors, a name twice, or a shape out of bounds.
        """
        ordered = tuple(sorted(specs))
        _check_specs(ordered)
        return cls(ordered)

    @functools.cached_property
    def size_bytes(self) -> int:
        """Bytes of all decoded values."""
        return sum(spec.size_bytes for spec in self.specs)

    @property
    def file_bytes(self) -> int:
        """Bytes of a canonical file."""
        return len(self.header()) + self.size_bytes

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in order."""
        return tuple(spec.name for spec in self.specs)

    def offsets(self) -> Iterator[tuple[TensorSpec, int]]:
        """Each tensor with its byte offset in the data section."""
        offset = 0
        for spec in self.specs:
            yield spec, offset
            offset += spec.size_bytes

    def only(self, names: Iterable[str]) -> "Layout":
        """The layout of the named tensors alone."""
        wanted = set(names)
        return Layout(tuple(spec for spec in self.specs if spec.name in wanted))

    @functools.cached_property
    def places(self) -> "dict[str, tuple[TensorSpec, int]]":
        """By name, each tensor and its byte offset in the data section."""
        return {spec.name: (spec, offset) for spec, offset in self.offsets()}

    def header(self) -> bytes:
        """The safetensors header that goes before the data section."""
        return self._header

    @functools.cached_property
    def _header(self) -> bytes:
        entries = {
            spec.name: {
                "dtype": "F32",
                "shape": list(spec.shape),
                "data_offsets": [offset, offset + spec.size_bytes],
            }
            for spec, offset in self.offsets()
        }
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return _HEADER_LENGTH.pack(len(text)) + text

    def digest(self) -> Digest:
        """BLAKE3 of the header: names and shapes of a model, by which a release signs them."""
        return Digest(blake3.blake3(self.header()).hexdigest())


def _check_specs(specs: tuple[TensorSpec, ...]) -> None:
    if len(specs) > MANIFEST_TENSORS:
        raise UpdateRefused(Refusal.MANIFEST, f"{len(specs)} tensors are more than fit a manifest")
    total = 0
    for index, spec in enumerate(specs):
        if index and spec.name == specs[index - 1].name:
            raise UpdateRefused(Refusal.TENSOR_NAMES, f"The tensor {spec.name!r} is named twice")
        if not 0 < len(spec.name.encode()) <= TENSOR_NAME_BYTES:
            raise UpdateRefused(Refusal.TENSOR_NAMES, "A tensor's name is empty or too long")
        if len(spec.shape) > TENSOR_DIMENSIONS or any(size < 0 for size in spec.shape):
            raise UpdateRefused(Refusal.TENSOR_SHAPE, f"The shape of {spec.name!r} is no shape")
        total += spec.size_bytes
        if total > MODEL_BYTES:
            raise UpdateRefused(Refusal.TENSOR_SHAPE, f"The shapes add up to over {MODEL_BYTES} B")


def batch_norm_names(names: Iterable[str]) -> frozenset[str]:
    """The names that belong to batch normalisation: weight, bias, running mean and variance.

    A layer is one that has a ``running_mean``; PyTorch names the other three beside it.
    """
    known = set(names)
    layers = {name.removesuffix("running_mean") for name in known if name.endswith("running_mean")}
    parts = ("weight", "bias", "running_mean", "running_var")
    return frozenset(layer + part for layer in layers for part in parts) & known


def squared_norm(values: FloatArray) -> float:
    """Σ v² of a block, in float32 where that holds it: right to about 1e-5 for a million values."""
    with np.errstate(over="ignore"):
        squared = float(values @ values)
    if math.isfinite(squared):
        return squared
    wide = values.astype(np.float64)
    return float(wide @ wide)


def is_statistic(name: str) -> bool:
    """Whether the tensor is a running mean or variance: counted, not learned."""
    return name.endswith(("running_mean", "running_var"))


def layout_of(path: Path) -> Layout:
    """Names and shapes of a tensor file; StorageError if it is damaged."""
    with TensorFile(path) as file:
        return file.layout


def data_offset_of(path: Path) -> int:
    """Where a tensor file's data section begins, as its first bytes state; nothing is checked."""
    with storage_errors("read", path), path.open("rb") as stream:
        prefix = stream.read(_HEADER_LENGTH.size)
    if len(prefix) < _HEADER_LENGTH.size:
        return _HEADER_LENGTH.size
    (length,) = _HEADER_LENGTH.unpack(prefix)
    return _HEADER_LENGTH.size + int(length)


class Readable(Protocol):
    """Something that a data section's bytes are read from."""

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from the data section at ``offset`` bytes."""
        ...


def values_of(file: Readable, offset: int, size: int) -> FloatArray:
    """The values in ``size`` bytes of a data section from ``offset`` bytes on."""
    values = np.empty(size // _ITEM_BYTES, dtype=np.float32)
    file.read_into(offset, values.view(np.uint8).data)
    return values


class TensorFile:
    """A canonical safetensors file, read tensor by tensor; holds one descriptor, no tensors."""

    def __init__(self, path: Path) -> None:
        """Open and check the header.

        Raises:
            StorageError: the file is missing, truncated or not in canonical form.
        """
        self.path = path
        with storage_errors("read", path):
            self._descriptor = os.open(path, os.O_RDONLY)
        try:
            self.layout, self.data_offset = _read_header(self._descriptor, path)
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the descriptor."""
        os.close(self._descriptor)

    def offset(self, name: str) -> int:
        """Where a tensor begins in the data section; KeyError if the file has none of that name."""
        return self.layout.places[name][1]

    def read(self, name: str) -> FloatArray:
        """One tensor in its shape; KeyError if the file has none of that name."""
        spec, offset = self.layout.places[name]
        return self.values(offset, spec.size_bytes).reshape(spec.shape)

    def values(self, offset: int, size: int) -> FloatArray:
        """The values in ``size`` bytes of the data section from ``offset`` bytes on."""
        return values_of(self, offset, size)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from the data section at ``offset`` bytes."""
        read_into(self._descriptor, self.path, self.data_offset + offset, view)

    def read_all(self) -> dict[str, FloatArray]:
        """Every tensor; costs the whole model in memory."""
        return {name: self.read(name) for name in self.layout.names}


def write_tensors(stream: IO[bytes], tensors: Iterable[tuple[TensorSpec, FloatArray]]) -> None:
    """Write the data section after a layout's header; tensors come in the layout's order."""
    for spec, values in tensors:
        assert values.dtype == np.float32 and values.shape == spec.shape, spec.name
        stream.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)


def write_model(stream: IO[bytes], tensors: dict[str, FloatArray]) -> None:
    """Write a canonical file from tensors in memory."""
    layout = Layout.of(TensorSpec(name, values.shape) for name, values in tensors.items())
    stream.write(layout.header())
    write_tensors(stream, ((spec, tensors[spec.name]) for spec in layout.specs))


def digest_of_tensors(tensors: dict[str, FloatArray]) -> Digest:
    """The digest that a canonical file of these tensors has; none is written."""
    hasher = blake3.blake3()
    layout = Layout.of(TensorSpec(name, values.shape) for name, values in tensors.items())
    hasher.update(layout.header())
    for name in layout.names:
        hasher.update(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data)
    return Digest(hasher.hexdigest())


def load_tensors(path: Path) -> dict[str, FloatArray]:
    """Every tensor of a canonical file; costs the whole model in memory.

    Raises:
        StorageError: it is missing or damaged.
    """
    with TensorFile(path) as file:
        return file.read_all()


def save_tensors(
    path: Path, tensors: dict[str, FloatArray], *, over: Path | str | None = None
) -> None:
    """Durably write a canonical file from tensors in memory; ``over`` as of :func:`replacing`."""
    with replacing(path, over=over) as stream:
        write_model(stream, tensors)


def _damaged(path: Path, why: str) -> StorageError:
    return StorageError(
        f"The tensor file {path} is damaged",
        why=why,
        next_step="Remove it; it is fetched or built again.",
    )


def _read_header(descriptor: int, path: Path) -> tuple[Layout, int]:
    prefix = os.pread(descriptor, _HEADER_LENGTH.size, 0)
    if len(prefix) < _HEADER_LENGTH.size:
        raise _damaged(path, "it has no header")
    (length,) = _HEADER_LENGTH.unpack(prefix)
    if length > _HEADER_MAX_BYTES:
        raise _damaged(path, "its header is too long")
    text = os.pread(descriptor, length, _HEADER_LENGTH.size)
    try:
        layout = _layout_in(prefix + text)
    except UpdateRefused as error:
        raise _damaged(path, f"its header can't be read ({error.what})") from error
    data_offset = _HEADER_LENGTH.size + length
    if os.fstat(descriptor).st_size != data_offset + layout.size_bytes:
        raise _damaged(path, "its size does not fit its header")
    return layout, data_offset


@functools.lru_cache(_KNOWN)
def _layout_in(header: bytes) -> Layout:
    """The layout in a canonical header; UpdateRefused if it is none."""
    try:
        entries = json.loads(header[_HEADER_LENGTH.size :])
        specs = []
        for name, entry in entries.items():
            if entry["dtype"] != "F32":
                raise ValueError(f"the tensor {name!r} is no float32")
            specs.append(TensorSpec(name, tuple(int(size) for size in entry["shape"])))
        layout = Layout.of(specs)
    except (
        ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError,
    ) as error:  # fmt: skip
        raise UpdateRefused(Refusal.MANIFEST, str(error)) from error
    if layout.header() != header:
        raise UpdateRefused(Refusal.MANIFEST, "it is not the canonical one")
    return layout
