"""Where do runs on generated silos start? From a network that has seen other generated people.

The paper starts from ImageNet's weights; a run from random ones spends its rounds on learning to
see at all, and little of what distinguishes methods shows. So one network is trained in the
ordinary way, on people whom no silo of the bench has, and all cells start from it.
"""

import shutil
from pathlib import Path

import tomli_w

from benchmark.bench import Bench, Tree
from benchmark.local import LocalRun
from benchmark.scenarios import UNION, union
from benchmark.silos import drawn_silos
from fedreid.console import say
from fedreid.files import remove_folder
from fedreid.plan import Plan, TrainingPlan, parse_plan

PRETRAINING_SEED = 1_000_000
"""Of its people: no seed that a bench would name."""

_SHARE_AT_FULL_RATE = 0.75


def pretrained(bench: Bench, out: Path) -> Path | None:
    """The start weights of a bench, made at its first run; None if it has none of its own."""
    generated = bench.generated
    if generated is None or not generated.pretraining_rounds:
        return None
    start = out / "data" / "start.safetensors"
    if start.exists():
        return start.resolve()
    data, work = out / "data" / "pretraining", out / "data" / "pretraining-run"
    sources = drawn_silos(data, generated.spec(PRETRAINING_SEED), workers=bench.workers)
    say(f"training start weights for {generated.pretraining_rounds} rounds")
    run = LocalRun(
        work,
        federation=bench.name,
        plan=_plan(bench.override, generated.pretraining_rounds),
        silos={UNION: union(sources, data / UNION)},
    )
    run.run()
    shutil.copyfile(run.model, start)
    remove_folder(work)
    return start.resolve()


def _plan(override: Tree, rounds: int) -> Plan:
    backbone = {**override.get("backbone", {}), "start": "random"}
    training = override.get("training", {})
    rate = training.get("learning_rate", TrainingPlan().learning_rate)
    tree = {
        "name": "pretraining",
        "rounds": rounds,
        "seed": PRETRAINING_SEED,
        "backbone": backbone,
        "training": {
            "learning_rate": rate,
            "backbone_learning_rate": rate,
            "dropout": 0.0,
            "schedule": "step",
            "steps": [int(rounds * _SHARE_AT_FULL_RATE)],
            "threads": training.get("threads", 1),
        },
        "quorum": {"min_silos": 1},
        "evaluation": {"every": rounds, "standalone": False},
    }
    return parse_plan(tomli_w.dumps(tree))
