"""How well do query features find their person in the gallery? (reid-spec §8)

Distance is one minus cosine; ties are settled by the gallery index. Gallery images of the query's
own person and camera, and junk (person −1), are removed; distractors (person 0) stay.

Letters: Q queries, G gallery images, D feature width, P positives of one query, K ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

JUNK_PID = -1

BLOCK_BYTES = 64 * 1024**2
"""Distances held at once: memory does not grow with the number of queries."""


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
        """CMC at rank ``k``, from 1 on."""
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
    feats_QD: FloatArray,
    feats_GD: FloatArray,
    q_pids: IndexArray,
    g_pids: IndexArray,
    q_camids: IndexArray,
    g_camids: IndexArray,
    max_rank: int = 50,
) -> RetrievalMetrics:
    """CMC, mAP and mINP of L2-normalised features by the single-query protocol of §8.

    No gallery is ranked in full: a positive's rank is the number of kept distances below its own,
    found in one unstable sort, which is several times faster than a stable argsort.
    """
    first = np.zeros(max_rank, dtype=np.float64)
    precision_sum = inverse_sum = 0.0
    num_valid = 0
    for query, dist_G in _distances(feats_QD, feats_GD, range(len(feats_QD))):
        matches_G = g_pids == q_pids[query]
        keep_G = ~(matches_G & (g_camids == q_camids[query])) & (g_pids != JUNK_PID)
        ranks_P = _ranks_of_matches(dist_G[keep_G], matches_G[keep_G])
        if not len(ranks_P):
            continue
        num_valid += 1
        found_P = np.arange(1, len(ranks_P) + 1)
        first[ranks_P[0] - 1 :] += 1.0
        precision_sum += float(np.mean(found_P / ranks_P))
        inverse_sum += len(ranks_P) / float(ranks_P[-1])
    divisor = max(1, num_valid)
    return RetrievalMetrics(
        cmc=first / divisor,
        map=precision_sum / divisor,
        minp=inverse_sum / divisor,
        num_valid=num_valid,
    )


def ranking(
    feats_QD: FloatArray,
    feats_GD: FloatArray,
    q_pids: IndexArray,
    g_pids: IndexArray,
    q_camids: IndexArray,
    g_camids: IndexArray,
    *,
    queries: Sequence[int],
    top_k: int = 10,
) -> list[RankedQuery]:
    """The ``top_k`` best gallery images of a few queries, by the same rules as :func:`evaluate`."""
    ranked = []
    for query, dist_G in _distances(feats_QD, feats_GD, queries):
        matches_G = g_pids == q_pids[query]
        keep_G = ~(matches_G & (g_camids == q_camids[query])) & (g_pids != JUNK_PID)
        kept = np.flatnonzero(keep_G)
        gallery = kept[np.argsort(dist_G[kept], kind="stable")[:top_k]]
        ranked.append(
            RankedQuery(
                query=query,
                gallery=gallery,
                correct=matches_G[gallery],
                distances=dist_G[gallery],
            )
        )
    return ranked


def _distances(
    feats_QD: FloatArray, feats_GD: FloatArray, queries: Sequence[int]
) -> Iterator[tuple[int, FloatArray]]:
    """Each query with dist_G, computed a block of queries at a time."""
    block = max(1, BLOCK_BYTES // max(1, feats_GD.itemsize * len(feats_GD)))
    for start in range(0, len(queries), block):
        chosen = list(queries[start : start + block])
        dist_QG = 1.0 - feats_QD[chosen] @ feats_GD.T
        yield from zip(chosen, dist_QG, strict=True)


def _ranks_of_matches(dist_G: FloatArray, match_G: BoolArray) -> IndexArray:
    """1-based ranks_P, ascending, that a stable sort of ``dist_G`` would give the matches."""
    positions_P = np.flatnonzero(match_G)
    positions_P = positions_P[np.argsort(dist_G[positions_P], kind="stable")]
    dist_P = dist_G[positions_P]
    sorted_G = np.sort(dist_G)
    below_P = np.searchsorted(sorted_G, dist_P, side="left")
    equal_P = np.searchsorted(sorted_G, dist_P, side="right") - below_P
    for place in np.flatnonzero(equal_P > 1):  # as far behind as equals have a smaller index
        below_P[place] += np.count_nonzero(dist_G[: positions_P[place]] == dist_P[place])
    return below_P + 1
