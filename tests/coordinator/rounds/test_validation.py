"""Is every update that must not count refused, for its reason, before it can do harm?"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from coordinator.rounds.validation import check_manifest, check_values
from fedreid.errors import Refusal, UpdateRefused
from fedreid.limits import MIB
from fedreid.names import Digest
from fedreid.plan import BatchNormPolicy, ValidationPlan
from fedreid.wire.manifest import Manifest
from fedreid.wire.tensors import FloatArray, Layout, TensorFile, TensorSpec, write_model

Tensors = dict[str, FloatArray]
Change = Callable[[Tensors], None]
PLAN = ValidationPlan()
NORMS = ("bn.bias", "bn.running_mean", "bn.running_var", "bn.weight")


def base_model() -> Tensors:
    return {
        "conv.weight": np.full((2, 3), 0.5, dtype=np.float32),
        "bn.weight": np.ones(3, dtype=np.float32),
        "bn.bias": np.zeros(3, dtype=np.float32),
        "bn.running_mean": np.zeros(3, dtype=np.float32),
        "bn.running_var": np.ones(3, dtype=np.float32),
        "scalar": np.array(2.0, dtype=np.float32),
    }


def layout_of(tensors: Tensors) -> Layout:
    return Layout.of(TensorSpec(name, values.shape) for name, values in tensors.items())


def stored(path: Path, tensors: Tensors) -> TensorFile:
    with path.open("wb") as stream:
        write_model(stream, tensors)
    return TensorFile(path)


def form_of(tensors: Tensors, *, bn: BatchNormPolicy = "pooled") -> None:
    manifest = Manifest(
        layout=layout_of(tensors),
        encoding="fp32",
        byte_count=layout_of(tensors).size_bytes,
        payload_digest=Digest("0" * 64),
    )
    check_manifest(manifest, layout_of(base_model()), bn)


def values_of(
    folder: Path, tensors: Tensors, *, base: Tensors | None = None, plan: ValidationPlan = PLAN
) -> None:
    before = stored(folder / "base", base_model() if base is None else base)
    with before, stored(folder / "update", tensors) as update:
        check_values(update, before, plan)


# Form


def test_the_base_models_own_tensors_have_the_right_form() -> None:
    form_of(base_model())


def removing(name: str) -> Change:
    def change(tensors: Tensors) -> None:
        del tensors[name]

    return change


def adding(name: str) -> Change:
    return lambda tensors: tensors.update({name: np.ones(1, np.float32)})


def renaming(old: str, new: str) -> Change:
    return lambda tensors: tensors.update({new: tensors.pop(old)})


def reshaping(name: str, *shape: int) -> Change:
    return lambda tensors: tensors.update({name: np.zeros(shape, np.float32)})


@pytest.mark.parametrize(
    ("what", "change", "reason"),
    [
        ("a missing tensor", removing("conv.weight"), Refusal.TENSOR_NAMES),
        ("a missing statistic", removing("bn.running_mean"), Refusal.TENSOR_NAMES),
        ("an extra tensor", adding("classifier.weight"), Refusal.TENSOR_NAMES),
        ("a renamed tensor", renaming("conv.weight", "conv.weighs"), Refusal.TENSOR_NAMES),
        ("a name in capitals", renaming("conv.weight", "CONV.WEIGHT"), Refusal.TENSOR_NAMES),
        ("a transposed shape", reshaping("conv.weight", 3, 2), Refusal.TENSOR_SHAPE),
        ("a flat shape", reshaping("conv.weight", 6), Refusal.TENSOR_SHAPE),
        ("a larger shape", reshaping("bn.weight", 4), Refusal.TENSOR_SHAPE),
        ("an empty shape", reshaping("bn.weight", 0), Refusal.TENSOR_SHAPE),
        ("a scalar as a vector", reshaping("scalar", 1), Refusal.TENSOR_SHAPE),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("bn", ["pooled", "local", "recalibrated", "reference"])
def test_an_update_of_another_form_is_refused(
    what: str, change: Change, reason: Refusal, bn: BatchNormPolicy
) -> None:
    tensors = base_model()
    change(tensors)
    with pytest.raises(UpdateRefused) as refused:
        form_of(tensors, bn=bn)
    assert refused.value.reason is reason


def without(*names: str) -> Tensors:
    return {name: values for name, values in base_model().items() if name not in names}


def test_with_local_batch_norm_all_of_it_may_stay_at_the_silo() -> None:
    form_of(without(*NORMS), bn="local")


@pytest.mark.parametrize("bn", ["pooled", "recalibrated", "reference"])
def test_with_any_other_policy_batch_norm_has_to_come(bn: BatchNormPolicy) -> None:
    with pytest.raises(UpdateRefused) as refused:
        form_of(without(*NORMS), bn=bn)
    assert refused.value.reason is Refusal.TENSOR_NAMES


@given(some.sets(some.sampled_from(NORMS), min_size=1, max_size=3))
def test_with_local_batch_norm_a_part_of_it_is_refused(left_out: set[str]) -> None:
    with pytest.raises(UpdateRefused) as refused:
        form_of(without(*left_out), bn="local")
    assert refused.value.reason is Refusal.TENSOR_NAMES


def test_with_local_batch_norm_other_tensors_still_have_to_come() -> None:
    with pytest.raises(UpdateRefused):
        form_of(without(*NORMS, "scalar"), bn="local")


def test_an_update_without_any_tensor_is_refused() -> None:
    with pytest.raises(UpdateRefused):
        form_of({}, bn="local")


def test_a_refusal_quotes_the_first_name_alone() -> None:
    tensors = base_model() | {f"extra{n:05d}": np.ones(1, np.float32) for n in range(1000)}
    with pytest.raises(UpdateRefused) as refused:
        form_of(tensors)
    assert "1000 tensors" in str(refused.value)
    assert len(str(refused.value)) < 400


# Values


def test_an_unchanged_model_is_a_good_update(tmp_path: Path) -> None:
    values_of(tmp_path, base_model())


def setting(name: str, value: float) -> Change:
    def change(tensors: Tensors) -> None:
        tensors[name].reshape(-1)[-1] = value

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (setting("conv.weight", np.nan), Refusal.NOT_FINITE),
        (setting("conv.weight", np.inf), Refusal.NOT_FINITE),
        (setting("conv.weight", -np.inf), Refusal.NOT_FINITE),
        (setting("bn.running_mean", np.nan), Refusal.NOT_FINITE),
        (setting("bn.running_var", np.inf), Refusal.NOT_FINITE),
        (setting("scalar", np.nan), Refusal.NOT_FINITE),
        (setting("conv.weight", 1e38), Refusal.NORM),
        (setting("conv.weight", -1e38), Refusal.NORM),
        (setting("bn.running_var", 1e38), Refusal.NORM),
        (setting("bn.running_mean", -1e38), Refusal.NORM),
        (setting("bn.running_var", -1e-30), Refusal.NEGATIVE_VARIANCE),
        (setting("bn.running_var", -1.0), Refusal.NEGATIVE_VARIANCE),
        (setting("conv.weight", 1000.0), Refusal.NORM),
    ],
)
def test_an_update_with_values_that_cannot_be_is_refused(
    tmp_path: Path, change: Change, reason: Refusal
) -> None:
    tensors = base_model()
    change(tensors)
    with pytest.raises(UpdateRefused) as refused:
        values_of(tmp_path, tensors)
    assert refused.value.reason is reason


def test_a_variance_of_zero_is_good(tmp_path: Path) -> None:
    tensors = base_model()
    tensors["bn.running_var"][:] = [0.0, -0.0, 1e-38]
    values_of(tmp_path, tensors)


def test_one_bad_value_is_found_wherever_it_stands(tmp_path: Path) -> None:
    elements = MIB // 4 * 2 + 5
    base = {"w": np.ones(elements, dtype=np.float32)}
    for place in (0, MIB // 4 - 1, MIB // 4, elements - 1):
        tensors = {"w": base["w"].copy()}
        tensors["w"][place] = np.nan
        with pytest.raises(UpdateRefused) as refused:
            values_of(tmp_path, tensors, base=base)
        assert refused.value.reason is Refusal.NOT_FINITE


def test_the_norm_of_the_change_is_measured_against_the_base_models(tmp_path: Path) -> None:
    base = {"a": np.array([3.0], np.float32), "b": np.array([4.0], np.float32)}  # norm 5
    plan = ValidationPlan(max_update_norm_ratio=2.0)
    values_of(tmp_path, {"a": base["a"] + 6, "b": base["b"] + 8}, base=base, plan=plan)
    with pytest.raises(UpdateRefused, match="the plan allows 10") as refused:
        values_of(tmp_path, {"a": base["a"] + 6.1, "b": base["b"] + 8}, base=base, plan=plan)
    assert refused.value.reason is Refusal.NORM


def test_statistics_have_no_part_in_the_norm(tmp_path: Path) -> None:
    tensors = base_model()
    tensors["bn.running_mean"][:] = 1e5
    tensors["bn.running_var"][:] = 1e5
    values_of(tmp_path, tensors)


def test_the_largest_value_is_the_plans(tmp_path: Path) -> None:
    plan = ValidationPlan(max_absolute_value=3.0, max_update_norm_ratio=1e6)
    tensors = base_model()
    tensors["conv.weight"][:] = -3.0
    values_of(tmp_path, tensors, plan=plan)
    tensors["conv.weight"][0, 0] = -3.001
    with pytest.raises(UpdateRefused) as refused:
        values_of(tmp_path, tensors, plan=plan)
    assert refused.value.reason is Refusal.NORM


def test_a_change_that_overflows_float32_is_refused_where_the_plan_allows_any_value(
    tmp_path: Path,
) -> None:
    plan = ValidationPlan(max_absolute_value=1e300, max_update_norm_ratio=1e6)
    base = {"w": np.full(2, 3e38, np.float32)}
    with np.errstate(over="ignore"), pytest.raises(UpdateRefused) as refused:
        values_of(tmp_path, {"w": -base["w"]}, base=base, plan=plan)
    assert refused.value.reason is Refusal.NORM


def test_an_update_without_batch_norm_is_measured_on_what_it_has(tmp_path: Path) -> None:
    values_of(tmp_path, without(*NORMS))
    tensors = without(*NORMS)
    tensors["conv.weight"][:] = 900.0
    with pytest.raises(UpdateRefused):
        values_of(tmp_path, tensors)


def test_empty_tensors_are_good(tmp_path: Path) -> None:
    base = {"empty": np.zeros((0, 4), np.float32), "w": np.ones(1, np.float32)}
    values_of(tmp_path, base, base=base)


@given(
    values=some.lists(some.floats(width=32), min_size=3, max_size=3).map(
        lambda values: np.array(values, dtype=np.float32)
    ),
    name=some.sampled_from(["bn.weight", "bn.running_mean", "bn.running_var"]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_passes_is_finite_bounded_and_no_negative_variance(
    tmp_path: Path, values: FloatArray, name: str
) -> None:
    try:
        values_of(tmp_path, base_model() | {name: values})
    except UpdateRefused:
        return
    assert np.isfinite(values).all()
    assert np.abs(values).max() <= PLAN.max_absolute_value
    assert name != "bn.running_var" or (values >= 0).all()
