"""May an update count? Everything is checked here before anything of it is used.

Form first (manifest and report against the base model, before a byte is taken), then values,
block by block while they come, so that memory does not grow with the model.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from fedreid.errors import Refusal, UpdateRefused
from fedreid.limits import CHUNK_BYTES
from fedreid.plan import BatchNormPolicy, ValidationPlan, keeps_batch_norm
from fedreid.wire.manifest import Manifest
from fedreid.wire.tensors import (
    FloatArray,
    Layout,
    TensorFile,
    batch_norm_names,
    is_statistic,
    squared_norm,
)

_BLOCK_BYTES = CHUNK_BYTES
_ITEM_BYTES = 4
_VARIANCE = "running_var"
_NEARLY = 0.99


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

    def values(self, offset: int, size: int) -> FloatArray:
        """The values in ``size`` bytes of the data section from ``offset`` bytes on."""
        ...


class Inspection:
    """The checks of every value of one update whose form was checked, as far as it has come."""

    def __init__(self, layout: Layout, base: TensorFile, plan: ValidationPlan) -> None:
        self._base = base
        self._plan = plan
        self._runs = _runs(layout, base.layout)
        self._refused: UpdateRefused | None = None
        self._base_squared = 0.0
        self._change_squared = 0.0

    def go_on(self, update: Values, come: int) -> None:
        """Check what lies whole within the first ``come`` bytes and was not checked yet.

        What is found wrong is kept for :meth:`finish`: until the digest holds, it may be the disk.
        """
        while self._refused is None and (block := self._next(come)).size:
            try:
                self._check(block, update)
            except UpdateRefused as refusal:
                self._refused = refusal

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

    def _next(self, come: int) -> "_Block":
        """What to check next of the first ``come`` bytes; empty if there is nothing yet.

        As much at once as there is: numpy gives the interpreter away with each step over a block,
        and has to wait for it again while the event loop is busy.
        """
        block = _Block()
        while self._runs:
            run = self._runs[0]
            whole = (come - run.offset) // _ITEM_BYTES * _ITEM_BYTES
            size = min(run.size, whole, _BLOCK_BYTES - block.size)
            if size <= 0 or not block.goes_on_with(run):
                break
            block.add(run, size)
            if size == run.size:
                self._runs.popleft()
            else:
                self._runs[0] = run.after(size)
        return block

    def _check(self, block: "_Block", update: Values) -> None:
        values = update.values(block.offset, block.size)
        largest = self._plan.max_absolute_value
        for piece in block.pieces if _is_odd(values, largest) else block.variances:
            _check_piece(piece.name, values[piece.begin : piece.end], largest)
        before = self._base.values(block.base_offset, block.size)
        for begin, end in block.learned:
            self._base_squared += squared_norm(before[begin:end])
        np.subtract(values, before, out=before)
        for begin, end in block.learned:
            self._change_squared += squared_norm(before[begin:end])


def check_values(update: TensorFile, base: TensorFile, plan: ValidationPlan) -> None:
    """Check every value of a whole update whose form was checked.

    Raises:
        UpdateRefused: see :meth:`Inspection.finish`.
    """
    inspection = Inspection(update.layout, base, plan)
    inspection.go_on(update, update.layout.size_bytes)
    inspection.finish()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What is left to check of one tensor: where it lies in update and base, and its bytes."""

    name: str
    offset: int
    base_offset: int
    size: int

    def after(self, size: int) -> "_Run":
        """What is left of it after ``size`` bytes."""
        return _Run(
            name=self.name,
            offset=self.offset + size,
            base_offset=self.base_offset + size,
            size=self.size - size,
        )


def _runs(layout: Layout, base: Layout) -> deque[_Run]:
    """Every tensor of the update, in the order in which they come."""
    base_offsets = {spec.name: at for spec, at in base.offsets()}
    return deque(
        _Run(name=spec.name, offset=at, base_offset=base_offsets[spec.name], size=spec.size_bytes)
        for spec, at in layout.offsets()
        if spec.size_bytes
    )


@dataclass(frozen=True, slots=True)
class _Piece:
    """What of one tensor lies in a block, in values from the block's first on."""

    name: str
    begin: int
    end: int


@dataclass(slots=True)
class _Block:
    """A part of the update that lies alike in the base, and what it consists of."""

    offset: int = 0
    base_offset: int = 0
    size: int = 0
    pieces: list[_Piece] = field(default_factory=list)

    @property
    def variances(self) -> list[_Piece]:
        return [piece for piece in self.pieces if piece.name.endswith(_VARIANCE)]

    @property
    def learned(self) -> list[tuple[int, int]]:
        """Where what is learned begins and ends: neighbours as one."""
        found: list[tuple[int, int]] = []
        for piece in self.pieces:
            if is_statistic(piece.name):
                continue
            if found and found[-1][1] == piece.begin:
                found[-1] = (found[-1][0], piece.end)
            else:
                found.append((piece.begin, piece.end))
        return found

    def goes_on_with(self, run: _Run) -> bool:
        return not self.size or self.base_offset + self.size == run.base_offset

    def add(self, run: _Run, size: int) -> None:
        if not self.size:
            self.offset, self.base_offset = run.offset, run.base_offset
        first = self.size // _ITEM_BYTES
        self.pieces.append(_Piece(run.name, first, first + size // _ITEM_BYTES))
        self.size += size


def _is_odd(values: FloatArray, largest: float) -> bool:
    """Whether any value may be NaN, infinite or too large: each makes the sum of squares so.

    In one pass, where the ends would take two. It is a little wrong, so what is near is odd too.
    """
    return not math.sqrt(squared_norm(values)) <= _NEARLY * largest


def _check_piece(name: str, values: FloatArray, largest: float) -> None:
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):  # a NaN anywhere makes both NaN
        raise UpdateRefused(Refusal.NOT_FINITE, f"The tensor {name!r} holds NaN or infinity")
    if max(-low, high) > largest:
        raise UpdateRefused(Refusal.NORM, f"The tensor {name!r} holds a value beyond {largest:g}")
    if name.endswith(_VARIANCE) and low < 0:
        raise UpdateRefused(Refusal.NEGATIVE_VARIANCE, f"The running variance {name!r} is negative")
