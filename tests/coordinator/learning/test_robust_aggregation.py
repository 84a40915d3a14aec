"""Do median, trimmed mean and clipping give what their obvious formulas give, with files on disk?

Letters: K silos, C channels.
"""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from coordinator.learning import side_by_side
from coordinator.learning.aggregation import aggregate
from coordinator.learning.jobs import AggregateJob, AggregateReport
from fedreid.errors import PlanRefused
from fedreid.files import digest_of
from fedreid.limits import STATISTIC_EXCESS
from fedreid.plan import AggregationPlan, parse_plan
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
MEDIAN = AggregationPlan(combine="median", weighting="uniform")
TRIMMED = AggregationPlan(combine="trimmed_mean", weighting="uniform", trim=0.2)
UNIFORM = AggregationPlan(weighting="uniform")
UNPROTECTED = AggregationPlan(weighting="uniform", clip_norm_ratio=0.0, screen=False)


def near(base: Model, seed: int, *, step: float = 0.01) -> Model:
    """A silo's model: the base, moved a little in a direction of its own."""
    random = np.random.default_rng(seed)
    model = {
        name: np.asarray(values + random.normal(size=values.shape) * step, np.float32)
        for name, values in base.items()
    }
    model["bn.running_var"] = np.abs(model["bn.running_var"])
    return model


def five(folder: Path, **changed: Model) -> Federation:
    """A federation of five honest silos, some of them replaced: ``silo_3=model``."""
    base = random_model(99)
    models = [changed.get(f"silo_{k}", near(base, k)) for k in range(5)]
    federation = Federation(folder, models, base=base)
    federation.contributions = [
        msgspec.structs.replace(c, num_steps=10, cosine_distance=0.1)
        for c in federation.contributions
    ]
    return federation


def turned(factor: float, seed: int = 3) -> Model:
    """What an honest silo would send, its change multiplied."""
    base = random_model(99)
    model = near(base, seed)
    wrong = {n: np.asarray(base[n] + factor * (model[n] - base[n]), np.float32) for n in model}
    wrong["bn.running_var"] = np.maximum(wrong["bn.running_var"], 0.0)
    return wrong


def made(
    federation: Federation, plan: AggregationPlan, *, previous: Model | None = None
) -> tuple[AggregateReport, Model]:
    before = saved(federation.folder / "before", previous) if previous is not None else ""
    job = AggregateJob(
        base=str(federation.base_path),
        previous=str(before),
        contributions=tuple(federation.contributions),
        aggregation=plan,
        out=str(federation.folder / "out"),
    )
    report = aggregate(job, federation.steps.append)
    with TensorFile(federation.folder / "out") as file:
        return report, file.read_all()


def slow_middle(values_K: list[float], cut: int) -> float:
    kept = sorted(values_K)[cut : len(values_K) - cut]
    return sum(kept) / len(kept)


def slow_tensor(models: list[Model], name: str, cut: int) -> np.ndarray:
    flat_K = [model[name].astype(np.float64).reshape(-1) for model in models]
    values = [slow_middle([flat[i] for flat in flat_K], cut) for i in range(flat_K[0].size)]
    return np.array(values).reshape(SHAPES[name])


@pytest.mark.parametrize(("plan", "cut"), [(MEDIAN, 2), (TRIMMED, 1)], ids=["median", "trimmed"])
def test_each_value_is_the_middle_of_the_silos_values(
    tmp_path: Path, plan: AggregationPlan, cut: int
) -> None:
    federation = five(tmp_path)
    report, model = made(federation, plan)
    assert set(report.weights.values()) == {0.2}
    for name in [*LEARNED, "bn.running_mean"]:
        expected = slow_tensor(federation.models, name, cut)
        np.testing.assert_allclose(model[name], expected, rtol=1e-6)


@pytest.mark.parametrize(("plan", "cut"), [(MEDIAN, 2), (TRIMMED, 1)], ids=["median", "trimmed"])
def test_a_variance_is_the_middle_of_the_spreads_around_the_middle_mean(
    tmp_path: Path, plan: AggregationPlan, cut: int
) -> None:
    federation = five(tmp_path)
    _, model = made(federation, plan)
    for c in range(4):
        means_K = [float(m["bn.running_mean"][c]) for m in federation.models]
        middle = slow_middle(means_K, cut)
        spreads_K = [
            float(m["bn.running_var"][c]) + (float(m["bn.running_mean"][c]) - middle) ** 2
            for m in federation.models
        ]
        expected = slow_middle(spreads_K, cut)
        assert model["bn.running_var"][c] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("silos", "trim", "left"),
    [(5, 0.2, 3), (4, 0.2, 2), (3, 0.2, 1), (2, 0.4, 2), (1, 0.4, 1), (5, 0.0, 5), (10, 0.3, 4)],
)
def test_a_trimmed_mean_leaves_out_a_share_at_either_end_and_never_all(
    tmp_path: Path, silos: int, trim: float, left: int
) -> None:
    base = random_model(99)
    models = []
    for k in range(silos):
        models.append(near(base, k, step=1e-6))
        models[k]["scale"] = np.asarray(2.0**k, np.float32)
    plan = AggregationPlan(
        combine="trimmed_mean", weighting="uniform", trim=trim, clip_norm_ratio=0, screen=False
    )
    _, model = made(Federation(tmp_path, models, base=base), plan)
    cut = (silos - left) // 2
    expected = sum(2.0**k for k in range(cut, silos - cut)) / left
    assert model["scale"] == pytest.approx(expected)


def test_a_trimmed_mean_that_trims_nothing_is_the_mean(tmp_path: Path) -> None:
    federation = five(tmp_path)
    _, plain = made(federation, UNIFORM)
    _, model = made(federation, msgspec.structs.replace(TRIMMED, trim=0.0))
    for name in SHAPES:
        np.testing.assert_allclose(model[name], plain[name], rtol=1e-6)


@pytest.mark.parametrize("plan", [MEDIAN, TRIMMED], ids=["median", "trimmed"])
def test_the_middle_stays_among_the_honest_even_where_nobody_is_screened(
    tmp_path: Path, plan: AggregationPlan
) -> None:
    plan = msgspec.structs.replace(plan, clip_norm_ratio=0.0, screen=False)
    garbage = {name: np.full(shape, 5e5, np.float32) for name, shape in SHAPES.items()}
    federation = five(tmp_path, silo_2=garbage)
    _, model = made(federation, plan)
    honest = [federation.models[k] for k in (0, 1, 3, 4)]
    for name in [*LEARNED, "bn.running_mean"]:
        assert (model[name] <= np.max([m[name] for m in honest], axis=0)).all()
        assert (model[name] >= np.min([m[name] for m in honest], axis=0)).all()
    assert (model["bn.running_var"] < 10.0).all()


@pytest.mark.parametrize("plan", [MEDIAN, TRIMMED], ids=["median", "trimmed"])
def test_step_and_momentum_go_on_from_the_middle(tmp_path: Path, plan: AggregationPlan) -> None:
    federation, previous = five(tmp_path), near(random_model(99), 50)
    _, middle = made(federation, plan)
    stepping = msgspec.structs.replace(plan, server_learning_rate=0.5, server_momentum=0.9)
    _, model = made(federation, stepping, previous=previous)
    for name in LEARNED:
        base = federation.base[name].astype(np.float64)
        expected = base + 0.5 * (middle[name] - base) + 0.9 * (base - previous[name])
        np.testing.assert_allclose(model[name], expected, rtol=1e-5, atol=1e-6)
    for name in ("bn.running_mean", "bn.running_var"):
        np.testing.assert_array_equal(model[name], middle[name])


def test_under_bn_local_the_middle_is_of_those_that_sent_a_tensor(tmp_path: Path) -> None:
    federation = five(tmp_path, silo_0=without_batch_norm(near(random_model(99), 0)))
    _, model = made(federation, msgspec.structs.replace(MEDIAN, bn="local"))
    expected = slow_tensor(federation.models[1:], "bn.weight", 1)  # four: the mean of the inner two
    np.testing.assert_allclose(model["bn.weight"], expected, rtol=1e-6)


# Clipping and screening, on files


def test_honest_silos_give_the_same_bytes_with_and_without_protection(tmp_path: Path) -> None:
    federation = five(tmp_path)
    made(federation, UNIFORM)
    protected = digest_of(tmp_path / "out")
    made(federation, UNPROTECTED)
    assert protected == digest_of(tmp_path / "out")


def test_a_change_that_is_too_long_counts_shortened(tmp_path: Path) -> None:
    federation = five(tmp_path, silo_3=turned(2.5))
    report, model = made(federation, UNIFORM)
    assert report.flags == {"silo-3": ("clipped",)}
    norms_K = list(report.update_norms.values())
    scale = 2.0 * sorted(norms_K[:3] + norms_K[4:])[2] / norms_K[3]
    for name in LEARNED:
        base = federation.base[name].astype(np.float64)
        changes_K = [m[name].astype(np.float64) - base for m in federation.models]
        changes_K[3] *= scale
        np.testing.assert_allclose(model[name], base + sum(changes_K) / 5, rtol=1e-5, atol=1e-7)


def test_fednova_divides_what_is_left_of_a_clipped_change(tmp_path: Path) -> None:
    federation = five(tmp_path, silo_3=turned(2.5))
    federation.contributions[0] = msgspec.structs.replace(federation.contributions[0], num_steps=12)
    report, model = made(federation, msgspec.structs.replace(UNIFORM, normalisation="fednova"))
    norms_K, steps_K = np.array(list(report.update_norms.values())), np.array([12, 10, 10, 10, 10])
    ratios = []
    for per_K in (norms_K / steps_K, norms_K / np.sqrt(steps_K)):
        ratios.append(per_K[3] / sorted(np.delete(per_K, 3))[2])
    scale = 2.0 / min(ratios)
    for name in LEARNED:
        base = federation.base[name].astype(np.float64)
        changes_K = [m[name].astype(np.float64) - base for m in federation.models]
        changes_K[3] *= scale
        step = sum(0.2 * c / s for c, s in zip(changes_K, steps_K, strict=True))
        np.testing.assert_allclose(model[name], base + 10.4 * step, rtol=1e-5, atol=1e-7)


def test_an_outlier_has_no_part_in_anything(tmp_path: Path) -> None:
    federation = five(tmp_path, silo_3=turned(-10.0))
    report, model = made(federation, UNIFORM)
    assert report.weights == {"silo-0": 0.25, "silo-1": 0.25, "silo-2": 0.25, "silo-3": 0.0,
                              "silo-4": 0.25}  # fmt: skip
    assert report.flags == {"silo-3": ("clipped", "outlier")}
    federation.contributions.pop(3)
    _, without = made(federation, UNIFORM)
    for name in SHAPES:
        np.testing.assert_array_equal(model[name], without[name])


def test_without_protection_the_outlier_counts(tmp_path: Path) -> None:
    federation = five(tmp_path, silo_3=turned(-10.0))
    report, model = made(federation, UNPROTECTED)
    assert report.weights["silo-3"] == 0.2 and report.flags == {"silo-3": ("outlier",)}
    honest = federation.models[3]["neck.weight"].astype(np.float64) * 0.2
    assert np.abs(model["neck.weight"] - honest).max() > 0.01


def test_poisoned_statistics_beside_honest_weights_are_clipped_tensor_by_tensor(
    tmp_path: Path,
) -> None:
    poisoned = near(random_model(99), 3)
    poisoned["bn.running_mean"] = np.full(4, 9e5, np.float32)
    poisoned["bn.running_var"] = np.full(4, 9e5, np.float32)
    federation = five(tmp_path, silo_3=poisoned)
    _, model = made(federation, UNIFORM)
    _, unprotected = made(federation, UNPROTECTED)
    assert (unprotected["bn.running_var"] > 1e5).all()
    for name in ("bn.running_mean", "bn.running_var"):
        base = federation.base[name].astype(np.float64)
        norms_K = [np.linalg.norm(m[name] - base) for m in federation.models]
        furthest = (STATISTIC_EXCESS + 4.0) / 5.0 * sorted(norms_K)[3] * 1.01
        assert np.linalg.norm(model[name] - base) < furthest + 0.001
    assert (model["bn.running_var"] >= 0.0).all()


def test_blocks_of_any_size_give_the_same_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = five(tmp_path)
    made(federation, MEDIAN)
    whole = digest_of(tmp_path / "out")
    monkeypatch.setattr(side_by_side, "_BLOCK_VALUES", 11)
    made(federation, MEDIAN)
    assert whole == digest_of(tmp_path / "out")


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ('combine = "median"', "set weighting = 'uniform'"),
        ('combine = "trimmed_mean"\nweighting = "samples"', "set weighting = 'uniform'"),
        ('combine = "median"\nweighting = "uniform"\nnormalisation = "fednova"', "leave it out"),
        ('combine = "median"\nweighting = "uniform"\nbn = "reference"', "choose another bn"),
        ('clustering = "finch"', "set clip_norm_ratio = 0 and screen = false"),
        ('clustering = "finch"\nclip_norm_ratio = 0.0', "set clip_norm_ratio = 0 and screen"),
        ('combine = "trimmed_mean"\nweighting = "uniform"\ntrim = 0.5', "trim"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_way_out(lines: str, reason: str) -> None:
    with pytest.raises(PlanRefused, match=reason):
        parse_plan(f'name = "x"\nrounds = 1\n[aggregation]\n{lines}\n')


def test_a_gate_without_a_test_set_is_refused() -> None:
    with pytest.raises(PlanRefused, match="set folder"):
        parse_plan('name = "x"\nrounds = 1\n[evaluation]\ngate_drop = 2.0\n')
