"""How are the figures of a grid condensed and compared? Mean ± sd, unrest, paired tests.

Standard deviations are those of a sample (n - 1). Letters: M samples, n pairs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev
from typing import Literal

import numpy as np
from scipy import stats

from benchmark.cells import CellResult
from benchmark.finished import Grid, at_the_end, models_of
from benchmark.results import Metric, ModelKind, series

LAST_ROUNDS = 10
"""Measured rounds at a run's end whose unrest is told."""

EXACT_PAIRS = 14
"""Up to so many pairs all 2^n signs are tried, 16,384; beyond, that many are drawn."""

Unit = Literal["seed", "silo"]
"""What a pair is: the mean over the silos of one seed, or one silo of one seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Mean and standard deviation of ``n`` values; one value has no deviation."""

    mean: float
    sd: float | None
    n: int


def spread(values: Iterable[float | None]) -> Spread | None:
    """Of the values that were measured; None without any."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(mean=fmean(known), sd=stdev(known) if len(known) > 1 else None, n=len(known))


@dataclass(frozen=True, slots=True, kw_only=True)
class Unrest:
    """How a method's figures move over its last rounds."""

    level: Spread
    """Over seeds: the mean of the silos' means over the window."""
    fluctuation: float
    """Standard deviation over the window, averaged over silos and seeds."""
    step: float
    """Mean absolute change between neighbouring measured rounds, averaged likewise."""
    rounds: int
    """Measured rounds in the shortest window."""


def unrest(cells: Sequence[CellResult], model: ModelKind, metric: Metric) -> Unrest | None:
    """Over the last ``LAST_ROUNDS`` or fewer measured rounds of one method's cells (seeds).

    None if no silo of any seed was measured at two rounds.
    """
    levels, deviations, steps, lengths = [], [], [], []
    for cell in cells:
        windows = [_window(cell, silo, model, metric) for silo in sorted(cell.silos)]
        moving = [window for window in windows if len(window) > 1]
        if moving:
            levels.append(fmean(fmean(window) for window in moving))
        for window in moving:
            deviations.append(stdev(window))
            steps.append(fmean(abs(after - before) for before, after in pairwise(window)))
            lengths.append(len(window))
    level = spread(levels)
    if level is None:
        return None
    return Unrest(
        level=level, fluctuation=fmean(deviations), step=fmean(steps), rounds=min(lengths)
    )


def _window(cell: CellResult, silo: str, model: ModelKind, metric: Metric) -> list[float]:
    return [value for _, value in series(cell.rounds, silo, model, metric)][-LAST_ROUNDS:]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTest:
    """Two rows of figures, value by value; both tests are two-sided.

    ``t_p`` is that of the paired t-test. ``sign_flip_p`` is the share of all ways to swap the two
    sides of pairs with a mean difference at least as large, doubled one-sided: with n pairs it
    can't fall below 2 / 2^n. None: fewer than two pairs, or differences that are all the same.
    """

    a: tuple[float, ...]
    b: tuple[float, ...]
    difference: Spread | None
    """Of a - b."""
    t_p: float | None
    sign_flip_p: float | None


def paired_test(a: Sequence[float], b: Sequence[float]) -> PairedTest:
    """Compare equally long rows of figures.

    Raises:
        ValueError: they are not equally long.
    """
    differences = [left - right for left, right in zip(a, b, strict=True)]
    difference = spread(differences)
    t_p = sign_flip_p = None
    if difference is not None and difference.sd is not None:
        sign_flip_p = _sign_flip_p(differences)
        if difference.sd > _SAME * max(abs(value) for value in differences):
            t_p = float(stats.ttest_rel(a, b).pvalue)
    return PairedTest(
        a=tuple(a), b=tuple(b), difference=difference, t_p=t_p, sign_flip_p=sign_flip_p
    )


_SAME = 1e-9
"""Differences whose deviation is below this share of them differ by rounding only."""


def _sign_flip_p(differences: Sequence[float]) -> float:
    result = stats.permutation_test(
        (np.asarray(differences),),
        lambda values_Mn, axis: np.mean(values_Mn, axis=axis),
        permutation_type="samples",
        n_resamples=2**EXACT_PAIRS,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedComparison:
    """Method a against method b at the end, over the seeds that both have."""

    a: str
    b: str
    scenario: str
    model: ModelKind
    metric: Metric
    unit: Unit
    seeds: tuple[int, ...]
    test: PairedTest


def compare(
    cells: Sequence[CellResult],
    a: str,
    b: str,
    *,
    scenario: str,
    model: ModelKind,
    metric: Metric,
    unit: Unit = "seed",
) -> PairedComparison:
    """Pair the figures of two methods by seed, over the silos that both measured.

    A baseline takes part with its one model, whatever ``model`` is. Silos of a seed share its
    global model, so pairs of unit ``silo`` depend on one another: read them as a description,
    the pairs of unit ``seed`` as the test.
    """
    grid = Grid.of(cells)
    seeds, rows_a, rows_b = [], [], []
    others = {cell.seed: cell for cell in grid.of_method(scenario, b)}
    for cell in grid.of_method(scenario, a):
        pairs = _silo_pairs(cell, others.get(cell.seed), model, metric)
        if not pairs:
            continue
        seeds.append(cell.seed)
        if unit == "seed":
            pairs = [(fmean(left for left, _ in pairs), fmean(right for _, right in pairs))]
        rows_a += [left for left, _ in pairs]
        rows_b += [right for _, right in pairs]
    return PairedComparison(
        a=a,
        b=b,
        scenario=scenario,
        model=model,
        metric=metric,
        unit=unit,
        seeds=tuple(seeds),
        test=paired_test(rows_a, rows_b),
    )


def _silo_pairs(
    cell: CellResult, other: CellResult | None, model: ModelKind, metric: Metric
) -> list[tuple[float, float]]:
    if other is None:
        return []
    pairs = []
    for silo in sorted(cell.silos):
        left, right = at_the_end(cell, silo, model), at_the_end(other, silo, model)
        if left is not None and right is not None:
            pairs.append((getattr(left, metric), getattr(right, metric)))
    return pairs


def shared_models(grid: Grid, scenario: str, a: str, b: str) -> tuple[ModelKind, ...]:
    """The model kinds by which two methods can be compared: those of the richer one."""
    kinds = [
        models_of(cells[0])
        for cells in (grid.of_method(scenario, a), grid.of_method(scenario, b))
        if cells
    ]
    return max(kinds, key=len, default=())
