"""May an update count? Everything is checked here before anything of it is used.

Form first (manifest and report against the base model, before a byte is taken), then values,
block by block while they come, so that memory does not grow with the model.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedreid.errors import Refusal, UpdateRefused
from fedreid.limits import KIB
from fedreid.plan import BatchNormPolicy, ValidationPlan, keeps_batch_norm
from fedreid.wire.manifest import Manifest
from fedreid.wire.tensors import Layout, TensorFile, batch_norm_names, is_statistic

_BLOCK_BYTES = 256 * KIB
_ITEM_BYTES = 4


def check_manifest(manifest: Manifest, base: Layout, bn: BatchNormPolicy) -> None:
    """Check names and shapes against the base model.

    With ``bn = local`` or ``adaptive`` an update may leave out what belongs to BatchNorm, all of
    it or nothing.

    Raises:
        UpdateRefused: a tensor is missing, unknown or of another shape.
    """
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
        if not moved <= min(limit, sys.float_info.max):
            raise UpdateRefused(
                Refusal.NORM,
                f"The update moves the model by a norm of {moved:.4g}",
                why=f"the plan allows {limit:.4g}",
            )

    def _check(self, block: "_Block", update: Values) -> None:
        values = np.empty(block.size // _ITEM_BYTES, dtype=np.float32)
        update.read_into(block.offset, values.view(np.uint8).data)
        _check_block(block.name, values, self._plan.max_absolute_value)
        if not is_statistic(block.name):
            before = self._base.values(block.base_offset, block.size)
            self._base_squared += _squared_norm(before)
            self._change_squared += _squared_norm(np.subtract(values, before, out=values))


def check_values(update: TensorFile, base: TensorFile, plan: ValidationPlan) -> None:
    """Check every value of a whole update whose form was checked.

    Raises:
        UpdateRefused: see :meth:`Inspection.finish`.
    """
    inspection = Inspection(update.layout, base, plan)
    inspection.go_on(update, update.layout.size_bytes)
    inspection.finish()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """A run of values of one tensor, and where they lie in update and base, in bytes."""

    name: str
    offset: int
    base_offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size


def _blocks(layout: Layout, base: Layout) -> Iterator[_Block]:
    base_offsets = {spec.name: at for spec, at in base.offsets()}
    for spec, offset in layout.offsets():
        for start in range(0, spec.size_bytes, _BLOCK_BYTES):
            yield _Block(
                name=spec.name,
                offset=offset + start,
                base_offset=base_offsets[spec.name] + start,
                size=min(_BLOCK_BYTES, spec.size_bytes - start),
            )


def _squared_norm(values: npt.NDArray[np.float32]) -> float:
    """In float32 within a block, where its rounding is far below what a limit is meant to tell."""
    with np.errstate(over="ignore"):  # infinite is beyond any limit
        return float(values @ values)


def _check_block(name: str, values: npt.NDArray[np.float32], largest: float) -> None:
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):  # a NaN anywhere makes both NaN
        raise UpdateRefused(Refusal.NOT_FINITE, f"The tensor {name!r} holds NaN or infinity")
    if max(-low, high) > largest:
        raise UpdateRefused(Refusal.NORM, f"The tensor {name!r} holds a value beyond {largest:g}")
    if name.endswith("running_var") and low < 0:
        raise UpdateRefused(Refusal.NEGATIVE_VARIANCE, f"The running variance {name!r} is negative")
