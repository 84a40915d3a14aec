import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.ranking_child import torchreid_module
from fedreid.reid import distances, reranking
from fedreid.reid.reranking import Reranker, Reranking
from fedreid.reid.retrieval import evaluate, evaluate_distances
from tests.fedreid.reid.made_up import WIDTH, Case, Floats, corners


def slow_rerank(feats_QD: Floats, feats_GD: Floats, settings: Reranking) -> list[list[float]]:
    """The paper's definitions as sets and dictionaries: the obvious twin."""
    feats = [row.tolist() for row in (*feats_QD, *feats_GD)]
    everybody = range(len(feats))
    raw = [
        [max(0.0, 1 - sum(a * b for a, b in zip(x, y, strict=True))) for y in feats] for x in feats
    ]
    dist = [[d / (max(row) or 1.0) for d in row] for row in raw]
    order = [
        [j for _, _, j in sorted((j != i, raw[i][j], j) for j in everybody)] for i in everybody
    ]

    def reciprocal(i: int, k: int) -> set[int]:
        return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}

    weights: list[dict[int, float]] = []
    for i in everybody:
        members = set(own := reciprocal(i, settings.k1))
        for j in own:
            theirs = reciprocal(j, round(settings.k1 / 2))
            if 3 * len(theirs & own) > 2 * len(theirs):
                members |= theirs
        total = sum(math.exp(-dist[i][j]) for j in members)
        weights.append({j: math.exp(-dist[i][j]) / total for j in members})
    mean: list[dict[int, float]] = []
    for i in everybody:
        nearest = order[i][: settings.k2]
        columns = set().union(*(weights[j] for j in nearest))
        mean.append({c: sum(weights[j].get(c, 0) for j in nearest) / len(nearest) for c in columns})
    queries, share = len(feats_QD), settings.distance_weight
    result = []
    for q in range(queries):
        row = []
        for g in range(queries, len(feats)):
            both = mean[q].keys() | mean[g].keys()
            smaller = sum(min(mean[q].get(c, 0), mean[g].get(c, 0)) for c in both)
            larger = sum(max(mean[q].get(c, 0), mean[g].get(c, 0)) for c in both)
            row.append((1 - share) * (1 - smaller / larger) + share * dist[q][g])
        result.append(row)
    return result


def reranked(feats_QD: Floats, feats_GD: Floats, settings: Reranking) -> Floats:
    return Reranker(feats_QD, feats_GD, settings).distances(slice(0, len(feats_QD)))


@st.composite
def some_settings(draw: st.DrawFn) -> Reranking:
    k1 = draw(st.integers(1, 12))
    share = draw(st.sampled_from([0.0, 0.3, 1.0]))
    return Reranking(k1=k1, k2=draw(st.integers(1, min(6, k1 + 1))), distance_weight=share)


@given(
    queries=st.lists(st.integers(0, 2**WIDTH - 1), min_size=1, max_size=4),
    gallery=st.lists(st.integers(0, 2**WIDTH - 1), min_size=1, max_size=14),
    copies=st.integers(1, 2),
    chosen=some_settings(),
)
@settings(max_examples=120, deadline=None)
def test_distances_equal_the_slow_twin_with_ties_and_duplicates(
    queries: list[int], gallery: list[int], copies: int, chosen: Reranking
) -> None:
    feats = corners(queries), corners(gallery * copies)
    expected = slow_rerank(*feats, chosen)
    np.testing.assert_allclose(reranked(*feats, chosen), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("chosen", [Reranking(), Reranking(k1=9, k2=1), Reranking(k1=7, k2=3)])
def test_distances_equal_the_slow_twin_and_torchreids_code(chosen: Reranking) -> None:
    case = Case.random(12, 90)
    queries, gallery = case.feats_QD, case.feats_GD
    ours = reranked(queries, gallery, chosen)
    np.testing.assert_allclose(ours, slow_rerank(queries, gallery, chosen), rtol=0, atol=1e-5)

    def root(a: Floats, b: Floats) -> Floats:
        """Their code squares the distances that it is given."""
        return np.asarray(np.sqrt(np.maximum(1 - a @ b.T, 0)))

    theirs = torchreid_module("utils.rerank").re_ranking(
        root(queries, gallery), root(queries, queries), root(gallery, gallery),
        chosen.k1, chosen.k2, chosen.distance_weight,
    )  # fmt: skip
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_blocks_and_threads_do_not_change_the_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.random(9, 70)
    whole = reranked(case.feats_QD, case.feats_GD, Reranking())
    monkeypatch.setattr(distances, "BLOCK_BYTES", 2000)
    parts = Reranker(case.feats_QD, case.feats_GD, Reranking(), threads=3)
    for rows in (slice(0, 4), slice(4, 9)):
        np.testing.assert_allclose(parts.distances(rows), whole[rows], rtol=0, atol=1e-6)


def test_memory_does_not_hold_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.random(200, 3800, people=40)
    monkeypatch.setattr(distances, "BLOCK_BYTES", 1 << 20)
    tracemalloc.start()
    try:
        evaluate(*case.arrays(), rerank=Reranking(), threads=1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4000 * 4000 * 4 / 2


def test_evaluation_reranks_without_the_junk() -> None:
    case = Case.random(15, 80)
    kept = case.g_pids != -1
    assert not kept.all()
    matrix = reranked(case.feats_QD, case.feats_GD[kept], Reranking())
    labels = (case.q_pids, case.g_pids[kept], case.q_camids, case.g_camids[kept])
    by_hand = evaluate_distances(matrix, *labels)
    assert evaluate(*case.arrays(), rerank=Reranking()).map == pytest.approx(by_hand.map)


def test_reranking_helps_where_people_form_groups() -> None:
    case = Case.random(60, 600, people=30)
    assert evaluate(*case.arrays(), rerank=Reranking()).map > evaluate(*case.arrays()).map + 0.02


def test_equal_images_are_at_distance_zero_of_the_jaccard_kind() -> None:
    same = corners([5] * 4)
    assert reranked(same[:1], same[1:], Reranking()).tolist() == [[0.0, 0.0, 0.0]]


def test_more_images_than_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reranking, "RERANK_IMAGES", 10)
    with pytest.raises(ValueError, match="11 images are too many to re-rank; the limit is 10"):
        Reranker(corners([1]), corners(list(range(10))), Reranking())


def test_nothing_to_rank_is_refused_by_the_reranker_and_not_by_evaluation() -> None:
    empty = np.zeros((0, WIDTH), dtype=np.float32)
    with pytest.raises(ValueError, match="at least one"):
        Reranker(corners([1]), empty, Reranking())
    metrics = evaluate(corners([1]), empty, [1], [], [1], [], rerank=Reranking())
    assert metrics.num_valid == 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"k1": 0}, "k1 is 0"),
        ({"k1": 51}, "k1 is 51"),
        ({"k2": 0}, "k2 is 0"),
        ({"k1": 3, "k2": 5}, "k2 is 5; with k1 = 3"),
        ({"distance_weight": 1.5}, "1.5"),
        ({"distance_weight": math.nan}, "nan"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Reranking(**changes)  # type: ignore[arg-type]
