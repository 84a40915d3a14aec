"""How are a model's float32 values written as a payload, and read back?

``fp32`` is exact and is the data section of a canonical file as it lies. ``bf16`` halves learned
values (relative error at most 2^-8, rounded to nearest even). ``int8_delta`` writes the change of
each convolution's and matrix's values from a base model, a byte a value
(``fedreid.wire.differences``); ``int8_delta_zstd`` compresses that. Running means and variances
stay float32 in all of them, since a running variance has too large a range. Both directions walk
the tensors in blocks, so neither needs a model in memory.

An update's differences are from the base model as its silo holds it, which a download in bf16 may
have rounded; they are put back onto the model as it was published. So the download's rounding does
not come back with the update, and the coordinator keeps nothing beside the models it published.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, cast

import numpy as np
import numpy.typing as npt
import zstandard

from fedreid.errors import Refusal, UpdateRefused
from fedreid.limits import MIB, ZSTD_WINDOW_BYTES
from fedreid.plan import Encoding, is_difference
from fedreid.wire.differences import (
    Difference,
    is_quantised,
    quantised,
    quantised_bytes,
    read_tensor,
    write_tensor,
)
from fedreid.wire.tensors import Layout, TensorFile, TensorSpec, is_statistic

_BLOCK_ELEMENTS = MIB // 4
_BF16_BYTES = 2
_FP32_BYTES = 4
_ZSTD_LEVEL = 1
"""Higher ones gain next to nothing on rounded noise, and cost many times the time."""
_ZSTD_FRAME_BYTES = 64
"""Room for the header of a frame and the end of its last block, where nothing is compressed."""
_ZSTD_BLOCK_RATIO = 256
"""A block that can't be compressed is written as it is, with far less than a 256th on top."""

_Read = Callable[[int], bytes]
"""Gives that many bytes of a payload, or fails."""


@dataclass(frozen=True, slots=True)
class _Block:
    """A run of values of one tensor: where it lies decoded, and how it is written."""

    offset: int
    elements: int
    item_bytes: int


def payload_bytes(layout: Layout, encoding: Encoding) -> int:
    """Bytes of the payload of ``layout`` in ``encoding``; where it is compressed, at most."""
    plain = sum(_written_bytes(spec, encoding) for spec in layout.specs)
    if is_compressed(encoding):
        return plain + plain // _ZSTD_BLOCK_RATIO + _ZSTD_FRAME_BYTES
    return plain


def is_payload_size(size_bytes: int, layout: Layout, encoding: Encoding) -> bool:
    """Whether a payload of ``layout`` in ``encoding`` can have this size."""
    most = payload_bytes(layout, encoding)
    return 0 < size_bytes <= most if is_compressed(encoding) else size_bytes == most


def is_compressed(encoding: Encoding) -> bool:
    """Whether the size of a payload depends on its values."""
    return encoding == "int8_delta_zstd"


def encode(
    file: TensorFile,
    layout: Layout,
    encoding: Encoding,
    stream: IO[bytes],
    difference: Difference | None = None,
) -> None:
    """Write the payload of the tensors of ``layout`` (all of ``file``, or some of them).

    ``difference`` goes with the encodings of differences alone.
    """
    if is_compressed(encoding):
        compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=False)
        with compressor.stream_writer(stream, closefd=False) as writer:
            _write(file, layout, encoding, cast(IO[bytes], writer), difference)
    else:
        _write(file, layout, encoding, stream, difference)


def decode(
    payload: IO[bytes],
    layout: Layout,
    encoding: Encoding,
    stream: IO[bytes],
    base: TensorFile | None = None,
) -> None:
    """Write the canonical file whose payload is read from ``payload``.

    The caller has checked the payload's size (:func:`is_payload_size`), and names the ``base`` of
    an encoding of differences. What a compressed payload unfolds to is read as far as the layout
    says and no further.

    Raises:
        UpdateRefused: a compressed payload that is none, or unfolds to more or less.
    """
    if not is_compressed(encoding):
        _read_all(_reading(payload), layout, encoding, stream, base)
        return
    unfolding = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
    with unfolding.stream_reader(payload, read_across_frames=True, closefd=False) as reader:
        read = _reading(cast(IO[bytes], reader))
        try:
            _read_all(read, layout, encoding, stream, base)
            if reader.read(1):
                raise UpdateRefused(Refusal.ENCODING, "The payload unfolds to too many bytes")
        except zstandard.ZstdError as error:
            raise UpdateRefused(
                Refusal.ENCODING, "The payload can't be unfolded", why=str(error)
            ) from error


def _write(
    file: TensorFile,
    layout: Layout,
    encoding: Encoding,
    stream: IO[bytes],
    difference: Difference | None,
) -> None:
    if difference is not None and difference.after is not None:
        difference.after.write(quantised(layout).header())
    for spec in layout.specs:
        if is_difference(encoding) and is_quantised(spec):
            assert difference is not None
            write_tensor(file, spec, difference, stream)
            continue
        for block in _blocks(file.offset(spec.name), spec.elements, _item_bytes(spec, encoding)):
            values = np.empty(block.elements, dtype=np.float32)
            file.read_into(block.offset, values.view(np.uint8).data)
            written = _to_bf16(values) if block.item_bytes == _BF16_BYTES else values
            stream.write(written.view(np.uint8).data)


def _read_all(
    read: _Read, layout: Layout, encoding: Encoding, stream: IO[bytes], base: TensorFile | None
) -> None:
    stream.write(layout.header())
    for spec, offset in layout.offsets():
        if is_difference(encoding) and is_quantised(spec):
            assert base is not None
            read_tensor(read, spec, base, stream)
            continue
        for block in _blocks(offset, spec.elements, _item_bytes(spec, encoding)):
            data = read(block.elements * block.item_bytes)
            if block.item_bytes == _BF16_BYTES:
                stream.write(_from_bf16(np.frombuffer(data, "<u2")).view(np.uint8).data)
            else:
                stream.write(data)


def _reading(payload: IO[bytes]) -> _Read:
    def read(size_bytes: int) -> bytes:
        data = payload.read(size_bytes)
        if len(data) != size_bytes:
            raise UpdateRefused(Refusal.ENCODING, "The payload ends too early")
        return data

    return read


def _written_bytes(spec: TensorSpec, encoding: Encoding) -> int:
    if is_difference(encoding) and is_quantised(spec):
        return quantised_bytes(spec)
    return spec.elements * _item_bytes(spec, encoding)


def _item_bytes(spec: TensorSpec, encoding: Encoding) -> int:
    return _BF16_BYTES if encoding == "bf16" and not is_statistic(spec.name) else _FP32_BYTES


def _blocks(offset: int, elements: int, item_bytes: int) -> Iterator[_Block]:
    for first in range(0, elements, _BLOCK_ELEMENTS):
        yield _Block(
            offset=offset + first * _FP32_BYTES,
            elements=min(_BLOCK_ELEMENTS, elements - first),
            item_bytes=item_bytes,
        )


def _to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    bits = values.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    if math.isnan(values.max(initial=-math.inf)):  # a NaN anywhere makes it one
        rounded[np.isnan(values)] = 0x7FC0  # rounding could carry it over into an infinity
    return rounded.astype("<u2")


def _from_bf16(halves: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    return (halves.astype(np.uint32) << 16).view(np.float32)
