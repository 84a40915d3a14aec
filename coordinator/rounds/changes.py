"""What of a plan may change while its run is under way? A pure function of two plans."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from fedreid.errors import PlanRefused
from fedreid.plan import Plan

_FIXED = {
    "name": "a run keeps its name",
    "seed": "what the run has drawn so far follows from it",
    "backbone": "all models of a run are of one network",
    "aggregation.bn": "silos keep here or share what the first round has settled",
    "aggregation.clustering": "silos may start from models of their own clusters",
    "wire.download": "the model that the next round starts from is published as it is",
    "evaluation.folder": "the gate compares with models that were measured on those images",
}
"""Keys, or whole tables, that a run keeps from its start to its end, each with the reason."""


def changes_between(before: Plan, after: Plan, *, published: int) -> tuple[str, ...]:
    """What is different, a line for each key, sorted; ``published`` models are there already.

    Raises:
        PlanRefused: nothing is different, or something that a run keeps.
    """
    old, new = _flat(before), _flat(after)
    changed = sorted(key for key in old if old[key] != new[key])
    if not changed:
        raise PlanRefused(
            "This is the plan that the run follows already",
            next_step="Change some of its keys, or leave the run as it is.",
        )
    for key in changed:
        for fixed, why in _FIXED.items():
            if key == fixed or key.startswith(f"{fixed}."):
                raise PlanRefused(
                    f"A run can't change {key} from {old[key]!r} to {new[key]!r}",
                    why=why,
                    next_step="Put it back, or stop this run and start another one.",
                )
    if after.rounds < published:
        raise PlanRefused(
            f"The run can't end after {after.rounds} rounds",
            why=f"it has published {published} models already",
            next_step="To end it where it is: coordinator run stop.",
        )
    return tuple(f"{key}: {old[key]!r} → {new[key]!r}" for key in changed)


def _flat(plan: Plan) -> dict[str, Any]:
    return dict(_leaves(msgspec.to_builtins(plan), ""))


def _leaves(tree: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
