"""Is a bench file read as it is meant, and is what it can't mean refused?"""

from importlib.resources import files
from pathlib import Path

import pytest

from benchmark.bench import Bench, MethodSpec, ScenarioSpec, load_bench, method_plan
from fedreid.errors import FedreidError, PlanRefused
from fedreid.plan import parse_plan

BENCHES = (
    "smoke.toml",
    "generated.toml",
    "ablations.toml",
    "attack.toml",
    "privacy.toml",
    "table.toml",
    "encodings.toml",
)
PLANS = sorted(
    item.name
    for item in (files("benchmark") / "plans").iterdir()
    if item.name.endswith(".toml") and item.name not in BENCHES
)


@pytest.mark.parametrize("name", BENCHES)
def test_every_bench_that_comes_along_gives_a_plan_for_each_method(name: str) -> None:
    bench = load_bench(Path(name))
    for method in bench.methods:
        plan = method_plan(
            bench, method, Path(), name="x", seed=3, public="/public", start=Path("/start")
        )
        assert plan.seed == 3 and not plan.evaluation.standalone


@pytest.mark.parametrize("name", PLANS)
def test_every_plan_that_comes_along_is_one(name: str) -> None:
    plan = parse_plan((files("benchmark") / "plans" / name).read_text("utf-8"))
    assert f"{plan.name}.toml" == name


def written(folder: Path, text: str) -> Path:
    path = folder / "bench.toml"
    path.write_text('name = "b"\n' + text, "utf-8")
    return path


METHOD = '[[methods]]\nname = "m"\nplan = "paper.toml"\n'
SCENARIO = '[[scenarios]]\nkind = "by-dataset"\n'
DATASETS = '[datasets.market1501]\npath = "/data"\n'
WHOLE = SCENARIO + METHOD + DATASETS


def test_overrides_of_the_method_win_over_those_of_the_bench_over_the_plan(tmp_path: Path) -> None:
    bench = Bench(
        name="b",
        scenarios=(ScenarioSpec(kind="by-dataset"),),
        methods=(),
        override={"rounds": 7, "training": {"learning_rate": 0.1, "epochs": 2}},
    )
    method = MethodSpec(name="m", plan="paper.toml", override={"training": {"epochs": 3}})
    plan = method_plan(bench, method, tmp_path, name="cell", seed=1, public="")
    assert (plan.name, plan.seed, plan.rounds) == ("cell", 1, 7)
    assert plan.training.learning_rate == 0.1 and plan.training.epochs == 3
    assert plan.training.backbone_learning_rate == 0.005  # the plan's own


def test_a_plan_beside_the_bench_file_is_found_before_those_that_come_along(tmp_path: Path) -> None:
    (tmp_path / "paper.toml").write_text('name = "mine"\nrounds = 4\n', "utf-8")
    bench = Bench(name="b", scenarios=(), methods=())
    method = MethodSpec(name="m", plan="paper.toml")
    assert method_plan(bench, method, tmp_path, name="c", seed=0, public="").rounds == 4


def test_what_the_command_line_says_takes_the_files_place(tmp_path: Path) -> None:
    bench = load_bench(written(tmp_path, WHOLE), transport="grpc", workers=3, seeds="4,5")
    assert (bench.transport, bench.workers, bench.seeds) == ("grpc", 3, (4, 5))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SCENARIO + METHOD, "either [generated] silos or [datasets]"),
        (WHOLE + METHOD, "methods with names of their own"),
        (SCENARIO + DATASETS, "methods"),
        (WHOLE.replace("by-dataset", "by-weather"), "by-weather"),
        (WHOLE.replace("kind =", 'datasets = ["duke"]\nkind ='), "unknown dataset 'duke'"),
        (
            'transport = "grpc"\n' + SCENARIO + METHOD + "policy.minimum_images = 9\n" + DATASETS,
            "on the transport local only",
        ),
        ("sceds = [1]\n" + WHOLE, "Did you mean 'seeds'"),
    ],
)
def test_a_wrong_bench_is_refused_with_the_reason(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(FedreidError) as refused:
        load_bench(written(tmp_path, text))
    assert said in f"{refused.value} {refused.value.why} {refused.value.next_step}"


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, WHOLE)
    for wrong in ({"transport": "carrier-pigeon"}, {"seeds": "1,x"}):
        with pytest.raises(PlanRefused, match="can't be run so"):
            load_bench(path, **wrong)  # type: ignore[arg-type]


def test_public_images_that_nobody_has_are_missed_before_anything_runs(tmp_path: Path) -> None:
    bench = load_bench(written(tmp_path, WHOLE.replace("paper.toml", "kd-paper.toml")))
    with pytest.raises(PlanRefused, match="needs public images"):
        method_plan(bench, bench.methods[0], tmp_path, name="c", seed=0, public="")


def test_start_weights_that_the_bench_does_not_make_are_missed(tmp_path: Path) -> None:
    text = WHOLE.replace("[[methods]]", '[override.backbone]\nstart = "pretrained"\n[[methods]]')
    bench = load_bench(written(tmp_path, text))
    with pytest.raises(PlanRefused, match="no start weights of its own"):
        method_plan(bench, bench.methods[0], tmp_path, name="c", seed=0, public="")


def test_a_missing_file_is_named_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(PlanRefused, match=r"no file .*gone\.toml") as refused:
        load_bench(tmp_path / "gone.toml")
    assert "smoke.toml" in (refused.value.next_step or "")


def test_an_attack_needs_a_federation_in_one_process(tmp_path: Path) -> None:
    attacked = METHOD + 'attack = { silo = "market1501" }\n'
    assert load_bench(written(tmp_path, SCENARIO + attacked + DATASETS)).methods[0].attack
    for wrong in (attacked + 'kind = "standalone"\n', attacked):
        path = written(tmp_path, SCENARIO + wrong + DATASETS)
        transport = "grpc" if wrong == attacked else ""
        with pytest.raises(PlanRefused, match="only a federation in one process"):
            load_bench(path, transport=transport)
