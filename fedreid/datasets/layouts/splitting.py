"""Who trains and who is asked for, in a set whose publishers gave no split? (reid-spec §9)

The small sets are split ten times; a figure is the mean over the repeats, for one split alone
moves rank-1 by 2 to 4 points. A split is drawn from its index and the set's name, never from
the machine or the order of its files, so the same index is the same split everywhere.
"""

from collections.abc import Iterable
from typing import TypeVar

from fedreid.errors import UsageError
from fedreid.seeds import derive_seed

REPEATS = 10
"""Splits of a small set, by index from 0."""

_Thing = TypeVar("_Thing", int, str)


def check_split(split: int) -> None:
    """Refuse an index that is none.

    Raises:
        UsageError: it is outside 0..9.
    """
    if not 0 <= split < REPEATS:
        raise UsageError(f"There is no split {split}", next_step=f"Use one of 0 to {REPEATS - 1}.")


def shuffled(things: Iterable[_Thing], *, split: int, of: str) -> list[_Thing]:
    """The different things in an order drawn from the split's index and ``of``."""
    return sorted(set(things), key=lambda thing: derive_seed(split, "split", of, thing))


def drawn(pids: Iterable[int], *, split: int, of: str, share: float = 0.5) -> frozenset[int]:
    """That share of the identities, rounded down: those that train."""
    ordered = shuffled(pids, split=split, of=of)
    return frozenset(ordered[: int(len(ordered) * share)])
