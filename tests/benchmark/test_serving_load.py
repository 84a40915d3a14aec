"""Does a coordinator serve many light agents, and is what that costs told?"""

import json
import os
import subprocess
import sys

import msgspec
import pytest

from benchmark.serving_load import Latency, Load, measure_load, rows
from fedreid.errors import UsageError


def loaded(silos: int, rounds: int) -> Load:
    """What the command tells of a load."""
    done = subprocess.run(
        [
            sys.executable, "-m", "benchmark", "serving-load", "--json",
            "--silos", str(silos), "--rounds", str(rounds),
        ],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return msgspec.convert(json.loads(done.stdout), Load)


def check(load: Load, silos: int, rounds: int) -> None:
    """Every silo took part in every round, nothing failed, and nothing was left open."""
    assert load.errors == {}
    assert (load.silos, load.rounds, len(load.round_seconds)) == (silos, rounds, rounds)
    assert load.unary["Hello"].calls == silos
    assert load.unary["OpenUpload"].calls == silos * rounds
    assert load.unary["ReportEvaluation"].calls == silos * (rounds + 1)
    first, last = load.service_by_round[0], load.service_by_round[-1]
    assert last.open_files < first.open_files + silos / 2  # a file left by each would be silos
    assert last.threads <= first.threads + 8
    assert 1_000_000 < load.model_bytes < 2_000_000
    assert len(rows(load)) > 10


@pytest.mark.timeout(300)
def test_a_few_agents_take_part_in_whole_rounds() -> None:
    check(loaded(8, 2), 8, 2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_hundreds_of_agents_take_part_in_whole_rounds() -> None:
    load = loaded(256, 3)
    check(load, 256, 3)
    print(load)


@pytest.mark.parametrize("numbers", [(1, 1, 1.0), (2, 0, 1.0), (2, 1, 0.0)])
def test_numbers_that_make_no_load_are_refused(numbers: tuple[int, int, float]) -> None:
    with pytest.raises(UsageError):
        measure_load(*numbers, tell=print)


def test_no_transfer_at_all_is_refused() -> None:
    with pytest.raises(UsageError):
        measure_load(2, 1, 1.0, transfers=0, tell=print)


def test_quantiles_are_of_calls_that_were_made() -> None:
    latency = Latency.of([n / 1000 for n in range(1, 101)])
    told = [latency.p50_ms, latency.p99_ms, latency.longest_ms]
    assert latency.calls == 100 and told == pytest.approx([51.0, 100.0, 100.0])
