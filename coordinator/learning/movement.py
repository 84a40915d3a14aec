"""How far and in which direction does each update move the model?

One walk over the files of a round: all inner products of the updates' changes δ_k = w_k − w_t of
the learned tensors, and the norm of each change of a running statistic. What an update looks like
beside the others (``suspicion``) follows from these few numbers.

Letters: K silos, B values of one block.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coordinator.learning.side_by_side import Opened, RoundFiles
from fedreid.jobs import Progress, ProgressSink
from fedreid.wire.tensors import TensorSpec, is_statistic

DoubleArray = npt.NDArray[np.float64]


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
    """Walk the files of a round."""
    count = len(files.updates_K)
    products = np.zeros((count + 1, count + 1))  # the last row is the model's own movement
    statistics: dict[str, DoubleArray] = {}
    for done, spec in enumerate(files.specs, start=1):
        if is_statistic(spec.name):
            statistics[spec.name] = _norms(files, spec)
        else:
            for at, size in files.blocks(spec):
                changes = _changes(files, spec.name, at, size)
                products += changes @ changes.T
        progress(Progress(phase="comparing", done=done, total=len(files.specs)))
    return Movement(
        products_KK=products[:count, :count],
        norms_K=np.sqrt(np.diag(products)[:count]),
        along_K=products[count, :count],
        moved=math.sqrt(products[count, count]),
        statistics=statistics,
    )


def _changes(files: RoundFiles, name: str, at: int, size: int) -> DoubleArray:
    """The changes of one block, a row for each silo and one for the published model."""
    base_B = files.base.read(name, at, size).astype(np.float64)
    rows = np.zeros((len(files.updates_K) + 1, size))
    for row, update in zip(rows, files.updates_K, strict=False):
        if update.has(name):
            np.subtract(update.read(name, at, size), base_B, out=row)
    if files.previous is not None:
        np.subtract(base_B, files.previous.read(name, at, size), out=rows[-1])
    return rows


def _norms(files: RoundFiles, spec: TensorSpec) -> DoubleArray:
    return np.array([_norm(update, files, spec) for update in files.updates_K])


def _norm(update: Opened, files: RoundFiles, spec: TensorSpec) -> float:
    if not update.has(spec.name):
        return math.nan
    squared = 0.0
    for at, size in files.blocks(spec):
        base_B = files.base.read(spec.name, at, size)
        change_B = np.subtract(update.read(spec.name, at, size), base_B, dtype=np.float64)
        squared += float(change_B @ change_B)
    return math.sqrt(squared)


def _ratio(value: float, by: float) -> float:
    return float(value / by) if by > 0.0 else 0.0
