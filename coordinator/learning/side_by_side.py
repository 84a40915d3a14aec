"""How are the files of one round read beside each other? Tensor by tensor, block by block.

One descriptor stays open per file. A block is the smaller the more silos there are, so memory
grows neither with the number of silos nor with the model.

Letters: K silos, B values of one block.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coordinator.learning.jobs import AggregateJob
from fedreid.errors import Refusal, UpdateRefused
from fedreid.limits import MIB
from fedreid.plan import BatchNormPolicy, keeps_batch_norm
from fedreid.wire.tensors import FloatArray, TensorFile, TensorSpec, batch_norm_names

DoubleArray = npt.NDArray[np.float64]

# Values of all silos together that are worked on at once: some 10 MiB in float64.
_BLOCK_VALUES = MIB // 2
_LEAST_VALUES = 2048  # of one silo: a smaller block costs more in calls than in arithmetic
_WIDTH = np.dtype(np.float32).itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """One model's file, opened."""

    silo: str
    """Empty for a published model."""
    file: TensorFile

    def has(self, name: str) -> bool:
        """Whether the file holds a tensor."""
        return name in self.file.layout.places

    def read(self, name: str, at: int, size: int) -> FloatArray:
        """``size`` values of a tensor from the value ``at`` on."""
        return self.file.values(self._offset(name, at), size * _WIDTH)

    def read_into(self, name: str, at: int, values_B: FloatArray) -> None:
        """Fill ``values_B`` with those of a tensor from the value ``at`` on."""
        self.file.read_into(self._offset(name, at), values_B.view(np.uint8).data)

    def _offset(self, name: str, at: int) -> int:
        return self.file.offset(name) + at * _WIDTH


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundFiles:
    """All files of one aggregation."""

    base: Opened
    previous: Opened | None
    """The model before the base, if there is one."""
    updates_K: tuple[Opened, ...]
    """Sorted by silo."""

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The base's tensors, in order."""
        return self.base.file.layout.specs

    @property
    def blocks(self) -> list[tuple[str, int, int]]:
        """Tensor, first index and number of values of each block, in the base's order."""
        least = min(_LEAST_VALUES, _BLOCK_VALUES)
        largest = max(least, _BLOCK_VALUES // len(self.updates_K))
        return [
            (spec.name, at, min(largest, spec.elements - at))
            for spec in self.specs
            for at in range(0, spec.elements, largest)
        ]


class Scratch:
    """Memory that is used again for each block: fresh pages cost more than what fills them."""

    def __init__(self) -> None:
        self._wide = np.empty(0)
        self._narrow = np.empty(0, dtype=np.float32)

    def rows(self, count: int, size: int) -> DoubleArray:
        """``count`` rows of ``size`` values; what was given out before is overwritten."""
        if len(self._wide) < count * size:
            self._wide = np.empty(count * size)
        return self._wide[: count * size].reshape(count, size)

    def row(self, size: int) -> FloatArray:
        """A row of ``size`` values in float32, overwritten likewise."""
        if len(self._narrow) < size:
            self._narrow = np.empty(size, dtype=np.float32)
        return self._narrow[:size]


def opened_round(stack: ExitStack, job: AggregateJob) -> RoundFiles:
    """The files of a job, open until the stack is left.

    Raises:
        UpdateRefused: an update whose tensors do not fit the base.
        StorageError: a file that is damaged.
    """
    files = RoundFiles(
        base=_opened(stack, "", job.base),
        previous=_opened(stack, "", job.previous) if job.previous else None,
        updates_K=tuple(
            _opened(stack, c.silo, c.path)
            for c in sorted(job.contributions, key=lambda contribution: contribution.silo)
        ),
    )
    for update in files.updates_K:
        _check_layout(update, files.base, job.aggregation.bn)
    return files


def _opened(stack: ExitStack, silo: str, path: str) -> Opened:
    file = stack.enter_context(TensorFile(Path(path)))
    return Opened(silo=silo, file=file)


def _check_layout(update: Opened, base: Opened, bn: BatchNormPolicy) -> None:
    """The base's tensors and no other; BatchNorm may be missing where it stays at silos."""
    if update.file.layout is base.file.layout:
        return
    expected, sent = frozenset(base.file.layout.specs), frozenset(update.file.layout.specs)
    names = base.file.layout.names
    optional = batch_norm_names(names) if keeps_batch_norm(bn) else frozenset()
    missing = {spec.name for spec in expected - sent} - optional
    odd = sorted(missing | {spec.name for spec in sent - expected})
    if odd:
        raise UpdateRefused(
            Refusal.TENSOR_NAMES,
            f"The update of {update.silo} does not fit the base model: {odd[0]!r} differs",
        )
