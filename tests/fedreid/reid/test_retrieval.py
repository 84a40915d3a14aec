import numpy as np
import numpy.typing as npt
import pytest

from fedreid.reid import retrieval
from fedreid.reid.retrieval import RetrievalMetrics, evaluate, ranking

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def slow_evaluate(
    feats_QD: Floats,
    feats_GD: Floats,
    q_pids: Ints,
    g_pids: Ints,
    q_camids: Ints,
    g_camids: Ints,
    max_rank: int,
) -> tuple[list[float], float, float, int]:
    """§8 word by word: the obvious twin."""
    cmcs, aps, inps = [], [], []
    for q in range(len(q_pids)):
        dist = [1 - float(np.dot(feats_QD[q], feats_GD[g])) for g in range(len(g_pids))]
        order = sorted(range(len(g_pids)), key=lambda g: (dist[g], g))
        m = []
        for g in order:
            own = g_pids[g] == q_pids[q] and g_camids[g] == q_camids[q]
            if not own and g_pids[g] != -1:
                m.append(bool(g_pids[g] == q_pids[q]))
        if not any(m):
            continue
        precisions = [sum(m[: i + 1]) / (i + 1) for i in range(len(m)) if m[i]]
        last = max(i for i in range(len(m)) if m[i]) + 1
        cmcs.append([any(m[:k]) for k in range(1, max_rank + 1)])
        aps.append(sum(precisions) / len(precisions))
        inps.append(sum(m) / last)
    return list(np.mean(cmcs, axis=0)), float(np.mean(aps)), float(np.mean(inps)), len(aps)


def grid_features(random: np.random.Generator, count: int) -> Floats:
    """Features on a coarse grid: dot products are exact, and ties are many."""
    return random.integers(-2, 3, size=(count, 3)).astype(np.float32) / np.float32(4)


def ints(*values: int) -> Ints:
    return np.array(values, dtype=np.int64)


def along_first_axis(*cosines: float) -> Floats:
    return np.array([[c, 0.0] for c in cosines], dtype=np.float32)


ONE_QUERY = np.array([[1.0, 0.0]], dtype=np.float32)


def one_query(cosines: list[float], g_pids: Ints, g_camids: Ints) -> RetrievalMetrics:
    gallery = along_first_axis(*cosines)
    return evaluate(ONE_QUERY, gallery, ints(7), g_pids, ints(1), g_camids, max_rank=5)


@pytest.mark.parametrize("seed", range(25))
def test_metrics_equal_the_slow_twin_with_ties_junk_and_distractors(seed: int) -> None:
    random = np.random.default_rng(seed)
    queries, gallery = int(random.integers(1, 9)), int(random.integers(1, 40))
    arguments = (
        grid_features(random, queries),
        grid_features(random, gallery),
        random.integers(1, 5, size=queries),
        np.append(random.integers(-1, 5, size=gallery - 1), 1),
        random.integers(1, 3, size=queries),
        np.append(random.integers(1, 3, size=gallery - 1), 3),
    )
    arguments[2][0] = 1  # at least one query is valid
    metrics = evaluate(*arguments, max_rank=10)
    cmc, mean_ap, mean_inp, valid = slow_evaluate(*arguments, max_rank=10)
    assert metrics.num_valid == valid
    np.testing.assert_allclose(metrics.cmc, cmc, rtol=0, atol=1e-12)
    assert metrics.map == pytest.approx(mean_ap, abs=1e-12)
    assert metrics.minp == pytest.approx(mean_inp, abs=1e-12)


def test_blocks_of_queries_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(5)
    arguments = (
        grid_features(random, 9),
        grid_features(random, 30),
        random.integers(1, 4, size=9),
        random.integers(-1, 4, size=30),
        random.integers(1, 3, size=9),
        random.integers(1, 3, size=30),
    )
    whole = evaluate(*arguments)
    monkeypatch.setattr(retrieval, "BLOCK_BYTES", 1)
    assert evaluate(*arguments).map == whole.map


def test_average_precision_of_ranks_one_and_three() -> None:
    metrics = one_query([0.9, 0.8, 0.7], ints(7, 3, 7), ints(2, 2, 3))
    assert metrics.map == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert metrics.minp == pytest.approx(2 / 3)
    assert metrics.rank(1) == 1.0


def test_ties_are_settled_by_the_gallery_index() -> None:
    assert one_query([0.5, 0.5], ints(7, 3), ints(2, 2)).map == 1.0
    assert one_query([0.5, 0.5], ints(3, 7), ints(2, 2)).map == 0.5


def test_junk_is_removed_and_a_distractor_counts_as_wrong() -> None:
    assert one_query([0.9, 0.5], ints(-1, 7), ints(2, 2)).map == 1.0
    assert one_query([0.9, 0.5], ints(0, 7), ints(2, 2)).map == 0.5


def test_the_querys_own_camera_is_removed() -> None:
    metrics = one_query([0.9, 0.5], ints(7, 7), ints(1, 2))
    assert metrics.map == metrics.rank(1) == 1.0


def test_one_camera_leaves_no_valid_query() -> None:
    metrics = one_query([0.9, 0.5], ints(7, 7), ints(1, 1))
    assert (metrics.num_valid, metrics.map, metrics.rank(5)) == (0, 0.0, 0.0)


def test_a_query_without_match_is_left_out_of_the_mean() -> None:
    queries = np.array([[1.0, 0.0], [1.0, 0.0]], dtype=np.float32)
    metrics = evaluate(queries, along_first_axis(0.5), ints(7, 8), ints(7), ints(1, 1), ints(2))
    assert (metrics.num_valid, metrics.map) == (1, 1.0)


def test_an_empty_gallery_has_no_valid_query() -> None:
    empty = np.zeros((0, 2), dtype=np.float32)
    assert evaluate(ONE_QUERY, empty, ints(7), ints(), ints(1), ints()).num_valid == 0


def test_ranking_shows_the_best_without_removed_images() -> None:
    gallery = along_first_axis(0.9, 0.8, 0.7, 0.6, 0.5)
    (ranked,) = ranking(
        ONE_QUERY,
        gallery,
        ints(7),
        ints(7, -1, 3, 7, 0),
        ints(1),
        ints(1, 2, 2, 2, 2),
        queries=[0],
        top_k=2,
    )
    assert ranked.gallery.tolist() == [2, 3]
    assert ranked.correct.tolist() == [False, True]
    np.testing.assert_allclose(ranked.distances, [0.3, 0.4], atol=1e-6)
