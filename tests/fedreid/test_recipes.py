"""Does a recipe fill in what a plan leaves out, and nothing else?"""

import msgspec
import pytest
import tomli_w

from fedreid.errors import PlanRefused
from fedreid.plan import TrainingPlan, parse_plan
from fedreid.recipes import RECIPES

MINIMAL = 'name = "spring"\nrounds = 30\n'
BOT = MINIMAL + '[training]\nrecipe = "bot"\n'


def test_the_papers_recipe_is_the_plans_defaults() -> None:
    assert parse_plan(MINIMAL + '[training]\nrecipe = "paper"') == parse_plan(MINIMAL)


def test_bag_of_tricks_sets_its_values_and_leaves_the_others() -> None:
    plan = parse_plan(BOT)
    assert (plan.backbone.neck, plan.backbone.last_stride) == ("bnneck", 1)
    assert plan.backbone.name == "resnet50"
    assert plan.training == TrainingPlan(
        recipe="bot",
        batch_size=64,
        images_per_identity=4,
        optimiser="adam",
        learning_rate=3.5e-4,
        backbone_learning_rate=3.5e-4,
        dropout=0.0,
        label_smoothing=0.1,
        triplet_margin=0.3,
        random_erasing=0.5,
        schedule="warmup_cosine",
        warmup_rounds=5,
    )


def test_a_key_that_the_plan_gives_wins() -> None:
    plan = parse_plan(BOT + "batch_size = 16\n[backbone]\nlast_stride = 2\n")
    assert (plan.training.batch_size, plan.backbone.last_stride) == (16, 2)
    assert (plan.training.triplet_margin, plan.backbone.neck) == (0.3, "bnneck")


def test_a_plan_written_out_is_read_back_as_it_was() -> None:
    plan = parse_plan(BOT + "dropout = 0.5")
    assert parse_plan(tomli_w.dumps(msgspec.to_builtins(plan))) == plan


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_value_of_a_recipe_is_one_that_a_plan_may_hold(name: str) -> None:
    plan = parse_plan(MINIMAL + f'[training]\nrecipe = "{name}"')
    for section, values in RECIPES[name].items():
        held = msgspec.structs.asdict(getattr(plan, section))
        assert {key: held[key] for key in values} == values


@pytest.mark.parametrize("value", ["'bots'", "1", "['bot']", "{bot = 1}"])
def test_what_is_no_recipe_is_refused(value: str) -> None:
    with pytest.raises(PlanRefused, match="recipe"):
        parse_plan(f"{MINIMAL}[training]\nrecipe = {value}")


def test_a_table_that_is_none_is_refused_beside_a_recipe() -> None:
    with pytest.raises(PlanRefused, match="backbone"):
        parse_plan("backbone = 1\n" + BOT)
