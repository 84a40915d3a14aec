import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmark import ranking, ranking_child
from benchmark.cli import app
from benchmark.ranking import Timing, measure_ranking, table_of
from fedreid.errors import RunError, UsageError

PYTHON = Path(sys.executable)


def timing(method: str, *seconds: float, mean_ap: float = 0.5) -> Timing:
    return Timing(
        method=method,
        missing="",
        seconds=seconds,
        cpu_seconds=seconds,
        map=mean_ap,
        rank1=0.75,
        grown_bytes=2_000_000,
        peak_bytes=3_000_000,
    )


def test_the_command_times_ours_beside_torchreid_and_they_agree() -> None:
    options = ["--size", "tiny", "--width", "16", "--runs", "2", "--threads", "1", "--json"]
    result = CliRunner().invoke(app, ["ranking", *options])
    assert result.exit_code == 0, result.output
    ours, cython, numpy = json.loads(result.output)
    assert (ours["method"], len(ours["seconds"])) == ("fedreid", 2)
    assert cython["missing"] == "torchreid's Cython extension is not built here"
    assert numpy["missing"] == ""
    assert numpy["map"] == pytest.approx(ours["map"], abs=1e-6)
    assert 0 < ours["map"] < 1


def test_a_size_too_large_for_torchreid_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "PEER_BYTES_PER_PAIR", 10**12)
    ours, *others = measure_ranking("tiny", width=8, runs=1, threads=1, peer_python=PYTHON)
    assert len(ours.seconds) == 1
    assert all("GB are free" in other.missing for other in others)


def test_a_slow_method_runs_once_and_the_run_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "SLOW_RUN_S", 0.0)
    monkeypatch.setattr(ranking, "PEER_BYTES_PER_PAIR", 10**12)
    ours, *_ = measure_ranking("tiny", width=8, runs=3, threads=1, peer_python=PYTHON)
    assert len(ours.seconds) == 1


def test_methods_that_find_different_figures_are_not_compared() -> None:
    with pytest.raises(RunError, match="other finds mAP"):
        ranking._check_agreement([timing("ours", 1.0), timing("other", 1.0, mean_ap=0.6)])


def test_the_table_shows_how_much_slower_the_others_are() -> None:
    missing = Timing.absent("third", "not built")
    _, rows = table_of([timing("ours", 1.0, 2.0, 9.0), timing("other", 7.0), missing])
    assert [row[:3] for row in rows] == [
        ("ours", "2.000", "1.00"),
        ("other", "7.000", "3.50"),
        ("third", "not built", ""),
    ]


@pytest.mark.parametrize("changes", [{"size": "huge"}, {"width": 0}, {"runs": 0}, {"threads": 0}])
def test_sizes_and_numbers_that_make_no_sense_are_refused(changes: dict[str, object]) -> None:
    arguments = {"size": "tiny", "width": 8, "runs": 1, "threads": 1, "peer_python": PYTHON}
    with pytest.raises(UsageError, match="market1501, msmt17"):
        measure_ranking(**(arguments | changes))  # type: ignore[arg-type]


def test_an_interpreter_that_is_none_is_refused(tmp_path: Path) -> None:
    nowhere = tmp_path / "python"
    with pytest.raises(UsageError, match="Can't start"):
        measure_ranking("tiny", width=8, runs=1, threads=1, peer_python=nowhere)


def test_a_process_that_ends_early_is_told() -> None:
    with pytest.raises(RunError, match="ended with exit code"):
        measure_ranking("tiny", width=8, runs=1, threads=1, peer_python=Path("/bin/false"))


def test_torchreids_modules_are_missing_where_it_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ranking_child.MethodMissing, match="not installed"):
        ranking_child._bare("torchreid")
