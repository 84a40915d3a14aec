"""Do we measure what torchreid's eval_market1501 measures, where both define it?"""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.ranking_child import torchreid_module
from fedreid.reid.retrieval import evaluate_distances
from tests.fedreid.reid.made_up import Case, cases

rank = torchreid_module("metrics.rank")


def compared(dist_QG: npt.NDArray[np.float64], case: Case) -> None:
    """The same figures, once junk is dropped as torchreid's loaders do."""
    kept = case.g_pids != -1
    labels = (case.q_pids, case.g_pids[kept], case.q_camids, case.g_camids[kept])
    own = (labels[0][:, None] == labels[1]) & (labels[2][:, None] == labels[3])
    max_rank = max(1, int((~own).sum(axis=1).min(initial=kept.sum())))
    ours = evaluate_distances(dist_QG, *case.arrays()[2:], max_rank=max_rank, threads=1)
    if not ours.num_valid:
        with pytest.raises(AssertionError, match="do not appear"):
            rank.eval_market1501(dist_QG[:, kept], *labels, max_rank)
        return
    cmc, mean_ap = rank.eval_market1501(dist_QG[:, kept], *labels, max_rank)
    assert ours.map == pytest.approx(mean_ap, abs=1e-12)
    np.testing.assert_allclose(ours.cmc[: len(cmc)], cmc, rtol=0, atol=1e-6)


@given(case=cases(), seed=st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_figures_are_equal_where_ties_are_among_equals(case: Case, seed: int) -> None:
    """Its sort may order ties in any way: here a match never ties with a stranger."""
    random = np.random.default_rng(seed)
    matches_QG = case.q_pids[:, None] == case.g_pids
    dist_QG = 2.0 * random.integers(0, 6, size=matches_QG.shape) + matches_QG
    compared(dist_QG, case)


@pytest.mark.parametrize("cameras", [1, 2, 6])
def test_figures_are_equal_on_random_sets(cameras: int) -> None:
    case = Case.random(40, 500, seed=cameras)
    one_camera = np.ones_like(case.g_camids)
    if cameras == 1:
        case = Case(
            feats_QD=case.feats_QD,
            feats_GD=case.feats_GD,
            q_pids=case.q_pids,
            g_pids=case.g_pids,
            q_camids=np.ones_like(case.q_camids),
            g_camids=one_camera,
        )
    compared(1.0 - case.feats_QD.astype(np.float64) @ case.feats_GD.T, case)
