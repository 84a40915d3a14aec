"""A run and an agent are watched: on a terminal, in a pipe, and over a coordinator's restart."""

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmark.federation import LocalFederation
from fedreid.errors import ExitCode, RunError
from tests.federation.conftest import Founding, write_plan
from tests.federation.terminal import CTRL_C, CURSOR_SHOWN, Terminal
from tests.federation.test_learning import finished

pytestmark = pytest.mark.timeout(300)
_RUN_S = 120.0


@pytest.fixture
def pipes() -> Iterator[list["subprocess.Popen[str]"]]:
    """Commands whose output goes to a pipe; ended with the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def piped(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def watching(local: LocalFederation, *more: str) -> tuple[str, ...]:
    return ("coordinator", "run", "status", "--watch", "--data", str(local.data), *more)


def test_a_run_is_watched_to_its_end_over_a_restart_of_the_coordinator(
    found: Founding, tmp_path: Path, pipes: list["subprocess.Popen[str]"]
) -> None:
    local = found()
    local.start_run(write_plan(tmp_path / "plan.toml", rounds=2))
    pipes += [piped(*watching(local)), piped(*watching(local, "--json"))]
    lines, objects = pipes
    assert lines.stdout and objects.stdout
    first = [lines.stdout.readline(), objects.stdout.readline()]  # both look before the restart
    with Terminal(*watching(local)) as terminal:
        terminal.until("0 of 2 models are published")
        local.coordinator.kill()
        away = terminal.until("no answer since .* trying again")
        local.restart_coordinator()
        for silo in local.silos:
            local.join_without_training(silo)
        terminal.until(r"2 of 2 models are published", after=away)
        assert terminal.end() == ExitCode.OK
        assert CURSOR_SHOWN in terminal.raw
        for silo in local.silos:
            assert silo in terminal.text
    told, wrong = lines.communicate(timeout=_RUN_S)
    shown = (first[0] + told).splitlines()
    assert lines.returncode == ExitCode.OK and not wrong
    assert "\x1b" not in told
    assert any("Trying again" in line for line in shown) and "in touch again" in shown
    assert "finished: 2 of 2 models" in shown[-1]
    told, wrong = objects.communicate(timeout=_RUN_S)
    changes = [json.loads(line) for line in (first[1] + told).splitlines()]
    assert objects.returncode == ExitCode.OK
    assert "in touch again" in wrong
    assert all(one != next_ for one, next_ in itertools.pairwise(changes))
    assert (changes[0]["rounds_published"], changes[-1]["rounds_published"]) == ("0", "2")
    assert changes[-1]["state"] == "finished"


def test_ctrl_c_ends_the_watching_and_nothing_else(found: Founding, tmp_path: Path) -> None:
    local = found(silos=1)
    quorum = {"min_silos": 1, "deadline_s": 120.0, "phase_deadline_s": 60.0}
    (silo,) = local.silos
    data = str(local.agent_data(silo))
    page = tmp_path / "report.html"
    with pytest.raises(RunError, match="no run has started"):
        local.command("coordinator", "report", str(page), "--data", str(local.data))
    with Terminal(*watching(local)) as terminal:
        assert terminal.end() == ExitCode.OK  # there is no run, so there is nothing to watch
        assert "no run is none" in terminal.text
    local.start_run(write_plan(tmp_path / "plan.toml", rounds=1, quorum=quorum))
    with Terminal(*watching(local)) as terminal:
        terminal.until("0 of 1 models are published")
        terminal.press(CTRL_C)
        assert terminal.end() == ExitCode.INTERRUPTED
        assert CURSOR_SHOWN in terminal.raw and "Traceback" not in terminal.text
    agent = local.join_without_training(silo)
    local.wait_until(finished, timeout_s=_RUN_S)
    with Terminal("silo_agent", "status", "--watch", "--data", data) as terminal:
        at = terminal.until("its certificate lasts until 20")
        at = terminal.until("now: waiting", after=at)
        at = terminal.until("last trained round 1 of test", after=at)
        terminal.until("update.outcome", after=at)
        local.coordinator.stop()
        at = terminal.until("waiting for the coordinator since", after=len(terminal.text))
        local.restart_coordinator()
        at = terminal.until("now: waiting *\r", after=at)
        agent.stop()
        terminal.until("the agent does not run", after=at)
        terminal.press(CTRL_C)
        assert terminal.end() == ExitCode.INTERRUPTED
        assert CURSOR_SHOWN in terminal.raw and "Traceback" not in terminal.text
    (state,) = json.loads(
        local.command("coordinator", "round", "list", "--json", "--data", str(local.data))
    )
    assert state["phase"] == "published"
    local.command("coordinator", "report", str(page), "--data", str(local.data))
    text = page.read_text()
    assert state["model_digest"] in text and silo in text and "1 of 1" in text
    status = json.loads(local.command("silo_agent", "status", "--data", data, "--json"))
    assert status["silent"] and status["doing"]["doing"] == ""
    assert status["certificate_ends_s"] > 1.7e9
