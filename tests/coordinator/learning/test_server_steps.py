"""Does each method move the base model as its paper says? Compared with slow, obvious formulas.

Letters: K silos.
"""

from pathlib import Path

import numpy as np
import pytest

from coordinator.learning.aggregation import aggregate
from coordinator.learning.jobs import AggregateJob
from fedreid.plan import AggregationPlan
from fedreid.wire.tensors import TensorFile
from tests.coordinator.learning.test_aggregation import (
    SHAPES,
    Federation,
    Model,
    random_model,
    saved,
    without_batch_norm,
)

LEARNED = [name for name in SHAPES if "running" not in name]
STEPS_K = (4, 8, 12)
"""What Federation gives its silos."""


@pytest.fixture
def three(tmp_path: Path) -> Federation:
    return Federation(tmp_path, [random_model(k) for k in range(3)])


def moved(
    federation: Federation, plan: AggregationPlan, *, previous: Model | None = None, rho: float = 0
) -> tuple[list[float], Model]:
    """The shares, and the model that a plan makes of the federation's updates."""
    before = saved(federation.folder / "before", previous) if previous is not None else ""
    job = AggregateJob(
        base=str(federation.base_path),
        previous=str(before),
        contributions=tuple(federation.contributions),
        aggregation=plan,
        momentum=rho,
        out=str(federation.folder / "out"),
    )
    report = aggregate(job, federation.steps.append)
    with TensorFile(federation.folder / "out") as file:
        return list(report.weights.values()), file.read_all()


def delta(federation: Federation, k: int, name: str) -> np.ndarray:
    """w_k − w_t in float64."""
    update = federation.models[k][name].astype(np.float64)
    return np.asarray(update - federation.base[name].astype(np.float64))


def unrolled_norm(steps: int, rho: float) -> float:
    """‖a_k‖₁ of FedNova: how often each gradient of a path under momentum is added in all."""
    return sum(sum(rho**later for later in range(steps - step)) for step in range(steps))


@pytest.mark.parametrize("rho", [0.0, 0.9, 1.0])
def test_fednova_divides_each_step_by_the_length_of_its_path(three: Federation, rho: float) -> None:
    plan = AggregationPlan(weighting="samples", max_share=1.0, normalisation="fednova")
    p_K, model = moved(three, plan, rho=rho)
    norms_K = [unrolled_norm(steps, rho) for steps in STEPS_K]
    mean_norm = sum(p * norm for p, norm in zip(p_K, norms_K, strict=True))
    for name in LEARNED:
        step = sum(p_K[k] * delta(three, k, name) / norms_K[k] for k in range(3))
        np.testing.assert_allclose(model[name], three.base[name] + mean_norm * step, rtol=1e-5)


def test_fednova_is_fedpav_where_all_silos_make_equally_many_steps(three: Federation) -> None:
    three.contributions = [
        type(c)(
            silo=c.silo, path=c.path, num_images=c.num_images, num_steps=5,
            cosine_distance=c.cosine_distance,
        )
        for c in three.contributions
    ]  # fmt: skip
    _, nova = moved(three, AggregationPlan(normalisation="fednova"), rho=0.9)
    _, plain = moved(three, AggregationPlan())
    for name in SHAPES:
        np.testing.assert_allclose(nova[name], plain[name], rtol=1e-5, atol=1e-6)


def test_the_servers_step_scales_the_mean_update(three: Federation) -> None:
    p_K, model = moved(three, AggregationPlan(weighting="uniform", server_learning_rate=0.5))
    for name in LEARNED:
        step = sum(p_K[k] * delta(three, k, name) for k in range(3))
        np.testing.assert_allclose(model[name], three.base[name] + 0.5 * step, rtol=1e-5, atol=1e-6)


def test_momentum_goes_on_in_the_direction_of_the_last_two_models(three: Federation) -> None:
    previous = random_model(50)
    p_K, model = moved(three, AggregationPlan(server_momentum=0.9), previous=previous)
    for name in LEARNED:
        step = sum(p_K[k] * delta(three, k, name) for k in range(3))
        velocity = three.base[name].astype(np.float64) - previous[name]
        expected = three.base[name] + step + 0.9 * velocity
        np.testing.assert_allclose(model[name], expected, rtol=1e-4, atol=1e-5)


def test_the_first_round_has_no_momentum(three: Federation) -> None:
    _, first = moved(three, AggregationPlan(server_momentum=0.9))
    _, plain = moved(three, AggregationPlan())
    for name in SHAPES:
        np.testing.assert_array_equal(first[name], plain[name])


@pytest.mark.parametrize(
    "plan",
    [
        AggregationPlan(normalisation="fednova"),
        AggregationPlan(server_learning_rate=0.3),
        AggregationPlan(server_momentum=0.9),
    ],
    ids=["fednova", "step", "momentum"],
)
def test_running_statistics_take_no_steps(three: Federation, plan: AggregationPlan) -> None:
    _, model = moved(three, plan, previous=random_model(50), rho=0.9)
    _, plain = moved(three, AggregationPlan())
    for name in ("bn.running_mean", "bn.running_var"):
        np.testing.assert_array_equal(model[name], plain[name])


def test_silos_that_move_nothing_leave_the_base_where_it_is(tmp_path: Path) -> None:
    base = random_model(99)
    still = Federation(tmp_path, [base, base, base], base=base)
    plan = AggregationPlan(normalisation="fednova", server_learning_rate=0.7)
    _, model = moved(still, plan, rho=0.9)
    for name in LEARNED:
        np.testing.assert_allclose(model[name], base[name], rtol=1e-6)


def test_a_tensor_that_no_silo_sends_is_not_moved(tmp_path: Path) -> None:
    federation = Federation(tmp_path, [without_batch_norm(random_model(k)) for k in range(3)])
    plan = AggregationPlan(bn="local", server_momentum=0.9)
    _, model = moved(federation, plan, previous=random_model(50))
    np.testing.assert_array_equal(model["bn.weight"], federation.base["bn.weight"])
