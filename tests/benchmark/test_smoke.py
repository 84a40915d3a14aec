"""Does the smoke bench run end to end, as a person runs it, and after an interruption?"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet
import pytest

from benchmark.bench import load_bench
from benchmark.cells import CELL_NAME, read_cells

pytestmark = pytest.mark.timeout(600)
_FIRST_CELL_S = 240.0


def start(out: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "benchmark", "run", "smoke.toml", "--out", str(out)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finished_cells(out: Path) -> dict[str, int]:
    """Each finished cell, and when it was written."""
    found = out.glob(f"cells/*/{CELL_NAME}")
    return {path.parent.name: path.stat().st_mtime_ns for path in found}


def wait_for_a_cell(process: "subprocess.Popen[str]", out: Path) -> None:
    until_s = time.monotonic() + _FIRST_CELL_S
    while not finished_cells(out):
        assert process.poll() is None and time.monotonic() < until_s
        time.sleep(0.2)


def test_the_smoke_bench_runs_to_its_report_and_goes_on_after_an_interruption(
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    first = start(out)
    try:
        wait_for_a_cell(first, out)
        children = psutil.Process(first.pid).children(recursive=True)
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=60)
    finally:
        first.kill()
    assert first.returncode == 130
    assert not psutil.wait_procs(children, timeout=20)[1], "a process outlived the benchmark"
    before = finished_cells(out)

    second = start(out)
    try:
        said, _ = second.communicate(timeout=500)
    finally:
        second.kill()
    assert second.returncode == 0, said
    after = finished_cells(out)
    assert 0 < len(before) < len(after) == 12
    assert {name: after[name] for name in before} == before, "a finished cell was run again"
    check(out)


def check(out: Path) -> None:
    """Every cell has every figure, and the report shows them."""
    bench = load_bench(Path("smoke.toml"))
    cells = read_cells(out)
    assert {(cell.scenario, cell.method) for cell in cells} == {
        (scenario.label, method.name) for scenario in bench.scenarios for method in bench.methods
    }
    for cell in cells:
        assert len(cell.rounds) == 3 and cell.seconds > 0
        assert all(use.generated for use in cell.silos.values())
        model = "standalone" if cell.kind == "standalone" else "global"
        for one in cell.rounds:
            assert set(one.evaluations) >= set(cell.silos)
            for silo in cell.silos:
                accuracy = one.evaluations[silo][model]  # type: ignore[index]
                assert accuracy.queries > 0 and 0 < accuracy.map <= 1
        if cell.kind == "federated":
            assert len({one.model_digest for one in cell.rounds}) == 3
            assert all(one.upload_bytes > 0 for one in cell.rounds)
    page = (out / "report.html").read_text("utf-8")
    text = (out / "report.md").read_text("utf-8")
    for method in bench.methods:
        assert method.name in page and method.name in text
    table = pyarrow.parquet.read_table(out / "results.parquet")
    assert set(table["method"].to_pylist()) == {method.name for method in bench.methods}
    assert (out / "results.csv").stat().st_size > 0
