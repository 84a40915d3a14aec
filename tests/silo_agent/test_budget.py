"""Is every noisy update counted, at no less than its price, and none trained beyond the budget?"""

import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from fedreid.errors import ConfigRefused, ExitCode, PolicyRefused, StorageError
from silo_agent.budget import PrivacyBudget, Spending, epsilon_of
from silo_agent.config import Folders, Policy, PrivacyPolicy, load_config

ON = PrivacyPolicy(noise_multiplier=2.0, clip_norm=0.5, epsilon_budget=4.0)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


def spent(*pairs: tuple[float, int]) -> tuple[Spending, ...]:
    return tuple(Spending(noise_multiplier=noise, updates=updates) for noise, updates in pairs)


def exact_delta(epsilon: float, multiplier: float) -> float:
    """Of one Gaussian mechanism (Balle and Wang, ICML 2018, Theorem 8)."""

    def normal(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    half, tail = 1 / (2 * multiplier), epsilon * multiplier
    return normal(half - tail) - math.exp(epsilon) * normal(-half - tail)


@given(
    pairs=some.lists(
        some.tuples(some.floats(1.0, 50.0), some.integers(1, 30)), min_size=1, max_size=4
    )
)
@settings(deadline=None)  # the first call imports the accountant
def test_epsilon_is_never_below_the_exact_one_and_little_above(
    pairs: list[tuple[float, int]],
) -> None:
    # Gaussian mechanisms compose to one whose inverse squared multipliers add up.
    together = 1 / math.sqrt(sum(count / noise**2 for noise, count in pairs))
    told = epsilon_of(spent(*pairs), 1e-5)
    if told < 300.0:  # exp beyond is no float
        assert exact_delta(told, together) <= 1e-5
        assert exact_delta(told / 1.4, together) > 1e-5


def test_nothing_spent_costs_nothing_and_every_update_more() -> None:
    costs = [epsilon_of(spent((1.0, count)) if count else (), 1e-5) for count in range(6)]
    assert costs[0] == 0.0
    assert costs == sorted(set(costs))


def test_more_noise_costs_less() -> None:
    costs = [epsilon_of(spent((noise, 10)), 1e-5) for noise in (0.01, 0.1, 1.0, 10.0)]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > 10_000.0
    assert costs[3] < 2.0


def test_updates_are_counted_over_restarts_and_changes_of_the_noise(folders: Folders) -> None:
    first = PrivacyBudget(folders, ON).spend()
    second = PrivacyBudget(folders, ON).spend()
    louder = PrivacyPolicy(noise_multiplier=5.0, epsilon_budget=4.0)
    third = PrivacyBudget(folders, louder).spend()
    assert (second.noise_multiplier, second.clip_norm, second.delta) == (2.0, 0.5, 1e-5)
    assert third.noise_multiplier == 5.0
    assert 0.0 < first.epsilon < second.epsilon < third.epsilon
    statement = PrivacyBudget(folders, louder).statement()
    assert (statement.on, statement.updates, statement.epsilon) == (True, 3, third.epsilon)
    assert statement.epsilon == epsilon_of(spent((2.0, 2), (5.0, 1)), 1e-5)


def test_the_round_beyond_the_budget_is_refused_also_after_a_restart(folders: Folders) -> None:
    told = []
    with pytest.raises(PolicyRefused) as refused:
        for _ in range(100):
            PrivacyBudget(folders, ON).check()
            told.append(PrivacyBudget(folders, ON).spend().epsilon)
    assert 1 < len(told) < 100
    assert told[-1] <= ON.epsilon_budget
    assert refused.value.exit_code is ExitCode.POLICY
    assert "epsilon_budget" in refused.value.next_step
    for refuse in (PrivacyBudget(folders, ON).check, PrivacyBudget(folders, ON).spend):
        with pytest.raises(PolicyRefused):
            refuse()
    assert PrivacyBudget(folders, ON).statement().updates == len(told)


def test_a_larger_budget_lets_the_silo_go_on(folders: Folders) -> None:
    small = PrivacyPolicy(noise_multiplier=2.0, epsilon_budget=2.5)
    PrivacyBudget(folders, small).spend()
    with pytest.raises(PolicyRefused):
        PrivacyBudget(folders, small).spend()
    assert PrivacyBudget(folders, ON).spend().epsilon > 2.5


def test_without_noise_nothing_is_checked_or_written(folders: Folders) -> None:
    PrivacyBudget(folders, PrivacyPolicy()).check()
    assert not folders.privacy.exists()
    assert PrivacyBudget(folders, PrivacyPolicy()).statement().updates == 0


def test_a_crash_before_the_count_is_durable_spends_nothing_and_gives_nothing(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    PrivacyBudget(folders, ON).spend()
    before = folders.privacy.read_bytes()

    def crash(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        PrivacyBudget(folders, ON).spend()
    assert folders.privacy.read_bytes() == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[{}]",
        '[{"noise_multiplier": 1.0, "updates": -3}]',
        '[{"noise_multiplier": 0.0, "updates": 3}]',
        '[{"noise_multiplier": 1.0, "updates": 3, "forgiven": 2}]',
    ],
)
def test_a_damaged_count_is_never_taken_for_nothing(folders: Folders, text: str) -> None:
    folders.privacy.write_text(text)
    budget = PrivacyBudget(folders, ON)
    for ask in (budget.check, budget.spend, budget.statement):
        with pytest.raises(StorageError, match="backup"):
            ask()


def test_the_count_is_readable_by_its_owner_alone(folders: Folders) -> None:
    PrivacyBudget(folders, ON).spend()
    assert folders.privacy.stat().st_mode & 0o077 == 0


def test_the_statement_says_whether_it_still_holds(folders: Folders) -> None:
    off = PrivacyPolicy()
    assert "without noise" in PrivacyBudget(folders, off).statement().sentence()
    PrivacyBudget(folders, ON).spend()
    assert "of a budget of 4" in PrivacyBudget(folders, ON).statement().sentence()
    assert "off now" in PrivacyBudget(folders, off).statement().sentence()


def test_privacy_is_off_unless_the_operator_sets_it() -> None:
    assert not Policy().privacy.on


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ("noise_multiplier = 1.0", "epsilon_budget"),
        ("noise_multiplier = -1.0", "noise_multiplier"),
        ("clip_norm = 0.0", "clip_norm"),
        ("delta = 1.0", "delta"),
        ("delta = 0.0", "delta"),
        ("epsilon = 3.0", "epsilon_budget"),
        ("epsilon_budget = inf", "inf"),
    ],
)
def test_a_privacy_policy_that_protects_nothing_is_refused(
    folders: Folders, keys: str, why: str
) -> None:
    folders.config.write_text(f'coordinator = "a:1"\ndataset = "/d"\n[policy.privacy]\n{keys}\n')
    with pytest.raises(ConfigRefused, match=why):
        load_config(folders)
