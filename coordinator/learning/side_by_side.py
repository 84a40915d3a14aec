"""How are the files of one round read beside each other? Tensor by tensor, block by block.

One descriptor stays open per file. A block is the smaller the more silos there are, so memory
grows neither with the number of silos nor with the model.

Letters: K silos, B values of one block.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from coordinator.learning.jobs import AggregateJob
from fedreid.errors import Refusal, UpdateRefused
from fedreid.limits import MIB
from fedreid.plan import BatchNormPolicy, keeps_batch_norm
from fedreid.wire.tensors import FloatArray, TensorFile, TensorSpec, batch_norm_names

DoubleArray = npt.NDArray[np.float64]
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

# Values of all silos together that are worked on at once: some 10 MiB in float64 a thread.
_BLOCK_VALUES = MIB // 2
_LEAST_VALUES = 2048  # of one silo: a smaller block costs more in calls than in arithmetic
_THREADS = 2  # a block is read while another is computed; more would rather wait for memory
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
        _, offset = self.file.layout.places[name]
        return self.file.values(offset + at * _WIDTH, size * _WIDTH)


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

    def blocks(self, spec: TensorSpec) -> Iterator[tuple[int, int]]:
        """First index and number of values of each block of a tensor; none of an empty one."""
        least = min(_LEAST_VALUES, _BLOCK_VALUES)
        largest = max(least, _BLOCK_VALUES // len(self.updates_K))
        for at in range(0, spec.elements, largest):
            yield at, min(largest, spec.elements - at)


class Scratch(threading.local):
    """Memory that each thread uses again: fresh pages cost more than what is computed in them."""

    def __init__(self) -> None:
        self._held = np.empty(0)

    def rows(self, count: int, size: int) -> DoubleArray:
        """``count`` rows of ``size`` values; what a thread got before is overwritten."""
        if len(self._held) < count * size:
            self._held = np.empty(count * size)
        return self._held[: count * size].reshape(count, size)


def in_order(work: Callable[[ItemT], ResultT], items: Iterable[ItemT]) -> Iterator[ResultT]:
    """What ``work`` makes of each item, in their order, a few of them at a time.

    NumPy and the disk let threads run side by side; the order makes sums the same every time.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        under_way: deque[Future[ResultT]] = deque()
        try:
            for item in items:
                under_way.append(pool.submit(work, item))
                if len(under_way) > 2 * _THREADS:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for left in under_way:
                left.cancel()


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
