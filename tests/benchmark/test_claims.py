"""Are promises judged from the cells, and only where there are enough of them?"""

import pytest

from benchmark.cells import CellResult, ScenarioKind
from benchmark.claims import Claim, Claims, Verdict, judged
from benchmark.results import ModelKind
from tests.benchmark.made_up_grid import accuracy, cell, round_of, simple

KINDS: tuple[ScenarioKind, ...] = ("by-dataset", "by-camera")
SEEDS = range(5)


def claim(cells: list[CellResult], name: str, claims: Claims | None = None) -> Claim:
    return next(one for one in judged(cells, claims or Claims()) if one.name == name)


def grid(
    best: dict[ModelKind, float], reference: dict[ModelKind, float], alone: float = 0.1
) -> list[CellResult]:
    """Five seeds in both scenarios; figures differ a little by seed."""
    cells = []
    for kind in KINDS:
        for seed in SEEDS:
            for name, figures in (("best", best), ("reference", reference)):
                shifted = {model: value + 0.001 * seed for model, value in figures.items()}
                cells.append(
                    simple(
                        name, seed, {"x": shifted, "y": shifted}, scenario=kind, scenario_kind=kind
                    )
                )
            lonely: dict[str, dict[ModelKind, float]] = {
                silo: {"standalone": alone} for silo in ("x", "y")
            }
            cells.append(
                simple("alone", seed, lonely, kind="standalone", scenario=kind, scenario_kind=kind)
            )
    return cells


@pytest.mark.parametrize(
    ("best", "verdict"),
    [
        ({"global": 0.5, "local": 0.6}, "met"),
        ({"global": 0.4, "local": 0.6}, "not met"),
        ({"global": 0.5, "local": 0.3}, "not met"),
        ({"global": 0.5}, "not measured"),
    ],
)
def test_both_models_must_beat_the_references(
    best: dict[ModelKind, float], verdict: Verdict
) -> None:
    cells = grid(best, {"global": 0.4, "local": 0.5})
    assert claim(cells, "beats-the-reference").verdict == verdict


def test_both_scenarios_must_be_there_and_hold() -> None:
    cells = grid({"global": 0.5, "local": 0.6}, {"global": 0.4, "local": 0.5})
    one = [c for c in cells if c.scenario_kind == "by-dataset"]
    assert claim(one, "beats-the-reference").verdict == "not measured"
    assert [f.verdict for f in claim(one, "beats-the-reference").findings] == [
        "met",
        "met",
        "not measured",
    ]


def test_fewer_seeds_than_asked_for_are_shown_but_not_judged() -> None:
    cells = grid({"global": 0.5, "local": 0.6}, {"global": 0.4, "local": 0.5})
    four = [c for c in cells if (c.method, c.seed) != ("reference", 4)]
    found = claim(four, "beats-the-reference")
    assert found.verdict == "not measured"
    assert found.findings[0].seeds == 4
    assert found.findings[0].value == pytest.approx(0.5 + 0.0015)
    assert claim(four, "beats-the-reference", Claims(seeds=4)).verdict == "met"


def test_the_better_of_global_and_local_must_beat_standalone_at_every_silo() -> None:
    cells = grid({"global": 0.3, "local": 0.6}, {"global": 0.1}, alone=0.5)
    found = claim(cells, "beats-standalone")
    assert found.verdict == "met"
    assert [f.label for f in found.findings] == [
        f"{kind}, {silo}" for kind in KINDS for silo in ("x", "y")
    ]
    assert [f.value for f in found.findings] == [pytest.approx(0.602)] * 4
    assert (
        claim(grid({"global": 0.3, "local": 0.4}, {}, alone=0.5), "beats-standalone").verdict
        == "not met"
    )


def test_one_model_is_chosen_for_all_seeds_of_a_silo() -> None:
    """Global wins at even seeds, local at odd ones; each alone is below standalone on average."""
    cells = []
    for kind in KINDS:
        for seed in SEEDS:
            lucky: dict[ModelKind, float] = {
                "global": 0.6 if seed % 2 == 0 else 0.2,
                "local": 0.2 if seed % 2 == 0 else 0.6,
                "standalone": 0.5,
            }
            cells.append(simple("best", seed, {"x": lucky}, scenario=kind, scenario_kind=kind))
    assert claim(cells, "beats-standalone").verdict == "not met"


def unsteady(method: str, seed: int, kind: ScenarioKind, wobble: float) -> CellResult:
    rounds = tuple(
        round_of(number, {"x": {"global": accuracy(0.5 + wobble * (-1) ** number)}})
        for number in range(1, 12)
    )
    return cell(method, seed, rounds, scenario=kind, scenario_kind=kind)


@pytest.mark.parametrize(("wobble", "verdict"), [(0.0333, "met"), (0.0334, "not met")])
def test_fluctuation_must_be_at_most_a_third(wobble: float, verdict: Verdict) -> None:
    cells = [
        unsteady(method, seed, kind, size)
        for kind in KINDS
        for seed in SEEDS
        for method, size in (("best", wobble), ("reference", 0.1))
    ]
    assert claim(cells, "steadier").verdict == verdict
    assert claim(cells, "steadier").findings[0].value == pytest.approx(wobble / 0.1)


def test_a_reference_that_does_not_move_is_no_measure() -> None:
    cells = [
        unsteady(method, seed, kind, 0.0)
        for kind in KINDS
        for seed in SEEDS
        for method in ("best", "reference")
    ]
    assert claim(cells, "steadier").verdict == "not measured"


def test_methods_are_named_by_the_caller_and_other_grids_are_not_judged() -> None:
    cells = grid({"global": 0.5, "local": 0.6}, {"global": 0.4, "local": 0.5})
    turned = Claims(best="reference", reference="best")
    assert claim(cells, "beats-the-reference", turned).verdict == "not met"
    assert judged(cells, Claims(best="this", reference="that")) == ()
