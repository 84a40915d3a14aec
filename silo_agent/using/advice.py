"""Which of its three models should a silo deploy, and why? A pure function of its figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from fedreid.contract import EvaluationResult, ModelKind
from silo_agent.outbox import ModelFigures

MODELS: tuple[ModelKind, ...] = ("global", "local", "standalone")
"""In the order in which a tie is settled: a model that more cameras have taught comes first."""

TIE_MAP = 0.005
"""Half a point of mAP: two rounds of the same model differ by more."""

FEW_QUERIES = 100
"""Below this a single query moves rank-1 by more than a point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """mAP of one kind of model over the last measured rounds, in 0..1."""

    mean: float
    deviation: float
    """Sample standard deviation; 0 where one round was measured."""
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """The model to deploy, with one sentence that says why."""

    model: ModelKind
    why: str


def newest_of(figures: Sequence[ModelFigures]) -> dict[ModelKind, ModelFigures]:
    """The newest figures of each kind of model that was measured."""
    newest: dict[ModelKind, ModelFigures] = {}
    for kind in MODELS:
        of_kind = [one for one in figures if one.result.model == kind]
        if of_kind:
            newest[kind] = max(of_kind, key=lambda one: one.round)
    return newest


def spread(figures: Sequence[ModelFigures], kind: ModelKind) -> Spread:
    """Mean and deviation of a kind's mAP; at least one of its rounds was measured."""
    maps = [one.result.map for one in figures if one.result.model == kind]
    return Spread(
        mean=mean(maps), deviation=stdev(maps) if len(maps) > 1 else 0.0, rounds=len(maps)
    )


def advise(figures: Sequence[ModelFigures]) -> Advice:
    """The model of the highest mAP among the newest; within a tie the first of :data:`MODELS`.

    Figures differ by a tie if by less than :data:`TIE_MAP` or than one query of all is worth.
    ``figures`` is not empty.
    """
    newest = {kind: one.result for kind, one in newest_of(figures).items()}
    best = max(newest.values(), key=lambda result: result.map)
    tied = [kind for kind, result in newest.items() if best.map - result.map <= _tie(best)]
    chosen = newest[tied[0]]
    return Advice(model=chosen.model, why=_why(chosen, newest, tied))


def _tie(result: EvaluationResult) -> float:
    return max(TIE_MAP, 1 / result.queries)


def _why(
    chosen: EvaluationResult, newest: dict[ModelKind, EvaluationResult], tied: list[ModelKind]
) -> str:
    queries = f"{chosen.queries} {'query' if chosen.queries == 1 else 'queries'}"
    parts = [f"its mAP of {chosen.map:.1%} on {queries}{_margins(chosen, newest, tied)}"]
    if len(tied) > 1:
        others = " and ".join(
            f"{kind} ({newest[kind].map:.1%})" for kind in tied if kind != chosen.model
        )
        parts.append(f"the difference to {others} is too small to tell, {_PREFERRED[chosen.model]}")
    if chosen.model == "standalone" and len(newest) > 1:
        parts.append("taking part has not improved on this silo's own training so far")
    missing = [kind for kind in MODELS if kind not in newest]
    if missing:
        was = "was" if len(missing) == 1 else "were"
        parts.append(f"{' and '.join(missing)} {was} not measured")
    if chosen.queries < FEW_QUERIES:
        parts.append(f"with so few queries one of them is worth {100 / chosen.queries:.1f} points")
    return "; ".join(parts) + "."


def _margins(
    chosen: EvaluationResult, newest: dict[ModelKind, EvaluationResult], tied: list[ModelKind]
) -> str:
    beaten = [
        f"{100 * (chosen.map - result.map):.1f} points above {kind}"
        for kind, result in newest.items()
        if kind not in tied
    ]
    return f" is {' and '.join(beaten)}" if beaten else " is what was measured"


_PREFERRED: dict[ModelKind, str] = {
    "global": "and the global model has learned from more cameras than yours",
    "local": "and the local model has learned from the federation too",
}
