"""How well do query features find their person in the gallery? (reid-spec §8)

Distance is one minus cosine; ties are settled by the gallery index. Gallery images of the query's
own person and camera, and junk (person −1), are removed; distractors (person 0) stay, since nobody
asks for them. docs/evaluation.md says where common code differs, and what this costs.

Letters: Q queries, G gallery images, D feature width, B queries of one block, P positives of one
query, K ranks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fedreid.reid.distances import (
    FloatArray,
    IndexArray,
    as_array,
    blocks,
    check_widths,
    cosine_distances,
    map_blocks,
    unit_rows,
)
from fedreid.reid.reranking import Reranker, Reranking

BoolArray = npt.NDArray[np.bool_]

JUNK_PID = -1

THREADS = 2
"""One sorts while the other multiplies: a gain even where BLAS has threads of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalMetrics:
    """Means over the valid queries, in 0..1; all 0 where no query is valid."""

    cmc: npt.NDArray[np.float64]
    """cmc[k − 1]: share of queries with a match among the first k."""
    map: float
    minp: float
    num_valid: int
    """Queries with at least one match left in the gallery."""

    def rank(self, k: int) -> float:
        """CMC at rank ``k``, from 1 to the ``max_rank`` that was asked for.

        Raises:
            ValueError: ``k`` is out of this range.
        """
        if not 1 <= k <= len(self.cmc):
            raise ValueError(f"rank {k} was not measured; ranks 1 to {len(self.cmc)} were")
        return float(self.cmc[k - 1])


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedQuery:
    """The best gallery images of one query, for a picture."""

    query: int
    gallery: IndexArray
    """Gallery indices, best first; removed ones do not appear."""
    correct: BoolArray
    distances: FloatArray


def evaluate(
    feats_QD: Any,
    feats_GD: Any,
    q_pids: Any,
    g_pids: Any,
    q_camids: Any,
    g_camids: Any,
    max_rank: int = 50,
    *,
    rerank: Reranking | None = None,
    threads: int = THREADS,
) -> RetrievalMetrics:
    """CMC, mAP and mINP by the single-query protocol of §8.

    No gallery is ranked in full: a positive's rank is the number of kept distances below its own,
    found in one unstable sort of values, which is much faster than a stable argsort. Beyond the
    features it needs ``threads`` × 3 × ``BLOCK_BYTES`` at most, and a copy of the features if their
    rows are not float32 of length 1 or if there is junk.

    Args:
        feats_QD: NumPy array or torch tensor on any device; any float type, any scale.
        feats_GD: as ``feats_QD``.
        q_pids: person of each query, whole numbers.
        g_pids: person of each gallery image.
        q_camids: camera of each query, whole numbers.
        g_camids: camera of each gallery image.
        max_rank: length of ``cmc``; beyond the gallery's size it stays as it is.
        rerank: k-reciprocal re-ranking; its figures are not comparable with those without.
        threads: blocks of queries worked on at once.

    Raises:
        ValueError: lengths or widths do not fit together, or values are not finite.
    """
    query, gallery = _People.of("q", q_pids, q_camids), _People.of("g", g_pids, g_camids)
    unit_QD, unit_GD = _features(feats_QD, feats_GD, query, gallery)
    kept_G = np.flatnonzero(gallery.pids != JUNK_PID)
    if len(kept_G) < len(gallery.pids):
        gallery, unit_GD = gallery.at(kept_G), unit_GD[kept_G]

    def distances(rows: slice) -> FloatArray:
        return cosine_distances(unit_QD[rows], unit_GD)

    if rerank and len(query.pids) and len(gallery.pids):
        distances = Reranker(unit_QD, unit_GD, rerank, threads=threads).distances
    return _evaluate(distances, query, gallery, max_rank=max_rank, threads=threads)


def evaluate_distances(
    dist_QG: Any,
    q_pids: Any,
    g_pids: Any,
    q_camids: Any,
    g_camids: Any,
    max_rank: int = 50,
    *,
    threads: int = THREADS,
) -> RetrievalMetrics:
    """As :func:`evaluate`, from a matrix of distances that somebody else has made.

    Raises:
        ValueError: the matrix does not fit the persons and cameras, or is not finite.
    """
    query, gallery = _People.of("q", q_pids, q_camids), _People.of("g", g_pids, g_camids)
    given_QG = as_array(dist_QG)
    if given_QG.shape != (len(query.pids), len(gallery.pids)):
        raise ValueError(
            f"dist_QG has shape {given_QG.shape}; q_pids and g_pids ask for "
            f"({len(query.pids)}, {len(gallery.pids)})"
        )
    if given_QG.dtype.kind not in "fiu" or not np.isfinite(given_QG).all():
        raise ValueError(f"dist_QG is not all finite numbers ({given_QG.dtype})")
    kept_G = np.flatnonzero(gallery.pids != JUNK_PID)
    kind = np.result_type(given_QG.dtype, np.float32)
    return _evaluate(
        lambda rows: np.take(given_QG[rows], kept_G, axis=1).astype(kind, copy=False),
        query,
        gallery.at(kept_G),
        max_rank=max_rank,
        threads=threads,
    )


def ranking(
    feats_QD: Any,
    feats_GD: Any,
    q_pids: Any,
    g_pids: Any,
    q_camids: Any,
    g_camids: Any,
    *,
    queries: Sequence[int],
    top_k: int = 10,
) -> list[RankedQuery]:
    """The ``top_k`` best gallery images of a few queries, by the same rules as :func:`evaluate`.

    Raises:
        ValueError: as :func:`evaluate`.
    """
    query, gallery = _People.of("q", q_pids, q_camids), _People.of("g", g_pids, g_camids)
    unit_QD, unit_GD = _features(feats_QD, feats_GD, query, gallery)
    chosen = np.asarray(queries, dtype=np.int64)
    ranked = []
    for rows in blocks(len(chosen), row_bytes=unit_GD.itemsize * len(unit_GD)):
        dist_BG = cosine_distances(unit_QD[chosen[rows]], unit_GD)
        for index, dist_G in zip(chosen[rows].tolist(), dist_BG, strict=True):
            matches_G = gallery.pids == query.pids[index]
            own_G = matches_G & (gallery.camids == query.camids[index])
            kept = np.flatnonzero(~own_G & (gallery.pids != JUNK_PID))
            best = kept[np.argsort(dist_G[kept], kind="stable")[:top_k]]
            ranked.append(
                RankedQuery(
                    query=index, gallery=best, correct=matches_G[best], distances=dist_G[best]
                )
            )
    return ranked


@dataclass(frozen=True, slots=True, kw_only=True)
class _People:
    """Person and camera of each image."""

    pids: IndexArray
    camids: IndexArray

    @classmethod
    def of(cls, letter: str, pids: Any, camids: Any) -> Self:
        """Checked: one whole number each, and as many cameras as persons."""
        people = cls(
            pids=_whole_numbers(f"{letter}_pids", pids),
            camids=_whole_numbers(f"{letter}_camids", camids),
        )
        if len(people.pids) != len(people.camids):
            raise ValueError(
                f"{letter}_pids has {len(people.pids)} entries "
                f"and {letter}_camids {len(people.camids)}"
            )
        return people

    def at(self, indices: IndexArray) -> "_People":
        """Those of some images."""
        return _People(pids=self.pids[indices], camids=self.camids[indices])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scores:
    """What the valid queries of a block have reached, in their order."""

    first_ranks: list[int]
    precisions: list[float]
    inverse_precisions: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Matches:
    """Where each query's person stands in the gallery: ``by_pid_G[start_Q[q]:stop_Q[q]]``."""

    by_pid_G: IndexArray
    start_Q: IndexArray
    stop_Q: IndexArray

    @classmethod
    def of(cls, query: _People, gallery: _People) -> Self:
        by_pid_G = np.argsort(gallery.pids, kind="stable")
        sorted_G = gallery.pids[by_pid_G]
        return cls(
            by_pid_G=by_pid_G,
            start_Q=np.searchsorted(sorted_G, query.pids, side="left"),
            stop_Q=np.searchsorted(sorted_G, query.pids, side="right"),
        )

    def positions(self, query: int) -> IndexArray:
        """Gallery indices of the query's person, ascending."""
        return self.by_pid_G[self.start_Q[query] : self.stop_Q[query]]


def _whole_numbers(name: str, values: Any) -> IndexArray:
    numbers = as_array(values)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise ValueError(
            f"{name} is a row of whole numbers, one per image; "
            f"this one is {numbers.dtype} of shape {numbers.shape}"
        )
    return numbers.astype(np.int64, copy=False)


def _features(
    feats_QD: Any, feats_GD: Any, query: _People, gallery: _People
) -> tuple[FloatArray, FloatArray]:
    """Both as rows of length 1, and as many as there are persons."""
    unit_QD, unit_GD = unit_rows("feats_QD", feats_QD), unit_rows("feats_GD", feats_GD)
    check_widths(unit_QD, unit_GD)
    if len(unit_QD) != len(query.pids):
        raise ValueError(f"feats_QD has {len(unit_QD)} rows and q_pids {len(query.pids)} entries")
    if len(unit_GD) != len(gallery.pids):
        raise ValueError(f"feats_GD has {len(unit_GD)} rows and g_pids {len(gallery.pids)} entries")
    return unit_QD, unit_GD


def _evaluate(
    distances: Callable[[slice], FloatArray],
    query: _People,
    gallery: _People,
    *,
    max_rank: int,
    threads: int,
) -> RetrievalMetrics:
    """Metrics by a function that gives dist_BG, to be written on, of a gallery without junk."""
    if max_rank < 1:
        raise ValueError(f"max_rank is {max_rank}; ranks begin at 1")
    matches = _Matches.of(query, gallery)
    parts = list(blocks(len(query.pids), row_bytes=4 * len(gallery.pids)))

    def work(rows: slice) -> _Scores:
        return _scores(distances(rows), range(rows.start, rows.stop), matches, query, gallery)

    return _means(list(map_blocks(work, parts, threads=threads)), max_rank)


def _scores(
    dist_BG: FloatArray, queries: range, matches: _Matches, query: _People, gallery: _People
) -> _Scores:
    """The scores of one block; ``dist_BG`` is written on."""
    scores = _Scores(first_ranks=[], precisions=[], inverse_precisions=[])
    positives = []
    for dist_G, index in zip(dist_BG, queries, strict=True):
        positions = matches.positions(index)
        own = gallery.camids[positions] == query.camids[index]
        dist_G[positions[own]] = np.inf
        positives.append(positions[~own])
    sorted_BG = np.sort(dist_BG, axis=1)
    for dist_G, sorted_G, positions_P in zip(dist_BG, sorted_BG, positives, strict=True):
        if not len(positions_P):
            continue
        ranks_P = _ranks(dist_G, sorted_G, positions_P)
        found_P = np.arange(1, len(ranks_P) + 1)
        scores.first_ranks.append(int(ranks_P[0]))
        scores.precisions.append(float(np.mean(found_P / ranks_P)))
        scores.inverse_precisions.append(len(ranks_P) / int(ranks_P[-1]))
    return scores


def _ranks(dist_G: FloatArray, sorted_G: FloatArray, positions_P: IndexArray) -> IndexArray:
    """1-based ranks_P, ascending, that a stable sort of ``dist_G`` would give the positions."""
    dist_P = dist_G[positions_P]
    below_P = np.searchsorted(sorted_G, dist_P, side="left")
    equal_P = np.searchsorted(sorted_G, dist_P, side="right") - below_P
    for place in np.flatnonzero(equal_P > 1):  # as far behind as equals have a smaller index
        below_P[place] += np.count_nonzero(dist_G[: positions_P[place]] == dist_P[place])
    return np.sort(below_P) + 1


def _means(parts: Sequence[_Scores], max_rank: int) -> RetrievalMetrics:
    """Sums run in the order of the queries, whatever the threads did."""
    first_ranks = np.array([rank for part in parts for rank in part.first_ranks], dtype=np.int64)
    valid = len(first_ranks)
    divisor = max(1, valid)
    hits_K = np.bincount(first_ranks[first_ranks <= max_rank], minlength=max_rank + 1)[1:]
    return RetrievalMetrics(
        cmc=np.cumsum(hits_K) / divisor,
        map=sum(value for part in parts for value in part.precisions) / divisor,
        minp=sum(value for part in parts for value in part.inverse_precisions) / divisor,
        num_valid=valid,
    )
