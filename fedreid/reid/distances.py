"""How far is each query from each gallery image? One minus cosine, a block of queries at a time.

Features come from NumPy or from torch on any device, in any float type and scale. They are worked
on as float32 rows of length 1: rows that have it already are used where they lie, others are
copied once. A row of zeros stays zero, at distance 1 from everything.

Two equal images may be an ulp (6e-8) apart from a third: BLAS sums in an order of its own.

Letters: N images, Q queries, G gallery images, D feature width, B queries of one block.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fedreid.limits import MIB

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]
Result = TypeVar("Result")

BLOCK_BYTES = 32 * MIB
"""Distances that one thread holds at once: memory does not grow with the number of queries."""

UNIT_TOLERANCE = 1e-5
"""How far a squared length may be from 1 to pass as float32 rounding."""


def as_array(values: Any) -> npt.NDArray[Any]:
    """NumPy's view of an array or sequence, or of a torch tensor on any device."""
    if not hasattr(values, "detach"):
        return np.asarray(values)
    tensor = values.detach().cpu()
    narrow = tensor.is_floating_point() and tensor.element_size() < 4  # NumPy has no bfloat16
    return np.asarray((tensor.float() if narrow else tensor).numpy())


def unit_rows(name: str, feats_ND: Any) -> FloatArray:
    """The features as float32 rows of length 1, without a copy where they are that already.

    Raises:
        ValueError: not a matrix of numbers, or not all of them finite; ``name`` is in the text.
    """
    given_ND = as_array(feats_ND)
    if given_ND.ndim != 2 or given_ND.dtype.kind not in "fiu":
        raise ValueError(
            f"{name} is a matrix of numbers, one row per image; "
            f"this one is {given_ND.dtype} of shape {given_ND.shape}"
        )
    if given_ND.dtype == np.float32 and _has_unit_rows(given_ND):
        return given_ND
    unit_ND = np.empty(given_ND.shape, dtype=np.float32)
    for rows in blocks(len(given_ND), row_bytes=given_ND.shape[1] * 8):
        unit_ND[rows] = _scaled(name, given_ND[rows].astype(np.float64), first=rows.start)
    return unit_ND


def check_widths(feats_QD: FloatArray, feats_GD: FloatArray) -> None:
    """Both must have the same D; an empty matrix has any.

    Raises:
        ValueError: they differ.
    """
    if len(feats_QD) and len(feats_GD) and feats_QD.shape[1] != feats_GD.shape[1]:
        raise ValueError(
            f"feats_QD is {feats_QD.shape[1]} wide and feats_GD {feats_GD.shape[1]}: "
            "they must come from the same model"
        )


def cosine_distances(feats_BD: FloatArray, feats_GD: FloatArray) -> FloatArray:
    """dist_BG, 0..2, of rows of length 1; an empty gallery need not be as wide."""
    if not len(feats_GD):
        return np.empty((len(feats_BD), 0), dtype=np.float32)
    dist_BG: FloatArray = feats_BD @ feats_GD.T
    return np.subtract(np.float32(1), dist_BG, out=dist_BG)


def blocks(rows: int, *, row_bytes: int) -> Iterator[slice]:
    """Slices of ``rows`` rows that take no more than ``BLOCK_BYTES`` each, and one row at least."""
    size = max(1, BLOCK_BYTES // max(1, row_bytes))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def map_blocks(
    work: Callable[[slice], Result], parts: Sequence[slice], *, threads: int
) -> Iterator[Result]:
    """The results in the order of ``parts``; NumPy leaves the interpreter free in the long calls.

    Raises:
        ValueError: ``threads`` is below 1.
    """
    if threads < 1:
        raise ValueError(f"threads is {threads}; at least one is needed")
    if threads == 1:
        yield from map(work, parts)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="retrieval") as pool:
        yield from pool.map(work, parts)


def _has_unit_rows(feats_ND: FloatArray) -> bool:
    squared_N = np.einsum("nd,nd->n", feats_ND, feats_ND)
    return bool(np.all(np.abs(squared_N - 1) <= UNIT_TOLERANCE))  # not true of a NaN


def _scaled(name: str, rows_BD: npt.NDArray[np.float64], *, first: int) -> npt.NDArray[np.float64]:
    """Rows of length 1; scaled by the largest value before, so that no square overflows."""
    broken_B = ~np.isfinite(rows_BD).all(axis=1)
    if broken_B.any():
        raise ValueError(
            f"{name} is not finite from row {first + int(np.argmax(broken_B))} on: "
            "the model that made it has diverged"
        )
    largest_B1 = np.abs(rows_BD).max(axis=1, keepdims=True, initial=0.0)
    rows_BD = rows_BD / np.where(largest_B1 > 0, largest_B1, 1.0)
    lengths_B1 = np.linalg.norm(rows_BD, axis=1, keepdims=True)
    return rows_BD / np.where(lengths_B1 > 0, lengths_B1, 1.0)
