"""How much privacy has this silo spent, and may it spend more?

The cost of an update depends on its noise multiplier alone, so what is kept is how many updates
left with which: ``privacy.json``. They compose over all rounds and runs, by the Rényi accountant
of Google's ``dp-accounting``, an upper bound. No amplification by sampling is claimed: the
coordinator knows in which rounds a silo took part.

An update that left before noise was switched on is covered by nothing and counted nowhere.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fedreid.contract import PrivacyReport
from fedreid.errors import PolicyRefused, StorageError, storage_errors
from fedreid.files import write_bytes
from fedreid.plan import Count, Positive
from silo_agent.config import Folders, PrivacyPolicy


class Spending(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Updates that have left with the same noise."""

    noise_multiplier: Positive
    updates: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """Where the budget stands."""

    on: bool
    updates: int
    """That have left with noise."""
    epsilon: float
    delta: float
    epsilon_budget: float

    def sentence(self) -> str:
        """It, for a person to read."""
        if not self.on and not self.updates:
            return "updates leave without noise (policy.privacy is off)"
        spent = (
            f"updates sent with noise: {self.updates}, epsilon {self.epsilon:.4g} at a delta of "
            f"{self.delta:g}"
        )
        if self.on:
            return f"{spent}, of a budget of {self.epsilon_budget:g}"
        return f"{spent}; noise is off now, so it says nothing of what leaves"


class PrivacyBudget:
    """What an agent's data folder has spent, under the policy of today."""

    def __init__(self, folders: Folders, policy: PrivacyPolicy) -> None:
        self._path = folders.privacy
        self._policy = policy

    def check(self) -> None:
        """Check that one more update is within the budget; without noise there is none.

        Raises:
            PolicyRefused: it is not.
            StorageError: what was spent can't be read.
        """
        if self._policy.on:
            self._affordable(_with_one_more(_read(self._path), self._policy.noise_multiplier))

    def spend(self) -> PrivacyReport:
        """Count one more update, durably: before it exists, so that none is left out.

        Raises:
            PolicyRefused: it is not within the budget.
            StorageError: what was spent can't be read or written.
        """
        assert self._policy.on
        spent = _with_one_more(_read(self._path), self._policy.noise_multiplier)
        epsilon = self._affordable(spent)
        write_bytes(self._path, msgspec.json.encode(spent), mode=0o600)
        return PrivacyReport(
            clip_norm=self._policy.clip_norm,
            noise_multiplier=self._policy.noise_multiplier,
            epsilon=epsilon,
            delta=self._policy.delta,
        )

    def statement(self) -> Statement:
        """Where the budget stands.

        Raises:
            StorageError: what was spent can't be read.
        """
        spent = _read(self._path)
        return Statement(
            on=self._policy.on,
            updates=sum(one.updates for one in spent),
            epsilon=epsilon_of(spent, self._policy.delta),
            delta=self._policy.delta,
            epsilon_budget=self._policy.epsilon_budget,
        )

    def _affordable(self, spent: tuple[Spending, ...]) -> float:
        """The epsilon of what would be spent, if the budget covers it."""
        epsilon = epsilon_of(spent, self._policy.delta)
        if not epsilon <= self._policy.epsilon_budget < math.inf:
            raise PolicyRefused(
                "The privacy budget does not last for another round",
                key="privacy.epsilon_budget",
                why=f"this update, the {sum(one.updates for one in spent)}th with noise, would "
                f"bring epsilon to {epsilon:.4g}, and the policy allows "
                f"{self._policy.epsilon_budget:g} at a delta of {self._policy.delta:g}",
                next_step="Raise policy.privacy.epsilon_budget, or leave: silo-agent leave.",
            )
        return epsilon


def epsilon_of(spent: tuple[Spending, ...], delta: float) -> float:
    """The epsilon that holds with ``delta`` for all of it together; 0 for nothing."""
    if not spent:
        return 0.0
    # Here and not above: it takes a second and 90 MB, which agents without noise need not have.
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE)
    for one in spent:
        accountant.compose(dp_accounting.GaussianDpEvent(one.noise_multiplier), one.updates)
    return float(accountant.get_epsilon(delta))


def _with_one_more(spent: tuple[Spending, ...], noise_multiplier: float) -> tuple[Spending, ...]:
    counts = {one.noise_multiplier: one.updates for one in spent}
    counts[noise_multiplier] = counts.get(noise_multiplier, 0) + 1
    return tuple(
        Spending(noise_multiplier=noise, updates=updates)
        for noise, updates in sorted(counts.items())
    )


def _read(path: Path) -> tuple[Spending, ...]:
    if not path.exists():
        return ()
    with storage_errors("read", path):
        text = path.read_bytes()
    try:
        return msgspec.json.decode(text, type=tuple[Spending, ...])
    except msgspec.DecodeError as error:
        raise StorageError(
            f"The file {path} is damaged",
            why=str(error),
            next_step="Restore it from a backup: without it the budget would begin anew.",
        ) from error
