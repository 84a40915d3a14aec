"""Is a model that moved out of all proportion told from one that training has moved?"""

from pathlib import Path

import numpy as np
import pytest

from fedreid.errors import PolicyRefused
from fedreid.limits import POLICY_RETRY_S, PRESENCE_S
from fedreid.wire.tensors import FloatArray, save_tensors
from silo_agent.config import Policy
from silo_agent.held import Held
from silo_agent.jumps import check_model

NOW_S = 1_000_000.0
BIG = 700_000
"""More values than one block holds."""


def model(folder: Path, **tensors: FloatArray) -> Held:
    path = folder / f"{len(list(folder.iterdir()))}.safetensors"
    save_tensors(path, {name.replace("__", "."): values for name, values in tensors.items()})
    return Held(path=str(path), digest="a" * 64, run="spring", round=1, version=1)


def values(seed: int, count: int = BIG) -> FloatArray:
    return np.random.default_rng(seed).normal(size=count).astype(np.float32)


def test_the_change_is_the_norm_of_the_difference_over_the_norm_before(tmp_path: Path) -> None:
    before, after = values(1), values(2)
    change = check_model(
        model(tmp_path, a=after, b=after[:7]),
        model(tmp_path, a=before, b=before[:7]),
        Policy(),
        NOW_S,
    )
    moved = np.concatenate([after - before, after[:7] - before[:7]]).astype(np.float64)
    norm = np.concatenate([before, before[:7]]).astype(np.float64)
    assert change == pytest.approx(np.linalg.norm(moved) / np.linalg.norm(norm), rel=1e-6)


def test_a_model_that_jumped_is_refused_and_asked_for_again_when_nobody_waits(
    tmp_path: Path,
) -> None:
    before = model(tmp_path, a=np.full(4, 1.0, dtype=np.float32))
    after = model(tmp_path, a=np.full(4, 3.0, dtype=np.float32))
    assert check_model(after, before, Policy(largest_model_change=2.0), NOW_S) == 2.0
    with pytest.raises(PolicyRefused, match="changed by 2 times") as refused:
        check_model(after, before, Policy(largest_model_change=1.9), NOW_S)
    assert refused.value.again_at_s == NOW_S + POLICY_RETRY_S
    assert POLICY_RETRY_S > PRESENCE_S
    assert check_model(after, before, Policy(largest_model_change=0.0), NOW_S) == 2.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("compared", [True, False])
@pytest.mark.parametrize("name", ["a", "bn__running_var"])
def test_a_value_that_is_no_number_is_refused_in_whichever_tensor(
    tmp_path: Path, bad: float, compared: bool, name: str
) -> None:
    tensors = {"a": values(1), "bn__running_var": values(2)}
    before = model(tmp_path, **tensors)
    tensors[name][-1] = bad
    after = model(tmp_path, **tensors)
    with pytest.raises(PolicyRefused, match="NaN or infinity"):
        check_model(after, before if compared else None, Policy(largest_model_change=0.0), NOW_S)


def test_running_statistics_may_move_as_they_like(tmp_path: Path) -> None:
    before = model(tmp_path, a=values(1, 9), bn__running_var=np.ones(3, dtype=np.float32))
    after = model(tmp_path, a=values(1, 9), bn__running_var=np.full(3, 1e6, dtype=np.float32))
    assert check_model(after, before, Policy(), NOW_S) == 0.0


def test_the_first_model_of_a_run_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    assert check_model(model(tmp_path, a=values(1, 9)), None, Policy(), NOW_S) is None


def test_a_model_of_other_tensors_in_the_same_run_is_refused(tmp_path: Path) -> None:
    before = model(tmp_path, a=values(1, 9))
    for after in (model(tmp_path, a=values(1, 8)), model(tmp_path, a=values(1, 9), b=values(2, 1))):
        with pytest.raises(PolicyRefused, match="other tensors"):
            check_model(after, before, Policy(), NOW_S)


def test_a_model_that_leaves_zero_has_jumped_beyond_every_limit(tmp_path: Path) -> None:
    zero = model(tmp_path, a=np.zeros(3, dtype=np.float32))
    assert check_model(zero, zero, Policy(), NOW_S) == 0.0
    with pytest.raises(PolicyRefused):
        check_model(model(tmp_path, a=values(1, 3)), zero, Policy(), NOW_S)
