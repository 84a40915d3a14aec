"""Is a start timed through real processes, and a program that does not start told of?"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.federation import Program
from benchmark.starting import _until, measure_starting
from fedreid.errors import RunError, UsageError

pytestmark = pytest.mark.timeout(300)


def test_coordinator_and_agent_are_started_as_often_as_asked() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmark", "starting", "--starts", "2", "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["starts"] == 2
    for program in ("coordinator", "agent"):
        seconds = result[f"{program}_seconds"]
        assert 0.1 < seconds["least"] <= seconds["median"] <= seconds["most"]


def test_no_start_can_not_be_measured() -> None:
    with pytest.raises(UsageError):
        measure_starting(starts=0, tell=lambda line: None)


def test_a_program_that_ends_is_not_waited_for(tmp_path: Path) -> None:
    program = Program(("this",), tmp_path / "log")
    program.start()
    with pytest.raises(RunError, match="did not start"):
        _until(program, "serving")
