"""Is what leaves clipped and noisy as the theory asks, and nothing touched where noise is off?"""

import hashlib
import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from fedreid.contract import PrivacyReport
from fedreid.errors import JobFailed, PolicyRefused
from fedreid.files import make_folder
from fedreid.limits import MIB
from fedreid.plan import BatchNormPolicy, Encoding
from fedreid.wire.tensors import (
    FloatArray,
    Layout,
    TensorFile,
    batch_norm_names,
    load_tensors,
    save_tensors,
)
from silo_agent.budget import PrivacyBudget
from silo_agent.config import Folders, Policy, PrivacyPolicy
from silo_agent.egress import Parcel, pack
from silo_agent.outbox import OWN_FILE, UPDATE_FILE
from silo_agent.privacy import Entropy, add_noise, gaussian, make_private
from tests.silo_agent.example_round import ROUND

Tensors = dict[str, FloatArray]
_TWICE: tuple[Encoding, ...] = ("fp32", "fp32", "bf16", "bf16")
ON = PrivacyPolicy(noise_multiplier=1.0, clip_norm=0.5, epsilon_budget=100.0)


def fixed(seed: int = 7) -> Entropy:
    """The same random bytes in each test run."""
    return np.random.default_rng(seed).bytes


def model(seed: int, *, elements: int = 600) -> Tensors:
    random = np.random.default_rng(seed)
    return {
        "bn.bias": random.normal(size=3).astype(np.float32),
        "bn.running_mean": random.normal(size=3).astype(np.float32),
        "bn.running_var": random.uniform(0.5, 1.5, size=3).astype(np.float32),
        "bn.weight": random.normal(size=3).astype(np.float32),
        "conv.weight": random.normal(size=(elements // 2, 2)).astype(np.float32),
    }


def moved(base: Tensors, length: float, *, seed: int = 3) -> Tensors:
    """The base model after a step of that L2 norm."""
    random = np.random.default_rng(seed)
    step = {name: random.normal(size=values.shape) for name, values in base.items()}
    norm = math.sqrt(sum(float((values**2).sum()) for values in step.values()))
    return {name: (base[name] + step[name] * length / norm).astype(np.float32) for name in base}


def distance(one: Tensors, other: Tensors) -> float:
    """L2 norm of the difference: the slow twin of the norm in blocks."""
    return math.sqrt(sum(float(((one[n].astype(np.float64) - other[n]) ** 2).sum()) for n in one))


def noisy(
    folder: Path,
    trained: Tensors,
    base: Tensors,
    *,
    clip_norm: float,
    noise_multiplier: float,
    entropy: Entropy | None = None,
) -> Tensors:
    """What would leave, every tensor of it."""
    save_tensors(folder / "trained", trained)
    save_tensors(folder / "base", base)
    with TensorFile(folder / "trained") as one, TensorFile(folder / "base") as other:
        add_noise(
            one,
            other,
            folder / "out",
            one.layout,
            clip_norm=clip_norm,
            noise_multiplier=noise_multiplier,
            entropy=entropy or fixed(),
        )
    return load_tensors(folder / "out")


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(length=some.floats(1e-3, 50.0), clip_norm=some.floats(1e-2, 10.0))
def test_without_noise_the_change_is_scaled_down_to_the_clip_norm_and_never_up(
    tmp_path: Path, length: float, clip_norm: float
) -> None:
    base = model(1)
    base["bn.running_var"] += 100.0  # no variance falls below 0
    trained = moved(base, length)
    before = distance(trained, base)
    after = noisy(tmp_path, trained, base, clip_norm=clip_norm, noise_multiplier=0.0)
    # what leaves is float32: values of up to 100 are rounded by up to 4e-6
    assert distance(after, base) == pytest.approx(min(before, clip_norm), abs=1e-4)
    factor = min(1.0, clip_norm / before)
    for name in base:
        expected = base[name] + factor * (trained[name].astype(np.float64) - base[name])
        np.testing.assert_allclose(after[name], expected, rtol=1e-6, atol=1e-5)


def test_the_change_is_clipped_over_more_than_one_block(tmp_path: Path) -> None:
    base = model(1, elements=700_000)  # 2.8 MB: blocks are of 1 MiB
    trained = moved(base, 40.0)
    after = noisy(tmp_path, trained, base, clip_norm=2.0, noise_multiplier=0.0)
    assert distance(after, base) == pytest.approx(2.0, rel=1e-4)


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    base = model(1, elements=12_000_000)  # 48 MB
    save_tensors(tmp_path / "base", base)
    del base
    with TensorFile(tmp_path / "base") as file:
        tracemalloc.start()
        add_noise(file, file, tmp_path / "out", file.layout, clip_norm=1, noise_multiplier=1)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak_bytes < 24 * MIB


def test_an_update_that_has_not_moved_gets_noise_all_the_same(tmp_path: Path) -> None:
    base = model(1)
    after = noisy(tmp_path, base, base, clip_norm=1.0, noise_multiplier=0.1)
    assert all((after[name] != base[name]).any() for name in base)


def test_noise_has_the_deviation_that_the_sensitivity_asks_for(tmp_path: Path) -> None:
    base = model(1, elements=400_000)
    after = noisy(tmp_path, base, base, clip_norm=0.5, noise_multiplier=3.0)
    noise = (after["conv.weight"].astype(np.float64) - base["conv.weight"]).reshape(-1)
    deviation = 3.0 * 2 * 0.5
    # the sample deviation of n normal values lies within 5/sqrt(2n) of the true one, so surely
    # that a wrong factor would have to be within 0.6 % of the right one to pass
    assert noise.std() == pytest.approx(deviation, rel=5 / math.sqrt(2 * noise.size))
    assert abs(noise.mean()) < 5 * deviation / math.sqrt(noise.size)


def test_noise_is_normal_and_independent_of_its_neighbours() -> None:
    values = gaussian(1_000_001, fixed())
    assert values.shape == (1_000_001,)
    within = [float((np.abs(values) < bound).mean()) for bound in (0.5, 1.0, 2.0, 3.0)]
    expected = [math.erf(bound / math.sqrt(2)) for bound in (0.5, 1.0, 2.0, 3.0)]
    assert within == pytest.approx(expected, abs=0.0025)
    assert float((values**4).mean()) == pytest.approx(3.0, abs=0.05)
    assert abs(float((values[1:] * values[:-1]).mean())) < 0.005
    half = len(values) // 2
    assert (
        abs(float((values[:half] * values[half : 2 * half]).mean())) < 0.01
    )  # Box and Muller's pairs


def test_the_rarest_random_numbers_give_finite_noise() -> None:
    assert np.isfinite(gaussian(8, lambda size: bytes(size))).all()
    assert np.isfinite(gaussian(8, lambda size: b"\xff" * size)).all()


def test_noise_comes_from_the_operating_system_and_never_twice(tmp_path: Path) -> None:
    base = model(1)
    save_tensors(tmp_path / "base", base)
    outs = []
    for name in ("one", "two"):
        with TensorFile(tmp_path / "base") as file:
            add_noise(file, file, tmp_path / name, file.layout, clip_norm=1, noise_multiplier=1)
        outs.append(load_tensors(tmp_path / name))
    assert all((outs[0][name] != outs[1][name]).all() for name in ("bn.bias", "conv.weight"))


def test_no_variance_leaves_negative(tmp_path: Path) -> None:
    base = model(1)
    seen = []
    for seed in range(20):
        after = noisy(
            tmp_path, base, base, clip_norm=5.0, noise_multiplier=1.0, entropy=fixed(seed)
        )
        assert (after["bn.running_var"] >= 0.0).all()
        seen.append(after)
    assert any((after["bn.running_var"] == 0.0).any() for after in seen)
    assert any((after["bn.running_mean"] < -1.0).any() for after in seen)  # a mean may be


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_do_not_leave(tmp_path: Path, value: float) -> None:
    base = model(1)
    trained = {**base, "bn.bias": np.array([0.0, value, 0.0], np.float32)}
    with pytest.raises(JobFailed):
        noisy(tmp_path, trained, base, clip_norm=1.0, noise_multiplier=1.0)
    assert not (tmp_path / "out").exists()


def trained_round(folder: Path) -> tuple[Path, Path]:
    """A round's folder as training leaves it, and the file of its base model."""
    built = make_folder(folder / "round")
    base = model(1)
    save_tensors(folder / "base.safetensors", base)
    save_tensors(built / UPDATE_FILE, moved(base, 4.0))
    make_folder(built / "private")
    return built, folder / "base.safetensors"


def made_private(folder: Path, policy: Policy, bn: BatchNormPolicy = "pooled") -> tuple[Path, Path]:
    built, base = trained_round(folder)
    budget = PrivacyBudget(Folders(folder), policy.privacy)
    make_private(built, base, bn=bn, policy=policy, budget=budget)
    return built, base


def packed(
    built: Path,
    base: Path,
    policy: Policy,
    *,
    bn: BatchNormPolicy = "pooled",
    encoding: Encoding = "fp32",
) -> Parcel:
    spent = PrivacyReport(clip_norm=1.0, noise_multiplier=1.0, epsilon=4.8, delta=1e-5)
    finished = msgspec.structs.replace(
        ROUND, bn=bn, encoding=encoding, report=ROUND.report.withheld(spent)
    )
    return pack(
        finished,
        folder=built,
        update=built / UPDATE_FILE,
        base=base,
        policy=policy,
        destination="127.0.0.1:1",
    )


def test_with_noise_off_not_a_bit_of_the_round_is_touched(tmp_path: Path) -> None:
    built, base = trained_round(tmp_path)
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in built.rglob("*.*")}
    budget = PrivacyBudget(Folders(tmp_path), PrivacyPolicy())
    report = make_private(built, base, bn="pooled", policy=Policy(), budget=budget)
    assert report is None
    assert {p: hashlib.sha256(p.read_bytes()).digest() for p in built.rglob("*.*")} == before
    assert not Folders(tmp_path).privacy.exists()


def test_the_silo_keeps_its_own_backbone_without_noise(tmp_path: Path) -> None:
    built, base = made_private(tmp_path, Policy(privacy=ON))
    own, sent = load_tensors(built / OWN_FILE), load_tensors(built / UPDATE_FILE)
    assert all((own[n] == moved(load_tensors(base), 4.0)[n]).all() for n in own)
    assert not any((own[n] == sent[n]).all() for n in own)


def test_what_stays_here_is_neither_in_the_norm_nor_in_the_file(tmp_path: Path) -> None:
    policy = Policy(batchnorm_statistics=False, privacy=ON)
    built, base = made_private(tmp_path, policy, bn="local")
    sent = load_tensors(built / UPDATE_FILE)
    assert not batch_norm_names(load_tensors(base)) & sent.keys()
    parcel = packed(built, base, policy, bn="local")
    assert parcel.manifest.layout.names == ("conv.weight",)


def test_an_update_that_is_sent_again_is_the_same_to_the_byte(tmp_path: Path) -> None:
    policy = Policy(privacy=ON)
    built, base = made_private(tmp_path, policy)
    parcels = [packed(built, base, policy, encoding=encoding) for encoding in _TWICE]
    assert len({parcel.manifest.payload_digest for parcel in parcels}) == 2


def test_nothing_is_made_that_the_budget_does_not_cover(tmp_path: Path) -> None:
    short = PrivacyPolicy(noise_multiplier=1.0, epsilon_budget=4.0)
    built, base = trained_round(tmp_path)
    with pytest.raises(PolicyRefused):
        make_private(
            built, base, bn="pooled", policy=Policy(privacy=short),
            budget=PrivacyBudget(Folders(tmp_path), short),
        )  # fmt: skip
    assert not (built / UPDATE_FILE).exists()


def test_a_crash_while_noise_is_made_has_counted_the_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(size: int) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr("silo_agent.privacy.add_noise", _with_entropy(crash))
    built, base = trained_round(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        make_private(
            built, base, bn="pooled", policy=Policy(privacy=ON),
            budget=PrivacyBudget(Folders(tmp_path), ON),
        )  # fmt: skip
    assert not (built / UPDATE_FILE).exists()
    assert PrivacyBudget(Folders(tmp_path), ON).statement().updates == 1


def _with_entropy(entropy: Entropy) -> Callable[..., None]:
    def add(*args: object, **kwargs: object) -> None:
        add_noise(*args, **{**kwargs, "entropy": entropy})  # type: ignore[arg-type]

    return add


def _layout(path: Path) -> Layout:
    with TensorFile(path) as file:
        return file.layout
