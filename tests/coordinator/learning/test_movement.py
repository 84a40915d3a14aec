"""Are the inner products right, however many silos there are?"""

import numpy as np
import pytest

from coordinator.learning.movement import _FEW, _inner_products


@pytest.mark.parametrize("count", [1, 2, _FEW, _FEW + 1, 40])
def test_products_are_those_of_each_two_rows(count: int) -> None:
    rows_KB = np.random.default_rng(count).normal(size=(count, 1000))
    expected_KK = [[float((left * right).sum()) for right in rows_KB] for left in rows_KB]
    assert _inner_products(rows_KB) == pytest.approx(np.array(expected_KK), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("count", [5, _FEW, _FEW + 5])
def test_equal_changes_are_told_from_others_by_their_distance(count: int) -> None:
    rows_KB = np.random.default_rng(count).normal(size=(count, 100_000))
    rows_KB[-1] = rows_KB[1]
    products_KK = _inner_products(rows_KB)
    apart = products_KK[1, 1] + products_KK[-1, -1] - 2.0 * products_KK[1, -1]
    assert abs(apart) <= 1e-12 * products_KK[1, 1]
