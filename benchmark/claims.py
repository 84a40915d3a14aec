"""Does the recommended method keep what it promises against the reference's configuration?

Judged from a grid's cells, never by hand. Differences are paired by seed, and a promise counts as
measured only with enough seeds.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from benchmark.cells import CellResult, ScenarioKind
from benchmark.finished import Grid, at_the_end
from benchmark.results import ModelKind
from benchmark.statistics import (
    PairedTest,
    compare,
    paired_test,
    unrest,
)

Quantity = Literal["mAP", "ratio"]
Verdict = Literal["met", "not met", "not measured"]

SCENARIO_KINDS: tuple[ScenarioKind, ...] = ("by-dataset", "by-camera")
"""Scenarios in which every promise must hold."""

FLUCTUATION_RATIO = 1 / 3
"""The best method's fluctuation is at most this share of the reference's."""

SEEDS = 5
"""Fewer seeds than these are too few to call a promise met."""

SHARED: tuple[ModelKind, ...] = ("global", "local")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """Which methods the promises are about."""

    best: str = "best"
    reference: str = "reference"
    seeds: int = SEEDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One number of a claim beside its bound, both in 0..1 or a ratio; None = not measured."""

    label: str
    value: float | None
    bound: float | None
    verdict: Verdict
    test: PairedTest | None = None
    seeds: int = 0

    @property
    def said(self) -> str:
        """The verdict in words: what has figures was measured, with too few seeds."""
        too_few = self.verdict == "not measured" and self.seeds > 0
        return "too few seeds" if too_few else self.verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One promise with what was found about it."""

    name: str
    text: str
    quantity: Quantity
    verdict: Verdict
    findings: tuple[Finding, ...]

    @property
    def comparison(self) -> Literal[">", "≤"]:
        """How each value must stand to its bound."""
        return ">" if self.quantity == "mAP" else "≤"


def judged(cells: Sequence[CellResult], claims: Claims) -> tuple[Claim, ...]:
    """The promises, judged; none where the grid has neither of the two methods.

    ``not met`` if anything measured with enough seeds falls short, else ``not measured`` if
    anything is missing or has too few seeds, else ``met``.
    """
    grid = Grid.of(cells)
    if not {claims.best, claims.reference} & set(grid.all_methods):
        return ()
    return (
        _claim(
            "beats-the-reference",
            f"Mean mAP of {claims.best}'s global and local models is higher than "
            f"{claims.reference}'s.",
            "mAP",
            _everywhere(grid, lambda scenario: _beats_reference(grid, scenario, claims)),
        ),
        _claim(
            "beats-standalone",
            f"At every silo the better of {claims.best}'s global and local model has a higher "
            "mAP than the silo's standalone model.",
            "mAP",
            _everywhere(grid, lambda scenario: _beats_standalone(grid, scenario, claims)),
        ),
        _claim(
            "steadier",
            f"Over the last rounds the rank-1 of {claims.best}'s global model fluctuates at most "
            f"a third as much as {claims.reference}'s.",
            "ratio",
            _everywhere(grid, lambda scenario: [_steadier(grid, scenario, claims)]),
        ),
    )


def _claim(name: str, text: str, quantity: Quantity, findings: list[Finding]) -> Claim:
    verdicts = {finding.verdict for finding in findings}
    verdict: Verdict = next(
        (worst for worst in ("not met", "not measured") if worst in verdicts), "met"
    )
    return Claim(name=name, text=text, quantity=quantity, verdict=verdict, findings=tuple(findings))


def _everywhere(grid: Grid, find: Callable[[str], Iterable[Finding]]) -> list[Finding]:
    """What is found in each scenario of the kinds that count; a kind without any is missing."""
    findings: list[Finding] = []
    for kind in SCENARIO_KINDS:
        scenarios = [name for name in grid.scenarios if grid.kind(name) == kind]
        found = [finding for scenario in scenarios for finding in find(scenario)]
        findings += found or [Finding(label=kind, value=None, bound=None, verdict="not measured")]
    return findings


def _beats_reference(grid: Grid, scenario: str, claims: Claims) -> list[Finding]:
    findings = []
    for model in SHARED:
        pairs = compare(
            grid.cells,
            claims.best,
            claims.reference,
            scenario=scenario,
            model=model,
            metric="map",
        )
        findings.append(_higher(f"{scenario}, {model}", pairs.test, claims))
    return findings


def _beats_standalone(grid: Grid, scenario: str, claims: Claims) -> list[Finding]:
    """One model kind is chosen for all seeds of a silo: a choice by seed would pick luck."""
    findings = []
    cells = grid.of_method(scenario, claims.best)
    for silo in grid.silos(scenario) if cells else ():
        tests = [_against_standalone(grid, cells, silo, model) for model in SHARED]
        label = f"{scenario}, {silo}"
        findings.append(_higher(label, max(tests, key=_mean_gain), claims))
    return findings


def _against_standalone(
    grid: Grid, cells: Sequence[CellResult], silo: str, model: ModelKind
) -> PairedTest:
    pairs = []
    for cell in cells:
        ours, alone = at_the_end(cell, silo, model), grid.standalone(cell, silo)
        if ours is not None and alone is not None:
            pairs.append((ours.map, alone.map))
    return paired_test([ours for ours, _ in pairs], [alone for _, alone in pairs])


def _mean_gain(test: PairedTest) -> float:
    return -1.0 if test.difference is None else test.difference.mean


def _higher(label: str, test: PairedTest, claims: Claims) -> Finding:
    if test.difference is None:
        return Finding(label=label, value=None, bound=None, verdict="not measured")
    return Finding(
        label=label,
        value=fmean(test.a),
        bound=fmean(test.b),
        verdict=_verdict(test.difference.mean > 0.0, test.difference.n, claims),
        test=test,
        seeds=test.difference.n,
    )


def _steadier(grid: Grid, scenario: str, claims: Claims) -> Finding:
    """Over the seeds that both methods have."""
    best = {cell.seed: cell for cell in grid.of_method(scenario, claims.best)}
    reference = {cell.seed: cell for cell in grid.of_method(scenario, claims.reference)}
    shared = sorted(best.keys() & reference.keys())
    ours = unrest([best[seed] for seed in shared], "global", "rank1")
    theirs = unrest([reference[seed] for seed in shared], "global", "rank1")
    if ours is None or theirs is None or theirs.fluctuation == 0.0:
        return Finding(label=scenario, value=None, bound=FLUCTUATION_RATIO, verdict="not measured")
    ratio = ours.fluctuation / theirs.fluctuation
    return Finding(
        label=scenario,
        value=ratio,
        bound=FLUCTUATION_RATIO,
        verdict=_verdict(ratio <= FLUCTUATION_RATIO, len(shared), claims),
        seeds=len(shared),
    )


def _verdict(holds: bool, seeds: int, claims: Claims) -> Verdict:
    if seeds < claims.seeds:
        return "not measured"
    return "met" if holds else "not met"
