"""Do a run's numbers hold what the federation promises its silos?

All promises are judged by mean average precision after the last round: on test sets of some
hundred images it is steadier than rank-1.
What was not measured is not met, and a model that finds nobody meets nothing.
"""

from statistics import fmean

import msgspec

from benchmark.results import Check, Comparison, Evidence, ModelKind, Results

Ratio = float | None

LEARNT_FACTOR = 1.5
"""The global model's mAP must be this many times the untrained one's."""

COLOUR_FACTOR = 2.0
"""The global model's mAP must be this many times that of colour histograms."""

_ROUNDING = 1e-9
"""1.5 times 0.2 is a little more than 0.3 in binary."""

SMALLEST = 2
"""So many silos, the ones with the fewest images, must gain from the global model."""


def judged(results: Results) -> Results:
    """The same results with the checks computed from them."""
    checks = (
        _learns(results),
        _sees_more_than_colours(results),
        _helps_the_smallest(results),
        _costs_nothing(results),
    )
    return msgspec.structs.replace(results, checks=checks)


def _learns(results: Results) -> Check:
    figures = []
    for silo in results.largest_first:
        start = _map(results, silo, "untrained")
        bound = None if start is None else LEARNT_FACTOR * start
        figures.append((silo, _map(results, silo, "global"), bound))
    return _check(
        "learns",
        f"The global model's mAP is at least {LEARNT_FACTOR} times the untrained one's, on every "
        "silo.",
        "≥",
        figures,
    )


def _sees_more_than_colours(results: Results) -> Check:
    figures = []
    for silo in results.largest_first:
        colours = results.silos[silo].colours
        bound = None if colours is None else COLOUR_FACTOR * colours.map
        figures.append((silo, _map(results, silo, "global"), bound))
    return _check(
        "sees-more-than-colours",
        f"The global model's mAP is at least {COLOUR_FACTOR:g} times that of colour histograms, "
        "on every silo.",
        "≥",
        figures,
    )


def _helps_the_smallest(results: Results) -> Check:
    return _check(
        "helps-the-smallest",
        "On the two silos with the fewest images the global model beats what each could train "
        "alone.",
        ">",
        [
            (silo, _map(results, silo, "global"), _map(results, silo, "standalone"))
            for silo in results.largest_first[-SMALLEST:]
        ],
    )


def _costs_nothing(results: Results) -> Check:
    return _check(
        "costs-nothing",
        "Local models trained in the federation are on average at least as good as models "
        "trained alone.",
        "≥",
        [("mean of all silos", _mean(results, "local"), _mean(results, "standalone"))],
    )


def _map(results: Results, silo: str, model: ModelKind) -> float | None:
    accuracy = results.silos[silo].accuracy(model)
    return None if accuracy is None else accuracy.map


def _mean(results: Results, model: ModelKind) -> float | None:
    values = [_map(results, silo, model) for silo in sorted(results.silos)]
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def _check(
    name: str, claim: str, comparison: Comparison, figures: list[tuple[str, Ratio, Ratio]]
) -> Check:
    """Compare each labelled value with its bound; all must hold, and there must be some."""
    evidence = tuple(
        Evidence(label=label, value=value, bound=bound, met=_holds(value, comparison, bound))
        for label, value, bound in figures
    )
    met = bool(evidence) and all(one.met for one in evidence)
    return Check(name=name, claim=claim, comparison=comparison, met=met, evidence=evidence)


def _holds(value: Ratio, comparison: Comparison, bound: Ratio) -> bool:
    if value is None or bound is None or value <= 0.0:
        return False
    return value > bound if comparison == ">" else value >= bound - _ROUNDING
