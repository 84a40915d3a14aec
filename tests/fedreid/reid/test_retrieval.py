import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from fedreid.reid import distances
from fedreid.reid.retrieval import RetrievalMetrics, evaluate, evaluate_distances, ranking
from tests.fedreid.reid.made_up import Case, Floats, Ints, cases

Slow = tuple[list[float], float, float, int]


def slow_evaluate(dist: list[list[float]], case: Case, max_rank: int) -> Slow:
    """§8 word by word: the obvious twin."""
    cmcs, aps, inps = [], [], []
    for q in range(len(case.q_pids)):
        order = sorted(range(len(case.g_pids)), key=lambda g: (dist[q][g], g))
        m = []
        for g in order:
            same_person = case.g_pids[g] == case.q_pids[q]
            own = same_person and case.g_camids[g] == case.q_camids[q]
            if not own and case.g_pids[g] != -1:
                m.append(bool(same_person))
        if not any(m):
            continue
        precisions = [sum(m[: i + 1]) / (i + 1) for i in range(len(m)) if m[i]]
        last = max(i for i in range(len(m)) if m[i]) + 1
        cmcs.append([any(m[:k]) for k in range(1, max_rank + 1)])
        aps.append(sum(precisions) / len(precisions))
        inps.append(sum(m) / last)
    if not cmcs:
        return [0.0] * max_rank, 0.0, 0.0, 0
    return list(np.mean(cmcs, axis=0)), float(np.mean(aps)), float(np.mean(inps)), len(aps)


def one_by_one(case: Case) -> list[list[float]]:
    """1 − dot product of each pair, in Python's floats."""
    return [
        [1 - sum(a * b for a, b in zip(q, g, strict=True)) for g in case.feats_GD.tolist()]
        for q in case.feats_QD.tolist()
    ]


def assert_equal(metrics: RetrievalMetrics, slow: Slow) -> None:
    cmc, mean_ap, mean_inp, valid = slow
    assert metrics.num_valid == valid
    np.testing.assert_allclose(metrics.cmc, cmc, rtol=0, atol=1e-12)
    assert metrics.map == pytest.approx(mean_ap, abs=1e-12)
    assert metrics.minp == pytest.approx(mean_inp, abs=1e-12)


def ints(*values: int) -> Ints:
    return np.array(values, dtype=np.int64)


def at_cosines(*cosines: float) -> Floats:
    """Gallery rows of length 1 at these cosines from ONE_QUERY."""
    return np.array([[c, (1 - c * c) ** 0.5] for c in cosines], dtype=np.float32)


ONE_QUERY = np.array([[1.0, 0.0]], dtype=np.float32)


def one_query(cosines: list[float], g_pids: Ints, g_camids: Ints) -> RetrievalMetrics:
    return evaluate(ONE_QUERY, at_cosines(*cosines), ints(7), g_pids, ints(1), g_camids, max_rank=5)


@given(case=cases())
@settings(max_examples=150, deadline=None)
def test_metrics_equal_the_slow_twin_with_ties_junk_distractors_and_duplicates(case: Case) -> None:
    slow = slow_evaluate(one_by_one(case), case, max_rank=10)
    assert_equal(evaluate(*case.arrays(), max_rank=10, threads=1), slow)
    matrix = np.array(one_by_one(case)).reshape(len(case.q_pids), len(case.g_pids))
    labels = case.arrays()[2:]
    assert_equal(evaluate_distances(matrix, *labels, max_rank=10, threads=1), slow)


def test_metrics_equal_the_slow_twin_where_nothing_is_exact() -> None:
    case = Case.random(30, 400)
    assert_equal(evaluate(*case.arrays()), slow_evaluate(one_by_one(case), case, 50))


def test_blocks_and_threads_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.random(25, 60)
    whole = evaluate(*case.arrays(), threads=1)
    monkeypatch.setattr(distances, "BLOCK_BYTES", 1000)
    for threads in (1, 3):
        parts = evaluate(*case.arrays(), threads=threads)
        assert (parts.map, parts.minp) == pytest.approx((whole.map, whole.minp), abs=1e-15)
        np.testing.assert_array_equal(parts.cmc, whole.cmc)


def test_memory_is_bound_by_blocks_and_not_by_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.random(2000, 4000)
    block, matrix = 1 << 20, 2000 * 4000 * 4
    monkeypatch.setattr(distances, "BLOCK_BYTES", block)
    tracemalloc.start()
    try:
        evaluate(*case.arrays(), threads=2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    kept_features = case.feats_GD.nbytes
    assert peak < 2 * 3 * block + 3 * kept_features < matrix / 4


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
    metrics = evaluate(queries, at_cosines(0.5), ints(7, 8), ints(7), ints(1, 1), ints(2))
    assert (metrics.num_valid, metrics.map) == (1, 1.0)


@pytest.mark.parametrize("shape", [(0, 0), (0, 2)])
def test_an_empty_gallery_or_query_has_no_valid_query(shape: tuple[int, int]) -> None:
    empty = np.zeros(shape, dtype=np.float32)
    assert evaluate(ONE_QUERY, empty, ints(7), ints(), ints(1), ints()).num_valid == 0
    assert evaluate(empty, ONE_QUERY, ints(), ints(7), [], [1]).num_valid == 0
    assert ranking(ONE_QUERY, empty, [7], [], [1], [], queries=[0])[0].gallery.size == 0


def test_beyond_the_gallerys_size_cmc_stays() -> None:
    metrics = evaluate(ONE_QUERY, at_cosines(0.9, 0.5), ints(7), ints(3, 7), ints(1), ints(2, 2))
    assert metrics.cmc.tolist() == [0.0] + [1.0] * 49
    assert metrics.rank(50) == 1.0
    for rank in (0, 51):
        with pytest.raises(ValueError, match="ranks 1 to 50"):
            metrics.rank(rank)


def test_scale_and_type_of_features_do_not_matter() -> None:
    case = Case.random(12, 80)
    queries, gallery = case.arrays()[:2]
    labels = case.arrays()[2:]
    expected = evaluate(queries, gallery, *labels)
    for scale, kind in ((1e30, np.float32), (1e-30, np.float32), (1e300, np.float64)):
        scaled = evaluate((queries * kind(scale)).astype(kind), gallery, *labels)
        assert scaled.map == pytest.approx(expected.map, abs=1e-12)
    stretched = gallery * np.linspace(0.1, 9, len(gallery), dtype=np.float32)[:, None]
    assert evaluate(queries, stretched, *labels).map == pytest.approx(expected.map, abs=1e-12)
    halves = evaluate(queries.astype(np.float16), gallery.astype(np.float16), *labels)
    assert halves.map == pytest.approx(expected.map, abs=0.02)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_torch_tensors_are_taken(kind: torch.dtype) -> None:
    case = Case.random(12, 80)
    feats = [torch.from_numpy(array).to(kind).requires_grad_() for array in case.arrays()[:2]]
    labels = case.arrays()[2:]
    q_pids, g_pids, q_camids, g_camids = (torch.from_numpy(array) for array in labels)
    rounded_QD, rounded_GD = (tensor.detach().double().numpy() for tensor in feats)
    expected = evaluate(rounded_QD, rounded_GD, *labels)
    metrics = evaluate(feats[0], feats[1], q_pids, g_pids, q_camids, g_camids)
    assert metrics.map == expected.map


def test_a_row_of_zeros_is_equally_far_from_everything() -> None:
    zeros = np.zeros((1, 2), dtype=np.float32)
    (ranked,) = ranking(zeros, at_cosines(0.9, 0.1), [7], [7, 7], [1], [2, 2], queries=[0])
    assert ranked.distances.tolist() == [1.0, 1.0]


def refused(**changes: object) -> str:
    arguments: dict[str, object] = {
        "feats_QD": ONE_QUERY,
        "feats_GD": at_cosines(0.5, 0.4),
        "q_pids": [7],
        "g_pids": [7, 8],
        "q_camids": [1],
        "g_camids": [2, 2],
    }
    with pytest.raises(ValueError) as caught:
        evaluate(**(arguments | changes))  # type: ignore[arg-type]
    return str(caught.value)


def test_what_does_not_fit_together_is_refused_with_both_names() -> None:
    assert refused(q_pids=[7, 7], q_camids=[1, 1]) == ("feats_QD has 1 rows and q_pids 2 entries")
    assert refused(g_pids=[7], g_camids=[1]) == "feats_GD has 2 rows and g_pids 1 entries"
    assert refused(g_camids=[1]) == "g_pids has 2 entries and g_camids 1"
    assert "feats_QD is 3 wide and feats_GD 2" in refused(feats_QD=np.eye(1, 3))
    assert "q_pids is a row of whole numbers" in refused(q_pids=[7.5])
    assert "feats_QD is a matrix" in refused(feats_QD=np.ones(2))
    assert "feats_QD is a matrix" in refused(feats_QD=np.array([["a"]]))
    assert "max_rank is 0" in refused(max_rank=0)
    assert "threads is 0" in refused(threads=0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused_with_their_row(value: float) -> None:
    broken = at_cosines(0.5, 0.4)
    broken[1, 0] = value
    assert "feats_GD is not finite" in refused(feats_GD=broken)
    assert "row 1" in refused(feats_GD=broken)


def test_a_matrix_that_does_not_fit_or_is_not_finite_is_refused() -> None:
    labels = (ints(7), ints(7, 8), ints(1), ints(2, 2))
    with pytest.raises(ValueError, match=r"shape \(2, 1\).*\(1, 2\)"):
        evaluate_distances(np.zeros((2, 1)), *labels)
    with pytest.raises(ValueError, match="finite"):
        evaluate_distances(np.array([[0.0, np.nan]]), *labels)


def test_the_given_matrix_and_features_are_not_written_on() -> None:
    case = Case.random(5, 20)
    matrix = np.array(one_by_one(case), dtype=np.float32)
    before = [array.copy() for array in (matrix, *case.arrays())]
    evaluate_distances(matrix, *case.arrays()[2:])
    evaluate(*case.arrays())
    for array, copy in zip((matrix, *case.arrays()), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_ranking_shows_the_best_without_removed_images() -> None:
    (ranked,) = ranking(
        ONE_QUERY,
        at_cosines(0.9, 0.8, 0.7, 0.6, 0.5),
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
