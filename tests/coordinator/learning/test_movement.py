"""Are the inner products right, however many silos there are?"""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from coordinator.learning.jobs import AggregateJob, Contribution
from coordinator.learning.movement import _FEW, _MANY, _inner_products, measure
from coordinator.learning.side_by_side import opened_round
from fedreid.jobs import Progress
from fedreid.plan import AggregationPlan
from fedreid.wire.tensors import save_tensors


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


@pytest.mark.parametrize("count", [2, _MANY - 1, _MANY, _MANY + 1])
def test_a_walk_over_files_finds_every_change(tmp_path: Path, count: int) -> None:
    """In one thread or two; the running mean is measured by itself, beside the learned tensors."""
    random = np.random.default_rng(count)
    shapes = {"trunk.a.weight": (300, 70), "trunk.bn.running_mean": (5000,), "trunk.b.weight": (9,)}

    def model(name: str) -> dict[str, np.ndarray]:
        tensors = {n: random.normal(size=shape).astype(np.float32) for n, shape in shapes.items()}
        save_tensors(tmp_path / name, tensors)
        return tensors

    base, previous = model("base"), model("previous")
    updates = [model(f"update-{index:02}") for index in range(count)]
    job = AggregateJob(
        base=str(tmp_path / "base"),
        previous=str(tmp_path / "previous"),
        contributions=tuple(
            Contribution(
                silo=f"silo-{index:02}",
                path=str(tmp_path / f"update-{index:02}"),
                num_images=1,
                num_steps=1,
                cosine_distance=0.0,
            )
            for index in range(count)
        ),
        aggregation=AggregationPlan(),
        out="",
    )
    told: list[Progress] = []
    with ExitStack() as stack:
        movement = measure(opened_round(stack, job), told.append)

    def change(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> np.ndarray:
        learned = [(left[name] - right[name]).ravel() for name in shapes if "running" not in name]
        return np.concatenate(learned).astype(np.float64)

    changes = np.array([change(update, base) for update in updates])
    own = change(base, previous)
    assert movement.products_KK == pytest.approx(changes @ changes.T, rel=1e-9, abs=1e-6)
    assert movement.along_K == pytest.approx(changes @ own, rel=1e-9, abs=1e-6)
    assert movement.moved == pytest.approx(np.linalg.norm(own))
    mean = "trunk.bn.running_mean"
    norms = [np.linalg.norm((update[mean] - base[mean]).astype(np.float64)) for update in updates]
    assert movement.statistics[mean] == pytest.approx(norms)
    assert told and told[-1].done == told[-1].total
