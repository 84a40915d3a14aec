"""Does a grid keep what is finished, and take nothing that belongs to another bench?"""

from pathlib import Path

import msgspec
import pytest

from benchmark.bench import Bench, GeneratedSilos, MethodSpec, ScenarioSpec
from benchmark.cells import CELL_NAME, read_cells
from benchmark.grid import run_grid
from benchmark.pretraining import pretrained
from fedreid.errors import RunError, UsageError
from silo_agent.config import Policy

TINY = GeneratedSilos(
    silos=2, ratio=(2, 1), unit_identities=3, test_identities=3, distractors=1, junk=1,
    public_images=4, height_px=64, width_px=32, pretraining_rounds=1,
)  # fmt: skip
BENCH = Bench(
    name="tiny",
    generated=TINY,
    scenarios=(ScenarioSpec(kind="by-dataset"),),
    methods=(MethodSpec(name="best", plan="best.toml"),),
    override={
        "rounds": 1,
        "backbone": {
            "name": "shufflenet_v2_x0_5", "start": "pretrained", "height_px": 64, "width_px": 32,
        },
        "training": {"threads": 1, "batch_size": 8, "learning_rate": 0.002},
    },
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, from drawing people to its results."""
    out = tmp_path_factory.mktemp("grid") / "run"
    run_grid(BENCH, Path(), out)
    return out


def test_start_weights_are_made_once_and_all_cells_start_from_them(finished: Path) -> None:
    start = finished / "data" / "start.safetensors"
    made = start.stat().st_mtime_ns
    assert pretrained(BENCH, finished) == start.resolve()
    assert start.stat().st_mtime_ns == made
    (cell,) = read_cells(finished)
    assert str(start.resolve()) in cell.plan
    # Untrained but not random: the people of the test sets were in no training.
    assert set(cell.untrained) == {"station", "mall"}


def test_a_bench_without_pretraining_has_no_start_weights(tmp_path: Path) -> None:
    without = msgspec.structs.replace(TINY, pretraining_rounds=0)
    assert pretrained(msgspec.structs.replace(BENCH, generated=without), tmp_path) is None


def test_a_second_run_does_nothing_again(finished: Path) -> None:
    path = next(finished.glob(f"cells/*/{CELL_NAME}"))
    written = path.stat().st_mtime_ns
    assert len(run_grid(BENCH, Path(), finished)) == 1
    assert path.stat().st_mtime_ns == written


def test_a_finished_cell_of_another_plan_is_not_taken(finished: Path) -> None:
    method = MethodSpec(name="best", plan="best.toml", override={"training": {"epochs": 2}})
    with pytest.raises(RunError, match="by-dataset-best-s0 was run with another plan"):
        run_grid(msgspec.structs.replace(BENCH, methods=(method,)), Path(), finished)


def test_a_finished_cell_of_another_policy_is_not_taken(finished: Path) -> None:
    method = MethodSpec(name="best", plan="best.toml", policy=Policy(minimum_images=3))
    with pytest.raises(RunError, match="by-dataset-best-s0 was run with another plan"):
        run_grid(msgspec.structs.replace(BENCH, methods=(method,)), Path(), finished)


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "other"},
        {"override": {"rounds": 2}},
        {"generated": msgspec.structs.replace(TINY, unit_identities=4)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_another_bench_needs_another_folder(finished: Path, changed: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="other images or overrides"):
        run_grid(msgspec.structs.replace(BENCH, **changed), Path(), finished)


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").write_text("kept")
    with pytest.raises(UsageError, match="no benchmark"):
        run_grid(BENCH, Path(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.txt"]


def test_a_cell_that_fails_is_named_and_tried_again(tmp_path: Path) -> None:
    diverging = MethodSpec(
        name="diverging", plan="best.toml",
        override={"validation": {"max_update_norm_ratio": 1e-9}},
    )  # fmt: skip
    bench = msgspec.structs.replace(BENCH, methods=(diverging,))
    for _ in range(2):
        with pytest.raises(RunError, match="1 of 1 cells failed, the first is by-dataset-div"):
            run_grid(bench, Path(), tmp_path / "run")
    assert "norm" in (tmp_path / "run/cells/by-dataset-diverging-s0/failure.txt").read_text()
