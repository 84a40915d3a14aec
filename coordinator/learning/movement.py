"""How far and in which direction does each update move the model?

One walk over the files of a round: all inner products of the updates' changes δ_k = w_k − w_t of
the learned tensors, and the norm of each change of a running statistic. What an update looks like
beside the others (``suspicion``) follows from these few numbers.

Letters: K silos, B values of one block.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from coordinator.learning.side_by_side import DoubleArray, RoundFiles, Scratch
from fedreid.jobs import Progress, ProgressSink
from fedreid.wire.tensors import FloatArray, is_statistic

_FEW = 12  # rows; with OpenBLAS both ways take as long for some sixteen
_WALKS = 2
"""Threads that compare many silos."""
_MANY = 24
"""Silos, from which on two threads are faster; of fewer they hand Python's lock to each other for
every block, and take longer than one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """The changes of a round's updates, sorted by silo."""

    products_KK: DoubleArray
    """⟨δ_i, δ_j⟩ over the learned tensors; a tensor that a silo keeps has not moved."""
    norms_K: DoubleArray
    """‖δ_k‖."""
    along_K: DoubleArray
    """⟨δ_k, w_t − w_{t−1}⟩: with the last movement of the published model."""
    moved: float
    """‖w_t − w_{t−1}‖; 0 where there is no model before the base."""
    statistics: dict[str, DoubleArray]
    """By running mean or variance, the norm of each silo's change; NaN of one that kept it."""

    def cosines(self) -> DoubleArray:
        """Between each two changes; 0 where one has not moved."""
        lengths_KK = np.outer(self.norms_K, self.norms_K)
        cosines_KK = np.zeros_like(lengths_KK)
        np.divide(self.products_KK, lengths_KK, out=cosines_KK, where=lengths_KK > 0.0)
        return cosines_KK

    def cosine_along(self, k: int) -> float:
        """Between a change and the last movement of the model; 0 where one has not moved."""
        return _ratio(self.along_K[k], self.norms_K[k] * self.moved)


def measure(files: RoundFiles, progress: ProgressSink) -> Movement:
    """Walk the files of a round.

    Of many silos in two threads, whose blocks are the same ones on every machine, and so the sums.
    """
    count = len(files.updates_K)
    walks = _WALKS if count >= _MANY else 1
    with ThreadPoolExecutor(walks) as pool:
        first, *others = [
            pool.submit(_walk, files, files.blocks[start::walks], progress if start == 0 else None)
            for start in range(walks)
        ]
        sums = first.result()
        for other in others:
            sums.add(other.result())
    products = sums.products
    return Movement(
        products_KK=products[:count, :count],
        norms_K=np.sqrt(np.diag(products)[:count]),
        along_K=products[count, :count],
        moved=math.sqrt(products[count, count]),
        statistics={name: np.sqrt(squared_K) for name, squared_K in sums.squared.items()},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sums:
    """Over some of the blocks."""

    products: DoubleArray
    """Of the learned tensors; the last row is the model's own movement."""
    squared: dict[str, DoubleArray]
    """By running statistic, of each silo's change."""

    def add(self, other: "_Sums") -> None:
        """Have the blocks of another walk, too."""
        self.products[:] += other.products
        for name, squared_K in other.squared.items():
            self.squared[name] += squared_K


def _walk(
    files: RoundFiles, blocks: Sequence[tuple[str, int, int]], progress: ProgressSink | None
) -> _Sums:
    count = len(files.updates_K)
    sums = _Sums(
        products=np.zeros((count + 1, count + 1)),
        squared={
            spec.name: _none_moved(files, spec.name)
            for spec in files.specs
            if is_statistic(spec.name)
        },
    )
    scratch = Scratch()
    for done, (name, at, size) in enumerate(blocks, start=1):
        found = _products(files, scratch, name, at, size)
        if name in sums.squared:
            sums.squared[name] += np.diag(found)[:count]
        else:
            sums.products[:] += found
        if progress is not None:
            progress(Progress(phase="comparing", done=done, total=len(blocks)))
    return sums


def _products(files: RoundFiles, scratch: Scratch, name: str, at: int, size: int) -> DoubleArray:
    """The inner products of one block's changes."""
    changes = scratch.rows(len(files.updates_K) + 1, size)
    _fill_changes(changes, files, scratch.row(size), name, at)
    return _inner_products(changes)


def _fill_changes(
    rows: DoubleArray, files: RoundFiles, change_B: FloatArray, name: str, at: int
) -> None:
    """The changes of one block, a row for each silo and one for the published model.

    They are taken in float32, where a change is as exact as the values that it lies between, and
    widened then: the other way around takes three times as long.
    """
    base_B = files.base.read(name, at, len(change_B))
    for row, update in zip(rows, files.updates_K, strict=False):
        if update.has(name):
            update.read_into(name, at, change_B)
            row[:] = np.subtract(change_B, base_B, out=change_B)
        else:
            row.fill(0.0)
    if files.previous is not None:
        files.previous.read_into(name, at, change_B)
        rows[-1] = np.subtract(base_B, change_B, out=change_B)
    else:
        rows[-1].fill(0.0)


def _inner_products(rows: DoubleArray) -> DoubleArray:
    """Of each two rows. BLAS's product of matrices is slow where there are few long ones."""
    if len(rows) > _FEW:
        whole: DoubleArray = rows @ rows.T
        return whole
    products = np.empty((len(rows), len(rows)))
    for k, row in enumerate(rows):
        products[k, k:] = products[k:, k] = rows[k:] @ row
    return products


def _none_moved(files: RoundFiles, name: str) -> DoubleArray:
    """0 for each silo that sent a statistic, NaN for one that kept it."""
    return np.array([0.0 if u.has(name) else math.nan for u in files.updates_K])


def _ratio(value: float, by: float) -> float:
    return float(value / by) if by > 0.0 else 0.0
