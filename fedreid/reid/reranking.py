"""Which images have each other among their neighbours? k-reciprocal re-ranking of a whole test set.

Zhong, Zheng, Cao, Li: *Re-ranking Person Re-identification with k-reciprocal Encoding*, CVPR 2017.
Equation numbers below are theirs; where their text and their published code differ, the code's rule
is taken, because the known figures come from it: a neighbour's half-size set joins if *more* than
two thirds of it are shared (5), and distances are divided by the largest of their row.

No N × N matrix is held: distances are made a block at a time, and each image keeps only its nearest
neighbours and its few weights.

Letters: N all images, queries first; Q queries, G gallery images, B images of one block, D feature
width, K = k1 + 1 an image with its k1 nearest, H the same for half of k1, E weights in all.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fedreid.limits import RERANK_IMAGES, RERANK_NEIGHBOURS
from fedreid.reid.distances import (
    FloatArray,
    IndexArray,
    blocks,
    check_widths,
    cosine_distances,
    map_blocks,
    unit_rows,
)

NeighbourArray = npt.NDArray[np.int32]
_Integers = npt.NDArray[np.integer[Any]]

_NOBODY = -1
"""Fills rows of neighbours that are not full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reranking:
    """Settings of k-reciprocal re-ranking; the defaults are the paper's.

    Raises:
        ValueError: a setting is out of its range.
    """

    k1: int = 20
    """Neighbours among which an image is looked for, 1 to ``RERANK_NEIGHBOURS``."""
    k2: int = 6
    """Nearest images, itself included, over whose weights an image's are averaged, from 1 on."""
    distance_weight: float = 0.3
    """λ: share of the original distance in the result, 0..1; the rest is the Jaccard distance."""

    def __post_init__(self) -> None:
        if not 1 <= self.k1 <= RERANK_NEIGHBOURS:
            raise ValueError(f"k1 is {self.k1}; it can be 1 to {RERANK_NEIGHBOURS}")
        if not 1 <= self.k2 <= self.k1 + 1:
            raise ValueError(f"k2 is {self.k2}; with k1 = {self.k1} it can be 1 to {self.k1 + 1}")
        if not 0.0 <= self.distance_weight <= 1.0:
            raise ValueError(f"distance_weight is {self.distance_weight}; it is a share, 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weights:
    """Rows of few values: columns ``starts[i]`` to ``starts[i + 1]`` belong to row i, ascending."""

    starts: IndexArray
    columns: NeighbourArray
    values: FloatArray

    @classmethod
    def of(cls, count: int, rows: _Integers, columns: _Integers, values: FloatArray) -> Self:
        """From entries sorted by row."""
        return cls(
            starts=np.searchsorted(rows, np.arange(count + 1)),
            columns=columns.astype(np.int32),
            values=values,
        )

    def entries(self, rows: IndexArray) -> tuple[IndexArray, IndexArray]:
        """(place in ``rows``, place in ``columns``) of all entries of some rows, in their order."""
        lengths = self.starts[rows + 1] - self.starts[rows]
        owners = np.repeat(np.arange(len(rows)), lengths)
        before = np.cumsum(lengths) - lengths
        return owners, np.arange(len(owners)) + (self.starts[rows] - before)[owners]


class Reranker:
    """Re-ranked distances of one test set; looks at all queries and gallery images together."""

    def __init__(
        self, feats_QD: Any, feats_GD: Any, settings: Reranking, *, threads: int = 1
    ) -> None:
        """Find neighbours and weights: N² distances, though never held at once.

        Raises:
            ValueError: no query or gallery image, more than ``RERANK_IMAGES`` of both together, or
                features that don't fit together or are not finite.
        """
        self._feats_QD = unit_rows("feats_QD", feats_QD)
        self._feats_GD = unit_rows("feats_GD", feats_GD)
        check_widths(self._feats_QD, self._feats_GD)
        self._queries, self._count = len(feats_QD), len(feats_QD) + len(feats_GD)
        if not len(feats_QD) or not len(feats_GD):
            raise ValueError("re-ranking needs at least one query and one gallery image")
        if self._count > RERANK_IMAGES:
            raise ValueError(
                f"{self._count} images are too many to re-rank; the limit is {RERANK_IMAGES}"
            )
        self._settings = settings
        neighbours_NK, self._largest_N = self._nearest(threads)
        weights = _averaged(self._encoded(neighbours_NK), neighbours_NK[:, : settings.k2])
        self._of_queries, self._by_column = weights, _gallery_by_column(weights, self._queries)

    def distances(self, rows: slice) -> FloatArray:
        """dist_BG of the queries of ``rows``, 0..1: d* = (1 − λ) · Jaccard + λ · d (12)."""
        share = np.float32(self._settings.distance_weight)
        dist_BG = cosine_distances(self._feats_QD[rows], self._feats_GD)
        np.maximum(dist_BG, 0, out=dist_BG)
        dist_BG *= (share / self._largest_N[rows])[:, None]
        for dist_G, query in zip(dist_BG, range(rows.start, rows.stop), strict=True):
            dist_G += (1 - share) * self._jaccard(query)
        return dist_BG

    def _jaccard(self, query: int) -> FloatArray:
        """jaccard_G = 1 − Σ min / Σ max (10); each row's weights sum to 1, so Σ max = 2 − Σ min."""
        mine = slice(*self._of_queries.starts[query : query + 2])
        columns = self._of_queries.columns[mine].astype(np.int64)
        owners, places = self._by_column.entries(columns)
        shared = np.minimum(self._of_queries.values[mine][owners], self._by_column.values[places])
        gallery = self._count - self._queries
        smaller_G = np.bincount(
            self._by_column.columns[places], weights=shared, minlength=gallery
        ).astype(np.float32)
        return 1 - smaller_G / (2 - smaller_G)

    def _nearest(self, threads: int) -> tuple[NeighbourArray, FloatArray]:
        """neighbours_NK, itself first and ties by index, and the largest distance of each row."""
        wanted = min(self._settings.k1 + 1, self._count)

        def work(rows: slice) -> tuple[NeighbourArray, FloatArray]:
            dist_BN = self._distances_to_all(rows)
            largest_B = dist_BN.max(axis=1)
            dist_BN[np.arange(len(dist_BN)), np.arange(rows.start, rows.stop)] = -1.0
            return _smallest(dist_BN, wanted), largest_B

        found = list(map_blocks(work, self._blocks(), threads=threads))
        neighbours_NK = np.concatenate([neighbours for neighbours, _ in found])
        largest_N = np.concatenate([largest for _, largest in found])
        return neighbours_NK, np.where(largest_N > 0, largest_N, np.float32(1))

    def _blocks(self) -> list[slice]:
        """Blocks of images, none of them partly queries and partly gallery."""
        row_bytes = 4 * self._count
        gallery = blocks(self._count - self._queries, row_bytes=row_bytes)
        return [
            *blocks(self._queries, row_bytes=row_bytes),
            *(slice(s.start + self._queries, s.stop + self._queries) for s in gallery),
        ]

    def _distances_to_all(self, rows: slice) -> FloatArray:
        feats_BD = self._features(np.arange(rows.start, rows.stop))
        dist_BN = np.empty((len(feats_BD), self._count), dtype=np.float32)
        dist_BN[:, : self._queries] = cosine_distances(feats_BD, self._feats_QD)
        dist_BN[:, self._queries :] = cosine_distances(feats_BD, self._feats_GD)
        return np.maximum(dist_BN, 0, out=dist_BN)

    def _features(self, images: _Integers) -> FloatArray:
        feats = np.empty((len(images), self._feats_GD.shape[1]), dtype=np.float32)
        asked = images < self._queries
        feats[asked] = self._feats_QD[images[asked]]
        feats[~asked] = self._feats_GD[images[~asked] - self._queries]
        return feats

    def _encoded(self, neighbours_NK: NeighbourArray) -> _Weights:
        """V (7): each image's weights exp(−d) over its expanded reciprocal set, summing to 1."""
        half = min(round(self._settings.k1 / 2) + 1, neighbours_NK.shape[1])
        full_NK = _reciprocal(neighbours_NK)
        half_NH = _reciprocal(neighbours_NK[:, :half])
        width = full_NK.shape[1]
        rows, columns, values = [], [], []
        # The largest array of the expansion has K·H·K flags an image; of the features, K·(H+1)·D.
        size = width * (half + 1) * max(width, 4 * self._feats_GD.shape[1])
        for part in blocks(self._count, row_bytes=size):
            members = _expanded(full_NK[part], half_NH)
            owners, places = np.nonzero(members != _NOBODY)
            rows.append(owners + part.start)
            columns.append(members[owners, places])
            values.append(self._closeness(owners, rows[-1], columns[-1]))
        return _Weights.of(
            self._count, np.concatenate(rows), np.concatenate(columns), np.concatenate(values)
        )

    def _closeness(
        self, owners: IndexArray, images: IndexArray, others: NeighbourArray
    ) -> FloatArray:
        """exp(−d) of pairs sorted by ``owners``, divided by its sum over each owner."""
        cosines = np.einsum("pd,pd->p", self._features(images), self._features(others))
        scaled = np.maximum(1 - cosines, 0) / self._largest_N[images]
        weights = np.exp(-scaled)
        first = np.flatnonzero(np.r_[True, owners[1:] != owners[:-1]])  # each has itself at least
        return np.asarray(weights / np.add.reduceat(weights, first)[owners], dtype=np.float32)


def _smallest(dist_BN: FloatArray, wanted: int) -> NeighbourArray:
    """Indices of the ``wanted`` smallest of each row, ascending, ties by index."""
    limit_B = np.partition(dist_BN, wanted - 1, axis=1)[:, wanted - 1]
    rows, columns = np.nonzero(dist_BN <= limit_B[:, None])
    order = np.lexsort((dist_BN[rows, columns], rows))
    starts = np.searchsorted(rows, np.arange(len(dist_BN)))
    return np.asarray(columns[order[starts[:, None] + np.arange(wanted)]], dtype=np.int32)


def _reciprocal(neighbours_NK: NeighbourArray) -> NeighbourArray:
    """R (1): each image's neighbours that have it among theirs; the others become ``_NOBODY``."""
    reciprocal_NK = np.full_like(neighbours_NK, _NOBODY)
    width = neighbours_NK.shape[1]
    for part in blocks(len(neighbours_NK), row_bytes=5 * width * width):
        images_B11 = np.arange(part.start, part.stop, dtype=np.int32)[:, None, None]
        mutual_BK = (neighbours_NK[neighbours_NK[part]] == images_B11).any(axis=2)
        reciprocal_NK[part] = np.where(mutual_BK, neighbours_NK[part], _NOBODY)
    return reciprocal_NK


def _expanded(full_BK: NeighbourArray, half_NH: NeighbourArray) -> NeighbourArray:
    """R* (5): R with the half-size sets of its members that share enough; each image once."""
    half_BKH = half_NH[full_BK]
    present_BKH = (half_BKH != _NOBODY) & (full_BK != _NOBODY)[:, :, None]
    shared_BKH = (half_BKH[..., None] == full_BK[:, None, None, :]).any(axis=3) & present_BKH
    joins_BK = 3 * shared_BKH.sum(axis=2) > 2 * present_BKH.sum(axis=2)
    joining_BKH = np.where(joins_BK[:, :, None] & present_BKH, half_BKH, _NOBODY)
    members = np.concatenate([full_BK, joining_BKH.reshape(len(full_BK), -1)], axis=1)
    members.sort(axis=1)
    repeated = members[:, 1:] == members[:, :-1]
    members[:, 1:][repeated] = _NOBODY
    return members


def _averaged(weights: _Weights, nearest_NK: NeighbourArray) -> _Weights:
    """Local query expansion (11): the mean of the weights of each image's k2 nearest."""
    count, k2 = nearest_NK.shape
    if k2 == 1:
        return weights
    rows, columns, values = [], [], []
    longest = int(np.diff(weights.starts).max())
    for part in blocks(count, row_bytes=40 * k2 * longest):
        owners, places = weights.entries(nearest_NK[part].ravel().astype(np.int64))
        keys = owners // k2 * count + weights.columns[places]
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        first = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
        sums = np.add.reduceat(weights.values[places][order].astype(np.float64), first)
        rows.append(keys[first] // count + part.start)
        columns.append(keys[first] % count)
        values.append((sums / k2).astype(np.float32))
    return _Weights.of(count, np.concatenate(rows), np.concatenate(columns), np.concatenate(values))


def _gallery_by_column(weights: _Weights, queries: int) -> _Weights:
    """The gallery's weights turned over: row = image that they speak of, column = gallery index."""
    count = len(weights.starts) - 1
    first = weights.starts[queries]
    owners = np.repeat(np.arange(count - queries), np.diff(weights.starts[queries:]))
    order = np.argsort(weights.columns[first:], kind="stable")
    return _Weights.of(
        count, weights.columns[first:][order], owners[order], weights.values[first:][order]
    )
