"""How is the change of a weight written in one byte, and put back onto the model it began from?

A learned tensor of two or more dimensions has a scale for each output channel (its first
dimension), largest |change| / 127, and each change is a whole number of scales, rounded to nearest
even. Put back, a value is ``base + scale · number``: float32 arithmetic in this order, so that
everybody who holds the same base gets the same bits.

What rounding leaves unsaid need not be lost: a sender that adds it to its next change (error
feedback; Seide et al., Interspeech 2014, Karimireddy et al., ICML 2019) is off by one rounding
after any number of rounds.

Letters: C channels of a block, N values of a channel.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
import numpy.typing as npt

from fedreid.limits import MIB
from fedreid.wire.tensors import FloatArray, Layout, TensorFile, TensorSpec, is_statistic

Numbers = npt.NDArray[np.int8]

_BLOCK_ELEMENTS = MIB // 16
"""With its scratch space about what a core's own cache holds."""
_STEPS = np.float32(127)
_SMALLEST = _STEPS * np.finfo(np.float32).tiny
"""Channels that change less count as unchanged: their scale would be no normal number."""
_FP32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What a payload of differences is made from, beside the model."""

    base: TensorFile
    """What the differences are from."""
    before: TensorFile | None = None
    """The residual: what the payloads before this one left unsaid, and this one says too."""
    after: IO[bytes] | None = None
    """Gets the residual that this one leaves, as a canonical file of :func:`quantised`'s layout."""


@dataclass(frozen=True, slots=True)
class _Block:
    """A run of whole channels of one tensor."""

    first: int
    """Its first channel."""
    channels: int
    values: int
    """In a channel."""

    @property
    def elements(self) -> int:
        return self.channels * self.values


def is_quantised(spec: TensorSpec) -> bool:
    """Whether a tensor's change is written in bytes; the others stay float32 as they are."""
    return len(spec.shape) > 1 and not is_statistic(spec.name)


def quantised(layout: Layout) -> Layout:
    """The tensors of a layout whose change is written in bytes."""
    return Layout(tuple(spec for spec in layout.specs if is_quantised(spec)))


def quantised_bytes(spec: TensorSpec) -> int:
    """Bytes of a tensor's scales and numbers."""
    return _channels(spec) * _FP32_BYTES + spec.elements


def quantise(change_CN: FloatArray) -> tuple[FloatArray, Numbers]:
    """Scales and numbers of a change.

    A channel that holds NaN or an infinity gets the scale NaN: all of it is read as NaN, which no
    validation lets pass.
    """
    largest_C = np.maximum(change_CN.max(axis=1), -change_CN.min(axis=1))
    scales_C: FloatArray = largest_C / _STEPS
    scales_C[largest_C < _SMALLEST] = 0.0
    broken_C = ~np.isfinite(largest_C)
    if broken_C.any():
        scales_C[broken_C] = np.nan
        change_CN = np.where(broken_C[:, None], np.float32(0), change_CN)
    steps_CN = change_CN / np.where(scales_C > 0, scales_C, np.float32(1))[:, None]
    np.rint(steps_CN, out=steps_CN)
    return scales_C, steps_CN.astype(np.int8)


def said(scales_C: FloatArray, numbers_CN: Numbers) -> FloatArray:
    """The change that scales and numbers say, whatever somebody has sent as scales."""
    change_CN: FloatArray = numbers_CN.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        change_CN *= scales_C[:, None]
    return change_CN


def write_tensor(
    file: TensorFile, spec: TensorSpec, difference: Difference, stream: IO[bytes]
) -> None:
    """Write the change of a tensor: its scales, then its numbers; a quarter of it is in memory."""
    residual = difference.before
    if residual is not None and spec not in residual.layout.specs:
        residual = None
    scales: list[FloatArray] = []
    numbers: list[Numbers] = []
    for block in _blocks(spec):
        change_CN = _read(file, spec, block)
        with np.errstate(invalid="ignore", over="ignore"):  # quantise looks at what is not finite
            change_CN -= _read(difference.base, spec, block)
            if residual is not None:
                change_CN += _read(residual, spec, block)
        scales_C, numbers_CN = quantise(change_CN)
        scales.append(scales_C)
        numbers.append(numbers_CN)
        if difference.after is not None:
            change_CN -= said(scales_C, numbers_CN)
            difference.after.write(change_CN.data.cast("B"))
    for scales_C in scales:
        stream.write(scales_C.data.cast("B"))
    for numbers_CN in numbers:
        stream.write(numbers_CN.data.cast("B"))


def read_tensor(
    read: Callable[[int], bytes], spec: TensorSpec, base: TensorFile, stream: IO[bytes]
) -> None:
    """Write the values of a tensor whose change is read; ``read`` gives that many bytes."""
    scales_C = np.frombuffer(read(_channels(spec) * _FP32_BYTES), "<f4")
    for block in _blocks(spec):
        numbers = np.frombuffer(read(block.elements), np.int8)
        own_C = scales_C[block.first : block.first + block.channels]
        values_CN = said(own_C, numbers.reshape(-1, block.values))
        with np.errstate(invalid="ignore", over="ignore"):
            values_CN += _read(base, spec, block)
        stream.write(values_CN.data.cast("B"))


def _channels(spec: TensorSpec) -> int:
    return spec.shape[0] if spec.elements else 0


def _blocks(spec: TensorSpec) -> Iterator[_Block]:
    channels = _channels(spec)
    if not channels:
        return
    values = spec.elements // channels
    step = max(1, _BLOCK_ELEMENTS // values)
    for first in range(0, channels, step):
        yield _Block(first, min(step, channels - first), values)


def _read(file: TensorFile, spec: TensorSpec, block: _Block) -> FloatArray:
    begin = file.offset(spec.name) + block.first * block.values * _FP32_BYTES
    values = file.values(begin, block.elements * _FP32_BYTES)
    return values.reshape(-1, block.values)
