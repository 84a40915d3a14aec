"""May an update count? Everything is checked here before anything of it is used.

Form first (manifest and report against the base model, before a byte is taken), then values,
block by block while they come, so that memory does not grow with the model.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedreid.errors import Refusal, UpdateRefused
from fedreid.limits import KIB
from fedreid.plan import BatchNormPolicy, ValidationPlan, keeps_batch_norm
from fedreid.wire.manifest import Manifest
from fedreid.wire.tensors import (
    Layout,
    TensorFile,
    batch_norm_names,
    is_statistic,
    squared_norm,
)

_BLOCK_BYTES = 256 * KIB
_ITEM_BYTES = 4
_VARIANCE = "running_var"


def check_manifest(manifest: Manifest, base: Layout, bn: BatchNormPolicy) -> None:
    """Check names and shapes against the base model.

    With ``bn = local`` or ``adaptive`` an update may leave out what belongs to BatchNorm, all of
    it or nothing.

    Raises:
        UpdateRefused: a tensor is missing, unknown or of another shape.
    """
    if manifest.layout == base:
        return
    expected = {spec.name: spec for spec in base.specs}
    if keeps_batch_norm(bn):
        norms = batch_norm_names(base.names)
        if not norms & set(manifest.layout.names):
            expected = {name: spec for name, spec in expected.items() if name not in norms}
    named = set(manifest.layout.names)
    if unknown := sorted(named - set(expected)):
        raise UpdateRefused(
            Refusal.TENSOR_NAMES,
            f"The update holds {len(unknown)} tensors that the model does not have, "
            f"the first is {unknown[0]!r}",
        )
    if missing := sorted(set(expected) - named):
        raise UpdateRefused(
            Refusal.TENSOR_NAMES,
            f"The update lacks {len(missing)} tensors of the model, the first is {missing[0]!r}",
        )
    for spec in manifest.layout.specs:
        if spec.shape != expected[spec.name].shape:
            raise UpdateRefused(
                Refusal.TENSOR_SHAPE,
                f"The tensor {spec.name!r} has the shape {spec.shape}, not "
                f"{expected[spec.name].shape}",
            )


class Values(Protocol):
    """Where an update's values are read: a file that is whole, or one that is still coming."""

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from the data section at ``offset`` bytes."""
        ...


class Inspection:
    """The checks of every value of one update whose form was checked, as far as it has come."""

    def __init__(self, layout: Layout, base: TensorFile, plan: ValidationPlan) -> None:
        self._base = base
        self._plan = plan
        self._blocks = _blocks(layout, base.layout)
        self._next = next(self._blocks, None)
        self._refused: UpdateRefused | None = None
        self._base_squared = 0.0
        self._change_squared = 0.0

    def go_on(self, update: Values, come: int) -> None:
        """Check what lies whole within the first ``come`` bytes and was not checked yet.

        What is found wrong is kept for :meth:`finish`: until the digest holds, it may be the disk.
        """
        block = self._next
        while block is not None and self._refused is None and block.end <= come:
            try:
                self._check(block, update)
            except UpdateRefused as refusal:
                self._refused = refusal
            block = next(self._blocks, None)
        self._next = block

    def finish(self) -> None:
        """Tell what was found in an update that has come whole.

        Raises:
            UpdateRefused: NaN or infinity, too large a value, a negative variance, or a change
                whose norm is out of proportion to the base model's.
        """
        if self._refused is not None:
            raise self._refused
        limit = self._plan.max_update_norm_ratio * math.sqrt(self._base_squared)
        moved = math.sqrt(self._change_squared)
        if moved > limit:
            raise UpdateRefused(
                Refusal.NORM,
                f"The update moves the model by a norm of {moved:.4g}",
                why=f"the plan allows {limit:.4g}",
            )

    def _check(self, block: "_Block", update: Values) -> None:
        values = np.empty(block.size // _ITEM_BYTES, dtype=np.float32)
        update.read_into(block.offset, values.view(np.uint8).data)
        largest = self._plan.max_absolute_value
        for piece in block.pieces if _is_odd(values, largest) else block.variances:
            _check_piece(piece.name, values[piece.begin : piece.end], largest)
        before = self._base.values(block.base_offset, block.size)
        np.subtract(values, before, out=values)
        for piece in block.pieces:
            if not is_statistic(piece.name):
                self._base_squared += squared_norm(before[piece.begin : piece.end])
                self._change_squared += squared_norm(values[piece.begin : piece.end])


def check_values(update: TensorFile, base: TensorFile, plan: ValidationPlan) -> None:
    """Check every value of a whole update whose form was checked.

    Raises:
        UpdateRefused: see :meth:`Inspection.finish`.
    """
    inspection = Inspection(update.layout, base, plan)
    inspection.go_on(update, update.layout.size_bytes)
    inspection.finish()


@dataclass(frozen=True, slots=True)
class _Piece:
    """What of one tensor lies in a block, in values from the block's first on."""

    name: str
    begin: int
    end: int


@dataclass(slots=True)
class _Block:
    """A run of bytes that lies alike in update and base, and what it consists of."""

    offset: int
    base_offset: int
    size: int = 0
    pieces: list[_Piece] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.offset + self.size

    @property
    def variances(self) -> list[_Piece]:
        return [piece for piece in self.pieces if piece.name.endswith(_VARIANCE)]

    def add(self, name: str, size: int) -> None:
        first = self.size // _ITEM_BYTES
        self.pieces.append(_Piece(name, first, first + size // _ITEM_BYTES))
        self.size += size


def _blocks(layout: Layout, base: Layout) -> Iterator[_Block]:
    """The update in blocks: of many small tensors, or of a part of a large one."""
    base_offsets = {spec.name: at for spec, at in base.offsets()}
    block = _Block(0, 0)
    for spec, offset in layout.offsets():
        done = 0
        while done < spec.size_bytes:
            base_at = base_offsets[spec.name] + done
            if block.size == _BLOCK_BYTES or block.base_offset + block.size != base_at:
                if block.size:
                    yield block
                block = _Block(offset + done, base_at)
            size = min(_BLOCK_BYTES - block.size, spec.size_bytes - done)
            block.add(spec.name, size)
            done += size
    if block.size:
        yield block


def _is_odd(values: npt.NDArray[np.float32], largest: float) -> bool:
    """Whether any value is NaN, infinite or too large: each makes one of both ends so."""
    return not (-float(values.min()) <= largest and float(values.max()) <= largest)


def _check_piece(name: str, values: npt.NDArray[np.float32], largest: float) -> None:
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):  # a NaN anywhere makes both NaN
        raise UpdateRefused(Refusal.NOT_FINITE, f"The tensor {name!r} holds NaN or infinity")
    if max(-low, high) > largest:
        raise UpdateRefused(Refusal.NORM, f"The tensor {name!r} holds a value beyond {largest:g}")
    if name.endswith(_VARIANCE) and low < 0:
        raise UpdateRefused(Refusal.NEGATIVE_VARIANCE, f"The running variance {name!r} is negative")
