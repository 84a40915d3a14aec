"""Is the right model named for deployment, with a reason that the figures bear out?"""

import pytest

from fedreid.contract import EvaluationResult, ModelKind
from silo_agent.outbox import ModelFigures
from silo_agent.using.advice import advise, newest_of, spread


def scored(kind: ModelKind, map_: float, *, round: int = 9, queries: int = 400) -> ModelFigures:
    return ModelFigures(
        round=round,
        result=EvaluationResult(
            model=kind, rank1=map_, rank5=map_, rank10=map_, map=map_, minp=map_, queries=queries
        ),
    )


def test_the_model_with_the_highest_map_is_deployed_with_its_margins() -> None:
    advice = advise([scored("global", 0.60), scored("local", 0.65), scored("standalone", 0.45)])
    assert advice.model == "local"
    assert "65.0% on 400 queries is 5.0 points above global and 20.0 points above standalone" in (
        advice.why
    )
    assert "too small" not in advice.why


@pytest.mark.parametrize(
    ("better", "queries", "deployed"),
    [(0.604, 400, "global"), (0.606, 400, "local"), (0.615, 50, "global"), (0.625, 50, "local")],
    ids=["within half a point", "beyond", "within one of few queries", "beyond one query"],
)
def test_a_tie_goes_to_the_model_that_more_cameras_have_taught(
    better: float, queries: int, deployed: str
) -> None:
    figures = [scored("global", 0.6, queries=queries), scored("local", better, queries=queries)]
    advice = advise(figures)
    assert advice.model == deployed
    assert ("too small to tell" in advice.why) == (deployed == "global")


def test_a_tie_for_the_second_place_is_no_tie() -> None:
    advice = advise([scored("global", 0.5), scored("local", 0.5), scored("standalone", 0.7)])
    assert advice.model == "standalone"
    assert "taking part has not improved" in advice.why


def test_a_model_that_was_not_measured_is_named() -> None:
    assert (
        "standalone was not measured" in advise([scored("global", 0.5), scored("local", 0.6)]).why
    )
    only = advise([scored("local", 0.6)])
    assert only.model == "local"
    assert "global and standalone were not measured" in only.why


def test_few_queries_are_pointed_out() -> None:
    assert "one of them is worth 5.0 points" in advise([scored("local", 0.6, queries=20)]).why
    assert "worth" not in advise([scored("local", 0.6, queries=400)]).why


def test_only_the_newest_figures_decide_and_all_make_the_spread() -> None:
    figures = [
        scored("local", 0.9, round=7),
        scored("global", 0.5, round=8),
        scored("local", 0.3, round=8),
    ]
    assert advise(figures).model == "global"
    assert newest_of(figures)["local"].result.map == 0.3
    over = spread(figures, "local")
    assert over.rounds == 2
    assert over.mean == pytest.approx(0.6)
    assert over.deviation == pytest.approx(0.3 * 2**0.5)
    assert spread(figures, "global").deviation == 0.0
