"""Is a plan read strictly, and does each refusal say what to change?"""

import math
from pathlib import Path

import msgspec
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as some

from fedreid.errors import PlanRefused
from fedreid.limits import PLAN_BYTES
from fedreid.plan import Plan, TrainingPlan, learning_rate_factor, load_plan, parse_plan

MINIMAL = 'name = "spring"\nrounds = 3\n'


def refusal(text: str) -> str:
    with pytest.raises(PlanRefused) as refused:
        parse_plan(text)
    return str(refused.value)


def test_name_and_rounds_make_a_plan_and_all_else_has_defaults() -> None:
    plan = parse_plan(MINIMAL)
    assert plan == Plan(name="spring", rounds=3)
    assert plan.training == TrainingPlan()


def test_a_plan_comes_back_from_toml_as_it_was() -> None:
    plan = Plan(name="spring", rounds=3, training=TrainingPlan(steps=(3, 5), schedule="step"))
    assert parse_plan(tomli_w.dumps(msgspec.to_builtins(plan))) == plan


@pytest.mark.parametrize(
    ("line", "nearest", "place"),
    [
        ("round = 3", "rounds", ""),
        ("sead = 1", "seed", ""),
        ("[trainng]\nepochs = 1", "training", ""),
        ("[training]\nlerning_rate = 1.0", "learning_rate", "[training]"),
        ("[training]\nBatch_Size = 8", "batch_size", "[training]"),
        ("[aggregation]\nmaxshare = 0.5", "max_share", "[aggregation]"),
        ("[quorum]\ndeadline = 5.0", "deadline_s", "[quorum]"),
        ("[wire]\nuploads = 'fp32'", "upload", "[wire]"),
        ("[backbone]\nneckk = 'paper'", "neck", "[backbone]"),
        ("[training.deeper]\nx = 1", "weight_decay", "[training]"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(
    line: str, nearest: str, place: str
) -> None:
    told = refusal(MINIMAL + line)
    key = line.partition("\n")[2].partition(" ")[0] if place else line.split()[0].strip("[]")
    if "deeper" not in line:
        assert repr(key) in told
        assert f"Did you mean {nearest!r}?" in told
    assert place in told


@pytest.mark.parametrize(
    "line",
    [
        "rounds = 0",
        "rounds = 100001",
        "rounds = 1.5",
        "rounds = '3'",
        "rounds = true",
        "name = 7",
        "seed = -1",
        f"seed = {2**63}",
        "[training]\nepochs = 0",
        "[training]\nbatch_size = 1",
        "[training]\nlearning_rate = 0",
        "[training]\nlearning_rate = -0.1",
        "[training]\nmomentum = 1.0001",
        "[training]\ndropout = -0.1",
        "[training]\nschedule = 'cosine'",
        "[training]\nsteps = ['1']",
        "[training]\nprobe_batches = 65",
        "[backbone]\nheight_px = 31",
        "[backbone]\nwidth_px = 1025",
        "[backbone]\nneck = 'x'",
        "[aggregation]\nmax_share = 0",
        "[aggregation]\nmax_share = 1.1",
        "[aggregation]\nbn = 'frozen'",
        "[aggregation]\nweighting = 'median'",
        "[distillation]\nevery = 0",
        "[quorum]\nmin_silos = 0",
        "[quorum]\nmin_fraction = 1.5",
        "[quorum]\ndeadline_s = 0",
        "[quorum]\nphase_deadline_s = -1",
        "[wire]\nupload = 'fp16'",
        "[validation]\nmax_update_norm_ratio = 0",
        "[evaluation]\nevery = 0",
        "training = 1",
        "training = [1]",
    ],
)
def test_a_value_out_of_range_is_refused(line: str) -> None:
    text = MINIMAL if line.startswith("[") else ""
    if not text:
        key = line.partition(" ")[0]
        text = "".join(kept + "\n" for kept in MINIMAL.splitlines() if not kept.startswith(key))
    assert "not valid" in refusal(text + line)


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e999"])
@pytest.mark.parametrize(
    "key", ["[training]\nlearning_rate", "[quorum]\ndeadline_s", "[validation]\nmax_absolute_value"]
)
def test_what_is_not_finite_is_refused(key: str, value: str) -> None:
    assert "finite" in refusal(f"{MINIMAL}{key} = {value}")


def test_a_required_key_that_is_missing_is_named() -> None:
    assert "`rounds`" in refusal('name = "spring"')
    assert "`name`" in refusal("rounds = 1")


@pytest.mark.parametrize("text", ["name", "= 1", "a = 1\na = 2", "[training]\n[training]", "\0"])
def test_what_is_no_toml_is_refused(text: str) -> None:
    assert "no TOML" in refusal(text)


def test_a_plan_that_nests_without_end_is_refused() -> None:
    refusal("x = " + "[" * 20_000 + "]" * 20_000)
    refusal("x = " + "{a=" * 10_000 + "1" + "}" * 10_000)


def test_a_plan_of_more_than_a_page_is_refused_unread() -> None:
    assert str(PLAN_BYTES) in refusal("#" * (PLAN_BYTES + 1))
    assert parse_plan(MINIMAL + "#" * (PLAN_BYTES - len(MINIMAL))).rounds == 3


@given(some.text(max_size=60))
def test_no_text_is_anything_but_a_plan_or_a_refusal(text: str) -> None:
    try:
        parse_plan(MINIMAL + text)
    except PlanRefused as error:
        assert error.what


@given(some.text(min_size=1, max_size=20))
def test_whatever_the_unknown_key_is_it_is_refused(key: str) -> None:
    with pytest.raises(PlanRefused):
        parse_plan(MINIMAL + tomli_w.dumps({"training": {key + "_": 1}}))


def test_a_plan_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(MINIMAL)
    assert load_plan(path).rounds == 3
    path.write_bytes(b"\xff")
    for unreadable in (path, tmp_path / "missing", tmp_path):
        with pytest.raises(PlanRefused, match="Can't read"):
            load_plan(unreadable)


def test_a_constant_rate_stays_after_its_warm_up() -> None:
    training = TrainingPlan(warmup_rounds=3)
    factors = [learning_rate_factor(training, published=n, rounds=10) for n in range(6)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_step_multiplies_the_rate_after_each_of_its_rounds() -> None:
    training = TrainingPlan(schedule="step", steps=(4, 2), gamma=0.5)
    factors = [learning_rate_factor(training, published=n, rounds=6) for n in range(6)]
    assert factors == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_warmup_cosine_rises_then_falls_to_nothing() -> None:
    training = TrainingPlan(schedule="warmup_cosine", warmup_rounds=2)
    factors = [learning_rate_factor(training, published=n, rounds=10) for n in range(11)]
    assert factors[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert factors[2:] == sorted(factors[2:], reverse=True)
    assert factors[6] == pytest.approx(0.5)
    assert factors[10] == pytest.approx(0.0, abs=1e-12)


@given(
    some.sampled_from(["constant", "step", "warmup_cosine"]),
    some.integers(0, 50),
    some.integers(1, 100),
    some.data(),
)
def test_a_factor_is_a_finite_share_and_the_first_rounds_is_not_zero(
    schedule: str, warmup: int, rounds: int, data: some.DataObject
) -> None:
    training = msgspec.convert(
        {"schedule": schedule, "warmup_rounds": warmup, "steps": [1, 5], "gamma": 0.1},
        TrainingPlan,
    )
    published = data.draw(some.integers(0, rounds - 1))
    factor = learning_rate_factor(training, published=published, rounds=rounds)
    assert math.isfinite(factor)
    assert 0.0 <= factor <= 1.0
    assert learning_rate_factor(training, published=0, rounds=rounds) > 0


def test_a_size_of_groups_that_leaves_one_identity_in_a_batch_is_refused() -> None:
    lines = "[training]\nbatch_size = 7\nimages_per_identity = "
    assert "batch_size of 8" in refusal(MINIMAL + lines + "4")
    assert parse_plan(MINIMAL + lines + "3").training.images_per_identity == 3


def test_models_of_clusters_are_no_differences_from_one_base() -> None:
    clusters = (
        '[aggregation]\nclustering = "finch"\nclip_norm_ratio = 0.0\nscreen = false\n[wire]\n'
    )
    with pytest.raises(PlanRefused, match="fp32 or bf16"):
        parse_plan(MINIMAL + clusters + 'download = "int8_delta"')
    assert parse_plan(MINIMAL + clusters + 'upload = "int8_delta"').wire.upload == "int8_delta"
