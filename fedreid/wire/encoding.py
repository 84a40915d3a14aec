"""How are a model's float32 values written as a payload, and read back?

``fp32`` is exact and is the data section of a canonical file as it lies. ``bf16`` halves learned
values (relative error at most 2^-8, rounded to nearest even); running means and variances stay
float32, since a running variance has too large a range. Both directions walk the tensors in
blocks, so neither needs a model in memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
import numpy.typing as npt

from fedreid.limits import MIB
from fedreid.plan import Encoding
from fedreid.wire.tensors import Layout, TensorFile, is_statistic

_BLOCK_ELEMENTS = MIB // 4
_BF16_BYTES = 2
_FP32_BYTES = 4


@dataclass(frozen=True, slots=True)
class _Block:
    """A run of values of one tensor: where it lies decoded, and how it is written."""

    offset: int
    elements: int
    item_bytes: int


def payload_bytes(layout: Layout, encoding: Encoding) -> int:
    """Bytes of the payload of ``layout`` in ``encoding``."""
    return sum(spec.elements * _item_bytes(spec.name, encoding) for spec in layout.specs)


def encode(file: TensorFile, layout: Layout, encoding: Encoding, stream: IO[bytes]) -> None:
    """Write the payload of the tensors of ``layout`` (all of ``file``, or some of them)."""
    where = dict(zip(file.layout.names, (at for _, at in file.layout.offsets()), strict=True))
    for spec in layout.specs:
        for block in _blocks(where[spec.name], spec.elements, _item_bytes(spec.name, encoding)):
            values = np.empty(block.elements, dtype=np.float32)
            file.read_into(block.offset, values.view(np.uint8).data)
            written = _to_bf16(values) if block.item_bytes == _BF16_BYTES else values
            stream.write(written.view(np.uint8).data)


def decode(payload: IO[bytes], layout: Layout, encoding: Encoding, stream: IO[bytes]) -> None:
    """Write the canonical file whose payload is read from ``payload``.

    The caller has checked that the payload has :func:`payload_bytes` bytes.
    """
    stream.write(layout.header())
    for spec, offset in layout.offsets():
        for block in _blocks(offset, spec.elements, _item_bytes(spec.name, encoding)):
            data = payload.read(block.elements * block.item_bytes)
            if block.item_bytes == _BF16_BYTES:
                stream.write(_from_bf16(np.frombuffer(data, "<u2")).view(np.uint8).data)
            else:
                stream.write(data)


def _item_bytes(name: str, encoding: Encoding) -> int:
    return _BF16_BYTES if encoding == "bf16" and not is_statistic(name) else _FP32_BYTES


def _blocks(offset: int, elements: int, item_bytes: int) -> Iterator[_Block]:
    for first in range(0, elements, _BLOCK_ELEMENTS):
        yield _Block(
            offset=offset + first * _FP32_BYTES,
            elements=min(_BLOCK_ELEMENTS, elements - first),
            item_bytes=item_bytes,
        )


def _to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    rounded[np.isnan(values)] = 0x7FC0  # rounding could carry a NaN over into an infinity
    return rounded.astype("<u2")


def _from_bf16(halves: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    return (halves.astype(np.uint32) << 16).view(np.float32)
